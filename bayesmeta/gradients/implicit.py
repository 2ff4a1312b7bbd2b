"""Implicit: dθ*/d(θ₀, Σ₀, ψ) from the condition ∇F(θ*) = 0, whatever algorithm found θ*.

    A u = v,  A = H + Λ,  v = ∂M/∂θ*        vᵀ dθ*/dp = −uᵀ ∂∇F(θ*; p)/∂p

which is Λu for θ₀, −sym(u (θ* − θ₀)ᵀ) for Λ in any form, and −∂⟨u, ∇f⟩/∂ψ for ψ: one solve, then
one reverse pass. (Rajeswaran et al. 2019, equation 6, solve for Λu with Λ = λI.)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import vjp, vmap

from bayesmeta.curvature import Curvature
from bayesmeta.gradients.rule import Build, Params, Pullback, Solved
from bayesmeta.inner.loop import Adapted, Algorithm, adapt
from bayesmeta.inner.problem import InnerProblem
from bayesmeta.linsolve import Solution, cg, cholesky, neumann
from bayesmeta.results import InputError

SOLVERS = ("cg", "neumann", "cholesky")
DENSE_LIMIT = 2000


@dataclass(frozen=True)
class Implicit:
    """Implicit differentiation of the adapted weights.

    Args:
        solver: "cg" (conjugate gradients on curvature products, preconditioned by Σ₀), "neumann"
            (the series u ← u + Σ₀(v − A u)·scale), or "cholesky" (dense; with the Gauss-Newton
            matrix and fewer rows than weights, in the space of rows).
        steps: products of cg or neumann. Both start at u = Σ₀ v, so that 0 steps are `FirstOrder`
            in θ₀.
        tolerance: relative residual at which a task's solve stops; 0 takes all steps.
        curvature: "hessian" or "ggn" for H, or "auto": the Hessian where the prediction is linear
            in the weights or there is no likelihood, else the Gauss-Newton matrix, for which
            A ⪰ Λ and no solve can amplify.
        damping: added to A's diagonal; 0, since any other value solves another system.
        scale: step of neumann, relative to Σ₀; it converges below 2 / (largest eigenvalue of Σ₀A).
    """

    solver: str = "cg"
    steps: int = 5
    tolerance: float = 0.0
    curvature: str = "auto"
    damping: float = 0.0
    scale: float = 1.0
    needs_path = False

    def __post_init__(self) -> None:
        if self.solver not in SOLVERS:
            raise InputError(f"solver must be one of {', '.join(SOLVERS)}, not {self.solver!r}")
        if self.curvature not in ("auto", "hessian", "ggn"):
            raise InputError(f"curvature={self.curvature!r}: use auto, hessian or ggn")
        if self.steps < 0 or self.tolerance < 0 or self.damping < 0 or not self.scale > 0:
            raise InputError("an implicit gradient needs steps, tolerance, damping ≥ 0, scale > 0")

    def adapt(self, build: Build, params: Params, algorithm: Algorithm) -> tuple[Adapted, Pullback]:
        adapted = adapt(build(params), algorithm)

        def pull(cotangent: Tensor) -> tuple[Params, Solved]:
            solution = self.solve(build(params), adapted.theta, cotangent)
            _, pullback = vjp(lambda p: build(p).gradient(adapted.theta), params)
            solved = Solved(solution.residual, solution.steps, solution.negative)
            return pullback(-solution.value)[0], solved

        return adapted, pull

    def solve(self, problem: InnerProblem, theta: Tensor, v: Tensor) -> Solution:
        """u with A u = v for every task."""
        curvature = problem.curvature(theta, self.curvature)

        def product(u: Tensor) -> Tensor:
            return curvature.product(u) + problem.precision_product(u) + self.damping * u

        prior = problem.covariance_product
        if self.solver == "neumann":
            return neumann(
                product, v, steps=self.steps, scale=lambda r: self.scale * prior(r), start=prior(v)
            )
        if self.solver == "cg":
            return cg(
                product,
                v,
                steps=self.steps,
                tolerance=self.tolerance,
                start=prior(v),
                precondition=prior,
                metric=problem.precision_product,
            )
        return self._directly(problem, curvature, v)

    def _directly(self, problem: InnerProblem, curvature: Curvature, v: Tensor) -> Solution:
        root = None if curvature.root is None or self.damping else curvature.root()
        if root is not None and root.shape[-1] < root.shape[-2]:
            return _in_row_space(problem, root, v)
        if v.shape[-1] > DENSE_LIMIT:
            raise InputError(
                f'solver="cholesky" would need a dense {v.shape[-1]} × {v.shape[-1]} matrix per '
                'task: use solver="cg", or curvature="ggn" with fewer rows than weights'
            )
        eye = torch.eye(v.shape[-1], dtype=v.dtype, device=v.device)
        columns = vmap(problem.precision_product, in_dims=-1, out_dims=-1)
        precision = columns(eye.expand(len(v), *eye.shape))
        return cholesky(curvature.dense(v) + precision + self.damping * eye, v)


def _in_row_space(problem: InnerProblem, root: Tensor, v: Tensor) -> Solution:
    """(Λ + R Rᵀ)⁻¹ v = Σ₀v − Σ₀R (I + RᵀΣ₀R)⁻¹ RᵀΣ₀v."""
    spread = vmap(problem.covariance_product, in_dims=-1, out_dims=-1)(root)
    eye = torch.eye(root.shape[-1], dtype=v.dtype, device=v.device)
    start = problem.covariance_product(v)
    inside = torch.linalg.cholesky(eye + root.mT @ spread)
    weights = torch.cholesky_solve(root.mT @ start.unsqueeze(-1), inside)
    u = start - (spread @ weights).squeeze(-1)
    back = (root @ (root.mT @ u.unsqueeze(-1))).squeeze(-1) + problem.precision_product(u)
    size = v.norm(dim=-1)
    residual = (v - back).norm(dim=-1) / torch.where(size > 0, size, 1.0)
    steps = torch.zeros_like(residual).long()
    return Solution(u, residual, steps, steps.bool())
