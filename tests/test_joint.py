"""The profile and gradient solvers: closed forms, quadrature, and each other."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import bayesmeta as bm
from bayesmeta import families, likelihoods
from bayesmeta.gaussian import Gaussian
from bayesmeta.joint.descent import Descent
from bayesmeta.joint.problem import Problem
from bayesmeta.methods import joint
from bayesmeta.models import linear

DATA = Path(__file__).parent / "data"
REFERENCE = json.loads((DATA / "reference" / "reference.json").read_text())


def sleepstudy() -> bm.TaskFamily:
    return bm.TaskFamily.from_csv(DATA / "sleepstudy.csv", task="Subject", x=["Days"], y="Reaction")


def correlated_tasks(seed: int = 0) -> tuple[bm.TaskFamily, bm.Model, bm.Prior]:
    """Linear-Gaussian tasks under a held prior, with a known noise of 0.5."""
    generator = torch.Generator().manual_seed(seed)
    family, truth = families.linear_gaussian(tasks=6, rows=5, generator=generator)
    shifted = {"x": family.tensors["x"] + 2.0, "y": family.tensors["y"]}
    model = bm.Model(torch.nn.Linear(1, 1), likelihoods.Gaussian(scale=0.5))
    prior = bm.Prior("full", learn="none").at(mean=truth.theta0, covariance=truth.covariance)
    return bm.TaskFamily(shifted), model, prior


def exact_posterior(
    family: bm.TaskFamily, prior: bm.Prior
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean, precision A_i and log evidence from the normal equations."""
    x, y = family.tensors["x"], family.tensors["y"]
    z = torch.cat([x, torch.ones_like(x)], -1)
    gaussian = prior().map(torch.Tensor.detach)
    precision = z.mT @ z / 0.25 + torch.linalg.inv(gaussian.covariance())
    pull = z.mT @ y.unsqueeze(-1) / 0.25
    pull = pull + torch.linalg.solve(gaussian.covariance(), gaussian.mean).unsqueeze(-1)
    mean = torch.linalg.solve(precision, pull).squeeze(-1)
    covariance = z @ gaussian.covariance() @ z.mT + 0.25 * torch.eye(5)
    marginal = torch.distributions.MultivariateNormal(z @ gaussian.mean, covariance)
    return mean, precision, marginal.log_prob(y)


@pytest.mark.parametrize("solver", ["exact", "profile", "gradient"])
def test_full_posteriors_are_the_conditional_gaussians(solver: str) -> None:
    family, model, prior = correlated_tasks()
    mean, precision, evidence = exact_posterior(family, prior)
    fit = bm.fit(model, family, prior=prior, method=joint(solver=solver))
    close = 1e-8 if solver != "gradient" else 2e-4
    torch.testing.assert_close(fit.posterior.mean, mean, rtol=0, atol=close)
    torch.testing.assert_close(
        fit.posterior.covariance(), torch.linalg.inv(precision), rtol=0, atol=close
    )
    torch.testing.assert_close(fit.task_evidence, evidence, rtol=0, atol=max(close, 1e-7))
    assert fit.log_evidence == pytest.approx(float(evidence.sum()), abs=1e-5)


def test_diagonal_posteriors_have_the_known_too_small_variances() -> None:
    family, model, prior = correlated_tasks()
    mean, precision, evidence = exact_posterior(family, prior)
    fit = bm.fit(model, family, prior=prior, method=joint(covariance="diagonal"))
    diagonal = precision.diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(fit.posterior.mean, mean, rtol=0, atol=1e-5)
    torch.testing.assert_close(fit.posterior.sd() ** 2, 1 / diagonal, rtol=1e-4, atol=0)
    truth = torch.linalg.inv(precision).diagonal(dim1=-2, dim2=-1)
    assert bool((fit.posterior.sd() ** 2 < truth).all())
    # KL(diagonal ‖ exact) = ½ [Σ log A_jj − log|A|], the price of ignoring the correlation.
    gap = 0.5 * (diagonal.log().sum(-1) - torch.logdet(precision))
    torch.testing.assert_close(evidence - fit.task_evidence, gap, rtol=0, atol=1e-5)


def test_low_rank_posteriors_of_full_rank_reach_the_exact_ones() -> None:
    family, model, prior = correlated_tasks()
    mean, precision, _ = exact_posterior(family, prior)
    fit = bm.fit(model, family, prior=prior, method=joint(covariance="lowrank(1)"))
    torch.testing.assert_close(fit.posterior.mean, mean, rtol=0, atol=1e-4)
    torch.testing.assert_close(
        fit.posterior.covariance(), torch.linalg.inv(precision), rtol=0, atol=1e-4
    )


