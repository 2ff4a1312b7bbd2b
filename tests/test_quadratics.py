"""Quadratics: closed forms against descent, the counter-example in other arithmetic, the search."""

from __future__ import annotations

import mpmath
import numpy as np
import pandas as pd
import pytest
import torch
from mpmath import iv

from studies.quadratics import headline, measure, search, smooth
from studies.quadratics.problem import ALPHA, F64, LAM, Pair, adaptation, attenuated, fitted

PAIR = Pair.chosen()


def adapted_sum(theta0, steps):
    """Σ f_i after gradient descent, step by step."""
    total = 0.0
    for A, c in zip(PAIR.A, PAIR.c, strict=True):
        theta = theta0
        for _ in range(steps):
            theta = theta - ALPHA * A @ (theta - c)
        total = total + 0.5 * (theta - c) @ A @ (theta - c)
    return total


def anchored_sum(theta0, kept):
    """Σ f_i(θ*), and with the anchor's term if it is kept."""
    total = 0.0
    for A, c in zip(PAIR.A, PAIR.c, strict=True):
        theta = torch.linalg.solve(A + LAM * torch.eye(2, dtype=F64), A @ c + LAM * theta0)
        total = total + 0.5 * (theta - c) @ A @ (theta - c)
        total = total + kept * 0.5 * LAM * (theta - theta0).square().sum()
    return total


@pytest.mark.parametrize(
    ("method", "objective"),
    [
        *((f"MAML, {k}", lambda t, k=k: adapted_sum(t, k)) for k in (1, 5, 50)),
        ("iMAML", lambda t: anchored_sum(t, 0)),
        *((name, lambda t: anchored_sum(t, 1)) for name in ("joint", "Reptile")),
    ],
)
def test_each_average_is_where_its_own_objective_is_flat(method, objective):
    at = PAIR.average(method)
    curvature = torch.func.hessian(objective)(at)
    assert torch.linalg.eigvalsh(curvature).min() > 0
    step = torch.linalg.solve(curvature, torch.func.grad(objective)(at))
    assert float(step.norm()) < 1e-8
    assert float(torch.func.grad(objective)(at + 0.01).norm()) > 1e-6


def test_plain_reptile_stays_where_its_steps_cancel():
    at, moved = PAIR.average("Reptile, 5"), torch.zeros(2, dtype=F64)
    for A, c in zip(PAIR.A, PAIR.c, strict=True):
        theta = at
        for _ in range(5):
            theta = theta - ALPHA * A @ (theta - c)
        moved += theta - at
    assert float(moved.norm()) < 1e-12


def test_a_fit_ends_there_and_not_at_the_average_of_a_neighbour():
    found = fitted(PAIR, "iMAML")
    assert float((found - PAIR.average("iMAML")).norm()) < 1e-7
    assert float((found - PAIR.average("MAML, 5")).norm()) > 0.1


@pytest.mark.parametrize("steps", [0, 1, 7])
def test_losses_after_adaptation_by_the_library_are_those_of_plain_descent(steps):
    start = torch.tensor([0.3, -0.7], dtype=F64)
    plain = float(adapted_sum(start, steps))
    assert float(adaptation(PAIR, start, steps).sum()) == pytest.approx(plain, rel=1e-12)
    assert float(PAIR.adapted_losses(start, steps).sum()) == pytest.approx(plain, rel=1e-12)


def test_attenuated_eigenvalues_are_those_of_the_weights():
    for steps in (1, 5, 50):
        found = torch.linalg.eigvalsh(PAIR.weights(f"MAML, {steps}"))
        known = attenuated(torch.linalg.eigvalsh(PAIR.A), steps).sort(-1).values
        torch.testing.assert_close(found, known, atol=1e-15, rtol=1e-9)


def plain_objective(theta, alpha, side):
    """F of one task of the counter-example, as it is written, in mpmath numbers."""

    def f(t):
        return mpmath.mpf("0.05") * (t + side * 3) ** 2 + mpmath.log(1 + mpmath.exp(side * t - 1))

    return f(theta - alpha * mpmath.diff(f, theta))


def test_derivatives_are_those_of_the_loss_in_fifty_digits():
    with mpmath.workdps(50):
        for theta in (-2.3, 0.4, 1.9):
            for i, side in enumerate((1, -1)):
                values = [
                    mpmath.diff(
                        lambda t, s=side: plain_objective(t, mpmath.mpf("2.7"), s), theta, n
                    )
                    for n in (1, 2)
                ]
                at, losses = np.array([theta]), smooth.example()
                assert losses.adapted_first(at, 2.7)[i, 0] == pytest.approx(
                    float(values[0]), rel=1e-9
                )
                assert losses.adapted_second(at, 2.7)[i, 0] == pytest.approx(
                    float(values[1]), rel=1e-8
                )


def test_the_counter_example_has_a_step_below_1_over_L_and_optima_inside_the_interval():
    second = smooth.example().second(np.linspace(-50, 50, 200_001))
    assert second.max() == pytest.approx(smooth.EXAMPLE_SMOOTH, abs=1e-9)
    assert float(smooth.EXAMPLE_ALPHA) * smooth.EXAMPLE_SMOOTH < 1
    assert second.min() >= 0.1
    ends = smooth.example().first(np.array(measure.HULL))
    assert (ends[:, 0] < 0).all() and (ends[:, 1] > 0).all()  # no minimum of the sum beyond them


