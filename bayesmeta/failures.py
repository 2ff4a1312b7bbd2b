"""Tasks that fail in the middle of a descent: left out of the step, and counted.

A sum over tasks of which one is not a number is none. So the step is taken on the others, and
nothing of them is lost; only one that fails for most of its tasks is not taken at all, as then it
is the prior that has gone wrong. A line search keeps all tasks, as without one M is lower, and
turns back from where one fails.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from bayesmeta.ranks import Ranks
from bayesmeta.results import Flag

FAILED = "had a loss or slope that is not finite"
ADVICE = "check its data, or lower lr="


class Failures:
    """How often each task failed.

    Args:
        tasks: of the family; None for a stream, whose tasks have no names and never come again.
        contained: whether steps are taken without those that fail.
        ranks: which share the tasks; each counts its own.
        device: where the tasks are, as messages between ranks are sent from there.
    """

    def __init__(
        self,
        tasks: int | None,
        *,
        contained: bool = True,
        ranks: Ranks | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.named, self.contained = tasks is not None, contained
        self.ranks = Ranks() if ranks is None else ranks
        size = 1 if tasks is None else tasks
        self.counts = torch.zeros(size, dtype=torch.long, device=device)

    def others(self, finite: Tensor, index: Tensor) -> Tensor | None:
        """Positions of the tasks that the step is taken on; None if it stays as it is.

        Args:
            finite: (task,) whether value and slope are. The one thing an outer step waits for.
            index: (task,) positions in the family.
        """
        if bool(finite.all()) or 2 * int(finite.sum()) < len(finite):
            return None
        failed = index[~finite] if self.named else torch.zeros_like(index[~finite])
        self.counts.index_add_(0, failed, torch.ones_like(failed))
        return finite.nonzero().flatten() if self.contained else None

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps: the counts of all ranks, each of which takes part."""
        return {"failures": self.everywhere().counts}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from there; one rank has what was counted before, as their sum is asked for."""
        self.counts.copy_(tensors["failures"] if self.ranks.rank == 0 else self.counts * 0)

    def everywhere(self) -> Failures:
        """Those of all ranks."""
        found = Failures(len(self.counts) if self.named else None, contained=self.contained)
        (found.counts,) = self.ranks.summed([self.counts])
        return found

    def flags(self, names: Sequence[str], steps: int) -> list[Flag]:
        """A flag for each task that failed.

        Args:
            names: of the tasks.
            steps: of the descent.
        """
        if not self.named:
            return []
        pairs = zip(names, self.counts.tolist(), strict=True)
        return [Flag(name, self._why(count, steps)) for name, count in pairs if count]

    def _why(self, count: int, steps: int) -> str:
        if self.contained:
            return f"{FAILED} in {count} of {steps} outer steps, which were taken without: {ADVICE}"
        return f"{FAILED} at {count} points from where the line search turned back: {ADVICE}"

    def notes(self, steps: int) -> list[str]:
        """How many tasks failed, and how often.

        Args:
            steps: of the descent.
        """
        total, tasks = int(self.counts.sum()), int((self.counts > 0).sum())
        if total == 0:
            return []
        if not self.named:
            who, where = "Tasks of the stream", "check the data"
        else:
            who, where = f"{tasks} task" + "s" * (tasks > 1), "check the data of those flagged"
        what = (
            f"{total} times in {steps} outer steps, which were taken without"
            if self.contained
            else f"at {total} points from where the line search turned back"
        )
        return [f"{who} {FAILED}, {what}: {where}, or lower lr=."]
