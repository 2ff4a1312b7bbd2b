"""Families whose tasks are drawn from a prior that is known, and the forms of posterior to check.

Held at the truth the prior makes the exact posterior calibrated by construction: what misses its
level is the form.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

import bayesmeta as bm
from bayesmeta.families.draws import Truth
from bayesmeta.methods import (
    Implicit,
    Method,
    Newton,
    Proximal,
    Variational,
    joint,
    laplace,
)

F64 = torch.float64
NOISE = 0.5
WEIGHTS = 4
CURVATURE = "ggn"

EXACT = "exact"
PLANTED = "exact, sd × 0.9"
TOO_NARROW = 0.9
POINT = "point"
FORMS: dict[str, Method] = {
    "best Gaussian": joint(covariance="full"),
    "best diagonal": joint(covariance="diagonal"),
    "Laplace": laplace(),
    "Laplace, diagonal": laplace(covariance="diagonal"),
    "Laplace, rank 1": Method(
        Proximal("lowrank(1)", CURVATURE), Newton(), Implicit("cholesky"), Variational()
    ),
    POINT: joint(covariance="point"),
}
RANK_ONE = "Laplace, rank 1"
DRAWN = {"solver": "gradient", "noise": "common", "draws": 32, "steps": 1000}
"""For expectations without a closed form: the same 32 draws of each Q_i at every step."""


@dataclass(frozen=True, eq=False)
class Tasks:
    """Tasks of one family.

    Args:
        support: the rows that are adapted to.
        query: one more row of each task.
        truth: what they were drawn from.
    """

    support: bm.TaskFamily
    query: bm.TaskFamily
    truth: Truth


@dataclass(frozen=True)
class Case:
    """One family.

    Args:
        name: as figures and table have it.
        draw: of so many tasks with so many rows.
        model: whose weights have the posterior.
        functionals: of θ, beside the weights themselves, by name.
        linear: whether the exact posterior is Gaussian.
        drawn: whether an expectation over θ has no closed form.
        share: of the tasks of other families that this one can afford.
    """

    name: str
    draw: Callable[[int, int, torch.Generator], tuple[bm.TaskFamily, Truth]]
    model: Callable[[], bm.Model]
    functionals: dict[str, tuple[float, ...]]
    linear: bool = False
    drawn: bool = False
    share: float = 1.0

    def tasks(self, number: int, rows: int, seed: int) -> Tasks:
        """So many, each with so many rows and one more to be predicted."""
        generator = torch.Generator().manual_seed(seed)
        family, truth = self.draw(number, rows + 1, generator)
        support, query = family.split(rows, generator)
        return Tasks(support, query, truth)

    @property
    def likelihood(self) -> str:
        """Its name."""
        return self.model().require_likelihood().name

    def methods(self) -> dict[str, Method]:
        """The forms that differ here: of two weights, one direction says little."""
        forms = {name: form for name, form in FORMS.items() if self.linear or name != RANK_ONE}
        if not self.drawn:
            return forms
        best = {name: replace(forms[name], **DRAWN) for name in ("best Gaussian", "best diagonal")}
        return forms | best

    def probes(self, truth: Truth) -> tuple[tuple[str, ...], Tensor]:
        """Names, and the matrix that takes θ to its weights and the functionals."""
        eye = torch.eye(len(truth.names), dtype=F64)
        more = [torch.tensor(weights, dtype=F64)[None] for weights in self.functionals.values()]
        return (*truth.names, *self.functionals), torch.cat([eye, *more])


def held(truth: Truth) -> bm.Prior:
    """N(θ₀, Σ₀) as the tasks are drawn, held; isotropic where it is so."""
    first = truth.covariance[0, 0]
    if torch.equal(truth.covariance, first * torch.eye(len(truth.theta0), dtype=F64)):
        return bm.Prior("isotropic", learn="none").at(mean=truth.theta0, variance=float(first))
    return bm.Prior("full", learn="none").at(mean=truth.theta0, covariance=truth.covariance)


def correlated(
    correlation: float, tasks: int, rows: int, generator: torch.Generator
) -> tuple[bm.TaskFamily, Truth]:
    """Regressions on features with this correlation between any two, and θ ~ N(0, I).

    x with covariance I becomes x R with RᵀR the correlation matrix, and θ becomes R⁻¹ θ.
    """
    matrix = torch.full((WEIGHTS, WEIGHTS), correlation, dtype=F64).fill_diagonal_(1.0)
    R = torch.linalg.cholesky(matrix).mT
    family, truth = bm.families.linear_gaussian(
        tasks=tasks,
        rows=rows,
        generator=generator,
        theta0=torch.zeros(WEIGHTS, dtype=F64),
        covariance=R @ R.mT,
        noise=NOISE,
        intercept=False,
    )
    theta = torch.linalg.solve(R, truth.theta.mT).mT
    changed = replace(truth, theta=theta, covariance=torch.eye(WEIGHTS, dtype=F64))
    tensors = {"x": family.tensors["x"] @ R, "y": family.tensors["y"]}
    return bm.TaskFamily.from_tensors(**tensors), changed


def waves(tasks: int, rows: int, generator: torch.Generator) -> tuple[bm.TaskFamily, Truth]:
    """The sinusoids of MAML with noise, amplitude and phase Gaussian with the same moments."""
    family, truth = bm.families.sinusoid(tasks=tasks, rows=rows, generator=generator)
    away = torch.randn(tasks, 2, generator=generator, dtype=F64)
    theta = truth.theta0 + truth.covariance.diagonal().sqrt() * away
    assert truth.curve is not None
    x = family.tensors["x"]
    noise = NOISE * torch.randn(tasks, rows, generator=generator, dtype=F64)
    family = bm.TaskFamily.from_tensors(x=x, y=truth.curve(theta, x) + noise)
    return family, replace(truth, theta=theta, gaussian=True)


class Wave(nn.Module):
    """A sin(x − φ), started at the prior's mean."""

    def __init__(self) -> None:
        super().__init__()
        self.amplitude = nn.Parameter(torch.tensor([2.55], dtype=F64))
        self.phase = nn.Parameter(torch.tensor([0.5 * math.pi], dtype=F64))

    def forward(self, x: Tensor) -> Tensor:
        return self.amplitude * torch.sin(x[..., 0] - self.phase)


