"""Linear-Gaussian families against lme4, nlme and statsmodels, ML and REML."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch.distributions import MultivariateNormal

import bayesmeta as bm
from bayesmeta import families, likelihoods
from bayesmeta.models import linear

DATA = Path(__file__).parent / "data"
REFERENCE = json.loads((DATA / "reference" / "reference.json").read_text())
CASES = {
    "sleepstudy Days|Subject": ("sleepstudy", "Reaction ~ Days + (Days | Subject)"),
    "sleepstudy 1|Subject": ("sleepstudy", "Reaction ~ Days + (1 | Subject)"),
    "radon log_radon~floor 1|county": ("radon", "log_radon ~ floor + (1 | county)"),
    "radon log_radon~floor floor|county": ("radon", "log_radon ~ floor + (floor | county)"),
    "radon log_radon_gh~floor 1|county": ("radon", "log_radon_gh ~ floor + (1 | county)"),
    "radon log_radon_gh~floor floor|county": ("radon", "log_radon_gh ~ floor + (floor | county)"),
    "radon log_radon~floor+log_uranium 1|county": (
        "radon", "log_radon ~ floor + log_uranium + (1 | county)"),
    "radon log_radon_gh~floor+log_uranium 1|county": (
        "radon", "log_radon_gh ~ floor + log_uranium + (1 | county)"),
    "dyestuff 1|Batch": ("dyestuff", "Yield ~ 1 + (1 | Batch)"),
    "orthodont age11|Subject": ("orthodont", "distance ~ I(age-11) + (I(age-11) | Subject)"),
    "orthodont age|Subject": ("orthodont", "distance ~ age + (age | Subject)"),
    "orthodont Sex*age11 age11|Subject": (
        "orthodont", "distance ~ sign + age11 + sign:age11 + (age11 | Subject)"),
    "orthodont Female age, 1|Subject": ("female", "distance ~ age + (1 | Subject)"),
    "orthodont Female age|Subject": ("female", "distance ~ age + (age | Subject)"),
    "oxboys age|Subject": ("oxboys", "height ~ age + (age | Subject)"),
    "oxboys quad|Subject": ("oxboys", "height ~ age + I(age**2) + (age + I(age**2) | Subject)"),
    "oxboys quartic, quad|Subject": (
        "oxboys",
        "height ~ age + I(age**2) + I(age**3) + I(age**4) + (age + I(age**2) | Subject)"),
    "chickweight Time|Chick": ("chickweight", "weight ~ Time + (Time | Chick)"),
    "hsb82 cses|school": ("hsb82", "mAch ~ cses + (cses | school)"),
    "insteval y~service 1|d": ("insteval", "y ~ service + (1 | d)"),
    "insteval y~service service|d": ("insteval", "y ~ service + (service | d)"),
}  # fmt: skip


def frame(name: str) -> pd.DataFrame:
    source = pd.read_csv(DATA / f"{'orthodont' if name == 'female' else name}.csv")
    if name == "female":
        return source[source.Sex == "Female"]
    if name == "orthodont":
        # The reference run coded Sex as -1 / +1; REML depends on the coding of fixed effects.
        return source.assign(sign=np.where(source.Sex == "Male", -1, 1), age11=source.age - 11)
    return source


def fit(name: str, formula: str, *, form: str = "full", reml: bool = False) -> bm.Fit:
    family = bm.TaskFamily.from_formula(formula, frame(name))
    model = linear(family, likelihoods.Gaussian())
    return bm.fit(model, family, prior=bm.Prior(form), reml=reml)


@pytest.mark.parametrize("criterion", ["ML", "REML"])
@pytest.mark.parametrize("case", CASES)
def test_fit_agrees_with_the_reference(case: str, criterion: str) -> None:
    reference = REFERENCE[f"{case}_{criterion}"]
    result = fit(*CASES[case], reml=criterion == "REML")
    assert result.evidence_kind == ("exact" if criterion == "ML" else "restricted")
    assert abs(result.log_evidence - reference["ll"]) < 1e-3
    p = len(result.prior.mean)
    # The reference lists fixed effects in the order of its formula, ours adapted ones first.
    ours = np.sort([*result.prior.mean.tolist(), *result.shared.values()])
    np.testing.assert_allclose(ours, np.sort(reference["beta"]), rtol=1e-4)
    covariance, expected = result.prior.covariance().numpy(), np.array(reference["S"])
    scale = np.sqrt(np.outer(expected.diagonal(), expected.diagonal()))
    assert np.abs(covariance - expected).max() <= (1e-3 * scale).max() and p == len(expected)
    assert (np.abs(covariance - expected) <= 1e-3 * scale).all()
    assert result.noise == pytest.approx(reference["s2"] ** 0.5, rel=1e-3)
    errors = np.sort(list(result.standard_errors.values()))
    np.testing.assert_allclose(errors, np.sort(reference["se"]), rtol=1e-3)


def test_the_printed_sleepstudy_numbers() -> None:
    result = fit("sleepstudy", "Reaction ~ Days + (Days | Subject)")
    assert result.log_evidence == pytest.approx(-875.9696722318341, abs=1e-7)
    np.testing.assert_allclose(result.prior.mean, [251.40510484848454, 10.467285959596126])
    np.testing.assert_allclose(result.prior.sd(), [23.780664, 5.716845], rtol=1e-5)
    assert float(result.prior.correlation()[0, 1]) == pytest.approx(0.0813, abs=1e-4)
    conditional = result.posterior.sd()
    np.testing.assert_allclose(conditional[0], [11.872976, 2.271078], rtol=1e-5)
    assert result.notes == [] and result.flagged == []


def test_a_diagonal_prior_and_reml_on_sleepstudy() -> None:
    diagonal = fit("sleepstudy", "Reaction ~ Days + (Days | Subject)", form="diagonal")
    assert 2 * -diagonal.log_evidence == pytest.approx(1752.003255140962, abs=1e-5)
    np.testing.assert_allclose(diagonal.prior.sd(), [24.171270, 5.799399], rtol=1e-5)
    reml = fit("sleepstudy", "Reaction ~ Days + (Days | Subject)", reml=True)
    assert -2 * reml.log_evidence == pytest.approx(1743.6282722424, abs=1e-5)
    np.testing.assert_allclose(reml.prior.sd(), [24.7405, 5.9221], rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "formula", "file", "columns"),
    [
        ("sleepstudy", "Reaction ~ Days + (Days | Subject)", "sleepstudy", ["one", "Days"]),
        ("radon", "log_radon ~ floor + (floor | county)", "radon_log_radon_floor",
         ["one", "floor"]),
        ("hsb82", "mAch ~ cses + (cses | school)", "hsb82", ["one", "cses"]),
    ],
)  # fmt: skip
def test_posterior_means_are_the_best_linear_unbiased_predictors(name, formula, file, columns):
    expected = pd.read_csv(DATA / "reference" / f"{file}_blups_ML.csv", dtype={0: str})
    expected = expected.set_index(expected.columns[0])
    result = fit(name, formula)
    ours = pd.DataFrame(result.posterior.mean.numpy(), index=result.posterior.tasks)
    expected = expected.loc[ours.index, [f"coef_{c}" for c in columns]]
    assert np.abs(ours.to_numpy() - expected.to_numpy()).max() < 1e-3


@pytest.mark.parametrize("form", ["isotropic", "block", "diagonal", "lowrank(1)", "full"])
def test_every_form_maximises_the_marginal_likelihood(form: str) -> None:
    generator = torch.Generator().manual_seed(0)
    family, _ = families.linear_gaussian(
        tasks=40, rows=(2, 7), generator=generator, theta0=(1.0, -0.5, 2.0),
        covariance=((0.5, 0.2, 0.0), (0.2, 1.0, 0.1), (0.0, 0.1, 0.3)),
    )  # fmt: skip
    model = bm.Model(torch.nn.Linear(2, 1), likelihoods.Gaussian())
    result = bm.fit(model, family, prior=bm.Prior(form))
    prior = result.fitted_prior
    noise = torch.tensor(result.noise, dtype=torch.float64).log().requires_grad_()

    def evidence() -> torch.Tensor:
        total = torch.zeros(()).double()
        gaussian = prior()
        for x, y, mask in zip(
            family.tensors["x"], family.tensors["y"], family.mask, strict=True
        ):  # fmt: skip
            z = torch.cat([x[mask], torch.ones_like(x[mask][:, :1])], 1)
            covariance = z @ gaussian.covariance() @ z.T
            covariance = covariance + noise.exp() ** 2 * torch.eye(len(z))
            total = total + MultivariateNormal(z @ gaussian.mean, covariance).log_prob(y[mask])
        return total

    value = evidence()
    assert value.item() == pytest.approx(result.log_evidence, abs=1e-8)
    gradients = torch.autograd.grad(value, [noise, *prior.free.values()])
    assert max(float(g.abs().max()) for g in gradients) < 2e-4


def test_a_variance_at_zero_is_reported_as_the_boundary() -> None:
    family = bm.TaskFamily.from_csv(
        DATA / "eight_schools.csv", task="school", y="y", standard_error="sigma"
    )
    model = linear(family, likelihoods.Gaussian())
    result = bm.fit(model, family)
    assert float(result.prior.sd()[0]) == 0.0
    assert result.prior.mean[0] == pytest.approx(7.685617, rel=1e-6)
    assert result.log_evidence == pytest.approx(-29.674244, abs=1e-6)
    assert any("boundary" in note and "Intercept" in note for note in result.notes)
    assert bool((result.posterior.mean == result.prior.mean).all())
    avoiding = bm.fit(model, family, prior=bm.Prior("full", hyperprior="boundary-avoiding"))
    assert 2 < float(avoiding.prior.sd()[0]) < 12
    assert any("hyper-prior" in note for note in avoiding.notes)


@pytest.mark.parametrize(("tau", "expected"), [(5, -29.99358), (10, -30.89229), (20, -33.31806)])
def test_eight_schools_profile_at_a_held_sd(tau: float, expected: float) -> None:
    family = bm.TaskFamily.from_csv(
        DATA / "eight_schools.csv", task="school", y="y", standard_error="sigma"
    )
    prior = bm.Prior("full", learn="mean").at(mean=0.0, variance=float(tau) ** 2)
    result = bm.fit(linear(family, likelihoods.Gaussian()), family, prior=prior)
    assert result.log_evidence == pytest.approx(expected, abs=1e-5)


def test_a_planted_error_in_the_evidence_is_found() -> None:
    result = fit("sleepstudy", "Reaction ~ Days + (Days | Subject)")
    wrong = result.log_evidence + 0.5 * torch.tensor(25.0).log().item()
    reference = REFERENCE["sleepstudy Days|Subject_ML"]["ll"]
    assert abs(result.log_evidence - reference) < 1e-3 < abs(wrong - reference)


def test_padding_order_and_splitting_change_nothing() -> None:
    generator = torch.Generator().manual_seed(1)
    family, _ = families.linear_gaussian(tasks=30, rows=(2, 9), generator=generator)
    model = bm.Model(torch.nn.Linear(1, 1), likelihoods.Gaussian())
    result = bm.fit(model, family)
    order = torch.randperm(30, generator=generator)
    shuffled = bm.fit(model, family.subset(order))
    torch.testing.assert_close(shuffled.prior.covariance(), result.prior.covariance())
    wide = {k: torch.cat([v, v[:, :1].expand(-1, 5, *v.shape[2:]) * 7], 1)
            for k, v in family.tensors.items()}  # fmt: skip
    mask = torch.cat([family.mask, torch.zeros(30, 5, dtype=torch.bool)], 1)
    padded = bm.fit(model, bm.TaskFamily(wide, mask=mask))
    assert padded.log_evidence == pytest.approx(result.log_evidence, abs=1e-9)
    parts = [result.adapt(family.subset(list(range(a, a + 10)))) for a in (0, 10, 20)]
    assert sum(p.log_evidence for p in parts) == pytest.approx(result.log_evidence, abs=1e-9)


def test_one_row_per_task_without_known_noise_is_refused() -> None:
    family = bm.TaskFamily.from_tensors(x=torch.randn(9, 1, 1), y=torch.randn(9, 1))
    with pytest.raises(bm.InputError, match="single row.*standard_error"):
        bm.fit(bm.Model(torch.nn.Linear(1, 1), likelihoods.Gaussian()), family)
