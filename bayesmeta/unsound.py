"""Tasks whose data or loss are no numbers, found before they make the sum over all tasks none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bayesmeta.joint.problem import Problem
from bayesmeta.results import Flag
from bayesmeta.tasks import TaskFamily

NAMED = 10
TOGETHER = 4096
"""Tasks that are looked at together: squares of all would be as large as the data once more."""


@dataclass(frozen=True)
class Reason:
    """Why tasks are left out, of one and of several."""

    has: str
    have: str

    def flag(self, task: str) -> Flag:
        return Flag(task, f"{self.has}, and was left out: check its data")

    def note(self, names: Sequence[str], tasks: int) -> str:
        """A sentence that names them, or the first of many."""
        more = len(names) - NAMED
        said = ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")
        which = f"1 task {self.has}" if len(names) == 1 else f"{len(names)} tasks {self.have}"
        return f"{which}, and of {tasks} the fit goes without: {said}. Check their data."


_WHAT = "a value that is not finite, or too large to square"
_WHERE = "a loss or slope that is not finite where the fit starts"
BAD_DATA = Reason(f"holds {_WHAT}", f"hold {_WHAT}")
BAD_LOSS = Reason(f"has {_WHERE}", f"have {_WHERE}")


def bad_data(*families: TaskFamily | None) -> Tensor:
    """Positions of the tasks that hold a number whose square is none.

    Args:
        families: of the same tasks; None is skipped.
    """
    bad = [
        torch.cat([_no_numbers(part) for part in tensor.split(TOGETHER)])
        for family in families
        if family is not None
        for tensor in family.tensors.values()
        if tensor.is_floating_point()
    ]
    return torch.stack(bad).any(0).nonzero().flatten() if bad else torch.zeros(0).long()


def _no_numbers(tensor: Tensor) -> Tensor:
    return ~tensor.square().isfinite().flatten(1).all(1).cpu()


def unsound(problem: Problem) -> Tensor:
    """Positions of the tasks whose f_i, g_i or their slopes are not finite at the start.

    Args:
        problem: what is to be fitted.
    """
    model = problem.model
    start = problem.prior.free["mean"] if problem.prior.has_values else model.start
    bad = torch.zeros(len(problem.family), dtype=torch.bool)
    families = [problem.family] if problem.query is None else [problem.family, problem.query]
    for family in families:
        batch = family.batch()
        theta = start.detach().expand(len(family), -1).clone().requires_grad_()
        with torch.enable_grad():
            losses = model.energies(theta, batch)
            (slopes,) = torch.autograd.grad(losses.sum(), theta)
        bad |= ~(losses.isfinite() & slopes.isfinite().all(-1)).cpu()
    return bad.nonzero().flatten()
