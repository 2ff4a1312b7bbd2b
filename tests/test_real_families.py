"""Real families: closed forms, units there and back, refusals, and what the headline says."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from bayesmeta.results import InputError
from studies import real_families
from studies.real_families import fits, measure, references
from studies.real_families.sets import SETS

NAMED = {one.name: one for one in SETS}


@pytest.mark.parametrize("name", list(references.BLUPS))
def test_exact_posteriors_are_the_recorded_predictions(name):
    one = NAMED[name]
    best = references.recorded(one)
    mean, sd = references.posteriors(one.family, best.mean, best.covariance, best.noise)
    known = references.blups(one, one.family.names)
    assert np.abs((mean - known) / sd).max() < 2e-5
    wrong = references.posteriors(one.family, best.mean, 1.01 * best.covariance, best.noise)[0]
    assert np.abs((wrong - known) / sd).max() > 5e-4


def test_exact_posteriors_are_those_of_the_whole_tasks_normal():
    one = NAMED["radon"]
    best = references.recorded(one)
    mean, sd = references.posteriors(one.family, best.mean, best.covariance, best.noise)
    rows = one.family.mask[0]
    z, y = (one.family.tensors[k][0, rows].numpy() for k in ("x", "y"))
    total = z @ best.covariance @ z.T + best.noise**2 * np.eye(len(y))
    gain = best.covariance @ z.T @ np.linalg.inv(total)
    assert mean[0] == pytest.approx(best.mean + gain @ (y - z @ best.mean))
    spread = best.covariance - gain @ z @ best.covariance
    assert sd[0] == pytest.approx(np.sqrt(spread.diagonal()))


def test_known_errors_stand_in_for_the_noise():
    one = NAMED["eight_schools"]
    mean, sd = references.posteriors(one.family, np.array([8.0]), np.array([[25.0]]), None)
    precision = 1 / 25 + 1 / 15**2
    assert sd[0, 0] == pytest.approx(precision**-0.5)
    assert mean[0, 0] == pytest.approx((8 / 25 + 28 / 15**2) / precision)


@pytest.mark.parametrize("one", SETS, ids=lambda one: one.name)
def test_every_set_has_a_reference_of_its_size(one):
    model, best = one.model(), references.recorded(one)
    assert len(best.sd) == model.dim
    assert len(best.mean) == len(best.error) == model.flat_dim
    assert one.shown < model.dim
    assert (best.covariance is not None) == one.linear_gaussian or one.name == "contraception"


@pytest.mark.parametrize("name", ["oxboys", "cbpp", "orange", "theoph"])
def test_standardised_weights_predict_the_same(name):
    one = NAMED[name]
    model, family, units = one.scaled()
    weights = 1 + 0.1 * torch.arange(model.flat_dim, dtype=torch.float64)
    back = torch.as_tensor(units.scale @ weights.numpy() + units.shift)
    inside = model.flat_prediction(weights, {k: v[0] for k, v in family.tensors.items()})
    outside = one.model().flat_prediction(back, {k: v[0] for k, v in one.family.tensors.items()})
    real = one.likelihood == "gaussian" and not one.curve
    middle = float(one.family.tensors["y"][one.family.mask].mean()) if real else 0.0
    torch.testing.assert_close(middle + units.y * inside, outside)


def test_a_point_with_the_right_covariance_finds_theta0_and_too_little_noise():
    one = NAMED["dyestuff"]
    base = fits.plain(one, fits.exact_methods(one)["joint"])
    descents = fits.descents(5)
    found = fits.descended(one, "variational_imaml", descents["variational_imaml"], base)
    best = references.recorded(one)
    assert found.mean == pytest.approx(best.mean, rel=1e-6)
    assert found.noise < 0.95 * best.noise
    assert found.sd is None
    assert found.task_sd is None
    gaussian = fits.descended(one, "variational_laplace", descents["variational_laplace"], base)
    assert gaussian.sd == pytest.approx(best.sd, rel=0.02)
    assert gaussian.evidence == pytest.approx(best.log_likelihood, abs=0.5)


def test_what_had_to_give_is_said():
    one = NAMED["baseball"]
    base = fits.plain(one, fits.exact_methods(one)["laplace"])
    found = fits.descended(one, "maml", fits.descents(2)["maml"], base)
    assert "one row a task" in found.why
    cbpp = NAMED["cbpp"]
    found = fits.descended(cbpp, "maml", fits.descents(2)["maml"], base)
    assert "1 one-row tasks adapted only" in found.why
    assert len(found.task_mean) == len(cbpp.family)
    boundary = fits.plain(NAMED["eight_schools"], fits.exact_methods(one)["joint"])
    refused = fits.descended(
        NAMED["eight_schools"], "variational_imaml", fits.descents(2)["variational_imaml"], boundary
    )
    assert refused.mean is None
    assert "singular" in refused.why


def test_nuts_is_held_against_the_closed_form():
    size = fits.Size(steps=2, draws=60, warmup=30, methods=("joint", "laplace"))
    rows, drawn = measure.compare(NAMED["eight_schools"], size)
    table = pd.DataFrame(rows).set_index("method")
    nuts = table.loc["nuts"]
    assert 0 < nuts["held_mean"] < 5 * nuts["mean_error"]
    assert table.loc["joint", "held_mean"] == pytest.approx(table.loc["laplace", "held_mean"])
    assert table.loc["joint", "prior_sd"] == 0
    assert table.loc["boundary_avoiding", "prior_sd"] > 5
    assert drawn.source == "NUTS"


def test_statsmodels_agrees_with_the_record():
    one = NAMED["dyestuff"]
    ours, best = references.by_statsmodels(one), references.recorded(one)
    assert ours.log_likelihood == pytest.approx(best.log_likelihood, abs=1e-4)
    assert references.by_statsmodels(NAMED["cbpp"]) is None


def made_up(**changes):
    """A table of two sets, in which all methods are equally far off."""
    rows = []
    for name, kind in (("line", "exact"), ("counts", "quadrature")):
        common = {"set": name, "coefficient": "a", "tasks": 10, "rows": 100}
        off = {"mean_off": -2e-5, "sd_off": 3e-5, "tasks_mean": 4e-5, "tasks_sd": 0.1}
        rows.append(common | {"method": "reference", "evidence_kind": kind})
        for method in ("joint", "laplace", "quadrature"):
            rows.append(common | off | {"method": method, "nats": -1e-3, "held_mean": 0.25})
            rows[-1] |= {"held_sd": 0.5}
        rows.append(common | {"method": "statsmodels", "nats": -3.0 if name == "line" else None})
        rows.append(common | {"method": "nuts", "mean_error": 0.03, "sd_error": 0.06})
        point = {"method": "maml", "mean_off": 7.0, "tasks_mean": 3.0, "noise_off": -0.2}
        rows.append(common | point)
    table = pd.DataFrame(rows)
    for (name, method, column), value in changes.get("planted", {}).items():
        table.loc[(table["set"] == name) & (table["method"] == method), column] = value
    return table


def test_the_headline_says_what_the_table_says():
    said = real_families.headline(made_up())
    assert "On 2 real families (20 tasks, 200 rows)" in said
    assert "2e-05 standard errors of θ₀ on linear-Gaussian sets (1) and 2e-05 on others (1)" in said
    assert "off by 7 standard errors by MAML." in said
    assert "noise sds are off by -20% to -20%" in said
    assert "up to 0.25 posterior sds from NUTS' (counts), those of joint fits 0.25." in said
    assert said.count(". ") == 2


def test_the_headline_names_the_best_and_the_worst_descent():
    table = made_up()
    better = table[table["method"] == "maml"].assign(method="imaml_hf", mean_off=-0.5)
    said = real_families.headline(pd.concat([table, better]))
    assert "0.5 standard errors by the best, iMAML (Newton-CG), and 7 standard errors by" in said


def test_the_headline_finds_a_planted_error():
    planted = {("line", "joint", "mean_off"): 0.5, ("counts", "laplace", "held_mean"): 0.75}
    said = real_families.headline(made_up(planted=planted))
    assert "5e-01 standard errors of θ₀" in said
    assert "0.75 posterior sds from NUTS' (counts)" in said


def test_the_times_are_of_one_processor():
    with pytest.raises(InputError, match="those of a CPU"):
        real_families.run(quick=True, device="cuda")
