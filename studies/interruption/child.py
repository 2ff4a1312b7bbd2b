"""A fit in a forked process: it tells its parent where it is, and ends where it is told to."""

from __future__ import annotations

import json
import mmap
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from typer import Abort

import bayesmeta as bm
from bayesmeta import resuming
from bayesmeta.resuming import LOG, Checkpoint
from bayesmeta.stopping import Stopped
from studies.interruption.fits import KEPT, attempt

STARTING, COMPUTING, WRITING_CHECKPOINT, WRITING_RUN = range(4)
FIELDS = ("phase", "step", "found", "points", "logged")
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")
NOTHING, GAP = -1, -2


class Shared:
    """Numbers that outlive the process that wrote them."""

    def __init__(self) -> None:
        self.numbers = np.frombuffer(mmap.mmap(-1, 4096), dtype=np.int64)

    def __getitem__(self, name: str) -> int:
        return int(self.numbers[FIELDS.index(name)])

    def __setitem__(self, name: str, value: int) -> None:
        self.numbers[FIELDS.index(name)] = value

    def reset(self) -> None:
        self.numbers[:] = 0
        self["found"] = self["logged"] = NOTHING


def begin(
    kind: str, steps: int, folder: Path, shared: Shared, *, begun: bool = False, fatal: int = 0
) -> int:
    """Fork a process that does the fit. Returns its number.

    Args:
        kind, steps, begun: of the fit.
        folder: where it lies.
        shared: is told of its progress.
        fatal: the process ends itself at this change of its files, the first being 1; 0: at none.
    """
    shared.reset()
    number = os.fork()
    if number:
        return number
    code = 1
    try:
        os.chdir(folder)
        _silence(folder.with_suffix(".said"))
        _watch(shared, folder, fatal)
        code = attempt(kind, steps, begun=begun)
    except Stopped as stop:
        code = 128 + stop.number
    except (KeyboardInterrupt, Abort):
        code = 128 + signal.SIGINT
    except BaseException:  # noqa: BLE001  a process that was forked must not go on as its parent
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _silence(said: Path) -> None:
    place = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(place, 1)
    os.dup2(place, 2)


def _watch(shared: Shared, folder: Path, fatal: int) -> None:
    """Note steps and phases, and count the changes of files."""

    def point(spoil: Callable[[], Any] | None = None) -> None:
        shared["points"] += 1
        if shared["points"] == fatal:
            if spoil is not None:
                spoil()
            os.kill(os.getpid(), signal.SIGKILL)

    def hear(event: str, given: tuple[Any, ...]) -> None:
        if event in CHANGES or (event == "open" and _creates(given)):
            place = given[0]
            if isinstance(place, str | os.PathLike) and _inside(os.fspath(place), folder):
                point()

    _note_progress(shared)
    _cut_in_half(point)
    sys.addaudithook(hear)


def _creates(given: tuple[Any, ...]) -> bool:
    return len(given) > 2 and isinstance(given[2], int) and bool(given[2] & os.O_CREAT)


def _inside(place: Any, folder: Path) -> bool:
    return not os.path.isabs(place) or str(place).startswith(str(folder))


def _note_progress(shared: Shared) -> None:
    due, save, load, clear = Checkpoint.due, Checkpoint.save, Checkpoint.load, Checkpoint.clear
    write = bm.Fit.save

    def due_too(self: Checkpoint, step: int, steps: int) -> bool:
        shared["step"] = step
        return due(self, step, steps)

    def save_too(self: Checkpoint, step: int, tensors: Any) -> None:
        shared["phase"] = WRITING_CHECKPOINT
        save(self, step, tensors)
        shared["phase"] = COMPUTING

    def load_too(self: Checkpoint) -> Any:
        found = load(self)
        shared["found"] = shared["step"] = 0 if found is None else found[0]
        shared["phase"] = COMPUTING
        return found

    def clear_too(self: Checkpoint) -> None:
        note_log()
        clear(self)

    def write_too(self: bm.Fit, folder: Any) -> Path:
        shared["phase"] = WRITING_RUN
        note_log()
        return write(self, folder)

    def note_log() -> None:
        log = Path(KEPT) / LOG
        if log.is_file():
            steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
            shared["logged"] = len(set(steps)) if steps == sorted(set(steps)) else GAP

    Checkpoint.due, Checkpoint.save, Checkpoint.load = due_too, save_too, load_too
    Checkpoint.clear, bm.Fit.save = clear_too, write_too


def _cut_in_half(point: Callable[..., None]) -> None:
    """A file whose first half alone has been written is a point, too."""
    tensors, content = resuming.save_file, Path.write_bytes

    def half_tensors(kept: Any, path: Path, metadata: Any) -> None:
        tensors(kept, path, metadata=metadata)
        point(lambda: os.truncate(path, path.stat().st_size // 2))

    def half_content(path: Path, data: Any) -> int:
        point(lambda: content(path, data[: len(data) // 2]))
        return content(path, data)

    resuming.save_file, Path.write_bytes = half_tensors, half_content
