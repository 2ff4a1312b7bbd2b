"""The best full Gaussian Q_i of every task, by Newton's method on its two conditions.

In u, θ = θ₀ + A u with Σ₀ = A Aᵀ, the prior is N(0, I) and Q = N(μ, P⁻¹) minimises
E f + KL where

    Aᵀ E[∇f] + μ = 0        P = I + Aᵀ E[∇²f] A

(the stationarity conditions of Opper & Archambeau 2009, eqs. 7-8). The damped step
P ← (1−ρ)P + ρ P̂, μ ← μ − ρ P⁻¹ g is the natural gradient with step ρ (Khan & Rue 2023). A may be
singular. All tasks move at once; each has its own ρ, and a step that raises its objective is
taken back.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bayesmeta.expectation import LinearExpectation, NodeExpectation
from bayesmeta.gaussian import Gaussian
from bayesmeta.results import Result

SLACK = 1e-12
CHECK_EVERY = 3


@dataclass(frozen=True, eq=False)
class State:
    """Q_i in u coordinates.

    Args:
        mean: (task, k) μ.
        lower: (task, k, k) Cholesky factor of the precision P.
        residual: (task,) largest violation of the two conditions; inf before the first step.
    """

    mean: Tensor
    lower: Tensor
    residual: Tensor

    @classmethod
    def at_prior(cls, tasks: int, root: Tensor) -> State:
        """Q_i = N(θ₀, Σ₀) for every task."""
        k = root.shape[1]
        eye = torch.eye(k, dtype=root.dtype, device=root.device).expand(tasks, k, k)
        return cls(root.new_zeros(tasks, k), eye, root.new_full((tasks,), torch.inf))

    @classmethod
    def of(cls, posteriors: Gaussian) -> State:
        """Start at given Q_i, nonsingular, in u coordinates."""
        lower = torch.linalg.cholesky(torch.linalg.inv(posteriors.covariance()))
        return cls(posteriors.mean, lower, posteriors.mean.new_full((len(lower),), torch.inf))

    def spread(self) -> Tensor:
        """(task, k, k) a square root of P⁻¹."""
        eye = torch.eye(self.lower.shape[-1], dtype=self.lower.dtype, device=self.lower.device)
        return torch.linalg.solve_triangular(self.lower, eye, upper=False).mT

    def divergence(self) -> Tensor:
        """(task,) KL(Q_i ‖ prior) in nats."""
        spread = self.spread().square().sum((-2, -1))
        log_det = 2 * self.lower.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return 0.5 * (spread + self.mean.square().sum(-1) - self.mean.shape[-1] + log_det)

    def deviation(self, root: Tensor) -> Gaussian:
        """The law of θ_i − θ₀."""
        return Gaussian(self.mean @ root.mT, None, root @ self.spread())

    def results(self, tolerance: float) -> list[Result]:
        """How each task ended."""
        ended = []
        for value in self.residual.tolist():
            fine = Result.converged if value <= tolerance else Result.max_steps
            ended.append(fine if value < float("inf") else Result.nonfinite)
        return ended


def solve(
    expectation: LinearExpectation | NodeExpectation,
    location: Tensor,
    shared: dict[str, Tensor],
    root: Tensor,
    start: State,
    *,
    steps: int = 200,
    tolerance: float = 1e-9,
) -> State:
    """Adapt Q_i of every task to its data.

    Args:
        expectation: E f and its derivatives.
        location: θ₀ or, for a linear predictor, all fixed effects.
        shared: ψ.
        root: A (p, k).
        start: where to begin.
        steps: at most so many Newton steps.
        tolerance: of the residual, in nats per unit of u.

    Returns:
        The state with the smallest objective met, and its residual, per task.
    """
    location, root = location.detach(), root.detach()
    shared = {k: v.detach() for k, v in shared.items()}
    best, target, gradient, objective = _evaluate(expectation, location, shared, root, start)
    rho = torch.ones_like(objective)
    for step in range(steps):
        if step % CHECK_EVERY == 0 and bool((best.residual <= tolerance).all()):
            break
        precision = best.lower @ best.lower.mT
        size = rho[:, None, None]
        lower, info = torch.linalg.cholesky_ex((1 - size) * precision + size * target)
        broken = (info > 0) | ~lower.isfinite().all(-1).all(-1)
        lower = torch.where(broken[:, None, None], best.lower, lower)
        move = torch.cholesky_solve(gradient.unsqueeze(-1), lower).squeeze(-1)
        trial = State(best.mean - rho[:, None] * move, lower, best.residual)
        trial, t_target, t_gradient, t_objective = _evaluate(
            expectation, location, shared, root, trial
        )
        slack = SLACK * objective.abs().clamp(min=1.0)
        better = (t_objective <= objective + slack) & ~broken & (best.residual > tolerance)
        rho = torch.where(better, (2 * rho).clamp(max=1.0), 0.5 * rho)
        best = State(
            _choose(better, trial.mean, best.mean),
            _choose(better, trial.lower, best.lower),
            _choose(better, trial.residual, best.residual),
        )
        target = _choose(better, t_target, target)
        gradient = _choose(better, t_gradient, gradient)
        objective = _choose(better, t_objective, objective)
    return best


def _evaluate(
    expectation: LinearExpectation | NodeExpectation,
    location: Tensor,
    shared: dict[str, Tensor],
    root: Tensor,
    state: State,
) -> tuple[State, Tensor, Tensor, Tensor]:
    """State with its residual, the P̂ and gradient it asks for, and its objective."""
    deviation = state.deviation(root)
    with torch.enable_grad():
        loss, slope, curvature = expectation.derivatives(location, shared, deviation)
    eye = torch.eye(root.shape[1], dtype=root.dtype, device=root.device)
    gradient = slope @ root + state.mean
    target = eye + root.mT @ curvature @ root
    precision = state.lower @ state.lower.mT
    mismatch = (target - precision).abs().amax((-2, -1)) / precision.abs().amax((-2, -1))
    residual = torch.maximum(gradient.abs().amax(-1), mismatch)
    objective = torch.nan_to_num(loss + state.divergence(), nan=torch.inf)
    residual = torch.nan_to_num(residual, nan=torch.inf)
    return State(state.mean, state.lower, residual), target, gradient, objective


def _choose(condition: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    return torch.where(condition.reshape(-1, *[1] * (yes.ndim - 1)), yes, no)
