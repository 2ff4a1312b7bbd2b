"""Proximal Q_i: a function of θ₀, at θ*_i = argmin_θ f_i(θ) + ½‖θ − θ₀‖²_Λ.

A point, or the Gaussian of Laplace's method: N(θ*_i, (H_i + Λ)⁻¹), with the Hessian H_i of f_i or
the generalised Gauss-Newton matrix in its place. With a diagonal prior and a Gauss-Newton matrix
that Gaussian is the prior's covariance minus one column per row, and dense only if asked for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import vmap

from bayesmeta.forms import Form
from bayesmeta.gaussian import Gaussian, narrowed, triangular
from bayesmeta.inner.problem import InnerProblem
from bayesmeta.results import InputError

PROXIMAL_FORMS = ("point", "diagonal", "lowrank", "full")
CURVATURES = ("auto", "hessian", "ggn")


@dataclass(frozen=True)
class Proximal:
    """Q_i at the minimum of the anchored loss.

    Args:
        covariance: point, diagonal (the variances of full), full, or lowrank(r): the r directions
            in which the curvature is largest relative to Λ, and the prior in all others; r as
            large as a task's rows is exact.
        curvature: "hessian", "ggn" (generalised Gauss-Newton), or "auto": the Hessian where the
            prediction is linear in the weights or there is no likelihood, else the Gauss-Newton
            matrix, which cannot be indefinite.
        lam: the iMAML paper's λ: Λ = n_i λ I for a task with n_i rows, over 2σ² where the noise is
            Gaussian (λ stands beside a mean squared error), held; None keeps the prior's own Λ.
    """

    covariance: str = "point"
    curvature: str = "auto"
    lam: float | None = None

    def __post_init__(self) -> None:
        Form.parse(self.covariance, allowed=PROXIMAL_FORMS)
        if self.curvature not in CURVATURES:
            raise InputError(f"curvature must be one of {', '.join(CURVATURES)}")
        lam = self.lam
        if lam is not None and (isinstance(lam, bool | str) or not lam < math.inf):
            raise InputError(f"lam={lam!r}: give a positive number")
        if lam is not None and not lam > 0:
            raise InputError(
                f"lam={lam}: without a proximal term nothing is stationary in θ₀ and every "
                "implicit gradient is 0; give a positive lam, or use bm.methods.maml"
            )

    @property
    def form(self) -> Form:
        return Form.parse(self.covariance)

    def at(self, problem: InnerProblem, theta: Tensor) -> Gaussian:
        """Q_i around θ, all tasks; differentiable in θ and in the problem's parameters.

        Args:
            problem: with an anchor.
            theta: (task, dim) θ*.
        """
        if self.form.name == "point":
            return Gaussian(theta)
        curvature = problem.curvature(theta, self.curvature)
        anchor = problem.require_anchor()
        variance = anchor.diagonal if anchor.factor is None else None
        rank = self.form.rank or None
        if curvature.root is not None and variance is not None and self.form.name != "full":
            whole = Gaussian.from_precision_root(theta, 1 / variance, curvature.root(), rank)
        elif rank is not None and rank < theta.shape[-1]:
            root = triangular(anchor.root())
            whole = Gaussian(theta, None, narrowed(root, curvature.dense(theta), rank))
        else:
            precision = curvature.dense(theta) + problem.precision_matrix()
            whole = Gaussian(theta, None, _inverse_root(precision))
        if self.form.name == "diagonal":
            return Gaussian(theta, whole.variance())
        return whole


def log_volume(problem: InnerProblem, theta: Tensor, kind: str) -> Tensor:
    """(task,) ½ log|H_i + Λ| − ½ log|Λ| in nats, the Occam term of the evidence.

    By the determinant of a rows × rows matrix where the Gauss-Newton matrix has fewer rows than
    weights; NaN where H_i + Λ is not positive definite.
    """
    curvature = problem.curvature(theta, kind)
    anchor = problem.require_anchor()
    root = None if curvature.root is None else curvature.root()
    if root is not None and root.shape[-1] < root.shape[-2]:
        spread = vmap(anchor.covariance_product, in_dims=-1, out_dims=-1)(root)
        eye = torch.eye(root.shape[-1], dtype=theta.dtype, device=theta.device)
        return _half_log_det(eye + root.mT @ spread)
    return (
        _half_log_det(curvature.dense(theta) + problem.precision_matrix()) + 0.5 * anchor.log_det()
    )


def _half_log_det(matrix: Tensor) -> Tensor:
    factor, info = torch.linalg.cholesky_ex(matrix)
    value = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return torch.where(info == 0, value, torch.nan)


def _inverse_root(precision: Tensor) -> Tensor:
    """Lower-triangular L with L Lᵀ = precision⁻¹."""
    flipped, info = torch.linalg.cholesky_ex(precision.flip((-2, -1)))
    upper = flipped.flip((-2, -1))  # U Uᵀ = precision with U upper triangular
    eye = torch.eye(upper.shape[-1], dtype=upper.dtype, device=upper.device)
    inverse = torch.linalg.solve_triangular(upper.mT, eye.expand_as(upper), upper=False)
    return torch.where((info == 0)[:, None, None], inverse, torch.nan)
