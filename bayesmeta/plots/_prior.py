"""The prior of one coordinate, with the posteriors of the tasks it was fitted to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection

from bayesmeta.plots._reading import (
    Array,
    Spread,
    axis_label,
    bell,
    label,
    number,
    position,
    read,
    z,
)
from bayesmeta.plots._style import (
    COLOURS,
    MOST_VECTORS,
    SINGLE,
    key,
    new_axes,
    percent,
    round_ticks,
    small,
    tint,
)

if TYPE_CHECKING:
    from bayesmeta.fit import Fit

POINTS = 400
MOST_LINES = 300


def prior(
    fit: Fit,
    coordinate: str | int = 0,
    *,
    ax: Axes | None = None,
    legend: bool = True,
) -> Axes:
    """The prior's density N(θ₀, sd²), the average of the tasks' posteriors, and each of them.

    At a maximum of the evidence over a free Σ₀, the average (1/n) Σ_i Q_i has the prior's mean
    and variance; where the two curves differ in shape, a Gaussian prior does not describe the
    tasks. The single posteriors are drawn at one common scale, the tallest as high as the axes
    allow, because their own heights would flatten the prior. Ticks below mark their means.

    Args:
        fit: a fit.
        coordinate: name or position.
        ax: where to draw; None makes a figure of one column's width.
        legend: whether to draw the legend, above the axes.

    Returns:
        The axes.

    Raises:
        InputError: the coordinate does not exist.
    """
    at = position(fit, coordinate)
    data = read(fit, at, no_pooling=False)
    own = ax is None
    if ax is None:
        ax = new_axes(SINGLE, 2.4)
    x = _grid(data.prior_mean, data.prior_sd, data.mean, data.sd)
    average = _average(x, data) if (data.sd > 0.0).all() else None
    curve = None
    if data.prior_sd > 0.0:
        curve = bell((x - data.prior_mean) / data.prior_sd) / data.prior_sd

    top = max((float(c.max()) for c in (average, curve) if c is not None), default=1.0)
    _draw_each(ax, data, top)
    if average is not None:
        ax.plot(x, average, color=COLOURS["posterior"], label="their average")
    said = "one value for all tasks" if np.ptp(data.mean) == 0 else "where tasks start"
    _draw_prior(ax, x, curve, data.prior_mean, top, said)
    ax.plot(
        data.mean,
        np.full(len(data.mean), -0.035 * top),
        "|",
        color=COLOURS["posterior"],
        markersize=5,
        markeredgewidth=float(np.clip(12 / len(data.mean), 0.3, 0.9)),
        rasterized=len(data.mean) > MOST_VECTORS,
    )
    ax.set_xlim(x[0], x[-1])
    ax.set_ylim(-0.07 * top, 1.06 * top)
    ax.set_xlabel(axis_label(fit, at))
    ax.set_ylabel("density")
    ax.xaxis.set_major_locator(round_ticks(5))
    ax.yaxis.set_major_locator(round_ticks(4))
    if curve is None and average is None:
        ax.set_yticks([])
    if legend:
        key(ax, own=own)
    return ax


def prior_caption(fit: Fit, coordinate: str | int = 0, **_: Any) -> str:
    """What the densities show, in numbers of this fit."""
    at = position(fit, coordinate)
    data = read(fit, at, no_pooling=False)
    text = f"{label(fit, at)}: prior N({number(data.prior_mean)}, {number(data.prior_sd)}²)"
    if data.prior_sd == 0.0:
        same = np.ptp(data.mean) == 0
        return f"{text}, {'a single value that all tasks share' if same else 'where tasks start'}."
    inside = float(np.mean(np.abs(data.mean - data.prior_mean) <= z(0.5) * data.prior_sd))
    average = float(np.sqrt(np.mean(data.sd**2 + (data.mean - data.mean.mean()) ** 2)))
    return (
        text + f" over the posteriors of {len(data.mean)} tasks (thin, one common height scale) "
        f"and their average, whose sd is {number(average)}. {percent(round(inside, 2))} of the "
        "posterior means (ticks) lie in the prior's central half."
    )


def _grid(centre: float, prior_sd: float, mean: Array, sd: Array) -> Array:
    """Evenly spaced values that hold the prior and every posterior, and its peaks."""
    low = min(centre - 3.2 * prior_sd, float(np.min(mean - 3.0 * sd)))
    high = max(centre + 3.2 * prior_sd, float(np.max(mean + 3.0 * sd)))
    margin = 0.02 * (high - low) or 0.05 * abs(centre) or 1.0
    even = np.linspace(low - margin, high + margin, POINTS)
    if len(mean) > MOST_LINES:
        return even
    # A few narrow posteriors between two even values would be missed: add their own peaks.
    near = mean[:, None] + sd[:, None] * np.array([-2.0, -1.0, 0.0, 1.0, 2.0])
    return np.unique(np.concatenate([even, near.ravel()]))


def _average(x: Array, data: Spread) -> Array:
    """The mean over tasks of their densities at x, some tasks at a time."""
    tasks = np.arange(len(data.mean))
    parts = np.split(tasks, np.arange(MOST_LINES, len(tasks), MOST_LINES))
    return np.asarray(sum(data.density(part, x).sum(0) for part in parts) / len(tasks))


def _draw_each(ax: Axes, data: Spread, top: float) -> None:
    """One line per task, only where it is not flat on the axis; the narrowest is `top` high.

    Of very many tasks some are drawn, evenly spaced in the order of their means.
    """
    order = np.argsort(data.mean, kind="stable")
    order = order[data.sd[order] > 0.0]
    if not len(order):
        return
    some = np.unique(np.linspace(0, len(order) - 1, min(len(order), MOST_LINES)).round())
    chosen = order[some.astype(int)]
    x = data.mean[chosen, None] + data.sd[chosen, None] * np.linspace(-3.7, 3.7, 61)
    height = data.density(chosen, x)
    lines = list(np.stack([x, top / height.max() * height], -1))
    ax.add_collection(
        LineCollection(
            lines,
            colors=[tint(COLOURS["posterior"], float(np.clip(9 / len(lines), 0.3, 0.45)))],
            linewidths=float(np.clip(12 / len(lines), 0.3, 0.7)),
            label="task posteriors, rescaled",
            zorder=1,
        ),
        autolim=False,
    )


def _draw_prior(
    ax: Axes, x: Array, curve: Array | None, centre: float, top: float, said: str
) -> None:
    colour = COLOURS["prior"]
    if curve is not None:
        ax.fill_between(x, 0.0, curve, color=tint(colour, 0.18), linewidth=0, zorder=0)
        ax.plot(x, curve, "--", color=colour, linewidth=1.4, label="prior")
        return
    ax.plot(
        [centre, centre], [0.0, 0.85 * top], "--", color=colour, linewidth=1.4, label="prior, sd 0"
    )
    place = (centre - x[0]) / (x[-1] - x[0])
    # Near an edge the words would run over the axis: they turn inwards.
    aligned = "left" if place < 0.25 else "right" if place > 0.75 else "center"
    ax.text(centre, 0.93 * top, said, fontsize=small(ax), ha=aligned, va="center")
