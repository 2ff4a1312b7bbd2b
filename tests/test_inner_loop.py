"""The loop of inner algorithms: stopping, containment, derivatives, a user's own algorithm."""

from __future__ import annotations

import gc
from dataclasses import dataclass, replace

import pytest
import torch
from inner_problems import (
    ALGORITHMS,
    F64,
    THETA0,
    VARIANCES,
    generator,
    minimum,
    names,
    quadratic_problem,
    quadratics,
    regression_problem,
    spiked,
)
from torch.func import vjp

from bayesmeta import families, likelihoods
from bayesmeta.inner import loop
from bayesmeta.inner.first_order import Adam, GradientDescent, Momentum, Nesterov
from bayesmeta.inner.loop import adapt
from bayesmeta.inner.newton import Exact, Newton, NewtonCG
from bayesmeta.inner.quasi_newton import LBFGS
from bayesmeta.results import InputError, Result
from bayesmeta.tasks import TaskFamily

NAN = float("nan")


def test_a_stopped_task_stays_exactly_and_steps_are_counted():
    family = quadratics()
    problem = quadratic_problem(family)
    near = minimum(problem)
    start = torch.where(torch.tensor([True, False, True, False])[:, None], near, problem.start)
    algorithm = GradientDescent(0.1, 500, tolerance=1e-6)
    adapted = adapt(problem, algorithm, theta=start)
    assert adapted.steps[0] == adapted.steps[2] == 0
    assert torch.equal(adapted.theta[::2], near[::2])
    for i in (1, 3):
        count = int(adapted.steps[i])
        alone = adapt(problem, replace(algorithm, tolerance=0.0), steps=count)
        before = adapt(problem, replace(algorithm, tolerance=0.0), steps=count - 1)
        assert torch.equal(alone.theta[i], adapted.theta[i])
        assert alone.residual[i] <= 1e-6 < before.residual[i]


@pytest.mark.parametrize("algorithm", ALGORITHMS.values(), ids=ALGORITHMS)
def test_ragged_tasks_adapt_as_they_do_alone(algorithm):
    family, _ = families.logistic(tasks=3, rows=(2, 12), generator=generator(4))
    algorithm = replace(algorithm, steps=6, tolerance=0.0)
    together = adapt(regression_problem(family, likelihoods.Bernoulli()), algorithm)
    for i in range(3):
        real = family.mask[i]
        alone = TaskFamily.from_tensors(
            **{k: v[i : i + 1, real] for k, v in family.tensors.items()}
        )
        single = adapt(regression_problem(alone, likelihoods.Bernoulli()), algorithm)
        assert torch.allclose(together.theta[i], single.theta[0], rtol=0, atol=1e-10)
        assert together.steps[i] == single.steps[0]


@pytest.mark.parametrize("steps", [20, 400])
def test_divergence_is_coded_and_leaves_the_neighbours_alone(steps):
    family = quadratics()
    algorithm = GradientDescent(0.1, steps)
    healthy = adapt(quadratic_problem(family), algorithm)
    adapted = adapt(quadratic_problem(spiked(family, 1e3)), algorithm)
    others = [0, 2, 3]
    assert torch.equal(adapted.theta[others], healthy.theta[others])
    assert torch.equal(adapted.result[others], healthy.result[others])
    ended = adapted.results()[1]
    assert ended is (Result.diverged if steps == 20 else Result.nonfinite)
    assert adapted.theta.isfinite().all() and adapted.residual.isfinite().all()
    if steps == 400:
        again = adapt(
            quadratic_problem(spiked(family, 1e3)), algorithm, steps=int(adapted.steps[1])
        )
        assert torch.equal(again.theta[1], adapted.theta[1])


def poisoned(family: TaskFamily) -> TaskFamily:
    """The same tasks, with NaN for all data of task 2."""
    tensors = {name: tensor.clone() for name, tensor in family.tensors.items()}
    for tensor in tensors.values():
        tensor[2] = NAN
    return TaskFamily.from_tensors(**tensors)


