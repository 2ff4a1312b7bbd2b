"""Numbers of calibration: coverage of intervals, and the share of ones where y is 0 or 1."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bayesmeta.plots._fan import shows_probability
from bayesmeta.plots._reading import Array, array
from bayesmeta.results import InputError

if TYPE_CHECKING:
    from bayesmeta.fit import Fit
    from bayesmeta.tasks import TaskFamily

LARGEST = 2e7  # draws held at once
MOST = 1e8  # draws in all: many rows need fewer of each
FEWEST = 100
GROUPS = 10


@dataclass(frozen=True, eq=False)
class Points:
    """Nominal against observed.

    Args:
        nominal, observed, error: (point,) shares, and the standard error of the second.
        each: rows behind one point.
        rows, tasks: of all.
    """

    nominal: Array
    observed: Array
    error: Array
    each: int
    rows: int
    tasks: int


def points(
    fit: Fit,
    *,
    family: TaskFamily | None,
    prediction: Any,
    levels: tuple[float, ...],
    draws: int,
    seed: int,
) -> Points:
    """Coverage at each level; for a binary y, shares of ones in groups of equal p(y = 1).

    A binary y is either of two values, so an interval of y says nothing about p(y = 1).
    """
    parts = list(_predicted(fit, family, prediction, draws, seed))
    if shows_probability(fit):
        p = np.concatenate([sample.mean(0)[mask] for sample, _, mask in parts])
        y = np.concatenate([y[mask] for _, y, mask in parts])
        nominal, observed, error = shares(p, y)
        tasks = sum(len(y) for _, y, _ in parts)
        return Points(nominal, observed, error, len(p) // len(nominal), len(p), tasks)
    covered = [coverage(sample, y, mask, levels) for sample, y, mask in parts]
    rows = np.concatenate([count for _, count in covered])
    observed, error = pooled(np.concatenate([part for part, _ in covered], 1), rows)
    count = int(rows.sum())
    return Points(np.array(levels), observed, error, count, count, len(rows))


def coverage(
    draws: Array, y: Array, mask: Array | None, levels: tuple[float, ...]
) -> tuple[Array, Array]:
    """How much of each task's y lies in the central interval of each level.

    With r of S draws below y and r′ at or below it, y's probability integral transform is uniform
    on (r/(S+1), (r′+1)/(S+1)) where the draws are calibrated; a level's coverage is the part of
    that range in its central interval. Ties, as in counts, thus count in part, and a calibrated
    forecast of counts is exactly calibrated here, though no interval of integers can be.

    Args:
        draws: (draw, task, row).
        y: (task, row).
        mask: (task, row), True on real rows, or None.
        levels: nominal masses.

    Returns:
        (level, task) coverages, and (task,) numbers of rows.

    Example:
        >>> draws = np.arange(99.0).reshape(99, 1, 1)
        >>> part, _ = coverage(draws, np.array([[49.0]]), None, (0.5, 0.9))
        >>> part[:, 0].tolist()
        [1.0, 1.0]
    """
    real = np.ones(y.shape, bool) if mask is None else np.asarray(mask, bool)
    count = len(draws) + 1.0
    low = (draws < y).sum(0) / count
    high = ((draws <= y).sum(0) + 1.0) / count
    parts = []
    for level in levels:
        inside = np.minimum(high, 0.5 + level / 2) - np.maximum(low, 0.5 - level / 2)
        part = np.clip(inside, 0.0, None) / (high - low)
        parts.append(np.where(real, part, 0.0).sum(1) / real.sum(1))
    return np.stack(parts), real.sum(1).astype(float)


def pooled(per_task: Array, rows: Array) -> tuple[Array, Array]:
    """(level,) coverage over all rows, and its standard error with tasks as the clusters."""
    weight = rows / rows.sum()
    observed = per_task @ weight
    deviations = weight * (per_task - observed[:, None])
    tasks = len(rows)
    error = np.sqrt((deviations**2).sum(1) * tasks / max(tasks - 1, 1))
    return observed, error if tasks > 1 else np.full(len(observed), np.nan)


def shares(p: Array, y: Array) -> tuple[Array, Array, Array]:
    """Mean p, share of y = 1 and its standard error in up to ten groups of equal size.

    Example:
        >>> p = np.repeat([0.25, 0.75], 20)
        >>> y = np.array(([1.0] + [0.0] * 3) * 5 + ([0.0] + [1.0] * 3) * 5)
        >>> [a.tolist() for a in shares(p, y)[:2]]
        [[0.25, 0.75], [0.25, 0.75]]
    """
    order = np.argsort(p, kind="stable")
    groups = np.array_split(order, min(GROUPS, max(1, len(p) // 20)))
    nominal = np.array([p[g].mean() for g in groups])
    observed = np.array([y[g].mean() for g in groups])
    return nominal, observed, np.sqrt(observed * (1 - observed) / [len(g) for g in groups])


def _predicted(
    fit: Fit, family: TaskFamily | None, prediction: Any, draws: int, seed: int
) -> Iterator[tuple[Array, Array, Array]]:
    """(draw, task, row) draws, y and mask, some tasks at a time."""
    if fit.likelihood is not None and fit.likelihood.name == "categorical":
        raise InputError("categories have no order, so no central intervals to check")
    family = fit.family if family is None else family
    if "y" not in family.tensors:
        raise InputError("calibration compares with observed y: give a family that has it")
    y = array(family.tensors["y"])
    mask = np.ones(y.shape, bool) if family.mask is None else array(family.mask).astype(bool)
    if prediction is not None:
        yield array(prediction.draws), y, mask
        return
    draws = min(draws, max(FEWEST, int(MOST // y.size)))
    size = max(1, int(LARGEST // (draws * y.shape[1])))
    for start in range(0, len(family), size):
        some = list(range(start, min(start + size, len(family))))
        sample = fit.predict(family.subset(some), draws=draws, seed=seed + start).draws
        yield array(sample), y[some], mask[some]
