from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

import bayesmeta as bm
from bayesmeta import diagnostics, likelihoods
from bayesmeta.diagnostics import (
    calibration_mean_absolute,
    calibration_rmse,
    check,
    coverage,
    expected_calibration_error,
    khat,
    predictive_nll,
    rank_uniformity,
    sbc_ranks,
    trace_convergence,
)
from bayesmeta.fitted import Fit, Named
from bayesmeta.results import InputError

# Traces


def autoregression(steps: int, rho: float, seed: int) -> np.ndarray:
    """Noise of variance 1 and correlation rho from step to step."""
    noise = np.random.default_rng(seed).standard_normal(steps)
    for t in range(1, steps):
        noise[t] = rho * noise[t - 1] + math.sqrt(1 - rho**2) * noise[t]
    return noise


def descent(steps: int) -> np.ndarray:
    return 1000 * np.exp(-np.arange(steps) / 30)


@pytest.mark.parametrize("rho", [0.0, 0.9])
def test_a_noisy_trace_at_rest_is_flat_nearly_always(rho):
    verdicts = [
        trace_convergence(descent(1000) + 5 * autoregression(1000, rho, seed)).verdict
        for seed in range(200)
    ]
    assert verdicts.count("flat") >= 196


@pytest.mark.parametrize(("slope", "verdict"), [(-0.02, "falling"), (0.02, "rising")])
def test_a_drift_of_ten_nats_under_noise_of_five_is_found(slope, verdict):
    found = [
        trace_convergence(
            descent(1000) + slope * np.arange(1000) + 5 * autoregression(1000, 0.5, seed)
        )
        for seed in range(20)
    ]
    assert [f.verdict for f in found].count(verdict) >= 18
    assert np.mean([f.drift for f in found]) == pytest.approx(500 * slope, rel=0.1)
    assert np.mean([f.drift_error for f in found]) == pytest.approx(
        np.std([f.drift for f in found], ddof=1), rel=0.5
    )
    assert ": " in found[0].sentence
    assert not found[0].converged


def test_a_drift_too_small_to_matter_is_flat_however_certain():
    trace = 0.05 * np.linspace(1, 0, 1000) + 1e-6 * autoregression(1000, 0.0, 0)
    found = trace_convergence(trace)
    assert found.t < -100
    assert found.converged


@pytest.mark.parametrize(
    ("trace", "verdict"),
    [
        (1e3 * 0.5 ** np.arange(40.0), "flat"),  # a quasi-Newton solver's
        (1e3 * 0.99 ** np.arange(40.0), "falling"),
        (np.full(30, 7.0), "flat"),
        ([5.0, 5.0], "too short"),
        ([], "too short"),
        (autoregression(30, 0.0, 0), "too short"),
        ([1.0, 2.0] + [math.nan] * 50, "not finite"),
        (np.where(np.arange(1000) % 10, autoregression(1000, 0.0, 0), np.nan), "flat"),
    ],
)
def test_verdicts_of_smooth_short_and_broken_traces(trace, verdict):
    found = trace_convergence(trace)
    assert found.verdict == verdict
    assert verdict in found.sentence


def test_the_share_of_the_tail_is_checked():
    with pytest.raises(InputError, match="between 0 and 1"):
        trace_convergence([1.0, 2.0], tail=0.0)


# Pareto k-hat and check()


@pytest.fixture(scope="module")
def exact() -> Fit:
    generator = torch.Generator().manual_seed(0)
    x = torch.linspace(-1, 1, 6, dtype=torch.float64).expand(12, 6)
    theta = torch.randn(12, 2, generator=generator, dtype=torch.float64)
    noise = torch.randn(12, 6, generator=generator, dtype=torch.float64)
    family = bm.TaskFamily.from_tensors(
        x=x.unsqueeze(-1), y=theta[:, :1] + 2 * theta[:, 1:] * x + 0.5 * noise
    )
    return bm.fit(bm.Model(torch.nn.Linear(1, 1), likelihoods.Gaussian()), family)


def with_sd(fit: Fit, factor: float) -> Fit:
    """The same fit with all sds of its Q_i multiplied."""
    wrong = dataclasses.replace(
        fit.posterior.gaussian, factor=factor * fit.posterior.gaussian.factor
    )
    return dataclasses.replace(
        fit, posterior=Named(fit.posterior.names, wrong, fit.posterior.tasks)
    )


