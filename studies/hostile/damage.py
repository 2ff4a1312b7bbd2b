"""What is done to the files of a run folder: by chance, by mistake, and on purpose.

Each change is a function of the folder, a file's name in it, another run and a source of chance.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

from bayesmeta.seal import sealed

Change = Callable[[Path, str, Path, random.Random], None]
FOREIGN = {
    "pickle": pickle.dumps({"a": [1, 2]}),
    "png": b"\x89PNG\r\n\x1a\n" + bytes(64),
    "text": b"these are no numbers\n",
    "zeros": bytes(4096),
}


def _bytes(change: Callable[[bytearray, random.Random], bytes | bytearray]) -> Change:
    def changed(run: Path, name: str, other: Path, chance: random.Random) -> None:
        path = run / name
        path.write_bytes(change(bytearray(path.read_bytes()), chance))

    return changed


def _flipped(content: bytearray, chance: random.Random) -> bytearray:
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    return content


def _cut(content: bytearray, chance: random.Random) -> bytearray:
    start = chance.randrange(len(content))
    del content[start : start + chance.choice((1, 7, 100))]
    return content


def _added(content: bytearray, chance: random.Random) -> bytearray:
    place = chance.randrange(len(content) + 1)
    content[place:place] = chance.randbytes(chance.choice((1, 8, 300)))
    return content


def _foreign(content: bytearray, chance: random.Random) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("data.pkl", FOREIGN["pickle"])
    return chance.choice([*FOREIGN.values(), archive.getvalue()])


def _swapped(run: Path, name: str, other: Path, chance: random.Random) -> None:
    shutil.copy(other / name, run / name)


def _missing(run: Path, name: str, other: Path, chance: random.Random) -> None:
    (run / name).unlink()


def _special(run: Path, name: str, other: Path, chance: random.Random) -> None:
    """Something that is no file of the run under the name of one."""
    path = run / name
    path.unlink()
    what = chance.randrange(6)
    if what == 0:
        path.mkdir()
    elif what == 1:
        os.mkfifo(path)
    elif what == 5:  # a file of a TiB that takes no room, and a header that says it is right
        with path.open("wb") as file:
            file.truncate(1 << 40)
    else:
        path.symlink_to((other / name, path, "/dev/zero")[what - 2])


def header(content: bytes, **entries: object) -> bytes:
    """A safetensors file with another header in front of its numbers."""
    size = struct.unpack("<Q", content[:8])[0]
    known = json.loads(content[8 : 8 + size])
    text = json.dumps(known | entries).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + size :]


def _declared(content: bytearray, chance: random.Random) -> bytes:
    """A header that is larger than the file, or tensors that are."""
    what, many = chance.randrange(4), 10 ** chance.choice((9, 12, 18))
    if what == 0:
        return struct.pack("<Q", chance.choice((1 << 20, 1 << 40, (1 << 64) - 1))) + content[8:]
    if what == 1:
        return header(
            content, mean={"dtype": "F64", "shape": [many], "data_offsets": [0, 8 * many]}
        )
    if what == 2:
        return header(content, mean={"dtype": "F64", "shape": [many, 0], "data_offsets": [0, 0]})
    return header(content, mean={"dtype": "F64", "shape": [many, many], "data_offsets": [0, 8]})


CHANGES: dict[str, Change] = {
    "a bit": _bytes(_flipped),
    "bytes missing": _bytes(_cut),
    "bytes added": _bytes(_added),
    "cut off": _bytes(lambda content, chance: content[: chance.randrange(1, len(content))]),
    "empty": _bytes(lambda content, chance: b""),
    "of another run": _swapped,
    "not there": _missing,
    "another format": _bytes(_foreign),
    "no plain file": _special,
}
NUMBERS: dict[str, Change] = {"sizes declared": _bytes(_declared)}


def sealed_again(run: Path, record: dict | None = None) -> None:
    """Make the seal right for the files as they are now, as somebody does who means to."""
    path = run / "run.json"
    record = json.loads(path.read_text("utf-8")) if record is None else dict(record)
    record.pop("seal", None)
    names = [name for name in record.pop("files") if (run / name).is_file()]
    files = {name: (run / name).read_bytes() for name in names}
    path.write_text(json.dumps(sealed(record, files)), "utf-8")
