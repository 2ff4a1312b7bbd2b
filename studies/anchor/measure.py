"""The table: one task in detail, sums over random tasks, and what noise does."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import t as student
from torch import Tensor

from studies.anchor import answers
from studies.anchor.answers import Langevin
from studies.anchor.noise import (
    count_minima,
    gibbs,
    langevin_law,
    predicted_steepest,
    steepest,
    width,
)
from studies.anchor.waves import F64, Waves

ONE = Waves(torch.tensor([[5.0, 3.7]], dtype=F64))
RANGE = (-4.5, 4.5)
STEP = 5e-4  # of differences, whose error is of its fourth power
SAME = 1e-6  # of two minima: far below the distance of different ones
LANGEVIN = Langevin(lr=0.02, steps=1000, temperature=1.0, runs=1000)
Row = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """How large a run is.

    Args:
        points: θ₀ of a curve.
        newton: θ₀ at which the library finds its own minimum.
        counts: how many tasks are summed.
        families: independent draws of as many tasks as the largest count.
        anchors: θ₀ of implicit gradients of sums.
        phases: per wave, of the predicted implicit gradient.
        temperatures: τ of curves and of runs of SGLD.
        scan: τ at which minima are counted.
        small: τ at which jumps are compared with what is predicted.
        sgld: how many θ₀ the runs start from.
        langevin: the runs, at each of the temperatures.
    """

    points: int = 451
    newton: int = 181
    counts: tuple[int, ...] = (1, 3, 10, 30, 100)
    families: int = 40
    anchors: int = 19
    phases: int = 48
    temperatures: tuple[float, ...] = (0.1, 0.3, 1.0)
    scan: tuple[float, ...] = tuple(0.01 * k for k in range(1, 151))
    small: tuple[float, ...] = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
    sgld: int = 19
    langevin: Langevin = LANGEVIN


QUICK = Size(
    points=101,
    newton=11,
    counts=(1, 3, 10),
    families=3,
    anchors=5,
    phases=6,
    temperatures=(0.3, 1.0),
    scan=(0.02, 0.1, 1.0),
    small=(0.02, 0.5),
    sgld=5,
    langevin=replace(LANGEVIN, steps=40, runs=50),
)


def grid(points: int) -> Tensor:
    """Even θ₀ over RANGE."""
    return torch.linspace(*RANGE, points, dtype=F64)


def single(size: Size, device: str) -> Iterator[Row]:
    """θ*(θ₀), its derivative three ways, f(θ*(θ₀)), and the jumps."""
    theta0 = grid(size.points)
    minimum = ONE.minima(theta0)
    formula, numeric = ONE.response(minimum)[0], differences(ONE, theta0)
    columns = {
        "theta0": theta0,
        "minimum": minimum[0],
        "formula": formula,
        "numeric": numeric,
        "numeric_error": numeric - formula,
        "value": ONE.loss(minimum)[0],
        "envelope": ONE.anchored(minimum, theta0)[0],
    }
    yield from rows("curve", columns)
    theta0 = grid(size.newton)
    found, response = answers.response(ONE, theta0, device)
    columns = {
        "theta0": theta0,
        "minimum": ONE.minima(theta0)[0],
        "found": found,
        "response": response,
        "response_error": response - ONE.response(found[None])[0],
    }
    yield from rows("library", columns)
    jumps = ONE.jumps.within(*RANGE)
    between = torch.linspace(0, 1, 2001, dtype=F64)
    inside = jumps.below + (jumps.above - jumps.below) * between[:, None]
    barrier = ONE.anchored(inside, jumps.theta0).amax(0) - ONE.anchored(jumps.below, jumps.theta0)
    ends = {"theta0": jumps.theta0, "below": jumps.below, "above": jumps.above}
    yield from rows("jump", ends | {"rise": jumps.rise, "barrier": barrier[0]})


def differences(waves: Waves, theta0: Tensor) -> Tensor:
    """dθ*/dθ₀ of the first task by central differences, with an error of order STEP⁴.

    NaN where they would reach across a jump.
    """
    wide, near = (
        (waves.minima(theta0 + k * STEP) - waves.minima(theta0 - k * STEP))[0] / (2 * k * STEP)
        for k in (2, 1)
    )
    away = (theta0[:, None] - waves.jumps.theta0[waves.jumps.task == 0]).abs().amin(-1)
    return torch.where(away > 2 * STEP, (4 * near - wide) / 3, torch.nan)


def sums(size: Size, device: str) -> Iterator[Row]:
    """How rough the mean over so many random tasks is, and its implicit gradient."""
    theta0, sparse = grid(size.points), grid(size.anchors)
    slopes, factors = [], []
    for family in range(size.families):
        waves = draw(max(size.counts), family)
        minimum = waves.minima(theta0)
        for tasks in size.counts:
            some = replace(waves, phases=waves.phases[:tasks])
            mean = some.loss(minimum[:tasks]).mean(0)
            yield roughness(some, theta0, minimum[:tasks]) | {"family": family}
            if family == 0:
                columns = {"theta0": theta0, "value": mean, "limit": limit(waves, theta0)}
                yield from rows("sum", columns, tasks=tasks)
        slopes.append(answers.implicit(waves, sparse, waves.minima(sparse), device).mean(0))
        true = limit_slope(waves, sparse)
        factors.append(float(slopes[-1] @ true / (true @ true)))
    predicted = implicit_factor(size.phases)
    for family, factor in enumerate(factors):
        yield {"panel": "factor", "family": family, "factor": factor, "predicted": predicted}
    each = torch.stack(slopes)
    columns = {
        "theta0": sparse,
        "limit_slope": limit_slope(ONE, sparse),
        "implicit": each.mean(0),
        "error": each.std(0) / math.sqrt(len(each)),
    }
    yield from rows("gradient", columns, tasks=max(size.counts))


def draw(tasks: int, seed: int) -> Waves:
    """Tasks whose waves have phases of their own, even over a turn."""
    generator = torch.Generator().manual_seed(seed)
    turns = torch.rand(tasks, len(ONE.frequencies), generator=generator, dtype=F64)
    return replace(ONE, phases=2 * math.pi * turns)


def limit(waves: Waves, theta0: Tensor) -> Tensor:
    """E f(θ*(θ₀)) over even phases, but for a constant: ½ c m², m = λ θ₀ / (λ + c).

    F is ½ (λ + c)(θ − m)² and the waves, whose law does not change when they are moved to m and
    mirrored there: θ* = m + u, with a symmetric u of the same law at every θ₀.
    """
    return 0.5 * waves.trend * (theta0 * waves.lam / (waves.lam + waves.trend)).square()


def limit_slope(waves: Waves, theta0: Tensor) -> Tensor:
    """Its derivative."""
    return waves.trend * theta0 * (waves.lam / (waves.lam + waves.trend)) ** 2


def implicit_factor(phases: int) -> float:
    """E of the implicit gradient of a task, over the slope of the limit: (λ + c) E 1/(λ + f''(θ*)).

    As f'(θ*) = λ (θ₀ − θ*) = λ (c θ₀/(λ + c) − u), with u as in `limit`, and f''(θ*) even in it.

    Args:
        phases: per wave, midpoints of as many parts of a turn.
    """
    turn = 2 * math.pi * (torch.arange(phases, dtype=F64) + 0.5) / phases
    waves = replace(ONE, phases=torch.cartesian_prod(*[turn] * len(ONE.frequencies)))
    at = waves.minima(torch.zeros(1, dtype=F64))
    return float((1 + waves.trend / waves.lam) * waves.response(at).mean())


def roughness(waves: Waves, theta0: Tensor, minimum: Tensor) -> Row:
    """Four measures of the mean objective of some tasks, on RANGE.

    distance: of the mean objective from its limit, root mean square, both without their means.
    largest_jump, all_jumps: the largest, and the sum of their sizes.
    jump_share: of all its ups and downs, its total variation, which is in jumps.
    """
    tasks = len(waves)
    jumps = waves.jumps.within(*RANGE)
    sizes = jumps.rise.abs() / tasks
    away = waves.loss(minimum).mean(0) - limit(waves, theta0)
    slope = (waves.slope(minimum) * waves.response(minimum)).mean(0)
    between = float(torch.trapezoid(slope.abs(), theta0))
    return {
        "panel": "roughness",
        "tasks": tasks,
        "distance": float(away.std(correction=0)),
        "largest_jump": float(sizes.max()),
        "all_jumps": float(sizes.sum()),
        "jump_share": float(sizes.sum() / (sizes.sum() + between)),
    }


def noisy(size: Size, device: str) -> Iterator[Row]:
    """E f under the Gibbs law and after runs of SGLD; how steep jumps are; minima that remain."""
    theta0, starts = grid(size.points), grid(size.sgld)
    jumps = ONE.jumps.within(*RANGE)
    for seed, tau in enumerate(size.temperatures):
        columns = {"theta0": theta0[::2], "value": gibbs(ONE, theta0[::2], tau)[0]}
        yield from rows("gibbs", columns, temperature=tau)
        langevin = replace(size.langevin, temperature=tau)
        found = answers.ends(ONE, starts, langevin, seed, device)
        exact = [langevin_law(ONE, start, langevin) for start in starts.tolist()]
        columns = {
            "theta0": starts,
            "value": found.mean,
            "error": found.error,
            "exact": torch.tensor(exact),
            "limit": gibbs(ONE, starts, tau)[0],
        }
        yield from rows("runs", columns, temperature=tau, steps=langevin.steps)
    for tau in size.small:
        columns = {
            "theta0": jumps.theta0,
            "steepest": torch.tensor([steepest(ONE, t, tau) for t in jumps.theta0.tolist()]),
            "predicted": predicted_steepest(jumps, ONE.lam, tau),
            "width": width(jumps, ONE.lam, tau),
        }
        yield from rows("steepness", columns, temperature=tau)
    yield {"panel": "minima", "temperature": 0.0, "minima": count_minima(deterministic(theta0))}
    for tau in size.scan:
        count = count_minima(gibbs(ONE, theta0, tau)[0])
        yield {"panel": "minima", "temperature": tau, "minima": count}


def deterministic(theta0: Tensor) -> Tensor:
    """f(θ*(θ₀)) of the one task."""
    return ONE.loss(ONE.minima(theta0))[0]


def rows(panel: str, columns: dict[str, Tensor], **same: Any) -> Iterator[Row]:
    """One row per element."""
    for values in zip(*(column.tolist() for column in columns.values()), strict=True):
        yield {"panel": panel} | same | dict(zip(columns, values, strict=True))


def select(table: pd.DataFrame, **values: Any) -> pd.DataFrame:
    """The rows with these values in these columns, without columns that they leave empty."""
    for column, value in values.items():
        near = isinstance(value, float)
        chosen = np.isclose(table[column], value) if near else table[column] == value
        table = table.loc[chosen]
    return table.dropna(axis="columns", how="all")


def power(rough: pd.DataFrame, measured: str) -> tuple[float, float]:
    """Of the number of tasks, with which a measure grows: the mean over families, ± for 95 %."""
    slopes = [
        np.polyfit(np.log(part.tasks.astype(float)), np.log(part[measured]), 1)[0]
        for _, part in rough.groupby("family")
    ]
    return interval(pd.Series(slopes))


def interval(values: pd.Series) -> tuple[float, float]:
    """The mean, and half of its 95 % interval by Student's t."""
    count = len(values)
    half = student.ppf(0.975, count - 1) * values.std() / math.sqrt(count)
    return float(values.mean()), float(half)
