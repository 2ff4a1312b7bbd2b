"""L-BFGS for all tasks at once: curvature of F_i learned from the steps each task has taken."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from bayesmeta.inner.loop import check_limits
from bayesmeta.inner.newton import downhill, line_search
from bayesmeta.inner.problem import InnerProblem
from bayesmeta.results import InputError

CURVED = 1e-8


@dataclass(frozen=True)
class LBFGS:
    """Limited-memory BFGS with the line search of Newton-CG.

        θ ← θ − t B ∇F(θ)

    B is the BFGS inverse of the last `history` pairs s = Δθ, y = Δ∇F, built on γ Σ₀ with
    γ = sᵀy / yᵀΣ₀y of the newest pair (Σ₀ = I without an anchor). A task skips a pair with
    sᵀy <= 10⁻⁸ ‖s‖‖y‖, which would make its B indefinite; it keeps the pairs it has.
    Not differentiable.

    Args:
        steps: at most so many.
        history: pairs kept, per task.
        tolerance: stop a task at ‖∇F_i‖ <= tolerance, in nats per unit of θ; 0 takes all steps.

    References:
        Nocedal (1980), "Updating quasi-Newton matrices with limited storage".
        Nocedal and Wright (2006), "Numerical Optimization", algorithms 7.4 and 7.5.
    """

    steps: int = 50
    history: int = 10
    tolerance: float = field(default=0.0, kw_only=True)
    differentiable = False

    def __post_init__(self) -> None:
        check_limits(self)
        if not isinstance(self.history, int) or self.history < 1:
            raise InputError(f"LBFGS(history={self.history!r}): give a whole number, at least 1")

    def init(self, problem: InnerProblem, theta: Tensor) -> dict[str, Tensor]:
        tasks, dim = theta.shape
        pairs = theta.new_zeros(tasks, self.history, dim)
        one = torch.ones_like(theta[:, 0])
        zero = torch.zeros_like(theta)
        return {"s": pairs, "y": pairs, "scale": one, "reach": one, "theta": theta, "slope": zero}

    def step(
        self, problem: InnerProblem, theta: Tensor, gradient: Tensor, state: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        s, y, scale = _remember(problem, theta - state["theta"], gradient - state["slope"], state)
        direction = -_two_loops(problem, gradient, s, y, scale)
        direction = downhill(problem, gradient, direction)
        moved, reach = line_search(problem, theta, gradient, direction, state["reach"])
        kept = {"s": s, "y": y, "scale": scale, "reach": reach, "theta": theta, "slope": gradient}
        return moved, kept


def _remember(
    problem: InnerProblem, step: Tensor, change: Tensor, state: dict[str, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """The pairs (task, history, dim), newest last, and γ (task,), after one more step."""
    product = (step * change).sum(-1)
    size = torch.linalg.vector_norm(step, dim=-1) * torch.linalg.vector_norm(change, dim=-1)
    curved = product > CURVED * size

    def append(pairs: Tensor, newest: Tensor) -> Tensor:
        longer = torch.cat([pairs[:, 1:], newest.unsqueeze(1)], 1)
        return torch.where(curved[:, None, None], longer, pairs)

    spread = (change * problem.covariance_product(change)).sum(-1)
    scale = torch.where(curved, product / torch.where(curved, spread, 1.0), state["scale"])
    return append(state["s"], step), append(state["y"], change), scale


def _two_loops(
    problem: InnerProblem, gradient: Tensor, s: Tensor, y: Tensor, scale: Tensor
) -> Tensor:
    """(task, dim) B ∇F; a place without a pair yet holds zeros, and does nothing."""
    product = (s * y).sum(-1)
    weight = torch.where(product > 0, 1 / torch.where(product > 0, product, 1.0), 0.0)
    q, shares = gradient, []
    for j in reversed(range(s.shape[1])):
        share = weight[:, j] * (s[:, j] * q).sum(-1)
        shares.append(share)
        q = q - share[:, None] * y[:, j]
    q = scale[:, None] * problem.covariance_product(q)
    for j in range(s.shape[1]):
        correction = shares[-1 - j] - weight[:, j] * (y[:, j] * q).sum(-1)
        q = q + correction[:, None] * s[:, j]
    return q
