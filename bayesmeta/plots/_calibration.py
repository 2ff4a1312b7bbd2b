"""Calibration: how often the intervals of the predictive distribution held what was observed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from bayesmeta.plots._reading import Array, array
from bayesmeta.plots._style import COLOURS, GREY, MARKERS, SINGLE, key, new_axes, tint
from bayesmeta.results import InputError

if TYPE_CHECKING:
    from bayesmeta.fit import Fit
    from bayesmeta.tasks import TaskFamily

LEVELS = tuple(float(level) for level in np.arange(0.05, 1.0, 0.05).round(2))


def calibration(
    fit: Fit,
    *,
    ax: Axes | None = None,
    family: TaskFamily | None = None,
    prediction: Any = None,
    levels: tuple[float, ...] = LEVELS,
    draws: int = 1000,
    seed: int = 0,
    label: str | None = None,
    role: str = "predictive",
    band: bool = True,
    legend: bool = True,
) -> Axes:
    """Observed against nominal coverage of central predictive intervals.

    A point above the diagonal: the intervals are too wide. The band holds 95 % of the coverages
    that a calibrated forecast of as many independent observations shows, point by point; bars are
    ±1.96 standard errors that allow for the dependence of a task's rows.

    Args:
        fit: a fit.
        ax: where to draw; None makes a figure of one column's width.
        family: where the observed y are; the fit's own by default: the rows it has seen.
        prediction: of this family, by any means, with `.draws` (draw, task, row); None asks
            the fit.
        levels: nominal masses of the intervals.
        draws: predictive draws asked of the fit.
        seed: of those draws.
        label: name of this forecast, where several are drawn on one Axes.
        role: key of `COLOURS` and `MARKERS`.
        band: whether to draw the diagonal and its band; once is enough on one Axes.
        legend: whether to draw the legend, above the axes.

    Returns:
        The axes.

    Raises:
        InputError: there is no y to compare with, or its categories have no order.
    """
    levels = tuple(levels)
    per_task, rows = _coverages(fit, family, prediction, levels, draws, seed)
    observed, error = pooled(per_task, rows)
    if ax is None:
        ax = new_axes(SINGLE, 3.0)
    if band:
        nominal = np.linspace(0.0, 1.0, 101)
        half = 1.96 * np.sqrt(nominal * (1.0 - nominal) / rows.sum())
        low, high = np.clip(nominal - half, 0.0, 1.0), np.clip(nominal + half, 0.0, 1.0)
        name = f"calibrated, {int(rows.sum())} independent rows"
        ax.fill_between(nominal, low, high, color=tint(GREY, 0.3), linewidth=0, label=name)
        ax.plot([0.0, 1.0], [0.0, 1.0], "--", color=GREY, linewidth=0.8)
    ax.errorbar(
        levels,
        observed,
        1.96 * error,
        fmt=MARKERS.get(role, "o"),
        color=COLOURS[role],
        markersize=3,
        markeredgewidth=0,
        linewidth=0.8,
        elinewidth=0.7,
        linestyle="-",
        label=label or "observed",
    )
    ax.set_xlim(0.0, 1.0)
    ax.set_ylim(0.0, 1.0)
    ax.set_aspect("equal")
    ax.xaxis.set_major_formatter(PercentFormatter(1.0))
    ax.yaxis.set_major_formatter(PercentFormatter(1.0))
    ax.set_xlabel("nominal coverage")
    ax.set_ylabel("observed coverage")
    if legend:
        key(ax)
    return ax


def calibration_caption(
    fit: Fit,
    *,
    family: TaskFamily | None = None,
    prediction: Any = None,
    draws: int = 1000,
    seed: int = 0,
    **_: Any,
) -> str:
    """What the figure shows, in numbers of this prediction."""
    levels = (0.5, 0.9)
    per_task, rows = _coverages(fit, family, prediction, levels, draws, seed)
    observed, error = pooled(per_task, rows)
    at = ", ".join(
        f"{o:.1%} (± {1.96 * e:.1%}) at nominal {level:.0%}"
        for level, o, e in zip(levels, observed, error, strict=True)
    )
    where = "the rows the fit has seen" if family is None else "rows given for this check"
    return (
        f"Coverage of central predictive intervals over {int(rows.sum())} observations in "
        f"{len(rows)} tasks, {where}: {at}."
    )


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


def _coverages(
    fit: Fit,
    family: TaskFamily | None,
    prediction: Any,
    levels: tuple[float, ...],
    draws: int,
    seed: int,
) -> tuple[Array, Array]:
    if fit.likelihood is not None and fit.likelihood.name == "categorical":
        raise InputError("categories have no order, so no central intervals to check")
    seen = fit.family if family is None else family
    if "y" not in seen.tensors:
        raise InputError("calibration compares with observed y: give a family that has it")
    if prediction is None:
        prediction = fit.predict(family, draws=draws, seed=seed)
    mask = None if seen.mask is None else array(seen.mask).astype(bool)
    return coverage(array(prediction.draws), array(seen.tensors["y"]), mask, levels)
