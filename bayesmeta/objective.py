"""M, the one formula, per task and in nats.

    M(θ₀, Σ₀, ψ) = Σ_i [ E_{θ ~ Q_i} ℓ_i(θ)  +  β · KL( Q_i ‖ N(θ₀, Σ₀) ) ]

ℓ_i, a sum over observations, comes from a model; Q_i from `posteriors/`; N(θ₀, Σ₀) from a prior.
For a point Q_i the KL is infinite, and its quadratic term ½‖θ_i − θ₀‖²_Λ stands for it.
"""

from __future__ import annotations

from torch import Tensor

from bayesmeta.gaussian import Gaussian


def per_task(expected_loss: Tensor, posteriors: Gaussian, prior: Gaussian, beta: float) -> Tensor:
    """(task,) E_{Q_i} ℓ_i + β KL(Q_i ‖ prior) in nats.

    Args:
        expected_loss: (task,) E_{Q_i} ℓ_i in nats.
        posteriors: Q_i with a leading task axis.
        prior: N(θ₀, Σ₀).
        beta: weight of the KL; anything but 1 is not a bound on the evidence.
    """
    divergence = prior.quadratic(posteriors.mean) if posteriors.is_point else posteriors.kl(prior)
    return expected_loss + beta * divergence


def total(values: Tensor, tasks: int) -> Tensor:
    """() M from the tasks of a minibatch: their sum times tasks / (tasks in the batch).

    Unbiased for the sum over the family when batches are drawn uniformly.
    """
    return values.sum() * (tasks / values.shape[-1])