def test_point_posteriors_minimise_the_joint_objective_of_the_notes() -> None:
    # M(θ₀, θ_i) = Σ ‖θ_i − θ₀‖² + f_i(θ_i): Λ = 2 I; the fixed point is (ΣW)⁻¹ΣW c with
    # W = Λ(A+Λ)⁻¹A, and θ_i = (A+Λ)⁻¹(A c + Λ θ₀).
    generator = torch.Generator().manual_seed(2)
    family, _ = families.quadratics(tasks=7, dim=4, generator=generator)
    model = bm.Model.from_energy(families.quadratic_energy, 4)
    prior = bm.Prior("isotropic", learn="mean").at(mean=torch.zeros(4).double(), variance=0.5)
    fit = bm.fit(model, family, method=joint(covariance="point", tolerance=1e-9), prior=prior)
    curvature, centre = family.tensors["A"], family.tensors["c"]
    precision = 2 * torch.eye(4).double()
    weight = precision @ torch.linalg.solve(curvature + precision, curvature)
    pull = (weight @ centre.unsqueeze(-1)).sum(0)
    theta0 = torch.linalg.solve(weight.sum(0), pull).squeeze(-1)
    torch.testing.assert_close(fit.prior.mean, theta0, rtol=0, atol=1e-6)
    right = curvature @ centre.unsqueeze(-1) + 2 * theta0.unsqueeze(-1)
    theta = torch.linalg.solve(curvature + precision, right).squeeze(-1)
    torch.testing.assert_close(fit.posterior.mean, theta, rtol=0, atol=1e-6)
    value = (theta - theta0).square().sum(-1) + model.energies(theta, family.batch())
    torch.testing.assert_close(-fit.task_evidence, value, rtol=0, atol=1e-8)
    assert fit.method["kl"] == "quadratic"


@pytest.mark.parametrize(
    "options",
    [
        {"solver": "profile"},
        {"solver": "gradient"},
        {"solver": "gradient", "prior_update": "closed_form"},
    ],
)
def test_every_solver_lands_on_maximum_likelihood(options: dict[str, str]) -> None:
    family = sleepstudy()
    fit = bm.fit(linear(family, likelihoods.Gaussian()), family, method=joint(**options))
    assert fit.log_evidence == pytest.approx(-875.9696722318341, abs=1e-4)
    np.testing.assert_allclose(fit.prior.mean, [251.405105, 10.467286], rtol=1e-5)
    np.testing.assert_allclose(fit.prior.sd(), [23.780664, 5.716845], rtol=1e-3)
    assert fit.noise == pytest.approx(25.5918, rel=1e-3)


