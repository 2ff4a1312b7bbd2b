"""Meta-gradients against closed forms, finite differences and each other."""

from __future__ import annotations

import itertools

import pytest
import torch

import bayesmeta as bm
from bayesmeta.amortised.step import MetaStep
from bayesmeta.gradients.direct import Direct
from bayesmeta.gradients.implicit import Implicit
from bayesmeta.gradients.pathwise import FirstOrder, Truncated, Unrolled
from bayesmeta.inner.first_order import GradientDescent, Nesterov
from bayesmeta.inner.newton import Newton
from bayesmeta.method import Method
from bayesmeta.objective import Evidence, Validation, Variational
from bayesmeta.posteriors.algorithmic import Algorithmic
from bayesmeta.posteriors.proximal import Proximal
from bayesmeta.results import Result
from tests.scenarios import (
    F64,
    FORMS,
    SCENARIOS,
    gaussian_of,
    poisson_network,
    quadratic,
    regression,
)

SOLVED = Newton(50, tolerance=1e-12)
TIGHT = {
    "cg": Implicit("cg", steps=400, tolerance=1e-9, curvature="hessian"),
    "cholesky": Implicit("cholesky", curvature="hessian"),
    "ggn": Implicit("cholesky", curvature="ggn"),
}


def relative(value, reference):
    return float((value - reference).norm() / reference.norm())


def by_the_book(scenario, prior, objective):
    """(∂θ₀, ∂Σ₀'s parameters, ∂ψ) by autograd through the textbook solution."""
    free = {k: v.detach().clone().requires_grad_() for k, v in prior.free.items()}
    shared = {k: v.requires_grad_() for k, v in scenario.shared().items()}
    mean, precision = gaussian_of(prior, free)
    theta = scenario.adapted(mean, precision, shared)
    if isinstance(objective, Validation):
        value = scenario.loss(theta, shared).sum()
    else:
        away = theta - mean
        value = (scenario.fit(theta, shared) + 0.5 * ((away @ precision) * away).sum(-1)).sum()
    if isinstance(objective, Evidence):
        hessians = torch.stack([
            torch.autograd.functional.hessian(
                lambda t, i=i: scenario.fit(t.expand(len(theta), -1), shared)[i],
                theta[i].detach(), create_graph=True)
            for i in range(len(theta))
        ])  # fmt: skip
        value = value + 0.5 * (torch.logdet(hessians + precision) - torch.logdet(precision)).sum()
    parameters = {**free, **shared}
    grads = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
    return dict(zip(parameters, grads, strict=True)), value.detach()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("solver", ["cg", "cholesky"])
@pytest.mark.parametrize("objective", [Validation(None), Variational()])
@pytest.mark.parametrize("name", SCENARIOS)
def test_implicit_gradients_are_those_of_the_closed_form(name, objective, solver, form):
    scenario = SCENARIOS[name]()
    prior = scenario.prior(form)
    method = Method(Proximal(), SOLVED, TIGHT[solver], objective)
    query = scenario.query if isinstance(objective, Validation) else None
    got = bm.meta_gradient(scenario.model, prior, scenario.family, method, query=query)
    expected, value = by_the_book(scenario, prior, objective)
    assert relative(got.value, value) < 1e-10
    assert relative(got.theta0, expected["mean"]) < 1e-6
    for key, gradient in got.covariance.items():
        reference = expected[key].tril(-1) if form == "full" and key == "factor" else expected[key]
        assert relative(gradient, reference) < 1e-6, key
    for key, gradient in got.shared.items():
        assert relative(gradient, expected[key]) < 1e-6, key
    assert got.report.result == [Result.converged] * len(scenario.family)


def test_the_regression_scenario_is_as_ill_conditioned_as_it_says():
    scenario = regression()
    x = scenario.family.tensors["x"][..., : scenario.dim]
    values = torch.linalg.eigvalsh(x.mT @ x)
    assert float((values[:, -1] / values[:, 0]).min()) > 1e3


