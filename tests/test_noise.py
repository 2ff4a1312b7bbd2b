"""z, which rows, units and normals a path sees, by counting them; and a law known by draws."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from inner_problems import F64, generator, regression_problem
from scipy.stats import chisquare, kstest
from torch import nn

import bayesmeta as bm
from bayesmeta import likelihoods
from bayesmeta.empirical import Empirical
from bayesmeta.inner.first_order import Adam, GradientDescent
from bayesmeta.inner.langevin import SGLD
from bayesmeta.inner.loop import adapt
from bayesmeta.inner.mixture import Mixture
from bayesmeta.inner.newton import Newton
from bayesmeta.inner.noise import Noise, draw_noise, is_random
from bayesmeta.inner.paths import draw_paths
from bayesmeta.methods import (
    Algorithmic,
    FirstOrder,
    Method,
    Score,
    Truncated,
    Unrolled,
    Validation,
)
from bayesmeta.results import InputError

UNLIKELY = 1e-4


def family(*rows: int, holes: bool = False, seed: int = 0) -> bm.TaskFamily:
    """Ragged lines; with `holes` the real rows lie scattered between padding."""
    width = max(rows)
    place = torch.rand(len(rows), width, generator=generator(seed)).argsort(1)
    place = place if holes else torch.arange(width).expand(len(rows), -1)
    mask = place < torch.tensor(rows)[:, None]
    x = torch.randn(len(rows), width, 1, generator=generator(seed + 1), dtype=F64)
    y = torch.randn(len(rows), width, generator=generator(seed + 2), dtype=F64)
    return bm.TaskFamily({"x": x, "y": y}, mask=mask)


def line() -> bm.Model:
    return bm.Model(nn.Linear(1, 1).double(), likelihoods.Gaussian(0.5))


def drawn(algorithm, tasks: bm.TaskFamily, seed: int = 0, dtype=F64) -> Noise:
    like = torch.zeros(len(tasks), 2, dtype=dtype)
    return draw_noise(algorithm, line(), tasks.batch(), like, generator(seed))


def counted(noise: Noise, path: int, step: int) -> list[int]:
    """The rows that count in a step of a path."""
    rows = noise.rows[path, step].tolist()
    real = [True] * len(rows) if noise.real is None else noise.real[path, step].tolist()
    return [row for row, counts in zip(rows, real, strict=True) if counts]


def uniform(codes: torch.Tensor, kinds: int) -> bool:
    """Whether so many kinds of numbers are there, about equally often."""
    _, times = codes.unique(return_counts=True)
    return len(times) == kinds and (kinds == 1 or chisquare(times).pvalue > UNLIKELY)


# Minibatches without replacement


@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 9])
def test_each_pass_uses_every_row_once_and_no_padding(size, holes):
    tasks = family(7, 3, 1, 5, 7, holes=holes)
    noise = drawn(GradientDescent(steps=23, rows=size), tasks)
    for path, count in enumerate(tasks.rows.tolist()):
        rows = set(tasks.mask[path].nonzero().flatten().tolist())
        steps = [counted(noise, path, step) for step in range(23)]
        if count <= size:  # used whole
            assert all(len(step) == count and set(step) == rows for step in steps)
            continue
        assert all(len(step) == size for step in steps)
        stream = [row for step in steps for row in step]
        passes = [stream[i : i + count] for i in range(0, len(stream) - count + 1, count)]
        assert all(set(one) == rows for one in passes)
        assert set(stream) == rows
        assert len({tuple(one) for one in passes}) > 1


def test_every_order_of_the_rows_is_equally_likely_in_every_pass():
    tasks = bm.TaskFamily.from_tensors(x=torch.zeros(3000, 3, 1).double(), y=torch.zeros(3000, 3))
    rows = drawn(GradientDescent(steps=9, rows=1), tasks).rows[..., 0].reshape(-1, 3, 3)
    codes = (rows * torch.tensor([9, 3, 1])).sum(-1)
    for first in range(3):
        assert uniform(codes[:, first], 6)
    # and the order of one pass says nothing of the next
    assert uniform(27 * codes[:, 0] + codes[:, 1], 36)


# With replacement


def test_rows_drawn_with_replacement_are_uniform_and_independent():
    tasks = family(5, 3, 7, 1, holes=True)
    algorithm = GradientDescent(steps=4000, rows=3, replacement=True)
    noise = drawn(algorithm, tasks)
    assert noise.rows.shape == (4, 4000, 3) and noise.real is None
    for path, count in enumerate(tasks.rows.tolist()):
        assert torch.equal(noise.rows[path].unique(), tasks.mask[path].nonzero().flatten())
        assert uniform(noise.rows[path], count)
        after = noise.rows[path, 1:, 0] * 8 + noise.rows[path, :-1, 0]
        beside = noise.rows[path, :, 0] * 8 + noise.rows[path, :, 1]
        for pairs in (after, beside):
            assert uniform(pairs, count**2)


# The scaled gradient


@pytest.mark.parametrize("size", [1, 2, 4])
def test_the_mean_over_all_minibatches_is_the_full_gradient(size):
    tasks = family(5, seed=4)
    choices = torch.tensor(list(combinations(range(5), size)))
    batch = tasks.batch()[torch.zeros(len(choices), dtype=torch.long)]
    whole = regression_problem(tasks, likelihoods.Gaussian(0.5))
    theta = torch.tensor([[0.3, -0.7]], dtype=F64)
    start = whole.start.expand(len(choices), -1)
    problem = replace(whole, batch=batch, start=start, noise=Noise(rows=choices[:, None]))
    seen = problem.during(0)
    there = theta.expand(len(choices), -1)
    found = seen.gradient(there)
    assert torch.allclose(found.mean(0), whole.gradient(theta)[0], rtol=1e-12)
    assert torch.allclose(seen.value(there).mean(), whole.value(theta)[0], rtol=1e-12)
    assert torch.equal(seen.rows, torch.full((len(choices), 1), 5.0, dtype=F64))
    # Only f is scaled; the anchor's pull is there once.
    design = torch.cat([tasks.tensors["x"][0], torch.ones(5, 1, dtype=F64)], 1)
    rest = design @ theta[0] - tasks.tensors["y"][0]
    slopes = design * rest[:, None] / 0.5**2
    expected = 5 / size * slopes[choices].sum(1) + whole.force(theta)
    assert torch.allclose(found, expected, rtol=1e-12)
    # A step per row divides by all rows of the task, not by those of the minibatch.
    step = adapt(problem, GradientDescent(0.1, 1, rows=size)).theta
    assert torch.allclose(step, start - 0.1 * 2 * 0.5**2 / 5 * seen.gradient(start), rtol=1e-12)


def test_padding_changes_nothing_for_the_same_rows():
    alone = family(4, seed=7)
    order = torch.tensor([5, 2, 0, 3])  # where the four rows go
    wide = {"x": torch.full((1, 6, 1), 99.0, dtype=F64), "y": torch.full((1, 6), 99.0, dtype=F64)}
    wide["x"][:, order], wide["y"][:, order] = alone.tensors["x"], alone.tensors["y"]
    mask = torch.zeros(1, 6, dtype=torch.bool)
    mask[:, order] = True
    padded = bm.TaskFamily(wide, mask=mask)
    rows = drawn(GradientDescent(steps=7, rows=3), alone).rows
    ends = []
    for tasks, z in ((alone, Noise(rows=rows)), (padded, Noise(rows=order[rows]))):
        problem = replace(regression_problem(tasks, likelihoods.Gaussian(0.5)), noise=z)
        ends.append(adapt(problem, GradientDescent(0.1, 7, rows=3)).theta)
    assert torch.allclose(*ends, rtol=1e-12)


def test_a_task_used_whole_takes_the_steps_of_all_rows():
    tasks = family(2, 6, 4)
    problem = regression_problem(tasks, likelihoods.Gaussian(0.5))
    algorithm = GradientDescent(0.1, 5, rows=4)
    noisy = replace(problem, noise=drawn(algorithm, tasks))
    found, expected = adapt(noisy, algorithm).theta, adapt(problem, GradientDescent(0.1, 5)).theta
    assert torch.allclose(found[[0, 2]], expected[[0, 2]], rtol=1e-12)
    assert not torch.allclose(found[1], expected[1], rtol=1e-3)


# Independence, and running a path again


def test_noise_is_independent_across_tasks_and_draws():
    tasks = bm.TaskFamily.from_tensors(x=torch.zeros(2, 4, 1).double(), y=torch.zeros(2, 4))
    algorithm = SGLD(0.1, 2, rows=1)
    paths = draw_paths(algorithm, line(), tasks.batch(), torch.zeros(2), 4000, generator())
    (group,) = paths.groups
    assert torch.equal(group.paths, torch.arange(8000))
    assert torch.equal(group.tasks, torch.arange(8000) % 2)
    first = group.noise.rows[:, 0, 0].reshape(4000, 2)
    for one, other in ((first[:, 0], first[:, 1]), (first[1:, 0], first[:-1, 0])):
        assert uniform(4 * one + other, 16)
    flat = group.noise.normals.reshape(4000, -1)  # (draw, task × step × weight)
    together = torch.cat([flat[1:], flat[:-1]], 1)
    assert kstest(flat.flatten().numpy(), "norm").pvalue > UNLIKELY
    away = torch.corrcoef(together.T) - torch.eye(together.shape[1])
    assert away.abs().max() < 5 / 4000**0.5


def test_the_same_seed_is_the_same_noise_in_every_dtype():
    tasks = family(6, 3)
    algorithm = GradientDescent(steps=9, rows=2)
    one, other = drawn(algorithm, tasks), drawn(algorithm, tasks, dtype=torch.float32)
    assert torch.equal(one.rows, other.rows) and torch.equal(one.real, other.real)
    assert not torch.equal(one.rows, drawn(algorithm, tasks, seed=1).rows)
    torch.set_default_dtype(F64)
    try:
        assert torch.equal(one.rows, drawn(algorithm, tasks).rows)
    finally:
        torch.set_default_dtype(torch.float32)
    again = drawn(SGLD(0.1, 3), tasks, seed=5)
    assert torch.equal(again.normals, drawn(SGLD(0.1, 3), tasks, seed=5).normals)


def test_every_rule_runs_the_same_paths():
    tasks = family(6, 4)
    prior = bm.Prior("isotropic").at(mean=torch.zeros(2).double(), variance=1.0)
    values, ends = [], []
    for rule in (
        Unrolled(), Unrolled(checkpoint=1), Truncated(2), Truncated(3, checkpoint=2),
        FirstOrder(), Score(),
    ):  # fmt: skip
        method = Method(
            Algorithmic(anchored=True), SGLD(0.05, 4, rows=2), rule, Validation(3), draws=3
        )
        found = bm.meta_gradient(line(), prior, tasks, method, generator=generator(2))
        values.append(found.value)
        ends.append(found.report.stationarity)
    for value, end in zip(values, ends, strict=True):
        assert torch.allclose(value, values[0], rtol=1e-12)
        assert torch.allclose(end, ends[0], rtol=1e-10)


def test_a_layer_that_drops_everything_gives_zeros():
    module = nn.Sequential(nn.Dropout(1.0), nn.Linear(1, 1)).double()
    model, tasks = bm.Model(module, likelihoods.Gaussian()), family(4)
    algorithm = GradientDescent(0.1, 1, dropout=True)
    prior = bm.Prior("point").at(mean=torch.tensor([2.0, 0.5]).double(), variance=0.0)
    method = Method(Algorithmic(), algorithm, Unrolled(), Validation(None))
    found = bm.meta_gradient(model, prior, tasks, method, generator=generator())
    # With x = 0 only the bias moves, by 2σ²/n of lr times the sum of y − ½; σ is 1.
    y, x = tasks.tensors["y"][0], tasks.tensors["x"][0, :, 0]
    bias = 0.5 + 0.1 * 2 * (y - 0.5).mean()
    assert torch.allclose(found.value, expected_loss(y - 2.0 * x - bias), rtol=1e-6)


def expected_loss(rest: torch.Tensor) -> torch.Tensor:
    return (0.5 * rest.square() + 0.5 * math.log(2 * math.pi)).sum()


def test_some_paths_of_a_noise_are_those_paths():
    tasks = family(6, 4, 5)
    noise = drawn(SGLD(0.1, 3, rows=2), tasks)
    some = noise[torch.tensor([2, 0])]
    assert torch.equal(some.rows, noise.rows[[2, 0]])
    assert torch.equal(some.real, noise.real[[2, 0]])
    assert torch.equal(some.normals, noise.normals[[2, 0]])


@pytest.mark.parametrize(
    ("algorithm", "random"),
    [
        (GradientDescent(), False),
        (Newton(), False),
        (GradientDescent(replacement=True), False),
        (GradientDescent(rows=1), True),
        (Adam(dropout=True), True),
        (SGLD(), True),
        (Mixture((GradientDescent(), Adam())), True),
        (None, False),
    ],
)
def test_what_is_random(algorithm, random):
    assert is_random(algorithm) is random


def test_tasks_without_rows_have_no_minibatches():
    tasks = bm.TaskFamily.from_tensors(c=torch.zeros(2, 3))
    model = bm.Model.from_energy(lambda theta, c: (theta - c).square().sum(), 3)
    with pytest.raises(InputError, match=r"rows=2 .* no row axis: give mask= .* leave rows= out"):
        draw_noise(Adam(rows=2), model, tasks.batch(), torch.zeros(2, 3), generator())


# A law known by draws


@pytest.mark.parametrize("shape", [(40, 3), (40, 5, 3)])
def test_moments_of_draws_against_numpy(shape):
    draws = torch.randn(shape, generator=generator(), dtype=F64) * torch.tensor([1.0, 5.0, 0.2])
    law, values = Empirical(draws), draws.numpy()
    assert law.dim == 3 and not law.is_point
    assert np.allclose(law.mean, values.mean(0)) and np.allclose(law.sd(), values.std(0, ddof=1))
    assert np.allclose(law.variance(), values.var(0, ddof=1))
    tasks = values[:, None] if len(shape) == 2 else values
    for task in range(tasks.shape[1]):
        covariance = law.covariance().reshape(-1, 3, 3)[task]
        assert np.allclose(covariance, np.cov(tasks[:, task].T))
        assert np.allclose(law.correlation().reshape(-1, 3, 3)[task], np.corrcoef(tasks[:, task].T))
    if len(shape) == 3:
        some = law[torch.tensor([4, 0])]
        assert torch.equal(some.draws, draws[:, [4, 0]])
    assert torch.equal(law.map(lambda t: 2 * t).mean, 2 * law.mean)


def test_a_weight_that_never_moves_has_no_correlation():
    draws = torch.randn(30, 2, 2, generator=generator(), dtype=F64)
    draws[:, 1, 0] = 0.1
    found = Empirical(draws).correlation()
    assert found[0].isfinite().all() and torch.allclose(found[0].diagonal(), torch.ones(2).double())
    assert found[1, 0].isnan().all() and found[1, :, 0].isnan().all()
    assert found[1, 1, 1] == pytest.approx(1)


def test_samples_repeat_no_draw_before_all_were_given():
    draws = torch.arange(12.0)[:, None, None].expand(12, 2, 1)
    law = Empirical(draws)
    some = law.sample(12, generator(2)).flatten(1)
    assert torch.equal(some.sort(0).values, draws.flatten(1))
    assert not torch.equal(some, draws.flatten(1))
    assert torch.equal(some, law.sample(12, generator(2)).flatten(1))
    assert len(law.sample(7, generator()).unique()) == 7
    _, times = law.sample(30, generator())[:, 0].unique(return_counts=True)
    assert sorted(times.tolist()) == [2] * 6 + [3] * 6