def test_an_energy_by_quadrature_equals_the_linear_predictor() -> None:
    family = sleepstudy()

    def energy(theta: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        residual = (y - theta[0] - theta[1] * x[:, 0]) / 25.0
        return (0.5 * residual.square() + math.log(25.0) + 0.5 * math.log(2 * math.pi)).sum()

    by_nodes = bm.fit(bm.Model.from_energy(energy, 2), family)
    exact = bm.fit(linear(family, likelihoods.Gaussian(scale=25.0)), family)
    assert by_nodes.solver == "profile" and exact.solver == "exact"
    assert by_nodes.log_evidence == pytest.approx(exact.log_evidence, abs=1e-5)
    torch.testing.assert_close(
        by_nodes.prior.covariance(), exact.prior.covariance(), rtol=1e-3, atol=1e-3
    )


GLMM = {
    "cbpp period,(1|herd) AGQ25": (
        "cbpp", "incidence/size ~ C(period) + (1 | herd)", "binomial", 0.06),
    "cbpp 1,(1|herd) AGQ25": ("cbpp", "incidence/size ~ 1 + (1 | herd)", "binomial", 0.1),
    "baseball 1,(1|player) AGQ25": (
        "baseball", "Hits/At-Bats ~ 1 + (1 | LastName)", "binomial", 0.001),
    "contraception 1,(1|district) AGQ25": (
        "contraception", "use ~ 1 + (1 | district)", "bernoulli", 0.1),
    "contraception urban,(urban|district) AGQ15x15": (
        "contraception", "use ~ urban + (urban | district)", "bernoulli", 0.1),
}  # fmt: skip


@pytest.mark.parametrize("case", GLMM)
def test_the_bound_lies_just_below_the_quadrature_likelihood(case: str) -> None:
    name, formula, likelihood, gap = GLMM[case]
    family = bm.TaskFamily.from_formula(formula, DATA / f"{name}.csv", likelihood=likelihood)
    fit = bm.fit(linear(family, likelihoods.by_name(likelihood)), family)
    reference = REFERENCE[case]
    exact = -reference["m2ll"] / 2
    assert fit.solver == "profile" and fit.evidence_kind == "bound"
    assert exact - gap < fit.log_evidence < exact + 1e-4
    ours = [*fit.prior.mean.tolist(), *fit.shared.values()]
    np.testing.assert_allclose(ours, reference["beta"], atol=2.5e-3)
    sd = reference["sd"] if "sd" in reference else np.sqrt(np.diag(reference["S"]))
    np.testing.assert_allclose(fit.prior.sd(), sd, rtol=0.01)
    assert fit.flagged == []


def test_minibatches_are_scaled_to_the_family() -> None:
    family, model, prior = correlated_tasks()
    seeded = torch.Generator().manual_seed(0)
    problem = Problem(model.double(), family, prior, joint(batch=3), False, seeded)
    descent = Descent(problem, None)
    halves = [family.batch(torch.tensor(which)) for which in ([0, 1, 2], [3, 4, 5])]
    values = [descent.value(half, descent.common[:, :3]) for half in halves]
    torch.testing.assert_close(sum(values) / 2, descent.value(family.batch(), descent.common))


def test_minibatch_descent_comes_near_the_full_fit() -> None:
    generator = torch.Generator().manual_seed(3)
    family, _ = families.linear_gaussian(tasks=12, rows=6, generator=generator)
    model = bm.Model(torch.nn.Linear(1, 1), likelihoods.Gaussian())
    exact = bm.fit(model, family)
    noisy = bm.fit(model, family, method=joint(batch=4, steps=300, lr=0.1))
    assert noisy.solver == "gradient"
    assert exact.log_evidence - 0.1 < noisy.log_evidence < exact.log_evidence + 1e-9
    unscaled = joint(batch=4, steps=300, lr=0.1, beta=3.0)
    wrong = bm.fit(model, family, method=unscaled)  # what a forgotten factor 3 would do
    assert wrong.log_evidence < exact.log_evidence - 0.1


def test_draws_and_the_linear_predictor_have_the_same_gradient() -> None:
    from bayesmeta.expectation import LinearExpectation, drawn_loss

    family, model, prior = correlated_tasks()
    model, batch = model.double(), family.batch()
    design, constant = model.design(batch)
    mean = prior().mean.detach() + torch.arange(12).reshape(6, 2) / 10
    sd = torch.full((6, 2), 0.3).double()
    leaves = [mean.requires_grad_(), sd.requires_grad_()]
    expectation = LinearExpectation(model, batch, design, design, constant)
    zero = torch.zeros(2).double()
    exact = expectation.value(zero, model.shared, Gaussian(mean, sd.square())).sum()
    wanted = torch.autograd.grad(exact, leaves)
    # The energy is quadratic, so a design with the moments of N(0, I) up to order 2 is exact.
    noise = math.sqrt(2) * torch.cat([torch.eye(2), -torch.eye(2)]).double()
    noise = noise[:, None].expand(4, 6, 2)
    drawn = drawn_loss(model, batch, model.shared, Gaussian(mean, sd.square()), noise).sum()
    for ours, theirs in zip(torch.autograd.grad(drawn, leaves), wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_reset_every_restarts_the_posteriors_at_the_prior_mean() -> None:
    family, model, prior = correlated_tasks()
    fit = bm.fit(
        model, family, prior=prior, method=joint(covariance="point", reset_every=5, steps=5)
    )
    assert torch.equal(fit.posterior.mean, prior().mean.detach().expand(6, 2))
    moved = bm.fit(
        model, family, prior=prior, method=joint(covariance="point", reset_every=4, steps=5)
    )
    assert not torch.equal(moved.posterior.mean, prior().mean.detach().expand(6, 2))


def test_reachability_gap_is_zero_for_convex_tasks_and_shows_a_trapped_task() -> None:
    family, model, prior = correlated_tasks()
    fit = bm.fit(model, family, prior=prior)
    assert float(fit.reachability_gap().abs().max()) < 1e-10

    def double_well(theta: torch.Tensor, centre: torch.Tensor) -> torch.Tensor:
        return 8 * ((theta[0] - centre).square() - 1).square() + 2 * (theta[0] - centre)

    wells = bm.TaskFamily.from_tensors(centre=torch.zeros(2).double())
    held = bm.Prior("isotropic", learn="none").at(mean=0.4, variance=1.0)
    trapped = bm.fit(
        bm.Model.from_energy(double_well, 1), wells, prior=held, method=joint(covariance="point")
    )
    low = torch.tensor([[-1.0], [-1.0]]).double()
    trapped.posterior = type(trapped.posterior)(("theta[0]",), Gaussian(low), wells.names)
    loss = trapped.model.energies(low, wells.batch()) + held().quadratic(low)
    trapped.task_evidence = -loss.detach()
    assert bool((trapped.reachability_gap() < -2).all())  # the left well is not reached from 0.4


def test_a_non_finite_task_is_left_out_and_does_not_stop_the_others() -> None:
    def energy(theta: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        return 0.5 * (theta - c).square().sum()

    centre = torch.randn(5, 1, generator=torch.Generator().manual_seed(0)).double()
    centre[2] = torch.nan
    family = bm.TaskFamily.from_tensors(c=centre, names=list("abcde"))
    held = bm.Prior("isotropic", learn="none").at(mean=0.0, variance=1.0)
    fit = bm.fit(bm.Model.from_energy(energy, 1), family, prior=held)
    assert [flag.task for flag in fit.flagged] == ["c"]
    assert fit.family.names == tuple("abde")
    torch.testing.assert_close(fit.posterior.mean, centre[[0, 1, 3, 4]] / 2)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"solver": "exact", "covariance": "diagonal"}, 'solver="gradient"'),
        ({"solver": "profile", "batch": 3}, 'solver="gradient"'),
        ({"batch": 0}, "at least 1"),
        ({"covariance": "fulll"}, "not a form"),
        ({"beta": 0.0}, "beta must be positive"),
        ({"batch": 3, "prior_update": "closed_form"}, "needs every task"),
        ({"noise": "new"}, "fresh"),
    ],
)
def test_illegal_choices_are_refused_when_the_method_is_made(options, sentence) -> None:
    with pytest.raises(bm.InputError, match=sentence):
        joint(**options)


