"""S_i and V_i: the rows of every task split at random into a support and a query set."""

from __future__ import annotations

import torch
from torch import Tensor

from bayesmeta.results import InputError
from bayesmeta.tasks import TaskBatch, TaskFamily, rowwise_names


class Split:
    """A way to split the tasks of a family, checked once and drawn many times.

    Args:
        family: the tasks.
        support: rows per task (int), or the fraction of them (float in (0, 1)), at least 1.

    Raises:
        InputError: a task would be left without query rows, or there are no rows.

    Example:
        >>> family = TaskFamily.from_tensors(y=torch.arange(8.0).reshape(2, 4))
        >>> support, query = Split(family, 3).draw(family.batch(), torch.Generator())
        >>> support.tensors["y"].shape, query.tensors["y"].shape
        (torch.Size([2, 3]), torch.Size([2, 1]))
    """

    def __init__(self, family: TaskFamily, support: int | float) -> None:
        if family.mask is None:
            raise InputError(
                "tasks without a row axis cannot be split into support and query: give the query "
                "tasks (query=), or support=None to use the same loss for both"
            )
        rows = family.rows
        self.count = support_rows(rows, support)
        short = (self.count >= rows).nonzero().flatten().tolist()
        if short:
            raise InputError(
                f"task {family.names[short[0]]!r} has too few rows ({int(rows[short[0]])}) for "
                f"{int(self.count[short[0]])} in its support and one to query: lower support=, "
                "leave such tasks out, or use support=None (the same rows for both)"
            )
        # Known ahead, so that drawing a split never waits for the device.
        self.support_width = int(self.count.max())
        self.query_width = int((rows - self.count).max())

    def draw(self, batch: TaskBatch, generator: torch.Generator) -> tuple[TaskBatch, TaskBatch]:
        """Support and query sets of a batch of the family's tasks.

        Args:
            batch: some of the tasks.
            generator: the randomness.
        """
        mask = batch.mask
        assert mask is not None
        score = torch.rand(
            mask.shape, generator=generator, device=generator.device, dtype=torch.float32
        )
        order = score.to(mask.device).masked_fill(~mask, 2.0).argsort(1)
        count, rows = self.count[batch.index, None], mask.sum(1, keepdim=True)
        place = torch.arange(order.shape[1], device=order.device)
        first = place[: self.support_width].expand(len(batch), -1)
        after = count + place[: self.query_width]
        last = after.clamp(max=order.shape[1] - 1)
        return (
            taken(batch, order.gather(1, first), first < count),
            taken(batch, order.gather(1, last), after < rows),
        )


def splittable(family: TaskFamily, support: int | float) -> Tensor:
    """(task,) whether a task has rows left for its query set."""
    return support_rows(family.rows, support) < family.rows


def support_rows(rows: Tensor, support: int | float) -> Tensor:
    """(task,) how many of its rows each task adapts to."""
    count = (rows * support).long() if isinstance(support, float) else torch.tensor(support)
    return count.clamp(min=1).expand(len(rows)).to(rows.device)


def taken(batch: TaskBatch, rows: Tensor, keep: Tensor) -> TaskBatch:
    """The batch with rows chosen per task; those not kept repeat the first."""
    mask = batch.mask
    assert mask is not None
    rows = torch.where(keep, rows, rows[:, :1])
    rowwise = rowwise_names(batch.tensors, mask) if batch.rowwise is None else batch.rowwise
    tensors = {
        name: _take_rows(tensor, rows) if name in rowwise else tensor
        for name, tensor in batch.tensors.items()
    }
    return TaskBatch(tensors, keep, batch.index, rowwise)


def _take_rows(tensor: Tensor, rows: Tensor) -> Tensor:
    shape = rows.shape + (1,) * (tensor.ndim - 2)
    return tensor.gather(1, rows.reshape(shape).expand(rows.shape + tensor.shape[2:]))