def test_khat_of_an_exact_a_too_wide_and_a_too_narrow_posterior(exact):
    right = khat(exact)
    assert (right.k == 0).all()
    assert right.efficiency == pytest.approx(1.0)
    wide = khat(with_sd(exact, 1.5))
    assert (wide.k < 0.5).all()
    assert right.flags == wide.flags == []
    # p/q for p = N(0, 1), q = N(0, s²) has a tail of index 1 − s².
    narrow = khat(with_sd(exact, 0.3), draws=20_000)
    assert np.abs(narrow.k - (1 - 0.3**2)).max() < 0.2
    assert narrow.wrong.all()
    assert [f.task for f in narrow.flags] == list(exact.posterior.tasks)
    assert "above 0.7: Q_i is narrower" in narrow.flags[0].why
    assert "bm.nuts(fit, task='0')" in narrow.flags[0].why


def test_the_efficiency_is_that_of_a_normal_distribution(exact):
    # E[r]² / E[r²] = (2 / s² − 1 / s⁴)^½ per weight for q wider than p by s.
    s = 1.5
    assert khat(with_sd(exact, s)).efficiency == pytest.approx(2 / s**2 - 1 / s**4, abs=0.05)


def test_a_tail_that_holds_nothing_is_told_from_a_wrong_posterior():
    even, uneven, unknown = (
        diagnostics.Khat(("a",), np.array([k]), np.array([efficiency]))
        for k, efficiency in ((2.3, 0.99), (2.3, 0.5), (np.nan, np.nan))
    )
    assert even.large.all()
    assert not even.wrong.any()
    assert "efficiency of 99.0%" in even.flags[0].why
    assert uneven.wrong.all()
    assert unknown.wrong.all()


def test_a_large_network_is_neither_audited_nor_given_a_khat(monkeypatch):
    """Both would take hours of a network of images, and k̂ would say nothing of it."""
    generator = torch.Generator().manual_seed(0)
    x, noise = torch.randn(2, 2, 6, 3, generator=generator)
    family = bm.TaskFamily.from_tensors(x=x, y=noise[..., 0])
    model = bm.models.mlp([8], family, likelihoods.Gaussian())
    method = bm.methods.variational_imaml(lam=1.0, covariance="diagonal", outer_steps=2)
    fit = bm.fit(model, family, method=method)
    said = {finding.check: finding.sentence for finding in check(fit, draws=500)}
    assert "audit of 2 tasks" in said["meta_gradient"]
    assert said["pareto_k"].startswith("Pareto k̂ is")
    for module in ("checks", "meta_gradients"):
        monkeypatch.setattr(f"bayesmeta.diagnostics.{module}.FEW_WEIGHTS", model.dim - 1)
    said = {finding.check: finding.sentence for finding in check(fit)}
    assert "not audited" in said["meta_gradient"]
    assert said["pareto_k"].startswith("Pareto k̂ was not computed")


def test_a_skewed_posterior_whose_moments_are_right_is_no_alarm():
    # Binomial rows: the log posterior is nearly quadratic, its far left tail is the prior's.
    generator = torch.Generator().manual_seed(0)
    trials = torch.full((10, 4), 15.0).double()
    logit = -1 + 0.7 * torch.randn(10, 1, generator=generator).double()
    y = torch.binomial(trials, logit.sigmoid().expand(10, 4), generator=generator)
    family = bm.TaskFamily.from_tensors(x=torch.ones(10, 4, 1).double(), y=y, trials=trials)
    model = bm.Model(torch.nn.Linear(1, 1, bias=False), likelihoods.Binomial())
    fit = bm.fit(model, family)
    (found,) = [f for f in check(fit) if f.check == "pareto_k"]
    assert found.ok
    assert "above 0.7" in found.sentence and not found.flags
    assert "only the far tails" in found.sentence


def test_khat_does_not_depend_on_the_size_of_its_blocks(exact, monkeypatch):
    wrong = with_sd(exact, 0.5)
    whole = khat(wrong, draws=500)
    monkeypatch.setattr(diagnostics.convergence, "LARGEST_RATIO_BLOCK", 12 * 6 * 100)
    np.testing.assert_allclose(khat(wrong, draws=500).k, whole.k, atol=0.5)


def test_points_have_no_khat(exact):
    point = bm.Gaussian(exact.posterior.mean)
    fit = dataclasses.replace(exact, posterior=Named(exact.prior.names, point, exact.family.names))
    with pytest.raises(InputError, match="point posteriors"):
        khat(fit)
    assert [f.check for f in check(fit)] == ["trace", "tasks", "data", "boundary"]


def test_a_sound_fit_passes_every_check(exact):
    found = check(exact)
    assert [f.check for f in found] == ["trace", "pareto_k", "tasks", "data", "boundary"]
    assert all(f.ok and not f.flags for f in found), found


