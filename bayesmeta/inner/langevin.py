"""Stochastic gradient Langevin dynamics: gradient steps whose normal noise makes them sample."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from bayesmeta.inner.first_order import Per, check_step, moving_root, step_size
from bayesmeta.inner.loop import check_number
from bayesmeta.inner.noise import Minibatched
from bayesmeta.inner.problem import InnerProblem


@dataclass(frozen=True)
class SGLD(Minibatched):
    """Stochastic gradient Langevin dynamics, plain or preconditioned.

        θ ← θ − ε D ∇F(θ) + √(2 ε τ D) ξ,    ξ ~ N(0, I)

    With D = I, many small steps on F = −log posterior and τ = 1, θ is a draw from the posterior,
    but for a bias of order ε. Preconditioned, D = 1/(δ + √v) with v a moving average of (∇F)², as
    RMSProp has it; the term with the derivative of D is left out, as is usual, so its law stays off
    the posterior however small ε is (`python -m studies run sgld_nuts`).

    Args:
        lr: ε, in squared units of θ per nat (preconditioned: in units of θ); per="row" divides it
            by n_i, see `GradientDescent`.
        steps: how many.
        temperature: τ; 1 samples, smaller values cling to the minima.
        per: "row" or "task".
        preconditioned: whether D follows the gradients.
        decay: of v.
        damping: δ, in nats per unit of θ.
        rows, replacement, dropout: minibatch noise, see `Minibatched`; None is the unadjusted
            Langevin algorithm.

    References:
        Welling and Teh (2011), "Bayesian Learning via Stochastic Gradient Langevin Dynamics", eq. 4
        (whose ε is 2ε here).
        Li, Chen, Carlson and Carin (2016), "Preconditioned SGLD", algorithm 1, where v is of the
        mean likelihood gradient of a minibatch; here it is of ∇F, the anchor and all rows in it,
        and starts at the first (∇F)².
    """

    lr: float = 0.01
    steps: int = 5
    temperature: float = field(default=1.0, kw_only=True)
    per: Per = field(default="row", kw_only=True)
    preconditioned: bool = field(default=False, kw_only=True)
    decay: float = field(default=0.99, kw_only=True)
    damping: float = field(default=1e-5, kw_only=True)
    differentiable = True
    normals = True
    tolerance = 0.0

    def __post_init__(self) -> None:
        check_step(self, self.per)
        check_number(self, "temperature", low=0.0)
        check_number(self, "decay", low=0.0, high=1.0, strict=False)
        check_number(self, "damping", low=0.0)

    def init(self, problem: InnerProblem, theta: Tensor) -> tuple[Tensor, ...]:
        # Starting v at 0 would make the first D, and its step, 1/√(1 − decay) times too large.
        return (torch.full_like(theta, torch.nan),) if self.preconditioned else ()

    def transition(
        self, problem: InnerProblem, theta: Tensor, gradient: Tensor, state: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Mean and sd (path, dim) of the next θ, which is Gaussian, and the next state."""
        size = step_size(problem, self.lr, self.per)
        if self.preconditioned:
            square = gradient.square()
            begun = state[0].isfinite()
            before = torch.where(begun, state[0], square)
            average = self.decay * before + (1 - self.decay) * square
            size, state = size / (moving_root(average) + self.damping), (average,)
        sd = torch.as_tensor(2 * self.temperature * size).sqrt().expand_as(theta)
        return theta - size * gradient, sd, state

    def step(
        self, problem: InnerProblem, theta: Tensor, gradient: Tensor, state: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        mean, sd, state = self.transition(problem, theta, gradient, state)
        assert problem.normals is not None
        return mean + sd * problem.normals, state
