"""Inner algorithms against closed forms, numpy, torch.optim, and each other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from inner_problems import (
    ALGORITHMS,
    F64,
    THETA0,
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
from bayesmeta.inner.first_order import Adam, GradientDescent, Momentum, Nesterov
from bayesmeta.inner.loop import adapt
from bayesmeta.inner.newton import Exact, Newton, NewtonCG
from bayesmeta.inner.problem import InnerProblem
from bayesmeta.inner.quasi_newton import LBFGS
from bayesmeta.models import Model
from bayesmeta.results import InputError
from bayesmeta.tasks import TaskFamily

NAN = float("nan")


@pytest.mark.parametrize("algorithm", ALGORITHMS.values(), ids=ALGORITHMS)
def test_every_algorithm_finds_the_minimum_of_anchored_quadratics(algorithm):
    problem = quadratic_problem(quadratics())
    adapted = adapt(problem, algorithm)
    assert names(adapted) == ["converged"] * 4
    assert torch.allclose(adapted.theta, minimum(problem), rtol=0, atol=10 * algorithm.tolerance)
    residual = torch.linalg.vector_norm(problem.gradient(adapted.theta), dim=-1)
    assert torch.equal(adapted.residual, residual)


def numpy_newton(x, y, theta0, precision) -> np.ndarray:
    """Logistic regression with a Gaussian prior, by Newton's method written out."""
    design = np.stack([x, np.ones_like(x)], 1)
    theta = theta0.copy()
    for _ in range(50):
        p = 1 / (1 + np.exp(-design @ theta))
        slope = design.T @ (p - y) + precision @ (theta - theta0)
        hessian = (design.T * (p * (1 - p))) @ design + precision
        theta -= np.linalg.solve(hessian, slope)
    return theta


@pytest.mark.parametrize(
    "algorithm",
    [
        GradientDescent(0.05, 3000, per="task", tolerance=1e-8),
        GradientDescent(1.0, 3000, backtracking=True, tolerance=1e-8),
        Nesterov(0.05, 3000, per="task", tolerance=1e-8),
        NewtonCG(30, 2, tolerance=1e-8),
        NewtonCG(30, 2, "ggn", tolerance=1e-8),
        Newton(30, tolerance=1e-8),
        Newton(30, "ggn", tolerance=1e-8),
        LBFGS(60, 5, tolerance=1e-8),
    ],
    ids=lambda algorithm: f"{type(algorithm).__name__}",
)
def test_the_optimum_of_ragged_logistic_tasks_against_numpy(algorithm):
    family, _ = families.logistic(tasks=5, rows=(3, 30), generator=generator(1))
    problem = regression_problem(family, likelihoods.Bernoulli())
    adapted = adapt(problem, algorithm)
    assert names(adapted) == ["converged"] * 5
    precision = np.linalg.inv([[1.0, 0.5], [0.5, 0.74]])
    for i in range(5):
        real = family.mask[i]
        x, y = family.tensors["x"][i, real, 0].numpy(), family.tensors["y"][i, real].numpy()
        expected = numpy_newton(x, y, np.array([0.5, -0.5]), precision)
        assert np.allclose(adapted.theta[i].numpy(), expected, rtol=0, atol=1e-7)


def test_poisson_tasks_agree_between_newton_and_quasi_newton():
    family, _ = families.poisson(tasks=6, rows=(3, 20), generator=generator(2))
    problem = regression_problem(family, likelihoods.Poisson(), (3.0, 3.0))
    dense, free, quasi = (
        adapt(problem, a)
        for a in (
            Newton(50, tolerance=1e-8),
            NewtonCG(50, tolerance=1e-8),
            LBFGS(99, tolerance=1e-8),
        )
    )
    for other in (free, quasi):
        assert names(other) == names(dense) == ["converged"] * 6
        assert torch.allclose(other.theta, dense.theta, rtol=0, atol=1e-7)


def test_k_unanchored_steps_in_closed_form():
    family = quadratics()
    problem = quadratic_problem(family, variances=None)
    a, c = family.tensors["A"], family.tensors["c"]
    adapted = adapt(problem, GradientDescent(0.1, 7))
    shrink = torch.linalg.matrix_power(torch.eye(3, dtype=F64) - 0.1 * a, 7)
    expected = c + (shrink @ (THETA0 - c)[..., None])[..., 0]
    assert torch.allclose(adapted.theta, expected, rtol=0, atol=1e-13)
    assert names(adapted) == ["max_steps"] * 4
    wrong = adapt(problem, GradientDescent(0.1, 8)).theta
    assert not torch.allclose(wrong, expected, rtol=0, atol=1e-3)


def test_a_step_per_row_is_divided_by_the_rows_of_each_task():
    family, _ = families.logistic(tasks=3, rows=(2, 9), generator=generator(3))
    problem = regression_problem(family, likelihoods.Bernoulli())
    slope = problem.gradient(problem.start)
    rows = family.rows[:, None]
    per_row = adapt(problem, GradientDescent(0.3, 1)).theta
    per_task = adapt(problem, GradientDescent(0.3, 1, per="task")).theta
    assert torch.allclose(per_row, problem.start - 0.3 * slope / rows)
    assert torch.allclose(per_task, problem.start - 0.3 * slope)


