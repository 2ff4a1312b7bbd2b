"""Calibration of every form: exact posteriors, planted errors, and what the headline says."""

from __future__ import annotations

import math

import pandas as pd
import pytest
import torch
from scipy.stats import norm

import bayesmeta as bm
from bayesmeta.methods import joint
from studies.calibration import exact, failures, headline, worst_of
from studies.calibration.fitted import LINEAR, LOGISTIC, TRUE_PRIOR
from studies.calibration.forms import LEVELS, central, exact_forms, fitted_form
from studies.calibration.measure import Size, binomial_error, measured, uniformity
from studies.calibration.power import p_values
from studies.calibration.problem import (
    CASES,
    EXACT,
    FORMS,
    NOISE,
    PLANTED,
    POINT,
    RANK_ONE,
    correlated,
    held,
)

F64 = torch.float64
BY_NAME = {case.name: case for case in CASES}


def drawn(name, tasks, rows, draws=199, seed=0):
    """A case, tasks of it, and their exact posteriors."""
    case = BY_NAME[name]
    made = case.tasks(tasks, rows, seed)
    generator = torch.Generator().manual_seed(seed)
    return case, made, exact.posterior(case, made, draws, generator), generator


def test_features_have_the_correlation_asked_for_and_weights_none():
    family, truth = correlated(0.9, 4000, 5, torch.Generator().manual_seed(0))
    x = family.tensors["x"].flatten(0, 1)
    wanted = torch.full((4, 4), 0.9, dtype=F64).fill_diagonal_(1.0)
    torch.testing.assert_close(torch.cov(x.mT), wanted, atol=0.05, rtol=0)
    torch.testing.assert_close(
        torch.cov(truth.theta.mT), torch.eye(4, dtype=F64), atol=0.06, rtol=0
    )
    noise = family.tensors["y"] - truth.prediction(family)
    assert float(noise.std()) == pytest.approx(NOISE, rel=0.02)


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_tasks_come_from_the_prior_that_is_held(case):
    tasks = case.tasks(3000, 1, 1)
    prior = held(tasks.truth)()
    away = (tasks.truth.theta - prior.mean) / prior.sd()
    assert float(away.mean(0).abs().max()) < 4 / math.sqrt(3000)
    assert float((away.var(0) - 1).abs().max()) < 4 * math.sqrt(2 / 3000)
    assert tasks.support.names == tasks.query.names
    assert case.model().dim == prior.dim


def test_the_closed_form_is_the_librarys_exact_posterior():
    case, tasks, found, _ = drawn("linear, ρ = 0.9", 20, 3)
    fit = bm.fit(case.model(), tasks.support, method=joint(), prior=held(tasks.truth))
    torch.testing.assert_close(fit.posterior.mean, found.mean, atol=1e-8, rtol=0)
    torch.testing.assert_close(fit.posterior.covariance(), found.covariance, atol=1e-8, rtol=0)
    assert fit.solver == "exact"


def test_the_closed_form_takes_a_bias():
    case = LINEAR.case
    tasks = case.tasks(10, 3, 0)
    found = exact.closed_form(tasks, 5, torch.Generator().manual_seed(0))
    fit = bm.fit(case.model(), tasks.support, method=joint(), prior=held(tasks.truth))
    torch.testing.assert_close(fit.posterior.covariance(), found.covariance, atol=1e-8, rtol=0)


@pytest.mark.parametrize("name", ["logistic, rare", "Poisson", "sinusoid"])
def test_the_grid_gives_the_moments_of_weighted_draws(name):
    """By the library's likelihood, at many draws of the same prior."""
    case, tasks, found, _ = drawn(name, 4, 1)
    prior = held(tasks.truth)()
    theta = prior.sample(200_000, torch.Generator().manual_seed(1))
    each = theta[:, None].expand(-1, 4, -1)
    with torch.no_grad():
        weight = (-case.model().energies(each, tasks.support.batch())).softmax(0)
    mean = weight.mT @ theta
    second = torch.einsum("st,si,sj->tij", weight, theta, theta)
    covariance = second - mean[..., None] * mean[:, None]
    sd = found.covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    assert float(((found.mean - mean) / sd).abs().max()) < 0.03
    scale = sd[..., None] * sd[:, None]
    assert float(((found.covariance - covariance) / scale).abs().max()) < 0.05


