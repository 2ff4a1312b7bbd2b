"""Random inner algorithms: against torch.optim, closed forms of their chains, and loops by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from inner_problems import (
    F64,
    THETA0,
    VARIANCES,
    generator,
    minimum,
    quadratic_problem,
    quadratics,
)
from scipy.stats import chisquare
from torch import nn

import bayesmeta as bm
from bayesmeta import families, likelihoods
from bayesmeta.amortised.meta_gradient import prepared
from bayesmeta.gaussian import Gaussian
from bayesmeta.inner.first_order import Adam, GradientDescent, Momentum, Nesterov, RMSProp
from bayesmeta.inner.langevin import SGLD
from bayesmeta.inner.loop import adapt
from bayesmeta.inner.mixture import Mixture
from bayesmeta.inner.noise import draw_noise
from bayesmeta.inner.paths import draw_paths
from bayesmeta.inner.problem import InnerProblem
from bayesmeta.methods import Algorithmic, Method, Unrolled, Validation
from bayesmeta.results import InputError

SIGMA = 0.5


def lines(tasks: int = 3, rows=(3, 8), seed: int = 0) -> bm.TaskFamily:
    return families.linear_gaussian(tasks=tasks, rows=rows, generator=generator(seed))[0]


def line() -> bm.Model:
    return bm.Model(nn.Linear(1, 1), likelihoods.Gaussian(SIGMA)).double()


def line_problem(family: bm.TaskFamily) -> InnerProblem:
    model = line()
    shared = {k: v.detach() for k, v in model.shared.items()}
    start = torch.tensor([0.5, -0.5], dtype=F64).expand(len(family), 2)
    return InnerProblem(model, family.batch(), shared, start, None)


def close(one: torch.Tensor, other: torch.Tensor, rtol: float = 1e-11) -> bool:
    return torch.allclose(one, other, rtol=rtol, atol=0)


def noisy(problem: InnerProblem, algorithm, seed: int = 0) -> InnerProblem:
    noise = draw_noise(algorithm, problem.model, problem.batch, problem.start, generator(seed))
    return replace(problem, noise=noise)


# First-order algorithms on a given sequence of minibatches


def test_rmsprop_against_torch_optim():
    problem = quadratic_problem(quadratics(tasks=1))
    theta = problem.start.clone().requires_grad_()
    optimizer = torch.optim.RMSprop([theta], lr=0.05, alpha=0.9, eps=1e-6)
    for _ in range(9):
        theta.grad = problem.gradient(theta.detach())
        optimizer.step()
    found = adapt(problem, RMSProp(0.05, 9, decay=0.9, epsilon=1e-6)).theta
    assert torch.allclose(found, theta.detach(), rtol=0, atol=1e-12)


def hand_written_nesterov(theta, gradient_at, steps: int, lr: float, beta: float):
    before = theta
    for step in range(steps):
        now = theta - lr * gradient_at(theta, step)
        theta, before = now + beta * (now - before), now
    return theta


@pytest.mark.parametrize("replacement", [False, True])
@pytest.mark.parametrize(
    ("algorithm", "theirs"),
    [
        (GradientDescent(0.2, 9, rows=2), lambda p, s: torch.optim.SGD(p, 0.2 * s)),
        (GradientDescent(0.02, 9, rows=4, per="task"), lambda p, s: torch.optim.SGD(p, 0.02)),
        (
            Momentum(0.1, 9, momentum=0.7, rows=3),
            lambda p, s: torch.optim.SGD(p, 0.1 * s, momentum=0.7),
        ),
        (Adam(0.1, 9, rows=2), lambda p, s: torch.optim.Adam(p, 0.1)),
        (RMSProp(0.1, 9, rows=1), lambda p, s: torch.optim.RMSprop(p, 0.1)),
        (Nesterov(0.1, 9, condition=9.0, rows=2), None),
    ],
)
def test_first_order_algorithms_on_the_minibatches_of_z(algorithm, theirs, replacement):
    """f of a minibatch, times n_i / rows, written out; a step per row is 2σ²/n_i of lr."""
    algorithm = replace(algorithm, replacement=replacement)
    family = lines(rows=(3, 8))
    problem = noisy(line_problem(family), algorithm)
    found = adapt(problem, algorithm).theta
    noise = problem.noise
    for task, count in enumerate(family.rows.tolist()):
        x, y = family.tensors["x"][task, :, 0], family.tensors["y"][task]

        def gradient_at(theta, step, task=task, count=count, x=x, y=y):
            rows = noise.rows[task, step]
            rows = rows if noise.real is None else rows[noise.real[task, step]]
            theta = theta.detach().requires_grad_()
            rest = y[rows] - theta[0] * x[rows] - theta[1]
            loss = count / len(rows) * (rest / SIGMA).square().sum() / 2
            return torch.autograd.grad(loss, theta)[0]

        theta, scale = problem.start[task].clone(), 2 * SIGMA**2 / count
        if theirs is None:
            theta = hand_written_nesterov(theta, gradient_at, 9, 0.1 * scale, (3 - 1) / (3 + 1))
        else:
            optimizer = theirs([theta.requires_grad_()], scale)
            for step in range(9):
                theta.grad = gradient_at(theta, step)
                optimizer.step()
        assert close(found[task], theta.detach())


# Langevin dynamics


def chain(problem: InnerProblem, steps: int, lr: float, temperature: float = 1.0):
    """Mean (task, dim) and covariance of Langevin iterates on a quadratic F, from θ₀.

    θ' = θ − ε B (θ − θ*) + √(2ετ) ξ is an autoregression of order one with R = I − ε B.
    """
    a, c = problem.batch.tensors["A"], problem.batch.tensors["c"]
    centre = c if problem.anchor is None else minimum(problem)
    b = a if problem.anchor is None else a + torch.diag(1 / VARIANCES)
    shrink = torch.eye(3, dtype=F64) - lr * b
    mean, covariance = problem.start, torch.zeros_like(a)
    for _ in range(steps):
        mean = centre + (shrink @ (mean - centre)[..., None])[..., 0]
        covariance = shrink @ covariance @ shrink + 2 * lr * temperature * torch.eye(3, dtype=F64)
    return mean, covariance, b


@pytest.mark.parametrize("anchored", [False, True])
@pytest.mark.parametrize(("steps", "temperature"), [(3, 1.0), (60, 1.0), (3, 0.3)])
def test_langevin_iterates_have_the_moments_of_their_autoregression(anchored, steps, temperature):
    runs, lr = 8000, 0.12
    family = quadratics(tasks=2, seed=3)
    problem = quadratic_problem(family, variances=VARIANCES if anchored else None)
    mean, covariance, b = chain(problem, steps, lr, temperature)
    algorithm = SGLD(lr, steps, temperature=temperature, per="task")
    paths = draw_paths(algorithm, problem.model, problem.batch, THETA0, runs, generator(1))
    (group,) = paths.groups
    start = THETA0.expand(2 * runs, -1)
    anchor = Gaussian(start, VARIANCES) if anchored else None
    support = group.support(problem.batch)
    many = InnerProblem(problem.model, support, {}, start, anchor, group.noise)
    theta = adapt(many, algorithm).theta.reshape(runs, 2, 3)
    error = covariance.diagonal(dim1=1, dim2=2).sqrt() / runs**0.5
    assert ((theta.mean(0) - mean) / error).abs().max() < 4.5
    away = (theta - mean).movedim(0, 1)
    found = away.mT @ away / runs
    size = covariance.diagonal(dim1=1, dim2=2).sqrt()
    spread = size[:, :, None] * size[:, None] * (2 / runs) ** 0.5
    assert ((found - covariance) / spread).abs().max() < 4.5
    if steps == 60:  # stationary: N(θ*, B⁻¹ (I − ε B / 2)⁻¹), the posterior but for O(ε)
        limit = torch.linalg.inv(b) @ torch.linalg.inv(torch.eye(3, dtype=F64) - lr / 2 * b)
        assert torch.allclose(covariance, limit, rtol=1e-4)


def test_temperature_scales_the_noise_by_its_root_and_a_row_divides_the_step():
    family = lines()
    problem = line_problem(family)
    size = 0.1 * 2 * SIGMA**2 / family.rows[:, None].double()
    still = problem.start - size * problem.gradient(problem.start)
    hot, cold = (
        adapt(noisy(problem, a), a).theta - still
        for a in (SGLD(0.1, 1), SGLD(0.1, 1, temperature=0.04))
    )
    assert close(cold, 0.2 * hot)
    z = noisy(problem, SGLD(0.1, 1)).noise.normals[:, 0]
    assert close(hot, (2 * size).sqrt() * z)
    per_task = SGLD(0.1, 1, per="task")
    found = adapt(noisy(problem, per_task), per_task).theta
    expected = problem.start - 0.1 * problem.gradient(problem.start) + 0.2**0.5 * z
    assert close(found, expected)


def test_preconditioned_langevin_by_its_formula():
    problem = quadratic_problem(quadratics(tasks=2))
    algorithm = SGLD(
        0.05, 6, temperature=0.5, per="task", preconditioned=True, decay=0.8, damping=0.1
    )
    problem = noisy(problem, algorithm)
    theta, v = problem.start, None
    for step in range(6):
        slope = problem.gradient(theta)
        v = 0.8 * (slope**2 if step == 0 else v) + 0.2 * slope**2
        d = 1 / (0.1 + v**0.5)
        jump = (2 * 0.05 * 0.5 * d) ** 0.5 * problem.noise.normals[:, step]
        theta = theta - 0.05 * d * slope + jump
    assert close(adapt(problem, algorithm).theta, theta)


# Mixtures


def test_a_mixture_draws_its_algorithms_by_their_weights_independently():
    parts = (GradientDescent(0.1, 2), SGLD(0.1, 3), Adam(0.1, 1), RMSProp(0.1, 1))
    mixture = Mixture(parts, weights=(0.2, 0.3, 0.5, 0.0))
    problem = quadratic_problem(quadratics(tasks=3))
    paths = draw_paths(mixture, problem.model, problem.batch, THETA0, 1500, generator())
    assert [group.algorithm for group in paths.groups] == list(parts[:3])
    everyone = torch.cat([group.paths for group in paths.groups])
    assert torch.equal(everyone.sort().values, torch.arange(4500))
    counts = [len(group.paths) for group in paths.groups]
    assert chisquare(counts, [900, 1350, 2250]).pvalue > 1e-4
    choice = torch.zeros(4500, dtype=torch.long)
    for number, group in enumerate(paths.groups):
        assert torch.equal(group.tasks, group.paths % 3)
        choice[group.paths] = number
    pairs = (3 * choice[1:] + choice[:-1]).bincount(minlength=9)
    chances = torch.tensor([0.2, 0.3, 0.5], dtype=F64)
    expected = (chances[:, None] * chances).flatten() * 4499
    assert chisquare(pairs, expected).pvalue > 1e-4


def test_every_path_of_a_mixture_is_one_run_of_its_own_algorithm():
    family = lines(tasks=2)
    model = line()
    prior = bm.Prior("isotropic").at(mean=torch.zeros(2).double(), variance=2.0)
    mixture = Mixture((GradientDescent(0.2, 4, rows=2), SGLD(0.05, 3), Adam(0.3, 2, rows=1)))
    paths = draw_paths(mixture, model, family.batch(), torch.zeros(2).double(), 4, generator(3))
    assert len(paths.groups) == 3
    losses = torch.zeros(4, 2, dtype=F64)
    shared = {k: v.detach() for k, v in model.shared.items()}
    for group in paths.groups:
        for place, path in enumerate(group.paths.tolist()):
            task = path % 2
            alone = family.batch(torch.tensor([task]))
            start = torch.zeros(1, 2, dtype=F64)
            anchor = Gaussian(start, torch.full((2,), 2.0, dtype=F64))
            noise = group.noise[torch.tensor([place])]
            problem = InnerProblem(model, alone, shared, start, anchor, noise)
            theta = adapt(problem, group.algorithm).theta
            losses[path // 2, task] = model.energies(theta, alone)[0]
    method = Method(Algorithmic(anchored=True), mixture, Unrolled(), Validation(None), draws=4)
    found = bm.meta_gradient(model, prior, family, method, generator=generator(3))
    assert close(found.value, losses.mean(0).sum())


def test_a_mixture_over_numbers_is_their_grid():
    mixture = Mixture.over(Adam(0.5, 7), lr=(0.1, 0.2), rows=iter((None, 3)))
    expected = [Adam(lr, 7, rows=rows) for lr in (0.1, 0.2) for rows in (None, 3)]
    assert list(mixture.algorithms) == expected and mixture.steps == 7
    with pytest.raises(InputError, match=r"Adam has no 'momentum'; it has betas, .*steps"):
        Mixture.over(Adam(), momentum=(0.1,))


# Dropout


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(2, 6), nn.Tanh(), nn.Sequential(nn.Dropout(0.25), nn.Linear(6, 5))
        )
        self.drop, self.head = nn.Dropout(0.4), nn.Linear(5, 1)

    def forward(self, x):
        return self.head(self.drop(torch.tanh(self.body(x))))


def nested(mode: bool = True) -> bm.Model:
    module = Nested().double().train(mode)
    with torch.no_grad():
        for i, p in enumerate(module.parameters()):
            p.copy_(torch.randn(p.shape, generator=generator(i), dtype=F64) * 0.5)
    return bm.Model(module, likelihoods.Gaussian(SIGMA)).double()


def planes() -> bm.TaskFamily:
    x = torch.randn(4, 6, 2, generator=generator(9), dtype=F64)
    y = torch.randn(4, 6, generator=generator(8), dtype=F64)
    return bm.TaskFamily.from_tensors(x=x, y=y)


DROPPING = GradientDescent(0.05, 3, dropout=True)


def dropping(algorithm, mode: bool = True, seed: int = 0) -> InnerProblem:
    family = planes()
    method = Method(Algorithmic(), algorithm, Unrolled(), Validation(None))
    model = prepared(nested(mode), family, method)
    shared = {k: v.detach() for k, v in model.shared.items()}
    start = model.start.expand(4, -1)
    return noisy(InnerProblem(model, family.batch(), shared, start, None), algorithm, seed)


@pytest.mark.parametrize("rows", [None, 2])
@pytest.mark.parametrize("mode", [True, False])
def test_dropped_units_are_those_of_z_in_every_task_and_step(rows, mode):
    """The network written out, in training and in eval mode alike."""
    algorithm = replace(DROPPING, rows=rows)
    problem = dropping(algorithm, mode)
    found = adapt(problem, algorithm).theta
    family, noise, model = planes(), problem.noise, problem.model
    inner, outer = (noise.keep[name] for name in ("module.body.2.0", "module.drop"))
    width = rows or 6
    assert inner.shape == (4, 3, width, 6) and outer.shape == (4, 3, width, 5)
    for task in range(4):
        theta = model.start.clone()
        for step in range(3):
            seen = torch.arange(6) if rows is None else noise.rows[task, step]
            at = theta.clone().requires_grad_()
            w = model.unflatten(at)
            a, b, c, d, e, f = w.values()
            hidden = torch.tanh(family.tensors["x"][task, seen] @ a.T + b)
            hidden = hidden * inner[task, step] / 0.75 @ c.T + d
            out = (torch.tanh(hidden) * outer[task, step] / 0.6 @ e.T + f)[:, 0]
            loss = ((family.tensors["y"][task, seen] - out) / SIGMA).square().sum() / 2
            (slope,) = torch.autograd.grad(6 / width * loss, at)
            theta = theta - 0.05 * 2 * SIGMA**2 / 6 * slope
        assert close(found[task], theta)


def test_units_stay_with_probability_one_minus_p():
    algorithm = replace(DROPPING, steps=400)
    keep = dropping(algorithm).noise.keep
    for name, p in (("module.body.2.0", 0.25), ("module.drop", 0.4)):
        units = keep[name]
        count = units.numel()
        assert abs(units.sum() - (1 - p) * count) < 4.5 * (p * (1 - p) * count) ** 0.5
        # E[x · keep / (1 − p)] = x, unit by unit
        mean = (units.to(F64) / (1 - p)).mean(1)
        assert ((mean - 1).abs() < 5 * (p / (1 - p) / 400) ** 0.5).all()
        for other in (units[1:, :, 0, 0] == units[:-1, :, 0, 0], units[:, 1:] == units[:, :-1]):
            same, count = p**2 + (1 - p) ** 2, other.numel()
            assert abs(other.sum() - same * count) < 6 * (same * (1 - same) * count) ** 0.5


def test_losses_and_predictions_drop_nothing():
    problem = dropping(DROPPING)
    plain = nested(mode=False)
    theta = problem.start + 0.1
    batch = planes().batch()
    assert torch.equal(problem.model.energies(theta, batch), plain.energies(theta, batch))
    assert torch.equal(problem.model.predict(theta, batch), plain.predict(theta, batch))
    still = adapt(replace(problem, noise=None), GradientDescent(0.05, 3)).theta
    assert not torch.allclose(adapt(problem, DROPPING).theta, still, rtol=1e-3)


@pytest.mark.parametrize("module", [nn.Linear(2, 1), nn.Sequential(nn.Dropout(0), nn.Linear(2, 1))])
def test_a_module_without_dropout_is_refused(module):
    method = Method(Algorithmic(), Adam(dropout=True), Unrolled(), Validation(None))
    prior = bm.Prior("point").at(mean=torch.zeros(3).double(), variance=0.0)
    model = bm.Model(module, likelihoods.Gaussian())
    with pytest.raises(InputError, match=r"no nn.Dropout with p > 0: .* leave dropout= out"):
        bm.meta_gradient(model, prior, planes(), method, generator=generator())


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.drop = nn.Linear(2, 2), nn.Linear(2, 1), nn.Dropout(0.5)

    def forward(self, x):
        return self.b(self.drop(self.a(self.drop(x))))


@pytest.mark.parametrize("mode", [True, False])
def test_a_layer_in_two_places_drops_other_units_in_each_or_is_refused(mode):
    layer, method = nn.Dropout(0.5), Method(Algorithmic(), DROPPING, Unrolled(), Validation(None))
    body = nn.Sequential(layer, nn.Linear(2, 2), layer, nn.Linear(2, 1)).train(mode)
    family, like = planes(), torch.zeros(4, 9)
    placed = prepared(bm.Model(body, likelihoods.Gaussian()), family, method)
    keep = draw_noise(DROPPING, placed, family.batch(), like, generator()).keep
    assert not torch.equal(*keep.values())
    called = prepared(bm.Model(Twice().train(mode), likelihoods.Gaussian()), family, method)
    with pytest.raises(InputError, match=r"'drop' is used 2 times.* a layer of its own"):
        draw_noise(DROPPING, called, family.batch(), like, generator())


def test_a_module_in_training_mode_is_refused_where_no_algorithm_drops():
    method = Method(Algorithmic(), Adam(rows=2), Unrolled(), Validation(None))
    prior = bm.Prior("point").at(mean=nested().start, variance=0.0)
    with pytest.raises(InputError, match=r"give that algorithm dropout=True"):
        bm.meta_gradient(nested(), prior, planes(), method, generator=generator())
    bm.meta_gradient(nested(mode=False), prior, planes(), method, generator=generator())
