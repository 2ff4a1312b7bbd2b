"""Zip archives read in memory; their members' names are looked up, never followed as paths."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

from bayesmeta.results import InputError

LARGEST = 2**20  # bytes; the drawings have some hundreds


class Archive:
    """The members of a zip file.

    Args:
        path: the zip file.
        file: the same, open.
    """

    def __init__(self, path: Path, file: zipfile.ZipFile) -> None:
        self.path, self.file = path, file
        self.names = [info.filename for info in file.infolist() if not info.is_dir()]

    def read(self, name: str) -> BytesIO:
        """The bytes of one member.

        Raises:
            InputError: it is damaged, encrypted, or far larger than a drawing.
        """
        size = self.file.getinfo(name).file_size
        if size > LARGEST:
            raise InputError(f"{name} in {self.path} has {size} bytes, too many for a drawing")
        try:
            return BytesIO(self.file.read(name))
        except (zipfile.BadZipFile, RuntimeError, zlib.error, EOFError) as e:
            raise InputError(
                f"{name} in {self.path} cannot be read ({e}): download the file again"
            ) from e


@contextmanager
def opened(path: Path) -> Iterator[Archive]:
    """A zip file, open for reading.

    Raises:
        InputError: it is no zip file, or is cut short.
    """
    try:
        file = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as e:
        raise InputError(f"{path} is not a whole zip file ({e}): download it again") from e
    with file:
        yield Archive(path, file)
