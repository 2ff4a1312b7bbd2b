"""The seal of a run folder: run.json names the sha256 of every file beside it, and its own.

It finds damage, and files of two runs in one folder; it is no signature, and nothing that is loaded
is ever executed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bayesmeta.results import InputError

SEAL, FILES = "seal", "files"
LARGEST = 1 << 30
"""Bytes of a record or a log that are read; the names of 10⁷ tasks are less."""

LENGTH, LARGEST_HEADER = 8, 1 << 24
"""Bytes of the length of a header of tensors, and of the header itself at most."""


def sealed(record: Mapping[str, Any], files: Mapping[str, bytes | Path]) -> dict[str, Any]:
    """The record with the digests of the files it belongs to, and its own.

    Args:
        record: of the run.
        files: by name, what is in them or where they are.
    """
    whole = dict(record) | {FILES: {name: _digest(content) for name, content in files.items()}}
    return whole | {SEAL: _of(whole)}


def opened(path: Path) -> dict[str, Any]:
    """The record in a file, if it is as it was written.

    Raises:
        InputError: it is not.
    """
    content = contents(path)
    try:
        record = json.loads(content, object_pairs_hook=_once)
        json.dumps(record, ensure_ascii=False).encode()  # texts that no terminal can show
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read ({error}); fit again") from error
    if not isinstance(record, dict):
        raise InputError(f"{path}: is no record of a run; fit again")
    return record


def check(path: Path, record: Mapping[str, Any]) -> None:
    """Say no to a record that was changed.

    Raises:
        InputError: it was.
    """
    rest = {name: value for name, value in record.items() if name != SEAL}
    if record.get(SEAL) != _of(rest):
        raise InputError(f"{path} was changed after it was written, or is damaged; fit again")


def belonging(folder: Path, name: str, record: Mapping[str, Any]) -> bytes:
    """A file of the run, if it is the one that was written with the record.

    Raises:
        InputError: it is missing, damaged, or of another run.
    """
    content = contents(folder / name)
    files = record[FILES]
    if not isinstance(files, dict) or files.get(name) != _digest(content):
        raise InputError(
            f"{folder / name} is damaged, or of another run than {folder / 'run.json'}; fit again"
        )
    return content


def contents(path: Path) -> bytes:
    """What is in a file.

    Raises:
        InputError: it cannot be read.
    """
    try:
        if not path.is_file():
            raise InputError(f"{path} is missing from the run: fit again")
        numbers = path.suffix == ".safetensors"
        if path.stat().st_size > (_declared(path) if numbers else LARGEST):
            raise InputError(f"{path} is larger than any that is written; fit again")
        return path.read_bytes()
    except (OSError, MemoryError) as error:
        raise InputError(f"{path}: cannot be read ({error}); fit again") from error


def _declared(path: Path) -> int:
    """Bytes that a file of tensors has by its own header; a file without one has few.

    A file may be of any size, and most of it a hole: it is not read to find out.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(LENGTH), "little")
        header = file.read(min(length, LARGEST_HEADER))
    try:
        ends = [tensor["data_offsets"][1] for tensor in json.loads(header).values()]
        return LENGTH + length + max(ends, default=0)
    except (ValueError, RecursionError, AttributeError, LookupError, TypeError):
        return LARGEST_HEADER  # and the reader of tensors says what is wrong


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """An object, whose names come once: of two, every reader would take another one."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name comes twice in one object")
    return found


def _digest(content: bytes | Path) -> str:
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    with content.open("rb") as file:  # which may be larger than what memory is left
        return hashlib.file_digest(file, "sha256").hexdigest()


def _of(record: Mapping[str, Any]) -> str:
    return _digest(json.dumps(record, sort_keys=True, ensure_ascii=True).encode())