def test_draws_of_the_grid_have_its_moments():
    _, _, found, _ = drawn("logistic, vague", 30, 5, draws=4000)
    sd = found.covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    off = (found.draws.mean(0) - found.mean) / sd
    assert float(off.abs().max()) < 4.5 / math.sqrt(4000)
    assert float((found.draws.std(0) / sd - 1).abs().max()) < 0.06


def test_the_exact_posterior_is_calibrated_and_a_planted_error_is_found():
    for name in ("linear, ρ = 0.9", "logistic"):
        case, tasks, reference, generator = drawn(name, 1500, 2)
        forms = exact_forms(case, tasks, reference, generator)
        _, probes = case.probes(tasks.truth)
        truth = (tasks.truth.theta @ probes.mT)[:, -1]
        p = {
            form: uniformity((forms[form].draws[..., -1] < truth).sum(0), 199)[1]
            for form in (EXACT, PLANTED)
        }
        assert p[EXACT] > 0.01
        assert p[PLANTED] < 0.01


def test_the_best_diagonal_form_has_the_textbook_sd_and_coverage():
    case, tasks, reference, generator = drawn("linear, ρ = 0.9", 400, 5)
    form = fitted_form(case, tasks, FORMS["best diagonal"], 199, generator, "cpu")
    sd = torch.linalg.inv(reference.covariance).diagonal(dim1=-2, dim2=-1).rsqrt()
    torch.testing.assert_close(form.sd[:, :4], sd, atol=1e-4, rtol=0)
    _, probes = case.probes(tasks.truth)
    inside = reference.inside(probes, *form.ends[0.95])[:, :4]
    right = reference.sd(probes)[:, :4]
    wanted = torch.erf(1.959964 * sd / right / math.sqrt(2))
    torch.testing.assert_close(inside, wanted, atol=1e-3, rtol=0)


def test_a_point_covers_new_rows_as_the_closed_form_says():
    """2Φ(z σ / √(σ² + xᵀSx)) − 1."""
    size = Size(cases=("linear, ρ = 0",), tasks=400, rows=(1,), draws=199)
    table = pd.DataFrame(measured(size, "cpu"))
    tasks = BY_NAME["linear, ρ = 0"].tasks(400, 1, 1)
    reference = exact.closed_form(tasks, 5, torch.Generator().manual_seed(0))
    x = tasks.query.tensors["x"][:, 0]
    spread = torch.einsum("ti,tij,tj->t", x, reference.covariance, x) + NOISE**2
    rows = table[(table.form == POINT) & (table.part == "held")].set_index("level")
    for level in LEVELS:
        reach = norm.ppf(0.5 + level / 2) * NOISE / spread.sqrt()
        wanted = float((2 * torch.tensor(norm.cdf(reach)) - 1).mean())
        assert rows.predicted[level] == pytest.approx(wanted, abs=1e-4)
        assert abs(rows.coverage[level] - wanted) < 4 * rows.coverage_se[level]
    exactly = table[(table.part == "held") & (table.form == "best Gaussian")]
    assert exactly.predicted.sub(exactly.nominal).abs().max() < 1e-6
    assert exactly.sd_ratio.sub(1).abs().max() < 0.1
    one_direction = table[(table.part == "held") & (table.form == RANK_ONE)]
    assert one_direction.predicted.sub(one_direction.nominal).abs().max() < 1e-6  # of one row
    counts = table[table.part == "ranks"]
    assert counts.empty  # five rows are those drawn


def test_central_intervals_are_those_of_the_normal_law():
    low, high = central(torch.tensor(1.0, dtype=F64), torch.tensor(2.0, dtype=F64))[0.95]
    assert float(low) == pytest.approx(norm.ppf(0.025, 1, 2))
    assert float(high) == pytest.approx(norm.ppf(0.975, 1, 2))