@pytest.mark.parametrize("algorithm", ALGORITHMS.values(), ids=ALGORITHMS)
@pytest.mark.parametrize("tolerance", [0.0, 1e-6])
def test_a_task_of_nan_is_contained(algorithm, tolerance):
    family = quadratics()
    algorithm = replace(algorithm, steps=10, tolerance=tolerance)
    adapted = adapt(quadratic_problem(poisoned(family)), algorithm)
    healthy = adapt(quadratic_problem(family), algorithm)
    assert adapted.results()[2] is Result.nonfinite and adapted.steps[2] == 0
    assert torch.equal(adapted.theta[2], THETA0)
    others = [0, 1, 3]
    assert torch.equal(adapted.theta[others], healthy.theta[others])
    assert torch.equal(adapted.result[others], healthy.result[others])


def meta_gradient(family, algorithm, weights) -> tuple[torch.Tensor, torch.Tensor]:
    """∂ Σ wᵢ·θᵢ in (θ₀, variances), through all steps."""

    def outcome(theta0, variances):
        theta = adapt(quadratic_problem(family, theta0, variances), algorithm).theta
        return (weights * theta).sum()

    value, pull = vjp(outcome, THETA0, VARIANCES)
    return pull(torch.ones_like(value))


DIFFERENTIABLE = {
    "descent": GradientDescent(0.1, 6),
    "nesterov": Nesterov(0.1, 6, condition=10.0),
    "momentum": Momentum(0.1, 6),
    "adam": Adam(0.1, 6),
    "exact": Exact(),
}


@pytest.mark.parametrize("algorithm", DIFFERENTIABLE.values(), ids=DIFFERENTIABLE)
def test_unrolled_gradients_against_differences(algorithm):
    assert algorithm.differentiable
    family = quadratics()
    weights = torch.randn(4, 3, dtype=F64, generator=generator(5))
    slope, _ = meta_gradient(family, algorithm, weights)

    def outcome(theta0):
        return (weights * adapt(quadratic_problem(family, theta0), algorithm).theta).sum()

    for i, unit in enumerate(1e-5 * torch.eye(3, dtype=F64)):
        difference = (outcome(THETA0 + unit) - outcome(THETA0 - unit)) / 2e-5
        assert slope[i] == pytest.approx(float(difference), rel=1e-6, abs=1e-8)


def broken_and_without(breakage: str):
    """A family with one broken task, and weights of the tasks that count."""
    weights = torch.ones(4, 3, dtype=F64)
    if breakage == "nan":
        weights[2] = 0.0
        return poisoned(quadratics()), weights
    weights[1] = 0.0
    return spiked(quadratics(), 1e60), weights


BREAKAGES = [("nan", name) for name in DIFFERENTIABLE] + [
    ("divergence", name) for name in ("descent", "nesterov", "momentum")
]


@pytest.mark.parametrize(("breakage", "name"), BREAKAGES)
def test_a_broken_task_adds_nothing_to_the_gradient_of_what_is_shared(breakage, name):
    algorithm = DIFFERENTIABLE[name]
    family, counted = broken_and_without(breakage)
    codes = adapt(quadratic_problem(family), algorithm).results()
    assert codes.count(Result.nonfinite) == 1
    expected = meta_gradient(quadratics(), algorithm, counted)
    got = meta_gradient(family, algorithm, torch.ones(4, 3, dtype=F64))
    for one, other in zip(got, expected, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-12)


def test_a_broken_task_adds_nothing_to_the_gradient_of_shared_parameters():
    family, _ = families.linear_gaussian(tasks=4, rows=5, generator=generator(7))
    y = family.tensors["y"].clone()
    y[2] = NAN
    broken = TaskFamily.from_tensors(x=family.tensors["x"], y=y)

    def slopes(family, counted):
        problem = regression_problem(family, likelihoods.Gaussian())

        def outcome(shared):
            theta = adapt(replace(problem, shared=shared), GradientDescent(0.1, 4)).theta
            return theta[counted].sum()

        value, pull = vjp(outcome, problem.shared)
        return pull(torch.ones_like(value))[0]

    expected, got = slopes(family, [0, 1, 3]), slopes(broken, [0, 1, 2, 3])
    assert len(got) == 1
    for name, slope in got.items():
        assert torch.allclose(slope, expected[name]) and slope != 0