def test_a_point_posterior_cannot_teach_a_covariance() -> None:
    family, model, _ = correlated_tasks()
    with pytest.raises(bm.InputError, match='learn="mean"'):
        bm.fit(model, family, method=joint(covariance="point"))


@pytest.mark.parametrize("solver", ["exact", "profile", "gradient"])
def test_the_hyperprior_counts_once_in_every_solver(solver: str) -> None:
    # Maximising log p(y) + ½ log|Σ₀| by dense covariances and scipy gives these.
    family = sleepstudy()
    prior = bm.Prior("full", hyperprior="boundary-avoiding")
    fit = bm.fit(
        linear(family, likelihoods.Gaussian()), family, prior=prior, method=joint(solver=solver)
    )
    np.testing.assert_allclose(fit.prior.sd(), [25.1662, 5.9832], rtol=1e-3)
    assert fit.log_evidence == pytest.approx(-876.0216, abs=1e-3)


def test_a_point_fit_does_not_call_its_objective_a_bound() -> None:
    family, model, prior = correlated_tasks()
    point = bm.fit(model, family, prior=prior, method=joint(covariance="point"))
    exact = bm.fit(model, family, prior=prior)
    assert point.log_evidence > exact.log_evidence and point.evidence_kind == "penalised"


def test_a_model_that_bends_in_one_task_only_is_not_taken_for_linear() -> None:
    class Bent(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = torch.nn.Parameter(torch.zeros(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.a[0] + torch.expm1(self.a[1] * x[..., 0])

    x = torch.linspace(0, 1, 5).double().expand(6, 5).clone()
    x[0] = 0
    family = bm.TaskFamily.from_tensors(x=x.unsqueeze(-1), y=x.exp())
    assert not bm.Model(Bent(), likelihoods.Gaussian()).double().is_affine(family, jointly=True)


def test_a_step_that_is_not_finite_is_not_taken() -> None:
    from bayesmeta.outer import descend

    p = torch.zeros(()).requires_grad_()
    seen = []

    def objective(step: int) -> torch.Tensor:
        seen.append(float(p.detach()))
        return (p - 5).square() * (torch.nan if step >= 5 else 1.0)

    trace = descend(objective, [(torch.optim.Adam, [p], 0.1)], steps=8)
    assert trace.skipped == 3 and seen[5] == seen[6] == seen[7] == float(p.detach()) > 0.3
