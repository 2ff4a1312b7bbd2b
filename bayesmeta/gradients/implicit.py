"""Implicit: dθ*/d(θ₀, Σ₀, ψ) from the condition ∇F(θ*) = 0, whatever algorithm found θ*.

    A u = v,  A = H + Λ,  v = ∂M/∂θ*        vᵀ dθ*/dp = −uᵀ ∂∇F(θ*; p)/∂p

which is Λu for θ₀, −sym(u (θ* − θ₀)ᵀ) for Λ in any form, and −∂⟨u, ∇f⟩/∂ψ for ψ: one solve, then
one reverse pass. (Rajeswaran et al. 2019, equation 6, solve for Λu with Λ = λI.)
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.func import vjp

from bayesmeta.gradients.rule import Build, Params, Pullback, Rule, Solved
from bayesmeta.inner.dense import factor_solve
from bayesmeta.inner.loop import Adapted, Algorithm, adapt
from bayesmeta.inner.problem import InnerProblem
from bayesmeta.linsolve import Solution, cg, cholesky, neumann, residual
from bayesmeta.results import InputError

SOLVERS = ("cg", "neumann", "cholesky")


@dataclass(frozen=True)
class Implicit(Rule):
    """Implicit differentiation of the adapted weights.

    Args:
        solver: "cg" (conjugate gradients on curvature products, preconditioned by Σ₀), "neumann"
            (the series u ← u + Σ₀(v − A u)·scale), or "cholesky" (dense; with the Gauss-Newton
            matrix and fewer rows than weights, in the space of rows).
        steps: products of cg or neumann. 0 are u = Σ₀v, `FirstOrder` in θ₀; neumann goes on from
            there, cg starts at u = 0, from where k products find the best u that they can. A task
            whose first direction already has negative curvature keeps u = Σ₀v.
        tolerance: relative residual at which a task's solve stops; 0 takes all steps.
        curvature: "hessian" or "ggn" for H, or "auto": the Hessian where the prediction is linear
            in the weights, there is no likelihood, or "cholesky" solves for at most 100 weights;
            else the Gauss-Newton matrix, for which A ⪰ Λ and no solve can amplify, but which is
            not the curvature of the loss: `audit=` measures the difference.
        damping: added to A's diagonal; 0, since any other value solves another system, as the
            reported residual then shows.
        scale: step of neumann, relative to Σ₀; it converges below 2 / (largest eigenvalue of Σ₀A).
        warm_start: in a fit, start each task's solve at its last solution, which a small outer
            step leaves nearly right; pays where tasks come again often.
    """

    solver: str = "cg"
    steps: int = 5
    tolerance: float = 0.0
    curvature: str = "auto"
    damping: float = 0.0
    scale: float = 1.0
    warm_start: bool = False

    def __post_init__(self) -> None:
        if self.solver not in SOLVERS:
            raise InputError(f"solver must be one of {', '.join(SOLVERS)}, not {self.solver!r}")
        if self.curvature not in ("auto", "hessian", "ggn"):
            raise InputError(f"curvature={self.curvature!r}: use auto, hessian or ggn")
        if type(self.steps) is not int:
            raise InputError(f"steps={self.steps!r} of an implicit gradient: give a whole number")
        if self.steps < 0 or self.tolerance < 0 or self.damping < 0 or not self.scale > 0:
            raise InputError("an implicit gradient needs steps, tolerance, damping ≥ 0, scale > 0")

    def adapt(self, build: Build, params: Params, algorithm: Algorithm) -> tuple[Adapted, Pullback]:
        adapted = adapt(build(params), algorithm)

        def pull(cotangent: Tensor, start: Tensor | None = None) -> tuple[Params, Solved]:
            def stationary(p: Params) -> Tensor:
                # ∇f moves with ψ only; without one the anchor's part is all.
                problem = build(p)
                if not p["shared"]:
                    return problem.force(adapted.theta)
                # 2σ²∇F = 0 says the same, and nothing of σ where a path that ends early has none.
                scale = torch.as_tensor(problem.model.paper_scale(problem.batch, problem.shared))
                return problem.gradient(adapted.theta) * (scale / scale.detach())

            with torch.no_grad():
                found = self.solve(build(params), adapted.theta, cotangent, start)
            pullback = vjp(stationary, params)[1]
            solved = Solved(found.residual, found.steps, found.negative, found.value)
            return pullback(-found.value)[0], solved

        return adapted, pull

    def solve(
        self, problem: InnerProblem, theta: Tensor, v: Tensor, start: Tensor | None = None
    ) -> Solution:
        """u with A u = v for every task; `start` is where an earlier solve ended."""
        curvature = problem.curvature(theta, self.curvature)

        def product(u: Tensor) -> Tensor:
            return curvature.product(u) + problem.precision_product(u) + self.damping * u

        prior = problem.covariance_product
        first_order = prior(v)
        begin = first_order if self.solver == "neumann" or self.steps == 0 else None
        if start is not None:  # NaN where no earlier solve has been
            known = start.isfinite().all(-1, keepdim=True)
            begin = torch.where(known, start, 0.0 if begin is None else begin)
        if self.solver == "neumann":
            found = neumann(
                product, v, steps=self.steps, scale=lambda r: self.scale * prior(r), start=begin
            )
        elif self.solver == "cg":
            found = cg(
                product,
                v,
                steps=self.steps,
                tolerance=self.tolerance,
                start=begin,
                precondition=prior,
                metric=problem.precision_product,
                otherwise=first_order,
            )
        elif self.damping == 0:
            found = factor_solve(problem, curvature, v)
        else:
            eye = torch.eye(v.shape[-1], dtype=v.dtype, device=v.device)
            matrix = curvature.dense(v) + problem.precision_matrix() + self.damping * eye
            found = cholesky(matrix, v)
        if self.damping == 0:
            return found
        left = residual(lambda u: product(u) - self.damping * u, v, found.value)
        return replace(found, residual=left)
