"""Writing all or nothing: a run folder or a file appears complete under its name, or not at all.

What has appeared is on the disk itself, so that it outlives a power cut as well as a kill.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from bayesmeta.results import InputError


def refuse_existing(path: Path, *, overwrite: bool, run: bool) -> None:
    """Say no before any work is done when `path` is taken.

    Args:
        path: the folder or file to be written.
        overwrite: whether an earlier one may be replaced.
        run: whether a run folder is to be written; only a run folder is ever replaced by one.

    Raises:
        InputError: the place is taken.
    """
    if run and path.is_dir() and not any(path.iterdir()):
        return
    if not path.exists():
        return
    if run and not (path / "run.json").is_file():
        raise InputError(f"{path} exists and is not a run folder: choose another --out")
    if not run and path.is_dir():
        raise InputError(f"{path} is a folder: name a file with --out")
    if not overwrite:
        raise InputError(f"{path} exists already: choose another --out, or add --overwrite")


def refuse_unwritable(path: Path) -> None:
    """Say no before any work is done when a file `path` could not be written; its folder is made.

    Raises:
        InputError: it is a folder, or its own folder cannot be made or written to.
    """
    try:
        taken = path.is_dir()
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(
            f"{path.parent} cannot be written to ({why}): choose another folder"
        ) from error
    if taken:
        raise InputError(
            f"{path} is a folder, where a file is to be written: remove it, or choose another one"
        )


@contextmanager
def whole_folder(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A folder to fill; it becomes `path` when the block ends without an error.

    Args:
        path: the run folder.
        overwrite: whether an earlier run there may be replaced.

    Yields:
        A path beside it that does not exist yet.
    """
    refuse_existing(path, overwrite=overwrite, run=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        yield scratch / "new"
        for file in (scratch / "new").rglob("*"):
            synced(file)
        if path.exists():
            path.rename(scratch / "old")
        (scratch / "new").rename(path)
        synced(path.parent)
    finally:
        if path.exists() or not (scratch / "old").exists():
            shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A file to write, of the same suffix; it becomes `path` when the block ends without error.

    Args:
        path: the file; one that exists is replaced.

    Yields:
        A path in the same folder that does not exist yet.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.stem}-", dir=path.parent) as scratch:
        written = Path(scratch) / path.name
        yield written
        synced(written)
        os.replace(written, path)
    synced(path.parent)


def synced(path: Path) -> None:
    """Wait until a file, or the list of names that a folder is, has reached the disk."""
    if path.is_dir() and os.name == "nt":  # where a folder cannot be opened
        return
    place = os.open(path, os.O_RDONLY)
    try:
        os.fsync(place)
    finally:
        os.close(place)


@contextmanager
def alone(lock: Path, what: str) -> Iterator[None]:
    """Hold a place against other processes; a process that ends in any way holds nothing.

    Args:
        lock: a file that says so while it is locked, removed afterwards.
        what: which is held, for the sentence.

    Raises:
        InputError: another process holds it.
    """
    made = not lock.parent.exists()
    lock.parent.mkdir(parents=True, exist_ok=True)
    held = FileLock(lock, timeout=0, is_singleton=False)
    try:
        held.acquire()
    except Timeout as error:
        raise InputError(
            f"another fit is writing to {what} at this moment: wait for it, or choose another "
            "folder"
        ) from error
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        held.release()
        if made:  # and nothing was put there
            with suppress(OSError):
                lock.parent.rmdir()