def test_the_error_of_a_share_is_not_nothing_where_all_came():
    assert binomial_error(0.5, 1000) == pytest.approx(math.sqrt(0.25 / 1000), rel=1e-2)
    assert 0.001 < binomial_error(1.0, 1000) < 0.002


def test_the_power_of_the_test_of_ranks():
    generator = torch.Generator().manual_seed(0)
    right = p_values(1000, 100, 1.0, 199, generator)
    narrow = p_values(3000, 100, 0.9, 199, generator)
    assert float((right < 0.05).double().mean()) < 0.15
    assert float((narrow < 0.01).double().mean()) > 0.9


def test_recipes_hold_the_true_prior_or_learn_another():
    for setting in (LINEAR, LOGISTIC):
        tasks = setting.case.tasks(8, setting.rows, 0)
        for name, recipe in setting.recipes.items():
            found = recipe.fit(setting.case, tasks, "cpu").prior.mean
            assert torch.allclose(found, tasks.truth.theta0, atol=1e-9) == (name == TRUE_PRIOR)


def made_up():
    """A table whose numbers are easily told apart."""
    rows = []

    def held_row(form, coverage, **more):
        row = {"part": "held", "family": "linear", "rows": 1, "form": form, "data": "all",
               "quantity": "weight", "level": 0.95, "nominal": 0.95, "coverage": coverage,
               "coverage_se": 0.01, "sbc_p": 0.5, "sd_ratio": 1.0}  # fmt: skip
        rows.append(row | more)

    for family in ("linear", "logistic"):
        held_row(EXACT, 0.95, family=family)
        held_row(PLANTED, 0.92, family=family, sbc_p=1e-5)
    held_row("best Gaussian", 0.93)
    held_row("best Gaussian", 0.91, family="logistic", predicted=0.94)
    held_row("best diagonal", 0.52, rows=5)
    held_row("Laplace", 0.84, family="logistic", rows=20)
    held_row("Laplace", 0.73, family="logistic", rows=20, data="alike")
    held_row("Laplace, diagonal", 0.9, quantity="difference")
    held_row(RANK_ONE, 1.0, sd_ratio=1.7, rows=20)
    held_row(POINT, 0.44, quantity="new row")
    held_row(POINT, 0.94, quantity="new row", rows=20)
    for tasks, detected in ((1000, 0.6), (3000, 0.97)):
        rows.append({"part": "power", "form": PLANTED, "tasks": tasks, "detected": detected})
    for family, forms in (
        ("linear", ("maximum likelihood", "boundary-avoiding")),
        ("logistic", ("Laplace evidence", "quadrature, 7 points", "boundary-avoiding")),
    ):
        rows += [
            {"part": "fitted", "family": family, "form": form, "data": "own tasks", "level": 0.95,
             "tasks": tasks, "coverage_se": 0.02, "coverage": 0.6 + 0.1 * place + 0.01 * tasks}
            for place, form in enumerate(forms)
            for tasks in (5, 30)
        ]  # fmt: skip
    return pd.DataFrame(rows)


def test_the_headline_says_what_the_table_says():
    said = headline(made_up())
    assert "Of 3 approximations the best Gaussian misleads least" in said
    assert "hold a weight in 93.0 ± 1.0 % (linear, 1 row), those of the Laplace" in said
    assert "approximation in 84.0 ± 1.0 % and of the best diagonal Gaussian in 52.0" in said
    assert "fitted to 5 linear tasks by maximum likelihood they hold it in 65.0 ± 2.0 %" in said
    assert "hyper-prior in 75.0 ± 2.0 %, and with 30 tasks in 90.0 ± 2.0 %" in said
    assert "not uniform (p < 0.01) in 0 of 2 cases, as chance has it in 0.0" in said
    assert said.endswith("is found in 60 % of sets of 1,000 tasks.")


def test_the_worst_cell_is_chosen_by_what_is_predicted():
    rows = made_up()
    worst = worst_of(rows[(rows.form == "best Gaussian")])
    assert worst.family == "linear"
    assert failures(rows, PLANTED) == (2, 2)