def test_momentum_and_adam_against_torch_optim():
    problem = quadratic_problem(quadratics(tasks=1))
    pairs = [
        (Momentum(0.05, 9, momentum=0.7), torch.optim.SGD, {"lr": 0.05, "momentum": 0.7}),
        (Adam(0.05, 9), torch.optim.Adam, {"lr": 0.05}),
    ]
    for ours, theirs, options in pairs:
        theta = problem.start.clone().requires_grad_()
        optimizer = theirs([theta], **options)
        for _ in range(9):
            theta.grad = problem.gradient(theta.detach())
            optimizer.step()
        assert torch.allclose(adapt(problem, ours).theta, theta.detach(), rtol=0, atol=1e-12)


def test_nesterov_takes_about_root_kappa_steps_where_descent_takes_kappa():
    a = torch.diag(torch.logspace(-3, 0, 10, dtype=F64)).expand(3, 10, 10)
    family = TaskFamily.from_tensors(A=a, c=torch.zeros(3, 10, dtype=F64))
    problem = quadratic_problem(family, torch.ones(10, dtype=F64), None)
    slow = adapt(problem, GradientDescent(1.0, 9000, tolerance=1e-5))
    # ‖∇F‖ of the flattest direction falls from 10⁻³ by 1 − 1/κ a step: 1000 log(100) = 4605.
    assert names(slow) == ["converged"] * 3
    assert (slow.steps == 4603).all()
    for condition in (None, 1e3):
        fast = adapt(problem, Nesterov(1.0, 9000, condition=condition, tolerance=1e-5))
        assert names(fast) == ["converged"] * 3
        assert (fast.steps < 10 * 1e3**0.5).all()


def test_learned_step_sizes_per_weight():
    family = quadratics()
    rates = torch.tensor([0.1, 0.2, 0.05], dtype=F64)

    def outcome(lr):
        problem = quadratic_problem(family, shared={"inner.lr": lr})
        return adapt(problem, GradientDescent(0.5, 1, learn_lr=True)).theta.sum()

    problem = quadratic_problem(family, shared={"inner.lr": rates})
    slope = problem.gradient(problem.start)
    theta = adapt(problem, GradientDescent(0.5, 1, learn_lr=True)).theta
    assert torch.allclose(theta, problem.start - rates * slope)
    value, pull = vjp(outcome, rates)
    assert torch.allclose(pull(torch.ones_like(value))[0], -slope.sum(0))
    with pytest.raises(InputError, match=r"inner\.lr"):
        adapt(quadratic_problem(family), GradientDescent(learn_lr=True))


def double_well(theta: torch.Tensor, height: torch.Tensor) -> torch.Tensor:
    """Minima at θ = ±1 (each coordinate), a maximum at 0."""
    return height * (theta.square() - 1).square().sum()


@pytest.mark.parametrize("algorithm", [Newton(50), NewtonCG(50), LBFGS(80)])
@pytest.mark.parametrize("start", [0.01, 0.4])
def test_negative_curvature_is_left_behind(algorithm, start):
    family = TaskFamily.from_tensors(height=torch.tensor([0.1, 1.0, 50.0], dtype=F64))
    model = Model.from_energy(double_well, 2)
    theta = torch.full((3, 2), start, dtype=F64)
    problem = InnerProblem(model, family.batch(), {}, theta, None)
    assert (problem.curvature(theta, "hessian").diagonal(theta) < 0).all()
    adapted = adapt(problem, replace(algorithm, tolerance=1e-8))
    assert names(adapted) == ["converged"] * 3
    assert torch.allclose(adapted.theta.abs(), torch.ones(3, 2, dtype=F64))


def test_searches_survive_a_scale_of_millions():
    family = spiked(spiked(quadratics(), 1e4), 1e4)
    problem = quadratic_problem(family, variances=None)
    for algorithm in (
        LBFGS(200, tolerance=1e-5),
        NewtonCG(20, tolerance=1e-5),
        GradientDescent(1.0, 900, backtracking=True, tolerance=1e-5),
    ):
        adapted = adapt(problem, algorithm)
        assert names(adapted) == ["converged"] * 4
        assert torch.allclose(adapted.theta, family.tensors["c"], rtol=0, atol=1e-4)


def test_the_exact_step_says_when_the_problem_was_not_quadratic():
    family, _ = families.linear_gaussian(tasks=3, rows=(2, 8), generator=generator(6))
    assert names(adapt(regression_problem(family, likelihoods.Gaussian(0.5)), Exact())) == (
        ["converged"] * 3
    )
    family, _ = families.poisson(tasks=3, rows=8, generator=generator(6))
    assert names(adapt(regression_problem(family, likelihoods.Poisson()), Exact())) == (
        ["max_steps"] * 3
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda: GradientDescent(-0.1),
        lambda: GradientDescent(NAN),
        lambda: GradientDescent(0.1, 2.5),
        lambda: GradientDescent(per="rows"),
        lambda: GradientDescent(backtracking=True, learn_lr=True),
        lambda: GradientDescent(tolerance=-1.0),
        lambda: Nesterov(condition=0.5),
        lambda: Momentum(momentum=1.0),
        lambda: Adam(betas=(0.9, 1.0)),
        lambda: Adam(epsilon=0.0),
        lambda: NewtonCG(cg_steps=0),
        lambda: NewtonCG(curvature="fisher"),
        lambda: Newton(-1),
        lambda: LBFGS(history=0),
        lambda: Exact(tolerance=NAN),
    ],
)
def test_numbers_that_mean_nothing_are_refused(make):
    with pytest.raises(InputError):
        make()
