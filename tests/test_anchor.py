"""The anchored minimum of wavy losses: where it is, where it jumps, and what the study says."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from studies.anchor import answers, headline, measure
from studies.anchor.answers import Langevin
from studies.anchor.measure import ONE, differences, draw, grid
from studies.anchor.noise import count_minima, gibbs, langevin_law, predicted_steepest, steepest
from studies.anchor.waves import F64, NODES, Waves, lower_hull

BOWL = Waves(torch.zeros(1, 0, dtype=F64), (), (), trend=0.6, lam=1.5)
COSINE = Waves(torch.tensor([[math.pi / 2]], dtype=F64), (0.9,), (2.0,), trend=0.1)
THETA0 = torch.tensor([-3.1, -0.7, 0.4, 2.2], dtype=F64)


def test_a_bowl_has_the_minimum_and_the_derivative_that_are_known():
    at = THETA0 * 1.5 / 2.1
    torch.testing.assert_close(BOWL.minima(THETA0)[0], at)
    torch.testing.assert_close(BOWL.response(at[None])[0], torch.full_like(at, 1.5 / 2.1))
    assert len(BOWL.jumps.theta0) == 0
    bowl = replace(BOWL, phases=torch.zeros(1, 1, dtype=F64), amplitudes=(0.0,), frequencies=(1.0,))
    found, response = answers.response(bowl, THETA0)
    torch.testing.assert_close(found, at)
    torch.testing.assert_close(response, torch.full_like(at, 1.5 / 2.1))


def test_a_mirrored_loss_jumps_where_its_mirror_is_and_only_an_even_jump_does_not_rise():
    # cos 2θ and a bowl: the minima on both sides of 0 tie at θ₀ = 0.
    middle = int(COSINE.jumps.theta0.abs().argmin())
    assert float(COSINE.jumps.theta0[middle]) == pytest.approx(0, abs=1e-12)
    assert float(COSINE.jumps.below[middle] + COSINE.jumps.above[middle]) == pytest.approx(0)
    assert float(COSINE.jumps.rise[middle]) == pytest.approx(0, abs=1e-12)
    others = COSINE.jumps.within(0.1, 4.0).rise
    assert len(others) and float(others.abs().min()) > 0.1


@pytest.mark.parametrize("waves", [ONE, draw(5, seed=3)])
def test_minima_and_jumps_are_those_of_a_search_over_all_theta(waves):
    theta0 = grid(301)
    theta = torch.linspace(-7, 7, 28001, dtype=F64)
    found, jumps = waves.minima(theta0), waves.jumps.within(*measure.RANGE)
    for task in range(len(waves)):
        own = replace(waves, phases=waves.phases[task : task + 1])
        searched = theta[own.anchored(theta, theta0[:, None]).argmin(-1)]
        torch.testing.assert_close(found[task], searched, atol=2e-3, rtol=0)
        # θ* never falls, and rises by more than its largest slope allows only at a jump.
        steps = (searched.diff() > 0.3).nonzero()[:, 0]
        at = jumps.theta0[jumps.task == task]
        between = torch.searchsorted(theta0, at) - 1
        assert set(steps.tolist()) <= set(between.tolist())
        for jump in at.tolist():
            left, right = own.minima(torch.tensor([jump - 1e-9, jump + 1e-9], dtype=F64))[0]
            assert float(right - left) > 0.02


def test_at_a_jump_two_minima_tie_and_the_anchored_loss_has_no_jump():
    jumps = ONE.jumps.within(*measure.RANGE)
    low, high = (ONE.anchored(end, jumps.theta0)[0] for end in (jumps.below, jumps.above))
    torch.testing.assert_close(low, high, atol=1e-13, rtol=0)
    for end in (jumps.below, jumps.above):
        force = ONE.slope(end)[0] + ONE.lam * (end - jumps.theta0)
        torch.testing.assert_close(force, torch.zeros_like(end), atol=1e-12, rtol=0)
    assert float(jumps.rise.abs().min()) > 0.2


def test_the_formula_is_that_of_differences_and_the_wrong_sign_is_found():
    theta0 = grid(151)
    numeric = differences(ONE, theta0)
    seen = numeric.isfinite()
    curvature = ONE.curvature(ONE.minima(theta0))[0]
    right, wrong = (ONE.lam / (ONE.lam + sign * curvature) for sign in (1, -1))
    assert float((numeric - right)[seen].abs().max()) < 1e-8
    assert float((numeric - wrong)[seen].abs().min()) > 0.1


def test_differences_do_not_reach_across_a_jump():
    jump = float(ONE.jumps.within(0, 4.5).theta0[0])
    near = torch.tensor([jump - measure.STEP, jump, jump + 3 * measure.STEP], dtype=F64)
    assert differences(ONE, near).isnan().tolist() == [True, True, False]


def test_the_library_differentiates_where_its_newton_ended():
    found, response = answers.response(ONE, grid(13))
    torch.testing.assert_close(response, ONE.response(found[None])[0], atol=1e-12, rtol=0)
    waves = draw(4, seed=1)
    minima = waves.minima(THETA0)
    gradient = answers.implicit(waves, THETA0, minima)
    torch.testing.assert_close(gradient, waves.slope(minima) * waves.response(minima))


def test_the_mean_over_even_phases_is_the_parabola_and_its_implicit_gradient_as_predicted():
    one = Waves(torch.zeros(1, 1, dtype=F64), (0.8,), (2.0,))
    turn = 2 * math.pi * (torch.arange(1000, dtype=F64) + 0.5)[:, None] / 1000
    waves, theta0 = replace(one, phases=turn), torch.tensor([-2.0, 0.0, 2.0, 4.0], dtype=F64)
    minima = waves.minima(theta0)
    mean = waves.loss(minima).mean(0)
    limit = measure.limit(waves, theta0)
    torch.testing.assert_close(mean - mean[1], limit - limit[1], atol=5e-3, rtol=0)
    implicit = (waves.slope(minima) * waves.response(minima)).mean(0)
    factor = (1 + waves.trend / waves.lam) * float(waves.response(minima[:, 1:2]).mean())
    torch.testing.assert_close(
        implicit, factor * measure.limit_slope(waves, theta0), atol=2e-3, rtol=0
    )
    assert factor < 0.4  # … so that it is not the slope of the mean


def test_roughness_of_one_task_is_that_of_its_curve():
    theta0 = grid(4001)
    waves = draw(1, seed=5)
    found = measure.roughness(waves, theta0, waves.minima(theta0))
    value = waves.loss(waves.minima(theta0))[0]
    steps = value.diff().abs()
    jumps = steps[steps > 0.02]
    assert found["largest_jump"] == pytest.approx(float(jumps.max()), rel=5e-3)
    assert found["all_jumps"] == pytest.approx(float(jumps.sum()), rel=1e-2)
    assert found["jump_share"] == pytest.approx(float(jumps.sum() / steps.sum()), rel=1e-2)


def test_the_gibbs_law_of_a_bowl_is_normal_and_runs_of_sgld_find_their_own():
    value, slope = gibbs(BOWL, THETA0, 0.3)
    mean = THETA0 * 1.5 / 2.1
    torch.testing.assert_close(value, 0.3 * (mean.square() + 0.3 / 2.1))
    torch.testing.assert_close(slope, 0.6 * mean * 1.5 / 2.1)
    langevin = Langevin(lr=0.02, steps=60, temperature=0.3, runs=400)
    found = answers.ends(ONE, THETA0, langevin)
    exact = torch.tensor([langevin_law(ONE, t, langevin) for t in THETA0.tolist()])
    assert float(((found.mean - exact) / found.error).abs().max()) < 3.5
    assert float((found.mean - 1.2 * exact).abs().max() / found.error.max()) > 5


def test_little_noise_leaves_the_deterministic_objective_and_jumps_as_steep_as_predicted():
    away = torch.tensor([-3.0, 0.1, 3.0], dtype=F64)
    value, slope = gibbs(ONE, away, 2e-3)
    torch.testing.assert_close(value, ONE.loss(ONE.minima(away))[0], atol=5e-3, rtol=0)
    step = 1e-4
    around = [gibbs(ONE, away + k * step, 2e-3)[0] for k in (1, -1)]
    torch.testing.assert_close(slope, (around[0] - around[1]) / (2 * step), atol=1e-5, rtol=0)
    jumps = ONE.jumps.within(*measure.RANGE)
    found = [steepest(ONE, t, 0.01) for t in jumps.theta0.tolist()]
    assert found == pytest.approx(predicted_steepest(jumps, ONE.lam, 0.01).tolist(), rel=0.03)


def test_minima_are_counted_and_hulls_are_convex():
    assert count_minima(torch.tensor([1.0, 0.0, 0.0, 2.0, 1.5, 3.0, 2.0])) == 2
    assert count_minima(torch.tensor([0.0, 1.0, 2.0])) == 0
    heights = np.cos(3 * NODES) + 0.1 * NODES**2
    hull = lower_hull(heights)
    assert (np.diff(np.diff(heights[hull]) / np.diff(NODES[hull])) > 0).all()
    assert (np.interp(NODES, NODES[hull], heights[hull]) <= heights + 1e-12).all()


def test_the_headline_says_what_the_table_says():
    tables = [
        {"panel": "curve", "formula": [0.25, 0.5], "numeric_error": [3e-7, -2e-7]},
        {"panel": "library", "found": [1.0, 2.0], "minimum": [1.0, 3.0], "response_error": 4e-9},
        {"panel": "jump", "rise": [-0.125, 0.75], "barrier": [0.5, 0.625]},
        {
            "panel": "roughness", "family": [0, 0, 1, 1], "tasks": [1, 100] * 2,
            "distance": [1.0, 0.1] * 2, "largest_jump": [1.0, 0.01] * 2, "all_jumps": [1, 10] * 2,
            "jump_share": [0.5, 0.875] * 2,
        },
        {"panel": "factor", "family": [0, 1], "factor": 0.1875, "predicted": 0.1885},
        {
            "panel": "runs", "temperature": [0.25, 0.5], "value": [1.0, 2.0], "error": 0.5,
            "exact": [2.0, 2.0], "limit": [2.5, 9.0], "steps": 321,
        },
        {
            "panel": "steepness", "temperature": [0.125, 0.125], "steepest": [1.0, 1.04],
            "predicted": 1.0, "width": [0.5, 0.25],
        },
        {"panel": "minima", "temperature": [0.0, 0.5, 0.6, 0.7], "minima": [4, 1, 2, 1]},
    ]  # fmt: skip
    table = pd.concat([pd.DataFrame(part) for part in tables], ignore_index=True)
    said = headline(table)
    for words in (
        "moves 0.25 to 0.50 times as fast", "at 2 places it leaps", "jumps by 0.12 to 0.75 nats",
        "power −0.50 ± 0.00", "together go as 0.50 ± 0.00", "one of 4 minima",
        "temperature of 0.7 nats on", "0.188 ± 0.000 of", "321 steps of SGLD can end 0.5 nats",
        "at a temperature of 0.25.",
    ):  # fmt: skip
        assert words in said
