"""(C_i + Λ) u = v by a factorisation, dense or in the space of rows."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import vmap

from bayesmeta.curvature import Curvature
from bayesmeta.inner.problem import InnerProblem
from bayesmeta.linsolve import Solution, cholesky
from bayesmeta.results import InputError

DENSE_LIMIT = 2000


def factor_solve(problem: InnerProblem, curvature: Curvature, v: Tensor) -> Solution:
    """u of every task, exactly.

    A Gauss-Newton matrix R Rᵀ with fewer rows than weights is never made dense:

        (Λ + R Rᵀ)⁻¹ v = Σ₀v − Σ₀R (I + RᵀΣ₀R)⁻¹ RᵀΣ₀v

    Args:
        problem: whose Λ; without an anchor the matrix is C alone.
        curvature: C, of f at some θ.
        v: (task, dim).

    Raises:
        InputError: the matrix would be dense and too large.
    """
    root = None
    if curvature.root is not None and problem.anchor is not None:
        root = curvature.root()
    if root is not None and root.shape[-1] < root.shape[-2]:
        return _in_row_space(problem, root, v)
    if v.shape[-1] > DENSE_LIMIT:
        raise InputError(
            f"this would need a dense {v.shape[-1]} × {v.shape[-1]} matrix per task: use "
            'solver="cg" (or Newton-CG), or curvature="ggn" with fewer rows than weights'
        )
    return cholesky(curvature.dense(v) + problem.precision_matrix(), v)


def _in_row_space(problem: InnerProblem, root: Tensor, v: Tensor) -> Solution:
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
