"""Predictive fans against closed forms, where along x they are drawn, and calibration."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from fakes import fake_fit, seen
from test_plots import cut_off, overlaps

import bayesmeta as bm
from bayesmeta import plots
from bayesmeta.plots._coverage import coverage, pooled, shares
from bayesmeta.plots._fan import fans, x_column, x_label, y_label
from bayesmeta.plots._predictive import chosen_tasks

DATA = Path(__file__).parent / "data"
LEVELS = (0.95, 0.5)


def namespace(**parts: Any) -> Any:
    return SimpleNamespace(**parts)


@cache
def fitted(formula: str, file: str, likelihood: str = "gaussian", **columns: str) -> Any:
    family = bm.TaskFamily.from_formula(
        formula, DATA / f"{file}.csv", likelihood=likelihood, **columns
    )
    if len(family) > 40:
        family = family.subset(range(0, len(family), len(family) // 20))
    return bm.fit(bm.models.linear(family, bm.likelihoods.by_name(likelihood)), family)


def sleepstudy() -> Any:
    return fitted("Reaction ~ Days + (Days | Subject)", "sleepstudy")


def dyestuff() -> Any:
    return fitted("Yield ~ 1 + (1 | Batch)", "dyestuff")


def contraception(formula: str = "use ~ age + (1 | district)") -> Any:
    return fitted(formula, "contraception", "bernoulli")


def test_a_gaussian_fan_is_the_closed_form():
    """y ~ N(wᵀm, wᵀSw + σ²) at w = (1, Days)."""
    fit = sleepstudy()
    (fan,) = fans(fit, [4], x=None, levels=LEVELS, draws=20_000)
    w = np.stack([np.ones_like(fan.x), fan.x], -1)
    mean = w @ seen(fit.posterior.mean)[4]
    spread = seen(fit.posterior.covariance())[4]
    sd = np.sqrt(np.einsum("pi,ij,pj->p", w, spread, w) + float(fit.noise or 0) ** 2)
    np.testing.assert_allclose(fan.mean, mean, atol=0.03 * sd.min())
    for low, high, half in zip(fan.low, fan.high, (1.959964, 0.6744898), strict=True):
        np.testing.assert_allclose((low - mean) / sd, -half, atol=0.06)
        np.testing.assert_allclose((high - mean) / sd, half, atol=0.06)


def test_the_edges_of_a_fan_are_smooth():
    (fan,) = fans(sleepstudy(), [0], x=None, levels=LEVELS)
    noise = np.abs(np.diff(fan.high[0], 2)).max()
    assert noise < 0.02 * (fan.high[0] - fan.low[0]).mean()


def test_a_fan_covers_the_range_of_all_tasks():
    fit = sleepstudy()
    ragged = fit.family.subset([0, 1])
    ragged.tensors["x"][0, 5:], ragged.mask[0, 5:] = ragged.tensors["x"][0, :1], False
    few = bm.fit(fit.model, ragged)
    fan = fans(few, [0], x=None, levels=LEVELS)[0]
    assert (fan.x.min(), fan.x.max(), len(fan.data_x)) == (0, 9, 5)


def test_columns_that_follow_from_x_are_computed():
    fit = fitted("height ~ age + I(age**2) + (age | Subject)", "oxboys")
    (fan,) = fans(fit, [0], x=None, levels=LEVELS)
    assert fan.joined
    shared = fit.shared["I(age ** 2)"]
    m = seen(fit.posterior.mean)[0]
    np.testing.assert_allclose(fan.mean, m[0] + m[1] * fan.x + shared * fan.x**2, atol=0.2)


def test_where_other_columns_vary_the_fan_is_at_the_rows():
    fit = contraception("use ~ age + urban + (1 | district)")
    for fan in fans(fit, [0, 1, 2], x="age", levels=LEVELS):
        assert fan.at_rows
        np.testing.assert_array_equal(fan.x, fan.data_x)


def test_two_values_are_two_bars():
    fit = fitted("log_radon ~ floor + (1 | county)", "radon")
    (fan,) = fans(fit, [0], x=None, levels=LEVELS)
    assert fan.x.tolist() == [0, 1]
    assert not fan.joined
    assert overlaps(plots.predictive(fit).figure) == []


def test_a_binary_response_is_drawn_as_its_probability():
    fit = contraception()
    assert y_label(fit) == "P(use = Y)"
    (fan,) = fans(fit, [0], x="age", levels=LEVELS)
    assert 0 < fan.low.min() < fan.mean.mean() < fan.high.max() < 1
    theta = torch.distributions.Normal(fit.posterior.mean[0], fit.posterior.sd()[0])
    draws = theta.sample((20_000,)) + fit.shared["age"] * torch.tensor(fan.x)
    np.testing.assert_allclose(fan.mean, draws.sigmoid().mean(0), atol=0.01)
    assert "lie inside" not in plots.caption("predictive", fit)


def test_counts_of_trials_are_drawn_as_proportions():
    fit = fitted("incidence/size ~ C(period) + (1 | herd)", "cbpp", "binomial")
    found = fans(fit, [0, 7], x=None, levels=LEVELS)
    assert [len(fan.x) for fan in found] == [4, 1]
    assert max(fan.high.max() for fan in found) <= 1
    y, trials = fit.family.tensors["y"][0], fit.family.tensors["trials"][0]
    np.testing.assert_allclose(found[0].data_y, y / trials)


def test_the_default_column_varies_inside_tasks():
    fit = fitted("log_radon ~ floor + log_uranium + (1 | county)", "radon")
    assert x_label(fit, None) == "floor"
    assert x_label(sleepstudy(), None) == "Days"
    assert x_label(dyestuff(), None) == "observation"
    columns = list(fit.family.table.columns)
    assert x_column(fit.family, "log_uranium") == columns.index("log_uranium")
    with pytest.raises(bm.InputError, match="no column is named 'uranium'; x has: Intercept"):
        x_column(fit.family, "uranium")
    with pytest.raises(bm.InputError, match="column 9 of 3"):
        x_column(fit.family, 9)


@pytest.mark.parametrize(("make", "panels"), [(sleepstudy, 18), (dyestuff, 1), (contraception, 20)])
def test_grids_are_labelled_and_nothing_overlaps(make, panels):
    fit = make()
    fig = plots.draw("predictive", fit)
    assert overlaps(fig) == []
    assert cut_off(fig) == []
    words = {text.get_text() for text in fig.texts} | {ax.get_xlabel() for ax in fig.axes}
    assert words & {"Days", "Batch", "age"}
    assert len([ax for ax in fig.axes if ax.get_visible()]) == panels
    assert overlaps(plots.predictive_grid(fit, [0, 2], width=plots.SINGLE)) == []


def test_tasks_are_found_by_name_and_chosen_evenly():
    fit = sleepstudy()
    assert plots.predictive(fit, "308").figure.legends[0].get_title().get_text() == "308"
    with pytest.raises(bm.InputError, match="no task is named '1'; names look like '308'"):
        plots.predictive(fit, "1")
    with pytest.raises(bm.InputError, match="task 18 of 18"):
        plots.predictive(fit, 18)
    family = fake_fit(300).family
    chosen = chosen_tasks(namespace(family=family))
    means = seen(family.tensors["y"].mean(1))
    assert len(chosen) == 12
    assert np.all(np.diff(means[chosen]) > 0)
    assert means[chosen[0]] == means.min()


def test_what_has_no_fan_says_why():
    fit = sleepstudy()
    for change, why in (
        ({"likelihood": None}, "nothing to predict"),
        ({"likelihood": SimpleNamespace(name="categorical")}, "no order"),
        ({"family": bm.TaskFamily.from_tensors(c=torch.ones(3, 2))}, "a tensor y"),
    ):
        parts = {"likelihood": fit.likelihood, "family": fit.family} | change
        with pytest.raises(bm.InputError, match=why):
            fans(namespace(**parts), [0], x=None, levels=LEVELS)


@pytest.mark.parametrize(("stretch", "at_half"), [(1.0, 0.5), (2.0, 0.823), (0.5, 0.264)])
def test_coverage_of_an_exact_a_wide_and_a_narrow_forecast(stretch, at_half):
    """P(|z| < stretch · 0.674) for a forecast whose sd is `stretch` times the true one."""
    generator = np.random.default_rng(0)
    y = generator.normal(size=(200, 10))
    draws = stretch * generator.normal(size=(1000, 1, 1))
    observed, error = pooled(*coverage(draws, y, None, (0.5,)))
    assert observed[0] == pytest.approx(at_half, abs=0.03)
    assert error[0] == pytest.approx(np.sqrt(at_half * (1 - at_half) / 2000), rel=0.2)


def test_coverage_of_counts_is_exact_for_a_calibrated_forecast():
    """With few counts an interval of integers cannot hold 50 %; ties are counted in part."""
    generator = np.random.default_rng(0)
    y = generator.poisson(0.7, size=(400, 10))
    draws = generator.poisson(0.7, size=(2000, 1, 1))
    observed, _ = pooled(*coverage(draws, y, None, (0.2, 0.5, 0.9)))
    np.testing.assert_allclose(observed, [0.2, 0.5, 0.9], atol=0.02)


def test_padding_does_not_count():
    draws, y = np.zeros((10, 1, 2)), np.array([[0.0, 0.0]])
    mask = np.array([[True, False]])
    part, rows = coverage(draws, y, mask, (0.5,))
    assert rows.tolist() == [1]
    assert part[0, 0] == pytest.approx(0.5)


def test_errors_allow_for_rows_that_go_together():
    per_task = np.array([[0.0, 1.0] * 50])
    _, error = pooled(per_task, np.full(100, 20.0))
    assert error[0] == pytest.approx(0.5 / np.sqrt(99))


def test_calibration_draws_the_coverage():
    fit = fake_fit(60, rows=20)
    ax = plots.calibration(fit, levels=(0.5, 0.9))
    x, y = map(seen, ax.lines[1].get_data())
    assert x.tolist() == [0.5, 0.9]
    np.testing.assert_allclose(y, [0.5, 0.9], atol=0.06)
    halves = SimpleNamespace(draws=0.25 * fit.predict().draws + 0.75 * fit.predict().mean)
    narrow = plots.calibration(fit, prediction=halves, levels=(0.5,)).lines[1].get_ydata()
    assert seen(narrow)[0] < 0.25


def test_calibration_does_not_hold_all_draws_at_once(monkeypatch):
    fit = fake_fit(60, rows=20)
    asked = []

    def predict(family, **options):
        asked.append(len(family))
        return type(fit).predict(fit, family, **options)

    monkeypatch.setattr(fit, "predict", predict)
    monkeypatch.setattr("bayesmeta.plots._coverage.LARGEST", 1000 * 20 * 25)
    plots.calibration(fit)
    assert asked == [25, 25, 10]


def test_calibration_of_a_binary_response_is_of_its_probability():
    fit = contraception()
    ax = plots.calibration(fit)
    assert ax.get_xlabel() == "predicted P(use = Y)"
    assert "observed share" in plots.caption("calibration", fit)
    generator = np.random.default_rng(0)
    p = generator.uniform(size=20_000)
    nominal, observed, error = shares(p, (generator.uniform(size=20_000) < p).astype(float))
    assert np.all(np.abs(observed - nominal) < 4 * error)
    np.testing.assert_allclose(nominal, np.arange(0.05, 1, 0.1), atol=0.01)


def test_calibration_needs_an_observed_y():
    fit = fake_fit(3)
    with pytest.raises(bm.InputError, match="observed y"):
        plots.calibration(fit, family=bm.TaskFamily.from_tensors(x=torch.ones(3, 2, 1)))
