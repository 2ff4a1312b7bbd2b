"""The same meta-gradient without shortcuts, for a few tasks, and how far the method's own is off.

Proximal Q_i: θ* by Newton's method to rounding, and a dense solve with the Hessian. Algorithmic
Q_i: every step of the algorithm recorded.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from bayesmeta.amortised.step import MetaStep, Outcome
from bayesmeta.gradients.implicit import Implicit
from bayesmeta.gradients.pathwise import Unrolled
from bayesmeta.gradients.rule import Params
from bayesmeta.inner.dense import DENSE_LIMIT
from bayesmeta.inner.newton import Newton, NewtonCG
from bayesmeta.method import Method
from bayesmeta.objective import Validation
from bayesmeta.posteriors.proximal import Proximal
from bayesmeta.tasks import TaskBatch

NEWTON_STEPS = 100
SETTLED = 0.75
"""Newton stops at ε^0.75 of the first ‖∇F‖, from where one more step reaches the rounding."""
BOUND_LIMIT = 500


def exact(method: Method, dim: int, tolerance: float) -> Method:
    """The method with its exact, dearest gradient rule, adapted to ‖∇F‖ <= tolerance."""
    if not isinstance(method.posterior, Proximal):
        return replace(method, gradient=Unrolled())
    if dim > DENSE_LIMIT:
        inner = NewtonCG(NEWTON_STEPS, dim, tolerance=tolerance)
        return replace(method, inner=inner, gradient=Implicit(steps=dim, curvature="hessian"))
    inner = Newton(NEWTON_STEPS, curvature="hessian", tolerance=tolerance)
    return replace(method, inner=inner, gradient=Implicit("cholesky", curvature="hessian"))


@dataclass(frozen=True)
class Audit:
    """How far one task's meta-gradient in θ₀ is from the exact one, both over ‖g_exact‖.

    Args:
        error: ‖g − g_exact‖.
        bound: what Lemma 3 of Rajeswaran et al. (2019) allows, (‖Λ‖ L / μ) δ + δ′, with L the
            largest curvature of the query loss in size, μ the smallest of the anchored loss,
            δ = ‖θ − θ*‖ and δ′ the error of the linear solve; None unless both losses are
            quadratic (the lemma's ρ is 0 there, and unknown elsewhere) and M is the query loss.
    """

    error: float
    bound: float | None


def audited(
    step: MetaStep,
    params: Params,
    support: TaskBatch,
    query: TaskBatch,
    noise: Tensor,
    outcome: Outcome,
    count: int,
) -> list[Audit]:
    """The audit of the first `count` tasks."""

    def first(batch: TaskBatch) -> TaskBatch:
        mask = None if batch.mask is None else batch.mask[:count]
        tensors = {k: v[:count] for k, v in batch.tensors.items()}
        return replace(batch, tensors=tensors, mask=mask, index=batch.index[:count])

    support, query = first(support), first(query)
    few = params | {"anchor": tree_map(lambda t: t[:count], params["anchor"])}
    problem = step.build(support)(few)
    with torch.no_grad():
        slopes = torch.linalg.vector_norm(problem.gradient(problem.start), dim=-1)
    # A broken task has no slope, and decides nothing for the others.
    least = float(slopes.nan_to_num(torch.inf).clamp(max=1.0).min())
    tolerance = max(torch.finfo(noise.dtype).eps ** SETTLED * least, 1e-300)
    reference = step.using(exact(step.method, step.model.dim, tolerance))
    answer = reference(few, support, query, noise[:, :count])
    mine = outcome.gradients["anchor"]["mean"][:count]
    right = answer.gradients["anchor"]["mean"]
    size = torch.linalg.vector_norm(right, dim=-1)
    errors = torch.linalg.vector_norm(mine - right, dim=-1) / size
    limits = _bounds(step, few, support, query, outcome.adapted.theta[:count], answer, mine)
    bounds = [None] * count if limits is None else (limits / size).tolist()
    return [Audit(e, b) for e, b in zip(errors.tolist(), bounds, strict=True)]


def _bounds(
    step: MetaStep,
    params: Params,
    support: TaskBatch,
    query: TaskBatch,
    theta: Tensor,
    answer: Outcome,
    mine: Tensor,
) -> Tensor | None:
    """(task,) Lemma 3's right-hand side, where its constants are known."""
    method, dim = step.method, theta.shape[-1]
    validation = isinstance(method.objective, Validation) and method.posterior.form.name == "point"
    if not (validation and isinstance(method.posterior, Proximal) and dim <= BOUND_LIMIT):
        return None
    inner = step.build(support)(params)
    outer = replace(inner, batch=query, anchor=None)
    # Any other point shows whether a loss is quadratic; θ itself may be θ₀, or θ*.
    elsewhere = theta + 1 + theta.abs()
    curvatures = [
        [p.curvature(at, "hessian").dense(at) for at in (theta, elsewhere)] for p in (inner, outer)
    ]
    if not all(torch.allclose(here, there, rtol=1e-6) for here, there in curvatures):
        return None
    precision = inner.precision_matrix()
    if not bool(precision.isfinite().all()):
        return None
    matrix = curvatures[0][0] + precision
    smallest = torch.linalg.eigvalsh(matrix)[:, 0]
    smooth = torch.linalg.eigvalsh(curvatures[1][0]).abs().amax(-1)
    slope = outer.gradient(theta).unsqueeze(-1)
    solved = (precision @ torch.linalg.solve(matrix, slope)).squeeze(-1)
    rest = torch.linalg.vector_norm(mine - solved, dim=-1)
    away = torch.linalg.vector_norm(theta - answer.adapted.theta, dim=-1)
    return torch.linalg.matrix_norm(precision, 2) * smooth / smallest * away + rest
