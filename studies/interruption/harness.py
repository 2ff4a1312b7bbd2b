"""Kills fits until they have ended, and holds what is left against fits that nobody killed.

`python -m studies.interruption.harness JSON` is the parent of them all: it loads the library once,
starts no thread, and forks.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py

import bayesmeta as bm
from bayesmeta.results import InputError
from bayesmeta.resuming import BEFORE, FILE, LOG, Checkpoint, Damaged
from studies.interruption.child import (
    COMPUTING,
    NOTHING,
    STARTING,
    WRITING_CHECKPOINT,
    WRITING_RUN,
    Shared,
    begin,
)
from studies.interruption.fits import DATA, EVERY, KEPT, PROGRAM, RUN, SEED, attempt, prepare

WHERE = {
    STARTING: "computing",
    COMPUTING: "computing",
    WRITING_CHECKPOINT: "writing a checkpoint",
    WRITING_RUN: "writing the run",
}
WENT_ON = re.compile(r" ?The fit went on from a checkpoint, after \d+ steps\.")
SIGNALS = {"SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT}
TRIES = 60
"""Attempts after which a fit that is killed each time counts as one that does not end."""
AGAIN = 1 / 3
"""Chance that a fit that goes on is struck, too: if all were, most would be hit as they end."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Whole:
    """The fit of a kind that nobody interrupts.

    Args:
        kind, steps: which.
        start: a folder as it is before the fit.
        seconds: it takes.
        points: changes of files it makes.
        logged: lines of its checkpoint's log.
        files: its run.
    """

    kind: str
    steps: int
    start: Path
    seconds: float
    points: int
    logged: int
    files: dict[str, str]


def main(asked: dict[str, Any]) -> list[Row]:
    """A row per kill."""
    rows, chance = [], random.Random(SEED)
    with tempfile.TemporaryDirectory() as place:
        for kind in asked["kinds"]:
            whole = uninterrupted(kind, asked["steps"], Path(place))
            for how, kills in asked["kills"].items():
                rows += killed(whole, how, kills, Path(place), chance)
    return rows


def uninterrupted(kind: str, steps: int, place: Path) -> Whole:
    """Do the fit twice: here, which loads all that is loaded on first use, and as a child."""
    shared = Shared()
    start, warm = place / f"{kind}-start", place / f"{kind}-warm"
    start.mkdir()
    with inside(start):
        prepare(kind, start)
    shutil.copytree(start, warm)
    with inside(warm):
        attempt(kind, steps)
    alone = len(os.listdir("/proc/self/task")) if Path("/proc/self/task").is_dir() else 1
    if alone > 1:
        raise RuntimeError("a thread was started, so no process can be forked here")
    folder = place / f"{kind}-whole"
    shutil.copytree(start, folder)
    started = time.monotonic()
    _, status = os.waitpid(begin(kind, steps, folder, shared), 0)
    seconds = time.monotonic() - started
    if status:
        raise RuntimeError(folder.with_suffix(".said").read_text())
    files = contents(folder / RUN)
    if contents(warm / RUN) != files:
        raise RuntimeError(f"{kind}: two fits that nobody interrupted differ")
    return Whole(kind, steps, start, seconds, shared["points"], shared["logged"], files)


def killed(whole: Whole, how: str, kills: int, place: Path, chance: random.Random) -> Iterator[Row]:
    """Rows of so many kills at least, of as many fits as that takes."""
    done, fit = 0, 0
    while done < kills:
        rows = one(whole, how, place / f"{whole.kind}-{how}-{fit}", chance)
        yield from ({"fit": f"{whole.kind} {how} {fit}"} | row for row in rows)
        done, fit = done + len(rows), fit + 1


def one(whole: Whole, how: str, folder: Path, chance: random.Random) -> list[Row]:
    """One fit, killed and gone on with until it has ended; a row per kill."""
    shutil.copytree(whole.start, folder)
    rows, shared, code = [], Shared(), 0
    for _ in range(TRIES):
        begun = bool(rows) and bool(rows[-1].pop("begun"))
        spared = bool(rows) and chance.random() > AGAIN
        struck, code = strike(whole, how, folder, shared, chance, begun=begun, spared=spared)
        if rows and shared["found"] != NOTHING:
            rows[-1]["found"] = shared["found"]
        if struck is None:
            break
        rows.append(struck | state(whole, folder))
        # Of an attempt that had not come to its steps yet, those of the one before count.
        rows[-1]["step"] = max(rows[-1]["step"], rows[-1]["found"])
    ended = struck is None and code == 0
    left = leftovers(whole, folder)
    outcome = {
        "ended": ended,
        "identical": ended and contents(folder / RUN) == whole.files,
        "log_gap": ended and shared["logged"] not in (whole.logged, NOTHING),
        "leftovers": len(left),
    }
    if not outcome["identical"] or left or outcome["log_gap"]:
        said = folder.with_suffix(".said").read_text()
        print(folder.name, outcome, sorted(left), said, file=sys.stderr, flush=True)
    shutil.rmtree(folder)
    about = {
        "kind": whole.kind,
        "how": how,
        "steps": whole.steps,
        "every": EVERY,
        "fit_seconds": whole.seconds,
        "points": whole.points,
    }
    return [about | row | outcome for row in rows]


