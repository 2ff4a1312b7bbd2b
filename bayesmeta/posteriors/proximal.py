"""Proximal Q_i: a function of θ₀, at θ*_i = argmin_θ f_i(θ) + ½‖θ − θ₀‖²_Λ.

A point, or the Gaussian of Laplace's method: N(θ*_i, (H_i + Λ)⁻¹), with the Hessian H_i of f_i or
the generalised Gauss-Newton matrix in its place.
"""

from __future__ import annotations

from dataclasses import dataclass

from bayesmeta.forms import Form
from bayesmeta.results import InputError

PROXIMAL_FORMS = ("point", "diagonal", "lowrank", "full")
CURVATURES = ("auto", "hessian", "ggn")


@dataclass(frozen=True)
class Proximal:
    """Q_i at the minimum of the anchored loss.

    Args:
        covariance: point, diagonal, lowrank(r) or full.
        curvature: "hessian", "ggn" (generalised Gauss-Newton), or "auto": the Hessian where the
            prediction is linear in the weights or there is no likelihood, else the Gauss-Newton
            matrix, which cannot be indefinite.
        lam: the iMAML paper's λ: Λ = n_i λ I for a task with n_i rows, held; None keeps the
            prior's own Λ.
    """

    covariance: str = "point"
    curvature: str = "auto"
    lam: float | None = None

    def __post_init__(self) -> None:
        Form.parse(self.covariance, allowed=PROXIMAL_FORMS)
        if self.curvature not in CURVATURES:
            raise InputError(f"curvature must be one of {', '.join(CURVATURES)}")
        if self.lam is not None and not self.lam > 0:
            raise InputError(
                f"lam={self.lam}: without a proximal term nothing is stationary in θ₀ and every "
                "implicit gradient is 0; give a positive lam, or use bm.methods.maml"
            )

    @property
    def form(self) -> Form:
        return Form.parse(self.covariance)