def test_two_minima_are_proved_and_one_inside_the_condition():
    assert smooth.proved_minima(*measure.HULL)[0] == 2
    assert smooth.proved_minima(*measure.HULL, alpha="0.09")[0] == 1
    assert smooth.proved_minima(0.5, 3.25)[0] == 1  # of the two, the right one
    with pytest.raises(ArithmeticError, match="sign"):
        smooth.proved_minima(-1.0, 1.0)  # cut where the slope is 0


def test_intervals_hold_the_values_of_every_point_in_them():
    losses, step = smooth.enclosed(), np.array([iv.mpf("2.7")], dtype=object)
    for low, high in ((-3.0, -1.0), (-0.2, 0.3), (1.0, 1.001)):
        held = losses.adapted_second(np.array([iv.mpf([low, high])], dtype=object), step)
        points = smooth.example().adapted_second(np.linspace(low, high, 101), 2.7)
        for interval, row in zip(held[:, 0], points, strict=True):
            assert float(interval.a) <= row.min() and row.max() <= float(interval.b)


def test_a_task_that_bends_down_and_its_mirror_have_two_minima():
    generator = np.random.default_rng(3)
    losses = search.drawn(40, generator)
    theta = np.linspace(-15, 15, 6001)
    theta = theta[(theta > -14) & (theta < 14)]
    alpha = 0.95 / losses.second(theta).max(-1, keepdims=True)
    bend, found = losses.adapted_second(theta, alpha), 0
    for index in zip(*np.nonzero(bend.min(-1) < -1e-3), strict=True):
        r = theta[bend[index].argmin()]
        one = smooth.Losses(*(getattr(losses, n)[index] for n in
                              ("mu", "tilt", "weight", "slope", "place")))  # fmt: skip
        near = r + np.linspace(-60, 60, 24_001)
        slope = one.adapted_first(near, alpha[index])
        assert search.minima(slope - slope[::-1]) >= 2
        found += 1
    assert found > 5


def test_minima_of_a_grid_are_counted():
    x = np.linspace(-2, 2, 400)
    assert search.minima(np.stack([x, x**3 - x, -np.sin(5 * x) * x])).tolist()[:2] == [1, 2]


def test_inside_the_condition_every_adapted_loss_bends_up_by_an_eighth_of_mu():
    found = search.tried(200, 501, seed=1)
    inside = found["ratio"] <= 1
    assert inside.sum() > 10 and (found["least"][inside] > 1).all()
    assert (found["least"][~inside] < 0).any()
    assert (found["alpha_L"] < 1).all()


def test_a_condition_that_is_thirty_times_too_wide_is_found_out(monkeypatch):
    right = smooth.Constants.bound.fget
    monkeypatch.setattr(smooth.Constants, "bound", property(lambda self: 30 * right(self)))
    found = search.tried(300, 501, seed=1)
    possible = found["ratio"] <= 1
    assert (found["least"][possible] < 0).any()


def test_gradient_descent_and_a_fit_end_in_the_minimum_of_their_side():
    ends = measure.followed(np.array([-3.0, -0.5, 0.5, 3.0]), 2.7)
    assert np.sign(ends).tolist() == [-1, -1, 1, 1]
    assert measure.fitted_from(0.5, 2.7) == pytest.approx(ends[2], abs=1e-6)
    inside = measure.followed(np.array([-3.0, 3.0]), 0.09)
    assert abs(inside).max() < 1e-8


def test_headline_says_what_a_table_says():
    made = [
        *({"panel": "fixed point", "difference": d} for d in (3e-9, 1e-12)),
        *(
            {"panel": "adaptation", "method": name, "steps": n, "loss": loss}
            for name, losses in (("midpoint", (1, 5, 5)), ("MAML, 1", (2, 2, 3)))
            for n, loss in enumerate(losses)
        ),
        {"panel": "example", "case": "example", "proved_minima": 3, "alpha_L": 0.9, "barrier": 0.2,
         "over_bound": 40.4},
        {"panel": "search", "high": 1.0, "pairs": 10, "not_convex": 1, "several_minima": 0},
        {"panel": "search", "high": 2.0, "pairs": 30, "not_convex": 6, "several_minima": 2},
        {"panel": "search", "high": np.inf, "pairs": 40, "not_convex": 7, "several_minima": 2},
    ]  # fmt: skip
    said = headline(pd.DataFrame(made))
    for part in (
        "2 methods learn",
        "fits within 3e-09",
        "of MAML with 1 step if n = 1, of MAML with 1 step if n = 2",
        "3 proved minima with 0.2 nats between them, at αL = 0.9",
        "2 of 40 random pairs have several minima",
        "(2019) 40 times",
        "of 10 pairs that keep it 1 lost",
    ):
        assert part in said
    assert said.count(". ") == 3  # the last of them is that of "et al."
