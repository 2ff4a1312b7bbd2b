"""What every form of posterior says of the same tasks: weights, functionals, and one more row."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import bayesmeta as bm
from bayesmeta.methods import Method
from studies.calibration.exact import Exact
from studies.calibration.problem import (
    EXACT,
    F64,
    NOISE,
    PLANTED,
    TOO_NARROW,
    Case,
    Tasks,
    held,
)

LEVELS = (0.5, 0.8, 0.95)


@dataclass(frozen=True, eq=False)
class Form:
    """What one form of posterior says of every task.

    Args:
        draws: (draw, task, probe) of weights and functionals; None of a point.
        sd: (task, probe).
        ends: of its central intervals by level, (task, probe) each; empty where unknown.
        new: (draw, task) of y in the new row; None where y is 0 or 1.
        new_ends: of the intervals of y, (task,) each.
        said: (task,) p(y) of the y that came, where y is 0 or 1.
        flagged: number of tasks that the library warns of.
    """

    draws: Tensor | None
    sd: Tensor | None = None
    ends: dict[float, tuple[Tensor, Tensor]] = field(default_factory=dict)
    new: Tensor | None = None
    new_ends: dict[float, tuple[Tensor, Tensor]] = field(default_factory=dict)
    said: Tensor | None = None
    flagged: int = 0


def exact_forms(
    case: Case, tasks: Tasks, reference: Exact, generator: torch.Generator
) -> dict[str, Form]:
    """The exact posterior, and the one with a planted error."""
    _, probes = case.probes(tasks.truth)
    draws, sd, mean = reference.draws, reference.sd(probes), reference.mean
    narrow = mean + TOO_NARROW * (draws - mean)
    centre = mean @ probes.mT
    return {
        name: Form(
            theta @ probes.mT,
            share * sd,
            central(centre, share * sd) if case.linear else {},
            **_predicted(case, tasks, theta, generator),
        )
        for name, theta, share in ((EXACT, draws, 1.0), (PLANTED, narrow, TOO_NARROW))
    }


def fitted_form(
    case: Case,
    tasks: Tasks,
    method: Method,
    draws: int,
    generator: torch.Generator,
    device: str,
) -> Form:
    """What the library makes of the tasks under the true prior."""
    family = tasks.support.to(device=device)
    fit = bm.fit(case.model(), family, method=method, prior=held(tasks.truth))
    prediction = fit.predict(tasks.query.to(device=device), draws=draws, seed=1)
    posterior = fit.posterior.gaussian
    assert isinstance(posterior, bm.Gaussian)
    posterior = posterior.map(Tensor.cpu)
    new: dict[str, Any] = {}
    if case.likelihood == "bernoulli":
        new["said"] = prediction.log_score().exp().cpu()
    else:
        new["new"] = spread_out(case, prediction.draws[..., 0].cpu(), generator)
    if case.linear:
        new["new_ends"] = _new_ends(tasks, posterior.mean, posterior.covariance())
    new["flagged"] = len(fit.flagged)
    if posterior.is_point:
        return Form(None, **new)
    law = posterior.linear(case.probes(tasks.truth)[1])
    return Form(law.sample(draws, generator), law.sd(), central(law.mean, law.sd()), **new)


def central(mean: Tensor, sd: Tensor) -> dict[float, tuple[Tensor, Tensor]]:
    """Ends of the central interval of a normal law, by level."""
    ends = {}
    for level in LEVELS:
        reach = math.sqrt(2) * float(torch.erfinv(torch.tensor(level, dtype=F64))) * sd
        ends[level] = (mean - reach, mean + reach)
    return ends


def _predicted(
    case: Case, tasks: Tasks, theta: Tensor, generator: torch.Generator
) -> dict[str, Any]:
    """The new row, from draws of θ (draw, task, dim) that the library has not made."""
    rows, curve = tasks.query.tensors, tasks.truth.curve
    likelihood = case.model().likelihood
    assert likelihood is not None
    assert curve is not None
    eta = curve(theta, rows["x"])
    if case.likelihood == "bernoulli":
        return {"said": likelihood.log_prob(eta, rows["y"])[..., 0].exp().mean(0).detach()}
    y = likelihood.sample(eta, generator)[..., 0].detach()
    return {"new": spread_out(case, y, generator)}


def spread_out(case: Case, y: Tensor, generator: torch.Generator) -> Tensor:
    """Counts made continuous, so that intervals of every level exist."""
    if case.likelihood != "poisson":
        return y
    return y + torch.rand(y.shape, generator=generator, dtype=y.dtype)


def _new_ends(tasks: Tasks, mean: Tensor, covariance: Tensor) -> dict[float, tuple[Tensor, Tensor]]:
    """Intervals of y in the new row of a linear regression, for θ ~ N(mean, covariance)."""
    centre, sd = new_moments(tasks, mean, covariance)
    return central(centre, sd)


def new_moments(tasks: Tasks, mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and sd (task,) of xᵀθ + noise."""
    x = tasks.query.tensors["x"][:, 0]
    variance = torch.einsum("ti,tij,tj->t", x, covariance, x) + NOISE**2
    return (x * mean).sum(-1), variance.sqrt()
