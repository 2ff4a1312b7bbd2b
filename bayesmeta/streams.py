"""An endless family: tasks that are drawn when they are needed, and seldom or never come again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from bayesmeta.tasks import TaskBatch, TaskFamily

STEP_TASKS = 16


@runtime_checkable
class TaskStream(Protocol):
    """What `bm.fit` needs of a family without end; `bm.FewShot` is one."""

    def draw(self, tasks: int, generator: torch.Generator) -> tuple[TaskBatch, TaskBatch]:
        """Support and query sets of so many tasks; all randomness is the generator's."""
        ...

    def family(self, tasks: int, generator: torch.Generator) -> tuple[TaskFamily, TaskFamily]:
        """The same, as families."""
        ...

    def to(self, device: Any) -> TaskStream:
        """The same on another device."""
        ...

    def record(self) -> dict[str, Any]:
        """What the tasks are drawn from, for the record of a run."""
        ...


class Passes:
    """Batches of a finite family without end; each pass takes every task once.

    Args:
        family: the tasks.
        size: of a batch; None: all.
        generator: of the order, drawn anew at the start of each pass.
    """

    def __init__(self, family: TaskFamily, size: int | None, generator: torch.Generator) -> None:
        whole = size is None or size >= len(family)
        self.family, self.generator = family, generator
        self.size = len(family) if whole or size is None else size
        self.whole = family.batch() if whole else None
        self.left = torch.zeros(0, dtype=torch.long)

    def __next__(self) -> TaskBatch:
        if self.whole is not None:
            return self.whole
        if not len(self.left):
            device = self.generator.device
            order = torch.randperm(len(self.family), generator=self.generator, device=device)
            self.left = order.cpu()
        chosen, self.left = self.left[: self.size], self.left[self.size :]
        return self.family.batch(chosen)

    def tensors(self) -> dict[str, Tensor]:
        """Where it is among the tasks, and in its randomness."""
        return {"generator": self.generator.get_state(), "left": self.left}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from there."""
        self.generator.set_state(tensors["generator"])
        self.left = tensors["left"]