@pytest.mark.parametrize("form", FORMS)
def test_the_laplace_evidence_of_linear_gaussian_tasks_has_the_exact_gradient(form):
    scenario = regression(condition=30.0)
    prior = scenario.prior(form)
    rule = Implicit("cholesky", curvature="hessian")
    method = Method(Proximal("full", "hessian"), SOLVED, rule, Evidence())
    got = bm.meta_gradient(scenario.model, prior, scenario.family, method)
    expected, _ = by_the_book(scenario, prior, Evidence())
    x, y = scenario.family.tensors["x"], scenario.family.tensors["y"]
    shared, dim = scenario.shared(), scenario.dim
    mean = y - x @ torch.cat([prior.free["mean"].detach(), shared["module.fixed"]])
    noise = (2 * shared["likelihood.log_scale"]).exp() * torch.eye(y.shape[1], dtype=F64)
    z = x[..., :dim]
    marginal = torch.distributions.MultivariateNormal(
        torch.zeros(y.shape[1], dtype=F64), z @ prior().covariance().detach() @ z.mT + noise
    )
    assert relative(got.value, -marginal.log_prob(mean).sum()) < 1e-10
    assert relative(got.theta0, expected["mean"]) < 1e-6
    for key, gradient in {**got.covariance, **got.shared}.items():
        reference = expected[key].tril(-1) if form == "full" and key == "factor" else expected[key]
        assert relative(gradient, reference) < 1e-6, key


def test_no_cg_steps_are_first_order_exactly():
    scenario = quadratic()
    for form in FORMS:
        prior = scenario.prior(form)
        grads = [
            bm.meta_gradient(
                scenario.model, prior, scenario.family,
                Method(Proximal(), SOLVED, rule, Validation(None)), query=scenario.query,
            ).theta0
            for rule in (Implicit(steps=0, curvature="hessian"), FirstOrder())
        ]  # fmt: skip
        torch.testing.assert_close(*grads, rtol=1e-13, atol=0)


def test_the_envelope_identity():
    """∂M/∂θ₀ = Λ(θ₀ − θ*): Direct needs no implicit term, and the implicit term is nothing."""
    scenario = regression()
    prior = scenario.prior("full")
    theta = scenario.adapted(*gaussian_of(prior, dict(prior.free)), scenario.shared())
    mean, precision = gaussian_of(prior, dict(prior.free))
    expected = ((mean - theta) @ precision).detach()
    for rule in (Direct(), TIGHT["cholesky"]):
        method = Method(Proximal(), SOLVED, rule, Variational())
        got = bm.meta_gradient(scenario.model, prior, scenario.family, method)
        assert relative(got.per_task, expected) < 1e-10


@pytest.mark.parametrize("objective", [Validation(None), Variational()])
def test_implicit_is_unrolled_as_steps_grow(objective):
    scenario = quadratic()
    prior = scenario.prior("diagonal")
    query = scenario.query if isinstance(objective, Validation) else None
    errors = []
    for steps in (10, 100, 1000):
        inner = GradientDescent(0.1, steps, per="task")
        pair = [
            bm.meta_gradient(
                scenario.model, prior, scenario.family,
                Method(Proximal(), inner, rule, objective), query=query,
            )
            for rule in (TIGHT["cholesky"], Unrolled())
        ]  # fmt: skip
        errors.append(relative(pair[0].theta0, pair[1].theta0))
    assert errors[0] > 1e-3
    assert errors[2] < 1e-12
    for key in pair[0].covariance:
        assert relative(pair[0].covariance[key], pair[1].covariance[key]) < 1e-10


