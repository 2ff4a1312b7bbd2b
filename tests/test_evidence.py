"""Fits by the evidence (Laplace's method, quadrature) against lme4, exact fits and sampling."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import bayesmeta as bm
from bayesmeta import likelihoods
from bayesmeta.gaussian import Gaussian
from bayesmeta.joint import profile
from bayesmeta.joint.evidence import importance_evidence
from bayesmeta.methods import laplace
from bayesmeta.models import linear
from bayesmeta.results import Result
from tests.evidence_cases import orange, theoph

DATA = Path(__file__).parent / "data"
REFERENCE = json.loads((DATA / "reference" / "reference.json").read_text())
# lme4's glmer, agreeing with adaptive quadrature; reference.json does not have these.
REFERENCE |= {
    "grouseticks YEAR Laplace": {
        "m2ll": 2030.58754, "beta": [0.351445, 1.344931, -0.904179], "sd": [1.26650]},
    "grouseticks YEAR AGQ": {
        "m2ll": 2029.78210, "beta": [0.352087, 1.343291, -0.901493], "sd": [1.27535]},
}  # fmt: skip
GLMM = {
    "cbpp period,(1|herd)": ("cbpp", "incidence/size ~ C(period) + (1 | herd)", "binomial"),
    "cbpp 1,(1|herd)": ("cbpp", "incidence/size ~ 1 + (1 | herd)", "binomial"),
    "baseball 1,(1|player)": ("baseball", "Hits/At-Bats ~ 1 + (1 | LastName)", "binomial"),
    "contraception covars,(1|urban:dist)": (
        "contraception",
        "use ~ age + I(age ** 2) + urban + livch + (1 | urban:district)",
        "bernoulli"),
    "contraception 1,(1|district)": ("contraception", "use ~ 1 + (1 | district)", "bernoulli"),
    "contraception urban,(urban|district)": (
        "contraception", "use ~ urban + (urban | district)", "bernoulli"),
    "grouseticks YEAR": ("grouseticks", "TICKS ~ C(YEAR) + (1 | BROOD)", "poisson"),
}  # fmt: skip
# Maximised by lme4 1.1-31, nlmer(conc ~ SSfol(Dose, Time, lKe, lKa, lCl) ~ lKe+lKa+lCl|Subject):
# reference.json's Laplace fit of theoph stops 0.037 nats below the maximum of its own function.
NLMER = {
    "ll": -173.244225,
    "theta0": [-2.4482369, 0.4728151, -3.2207874],
    "sd": [0.13047580, 0.65156343, 0.25173441],
    "sigma": 0.68036841,
}


def glmm(case: str, points: int) -> bm.Fit:
    name, formula, likelihood = GLMM[case]
    family = bm.TaskFamily.from_formula(formula, DATA / f"{name}.csv", likelihood=likelihood)
    return bm.fit(
        linear(family, likelihoods.by_name(likelihood)), family, method=laplace(points=points)
    )


@pytest.mark.parametrize("column", ["Laplace", "AGQ"])
@pytest.mark.parametrize("case", GLMM)
def test_generalised_linear_fits_agree_with_lme4(case: str, column: str) -> None:
    key = next(k for k in REFERENCE if k.startswith(f"{case} {column}"))
    reference = REFERENCE[key]
    points = 1 if column == "Laplace" else 9 if "urban|" in case else 25
    fit = glmm(case, points)
    assert fit.solver == "profile" and fit.flagged == []
    assert fit.evidence_kind == ("laplace" if points == 1 else "quadrature")
    assert fit.log_evidence == pytest.approx(-reference["m2ll"] / 2, abs=1e-4)
    if "beta" in reference:
        ours = [*fit.prior.mean.tolist(), *fit.shared.values()]
        np.testing.assert_allclose(ours, reference["beta"], rtol=1e-3)
    sd = reference["sd"] if "sd" in reference else np.sqrt(np.diag(reference["S"]))
    np.testing.assert_allclose(fit.prior.sd(), sd, rtol=1e-3)


def test_the_deviances_that_lme4_and_mixedmodels_print() -> None:
    assert glmm("cbpp period,(1|herd)", 1).log_evidence == pytest.approx(-92.02628187, abs=1e-6)
    covariates = "contraception covars,(1|urban:dist)"
    assert -2 * glmm(covariates, 1).log_evidence == pytest.approx(2361.5457688665, abs=5e-5)
    assert -2 * glmm(covariates, 7).log_evidence == pytest.approx(2360.8760880739, abs=1e-4)


@pytest.mark.parametrize("points", [1, 7])
def test_a_weight_that_enters_linearly_is_integrated_exactly(points: int) -> None:
    model, family = orange()
    fit = bm.fit(model, family, method=laplace(points=points), standardise=False)
    reference = REFERENCE["orange Asym|Tree exact"]
    assert fit.log_evidence == pytest.approx(reference["ll"], abs=1e-4)
    ours = [*fit.prior.mean.tolist(), *fit.shared.values()]
    np.testing.assert_allclose(ours, reference["theta0"], rtol=1e-5)
    np.testing.assert_allclose(fit.prior.sd(), [reference["sd_Asym"]], rtol=1e-4)
    assert fit.noise == pytest.approx(reference["sigma"], rel=1e-4)


@pytest.mark.parametrize("points", [1, 9])
def test_a_pharmacokinetic_model_agrees_with_nlmer_and_quadrature(points: int) -> None:
    model, family = theoph()
    fit = bm.fit(model, family, method=laplace(points=points), standardise=False)
    reference = NLMER if points == 1 else REFERENCE["theoph full AGQ9"]
    assert fit.log_evidence == pytest.approx(reference["ll"], abs=1e-3)
    assert fit.log_evidence >= reference["ll"]  # both references stop just short of their maximum
    np.testing.assert_allclose(fit.prior.mean, reference["theta0"], rtol=2e-3)
    np.testing.assert_allclose(fit.prior.sd(), reference["sd"], rtol=1.5e-3)
    assert fit.noise == pytest.approx(reference["sigma"], rel=1e-3)


def test_the_pharmacokinetic_laplace_value_at_the_references_own_parameters() -> None:
    model, family = theoph()
    reference = REFERENCE["theoph full Laplace(GN)"]
    sd = torch.tensor(reference["sd"]).double()
    first, second, third = reference["corr"]
    rows = [[1, first, second], [first, 1, third], [second, third, 1]]
    covariance = torch.tensor(rows).double() * sd * sd[:, None]
    prior = Gaussian.from_covariance(torch.tensor(reference["theta0"]).double(), covariance)
    noise = torch.tensor(reference["sigma"]).double().log()
    _, values, results = profile.adapted(
        model.double(), prior, {"likelihood.log_scale": noise}, family, method=laplace()
    )
    assert float(values.sum()) == pytest.approx(reference["ll"], abs=5e-5)
    assert set(results) == {Result.converged}


@pytest.mark.parametrize("points", [1, 9])
def test_a_diagonal_prior_puts_a_variance_at_exactly_zero(points: int) -> None:
    model, family = theoph()
    fit = bm.fit(
        model, family, method=laplace(points=points), prior=bm.Prior("diagonal"),
        standardise=False,
    )  # fmt: skip
    reference = REFERENCE["theoph diag AGQ9"]
    # nlmer's three uncorrelated effects reach -176.992 by Laplace's method.
    expected = -176.992 if points == 1 else reference["ll"]
    assert fit.log_evidence == pytest.approx(expected, abs=1e-3)
    assert float(fit.prior.sd()[0]) == 0.0
    if points > 1:
        np.testing.assert_allclose(fit.prior.mean, reference["theta0"], rtol=1e-3)
        np.testing.assert_allclose(fit.prior.sd()[1:], reference["sd"][1:], rtol=1e-3)
    assert float(fit.posterior.sd()[:, 0].max()) == 0.0


def test_linear_gaussian_tasks_are_exact() -> None:
    family = bm.TaskFamily.from_csv(
        DATA / "sleepstudy.csv", task="Subject", x=["Days"], y="Reaction"
    )
    model = linear(family, likelihoods.Gaussian())
    exact = bm.fit(model, family)
    for points in (1, 3):
        fit = bm.fit(model, family, method=laplace(points=points))
        assert exact.solver == "exact" and fit.solver == "profile"
        assert fit.log_evidence == pytest.approx(exact.log_evidence, abs=1e-8)
        torch.testing.assert_close(fit.prior.sd(), exact.prior.sd(), rtol=1e-5, atol=0)
        torch.testing.assert_close(
            fit.posterior.covariance(), exact.posterior.covariance(), rtol=1e-4, atol=1e-6
        )
        assert fit.adapt(family).log_evidence == pytest.approx(fit.log_evidence, abs=1e-8)


@pytest.mark.parametrize("form", ["isotropic", "diagonal", "lowrank(1)", "full"])
def test_every_form_of_prior_and_what_is_held(form: str) -> None:
    family = bm.TaskFamily.from_csv(
        DATA / "sleepstudy.csv", task="Subject", x=["Days"], y="Reaction"
    )
    model = linear(family, likelihoods.Gaussian())
    prior = bm.Prior(form)
    exact = bm.fit(model, family, prior=prior)
    fit = bm.fit(model, family, prior=prior, method=laplace())
    assert fit.log_evidence == pytest.approx(exact.log_evidence, abs=1e-6)
    for learn in ("mean", "none"):
        held = bm.Prior("diagonal", learn=learn).at(
            mean=torch.tensor([250.0, 10.0]).double(), variance=torch.tensor([600.0, 30.0]).double()
        )
        pair = [bm.fit(model, family, prior=held, method=m) for m in (None, laplace())]
        assert pair[0].log_evidence == pytest.approx(pair[1].log_evidence, abs=1e-6)
        assert torch.equal(pair[1].prior.sd(), held().sd())


def test_the_hyperprior_keeps_the_covariance_off_its_boundary() -> None:
    family = bm.TaskFamily.from_csv(
        DATA / "eight_schools.csv", task="school", y="y", standard_error="sigma"
    )
    model = linear(family, likelihoods.Gaussian())
    assert float(bm.fit(model, family, method=laplace()).prior.sd()[0]) == 0.0
    prior = bm.Prior("full", hyperprior="boundary-avoiding")
    exact = bm.fit(model, family, prior=prior)
    fit = bm.fit(model, family, prior=prior, method=laplace())
    torch.testing.assert_close(fit.prior.sd(), exact.prior.sd(), rtol=1e-4, atol=0)
    assert fit.log_evidence == pytest.approx(exact.log_evidence, abs=1e-5)


@pytest.mark.parametrize("df", [8, None])
def test_importance_sampling_agrees_with_quadrature(df: int | None) -> None:
    fit = glmm("cbpp period,(1|herd)", 25)
    shared = {k: v.detach() for k, v in fit.model.shared.items()}
    arguments = (fit.model, fit.prior.gaussian, fit.posterior.gaussian, shared, fit.family)
    estimate, error = importance_evidence(
        *arguments, draws=4000, generator=torch.Generator().manual_seed(0), df=df
    )
    assert float(error.max()) < 0.01
    assert float(((estimate - fit.task_evidence) / error).abs().max()) < 4
    approximate = glmm("cbpp period,(1|herd)", 1)
    worst = (approximate.adapt(fit.family).task_evidence - estimate) / error
    assert float(worst.abs().max()) > 4  # Laplace's own error is seen


def test_importance_sampling_on_the_support_of_a_singular_prior() -> None:
    model, family = theoph()
    prior = bm.Prior("diagonal")
    fit = bm.fit(model, family, method=laplace(points=9), prior=prior, standardise=False)
    shared = {k: v.detach() for k, v in fit.model.shared.items()}
    arguments = (fit.model, fit.prior.gaussian, fit.posterior.gaussian, shared, fit.family)
    generator = torch.Generator().manual_seed(0)
    estimate, error = importance_evidence(*arguments, draws=4000, generator=generator)
    assert float(error.max()) < 0.05
    assert float(((estimate - fit.task_evidence) / error).abs().max()) < 4
    nothing = Gaussian(fit.prior.mean, torch.zeros(3).double())
    at_prior = nothing[None].map(lambda t: t.expand(len(family), 3))
    alone, error = importance_evidence(
        fit.model, nothing, at_prior, shared, fit.family, draws=2, generator=generator
    )
    expected = -fit.model.energies(at_prior.mean, fit.family.batch()).detach()
    torch.testing.assert_close(alone, expected)
    assert float(error.max()) == 0.0


def test_narrower_posteriors_have_the_variances_of_the_full_one() -> None:
    model, family = theoph()
    options = {"standardise": False, "prior": bm.Prior("diagonal")}
    full = bm.fit(model, family, method=laplace(), **options)
    for form in ("diagonal", "lowrank(1)"):
        fit = bm.fit(model, family, method=laplace(covariance=form), **options)
        assert fit.log_evidence == pytest.approx(full.log_evidence, abs=1e-9)
        assert fit.posterior.gaussian.diagonal is not None
        torch.testing.assert_close(fit.posterior.sd(), full.posterior.sd(), rtol=1e-3, atol=1e-9)


def test_units_do_not_matter_to_a_nonlinear_fit() -> None:
    model, family = orange()
    scaled = {"x": family.tensors["x"] * 1e-4, "y": family.tensors["y"] * 1e3}
    with torch.no_grad():
        for name, factor in (("asym", 1e3), ("xmid", 1e-4), ("scal", 1e-4)):
            model.module.get_parameter(name).mul_(factor)
    fit = bm.fit(model, bm.TaskFamily(scaled), method=laplace())
    reference = REFERENCE["orange Asym|Tree exact"]
    units = family.observations * math.log(1e3)
    assert fit.log_evidence + units == pytest.approx(reference["ll"], abs=1e-4)
    np.testing.assert_allclose(fit.prior.sd(), [reference["sd_Asym"] * 1e3], rtol=1e-4)
