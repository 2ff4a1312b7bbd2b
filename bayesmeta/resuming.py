"""Where an outer loop stood, on disk, so that it can go on as if it had never stopped.

As many processes on the same machine end with the same numbers, bit for bit. With more or fewer of
them, or on another device, sums are rounded in another way, which a float32 network with ReLUs and
batch normalisation enlarges from step to step.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from bayesmeta.atomic import refuse_unwritable, whole_file
from bayesmeta.identity import content, differences
from bayesmeta.ranks import RankLost, Ranks
from bayesmeta.results import InputError

SCHEMA = 1
FILE = "state.safetensors"
FULL = ("No space left", "File too large", "uota exceeded")


@dataclass(frozen=True)
class Checkpoint:
    """A folder in which a fit by Adam or SGD writes where it stands, and from which it goes on.

    The file is replaced as a whole, so one that exists can be read; a fit that finds one of its own
    goes on from there, with the same numbers as if it had not stopped (to rounding, where another
    number of processes goes on). What is its own is told by all that decides its numbers, but for
    what a function or a `forward` of yours computes.

    Args:
        folder: made if needed; ~ is the home folder.
        every: outer steps between two writings.
        identity: what a fit must have in common with the one that wrote; filled in by `bm.fit`.
        writes: whether this process writes: of several, the first.
        notes: of the fit, which are told where it goes on from.

    Raises:
        InputError: not a path, or not a number of steps.
    """

    folder: str | os.PathLike[str]
    every: int = 100
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
        """The file."""
        return Path(self.folder) / FILE

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
        record = {"schema": SCHEMA, "step": step, "identity": self.identity, "sum": _sum(kept)}
        try:
            with whole_file(self.path) as path:
                save_file(kept, path, metadata={"record": json.dumps(record)})
        except (SafetensorError, OSError) as error:
            full = any(sign in str(error) for sign in FULL)
            raise InputError(
                f"{self.path} could not be written after {step} steps "
                f"({'no space is left for it' if full else error}), so the fit stops: make room "
                f"there, or choose another folder; {self.left()}"
            ) from error

    def load(self) -> tuple[int, dict[str, Tensor]] | None:
        """Steps taken and tensors, or None where nothing has been written yet.

        Raises:
            InputError: the file is damaged, or of another fit (the sentence says what differs), or
                no file could be written there.
        """
        if self.writes:
            refuse_unwritable(self.path)
        if not self.path.is_file():
            return None
        record, tensors = self._read()
        self._refuse_other(record["identity"])
        self.notes.append(f"The fit went on from a checkpoint, after {record['step']} steps.")
        return record["step"], tensors

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

    def _read(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        try:
            with safe_open(self.path, framework="pt") as file:
                record = json.loads((file.metadata() or {})["record"])
                names = file.keys()  # the file itself cannot be gone through
                tensors = {name: file.get_tensor(name) for name in names}
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            raise self._damaged(str(error)) from error
        if not isinstance(record, dict):
            raise self._damaged("its record is not that of a fit")
        if record.get("schema") != SCHEMA:
            raise InputError(f"{self.path} is of another version of bayesmeta: remove it")
        if type(record.get("step")) is not int or not isinstance(record.get("identity"), dict):
            raise self._damaged("its record is not that of a fit")
        if record.get("sum") != _sum(tensors):
            raise self._damaged("its numbers are not those that were written")
        return record, tensors

    def _damaged(self, why: str) -> InputError:
        return InputError(
            f"{self.path} cannot be read ({why}): remove it to start from the beginning"
        )

    def left(self) -> str:
        """What is left of a fit that stopped, in a sentence."""
        if not self.path.is_file():
            return f"no checkpoint was written yet: the first one comes after {self.every} steps"
        try:
            record, _ = self._read()
        except InputError as error:
            return f"of its last checkpoint nothing is left: {error}"
        return (
            f"its last checkpoint, after {record['step']} steps, is whole: {self.path}; the same "
            "call goes on from there, by any number of processes"
        )


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


def _sum(tensors: Mapping[str, Tensor]) -> int:
    """A check sum: a damaged file is still a file of numbers."""
    total = 0
    for part in content(tensors):
        total = zlib.crc32(part, total)
    return total


def _plain(value: Any) -> Any:
    """A value as JSON gives it back, without addresses in memory, which every process has anew."""
    return json.loads(re.sub(r" at 0x[0-9a-fA-F]+", "", json.dumps(value)))


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
