"""The posterior spread: one coordinate of every task's weights, over the prior they share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from bayesmeta.plots._reading import Array, Spread, label, number, position, read, window, z
from bayesmeta.plots._style import COLOURS, MARKERS, SINGLE, key, new_axes, plain, small, tint

if TYPE_CHECKING:
    from bayesmeta.fit import Fit

BAND = tint(COLOURS["prior"], 0.18)


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

    A task's row shows mean_i ± z·sd_i, the band θ₀ ± z·sd₀ behind it, and a hollow marker at the
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
    tasks = len(order)
    if ax is None:
        ax = new_axes(SINGLE, height(tasks, max_labels))
    half = z(level)
    rows = np.arange(tasks, dtype=float)
    row = ax.get_window_extent().height / ax.figure.dpi * 72 / (tasks + 1)

    _draw_prior(ax, data, half, f"prior, {level:.0%}")
    _draw_tasks(ax, data, order, rows, half, row, f"posterior, {level:.0%}")
    _draw_flagged(ax, fit, data, order, rows, row)
    core = np.concatenate([_ends(data.mean, data.sd, half), _band(data, half)])
    limits = window(core, data.alone)
    _draw_outside(ax, data.alone[order], rows, limits, row)
    ax.set_xlim(*limits)
    ax.set_ylim(-0.7, tasks - 0.3)
    ax.set_xlabel(label(fit, at))
    ax.xaxis.set_major_locator(MaxNLocator(5))
    _name_rows(ax, [fit.posterior.tasks[i] for i in order], max_labels, row, bool(sort))
    if legend:
        key(ax)
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
    name = label(fit, at)
    text = (
        f"{name}, posterior mean and {level:.0%} interval in each of {len(names)} tasks, over the "
        f"prior N({number(data.prior_mean)}, {number(data.prior_sd)}²), its {level:.0%} shaded"
    )
    if data.prior_sd == 0.0:
        return text + ". The prior's sd is 0: all tasks share one value."
    known = np.isfinite(data.alone)
    if known.sum() > 1:
        text += (
            "; hollow: the task's own rows alone. Pooling brings the standard deviation between "
            f"tasks from {number(np.std(data.alone[known], ddof=1))} to "
            f"{number(np.std(data.mean[known], ddof=1))}"
        )
    if not known.all() and known.any():
        text += f" ({int((~known).sum())} tasks have no estimate of their own)"
    return (
        text + f". Lowest: {plain(names[low])} ({number(data.mean[low])}); "
        f"highest: {plain(names[high])} ({number(data.mean[high])})."
    )


def height(tasks: int, max_labels: int = 40) -> float:
    """A good height of the figure, in inches: a line of type per named task."""
    return 4.6 if tasks > max_labels else max(1.5, 0.9 + 0.145 * tasks)


def _order(fit: Fit, at: int, sort: bool | str | int) -> Array:
    """Task positions from the bottom row up."""
    if sort is False:
        return np.arange(len(fit.posterior.tasks))[::-1]
    by = at if sort is True else position(fit, sort)
    return np.argsort(read(fit, by, no_pooling=False).mean, kind="stable")


def _ends(mean: Array, sd: Array, half: float) -> Array:
    return np.concatenate([mean - half * sd, mean + half * sd])


def _band(data: Spread, half: float) -> Array:
    return data.prior_mean + half * data.prior_sd * np.array([-1.0, 1.0])


def _draw_prior(ax: Axes, data: Spread, half: float, name: str) -> None:
    low, high = _band(data, half)
    if data.prior_sd > 0.0:
        ax.axvspan(low, high, color=BAND, linewidth=0, zorder=0, label=name)
    else:
        name = "prior, sd 0"
    line = ax.axvline(data.prior_mean, color=COLOURS["prior"], linewidth=0.9, zorder=0.5)
    if data.prior_sd == 0.0:
        line.set_label(name)


def _draw_tasks(
    ax: Axes, data: Spread, order: Array, rows: Array, half: float, row: float, name: str
) -> None:
    mean, sd, alone = data.mean[order], data.sd[order], data.alone[order]
    size = float(np.clip(0.55 * row, 1.3, 4.0))
    if np.isfinite(alone).any():
        colour = COLOURS["no_pooling"]
        ax.hlines(rows, alone, mean, color=colour, linewidth=min(0.6, 0.25 * row), zorder=1)
        ax.plot(
            alone, rows, MARKERS["no_pooling"], markersize=size, markerfacecolor="white",
            markeredgecolor=colour, markeredgewidth=min(0.8, 0.22 * size), zorder=2,
            label="own rows alone",
        )
    colour = COLOURS["posterior"]
    width = float(np.clip(0.18 * row, 0.5, 1.4))
    ax.hlines(rows, mean - half * sd, mean + half * sd, color=colour, linewidth=width, zorder=3)
    ax.plot(
        mean, rows, MARKERS["posterior"], color=colour, markersize=size, markeredgewidth=0,
        zorder=4, label=name,
    )


def _draw_flagged(
    ax: Axes, fit: Fit, data: Spread, order: Array, rows: Array, row: float
) -> None:
    flagged = {flag.task for flag in fit.flagged}
    mark = np.array([fit.posterior.tasks[i] in flagged for i in order], dtype=bool)
    if mark.any():
        ax.plot(
            data.mean[order][mark], rows[mark], MARKERS["flagged"], color=COLOURS["flagged"],
            markersize=float(np.clip(0.6 * row, 2.4, 4.5)), markeredgecolor="black",
            markeredgewidth=0.5, zorder=5, label="flagged",
        )


def _draw_outside(
    ax: Axes, alone: Array, rows: Array, limits: tuple[float, float], row: float
) -> None:
    """Triangles at the edge for estimates beyond it, pointing where they lie."""
    size = float(np.clip(0.55 * row, 2.0, 4.0))
    for edge, marker, outside in (
        (limits[0], "<", alone < limits[0]),
        (limits[1], ">", alone > limits[1]),
    ):
        if outside.any():
            ax.plot(
                np.full(int(outside.sum()), edge), rows[outside], marker, markersize=size,
                markerfacecolor="white", markeredgecolor=COLOURS["no_pooling"],
                markeredgewidth=0.6, clip_on=False, zorder=6,
            )


def _name_rows(ax: Axes, names: list[str], max_labels: int, row: float, ranked: bool) -> None:
    size = min(small(ax), row / 1.05)
    if len(names) <= max_labels and size >= 5.0:
        ax.set_yticks(np.arange(len(names)), [plain(name) for name in names], fontsize=size)
        ax.tick_params(axis="y", length=0)
        return
    # Counted from the bottom, as the ranks of the means are.
    ax.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    ax.yaxis.set_major_formatter(lambda value, _: f"{value + 1:.0f}")
    ticks = [t - 1 for t in MaxNLocator(6, integer=True).tick_values(1, len(names))]
    ax.set_yticks([t for t in ticks if 0 <= t < len(names)])
    ax.set_ylabel("task, by rank" if ranked else "task")
