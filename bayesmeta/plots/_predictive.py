"""Predictive fans: what a task's posterior says of its data, task by task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bayesmeta.plots._fan import DRAWS, Fan, fans, shows_probability, x_column, x_label, y_label
from bayesmeta.plots._reading import Array, array, task_positions
from bayesmeta.plots._style import (
    COLOURS,
    DOUBLE,
    SINGLE,
    figure_key,
    key,
    new_axes,
    new_figure,
    percent,
    plain,
    round_ticks,
    short,
    short_names,
    small,
    style,
    tint,
)

if TYPE_CHECKING:
    from bayesmeta.fit import Fit

LEVELS = (0.95, 0.8, 0.5)
_SHADES = [(percent(level), shade) for level, shade in zip(LEVELS, (0.16, 0.32, 0.55), strict=True)]
ALL_TASKS = 20
SOME_TASKS = 12


def predictive(
    fit: Fit,
    task: str | int = 0,
    *,
    ax: Axes | None = None,
    x: str | int | None = None,
    draws: int = DRAWS,
    seed: int = 0,
    legend: bool = True,
) -> Axes:
    """The 50, 80 and 95 % predictive intervals of one task along x, over its data.

    p(y | x, S_i) = ∫ p(y | x, θ) Q_i(θ) dθ, by draws. Along a continuous column that can vary by
    itself the fan is on a grid over the range of all tasks; otherwise each row has its own bar.
    Counts of trials are drawn as proportions, and of a binary y the fan is of p(y = 1 | x, θ).

    Args:
        fit: a fit.
        task: name or position.
        ax: where to draw; None makes a figure of one column's width.
        x: column across, by name or position; None takes the first with more than two values.
        draws: predictive draws.
        seed: of the draws.
        legend: whether to draw the legend, above the axes.

    Returns:
        The axes.

    Raises:
        InputError: no such task or column, or a response without order.
    """
    (fan,) = fans(fit, task_positions(fit, task), x=x, levels=LEVELS, draws=draws, seed=seed)
    own = ax is None
    if ax is None:
        ax = new_axes(SINGLE, 2.6)
    _draw(ax, fan)
    _set_ticks(ax, [fan])
    ax.set_xlabel(plain(x_label(fit, x)))
    ax.set_ylabel(plain(y_label(fit)))
    if legend:
        key(ax, own=own, title=plain(short(fan.task)))
    else:
        ax.set_title(plain(short(fan.task)))
    return ax


def predictive_grid(
    fit: Fit,
    tasks: Sequence[str | int] | None = None,
    *,
    x: str | int | None = None,
    draws: int = DRAWS,
    seed: int = 0,
    width: float = DOUBLE,
    sharey: bool = True,
) -> Figure:
    """`predictive` for several tasks: small panels with shared axes.

    A family without x, or with one that only marks the levels of a category, is drawn in one
    panel, where every task has its own place.

    Args:
        fit: a fit.
        tasks: names or positions; None takes all up to 20, else 12 evenly spaced in the order of
            their mean response.
        x: as in `predictive`.
        draws: predictive draws.
        seed: of the draws.
        width: of the figure, in inches.
        sharey: whether all panels have one scale; False where the tasks' sizes differ by orders.

    Returns:
        The figure.
    """
    chosen = chosen_tasks(fit) if tasks is None else task_positions(fit, tasks)
    found = fans(fit, chosen, x=x, levels=LEVELS, draws=draws, seed=seed)
    if x_column(fit.family, x) is None:
        return _one_panel(fit, found, width)
    columns = min(len(found), max(2, int(width / 1.15)))
    rows = -(-len(found) // columns)
    letters = int(72 * width / columns / (0.75 * 7))
    with style():
        fig = new_figure(width, 0.75 + 1.1 * rows)
        panels = fig.subplots(rows, columns, sharex=True, sharey=sharey, squeeze=False).ravel()
        names = short_names([fan.task for fan in found], letters)
        for ax, fan, name in zip(panels, found, names, strict=False):
            _draw(ax, fan)
            _set_ticks(ax, found)
            ax.set_title(plain(name), fontsize=7, pad=2)
        for ax in panels[len(found) :]:
            ax.set_visible(False)
        for ax in panels[max(0, len(found) - columns) : len(found)]:
            ax.tick_params(labelbottom=True)
        fig.supxlabel(plain(x_label(fit, x)), fontsize=8)
        fig.supylabel(plain(y_label(fit)), fontsize=8)
    figure_key(fig, [panels[0]])
    return fig


def _one_panel(fit: Fit, found: Sequence[Fan], width: float) -> Figure:
    """All tasks beside each other: without x there is nothing else to put across."""
    with style():
        fig = new_figure(width, 3.0)
        ax = fig.add_subplot()
        _draw_by_task(ax, found)
        ax.yaxis.set_major_locator(round_ticks(5))
        table = fit.family.table
        ax.set_xlabel("task" if table is None else plain(short(table.task)))
        ax.set_ylabel(plain(y_label(fit)))
    figure_key(fig, [ax])
    return fig


def predictive_caption(
    fit: Fit,
    tasks: Sequence[str | int] | str | int | None = None,
    *,
    x: str | int | None = None,
    draws: int = DRAWS,
    seed: int = 0,
    **_: Any,
) -> str:
    """What the fans show, in numbers of this fit."""
    chosen = chosen_tasks(fit) if tasks is None else task_positions(fit, tasks)
    found = fans(fit, chosen, x=x, levels=(0.95,), draws=draws, seed=seed)
    everyone = len(fit.posterior.tasks)
    which = f"{len(found)} of {everyone} tasks" if len(found) < everyone else f"{everyone} tasks"
    if tasks is None and len(found) < everyone:
        which += ", evenly spaced by mean response"
    inside = [_inside(fan) for fan in found]
    rows = sum(len(fan.data_x) for fan in found)
    if shows_probability(fit):
        return (
            f"Posterior mean and central 50, 80 and 95 % intervals of {y_label(fit)} for {which}, "
            f"over the {rows} observations (dots)."
        )
    return (
        f"Posterior predictive mean and central 50, 80 and 95 % intervals of {y_label(fit)} for "
        f"{which}, over the data (dots); {sum(inside)} of {rows} observations lie inside their "
        "95 % interval."
    )


def chosen_tasks(fit: Fit) -> list[int]:
    """All tasks, or some evenly spaced in the order of their mean response."""
    family = fit.family
    if len(family) <= ALL_TASKS or "y" not in family.tensors or family.mask is None:
        return list(range(min(len(family), ALL_TASKS)))
    mask = array(family.mask)
    means = (array(family.tensors["y"]) * mask).sum(1) / mask.sum(1)
    order = np.argsort(means, kind="stable")
    return [int(order[i]) for i in np.linspace(0, len(order) - 1, SOME_TASKS).round().astype(int)]


def _inside(fan: Fan) -> int:
    """Rows inside the first interval; between grid points its ends are taken as straight."""
    low, high = fan.low[0], fan.high[0]
    if not fan.at_rows:
        low, high = (np.interp(fan.data_x, fan.x, end) for end in (low, high))
    return int(((low <= fan.data_y) & (fan.data_y <= high)).sum())


def _draw(ax: Axes, fan: Fan) -> None:
    """One task's fan, or its bars where points do not belong together, and its data."""
    if fan.joined:
        colour = COLOURS["predictive"]
        for (name, shade), low, high in zip(_SHADES, fan.low, fan.high, strict=True):
            ax.fill_between(fan.x, low, high, color=tint(colour, shade), linewidth=0, label=name)
        ax.plot(fan.x, fan.mean, color=colour, linewidth=1.0, label="mean")
        _draw_data(ax, fan.data_x, fan.data_y)
        return
    middle, width = _side_by_side(fan.x, fan.x)
    _draw_bars(ax, fan, middle, width)
    _draw_data(ax, _side_by_side(fan.data_x, fan.x)[0], fan.data_y)