def regression(family: Any, theta0: tuple[float, float], variance: float) -> Any:
    """Draws of a family of regressions with one feature and independent weights."""
    covariance = ((variance, 0.0), (0.0, variance))
    return lambda tasks, rows, generator: family(
        tasks=tasks, rows=rows, generator=generator, theta0=theta0, covariance=covariance
    )


def linear_model(features: int, likelihood: Any, bias: bool = True) -> Callable[[], bm.Model]:
    """Maker of a linear predictor."""
    return lambda: bm.Model(nn.Linear(features, 1, bias=bias).double(), likelihood)


def _independent(tasks: int, rows: int, generator: torch.Generator) -> Any:
    return correlated(0.0, tasks, rows, generator)


def _alike(tasks: int, rows: int, generator: torch.Generator) -> Any:
    return correlated(0.9, tasks, rows, generator)


_MANY = {"sum": (1.0,) * WEIGHTS, "difference": (1.0, -1.0) + (0.0,) * (WEIGHTS - 2)}
_TWO = {"sum": (1.0, 1.0), "difference": (1.0, -1.0)}
_GAUSSIAN = linear_model(WEIGHTS, bm.likelihoods.Gaussian(scale=NOISE), bias=False)
_BINARY = linear_model(1, bm.likelihoods.Bernoulli())

CASES = (
    Case("linear, ρ = 0", _independent, _GAUSSIAN, _MANY, linear=True),
    Case("linear, ρ = 0.9", _alike, _GAUSSIAN, _MANY, linear=True),
    Case("logistic", regression(bm.families.logistic, (1.0, 0.0), 4.0), _BINARY, _TWO),
    Case("logistic, vague", regression(bm.families.logistic, (0.0, 0.0), 25.0), _BINARY, _TWO),
    Case("logistic, rare", regression(bm.families.logistic, (1.0, -3.0), 4.0), _BINARY, _TWO),
    Case(
        "Poisson",
        regression(bm.families.poisson, (0.3, 0.0), 1.0),
        linear_model(1, bm.likelihoods.Poisson()),
        _TWO,
    ),
    Case(
        "sinusoid",
        waves,
        lambda: bm.Model(Wave(), bm.likelihoods.Gaussian(scale=NOISE)),
        {},
        drawn=True,
        share=0.4,
    ),
)
