"""What reviews of the random algorithms found wrong, each held by a test that failed before."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import bayesmeta as bm
from bayesmeta import methods as m
from bayesmeta.amortised import estimate

F64 = torch.float64


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class Root(nn.Module):
    """√(θ − x), which has no value where x is above θ."""

    def __init__(self):
        super().__init__()
        self.theta = nn.Parameter(torch.tensor([2.0], dtype=F64))

    def forward(self, x):
        return (self.theta - x[:, 0]).sqrt()


def test_runs_that_broke_are_flagged_where_they_stand_for_the_posterior():
    x = -torch.rand(3, 12, 1, generator=seeded(), dtype=F64) - 1
    x[0, 3] = 50.0
    y = 2 + 0.1 * torch.randn(3, 12, generator=seeded(1), dtype=F64)
    family, query = (bm.TaskFamily.from_tensors(x=v, y=y) for v in (x, x.clamp(max=-1)))
    model = bm.Model(Root(), bm.likelihoods.Gaussian(), adapt="theta")
    inner = m.GradientDescent(0.05, 1, rows=1)
    method = m.Method(m.Algorithmic(samples=200), inner, m.Unrolled(), m.Validation(None), steps=1)
    fit = bm.fit(model, family, query=query, method=method)
    assert [flag.task for flag in fit.flagged] == ["0"]
    assert [flag.task for flag in fit.adapt(family).flagged] == ["0"]


@pytest.mark.parametrize("last", range(7))
def test_a_cut_gives_nesterovs_momentum_no_derivative_of_its_own(last):
    """With hardly any step the right derivative is that of the identity, wherever the cut is."""
    model = bm.Model.from_energy(lambda t, c: 0.5 * (t - c).square().sum(), 1)
    family = bm.TaskFamily.from_tensors(c=torch.tensor([[3.0]], dtype=F64))
    prior = bm.Prior("point").at(mean=torch.zeros(1, dtype=F64), variance=0.0)
    inner = m.Nesterov(1e-6, 6, per="task", condition=9.0)
    method = m.Method(m.Algorithmic(), inner, m.Truncated(last), m.Validation(None))
    gradient = bm.meta_gradient(model, prior, family, method).theta0
    assert float(gradient) == pytest.approx(-3.0, rel=1e-4)


def test_the_evidence_of_random_points_has_the_whole_quadratic_term():
    """−M at β = 1, as everywhere, though the fit descended at β = 3."""
    y = torch.randn(4, 6, generator=seeded(), dtype=F64)
    family = bm.TaskFamily.from_tensors(x=torch.ones(4, 6, 1, dtype=F64), y=y)
    model = bm.Model(nn.Linear(1, 1, bias=False), bm.likelihoods.Gaussian(scale=1.0))
    prior = bm.Prior("isotropic", learn="none").at(mean=torch.zeros(1, dtype=F64), variance=1.0)
    inner = m.GradientDescent(0.2, 2, rows=3)
    fits = [
        bm.fit(model, family, prior=prior, seed=5, method=m.Method(
            m.Algorithmic(samples=50), inner, m.Direct(), m.Variational(beta), steps=1,
        ))
        for beta in (1.0, 3.0)
    ]  # fmt: skip
    assert torch.equal(fits[0].task_evidence, fits[1].task_evidence)


def test_all_runs_of_a_task_are_in_memory_only_with_those_of_few_others(monkeypatch):
    family, _ = bm.families.linear_gaussian(tasks=30, rows=4, generator=seeded())
    model = bm.Model(nn.Linear(1, 1), bm.likelihoods.Gaussian(scale=1.0))
    method = m.stochastic(rows=2, lr=0.1, support=None, outer_steps=1, samples=20)
    seen = []
    paths = estimate.MetaStep.noise

    def watched(self, support, *rest):
        seen.append(len(support))
        return paths(self, support, *rest)

    monkeypatch.setattr(estimate.MetaStep, "noise", watched)
    monkeypatch.setattr(estimate, "LARGEST", 20 * 7 * (4 + 4 + 2))
    fit = bm.fit(model, family, method=method)
    assert fit.posterior.draws.shape == (20, 30, 2)
    assert max(seen[1:]) == 7  # after the one outer step


def test_common_noise_that_the_split_or_the_batch_would_undo_is_refused():
    family, _ = bm.families.linear_gaussian(tasks=6, rows=6, generator=seeded())
    model = bm.Model(nn.Linear(1, 1), bm.likelihoods.Gaussian())
    for options in ({"support": 3}, {"support": None, "batch": 2}):
        method = m.stochastic(rows=2, noise="common", outer_steps=2, **options)
        with pytest.raises(bm.InputError, match='noise="common" needs the same M'):
            bm.fit(model, family, method=method)


def test_an_algorithm_named_twice_is_refused():
    with pytest.raises(bm.InputError, match="names one twice"):
        m.stochastic(algorithm="sgd+sgd", rows=None)


def test_a_bias_interval_is_not_empty_where_chance_made_the_difference_short():
    from bayesmeta.diagnostics.noisy_means import Sample, length

    a = torch.randn(50, 300, generator=seeded(7), dtype=F64)
    found = length(Sample.of(a - 0.999 * a.mean(0)), Sample.exact(torch.zeros(300, dtype=F64)))
    assert found.low == 0 and found.high > 0.1


def sinusoids(tasks=4, rows=10):
    family, _ = bm.families.sinusoid(tasks=tasks, rows=rows, generator=seeded())
    return family, bm.models.mlp((8,), family, bm.likelihoods.Gaussian())


def test_runs_that_diverge_are_flagged_though_their_numbers_are_finite():
    family, model = sinusoids()
    method = m.stochastic(lr=3.0, steps=15, rows=2, outer_steps=1, samples=20)
    fit = bm.fit(model, family, method=method)
    assert {flag.task for flag in fit.flagged} == set(family.names)
    assert all("diverged" in flag.why and "lower lr=" in flag.why for flag in fit.flagged)
    calm = bm.fit(model, family, method=m.stochastic(lr=0.01, rows=2, outer_steps=1, samples=20))
    assert calm.flagged == []


def test_draws_of_a_posterior_of_many_weights_have_not_diverged_from_its_mode():
    """F is 0 at the start and about 20 nats at its draws, whose slope is not 0 as it was there."""
    family = bm.TaskFamily.from_tensors(c=torch.zeros(3, 40, dtype=F64))
    model = bm.Model.from_energy(lambda t, c: 0.5 * (t - c).square().sum(), 40)
    inner = m.SGLD(0.1, 60, per="task")
    method = m.Method(m.Algorithmic(samples=30), inner, m.FirstOrder(), m.Validation(None), steps=1)
    prior = bm.Prior("point", learn="none").at(mean=torch.zeros(40, dtype=F64), variance=0.0)
    assert bm.fit(model, family, method=method, prior=prior).flagged == []
    wild = m.SGLD(2.2, 60, per="task")  # |1 − ε| > 1
    assert len(bm.fit(model, family, method=method.adapting_by(wild), prior=prior).flagged) == 3


def test_minibatches_that_hold_every_row_are_refused_before_the_fit():
    family, model = sinusoids()
    for method in (m.stochastic(rows=5), m.two_path(rows=20, support=None)):
        with pytest.raises(bm.InputError, match="all runs end in the same place: lower rows="):
            bm.fit(model, family, method=method)


def test_a_singular_prior_is_refused_as_an_anchor():
    family, _ = bm.families.linear_gaussian(tasks=5, rows=6, generator=seeded())
    model = bm.Model(nn.Linear(1, 1), bm.likelihoods.Gaussian())
    flat = torch.tensor([[1.0, 1.0], [1.0, 1.0]], dtype=F64)
    prior = bm.Prior("full", learn="none").at(mean=torch.zeros(2, dtype=F64), covariance=flat)
    langevin = m.stochastic(algorithm="sgld", anchored=True)
    for method in (langevin, m.imaml()):
        with pytest.raises(bm.InputError, match="Σ₀ is singular"):
            bm.fit(model, family, method=method, prior=prior)
    fit = bm.fit(model, family, prior=prior)
    with pytest.raises(bm.InputError, match="Σ₀ is singular"):
        fit.adapt(family, method=langevin)


def test_a_fitted_start_is_adapted_by_other_algorithms():
    family, model = sinusoids(tasks=6)
    fit = bm.fit(model, family, method=m.two_path(lr=0.05, rows=2, outer_steps=3, samples=10))
    alone = bm.fit(model, family, method=m.maml(lr=0.05, steps=5, outer_steps=3))
    for algorithm, runs in ((m.Adam(0.01, 4, rows=3), 10), (m.GradientDescent(0.05, 3), None)):
        new = fit.adapt(family, algorithm=algorithm)
        assert new.choices.inner == algorithm and torch.equal(new.prior.mean, fit.prior.mean)
        assert (new.posterior.draws is None) == (runs is None)
        assert runs is None or new.posterior.draws.shape[0] == runs
    assert alone.adapt(family, algorithm=m.GradientDescent(0.05, 5)).posterior.mean.equal(
        alone.adapt(family).posterior.mean
    )
    free = bm.fit(model, family, method=m.joint(covariance="diagonal", steps=3))
    with pytest.raises(bm.InputError, match="free Q_i are not adapted"):
        free.adapt(family, algorithm=m.Adam())
    other = free.adapt(family, method=m.stochastic(rows=2, samples=7))
    assert other.posterior.draws.shape[0] == 7 and other.prior.mean.equal(free.prior.mean)


def test_numbers_beside_an_algorithm_object_are_refused():
    with pytest.raises(bm.InputError, match="lr= is for an algorithm by name"):
        m.stochastic(algorithm=m.Adam(0.02, 5, rows=3), lr=1.0)


def test_an_algorithm_of_ones_own_needs_only_the_attribute_rows_to_be_random():
    class Plain:
        steps, tolerance, differentiable, rows = 3, 0.0, True, 2

        def init(self, problem, theta):
            return ()

        def step(self, problem, theta, gradient, state):
            return theta - 0.01 * gradient / problem.rows, state

    family, _ = bm.families.linear_gaussian(tasks=3, rows=6, generator=seeded())
    model = bm.Model(nn.Linear(1, 1), bm.likelihoods.Gaussian(scale=1.0))
    own, ours = (
        bm.fit(model, family, method=m.stochastic(algorithm=algorithm, outer_steps=1, samples=9))
        for algorithm in (Plain(), m.GradientDescent(0.005, 3, rows=2))  # 2σ² of the papers' lr
    )
    assert torch.allclose(own.posterior.draws, ours.posterior.draws)


def test_a_task_without_rows_for_a_query_set_has_its_unknown_evidence_explained():
    family, model = sinusoids()
    fit = bm.fit(model, family, method=m.stochastic(rows=2, support=6, outer_steps=1, samples=5))
    short, _ = bm.families.sinusoid(tasks=2, rows=6, generator=seeded())
    (note,) = fit.adapt(short).notes
    assert "2 of 2 tasks have no rows left for a query set" in note
