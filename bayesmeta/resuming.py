"""Where an outer loop stood, on disk, so that it can go on as if it had never stopped."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from bayesmeta.atomic import whole_file
from bayesmeta.results import InputError

SCHEMA = 1
FILE = "state.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """A folder in which a fit by Adam or SGD writes where it stands, and from which it goes on.

    The file is replaced as a whole, so one that exists can be read; a fit that finds one of its own
    goes on from there, with the same numbers as if it had not stopped.

    Args:
        folder: made if needed.
        every: outer steps between two writings.
        identity: what a fit must have in common with the one that wrote; filled in by `bm.fit`.
        writes: whether this process writes: of several, the first.
    """

    folder: str | Path
    every: int = 100
    identity: Mapping[str, Any] = field(default_factory=dict)
    writes: bool = True

    def __post_init__(self) -> None:
        if type(self.every) is not int or self.every < 1:
            raise InputError(f"every={self.every!r}: give a whole number of steps, at least 1")

    @property
    def path(self) -> Path:
        """The file."""
        return Path(self.folder) / FILE

    def of(self, identity: Mapping[str, Any], *, writes: bool) -> Checkpoint:
        """This checkpoint, for one fit."""
        return replace(self, identity=identity, writes=writes)

    def due(self, step: int, steps: int) -> bool:
        """Whether to write after step number `step` (from 1) of `steps`."""
        return self.writes and (step % self.every == 0 or step == steps)

    def save(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Write where the fit stands after `step` steps, all or nothing."""
        record = {"schema": SCHEMA, "step": step, "identity": self.identity}
        kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        with whole_file(self.path) as path:
            save_file(kept, path, metadata={"record": json.dumps(record)})

    def load(self) -> tuple[int, dict[str, Tensor]] | None:
        """Steps taken and tensors, or None where nothing has been written yet.

        Raises:
            InputError: the file is damaged, or of another fit; the sentence says what differs.
        """
        if not self.path.is_file():
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                record = json.loads((file.metadata() or {})["record"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            raise InputError(
                f"{self.path} cannot be read ({error}): remove it to start from the beginning"
            ) from error
        if record.get("schema") != SCHEMA:
            raise InputError(f"{self.path} is of another version of bayesmeta: remove it")
        differs = [k for k, v in self.identity.items() if record["identity"].get(k) != _plain(v)]
        if differs:
            raise InputError(
                f"{self.path} is of a fit with another {' and '.join(differs)}: choose another "
                "folder, or remove the file to start from the beginning"
            )
        return int(record["step"]), tensors


def _plain(value: Any) -> Any:
    """A value as JSON gives it back."""
    return json.loads(json.dumps(value))


class Memory(Protocol):
    """What else a fit has to remember: generators, where it is among its tasks."""

    def tensors(self) -> dict[str, Tensor]: ...
    def restore(self, tensors: Mapping[str, Tensor]) -> None: ...


def standing(
    parameters: Sequence[Tensor], steppers: Sequence[torch.optim.Optimizer]
) -> dict[str, Tensor]:
    """Parameters and optimisers' states, by name."""
    found = {f"parameter.{i}": p for i, p in enumerate(parameters)}
    for i, stepper in enumerate(steppers):
        for j, state in stepper.state_dict()["state"].items():
            found |= {f"optimiser.{i}.{j}.{k}": v for k, v in state.items() if v is not None}
    return found


def restore(
    tensors: Mapping[str, Tensor],
    parameters: Sequence[Tensor],
    steppers: Sequence[torch.optim.Optimizer],
) -> None:
    """Put back what `standing` gave."""
    with torch.no_grad():
        for i, parameter in enumerate(parameters):
            parameter.copy_(tensors[f"parameter.{i}"])
    for i, stepper in enumerate(steppers):
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith(f"optimiser.{i}."):
                _, _, j, key = name.split(".")
                state.setdefault(int(j), {})[key] = tensor
        stepper.load_state_dict(stepper.state_dict() | {"state": state})