def strike(
    whole: Whole,
    how: str,
    folder: Path,
    shared: Shared,
    chance: random.Random,
    *,
    begun: bool,
    spared: bool,
) -> tuple[Row | None, int]:
    """Begin or go on, and end it: the row of the kill, None if it was over before; exit code."""
    aimed, number = how == "aimed", SIGNALS.get(how, signal.SIGKILL)
    fatal = chance.randint(1, whole.points) if aimed and not spared else 0
    delay = whole.seconds * chance.random()
    if aimed or spared:
        delay = TRIES * whole.seconds
    child = begin(whole.kind, whole.steps, folder, shared, begun=begun, fatal=fatal)
    code = waited(child, delay)
    phase = shared["phase"]
    if code is None:
        os.kill(child, number)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code not in (-number, 128 + number):
        return None, code
    if number == signal.SIGKILL:
        phase = shared["phase"]
    return {"where": WHERE[phase], "step": shared["step"]}, code


def waited(child: int, seconds: float) -> int | None:
    """The exit code of a process, None if it goes on for longer."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(min(0.002, max(until - time.monotonic(), 0.0)))
    return None


def state(whole: Whole, folder: Path) -> Row:
    """What a kill left: what cannot be read, and the step that can be gone on from.

    It is looked at in a copy, as to read a run may be to settle it.
    """
    with tempfile.TemporaryDirectory(dir=folder.parent) as place:
        copy = Path(place) / "copy"
        shutil.copytree(folder, copy)
        return _read(whole, copy)


def _read(whole: Whole, folder: Path) -> Row:
    kept = Checkpoint(folder / KEPT)
    bad = sum(path.is_file() and not _readable(kept, path) for path in (kept.path, kept.before))
    run, same, lost = folder / RUN, False, False
    try:
        bm.load(run)
        same = contents(run) == whole.files
    except InputError:
        # A program's run comes into being file by file; all others are there whole, or not at all.
        lost = whole.kind == "overwrite" or (run / "run.json").is_file()
    last = kept._last() if kept.exists() else None
    step = last[0]["step"] if last is not None else whole.steps if same else 0
    begun = kept.exists() or same
    return {"bad_checkpoints": bad, "lost_run": lost, "found": step, "begun": begun}


def _readable(kept: Checkpoint, path: Path) -> bool:
    try:
        kept._read(path)
    except Damaged:
        return False
    return True


def contents(run: Path) -> dict[str, str]:
    """What is in a run, as digests by name, but for its seconds and where it went on from."""
    found = {str(path.relative_to(run)): path for path in run.rglob("*") if path.is_file()}
    return {name: hashlib.sha256(_said(path)).hexdigest() for name, path in found.items()}


def _said(path: Path) -> bytes:
    """The bytes of a file; of those two that hold the notes, all else that they say."""
    if path.name == "posterior.nc":
        return _draws(path)
    if path.name != "run.json":
        return path.read_bytes()
    record = json.loads(path.read_text("utf-8"))
    del record["seal"], record["result"]["seconds"]
    notes = record["result"]["notes"]
    record["result"]["notes"] = [note for note in notes if not WENT_ON.match(note)]
    return json.dumps(record, sort_keys=True).encode()


def _draws(path: Path) -> bytes:
    """Every array and attribute of a netCDF file."""
    found = []

    def look(name: str, node: h5py.Group | h5py.Dataset) -> None:
        about = {key: str(value) for key, value in node.attrs.items() if "LIST" not in key}
        about["notes"] = WENT_ON.sub("", about.get("notes", "")).strip()
        found.append(f"{name} {sorted(about.items())}".encode())
        if isinstance(node, h5py.Dataset):
            values = node[()]
            numbers = values.dtype.kind in "fiu"
            found.append(values.tobytes() if numbers else repr(values.tolist()).encode())

    with h5py.File(path) as file:
        file.visititems(look)
    return b"\n".join(found)


def leftovers(whole: Whole, folder: Path) -> set[str]:
    """What lies beside the run and in it, and does not belong there."""
    wanted = {DATA, RUN, *(f"{RUN}/{name}" for name in whole.files)}
    if whole.kind == PROGRAM:  # which keeps its checkpoint
        wanted |= {KEPT, *(f"{KEPT}/{name}" for name in (FILE, BEFORE, LOG))}
    return {str(path.relative_to(folder)) for path in folder.rglob("*")} - wanted


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Work in a folder."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
