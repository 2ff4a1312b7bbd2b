"""The posterior spread: one coordinate of every task's weights, over the prior they share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes

from bayesmeta.plots._reading import (
    Array,
    Spread,
    axis_label,
    label,
    number,
    position,
    read,
    window,
    z,
)
from bayesmeta.plots._style import (
    COLOURS,
    MARKERS,
    MOST_VECTORS,
    SINGLE,
    key,
    new_axes,
    percent,
    plain,
    round_ticks,
    short,
    short_names,
    small,
    tint,
)

if TYPE_CHECKING:
    from bayesmeta.fit import Fit

ROW = 0.145  # inches: a line of type
MANY = 5.6  # inches: the height of a forest without names


def spread(
    fit: Fit,
    coordinate: str | int = 0,
    *,
    ax: Axes | None = None,
    level: float = 0.9,
    sort: bool | str | int = True,
    max_labels: int = 40,
    no_pooling: Any = None,
    legend: bool = True,
) -> Axes:
    """A forest of tasks: posterior mean and interval of one coordinate, over the prior.

    A task's row shows mean_i ± z·sd_i (of a stochastic algorithm's runs their mean and central
    part), the band θ₀ ± z·sd₀ behind it, and a hollow marker at the
    estimate from the task's own rows alone; the thin line between the two is what pooling did.
    An estimate far outside the others (Tukey's outer fences) is a triangle at the edge.

    Args:
        fit: a fit.
        coordinate: name or position of the coordinate.
        ax: where to draw; None makes a figure of one column's width.
        level: mass of the intervals and of the band.
        sort: by posterior mean, largest on top; False keeps the family's order, first on top;
            a coordinate sorts by that one, so that panels side by side share their rows.
        max_labels: most tasks whose names are written; beyond it, or where the axes are too low
            for names, the axis counts tasks.
        no_pooling: the estimates, where already computed by `fit.no_pooling()`; False: none.
        legend: whether to draw the legend, above the axes.

    Returns:
        The axes.

    Raises:
        InputError: the coordinate or the level does not exist.
    """
    at = position(fit, coordinate)
    data = read(fit, at, no_pooling)
    order = _order(fit, at, sort)
    own = ax is None
    if ax is None:
        ax = new_axes(SINGLE, height(len(order), max_labels))
    marks = _Marks.for_rows(ax, len(order))

    _draw_prior(ax, data, level)
    _draw_tasks(ax, data, order, level, marks)
    _draw_flagged(ax, fit, data, order, marks)
    limits = window(np.concatenate([*data.ends(level), _band(data, level)]), data.alone)
    _draw_outside(ax, data.alone[order], limits, marks)
    ax.set_xlim(*limits)
    ax.set_ylim(-0.7, len(order) - 0.3)
    ax.set_xlabel(axis_label(fit, at))
    ax.xaxis.set_major_locator(round_ticks(5))
    names = [fit.posterior.tasks[i] for i in order]
    if len(names) <= max_labels and marks.row >= 5.2:
        size = min(small(ax), marks.row / 1.05)
        letters = int(0.36 * 72 * ax.figure.bbox.width / ax.figure.dpi / (0.58 * size))
        shown = [plain(name) for name in short_names(names, min(28, letters))]
        ax.set_yticks(np.arange(len(names)), shown, fontsize=size)
        ax.tick_params(axis="y", length=0)
    else:
        _count_rows(ax, len(names), "task" if sort is False else "task, by rank")
    if legend:
        key(ax, own=own)
    return ax


def spread_caption(
    fit: Fit,
    coordinate: str | int = 0,
    *,
    level: float = 0.9,
    no_pooling: Any = None,
    **_: Any,
) -> str:
    """What the figure shows, in numbers of this fit; further options of `spread` are allowed."""
    at = position(fit, coordinate)
    data = read(fit, at, no_pooling)
    names = fit.posterior.tasks
    low, high = int(data.mean.argmin()), int(data.mean.argmax())
    runs = "" if data.draws is None else f"(of {len(data.draws)} runs) "
    text = (
        f"{label(fit, at)}: posterior mean and {percent(level)} interval {runs}in each of "
        f"{len(names)} tasks, over the prior N({number(data.prior_mean)}, {number(data.prior_sd)}²)"
    )
    if data.prior_sd == 0.0:
        if np.ptp(data.mean) > 0:
            return text + ", which has no spread here: the method learns a start and no Σ₀."
        return text + ", whose sd is 0: all tasks share one value."
    known = np.isfinite(data.alone)
    if known.sum() > 1:
        text += (
            ". Pooling moves the interquartile range between tasks from "
            f"{number(_interquartile(data.alone[known]))} (own rows alone, hollow) to "
            f"{number(_interquartile(data.mean[known]))}"
        )
    if not known.all() and known.any():
        text += f"; {int((~known).sum())} tasks have no estimate of their own"
    return (
        f"{text}. Lowest: {short(names[low])} ({number(data.mean[low])}); "
        f"highest: {short(names[high])} ({number(data.mean[high])})."
    )


def height(tasks: int, max_labels: int = 40) -> float:
    """A good height of the figure, in inches: a line of type per named task."""
    return MANY if tasks > max_labels else max(1.5, 0.9 + ROW * tasks)


def _interquartile(values: Array) -> float:
    return float(np.diff(np.quantile(values, [0.25, 0.75]))[0])


@dataclass(frozen=True)
class _Marks:
    """Sizes in points that suit rows `row` points apart."""

    row: float
    dot: float
    interval: float
    shade: float

    @classmethod
    def for_rows(cls, ax: Axes, rows: int) -> _Marks:
        row = ax.get_window_extent().height / ax.figure.dpi * 72 / (rows + 1)
        # Crowded intervals step back, so that the means in front of them stay visible.
        return cls(
            row,
            dot=float(np.clip(0.55 * row, 1.5, 4.0)),
            interval=float(np.clip(0.17 * row, 0.45, 1.3)),
            shade=1.0 if row > 5.0 else 0.4,
        )


def _order(fit: Fit, at: int, sort: bool | str | int) -> Array:
    """Task positions from the bottom row up."""
    if sort is False:
        return np.arange(len(fit.posterior.tasks))[::-1]
    by = at if sort is True else position(fit, sort)
    return np.argsort(read(fit, by, no_pooling=False).mean, kind="stable")


def _band(data: Spread, level: float) -> Array:
    return data.prior_mean + z(level) * data.prior_sd * np.array([-1.0, 1.0])


def _draw_prior(ax: Axes, data: Spread, level: float) -> None:
    colour = COLOURS["prior"]
    if data.prior_sd > 0.0:
        band = tint(colour, 0.18)
        name = f"prior, {percent(level)}"
        ax.axvspan(*_band(data, level), color=band, lw=0, zorder=0, label=name)
    name = "prior, sd 0" if data.prior_sd == 0.0 else "_"
    ax.axvline(data.prior_mean, color=colour, linewidth=0.9, zorder=0.5, label=name)


def _draw_tasks(ax: Axes, data: Spread, order: Array, level: float, marks: _Marks) -> None:
    mean, alone = data.mean[order], data.alone[order]
    rows = np.arange(len(order))
    colour = tint(COLOURS["posterior"], marks.shade)
    low, high = data.ends(level)
    pixels = len(order) > MOST_VECTORS
    ax.hlines(
        rows,
        low[order],
        high[order],
        color=colour,
        linewidth=marks.interval,
        zorder=1.5,
        rasterized=pixels,
    )
    if np.isfinite(alone).any():
        colour = COLOURS["no_pooling"]
        width = 0.4 * marks.interval
        ax.hlines(rows, alone, mean, color=colour, linewidth=width, zorder=1, rasterized=pixels)
        ax.plot(
            alone,
            rows,
            MARKERS["no_pooling"],
            markersize=marks.dot,
            markerfacecolor="white",
            markeredgecolor=colour,
            markeredgewidth=0.2 * marks.dot,
            zorder=2,
            label="own rows alone",
            rasterized=pixels,
        )
    ax.plot(
        mean,
        rows,
        MARKERS["posterior"],
        color=COLOURS["posterior"],
        markersize=marks.dot,
        markeredgewidth=0,
        zorder=4,
        label=f"posterior, {percent(level)}",
        rasterized=pixels,
    )


def _draw_flagged(ax: Axes, fit: Fit, data: Spread, order: Array, marks: _Marks) -> None:
    flagged = {flag.task for flag in fit.flagged}
    here = np.array([fit.posterior.tasks[i] in flagged for i in order], dtype=bool)
    if here.any():
        ax.plot(
            data.mean[order][here],
            np.flatnonzero(here),
            MARKERS["flagged"],
            color=COLOURS["flagged"],
            markersize=marks.dot + 0.8,
            markeredgecolor="black",
            markeredgewidth=0.5,
            zorder=5,
            label="flagged",
        )


def _draw_outside(ax: Axes, alone: Array, limits: tuple[float, float], marks: _Marks) -> None:
    """Triangles at the edge for estimates beyond it, pointing where they lie."""
    for edge, marker, outside in (
        (limits[0], "<", alone < limits[0]),
        (limits[1], ">", alone > limits[1]),
    ):
        # Unclipped and empty, the marks would still claim the whole figure for the layout.
        if outside.any():
            ax.plot(
                np.full(int(outside.sum()), edge),
                np.flatnonzero(outside),
                marker,
                markersize=max(2.0, marks.dot),
                markerfacecolor="white",
                markeredgecolor=COLOURS["no_pooling"],
                markeredgewidth=0.6,
                clip_on=False,
                zorder=6,
            )


def _count_rows(ax: Axes, rows: int, name: str) -> None:
    """Ticks that count rows from 1, at the bottom."""
    counts = [int(t) for t in round_ticks(6, integer=True).tick_values(1, rows) if 1 < t <= rows]
    ax.set_yticks([count - 1 for count in (1, *counts)], [str(count) for count in (1, *counts)])
    ax.set_ylabel(name)
