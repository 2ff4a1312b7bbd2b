"""Newton's method for small dense problems, all tasks at once, damped only where it must be.

    u ← u − (P + λ diag|P|)⁻¹ g

λ is each task's own: 0 while steps lower its function (quadratic convergence), raised where P is
not positive definite or a step went up. Scaling by diag|P| makes it blind to units (Marquardt
1963).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

SLACK = 1e-12
FIRST_DAMPING = 1e-2
LEAST_DAMPING = 1e-4
FACTOR = 10.0
Derivatives = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]


@dataclass(frozen=True, eq=False)
class Minimum:
    """Where the search of each task ended.

    Args:
        point: (task, k).
        second: (task, k, k) P, the second derivatives there.
        residual: (task,) √(gᵀP⁻¹g), the next step in units of the curvature; inf where P is not
            positive definite, NaN where the function is not finite.
    """

    point: Tensor
    second: Tensor
    residual: Tensor


def minimise(derivatives: Derivatives, start: Tensor, *, steps: int, tolerance: float) -> Minimum:
    """Minimise a function of every task.

    Args:
        derivatives: (task, k) u -> value (task,), gradient (task, k), second (task, k, k).
        start: (task, k).
        steps: at most.
        tolerance: of the residual.

    Example:
        >>> def parabola(u):
        ...     return 2 * u.square().sum(-1), 4 * u, 4 * torch.ones(len(u), 1, 1)
        >>> minimise(parabola, torch.ones(1, 1), steps=5, tolerance=1e-6).point.tolist()
        [[0.0]]
    """
    point = start
    value, gradient, second = derivatives(point)
    damping = torch.zeros_like(value)
    for step in range(steps + 1):
        move, residual = _direction(gradient, second, damping)
        active = (residual > tolerance) & value.isfinite()
        # One look at the device a step: a warm start needs two or three steps of many kernels.
        if step == steps or not bool(active.any()):
            break
        trial = point - move
        t_value, t_gradient, t_second = derivatives(trial)
        slack = SLACK * value.abs().clamp(min=1.0)
        better = active & residual.isfinite() & (t_value <= value + slack)
        damping = torch.where(better, _relaxed(damping), _raised(damping, active))
        point = torch.where(better[:, None], trial, point)
        value = torch.where(better, t_value, value)
        gradient = torch.where(better[:, None], t_gradient, gradient)
        second = torch.where(better[:, None, None], t_second, second)
    _, residual = _direction(gradient, second, torch.zeros_like(damping))
    return Minimum(point, second, torch.where(value.isfinite(), residual, torch.nan))


def _direction(gradient: Tensor, second: Tensor, damping: Tensor) -> tuple[Tensor, Tensor]:
    """The damped Newton step and its length √(gᵀ move); 0 and inf where P + λ diag|P| fails."""
    scale = damping[:, None] * second.diagonal(dim1=-2, dim2=-1).abs()
    lower, info = torch.linalg.cholesky_ex(second + torch.diag_embed(scale))
    half = torch.linalg.solve_triangular(lower, gradient.unsqueeze(-1), upper=False)
    move = torch.linalg.solve_triangular(lower.mT, half, upper=True).squeeze(-1)
    length = half.squeeze(-1).square().sum(-1).sqrt()
    failed = info > 0
    move = torch.where(failed[:, None], torch.zeros_like(move), move)
    return move, torch.where(failed, torch.inf, length)


def _relaxed(damping: Tensor) -> Tensor:
    lower = damping / FACTOR
    return torch.where(lower < LEAST_DAMPING, 0.0, lower)


def _raised(damping: Tensor, active: Tensor) -> Tensor:
    return torch.where(active, (FACTOR * damping).clamp(min=FIRST_DAMPING), damping)
