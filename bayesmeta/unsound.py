"""Tasks whose own loss is not a number, found before they make the sum over all tasks none."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bayesmeta.joint.problem import Problem

NAMED = 10
UNSOUND = (
    "has a loss or slope that is not finite where the fit starts, and was left out: check its data"
)


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


def left_out_note(names: Sequence[str], tasks: int) -> str:
    """A sentence that names them, or the first of many."""
    more = len(names) - NAMED
    said = ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")
    which = "1 task has" if len(names) == 1 else f"{len(names)} tasks have"
    return (
        f"{which} a loss or slope that is not finite where the fit starts, and of {tasks} the fit "
        f"goes without: {said}. Check their data."
    )
