"""Coverage of posteriors whose prior is fitted to few tasks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import bayesmeta as bm
from bayesmeta.diagnostics import coverage
from bayesmeta.methods import Method, joint, laplace
from studies.calibration import exact
from studies.calibration.forms import LEVELS, central
from studies.calibration.measure import Row
from studies.calibration.problem import (
    F64,
    NOISE,
    Case,
    Tasks,
    held,
    linear_model,
    regression,
)

TRUE_PRIOR = "true prior"
LIKELIHOOD = "maximum likelihood"
RESTRICTED = "restricted likelihood"
LAPLACE, QUADRATURE = "Laplace evidence", "quadrature, 7 points"
AVOIDING = "boundary-avoiding"
OWN, NEW = "own tasks", "new tasks"


@dataclass(frozen=True)
class Recipe:
    """How a prior is come by.

    Args:
        method: of the fit, and of every Q_i.
        hyperprior: of Σ₀.
        held: whether the prior is the true one.
        reml: restricted maximum likelihood.
    """

    method: Method
    hyperprior: str | None = None
    held: bool = False
    reml: bool = False

    def fit(self, case: Case, tasks: Tasks, device: str) -> bm.Fit:
        """Prior and posteriors of the tasks."""
        prior = held(tasks.truth) if self.held else bm.Prior("full", hyperprior=self.hyperprior)
        family = tasks.support.to(device=device)
        return bm.fit(case.model(), family, method=self.method, prior=prior, reml=self.reml)


@dataclass(frozen=True)
class Setting:
    """A family, and the ways to its prior.

    Args:
        case: whose tasks.
        rows: of each.
        recipes: by name.
    """

    case: Case
    rows: int
    recipes: dict[str, Recipe]


LINEAR = Setting(
    Case(
        "linear",
        lambda tasks, rows, generator: bm.families.linear_gaussian(
            tasks=tasks, rows=rows, generator=generator, noise=NOISE
        ),
        linear_model(1, bm.likelihoods.Gaussian(scale=NOISE)),
        {},
        linear=True,
    ),
    rows=3,
    recipes={
        TRUE_PRIOR: Recipe(joint(), held=True),
        LIKELIHOOD: Recipe(joint()),
        RESTRICTED: Recipe(joint(), reml=True),
        AVOIDING: Recipe(joint(), "boundary-avoiding"),
    },
)
LOGISTIC = Setting(
    Case(
        "logistic",
        regression(bm.families.logistic, (1.0, 0.0), 1.0),
        linear_model(1, bm.likelihoods.Bernoulli()),
        {},
    ),
    rows=10,
    recipes={
        TRUE_PRIOR: Recipe(laplace(), held=True),
        LAPLACE: Recipe(laplace()),
        QUADRATURE: Recipe(laplace(points=7)),
        AVOIDING: Recipe(laplace(points=7), "boundary-avoiding"),
    },
)


@dataclass(frozen=True)
class Size:
    """How much is computed.

    Args:
        fits: by number of tasks, of linear and of logistic regressions.
        new: unseen tasks of every fit.
        draws: of every posterior.
    """

    fits: dict[int, tuple[int, int]] = field(
        default_factory=lambda: {5: (120, 60), 10: (80, 40), 30: (40, 25), 100: (20, 15)}
    )
    new: int = 20
    draws: int = 399


def fitted(size: Size, device: str) -> Iterator[Row]:
    """Rows of part "fitted": one for each recipe, number of tasks, and level."""
    for place, setting in enumerate((LINEAR, LOGISTIC)):
        case, rows = setting.case, setting.rows
        for number, repeats in size.fits.items():
            seen: dict[tuple[str, str], list[Found]] = {}
            for repeat in range(repeats[place]):
                seed = 1_000_000 * place + 10_000 * number + 2 * repeat
                own = case.tasks(number, rows, seed)
                new = case.tasks(size.new, rows, seed + 1)
                for name, recipe in setting.recipes.items():
                    fit = recipe.fit(case, own, device)
                    adapted = fit.adapt(new.support.to(device=device))
                    for data, tasks, one in ((OWN, own, fit), (NEW, new, adapted)):
                        found = _found(case, tasks, one.posterior, size.draws, repeat)
                        seen.setdefault((name, data), []).append(found)
            for (name, data), found in seen.items():
                common = {"part": "fitted", "family": case.name, "rows": rows, "form": name,
                          "data": data, "quantity": "weights", "tasks": number}  # fmt: skip
                judged = len(found) * (number if data == OWN else size.new)
                for row in _levels(found, seen[TRUE_PRIOR, data]):
                    yield common | {"fits": len(found), "judged": judged} | row


@dataclass(frozen=True, eq=False)
class Found:
    """Of the posteriors of one fit.

    Args:
        shares: (level,) of the weights inside their intervals.
        predicted: (level,) the same by the exact posteriors, which know the true prior.
        sd: mean over weights and tasks.
    """

    shares: Tensor
    predicted: Tensor
    sd: float


def _found(case: Case, tasks: Tasks, posterior: Any, draws: int, seed: int) -> Found:
    drawn = posterior.sample(draws, torch.Generator().manual_seed(seed)).cpu()
    shares = coverage(drawn, tasks.truth.theta, levels=LEVELS).double()
    mean, sd = posterior.mean.cpu(), posterior.sd().cpu()
    predicted = torch.full_like(shares, torch.nan)
    if case.linear:
        right = exact.closed_form(tasks, 1, torch.Generator().manual_seed(seed))
        eye = torch.eye(mean.shape[-1], dtype=F64)
        ends = central(mean, sd).values()
        predicted = torch.stack([right.inside(eye, *pair).mean() for pair in ends])
    return Found(shares, predicted, float(sd.mean()))


def _levels(found: list[Found], right: list[Found]) -> Iterator[Row]:
    """Means over fits, whose spread says how well they are known: tasks of a fit share a prior."""
    shares = torch.stack([one.shares for one in found])
    predicted = torch.stack([one.predicted for one in found]).mean(0).tolist()
    ratio = sum(one.sd for one in found) / sum(one.sd for one in right)
    for column, level in enumerate(LEVELS):
        yield {
            "level": level,
            "nominal": level,
            "coverage": float(shares[:, column].mean()),
            "coverage_se": float(shares[:, column].std()) / len(found) ** 0.5,
            "predicted": predicted[column],
            "sd_ratio": ratio,
        }
