"""Rows of the table: exact values along θ₀, and with the library's estimates at some θ₀."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from studies.which_minimum.estimates import RULES, estimate, implicit
from studies.which_minimum.exact import Split, expected, propagate, split
from studies.which_minimum.moments import moments
from studies.which_minimum.problem import Problem

PROBLEM = Problem()
JUMP = PROBLEM.jumps(0.0, 2.0)[0]
WIDE, NEAR = (-4.2, 4.8), (-0.2, 1.8)
Row = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """How large a run is.

    Args:
        temperatures: τ of the curves; the rows with estimates leave out the last.
        theta0: of these rows, beside `JUMP`.
        early, late: T of these rows: when many paths are still on their way, and when all but very
            few have settled.
        sweep: further T, at `JUMP` and one τ, that of `shown`.
        paths: of an estimate after at most `early` steps.
        paths_late: after more, which cost more.
        curve: points on a curve over all minima; one around the jump has half of them.
    """

    temperatures: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0)
    theta0: tuple[float, ...] = (-2.6, 0.1, 0.4, 0.65, 0.95, 1.2, 1.6, 4.0)
    early: int = 30
    late: int = 120
    sweep: tuple[int, ...] = (10, 15, 20, 45, 60, 80, 160)
    paths: int = 200_000
    paths_late: int = 20_000
    curve: int = 226


QUICK = Size(
    temperatures=(0.1, 0.3),
    theta0=(0.65,),
    late=80,
    sweep=(15,),
    paths=5_000,
    paths_late=2_000,
    curve=17,
)


def curves(size: Size) -> Iterator[Row]:
    """Exact, along θ₀: all temperatures over all minima, and around the jump early and late."""
    for tau in size.temperatures:
        for theta0 in np.linspace(*WIDE, size.curve).tolist():
            yield exact(replace(PROBLEM, steps=size.late), theta0, tau)[0] | {"panel": "wide"}
    for steps in (size.early, size.late):
        for theta0 in np.linspace(*NEAR, size.curve // 2).tolist():
            yield exact(replace(PROBLEM, steps=steps), theta0, shown(size))[0] | {"panel": "near"}


def points(size: Size, device: str) -> Iterator[Row]:
    """Exact and estimated; the implicit gradients of the minima are weighted by P_b."""
    cases = [
        (tau, theta0, steps)
        for steps in (size.early, size.late)
        for tau in size.temperatures[: max(1, len(size.temperatures) - 1)]
        for theta0 in sorted((*size.theta0, JUMP))
    ]
    cases += [(shown(size), JUMP, steps) for steps in size.sweep]
    for seed, (tau, theta0, steps) in enumerate(cases):
        problem = replace(PROBLEM, steps=steps)
        panel = "steps" if steps in size.sweep else "point"
        paths = size.paths if steps <= size.early else size.paths_late
        row, parts = exact(problem, theta0, tau)
        at_minima = implicit(problem, theta0, parts.minima)
        row |= {"panel": panel, "paths": paths, "implicit": float(parts.probability @ at_minima)}
        of_one = moments(problem, theta0, tau)
        for rule in RULES:
            found = estimate(problem, theta0, tau, rule, paths=paths, seed=seed, device=device)
            row |= {rule: found.mean, f"{rule}_se": found.se}
            row |= {f"{rule}_bias": of_one[rule].mean - row["total"], f"{rule}_sd": of_one[rule].sd}
        yield row


def shown(size: Size) -> float:
    """τ of the figures about one temperature."""
    return size.temperatures[min(1, len(size.temperatures) - 2)]


def exact(problem: Problem, theta0: float, temperature: float) -> tuple[Row, Split]:
    """E[g], its derivative and its parts."""
    law = propagate(problem, theta0, temperature)
    value, total = expected(problem, law)
    parts = split(problem, law, problem.stationary(theta0))
    row = {
        "temperature": temperature,
        "theta0": theta0,
        "steps": problem.steps,
        "value": value,
        "deterministic": float(problem.loss(problem.descended(theta0))),
        "total": total,
        "location": parts.by_location,
        "probability": parts.by_probability,
        "steepest": float(parts.probability_slope.abs().max()),
    }
    return row, parts


def select(table: pd.DataFrame, **values: Any) -> pd.DataFrame:
    """The rows with these values in these columns, numbers to rounding."""
    for column, value in values.items():
        near = isinstance(value, float)
        chosen = (table[column] - value).abs() < 1e-6 if near else table[column] == value
        table = table.loc[chosen]
    return table
