"""What reviewers broke: each was a silent wrong number or a stack trace once."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn

import bayesmeta as bm
from bayesmeta.results import InputError

m = bm.methods
PLAIN = m.Validation(None)


def sinusoids(tasks: int = 4, rows: int = 6, seed: int = 0) -> bm.TaskFamily:
    generator = torch.Generator().manual_seed(seed)
    family, _ = bm.families.sinusoid(tasks=tasks, rows=rows, noise=0.1, generator=generator)
    return family


def network(scale: float | None = 0.3) -> bm.Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(1, 3), nn.Tanh(), nn.Linear(3, 1))
    return bm.Model(module, bm.likelihoods.Gaussian(scale))


def prior(model: bm.Model) -> bm.Prior:
    return bm.Prior("isotropic").at(mean=model.start.double(), variance=0.1)


def test_inference_mode_changes_nothing():
    family, model = sinusoids(), network()
    for method in (m.imaml(steps=20, lr=0.05, support=None), m.laplace(), m.fomaml(support=None)):
        outside = bm.meta_gradient(model, prior(model), family, method)
        with torch.inference_mode():
            inside = bm.meta_gradient(model, prior(model), family, method)
        torch.testing.assert_close(inside.per_task.clone(), outside.per_task)


@pytest.mark.parametrize("scale", [1.0, 1e-8, 1e8])
def test_a_network_is_not_linear_in_any_units(scale):
    family = sinusoids()
    scaled = bm.TaskFamily.from_tensors(x=scale * family.tensors["x"], y=family.tensors["y"])
    module = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Tanh()).double()
    assert not bm.Model(module, bm.likelihoods.Gaussian()).is_affine(scaled)
    assert bm.Model(nn.Linear(1, 1).double(), bm.likelihoods.Gaussian()).is_affine(scaled)


@pytest.mark.parametrize(
    "inner", [m.Momentum(0.02, 12), m.Adam(0.05, 12), m.Nesterov(0.02, 12, condition=10.0)]
)
def test_truncation_cuts_the_derivative_and_not_the_algorithm(inner):
    family, model = sinusoids(), network()
    values = {
        rule: bm.meta_gradient(
            model, prior(model), family, m.Method(m.Algorithmic(), inner, rule, PLAIN)
        )
        for rule in (m.Unrolled(), m.FirstOrder(), m.Truncated(5), m.Truncated(12))
    }
    whole = values[m.Unrolled()]
    for found in values.values():
        torch.testing.assert_close(found.value, whole.value)
        assert found.report.steps.tolist() == [12] * 4
    torch.testing.assert_close(values[m.Truncated(12)].per_task, whole.per_task)


def test_a_divergence_before_the_cut_is_seen():
    model = bm.Model(nn.Linear(1, 1), bm.likelihoods.Gaussian(0.3))
    method = m.Method(m.Algorithmic(), m.GradientDescent(10.0, 15), m.Truncated(1), PLAIN)
    report = bm.meta_gradient(model, prior(model), sinusoids(), method).report
    assert {r.name for r in report.result} == {"diverged"}


def test_a_broken_task_does_not_end_the_audit_of_the_others():
    family, model = sinusoids(), bm.Model(nn.Linear(1, 1), bm.likelihoods.Gaussian(0.3))
    y = family.tensors["y"].clone()
    y[0, 0] = torch.nan
    broken = bm.TaskFamily.from_tensors(x=family.tensors["x"], y=y)
    method = m.imaml(support=None, steps=2000, lr=0.05, lam=1.0, cg_steps=20)
    report = bm.meta_gradient(model, prior(model), broken, method, audit=3).report
    assert report.audits["0"].error != report.audits["0"].error
    assert max(report.audits[name].error for name in "12") < 1e-6


class InPlace:
    steps, tolerance, differentiable = 3, 0.0, True

    def init(self, problem, theta):
        return None

    def step(self, problem, theta, gradient, state):
        theta -= 0.002 * gradient
        return theta, state


def test_a_step_in_place_leaves_the_prior_alone():
    model = bm.Model(nn.Linear(1, 1), bm.likelihoods.Gaussian(0.3))
    start, family = prior(model), sinusoids(tasks=1)
    method = m.Method(m.Proximal(), InPlace(), m.FirstOrder(), PLAIN)
    first = bm.meta_gradient(model, start, family, method)
    second = bm.meta_gradient(model, start, family, method)
    assert first.value == second.value
    torch.testing.assert_close(start().mean, model.start.double())


def test_a_step_that_returns_something_else_is_a_sentence():
    class Forgets(InPlace):
        def step(self, problem, theta, gradient, state):
            return theta

    model = network()
    method = m.Method(m.Algorithmic(), Forgets(), m.FirstOrder(), PLAIN)
    with pytest.raises(InputError, match=r"Forgets.step must return a pair"):
        bm.meta_gradient(model, prior(model), sinusoids(), method)


def test_the_evidence_of_a_gaussian_posterior_is_no_single_draw():
    generator = torch.Generator().manual_seed(0)
    family, _ = bm.families.linear_gaussian(tasks=6, rows=6, generator=generator)
    model = bm.Model(nn.Linear(1, 1), bm.likelihoods.Gaussian(0.3))
    held = bm.Prior("diagonal", learn="none").at(mean=torch.zeros(2).double(), variance=1.0)
    exact = bm.fit(model, family, prior=held).log_evidence
    method = m.variational_imaml(
        covariance="full", steps=500, lr=0.1, outer_steps=1, curvature="hessian"
    )
    for beta in (1.0, 0.1):
        chosen = replace(method, objective=m.Variational(beta))
        found = bm.fit(model, family, prior=held, method=chosen).log_evidence
        # Q_i is the posterior itself here, so the bound is the evidence.
        assert found == pytest.approx(exact, abs=0.3)


def test_query_tasks_are_paired_by_name():
    model, method = network(), m.imaml(steps=10, lr=0.05)
    family = bm.TaskFamily(sinusoids().tensors, names=list("abcd"))
    query = bm.TaskFamily(sinusoids(seed=1).tensors, names=list("abcd"))
    straight = bm.meta_gradient(model, prior(model), family, method, query=query)
    turned = bm.meta_gradient(model, prior(model), family, method, query=query.subset(list("dcba")))
    torch.testing.assert_close(turned.per_task, straight.per_task)
    stranger = bm.TaskFamily(query.tensors, names=list("abcx"))
    with pytest.raises(InputError, match="query task 'x' is not among the tasks"):
        bm.meta_gradient(model, prior(model), family, method, query=stranger)


def test_padding_of_query_and_new_tasks_is_no_data():
    energy = bm.Model.from_energy(lambda t, x, y: ((t * x[:, 0] - y) ** 2).sum(), 1)
    start = bm.Prior("isotropic").at(mean=torch.zeros(1).double(), variance=1.0)
    rows = sinusoids(tasks=2).tensors
    ragged = bm.TaskFamily.from_tensors(
        x=[rows["x"][0][:2], rows["x"][1]], y=[rows["y"][0][:2], rows["y"][1]]
    )
    with pytest.raises(InputError, match="padding"):
        bm.meta_gradient(energy, start, sinusoids(tasks=2), m.imaml(), query=ragged)


def test_one_short_task_costs_only_its_own_value():
    model = bm.Model(nn.Linear(1, 1), bm.likelihoods.Gaussian(0.3))
    fit = bm.fit(model, sinusoids(), method=m.maml(outer_steps=2), standardise=False)
    rows = sinusoids(tasks=3).tensors
    mask = torch.ones(3, 6, dtype=torch.bool)
    mask[1, 1:] = False
    new = fit.adapt(bm.TaskFamily.from_tensors(x=rows["x"], y=rows["y"], mask=mask))
    assert new.task_evidence.isnan().tolist() == [False, True, False]
    assert new.posterior.mean.isfinite().all()


def test_laplace_with_an_outer_loop_of_its_own_gets_it():
    model = bm.Model(nn.Linear(1, 1), bm.likelihoods.Gaussian(0.3))
    solvers = {
        bm.fit(model, sinusoids(), method=method).solver
        for method in (m.laplace(optimiser="adam", outer_steps=3), m.laplace(outer_steps=3))
    }
    assert solvers == {"amortised", "profile"}


@dataclass(frozen=True)
class Adam(m.Adam):
    """A user's own, of the same name."""


