"""The ends of Langevin runs under a held prior are posterior draws: beside Pyro's NUTS."""

from __future__ import annotations

import pytest
import torch

import bayesmeta as bm

F64 = torch.float64
STEP, STEPS, RUNS = 0.02, 300, 4000


@pytest.fixture(scope="module")
def reference():
    """Two logistic tasks of twelve rows under N(0, 1), and NUTS' draws of their intercepts."""
    y = torch.zeros(2, 12, dtype=F64)
    y[0, :10], y[1, :3] = 1, 1
    family = bm.TaskFamily.from_tensors(x=torch.zeros(2, 12, 0, dtype=F64), y=y)
    model = bm.Model(Intercept(), bm.likelihoods.Bernoulli())
    prior = bm.Prior("isotropic", learn="none").at(mean=0.0, variance=1.0)
    fit = bm.fit(model, family, prior=prior)
    return model, family, prior, bm.nuts(fit, draws=600, warmup=150, chains=2)


class Intercept(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.level = torch.nn.Parameter(torch.zeros(1, dtype=F64))

    def forward(self, x):
        return self.level.expand(len(x))


def ends(model, family, prior, temperature=1.0, **options):
    m = bm.methods
    algorithm = m.SGLD(STEP, STEPS, per="task", temperature=temperature, **options)
    posterior = m.Algorithmic(anchored=True, samples=RUNS)
    method = m.Method(posterior, algorithm, m.FirstOrder(), m.Validation(None))
    return bm.fit(model, family, method=method, prior=prior)


def errors(fit, nuts):
    """Of means in sds and of sds, over their Monte Carlo errors and the bias of a finite step.

    Without minibatches the chain's variance is 1 / (A − εA²/2) for a posterior of precision A: its
    sd is too large by εA/4, which is left out of what may differ by chance.
    """
    sd = nuts.sd
    chance = (nuts.mcse.square() + sd.square() / RUNS).sqrt()
    too_large = 1 + STEP / (4 * sd.square())
    ratio = fit.posterior.sd() / (sd * too_large) - 1
    # An sd of n draws has a relative error of 1/√(2n).
    relative = (0.5 / RUNS + 0.5 * (nuts.mcse / sd).square()).sqrt()
    return ((fit.posterior.mean - nuts.mean) / chance).abs(), ratio.abs() / relative


def test_the_ends_of_langevin_runs_have_the_moments_of_nuts(reference):
    *setting, nuts = reference
    assert nuts.problems() == []
    mean, sd = errors(ends(*setting), nuts)
    assert mean.max() < 4 and sd.max() < 4, (mean, sd)


@pytest.mark.parametrize("temperature", [0.7, 1.4])
def test_another_temperature_is_found_out(reference, temperature):
    *setting, nuts = reference
    assert errors(ends(*setting, temperature=temperature), nuts)[1].min() > 4


def test_rows_drawn_independently_add_noise_and_rows_in_passes_hardly_any(reference):
    """Independent minibatches widen by ε/4 of the variance of their gradient; passes cancel it."""
    *setting, _ = reference
    y = setting[1].tensors["y"]
    theta = torch.linspace(-8, 8, 4001, dtype=F64)
    log = y.sum(1)[:, None] * theta - 12 * torch.nn.functional.softplus(theta) - theta.square() / 2
    weight = torch.softmax(log, -1)
    mean, square = (weight * theta).sum(-1), (weight * theta.square()).sum(-1)
    sd = (square - mean.square()).sqrt()
    of_rows = y.mean(1) * (1 - y.mean(1))  # variance of a row's gradient, which is σ(θ) − y
    wider = STEP / 4 * 12**2 / 2 * of_rows  # n²/b of it
    error = 4 / (2 * RUNS) ** 0.5
    drawn = ends(*setting, rows=2, replacement=True).posterior.sd()[:, 0] / sd
    passes = ends(*setting, rows=2).posterior.sd()[:, 0] / sd
    whole = 1 + STEP / (4 * sd.square())
    assert ((drawn / whole - 1 - wider).abs() < error).all()
    assert ((passes / whole - 1).abs() < error).all()
    assert (drawn > passes).all()


def test_draws_go_to_arviz_as_they_are(reference):
    *setting, _ = reference
    fit = ends(*setting)
    exported = fit.to_arviz(draws=RUNS).posterior["theta"].values[0]
    assert sorted(exported[:, 0, 0]) == sorted(fit.posterior.draws[:, 0, 0].tolist())
