"""M, the one formula, per task and in nats.

    M(θ₀, Σ₀, ψ) = Σ_i [ E_{θ ~ Q_i} ℓ_i(θ)  +  β · KL( Q_i ‖ N(θ₀, Σ₀) ) ]

ℓ_i, a sum over observations, comes from a model; Q_i from `posteriors/`; N(θ₀, Σ₀) from a prior.
For a point Q_i the KL is infinite, and its quadratic term ½‖θ_i − θ₀‖²_Λ stands for it.

    Variational   ℓ = f, the KL kept
    Validation    ℓ = g, the KL dropped; of a stochastic algorithm E_z g(θ_z), or g(E_z θ_z)
    Evidence      −log ∫ exp(−f(θ)) N(θ; θ₀, Σ₀) dθ, by Laplace's method or quadrature around θ*
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from bayesmeta.gaussian import Gaussian
from bayesmeta.results import InputError


@dataclass(frozen=True)
class Variational:
    """ℓ = f, the KL kept with weight β."""

    beta: float = 1.0

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise InputError(f"beta must be positive, not {self.beta}")


@dataclass(frozen=True)
class Validation:
    """ℓ = g, the loss of a query set that adaptation does not see; the KL dropped.

    Args:
        support: rows of each task (int) or the fraction of them (float in (0, 1)) that adaptation
            sees; the rest is the query set. None: the query set is the support set (g = f), unless
            a query family is given.
        fresh: draw the split anew at every outer step, or once.
        at: where g is taken if adaptation is random: "draws", E_z g(θ_z), what an adapted model
            loses on average; or "mean", g(E_z θ_z), what the average of adapted models loses.
    """

    support: int | float | None = 0.5
    fresh: bool = True
    at: Literal["draws", "mean"] = "draws"

    def __post_init__(self) -> None:
        if self.at not in ("draws", "mean"):
            raise InputError(f'at={self.at!r}: give "draws" or "mean"')
        value = self.support
        if value is not None and not (
            0 < value < 1 if isinstance(value, float) else value >= 1 and value is not True
        ):
            raise InputError(
                f"support={value!r}: give rows per task (an integer), a fraction in (0, 1), or None"
            )


@dataclass(frozen=True)
class Evidence:
    """ℓ = −log p(S_i | θ₀, Σ₀, ψ), the task's weights integrated out.

    Args:
        points: Gauss-Hermite nodes per weight around θ*; 1 is Laplace's method, more are for up to
            three weights.
    """

    points: int = 1

    def __post_init__(self) -> None:
        if self.points < 1:
            raise InputError(f"points must be at least 1, not {self.points}")


Objective = Variational | Validation | Evidence


def per_task(expected_loss: Tensor, posteriors: Gaussian, prior: Gaussian, beta: float) -> Tensor:
    """(..., task) E_{Q_i} ℓ_i + β KL(Q_i ‖ prior) in nats.

    Args:
        expected_loss: (..., task) E_{Q_i} ℓ_i in nats.
        posteriors: Q_i with a leading task axis; a point with axes before it.
        prior: N(θ₀, Σ₀).
        beta: weight of the KL; anything but 1 is not a bound on the evidence.
    """
    divergence = prior.quadratic(posteriors.mean) if posteriors.is_point else posteriors.kl(prior)
    return expected_loss + beta * divergence
