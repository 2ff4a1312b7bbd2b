"""The same meta-gradient without shortcuts, for a few tasks, and how far the method's own is off.

Proximal Q_i: θ* by Newton's method to rounding, and a dense solve with the Hessian. Algorithmic
Q_i: every step of the algorithm recorded.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from bayesmeta.amortised.step import MetaStep, Outcome
from bayesmeta.gradients.implicit import DENSE_LIMIT, Implicit
from bayesmeta.gradients.pathwise import Unrolled
from bayesmeta.gradients.rule import Params
from bayesmeta.inner.newton import Newton
from bayesmeta.method import Method
from bayesmeta.posteriors.proximal import Proximal
from bayesmeta.tasks import TaskBatch

NEWTON_STEPS = 100


def exact(method: Method, dim: int) -> Method:
    """The method with its exact, dearest gradient rule."""
    if not isinstance(method.posterior, Proximal):
        return replace(method, gradient=Unrolled())
    if dim > DENSE_LIMIT:
        inner = replace(method.inner, steps=10 * method.inner.steps, tolerance=0.0)
        return replace(method, inner=inner, gradient=Implicit(steps=dim, curvature="hessian"))
    inner = Newton(NEWTON_STEPS, curvature="hessian", tolerance=1e-300)
    return replace(method, inner=inner, gradient=Implicit("cholesky", curvature="hessian"))


def audited(
    step: MetaStep,
    params: Params,
    support: TaskBatch,
    query: TaskBatch,
    noise: Tensor,
    outcome: Outcome,
    count: int,
) -> list[float]:
    """‖g_i − g_exact,i‖ / ‖g_exact,i‖ in θ₀, of the first `count` tasks."""

    def first(batch: TaskBatch) -> TaskBatch:
        mask = None if batch.mask is None else batch.mask[:count]
        tensors = {k: v[:count] for k, v in batch.tensors.items()}
        return TaskBatch(tensors, mask, batch.index[:count])

    few = params | {"anchor": tree_map(lambda t: t[:count], params["anchor"])}
    reference = step.using(exact(step.method, step.model.dim))
    answer = reference(few, first(support), first(query), noise[:, :count])
    mine = outcome.gradients["anchor"]["mean"][:count]
    right = answer.gradients["anchor"]["mean"]
    size = torch.linalg.vector_norm(right, dim=-1)
    return (torch.linalg.vector_norm(mine - right, dim=-1) / size).tolist()
