"""The measurements, as rows of the table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

import bayesmeta as bm
from studies.quadratics import search
from studies.quadratics.problem import (
    ALPHA,
    F64,
    METHODS,
    STEPS,
    Pair,
    adaptation,
    attenuated,
    fitted,
)
from studies.quadratics.smooth import (
    EXAMPLE,
    EXAMPLE_ALPHA,
    EXAMPLE_SMOOTH,
    Array,
    Constants,
    example,
    proved_minima,
)

Row = dict[str, Any]
STARTS = ("midpoint", *(f"MAML, {k}" for k in STEPS), "iMAML", "Reptile")
HULL = (-3.2, 3.25)
"""Holds both optima of the counter-example, and its middle is not where a cell is cut."""


@dataclass(frozen=True)
class Size:
    """How large a run is.

    Args:
        methods: that are fitted.
        steps: of adaptation.
        descents: starts of the counter-example's fits.
        pairs, points: of the search: pairs of losses, and places at which each is looked at.
    """

    methods: tuple[str, ...] = METHODS
    steps: tuple[int, ...] = tuple(range(51))
    descents: int = 12
    pairs: int = 6000
    points: int = 2001


QUICK = Size(("MAML, 1", "iMAML", "joint"), (0, 1, 5), 2, 100, 401)


def fixed_points(size: Size) -> Iterator[Row]:
    """Where bm.fit ends, and the curvature-weighted average."""
    pair = Pair.chosen()
    for method in size.methods:
        found, known = fitted(pair, method), pair.average(method)
        yield {
            "panel": "fixed point",
            "method": method,
            "theta_1": float(found[0]),
            "theta_2": float(found[1]),
            "difference": float((found - known).abs().max()),
        }


def eigenvalues() -> Iterator[Row]:
    """a(1 − αa)^{2k} against a, up to 1/α."""
    a = torch.logspace(-2.5, 0.0, 201, dtype=F64) / ALPHA
    for steps in STEPS:
        for one, left in zip(a.tolist(), attenuated(a, steps).tolist(), strict=True):
            yield {"panel": "eigenvalue", "steps": steps, "eigenvalue": one, "weight": left}


def place(pair: Pair, start: str) -> Tensor:
    """θ₀ of a start by name."""
    return pair.midpoint if start == "midpoint" else pair.average(start)


def adaptations(size: Size) -> Iterator[Row]:
    """Losses of each start after adaptation, the least that any start has, and contraction."""
    pair = Pair.chosen()
    slowest = torch.linalg.eigvalsh(pair.A)[:, 0]
    for steps in size.steps:
        least = pair.adapted_losses(pair.average(f"MAML, {steps}"), steps).sum()
        for start in STARTS:
            theta0 = place(pair, start)
            losses = adaptation(pair, theta0, steps)
            contracted = (losses / pair.adapted_losses(theta0, 0)).sqrt()
            limits = (1 - ALPHA * slowest) ** steps
            off = (losses - pair.adapted_losses(theta0, steps)).abs().max()
            yield {
                "panel": "adaptation",
                "method": start,
                "steps": steps,
                "loss": float(losses.sum()),
                "least": float(least),
                "difference": float(off),
                **{f"norm_{i}": float(norm) for i, norm in enumerate(contracted, 1)},
                **{f"limit_{i}": float(limit) for i, limit in enumerate(limits, 1)},
            }


def example_energy(theta: Tensor, side: Tensor) -> Tensor:
    """The counter-example's f of the task at side ±1, for `Model.from_energy`."""
    mu, centre, weight, slope, shift = (float(EXAMPLE[name]) for name in EXAMPLE)
    row = torch.nn.functional.softplus(side * slope * theta - shift)
    return (0.5 * mu * (theta + side * centre) ** 2 + weight * row).sum()


def counter_example(size: Size) -> Iterator[Row]:
    """What is proved of it, where it meets the theorem, and where fits of it end."""
    losses = example()
    low, high = losses.minima().min(), losses.minima().max()
    theta = np.linspace(low, high, 20_001)
    bound = float(Constants.on(losses, np.stack([theta, theta])).bound)
    yield from (
        _known(name, alpha, bound, theta)
        for name, alpha in (
            ("example", EXAMPLE_ALPHA),
            ("theorem", f"{bound:.6f}"),
            ("last convex", f"{_last_convex(theta):.6f}"),
        )
    )
    starts = np.linspace(low, high, size.descents)
    for name, alpha in (("example", float(EXAMPLE_ALPHA)), ("theorem", bound)):
        for start, end in zip(starts.tolist(), followed(starts, alpha).tolist(), strict=True):
            yield {
                "panel": "descent",
                "case": name,
                "start": start,
                "end": end,
                "fit": fitted_from(start, alpha),
            }


def _known(name: str, alpha: str, bound: float, theta: Array) -> Row:
    losses, step = example(), float(alpha)
    bend = losses.adapted_second(theta, step)
    value = losses.value(losses.adapted(theta, step)).sum(0)
    proved, cells = proved_minima(*HULL, alpha)
    return {
        "panel": "example",
        "case": name,
        "alpha": step,
        "alpha_L": step * EXAMPLE_SMOOTH,
        "over_bound": step / bound,
        "proved_minima": proved,
        "cells": cells,
        "least_bend": bend.min(),
        "sum_least_bend": bend.sum(0).min(),
        "minimum": abs(theta[value.argmin()]),
        "barrier": value[len(theta) // 2] - value.min(),
    }


def _last_convex(theta: Array) -> float:
    """The largest α, below 1/L, up to which both adapted losses are convex between the optima."""
    low, high = 0.0, 1 / EXAMPLE_SMOOTH
    while high - low > 1e-7:
        middle = 0.5 * (low + high)
        convex = example().adapted_second(theta, middle).min() >= 0
        low, high = (middle, high) if convex else (low, middle)
    return low


def followed(starts: Array, alpha: float, tolerance: float = 1e-10) -> Array:
    """Ends of gradient descent on ΣF_i, in steps so short that none is longer than 1/|ΣF_i''|."""
    theta, losses = starts, example()
    grid = np.linspace(starts.min(), starts.max(), 2001)
    step = 1 / abs(losses.adapted_second(grid, alpha).sum(0)).max()
    for _ in range(100_000):
        slope = losses.adapted_first(theta, alpha).sum(0)
        if abs(slope).max() < tolerance:
            return theta
        theta = theta - step * slope
    raise ArithmeticError("gradient descent has not ended")


def fitted_from(start: float, alpha: float) -> float:
    """Where bm.fit of one-step MAML ends from a start."""
    family = bm.TaskFamily.from_tensors(side=torch.tensor([1.0, -1.0], dtype=F64))
    method = bm.methods.maml(steps=1, lr=alpha, support=None, outer_tolerance=1e-10)
    at = torch.tensor([start], dtype=F64)
    prior = bm.Prior("point").at(mean=at, variance=1.0)
    model = bm.Model.from_energy(example_energy, 1)
    return float(bm.fit(model, family, method=method, prior=prior).prior.mean)


def searched(size: Size) -> Iterator[Row]:
    """Random pairs of losses, by how far α is beyond the theorem's bound."""
    yield from search.summary(search.tried(size.pairs, size.points, seed=0))
