"""A x = b for all tasks at once: conjugate gradients, Neumann's series, Cholesky.

A is symmetric, one per task, mostly known by its products only. Tasks do not interact: one that is
indefinite, finished or not finite stays as it is while the others go on, and says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bayesmeta.results import InputError

Product = Callable[[Tensor], Tensor]
CHECK_EVERY = 10


@dataclass(frozen=True, eq=False)
class Solution:
    """What a solver found, and how far it is from solving the system.

    Args:
        value: (task, dim) x.
        residual: (task,) ‖b − A x‖ / ‖b‖ of this x, by one product of its own; ‖A x‖ where b = 0;
            NaN where the solver met a value that is not finite.
        steps: (task,) how many products moved x; the residual's own, and that of a start other than
            zero, are not counted.
        negative: (task,) A is not positive enough, and x is the last iterate before that showed.
    """

    value: Tensor
    residual: Tensor
    steps: Tensor
    negative: Tensor


def cg(
    product: Product,
    b: Tensor,
    *,
    steps: int,
    tolerance: float = 0.0,
    start: Tensor | None = None,
    precondition: Product | None = None,
    metric: Product | None = None,
    floor: float = 1e-3,
    otherwise: Tensor | None = None,
) -> Solution:
    """Solve A x = b by preconditioned conjugate gradients (Hestenes & Stiefel 1952).

        x ← x + α p,   r ← r − α A p,   α = rᵀM⁻¹r / pᵀA p,   p ← M⁻¹r + β p

    A task stops where ‖r‖ ≤ tolerance ‖b‖ (or rounding, if that is more), and where a direction
    has pᵀA p ≤ floor · pᵀΛ p: beyond it the quadratic has no minimum worth the name, and a tiny
    positive pᵀA p, which the sign alone would let pass, throws x far out.

    Args:
        product: v -> A v, (task, dim).
        b: (task, dim).
        steps: at most so many products.
        tolerance: relative; 0 runs all steps without ever waiting for the device.
        start: (task, dim), zeros by default.
        precondition: v -> M⁻¹ v, positive definite.
        metric: v -> Λ v, the identity by default.
        floor: smallest curvature, in units of the metric's, that counts as positive.
        otherwise: (task, dim) x of a task whose first direction has negative curvature.

    Returns:
        The last iterate, of every task.

    Raises:
        InputError: a negative number of steps.

    Example:
        >>> a = torch.tensor([[[4.0, 1.0], [1.0, 3.0]]])
        >>> x = cg(lambda v: (a @ v.unsqueeze(-1)).squeeze(-1), torch.tensor([[1.0, 2.0]]), steps=2)
        >>> [round(11 * value, 4) for value in x.value[0].tolist()]  # (1/11, 7/11)
        [1.0, 7.0]
    """
    _check_steps(steps)
    # The squares of a very small or large b would leave the range of the floats; the solution is
    # proportional to b.
    unit = _unit(b)
    x = torch.zeros_like(b) if start is None else start / unit
    r = b / unit if start is None else b / unit - product(x)
    size = _norm(b / unit)
    enough = max(tolerance, torch.finfo(b.dtype).eps) * torch.where(size > 0, size, _norm(r))
    z = r if precondition is None else precondition(r)
    p, rz = z, _dot(r, z)
    broken = ~rz.isfinite()
    done = broken | (_norm(r) <= enough) | (rz <= 0)
    negative = torch.zeros_like(done)
    taken = torch.zeros_like(done, dtype=torch.long)
    for step in range(steps):
        if tolerance > 0 and step % CHECK_EVERY == 0 and bool(done.all()):
            break
        ap = product(p)
        curvature = _dot(p, ap)
        least = floor * _dot(p, p if metric is None else metric(p))
        taken = taken + (~done).long()
        broken = broken | ~(done | (curvature - least).isfinite())
        negative = negative | ~(done | broken | (curvature > least))
        going = ~(done | broken | negative)
        alpha = _ratio(rz, curvature, going)
        new_x, new_r = x + alpha * p, r - alpha * ap
        new_z = new_r if precondition is None else precondition(new_r)
        new_rz = _dot(new_r, new_z)
        broken = broken | (going & ~(new_rz.isfinite() & new_x.isfinite().all(-1)))
        going = going & ~broken
        beta = _ratio(new_rz, rz, going)
        keep = going.unsqueeze(-1)
        x, r = torch.where(keep, new_x, x), torch.where(keep, new_r, r)
        p, rz = torch.where(keep, new_z + beta * p, p), torch.where(going, new_rz, rz)
        done = ~going | (_norm(r) <= enough) | (rz <= 0)
    x = x * unit
    if otherwise is not None:
        x = torch.where((negative & (taken <= 1)).unsqueeze(-1), otherwise, x)
    left = torch.where(broken, torch.nan, residual(product, b, x))
    return Solution(x, left, taken, negative)


def neumann(
    product: Product,
    b: Tensor,
    *,
    steps: int,
    scale: float | Tensor | Product,
    start: Tensor | None = None,
) -> Solution:
    """Solve A x = b by x ← x + M (b − A x), which converges where ‖I − M A‖ < 1.

    From zero, k steps sum the first k terms of Neumann's series Σ_j (I − M A)^j M b.

    Args:
        product: v -> A v, (task, dim).
        b: (task, dim).
        steps: exactly so many products.
        scale: M, a number or v -> M v.
        start: (task, dim), zeros by default.

    Returns:
        The last iterate; where the series diverges, so does the residual.

    Raises:
        InputError: a negative number of steps.

    Example:
        >>> x = neumann(lambda v: 2 * v, torch.ones(1, 1), steps=2, scale=0.25)
        >>> x.value.item(), x.residual.item()  # 1/4 + 1/8
        (0.375, 0.25)
    """
    _check_steps(steps)
    x = torch.zeros_like(b) if start is None else start
    for _ in range(steps):
        gap = b - product(x)
        x = x + (scale(gap) if callable(scale) else scale * gap)
    left = residual(product, b, x)
    taken = torch.full_like(left, steps, dtype=torch.long).detach()
    return Solution(x, left, taken, torch.zeros_like(taken, dtype=torch.bool))


def cholesky(matrix: Tensor, b: Tensor) -> Solution:
    """Solve A x = b by a Cholesky factorisation; x = 0 where A is not positive definite.

    Args:
        matrix: (task, dim, dim) A.
        b: (task, dim).

    Example:
        >>> a = torch.tensor([[[2.0]], [[-1.0]]])
        >>> solution = cholesky(a, torch.ones(2, 1))
        >>> solution.value.flatten().tolist(), solution.negative.tolist()
        ([0.5, 0.0], [False, True])
    """
    info = torch.linalg.cholesky_ex(matrix.detach()).info
    finite = matrix.isfinite().all(-1).all(-1) & b.isfinite().all(-1)
    negative = (info > 0) & finite
    usable = ((info == 0) & finite)[..., None]
    eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    # Factorised anew: the gradient of a failed factorisation is NaN, used or not.
    lower = torch.linalg.cholesky_ex(torch.where(usable[..., None], matrix, eye)).L
    x = torch.cholesky_solve(torch.where(usable, b, 0.0).unsqueeze(-1), lower).squeeze(-1)
    left = residual(lambda v: (matrix @ v.unsqueeze(-1)).squeeze(-1), b, x)
    return Solution(x, left, torch.zeros_like(negative, dtype=torch.long), negative)


def residual(product: Product, b: Tensor, x: Tensor) -> Tensor:
    """(task,) ‖b − A x‖ / ‖b‖, or ‖A x‖ where b = 0."""
    unit = _unit(b)
    size = _norm(b / unit)
    return _norm((b - product(x)) / unit) / torch.where(size == 0, 1.0, size)


def _unit(b: Tensor) -> Tensor:
    """(task, 1) the largest |b|, 1 where that is 0 or not finite; a constant to differentiation."""
    largest = b.detach().abs().amax(-1, keepdim=True)
    return torch.where((largest > 0) & largest.isfinite(), largest, 1.0)


def _dot(left: Tensor, right: Tensor) -> Tensor:
    return (left * right).sum(-1)


def _norm(v: Tensor) -> Tensor:
    return torch.linalg.vector_norm(v, dim=-1)


def _ratio(top: Tensor, bottom: Tensor, where: Tensor) -> Tensor:
    """(task, 1) top / bottom, and 0 where it is not asked for (no 0/0, forwards or backwards)."""
    safe = torch.where(where, bottom, 1.0)
    return torch.where(where, top / safe, 0.0).unsqueeze(-1)


def _check_steps(steps: int) -> None:
    if steps < 0:
        raise InputError(f"steps={steps}: a linear solver takes 0 steps or more")
