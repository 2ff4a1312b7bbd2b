"""Several minima: the exact law of SGLD's outcome, its two parts, and who sees which of them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from studies.which_minimum.estimates import RULES, estimate, implicit
from studies.which_minimum.exact import expected, propagate, split
from studies.which_minimum.measure import JUMP, PROBLEM
from studies.which_minimum.moments import moments
from studies.which_minimum.problem import Problem

CASES = [(0.03, 0.65), (0.1, JUMP), (0.3, 0.95), (0.1, -2.6), (1.0, 4.8)]


def parts(problem, theta0, tau):
    return split(problem, propagate(problem, theta0, tau), problem.stationary(theta0))


def value(problem, theta0, tau):
    return expected(problem, propagate(problem, theta0, tau))[0]


def by_implicit(problem, theta0, tau):
    found = parts(problem, theta0, tau)
    return float(found.probability @ implicit(problem, theta0, found.minima))


def central(function, theta0, step=1e-4):
    """A derivative with an error of order step⁴."""
    wide, near = (
        (function(theta0 + k * step) - function(theta0 - k * step)) / (2 * k * step) for k in (2, 1)
    )
    return (4 * near - wide) / 3


def test_one_step_is_a_normal_whose_mean_of_a_sine_is_known():
    problem, theta0, tau = Problem(steps=1, trend=0.0), 0.4, 0.2
    variance = 2 * problem.lr * tau
    at = torch.tensor(theta0, dtype=torch.double)
    mean = at - problem.lr * problem.slope(at)
    known = sum(
        a * math.exp(-w * w * variance / 2) * torch.sin(w * mean + p) for a, w, p in problem.waves
    )
    assert value(problem, theta0, tau) == pytest.approx(float(known), abs=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 30])
def test_a_quadratic_gives_the_autoregression_it_is(steps):
    problem, theta0, tau = Problem(steps=steps, waves=()), 1.7, 0.3
    pull, noise = problem.lr * problem.lam, 2 * problem.lr * tau
    shrink = 1 - problem.lr * (problem.trend + problem.lam)
    # θ_T and the score S_T are sums of the same normals, and J_T is not random.
    mean, jacobian, variance, score = theta0, 1.0, 0.0, 0.0
    for step in range(steps):
        moves = shrink + pull if step == 0 else pull
        mean, jacobian = shrink * mean + pull * theta0, shrink * jacobian + pull
        variance, score = shrink**2 * variance + noise, score + moves**2 / noise
    found = expected(problem, propagate(problem, theta0, tau))
    total, c = problem.trend * mean * jacobian, problem.trend
    assert found[0] == pytest.approx(c / 2 * (mean**2 + variance), abs=1e-12)
    assert found[1] == pytest.approx(total, abs=1e-12)
    of = moments(problem, theta0, tau)
    assert of["pathwise"].sd == pytest.approx(c * jacobian * math.sqrt(variance), rel=1e-9)
    # Isserlis: A = θ_T − mean has covariance `jacobian` with S (Stein).
    second = variance * score + 2 * jacobian**2
    fourth = 3 * variance**2 * score + 12 * variance * jacobian**2
    square = 4 * mean**2 * second + fourth - 2 * variance * second + variance**2 * score
    known = math.sqrt(c**2 / 4 * square - total**2)
    assert of["score"].sd == pytest.approx(known, rel=1e-9)


@pytest.mark.parametrize(("tau", "theta0"), CASES)
def test_the_grid_is_converged_and_its_derivative_is_that_of_finite_differences(tau, theta0):
    law = propagate(PROBLEM, theta0, tau)
    at, total = expected(PROBLEM, law)
    assert float(law.weight.sum()) == pytest.approx(1, abs=1e-12)
    assert float(law.weight_slope.sum()) == pytest.approx(0, abs=1e-11)
    fine = expected(PROBLEM, propagate(PROBLEM, theta0, tau, spacing=0.25), 0.25)
    assert fine == pytest.approx((at, total), abs=1e-10)
    assert central(lambda t: value(PROBLEM, t, tau), theta0) == pytest.approx(total, abs=1e-8)


@pytest.mark.parametrize("steps", [10, 60])
@pytest.mark.parametrize(("tau", "theta0"), CASES)
def test_location_and_probability_are_derivatives_of_their_own_and_sum_to_the_total(
    steps, tau, theta0
):
    problem = replace(PROBLEM, steps=steps)  # after 10 steps much mass lies on the boundaries
    found = parts(problem, theta0, tau)
    assert float(found.probability.sum()) == pytest.approx(1, abs=1e-12)
    for name in ("probability", "mean"):
        numeric = central(lambda t, name=name: getattr(parts(problem, t, tau), name), theta0)
        seen = found.probability > 1e-6
        slope = getattr(found, f"{name}_slope")
        torch.testing.assert_close(slope[seen], numeric[seen], atol=2e-7, rtol=0)
    value, total = expected(problem, propagate(problem, theta0, tau))
    assert float(found.probability @ found.mean) == pytest.approx(value, abs=1e-12)
    assert found.by_location + found.by_probability == pytest.approx(total, abs=1e-10)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("tau", "theta0"), [(0.1, 0.65), (0.3, -2.2)])
def test_pathwise_and_score_agree_with_the_total_and_would_not_with_a_tenth_more(rule, tau, theta0):
    problem = replace(PROBLEM, steps=20)
    total = expected(problem, propagate(problem, theta0, tau))[1]
    exact = moments(problem, theta0, tau)[rule]
    assert exact.mean == pytest.approx(total, abs=1e-10)
    found = estimate(problem, theta0, tau, rule, paths=60_000, seed=1)
    assert found.sd == pytest.approx(exact.sd, rel=0.1)
    assert abs(found.mean - total) < 3 * found.se
    assert abs(found.mean - 1.1 * total) > 3 * found.se


def test_the_implicit_gradient_is_the_location_part_once_paths_have_settled():
    problem, away = replace(PROBLEM, steps=120), []
    for tau in (0.04, 0.02, 0.01):
        found = parts(problem, 0.75, tau)
        away.append(abs(by_implicit(problem, 0.75, tau) - found.by_location))
        assert away[-1] < 0.25 * tau  # what is left is the bend of g and F around their minima
        assert found.by_probability > 200 * away[-1]
    assert away[2] < away[1] < away[0]


def test_the_implicit_gradient_is_far_from_the_total_where_probabilities_move():
    problem, tau = replace(PROBLEM, steps=120), 0.03
    total = expected(problem, propagate(problem, JUMP, tau))[1]
    assert abs(by_implicit(problem, JUMP, tau) - total) > 0.99 * abs(total)


def test_paths_that_have_settled_show_pathwise_the_location_part_only():
    problem, tau = replace(PROBLEM, steps=160), 0.1
    found = estimate(problem, JUMP, tau, "pathwise", paths=4_000)
    total = expected(problem, propagate(problem, JUMP, tau))[1]
    of_one = moments(problem, JUMP, tau)["pathwise"]
    assert of_one.mean == pytest.approx(total, abs=1e-9)  # unbiased …
    assert abs(found.mean - total) > 20 * found.se  # … and never seen to be
    assert abs(found.mean - parts(problem, JUMP, tau).by_location) < 5 * found.se
    assert found.sd < 1e-3 * of_one.sd


def test_noise_smooths_a_jump_as_the_normal_that_is_predicted():
    problem, tau = replace(PROBLEM, steps=120), 0.01
    slope = float(parts(problem, JUMP, tau).probability_slope.abs().max())
    width = 1 / (math.sqrt(2 * math.pi) * slope)
    assert width == pytest.approx(problem.smoothing(JUMP, tau), rel=2e-3)
    before, after = (problem.descended(JUMP + d) for d in (-1e-3, 1e-3))
    assert float(after - before) > 2