def test_a_users_class_is_not_taken_for_the_librarys():
    method = m.Method(m.Algorithmic(), Adam(steps=3), m.Unrolled(), PLAIN)
    assert method.to_json()["inner"]["kind"] == "custom"


def test_frozen_weights_stay_where_they_are():
    model = network()
    model.module[0].requires_grad_(False)
    model = bm.Model(model.module, bm.likelihoods.Gaussian(0.3))
    assert model.dim == 4
    assert not model.shared
    fit = bm.fit(model, sinusoids(), method=m.maml(support=None, outer_steps=5))
    frozen = fit.model.module[0].weight
    torch.testing.assert_close(frozen, model.module[0].weight.double())


def test_precisions_are_brought_together():
    model, single = network(), network().start.float()
    start = bm.Prior("isotropic").at(mean=single, variance=0.1)
    method = m.imaml(steps=5, lr=0.05)
    query = sinusoids(seed=1).to(dtype=torch.float32)
    found = bm.meta_gradient(model, start, sinusoids(), method, query=query)
    assert found.theta0.dtype == torch.float64
    fit = bm.fit(model, sinusoids(), method=m.maml(outer_steps=2))
    assert fit.adapt(sinusoids(seed=2).to(dtype=torch.float32)).posterior.mean.isfinite().all()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: m.imaml(lam=float("inf")), "positive number"),
        (lambda: m.imaml(cg_steps=2.5), "whole number"),
        (lambda: m.truncated_maml(last=1.5), "whole number"),
        (lambda: m.maml(batch=2.5), "whole number"),
        (lambda: m.maml(inner_steps=3), "no option 'inner_steps'"),
        (
            lambda: m.Method(
                m.Algorithmic(), m.GradientDescent(0.1, 3, learn_lr=True), m.FirstOrder(), PLAIN
            ),
            "learned step sizes get no gradient",
        ),
    ],
)
def test_options_that_mean_nothing_are_sentences(make, said):
    with pytest.raises(InputError, match=said):
        make()