@pytest.mark.parametrize("posterior", [Proximal(), Algorithmic()])
def test_truncated_goes_from_first_order_to_unrolled(posterior):
    scenario = quadratic()
    prior = scenario.prior("diagonal")
    inner = GradientDescent(0.1, 12, per="task")

    def gradient(rule):
        method = Method(posterior, inner, rule, Validation(None))
        found = bm.meta_gradient(
            scenario.model, prior, scenario.family, method, query=scenario.query
        )
        return found.theta0

    full = gradient(Unrolled())
    torch.testing.assert_close(gradient(Truncated(0)), gradient(FirstOrder()))
    torch.testing.assert_close(gradient(Truncated(12)), full, rtol=1e-12, atol=0)
    errors = [relative(gradient(Truncated(k)), full) for k in (0, 3, 6, 11)]
    assert all(a > b for a, b in itertools.pairwise(errors))


METHODS = {
    "imaml": Method(Proximal(), SOLVED, TIGHT["cholesky"], Validation(4, fresh=False)),
    "maml": Method(Algorithmic(), GradientDescent(0.1, 3), Unrolled(), Validation(4)),
    "anchored unrolled": Method(Proximal(), Nesterov(0.1, 4, condition=9.0), Unrolled(),
                                Validation(4)),
    "meta-sgd": Method(Algorithmic(), GradientDescent(0.1, 3, learn_lr=True), Unrolled(),
                       Validation(4)),
    "variational point": Method(Proximal(), SOLVED, Direct(), Variational()),
    "variational laplace": Method(Proximal("full", "hessian"), SOLVED, TIGHT["cholesky"],
                                  Variational(), draws=3),
    "variational diagonal ggn": Method(Proximal("diagonal", "ggn"), SOLVED, TIGHT["cholesky"],
                                       Variational(), draws=2),
    "evidence": Method(Proximal("full", "hessian"), SOLVED, TIGHT["cholesky"], Evidence()),
    "evidence ggn": Method(Proximal("full", "ggn"), SOLVED, TIGHT["cholesky"], Evidence()),
}  # fmt: skip


@pytest.mark.parametrize("name", METHODS)
def test_meta_gradients_are_finite_differences_of_m(name):
    model, prior, family = poisson_network()
    method = METHODS[name]

    def value(free, shared):
        model.load_shared({k: v for k, v in shared.items() if k in model.shared})
        moved = bm.Prior("diagonal").at(mean=free["mean"], variance=(2 * free["log_scale"]).exp())
        generator = torch.Generator().manual_seed(5)
        return bm.meta_gradient(model, moved, family, method, generator=generator)

    free = {k: v.detach().clone() for k, v in prior.free.items()}
    shared = {k: v.detach().clone() for k, v in model.shared.items()}
    got = value(free, shared)
    assert set(got.report.result) == {Result.converged}
    generator = torch.Generator().manual_seed(6)
    for part, gradients in (
        (free, {"mean": got.theta0}),
        (free, got.covariance),
        (shared, {k: v for k, v in got.shared.items() if k in shared}),
    ):
        for key, gradient in gradients.items():
            way = torch.randn(gradient.shape, generator=generator, dtype=F64)
            step = 1e-5
            ends = []
            for sign in (1, -1):
                moved = part | {key: part[key] + sign * step * way}
                both = (moved, shared) if part is free else (free, moved)
                ends.append(value(*both).value)
            numeric = (ends[0] - ends[1]) / (2 * step)
            expected = (gradient * way).sum()
            assert abs(float(numeric - expected)) < 1e-6 * max(1.0, abs(float(expected))), key
    value(free, shared)


def test_learned_step_sizes_have_their_gradient():
    scenario = quadratic()
    prior = bm.Prior("point").at(mean=torch.ones(scenario.dim, dtype=F64), variance=1.0)

    def value(lr):
        inner = GradientDescent(lr, 3, per="task", learn_lr=True)
        method = Method(Algorithmic(), inner, Unrolled(), Validation(None))
        return bm.meta_gradient(
            scenario.model, prior, scenario.family, method, query=scenario.query
        )

    numeric = (value(0.1 + 1e-6).value - value(0.1 - 1e-6).value) / 2e-6
    assert relative(value(0.1).shared["inner.lr"].sum(), numeric) < 1e-7