def test_planted_without_stand_ins_a_broken_task_spoils_the_gradient(monkeypatch):
    monkeypatch.setattr(loop, "reindexed", lambda problem, index: problem)
    slopes = meta_gradient(poisoned(quadratics()), GradientDescent(0.1, 6), torch.ones(4, 3))
    assert any(slope.isnan().any() for slope in slopes)


def test_planted_without_the_finite_check_a_broken_task_walks_on(monkeypatch):
    monkeypatch.setattr(loop._Point, "finite", lambda point: torch.ones(4, dtype=torch.bool))
    adapted = adapt(quadratic_problem(poisoned(quadratics())), GradientDescent(0.1, 6))
    assert adapted.theta[2].isnan().all()
    assert adapted.steps[2] == 6


def test_algorithms_with_searches_say_so_and_keep_no_graph():
    searching = [GradientDescent(backtracking=True), Nesterov(), Newton(), NewtonCG(), LBFGS()]
    for algorithm in searching:
        assert not algorithm.differentiable
        theta0 = THETA0.clone().requires_grad_()
        adapted = adapt(quadratic_problem(quadratics(), theta0), replace(algorithm, steps=2))
        assert not adapted.theta.requires_grad


@dataclass(frozen=True)
class SignDescent:
    """What a user may write."""

    steps: int = 40
    tolerance: float = 0.0
    differentiable: bool = True
    wrong_shape: bool = False

    def init(self, problem, theta):
        return {"size": torch.full_like(theta[:, :1], 0.5)}

    def step(self, problem, theta, gradient, state):
        moved = theta - state["size"] * gradient.sign()
        return moved[:, :1] if self.wrong_shape else moved, {"size": 0.8 * state["size"]}


def test_an_algorithm_of_the_users_own():
    problem = quadratic_problem(quadratics())
    adapted = adapt(problem, SignDescent())
    assert torch.allclose(adapted.theta, minimum(problem), atol=0.01)
    with pytest.raises(InputError, match="SignDescent.step gave a theta"):
        adapt(problem, SignDescent(wrong_shape=True))


def test_a_warm_start_at_the_optimum_has_converged_without_tolerance():
    problem = quadratic_problem(quadratics())
    adapted = adapt(problem, GradientDescent(0.1, 2), theta=minimum(problem))
    assert names(adapted) == ["converged"] * 4


def live_tensors() -> int:
    gc.collect()
    return sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects())


@pytest.mark.parametrize("algorithm", [GradientDescent(0.1), Adam(0.1), LBFGS(history=3)])
def test_memory_is_flat_in_the_number_of_steps(algorithm):
    counts = {}

    @dataclass(frozen=True)
    class Counting:
        inner: object
        steps: int
        tolerance: float = 0.0
        differentiable: bool = algorithm.differentiable

        def init(self, problem, theta):
            return self.inner.init(problem, theta)

        def step(self, problem, theta, gradient, state):
            seen.append(1)
            if len(seen) == self.steps:
                counts[self.steps] = live_tensors()
            return self.inner.step(problem, theta, gradient, state)

    problem = quadratic_problem(quadratics())
    for steps in (16, 256):
        seen: list[int] = []
        assert not adapt(problem, Counting(algorithm, steps)).theta.requires_grad
    assert counts[16] == counts[256] > 0


def test_the_loop_compiles_to_one_graph():
    problem = quadratic_problem(quadratics())

    def outcome(theta0):
        start = theta0.expand(4, 3)
        moved = replace(problem, start=start, anchor=replace(problem.anchor, mean=start))
        return adapt(moved, GradientDescent(0.1, 3)).theta

    compiled = torch.compile(outcome, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(THETA0), outcome(THETA0), rtol=0, atol=1e-12)


def test_a_start_of_the_wrong_shape_is_refused():
    with pytest.raises(InputError, match=r"\(task, dim\)"):
        adapt(quadratic_problem(quadratics()), GradientDescent(), theta=torch.zeros(3))