def _draw_by_task(ax: Axes, found: Sequence[Fan]) -> None:
    """All tasks of a family without x in one panel, a slot for each."""
    for slot, fan in enumerate(found):
        # Equal rows have equal intervals, drawn once; known errors or trials make them differ.
        same = bool(np.ptp(fan.low, 1).max() == 0 == np.ptp(fan.high, 1).max())
        points = slice(0, 1) if same else slice(None)
        one = replace(fan, low=fan.low[:, points], high=fan.high[:, points], mean=fan.mean[points])
        middle, width = _side_by_side(np.full(len(one.mean), float(slot)), np.arange(2.0))
        _draw_bars(ax, one, middle, width)
        across = np.full(len(fan.data_y), float(slot))
        _draw_data(ax, _side_by_side(across, np.arange(2.0))[0], fan.data_y)
    names = [plain(name) for name in short_names([fan.task for fan in found], 20)]
    room = ax.get_window_extent().width / ax.figure.dpi * 72 / len(found)
    upright = max(map(len, names)) * 0.6 * small(ax) < room
    ax.set_xticks(range(len(names)), names, rotation=0 if upright else 90)
    ax.set_xlim(-0.6, len(found) - 0.4)


def _draw_bars(ax: Axes, fan: Fan, middle: Array, width: float) -> None:
    colour = COLOURS["predictive"]
    for (name, shade), low, high in zip(_SHADES, fan.low, fan.high, strict=True):
        shade_of = tint(colour, shade)
        ax.bar(middle, high - low, width, low, color=shade_of, linewidth=0, label=name)
    ends = middle - width / 2, middle + width / 2
    ax.hlines(fan.mean, *ends, color=colour, linewidth=1.0, label="mean")
    # A bar's foot would otherwise be the edge of the axes.
    ax.use_sticky_edges = False


def _draw_data(ax: Axes, x: Array, y: Array) -> None:
    size = float(np.clip(16 / np.sqrt(len(y)), 2.2, 3.8))
    ax.plot(x, y, ".", color=COLOURS["data"], markersize=size, label="observed")


def _set_ticks(ax: Axes, found: Sequence[Fan]) -> None:
    """Round ticks; whole numbers where x is whole, and x itself where it has few values."""
    x = np.unique(np.concatenate([fan.data_x for fan in found]))
    if len(x) <= 2:
        ax.set_xticks(x, [f"{value:.4g}" for value in x])
    else:
        ax.xaxis.set_major_locator(round_ticks(4, integer=bool((x == x.round()).all())))
    ax.yaxis.set_major_locator(round_ticks(4))


def _side_by_side(x: Array, slots: Array) -> tuple[Array, float]:
    """Equal values of x drawn apart inside their slot, and the width of a mark there."""
    distinct = np.unique(slots)
    gap = float(np.diff(distinct).min()) if len(distinct) > 1 else 1.0
    moved, most = x.astype(float).copy(), 1
    for value in np.unique(x):
        same = np.flatnonzero(x == value)
        most = max(most, len(same))
        moved[same] += gap * 0.35 * (2.0 * np.arange(len(same)) + 1.0 - len(same)) / len(same)
    return moved, max(0.7 * gap / most, float(np.ptp(distinct)) / 50)