def test_splitting_padding_and_order_change_nothing():
    model, prior, family = poisson_network()
    method = Method(Proximal(), SOLVED, TIGHT["cholesky"], Variational())
    whole = bm.meta_gradient(model, prior, family, method)
    shuffled = bm.meta_gradient(model, prior, family.subset([2, 0, 1]), method)
    torch.testing.assert_close(shuffled.theta0, whole.theta0)
    torch.testing.assert_close(shuffled.per_task, whole.per_task[[2, 0, 1]])
    alone = [bm.meta_gradient(model, prior, family.subset([i]), method) for i in range(3)]
    torch.testing.assert_close(torch.stack([a.theta0 for a in alone]), whole.per_task)
    unpadded = bm.TaskFamily.from_tensors(
        x=family.tensors["x"][1:2, :5], y=family.tensors["y"][1:2, :5]
    )
    single = bm.meta_gradient(model, prior, unpadded, method)
    torch.testing.assert_close(single.theta0, whole.per_task[1])


def test_lambda_of_the_paper_is_per_row():
    """mean-loss + λ/2‖θ−θ₀‖² of n rows is f + ½‖θ−θ₀‖²_Λ with Λ = nλI."""
    model, prior, family = poisson_network()
    lam = 0.7
    task = family.subset([0])
    held = bm.Prior("isotropic").at(mean=prior().mean.detach(), variance=1 / (7 * lam))
    paper = bm.methods.imaml(lam=lam, steps=3, lr=0.2, support=None, cg_steps=3)
    plain = bm.methods.imaml(steps=3, lr=0.2, support=None, cg_steps=3)
    torch.testing.assert_close(
        bm.meta_gradient(model, prior, task, paper).theta0,
        bm.meta_gradient(model, held, task, plain).theta0,
    )
    # By hand, in the paper's units: the first step from θ₀ is α∇ of the mean loss.
    start = prior().mean.detach()[None]
    first = bm.methods.maml(steps=1, lr=0.2, support=None)
    mean_loss = lambda t: model.energies(t, task.batch()).sum() / 7  # noqa: E731
    stepped = start - 0.2 * torch.func.grad(mean_loss)(start)
    got = bm.meta_gradient(model, prior, task, first)
    torch.testing.assert_close(got.value, model.energies(stepped, task.batch()).sum().detach())


def test_a_warm_start_needs_fewer_products():
    scenario = regression()
    prior = scenario.prior("diagonal")
    method = Method(Proximal(), SOLVED, TIGHT["cg"], Validation(None))
    step = MetaStep(scenario.model, prior, method, scenario.family)
    free = {k: v.detach() for k, v in prior.free.items()}
    both = scenario.family.batch(), scenario.query.batch()
    noise = torch.zeros(1, 4, 0, dtype=F64)
    cold = step(step.params(free, scenario.shared(), 4), *both, noise)
    moved = free | {"mean": free["mean"] + 1e-6}
    params = step.params(moved, scenario.shared(), 4)
    again, warm = step(params, *both, noise), step(params, *both, noise, cold.solved.value)
    assert int(warm.solved.steps.sum()) < int(again.solved.steps.sum())
    assert relative(warm.gradients["anchor"]["mean"], again.gradients["anchor"]["mean"]) < 1e-7


def test_a_fit_with_warm_starts_ends_where_the_other_does():
    scenario = quadratic()
    fits = [
        bm.fit(
            scenario.model, scenario.family, query=scenario.query,
            prior=scenario.prior("isotropic"),
            method=Method(
                Proximal(), SOLVED,
                Implicit(steps=50, tolerance=1e-10, curvature="hessian", warm_start=warm),
                Validation(None),
            ),
        )
        for warm in (False, True)
    ]  # fmt: skip
    torch.testing.assert_close(fits[0].prior.mean, fits[1].prior.mean, rtol=1e-5, atol=1e-5)
