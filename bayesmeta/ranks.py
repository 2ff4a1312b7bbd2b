"""Several processes, one fit: every rank takes its share of the tasks, and sums are over all.

Each rank draws the same tasks and the same noise from the same seeds, keeps its share, and after
one sum over all ranks takes the same outer step. So the answer is that of one process, to rounding:
how many tasks a product is over decides how it is rounded. In float64 that stays below 1e-10 over a
hundred steps; float32 networks with ReLUs and batch normalisation enlarge it from step to step, and
theirs have differed by 0.007 after eight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as processes
from torch import Tensor

from bayesmeta.results import InputError

Made = TypeVar("Made")


class RankLost(RuntimeError):
    """Another process of the run has ended or cannot be reached.

    Args:
        sentence: which rank noticed, and what is left of the fit.
        checkpoint: the file to go on from, if there is one.
    """

    def __init__(self, sentence: str, checkpoint: Path | None = None) -> None:
        super().__init__(sentence)
        self.checkpoint = checkpoint


def wide(tensor: Tensor) -> torch.dtype:
    """What to sum over tasks in: doubles, so that the order, and who sums, makes no difference.

    In float32 it would, by a rounding that a ReLU at 0 or Adam at a vanishing gradient enlarges.
    """
    return tensor.dtype if tensor.device.type == "mps" else torch.float64  # which has no doubles


@dataclass(frozen=True)
class Ranks:
    """This process among those of the fit.

    Args:
        rank: its number.
        size: how many there are.

    Example:
        >>> Ranks(1, 2).share(5).tolist(), Ranks().share(2).tolist()
        ([3, 4], [0, 1])
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def present(cls) -> Ranks:
        """Those of `torch.distributed`'s default group, or this process alone."""
        if not (processes.is_available() and processes.is_initialized()):
            return cls()
        return cls(processes.get_rank(), processes.get_world_size())

    @property
    def first(self) -> bool:
        """Whether this is the one that prints and writes."""
        return self.rank == 0

    def notes(self) -> list[str]:
        """What a fit by these processes is to say of them."""
        return [] if self.size == 1 else [f"This fit was made by {self.size} processes."]

    def share(self, tasks: int) -> Tensor:
        """Positions of this rank's tasks, of so many."""
        return torch.arange(tasks).tensor_split(self.size)[self.rank]

    def refuse_idle(self, tasks: int) -> None:
        """Say no to more processes than tasks.

        Raises:
            InputError: a rank would have none.
        """
        if tasks < self.size:
            raise InputError(
                f"{tasks} tasks cannot be shared by {self.size} processes: start fewer"
            )

    def summed(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Each tensor summed over all ranks, by one message.

        Raises:
            RankLost: a rank did not answer.
        """
        if self.size == 1:
            return list(tensors)
        flat = torch.cat([tensor.detach().flatten() for tensor in tensors])
        with self._answered():
            processes.all_reduce(flat)
        parts = flat.split([tensor.numel() for tensor in tensors])
        return [part.reshape(t.shape) for part, t in zip(parts, tensors, strict=True)]

    def gathered(self, mine: Tensor) -> Tensor:
        """(task, ...) the parts of all ranks, in their order, on every rank.

        Raises:
            RankLost: a rank did not answer.
        """
        if self.size == 1:
            return mine
        lengths = mine.new_zeros(self.size, dtype=torch.long)
        lengths[self.rank] = len(mine)
        counts = self.summed([lengths])[0].tolist()
        whole = mine.new_zeros(sum(counts), *mine.shape[1:])
        start = sum(counts[: self.rank])
        whole[start : start + len(mine)] = mine.detach()
        return self.summed([whole])[0]

    def collected(self, mine: Sequence[Made]) -> list[Made]:
        """The lists of all ranks, one after another, on every rank.

        Raises:
            RankLost: a rank did not answer.
        """
        if self.size == 1:
            return list(mine)
        parts: list[Any] = [None] * self.size
        with self._answered():
            processes.all_gather_object(parts, list(mine))
        return [one for part in parts for one in part]

    def from_first(self, make: Callable[[], Made]) -> Made:
        """What the first rank makes, on every rank; bad input that it meets stops all of them.

        Raises:
            InputError: the first rank's.
            RankLost: it did not answer.
        """
        if self.size == 1:
            return make()
        told: list[Any] = [None, None]
        if self.first:
            try:
                told[0] = make()
            except InputError as error:
                told[1] = str(error)
        with self._answered():
            processes.broadcast_object_list(told)
        if told[1] is not None:
            raise InputError(told[1])
        return told[0]

    def refuse_unlike(self, given: Mapping[str, Any]) -> None:
        """Say no, on every rank, where the ranks were not given the same.

        Args:
            given: by what a person calls it.

        Raises:
            InputError: the sentence names what differs, and the rank.
        """
        if self.size == 1:
            return
        theirs = self.from_first(lambda: dict(given))
        unlike = self.collected([[name for name in given if given[name] != theirs[name]]])
        for rank, names in enumerate(unlike):
            if names:
                raise InputError(
                    f"rank {rank} was given another {' and '.join(names)} than rank 0: make the "
                    "same call in every process, with modules built after the same "
                    "torch.manual_seed; the tasks are shared out by the fit"
                )

    @contextmanager
    def _answered(self) -> Iterator[None]:
        """Errors of a message, as sentences."""
        try:
            yield
        except RankLost:
            raise
        except RuntimeError as error:
            if "No backend type" in str(error):
                raise InputError(
                    "the process group has no backend for the device of the fit: start it with "
                    'backend="cpu:gloo,cuda:nccl", or with gloo for a fit on the CPU'
                ) from error
            late = "imed out" in str(error) or "imeout" in str(error)
            how = "did not answer in time" if late else "has ended"
            raise RankLost(
                f"another process of this fit {how}, which rank {self.rank} of {self.size} "
                "noticed, so the fit stops"
            ) from error
