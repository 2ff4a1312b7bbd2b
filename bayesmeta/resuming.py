"""Where an outer loop stood, on disk, so that it can go on as if it had never stopped.

As many processes on the same machine end with the same numbers, bit for bit. With more or fewer of
them, or on another device, sums are rounded in another way, which a float32 network with ReLUs and
batch normalisation enlarges from step to step.
"""

from __future__ import annotations

import json
import math
import os
import re
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from bayesmeta.atomic import alone, refuse_unwritable, synced, why
from bayesmeta.identity import content, differences
from bayesmeta.ranks import RankLost, Ranks
from bayesmeta.results import InputError

SCHEMA = 2
FILE = "state.safetensors"
BEFORE = "state.before.safetensors"
UNFINISHED = "state.unfinished.safetensors"
LOG = "log.jsonl"
LOCK = "lock"


@dataclass(frozen=True)
class Checkpoint:
    """A folder in which a fit by Adam or SGD writes where it stands, and from which it goes on.

    The last two are kept, each whole or not there at all, and `log.jsonl` beside them can be
    followed: {"step", "M", "seconds"} of every tenth step. A fit that finds one of its own goes on
    from there, with the same numbers as if it had not stopped (to rounding, where another number of
    processes goes on). What is its own is told by all that decides its numbers, but for what a
    function or a `forward` of yours computes. At Ctrl-C and SIGTERM the fit finishes its step,
    writes, and raises `Stopped`, a KeyboardInterrupt.

    Args:
        folder: made if needed; ~ is the home folder. One fit at a time writes there.
        every: outer steps between two writings.
        required: whether a fit that cannot be resumed refuses to be made.
        command: the options of the command line that made the fit, for who goes on with it.
        identity: what a fit must have in common with the one that wrote; filled in by `bm.fit`.
        writes: whether this process writes: of several, the first.
        notes: of the fit, which are told where it goes on from.

    Raises:
        InputError: not a path, or not a number of steps.
    """

    folder: str | os.PathLike[str]
    every: int = 100
    required: bool = True
    command: Mapping[str, Any] = field(default_factory=dict)
    identity: Mapping[str, Any] = field(default_factory=dict)
    writes: bool = True
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not isinstance(self.folder, str | os.PathLike):
            raise InputError(
                f"checkpoint: {self.folder!r} is no folder: give a path, such as "
                'bm.Checkpoint("runs/first", every=100)'
            )
        object.__setattr__(self, "folder", Path(os.path.expanduser(self.folder)))
        if type(self.every) is not int or self.every < 1:
            raise InputError(f"every={self.every!r}: give a whole number of steps, at least 1")

    @property
    def path(self) -> Path:
        """The file of the last one."""
        return Path(self.folder) / FILE

    @property
    def before(self) -> Path:
        """The file of the last but one."""
        return Path(self.folder) / BEFORE

    def exists(self) -> bool:
        """Whether anything has been written yet."""
        return self.path.is_file() or self.before.is_file()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Write there alone.

        Raises:
            InputError: another fit does, or nobody can.
        """
        if not self.writes:
            yield
            return
        refuse_unwritable(self.path)
        with alone(Path(self.folder) / LOCK, str(self.folder)):
            yield

    def made_by(self) -> dict[str, Any]:
        """The options of the command line that made the fit.

        Raises:
            InputError: there is no checkpoint, or none that a command line wrote.
        """
        found = self._last()
        if found is None:
            raise InputError(
                f"there is no checkpoint in {self.folder}: only a fit by adam or sgd that has not "
                "ended can be gone on with"
            )
        if not found[0].get("command"):
            raise InputError(f"{self.path} was written by a program: run that program again")
        return found[0]["command"]

    def clear(self) -> None:
        """Remove what a fit that has ended needs no more; a folder that holds more stays."""
        for name in (LOCK, UNFINISHED, LOG, BEFORE, FILE):  # while the last is there, it is told
            (Path(self.folder) / name).unlink(missing_ok=True)
        with suppress(OSError):
            Path(self.folder).rmdir()

    def of(self, identity: Mapping[str, Any], *, writes: bool, notes: list[str]) -> Checkpoint:
        """This checkpoint, for one fit."""
        return replace(self, identity=_plain(identity), writes=writes, notes=notes)

    def due(self, step: int, steps: int) -> bool:
        """Whether to write after step number `step` (from 1) of `steps`; alike on all ranks."""
        return step % self.every == 0 or step == steps

    def save(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Write where the fit stands after `step` steps, all or nothing.

        Raises:
            InputError: it cannot be written; the sentence says what is left.
        """
        if not self.writes:
            return
        kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        record = {"schema": SCHEMA, "step": step, "identity": self.identity}
        record["command"] = dict(self.command)
        record["sum"] = _sum(kept, record)
        unfinished = Path(self.folder) / UNFINISHED
        with self._written(step):
            unfinished.parent.mkdir(parents=True, exist_ok=True)
            save_file(kept, unfinished, metadata={"record": json.dumps(record)})
            synced(unfinished)
            if self.path.exists():
                self.path.replace(self.before)
            unfinished.replace(self.path)
            synced(self.path.parent)

    @contextmanager
    def _written(self, step: int) -> Iterator[None]:
        """Say what is left where nothing more can be written."""
        try:
            yield
        except (SafetensorError, OSError) as error:
            with suppress(OSError):
                (Path(self.folder) / UNFINISHED).unlink()
            raise InputError(
                f"{self.folder} could not be written to after {step} steps ({why(error)}), so the "
                f"fit stops: make room there, or choose another folder; {self.left()}"
            ) from error

    def load(self) -> tuple[int, dict[str, Tensor]] | None:
        """Steps taken and tensors, or None where nothing has been written yet.

        Raises:
            InputError: both files are damaged, or of another fit; the sentence says what differs.
        """
        found = self._last()
        if found is None:
            return None
        record, tensors, path = found
        self._refuse_other(record["identity"])
        if self.writes and path != self.path:
            # A file that cannot be read must not become the one before: that one is all there is.
            path.replace(self.path)
        self._cut_log(record["step"])
        self.notes.append(f"The fit went on from a checkpoint, after {record['step']} steps.")
        return record["step"], tensors

    def _last(self) -> tuple[dict[str, Any], dict[str, Tensor], Path] | None:
        """The newest that can be read, and its file; None where nothing has been written."""
        if not self.path.is_file():  # a kill came between the renaming of the one and the other
            return (*self._read(self.before), self.before) if self.before.is_file() else None
        try:
            return *self._read(self.path), self.path
        except Damaged as error:
            if not self.before.is_file():
                raise
            found = self._read(self.before)
            self.notes.append(f"{error.found}, so the one before it was taken.")
            return *found, self.before

    def _refuse_other(self, there: Mapping[str, Any]) -> None:
        """Say no to the file of another fit."""
        # A file of an earlier version says less of its fit; what it says has to agree.
        here = {name: value for name, value in self.identity.items() if name in there}
        said = differences({name: there[name] for name in here}, here)
        if said:
            raise InputError(
                f"{self.path} is of a fit {said}, choose another folder, or remove the file to "
                "start from the beginning"
            )

    def _read(self, path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
        try:
            with safe_open(path, framework="pt") as file:
                record = json.loads((file.metadata() or {})["record"])
                names = file.keys()  # the file itself cannot be gone through
                tensors = {name: file.get_tensor(name) for name in names}
        except (SafetensorError, OSError, ValueError, KeyError, RecursionError) as error:
            raise Damaged(path, str(error)) from error
        if not isinstance(record, dict):
            raise Damaged(path, "its record is not that of a fit")
        if record.get("schema") != SCHEMA:
            there = f"it has schema {record.get('schema')!r}, this version reads {SCHEMA}"
            raise Damaged(path, there, "go on with the version of bayesmeta that wrote it, or ")
        if type(record.get("step")) is not int or not isinstance(record.get("identity"), dict):
            raise Damaged(path, "its record is not that of a fit")
        if record.pop("sum", None) != _sum(tensors, record):
            raise Damaged(path, "it does not hold what was written")
        return record, tensors

    def log(self, started: float) -> Callable[[int, int, float], None]:
        """A callback that adds lines to the log, for whoever follows it.

        Args:
            started: by the clock of `time.monotonic`.
        """

        def add(step: int, steps: int, value: float) -> None:
            if not self.writes:
                return
            seconds = round(time.monotonic() - started, 3)
            line = {"step": step, "M": value if math.isfinite(value) else None, "seconds": seconds}
            with self._written(step), (Path(self.folder) / LOG).open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

        return add

    def _cut_log(self, step: int) -> None:
        """Leave out of the log the steps that are taken again, and what a kill cut off."""
        path = Path(self.folder) / LOG
        if not (self.writes and path.is_file()):
            return
        kept = 0
        for line in path.read_bytes().splitlines(keepends=True):
            try:
                taken = line.endswith(b"\n") and json.loads(line)["step"] <= step
            except (ValueError, KeyError, TypeError):  # a power cut leaves anything
                taken = False
            if not taken:
                break
            kept += len(line)
        with self._written(step):
            os.truncate(path, kept)  # a file written anew might be cut off itself

    def left(self) -> str:
        """What is left of a fit that stopped, in a sentence."""
        try:
            found = replace(self, notes=[])._last()
        except InputError as error:
            return f"of its last checkpoint nothing is left: {error}"
        if found is None:
            return f"no checkpoint was written yet: the first one comes after {self.every} steps"
        return (
            f"its last checkpoint, after {found[0]['step']} steps, is whole: {found[2]}; the same "
            "call goes on from there, by any number of processes"
        )


class Damaged(InputError):
    """A file that is no checkpoint, or no longer."""

    def __init__(self, path: Path, found: str, otherwise: str = "") -> None:
        self.found = f"{path} cannot be read ({found})"
        super().__init__(f"{self.found}: {otherwise}remove it to start from the beginning")


def as_checkpoint(given: Any) -> Checkpoint | None:
    """A checkpoint, from one or from the path of its folder; None for None.

    Raises:
        InputError: it is neither.
    """
    return given if given is None or isinstance(given, Checkpoint) else Checkpoint(given)


@contextmanager
def telling_what_is_left(checkpoint: Checkpoint | None) -> Iterator[None]:
    """Have the error of a lost process say where the fit can go on from."""
    try:
        yield
    except RankLost as lost:
        if checkpoint is None:
            raise RankLost(f"{lost}; nothing was kept, as it has no checkpoint") from lost
        path = checkpoint.path if checkpoint.path.is_file() else None
        raise RankLost(f"{lost}; {checkpoint.left()}", path) from lost


def _sum(tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> int:
    """A check sum: a damaged file is still one of numbers and of a fit."""
    total = zlib.crc32(json.dumps(record, sort_keys=True).encode())
    for part in content(tensors):
        total = zlib.crc32(part, total)
    return total


def _plain(value: Any) -> Any:
    """A value as JSON gives it back, without addresses in memory, which every process has anew."""
    return json.loads(re.sub(r" at 0x[0-9a-fA-F]+", "", json.dumps(value)))


@runtime_checkable
class Memory(Protocol):
    """What else a fit has to remember: generators, where it is among its tasks."""

    def tensors(self) -> dict[str, Tensor]: ...
    def restore(self, tensors: Mapping[str, Tensor]) -> None: ...


@dataclass(frozen=True, eq=False)
class Local:
    """Parameters of which every rank holds the rows of its own tasks alone.

    Args:
        tensors: (own task, ...) them.
        ranks: which together hold all rows.
        tasks: (own task,) the rows' positions among all.
    """

    tensors: Sequence[Tensor]
    ranks: Ranks
    tasks: Tensor

    def whole(self, values: Tensor, parameter: Tensor) -> Tensor:
        """A parameter, or what an optimiser keeps of it, with the rows of all ranks."""
        return self.ranks.gathered(values) if self._has_rows(values, parameter) else values

    def own(self, values: Tensor, parameter: Tensor) -> Tensor:
        """This rank's part of what `whole` gave."""
        return values[self.tasks] if self._has_rows(values, parameter) else values

    def _has_rows(self, values: Tensor, parameter: Tensor) -> bool:
        return values.ndim == parameter.ndim and any(parameter is t for t in self.tensors)


NOTHING_LOCAL = Local((), Ranks(), torch.zeros(0, dtype=torch.long))


def standing(
    parameters: Sequence[Tensor],
    steppers: Sequence[torch.optim.Optimizer],
    local: Local = NOTHING_LOCAL,
) -> dict[str, Tensor]:
    """Parameters and optimisers' states, by name; whole, so every rank takes part."""
    found = {f"parameter.{i}": local.whole(p, p) for i, p in enumerate(parameters)}
    for i, stepper in enumerate(steppers):
        changed = stepper.param_groups[0]["params"]
        for j, state in stepper.state_dict()["state"].items():
            found |= {
                f"optimiser.{i}.{j}.{k}": local.whole(v, changed[j])
                for k, v in state.items()
                if v is not None
            }
    return found


def restore(
    tensors: Mapping[str, Tensor],
    parameters: Sequence[Tensor],
    steppers: Sequence[torch.optim.Optimizer],
    local: Local = NOTHING_LOCAL,
) -> None:
    """Put back what `standing` gave."""
    with torch.no_grad():
        for i, parameter in enumerate(parameters):
            parameter.copy_(local.own(tensors[f"parameter.{i}"], parameter))
    for i, stepper in enumerate(steppers):
        changed = stepper.param_groups[0]["params"]
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith(f"optimiser.{i}."):
                _, _, j, key = name.split(".")
                state.setdefault(int(j), {})[key] = local.own(tensor, changed[int(j)])
        stepper.load_state_dict(stepper.state_dict() | {"state": state})
