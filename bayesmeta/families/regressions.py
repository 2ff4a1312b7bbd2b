"""Regressions with Gaussian coefficients: linear, logistic, Poisson."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bayesmeta.families.draws import F64, Draw, Rows, Truth, noise_likelihood
from bayesmeta.likelihoods import Bernoulli, Binomial, Poisson
from bayesmeta.results import InputError
from bayesmeta.tasks import TaskFamily


def linear_gaussian(
    *,
    tasks: int,
    rows: Rows,
    generator: torch.Generator,
    theta0: Tensor | Sequence[float] = (1.0, -0.5),
    covariance: Tensor | Sequence[Sequence[float]] = ((0.5, 0.2), (0.2, 1.0)),
    noise: float = 0.5,
    intercept: bool = True,
    device: Any = None,
) -> tuple[TaskFamily, Truth]:
    """Linear regressions with Gaussian coefficients and noise: everything has a closed form.

        θ_i ~ N(θ₀, Σ₀),    y = xᵀ w_i + b_i + N(0, noise²),    θ_i = (w_i, b_i),    x ~ N(0, I)

    Args:
        tasks: how many.
        rows: per task, or (low, high).
        generator: the randomness.
        theta0: (dim,) θ₀, the weights and then the bias, as `torch.nn.Linear` has them.
        covariance: (dim, dim) Σ₀; may be singular.
        noise: sd of y around the line, in units of y.
        intercept: whether the last coordinate is a bias; without it there are dim features.
        device: of the family; by default the generator's.

    Returns:
        The family, with x (task, row, features) and y (task, row); its truth.

    Example:
        >>> family, truth = linear_gaussian(tasks=3, rows=5, generator=torch.Generator())
        >>> family.tensors["x"].shape, truth.names
        (torch.Size([3, 5, 1]), ('weight[0,0]', 'bias[0]'))
    """
    draw = Draw(tasks, rows, generator)
    truth, x = draw.regression(theta0, covariance, intercept, {"scale": noise})
    return draw.family(truth, noise_likelihood(noise), x, device=device)


def logistic(
    *,
    tasks: int,
    rows: Rows,
    generator: torch.Generator,
    theta0: Tensor | Sequence[float] = (1.0, -0.5),
    covariance: Tensor | Sequence[Sequence[float]] = ((0.5, 0.2), (0.2, 1.0)),
    trials: int | None = None,
    intercept: bool = True,
    device: Any = None,
) -> tuple[TaskFamily, Truth]:
    """Logistic regressions with Gaussian coefficients, binary or binomial.

        θ_i ~ N(θ₀, Σ₀),    logit P(success) = xᵀ w_i + b_i,    x ~ N(0, I)

    Args:
        tasks: how many.
        rows: per task, or (low, high).
        generator: the randomness.
        theta0: (dim,) θ₀ in log-odds, the weights and then the bias.
        covariance: (dim, dim) Σ₀.
        trials: of every row; None gives y ∈ {0, 1} and no trials.
        intercept: whether the last coordinate is a bias.
        device: of the family; by default the generator's.

    Returns:
        The family, with x, y and, if given, trials (task, row); its truth.
    """
    draw = Draw(tasks, rows, generator)
    truth, x = draw.regression(theta0, covariance, intercept)
    if trials is None:
        return draw.family(truth, Bernoulli(), x, device=device)
    if trials < 1:
        raise InputError(f"trials={trials!r}: a row needs at least one trial")
    each = torch.full(x.shape[:2], float(trials), dtype=F64)
    return draw.family(truth, Binomial(), x, device=device, trials=each)


def poisson(
    *,
    tasks: int,
    rows: Rows,
    generator: torch.Generator,
    theta0: Tensor | Sequence[float] = (0.3, 1.0),
    covariance: Tensor | Sequence[Sequence[float]] = ((0.1, 0.05), (0.05, 0.3)),
    exposure: tuple[float, float] | None = None,
    intercept: bool = True,
    device: Any = None,
) -> tuple[TaskFamily, Truth]:
    """Poisson regressions with Gaussian coefficients.

        θ_i ~ N(θ₀, Σ₀),    log E[y] = xᵀ w_i + b_i + log exposure,    x ~ N(0, I)

    Args:
        tasks: how many.
        rows: per task, or (low, high).
        generator: the randomness.
        theta0: (dim,) θ₀ in log counts, the weights and then the bias.
        covariance: (dim, dim) Σ₀.
        exposure: (low, high) of uniform exposures; None gives no offset.
        intercept: whether the last coordinate is a bias.
        device: of the family; by default the generator's.

    Returns:
        The family, with x, y and, if exposures are given, their logarithms as offset (task, row);
        its truth.
    """
    draw = Draw(tasks, rows, generator)
    truth, x = draw.regression(theta0, covariance, intercept)
    if exposure is None:
        return draw.family(truth, Poisson(), x, device=device)
    if not 0 < exposure[0] <= exposure[1] < math.inf:
        raise InputError(f"exposure={exposure!r}: give (low, high) with 0 < low ≤ high")
    offset = draw.uniform(*exposure)[..., 0].log()
    return draw.family(truth, Poisson(), x, device=device, offset=offset)