def test_planted_faults_are_found_one_by_one(exact):
    faults = {
        "trace": dataclasses.replace(exact, trace=[100.0 - i for i in range(60)]),
        "pareto_k": with_sd(exact, 0.2),
        "tasks": dataclasses.replace(
            exact, flagged=[bm.results.Flag("3", "stopped"), bm.results.Flag("5", "stopped")]
        ),
    }
    for name, fit in faults.items():
        wrong = [f for f in check(fit) if not f.ok]
        assert [f.check for f in wrong] == [name]
        assert ": " in wrong[0].sentence or "; " in wrong[0].sentence
    assert "2 of 12 tasks" in wrong[0].sentence
    assert "(3, 5)" in wrong[0].sentence


def eight_schools() -> bm.TaskFamily:
    y = torch.tensor([28.0, 8, -3, 7, -1, 1, 18, 12], dtype=torch.float64)
    error = torch.tensor([15.0, 10, 16, 11, 9, 11, 10, 18], dtype=torch.float64)
    return bm.TaskFamily.from_tensors(
        x=torch.ones(8, 1, 1).double(), y=y[:, None], standard_error=error[:, None]
    )


def test_a_variance_at_its_boundary_is_found_and_one_off_it_is_not():
    model = bm.Model(torch.nn.Linear(1, 1, bias=False), likelihoods.Gaussian(scale=1.0))
    at_zero = bm.fit(model, eight_schools())
    (boundary,) = [f for f in check(at_zero) if f.check == "boundary"]
    assert not boundary.ok
    assert "prior sd of weight[0,0] is at its boundary" in boundary.sentence
    kept = bm.fit(model, eight_schools(), prior=bm.Prior(hyperprior="boundary-avoiding"))
    (boundary,) = [f for f in check(kept) if f.check == "boundary"]
    assert boundary.ok


def test_a_correlation_of_one_is_a_boundary_too(exact):
    singular = bm.Prior("full").at(
        mean=torch.zeros(2).double(), covariance=torch.tensor([[1.0, 2.0], [2.0, 4.0]]).double()
    )
    (boundary,) = [
        f for f in check(dataclasses.replace(exact, fitted_prior=singular)) if f.check == "boundary"
    ]
    assert "Σ₀ is singular" in boundary.sentence


def test_a_posterior_out_of_reach_is_found(exact, monkeypatch):
    fit = dataclasses.replace(exact, solver="gradient")
    gap = torch.zeros(12)
    monkeypatch.setattr(Fit, "reachability_gap", lambda self: gap)
    assert check(fit)[-1].ok
    gap[4] = -3.0
    found = check(fit)[-1]
    assert (found.check, found.ok) == ("reachability", False)
    assert [f.task for f in found.flags] == ["4"]
    assert "3 nats above the fitted Q_i" in found.flags[0].why


# Calibration: an exact, a too wide and a too narrow forecast of y ~ N(0, 1)


def forecast(sd: float) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(4000, generator=generator)
    return sd * torch.randn(500, 4000, generator=generator), y


@pytest.mark.parametrize("sd", [1.0, 2.0, 0.5])
def test_coverage_is_what_the_normal_distribution_says(sd):
    # |y| < s z_p has probability 2 Φ(s z_p) − 1.
    levels = (0.5, 0.9)
    normal = torch.distributions.Normal(0.0, 1.0)
    ends = normal.icdf(torch.tensor([(1 + p) / 2 for p in levels]))
    expected = 2 * normal.cdf(sd * ends) - 1
    found = coverage(*forecast(sd), levels=levels)
    assert (found - expected).abs().max() < 4 * math.sqrt(0.25 / 4000)


def test_the_two_calibration_errors_are_small_only_when_exact_and_differ():
    errors = {}
    for sd in (1.0, 2.0, 0.5):
        found = coverage(*forecast(sd))
        errors[sd] = calibration_rmse(found), calibration_mean_absolute(found)
    assert max(errors[1.0]) < 0.02
    for wrong in (2.0, 0.5):
        rmse, absolute = errors[wrong]
        assert rmse > absolute > 0.1
    # By hand: misses −0.1 and +0.3.
    observed = torch.tensor([0.4, 0.8])
    assert calibration_rmse(observed, (0.5, 0.5)) == pytest.approx(math.sqrt(0.05))
    assert calibration_mean_absolute(observed, (0.5, 0.5)) == pytest.approx(0.2)


