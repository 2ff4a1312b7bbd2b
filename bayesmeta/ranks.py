"""Several processes, one fit: every rank takes its share of the tasks, and sums are over all.

Each rank draws the same tasks and the same noise from the same seeds, keeps its share, and after
one sum over all ranks takes the same outer step. So the answer is that of one process, to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as processes
from torch import Tensor


class RankLost(RuntimeError):
    """Another process of the run has ended or cannot be reached."""


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

    def share(self, tasks: int) -> Tensor:
        """Positions of this rank's tasks, of so many."""
        return torch.arange(tasks).tensor_split(self.size)[self.rank]

    def summed(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Each tensor summed over all ranks, by one message.

        Raises:
            RankLost: a rank did not answer.
        """
        if self.size == 1:
            return list(tensors)
        flat = torch.cat([tensor.detach().flatten() for tensor in tensors])
        try:
            processes.all_reduce(flat)
        except RuntimeError as error:
            raise RankLost(
                f"a process of this fit has ended, so rank {self.rank} of {self.size} stops too "
                f"({str(error).splitlines()[0]})"
            ) from error
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
        whole[start : start + len(mine)] = mine
        return self.summed([whole])[0]
