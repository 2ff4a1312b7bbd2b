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

WHOLE = ".whole"
FULL = ("No space left", "File too large", "uota exceeded")


def refuse_existing(path: Path, *, overwrite: bool, run: bool) -> None:
    """Say no before any work is done when `path` is taken.

    Args:
        path: the folder or file to be written.
        overwrite: whether an earlier one may be replaced.
        run: whether a run folder is to be written; only a run folder is ever replaced by one.

    Raises:
        InputError: the place is taken.
    """
    if run:
        settle(path)
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
        raise _unwritable(path.parent, error) from error
    if taken:
        raise InputError(
            f"{path} is a folder, where a file is to be written: remove it, or choose another one"
        )


@contextmanager
def whole_folder(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A folder to fill; it becomes `path` when the block ends without an error.

    Whatever a process that was killed has left there is cleared away first, so one at a time writes
    a run: hold it with `alone`.

    Args:
        path: the run folder.
        overwrite: whether an earlier run there may be replaced.

    Yields:
        A path beside it that does not exist yet.
    """
    refuse_existing(path, overwrite=overwrite, run=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path)
    scratch = _scratch(path)
    scratch.mkdir()
    try:
        yield scratch / "new"
        for file in (scratch / "new").rglob("*"):
            synced(file)
        if path.exists():
            path.rename(scratch / "old")
        with suppress(FileNotFoundError):  # a reader has seen the free name, and settled it
            (scratch / "new").rename(path)
        synced(path.parent)
    finally:
        sweep(path)


def settle(path: Path) -> None:
    """Give a run its name where that was cut off: one that was replaced had lost it already.

    Once the earlier run is out of the way the new one is whole, so whoever comes next ends what was
    begun; it may be anyone, at any time.

    Raises:
        InputError: nobody can; the sentence says where the run is.
    """
    scratch = _scratch(path)
    try:
        if (scratch / "old").exists() and not path.exists():
            with suppress(FileNotFoundError):  # another process did
                (scratch / "new").rename(path)
    except OSError as error:
        raise InputError(
            f"{path} was being replaced when that was cut off, and is whole in {scratch / 'new'}, "
            f"from where it cannot be moved ({why(error)}): rename it to {path}"
        ) from error


def sweep(path: Path) -> None:
    """Settle a run, and clear away what its writing left, which nobody else does meanwhile."""
    settle(path)
    shutil.rmtree(_scratch(path), ignore_errors=True)


def _scratch(path: Path) -> Path:
    """Where a run is made: a name that the next process knows, should this one be killed."""
    return path.with_name(f".{path.name}.unfinished")


@contextmanager
def whole_files(folder: Path, *, last: str) -> Iterator[Path]:
    """A folder to fill; its files go into `folder` together, where others stay as they are.

    Args:
        folder: made if needed; files of the same names are replaced.
        last: the name of the file without which the others count for nothing.

    Yields:
        A folder inside it.

    Raises:
        InputError: another process writes there at this moment, or nobody can.
    """
    with alone(folder / ".lock", str(folder)):
        move_in(folder, last=last)
        unfinished = folder / ".unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)  # of a process that was killed
        unfinished.mkdir()
        try:
            yield unfinished
            for file in unfinished.rglob("*"):
                synced(file)
            unfinished.rename(folder / WHOLE)
            move_in(folder, last=last)
            synced(folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)


def move_in(folder: Path, *, last: str) -> None:
    """End what `whole_files` began, once all is written; anyone may, at any time."""
    whole = folder / WHOLE
    try:
        found = sorted(whole.iterdir(), key=lambda file: file.name == last)
    except (FileNotFoundError, NotADirectoryError):
        return
    try:
        for file in found:
            with suppress(FileNotFoundError):  # another process did
                os.replace(file, folder / file.name)
        with suppress(FileNotFoundError):
            whole.rmdir()
    except OSError as error:
        raise InputError(
            f"the files in {whole} belong into {folder}, to where they cannot be moved "
            f"({why(error)}): move them there"
        ) from error


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
    held = FileLock(lock, timeout=0, is_singleton=False)
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        held.acquire()
    except Timeout as error:
        raise InputError(
            f"another fit is writing to {what} at this moment: wait for it, or choose another "
            "folder"
        ) from error
    except OSError as error:
        raise _unwritable(lock.parent, error) from error
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        held.release()
        if made:  # and nothing was put there
            with suppress(OSError):
                lock.parent.rmdir()


def why(error: Exception) -> str:
    """Why something could not be written, in words."""
    if any(sign in str(error) for sign in FULL):
        return "no space is left for it"
    return getattr(error, "strerror", None) or str(error)


def _unwritable(folder: Path, error: Exception) -> InputError:
    return InputError(f"{folder} cannot be written to ({why(error)}): choose another folder")
