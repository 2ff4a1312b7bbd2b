"""Calibration: how often what was predicted with some probability was observed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from bayesmeta.plots._coverage import points
from bayesmeta.plots._fan import shows_probability, y_label
from bayesmeta.plots._style import (
    COLOURS,
    GREY,
    MARKERS,
    SINGLE,
    key,
    new_axes,
    percent,
    plain,
    tint,
)

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
    ±1.96 standard errors that allow for the dependence of a task's rows. For a binary y: the share
    of ones against the predicted probability, in groups of equal size.

    Args:
        fit: a fit.
        ax: where to draw; None makes a figure of one column's width.
        family: where the observed y are; the fit's own by default: the rows it has seen.
        prediction: of this family, by any means, with `.draws` (draw, task, row); None asks
            the fit.
        levels: nominal masses of the intervals.
        draws: predictive draws asked of the fit; fewer, at least 100, beyond 10⁵ rows.
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
    found = points(
        fit, family=family, prediction=prediction, levels=tuple(levels), draws=draws, seed=seed
    )
    own = ax is None
    if ax is None:
        ax = new_axes(SINGLE, 3.0)
    if band:
        nominal = np.linspace(0.0, 1.0, 101)
        half = 1.96 * np.sqrt(nominal * (1.0 - nominal) / found.each)
        low, high = np.clip(nominal - half, 0.0, 1.0), np.clip(nominal + half, 0.0, 1.0)
        name = f"calibrated, {found.each} independent rows"
        ax.fill_between(nominal, low, high, color=tint(GREY, 0.3), linewidth=0, label=name)
        ax.plot([0.0, 1.0], [0.0, 1.0], "--", color=GREY, linewidth=0.8)
    ax.errorbar(
        found.nominal,
        found.observed,
        1.96 * found.error,
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
    ax.xaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    ax.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    binary = shows_probability(fit)
    ax.set_xlabel(plain(f"predicted {y_label(fit)}") if binary else "nominal coverage")
    ax.set_ylabel("observed share" if binary else "observed coverage")
    if legend:
        key(ax, own=own)
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
    found = points(
        fit, family=family, prediction=prediction, levels=(0.5, 0.9), draws=draws, seed=seed
    )
    size = f"{found.rows} observations in {found.tasks} tasks"
    seen = ", the rows the fit has seen" if family is None else ""
    if shows_probability(fit):
        gap = np.abs(found.observed - found.nominal).max()
        return (
            f"Predicted {y_label(fit)} against the observed share in {len(found.nominal)} groups "
            f"of equal size over {size}{seen}: the largest difference is {gap:.3f}."
        )
    at = ", ".join(
        f"{100 * o:.1f} ± {196 * e:.1f} % at nominal {percent(level)}"
        for level, o, e in zip(found.nominal, found.observed, found.error, strict=True)
    )
    above = ", so a little above nominal where calibrated" if family is None else ""
    return f"Coverage of central predictive intervals over {size}{seen}{above}: {at}."