def test_coverage_leaves_padding_out_and_refuses_nonsense():
    draws, y = forecast(1.0)
    y[2000:] = 1e6
    mask = torch.arange(4000) < 2000
    assert coverage(draws, y, levels=[0.9], mask=mask)[0] == pytest.approx(0.9, abs=0.03)
    assert coverage(draws, y, levels=[0.9])[0] == pytest.approx(0.45, abs=0.02)
    for bad, message in [
        ({"mask": torch.zeros(4000, dtype=torch.bool)}, "nothing to cover"),
        ({"levels": [1.0]}, "between 0 and 1"),
    ]:
        with pytest.raises(InputError, match=message):
            coverage(draws, y, **bad)
    with pytest.raises(InputError, match="not \\(draw, ...\\)"):
        coverage(draws[:, :3], y)
    draws[0, 0] = torch.nan
    with pytest.raises(InputError, match="not a number"):
        coverage(draws, y)
    with pytest.raises(InputError, match="2 coverages for 1 levels"):
        calibration_rmse(torch.zeros(2), [0.5])


def test_coverage_of_counts_is_at_least_the_level():
    generator = torch.Generator().manual_seed(0)
    draws = torch.poisson(torch.full((1000, 3000), 1.5), generator=generator)
    y = torch.poisson(torch.full((3000,), 1.5), generator=generator)
    assert (coverage(draws, y, levels=[0.5, 0.9]) >= torch.tensor([0.5, 0.9])).all()


@pytest.mark.parametrize(
    ("temperature", "low", "high"), [(1, 0.0, 0.03), (3, 0.1, 1), (0.3, 0.1, 1)]
)
def test_ece_of_class_probabilities_exact_too_sure_and_too_unsure(temperature, low, high):
    generator = torch.Generator().manual_seed(0)
    logits = 1.5 * torch.randn(5000, 4, generator=generator)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    assert low <= expected_calibration_error((temperature * logits).softmax(1), labels) < high


def test_ece_by_hand_and_its_errors():
    # Bin of 0.6: two rows, one hit, |0.5 − 0.6|; bin of 1: two rows, two hits, 0.
    p = torch.tensor([[0.6, 0.4], [0.6, 0.4], [1.0, 0.0], [0.0, 1.0]])
    labels = torch.tensor([0, 1, 0, 1])
    assert expected_calibration_error(p, labels, bins=10) == pytest.approx(0.05)
    with pytest.raises(InputError, match="sum to 1"):
        expected_calibration_error(2 * p, labels)
    with pytest.raises(InputError, match=r"\(row, class\)"):
        expected_calibration_error(p, labels[:2])


def test_predictive_nll_is_the_mean_inside_the_logarithm():
    # y = 0, θ ~ N(0, 1), y | θ ~ N(θ, 1): the predictive density is N(0; 0, 2).
    theta = torch.randn(200_000, 1, generator=torch.Generator().manual_seed(0)).double()
    log_density = torch.distributions.Normal(theta, 1.0).log_prob(torch.zeros(1).double())
    expected = 0.5 * math.log(4 * math.pi)
    assert predictive_nll(log_density) == pytest.approx(expected, abs=0.005)
    mean_of_nll = float(-log_density.mean())
    assert mean_of_nll == pytest.approx(0.5 * math.log(2 * math.pi) + 0.5, abs=0.01)
    assert mean_of_nll > predictive_nll(log_density) + 0.1
    assert predictive_nll(log_density - 1e4) == pytest.approx(expected + 1e4, abs=0.01)


def test_predictive_nll_leaves_padding_out():
    log_density = torch.tensor([[-1.0, -5.0], [-1.0, 0.0]])
    assert predictive_nll(log_density, mask=torch.tensor([True, False])) == 1.0


def posterior_ranks(sd: float, shift: float = 0.0) -> torch.Tensor:
    """θ ~ N(0, 1), y | θ ~ N(θ, 1): the posterior is N(y/2, 1/2), here with a wrong sd or mean."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(2000, generator=generator)
    y = truth + torch.randn(2000, generator=generator)
    noise = torch.randn(99, 2000, generator=generator)
    return sbc_ranks(truth, y / 2 + shift + sd * math.sqrt(0.5) * noise)


def test_simulation_based_calibration_of_exact_wide_narrow_and_shifted_posteriors():
    assert rank_uniformity(posterior_ranks(1.0), 99) > 0.01
    for wrong in (posterior_ranks(1.3), posterior_ranks(0.7), posterior_ranks(1.0, shift=0.2)):
        assert rank_uniformity(wrong, 99) < 1e-6


def test_the_p_value_is_chi_squared_and_its_bins_may_be_uneven():
    # Two bins of ranks 0..1 and 2: expected 20 and 10; observed 15 and 15: χ² = 1.25 + 2.5.
    ranks = torch.tensor([0] * 15 + [2] * 15)
    expected = math.erfc(math.sqrt(3.75 / 2))  # the χ² tail with one degree of freedom
    assert float(rank_uniformity(ranks, 2, bins=2)) == pytest.approx(expected)
    with pytest.raises(InputError, match="too few"):
        rank_uniformity(ranks, 99)
