"""Inner algorithms that use the curvature of F: Newton-CG, dense Newton, and one exact step.

The curvature is A_i = H_i + Λ, with H_i the Hessian of f_i or its Gauss-Newton matrix, which is
never negative and equals H_i where the prediction is linear and the likelihood canonical.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from bayesmeta.inner.dense import factor_solve
from bayesmeta.inner.first_order import rounding
from bayesmeta.inner.loop import Algorithm, check_limits
from bayesmeta.inner.problem import InnerProblem
from bayesmeta.linsolve import cg, cholesky
from bayesmeta.results import InputError

Kind = Literal["auto", "hessian", "ggn"]
HALVINGS = 8
ARMIJO = 1e-4
RIDGES = (0.0, 1e-3, 1e-2, 1e-1, 2.0)


def line_search(
    problem: InnerProblem, theta: Tensor, gradient: Tensor, direction: Tensor, reach: Tensor
) -> tuple[Tensor, Tensor]:
    """θ + t p with the first t of reach · (1, ½, ¼, …, 2⁻⁷) that is acceptable, per task.

        F(θ + t p) <= F(θ) + 10⁻⁴ t pᵀ∇F    (Armijo, up to the rounding of F)

    All eight are evaluated at once. A task with no acceptable t stays, and its `reach` falls by
    2⁻⁸, so that its next search goes on where this one ended; after a step it is 1 again.

    Args:
        problem: F.
        theta: (task, dim).
        gradient: (task, dim) ∇F at θ.
        direction: (task, dim) p.
        reach: (task,) the largest t tried.

    Returns:
        The next θ, and the next reach.

    References:
        Armijo (1966), "Minimization of functions having Lipschitz continuous first derivatives".
    """
    halves = 0.5 ** torch.arange(HALVINGS, dtype=theta.dtype, device=theta.device)
    sizes = reach * halves[:, None]
    trials = theta + sizes[..., None] * direction
    value, tried = problem.value(torch.cat([theta[None], trials])).split([1, HALVINGS])
    bound = value + ARMIJO * sizes * (gradient * direction).sum(-1) + rounding(value)
    acceptable = tried <= bound
    first = acceptable.int().argmax(0)
    found = acceptable.any(0)
    chosen = trials.gather(0, first[None, :, None].expand(1, *theta.shape))[0]
    theta = torch.where(found[:, None], chosen, theta)
    return theta, torch.where(found, 1.0, reach * 0.5**HALVINGS)


def downhill(problem: InnerProblem, gradient: Tensor, direction: Tensor) -> Tensor:
    """The direction, or −Σ₀∇F in tasks where it does not lead downhill."""
    leads = ((direction * gradient).sum(-1, keepdim=True) < 0) & direction.isfinite().all(
        -1, keepdim=True
    )
    return torch.where(leads, direction, -problem.covariance_product(gradient))


@dataclass(frozen=True)
class NewtonCG:
    """Hessian-free Newton: conjugate gradients on A p = −∇F, then a line search.

        θ ← θ + t p,    p ≈ −A⁻¹∇F(θ)

    CG is preconditioned by Σ₀ and measures curvature by Λ. At a direction of negative curvature it
    stops, and p is what it had by then; −Σ₀∇F if it had nothing. Two tasks take different t.
    Not differentiable.

    Args:
        steps: Newton steps, at most.
        cg_steps: products with A per step.
        curvature: "hessian", "ggn" for the Gauss-Newton matrix (needs a likelihood), or "auto",
            which a method decides by its model.
        tolerance: stop a task at ‖∇F_i‖ <= tolerance, in nats per unit of θ; 0 takes all steps.

    References:
        Nocedal and Wright (2006), "Numerical Optimization", algorithm 7.1.
        Martens (2010), "Deep learning via Hessian-free optimization", section 4.
    """

    steps: int = 10
    cg_steps: int = 5
    curvature: Kind = "hessian"
    tolerance: float = field(default=0.0, kw_only=True)
    differentiable = False

    def __post_init__(self) -> None:
        _check(self, self.curvature)
        if not isinstance(self.cg_steps, int) or self.cg_steps < 1:
            raise InputError(f"NewtonCG(cg_steps={self.cg_steps!r}): give at least 1")

    def init(self, problem: InnerProblem, theta: Tensor) -> Tensor:
        return torch.ones_like(theta[:, 0])

    def step(
        self, problem: InnerProblem, theta: Tensor, gradient: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        curvature = problem.curvature(theta, self.curvature)
        solution = cg(
            lambda v: curvature.product(v) + problem.precision_product(v),
            -gradient,
            steps=self.cg_steps,
            precondition=problem.covariance_product,
            metric=problem.precision_product if problem.anchor is not None else None,
        )
        direction = downhill(problem, gradient, solution.value)
        return line_search(problem, theta, gradient, direction, state)


@dataclass(frozen=True)
class Newton:
    """Newton's method with the dense A of every task, for few weights.

        θ ← θ − t (A + τI)⁻¹ ∇F(θ)

    τ = 0 wherever A is positive definite. In a task where it is not, τ is the least of 10⁻³, 10⁻²,
    10⁻¹ and 2 times the largest absolute row sum of A with which it is; with 2 it always is, by
    Gershgorin's theorem. t is found by the line search. Not differentiable.

    Args:
        steps: at most so many.
        curvature: "hessian", "ggn" for the Gauss-Newton matrix (needs a likelihood), or "auto",
            which a method decides by its model.
        tolerance: stop a task at ‖∇F_i‖ <= tolerance, in nats per unit of θ; 0 takes all steps.

    References:
        Nocedal and Wright (2006), "Numerical Optimization", algorithms 3.2 and 3.3.
    """

    steps: int = 20
    curvature: Kind = "hessian"
    tolerance: float = field(default=0.0, kw_only=True)
    differentiable = False

    def __post_init__(self) -> None:
        _check(self, self.curvature)

    def init(self, problem: InnerProblem, theta: Tensor) -> Tensor:
        return torch.ones_like(theta[:, 0])

    def step(
        self, problem: InnerProblem, theta: Tensor, gradient: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        if self.curvature == "ggn" and problem.anchor is not None:
            # Positive definite by itself, and cheap where a task has fewer rows than weights.
            direction = -factor_solve(problem, problem.curvature(theta, "ggn"), gradient).value
        else:
            curvature = problem.curvature(theta, self.curvature).dense(theta)
            lower = _ridged(curvature + problem.precision_matrix())
            direction = -torch.cholesky_solve(gradient.unsqueeze(-1), lower).squeeze(-1)
        return line_search(problem, theta, gradient, downhill(problem, gradient, direction), state)


@dataclass(frozen=True)
class Exact:
    """The minimum of a quadratic F, as a linear-Gaussian task has, by one dense Newton step.

        θ ← θ₀ − (H + Λ)⁻¹ ∇F(θ₀)

    Where F is not quadratic the residual shows it, and the task counts as not converged; where
    H + Λ is not positive definite the task stays at its start. Differentiable.

    Args:
        steps: 1; more repeat the step without a line search.
        tolerance: of ‖∇F_i‖, in nats per unit of θ; 0 asks for 1.5·10⁻⁸ (float64) of its start.
    """

    steps: int = 1
    tolerance: float = field(default=0.0, kw_only=True)
    differentiable = True

    def __post_init__(self) -> None:
        check_limits(self)

    def init(self, problem: InnerProblem, theta: Tensor) -> tuple[()]:
        return ()

    def step(
        self, problem: InnerProblem, theta: Tensor, gradient: Tensor, state: tuple[()]
    ) -> tuple[Tensor, tuple[()]]:
        return theta + cholesky(_dense(problem, theta), -gradient).value, state


def _dense(problem: InnerProblem, theta: Tensor) -> Tensor:
    """(task, dim, dim) A = H + Λ at θ."""
    return problem.curvature(theta, "hessian").dense(theta) + problem.precision_matrix()


def _ridged(matrix: Tensor) -> Tensor:
    """(task, dim, dim) Cholesky factor of A + τI with the least τ that allows one."""
    bound = matrix.abs().sum(-1).amax(-1)
    eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    ridges = matrix.new_tensor(RIDGES)[:, None] * bound
    lowers, info = torch.linalg.cholesky_ex(matrix + ridges[..., None, None] * eye)
    first = (info == 0).int().argmax(0)
    index = first[None, :, None, None].expand(1, *matrix.shape)
    return lowers.gather(0, index)[0]


def _check(algorithm: Algorithm, curvature: str) -> None:
    check_limits(algorithm)
    if curvature not in ("auto", "hessian", "ggn"):
        raise InputError(
            f'{type(algorithm).__name__}(curvature={curvature!r}): give "auto", "hessian" or "ggn"'
        )