def test_a_module_that_vmap_cannot_take_is_a_sentence():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(1, 1)

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.dropout(self.layer(x), 0.5)

    with pytest.raises(InputError, match="not on all tasks at once"):
        bm.fit(bm.Model(Noisy(), bm.likelihoods.Gaussian(0.3)), sinusoids(), method=m.maml())


def test_whole_numbers_as_response_of_a_real_likelihood_are_a_sentence():
    family = bm.TaskFamily.from_tensors(
        x=sinusoids().tensors["x"], y=torch.ones(4, 6, dtype=torch.long)
    )
    with pytest.raises(InputError, match="y is int64"):
        bm.fit(network(), family)


def test_learning_the_noise_does_not_change_the_inner_steps():
    generator = torch.Generator().manual_seed(0)
    family, _ = bm.families.linear_gaussian(tasks=20, rows=10, noise=0.1, generator=generator)
    thetas = []
    for scale in (0.05, 1.0):
        model = bm.Model(nn.Linear(1, 1), bm.likelihoods.Gaussian(scale))
        start = bm.Prior("isotropic").at(mean=torch.zeros(2).double(), variance=1.0)
        method = m.maml(steps=5, lr=0.1, support=None)
        step = bm.meta_gradient(model, start, family, method)
        thetas.append(step.per_task * scale**2)  # ∇g is in nats
    torch.testing.assert_close(*thetas)
    fit = bm.fit(
        bm.Model(nn.Linear(1, 1), bm.likelihoods.Gaussian()),
        family,
        seed=1,
        method=m.imaml(lam=0.1, lr=0.2, steps=3, outer_steps=600, outer_lr=0.03),
    )
    # Its residuals tell the noise: those of half of a task's rows, adapted to the others.
    assert 0.1 < fit.noise < 0.6
    scale = 2 * fit.noise**2
    torch.testing.assert_close(
        fit.prior.sd() ** 2, torch.full((2,), scale / (0.1 * 10)).double(), check_dtype=False
    )
