"""Predictive fans: what a task's posterior says of its data, task by task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bayesmeta.plots._fan import DRAWS, Fan, fans, x_label, y_label
from bayesmeta.plots._reading import Array, array, task_positions
from bayesmeta.plots._style import (
    COLOURS,
    DOUBLE,
    SINGLE,
    key,
    new_axes,
    new_figure,
    plain,
    style,
    tint,
)

if TYPE_CHECKING:
    from bayesmeta.fit import Fit

LEVELS = (0.95, 0.8, 0.5)
TINTS = (0.16, 0.32, 0.55)
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
    if ax is None:
        ax = new_axes(SINGLE, 2.6)
    _draw(ax, fan)
    ax.set_xlabel(x_label(fit, x))
    ax.set_ylabel(y_label(fit))
    ax.set_title(plain(fan.task), loc="right")
    if legend:
        key(ax)
    return ax


def predictive_grid(
    fit: Fit,
    tasks: Sequence[str | int] | None = None,
    *,
    x: str | int | None = None,
    draws: int = DRAWS,
    seed: int = 0,
    width: float = DOUBLE,
) -> Figure:
    """`predictive` for several tasks: small panels with shared axes.

    Args:
        fit: a fit.
        tasks: names or positions; None takes all up to 20, else 12 evenly spaced in the order of
            their mean response.
        x: as in `predictive`.
        draws: predictive draws.
        seed: of the draws.
        width: of the figure, in inches.

    Returns:
        The figure.
    """
    chosen = chosen_tasks(fit) if tasks is None else task_positions(fit, tasks)
    found = fans(fit, chosen, x=x, levels=LEVELS, draws=draws, seed=seed)
    columns = min(len(found), max(2, int(width / 1.15)))
    rows = -(-len(found) // columns)
    with style():
        fig = new_figure(width, 0.75 + 1.1 * rows)
        panels = fig.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
        for ax, fan in zip(panels, found, strict=False):
            _draw(ax, fan)
            ax.set_title(plain(fan.task, limit=18), fontsize=7, pad=2)
        for ax in panels[len(found) :]:
            ax.set_visible(False)
        for ax in panels[max(0, len(found) - columns) : len(found)]:
            ax.tick_params(labelbottom=True)
        fig.supxlabel(x_label(fit, x), fontsize=8)
        fig.supylabel(y_label(fit), fontsize=8)
        fig.legend(
            *panels[0].get_legend_handles_labels(),
            loc="outside upper center",
            ncols=5 if width > 5 else 3,
            frameon=False,
            handlelength=1.4,
            columnspacing=1.2,
        )
    return fig


def predictive_caption(
    fit: Fit, tasks: Sequence[str | int] | str | int | None = None, **options: Any
) -> str:
    """What the fans show, in numbers of this fit."""
    chosen = chosen_tasks(fit) if tasks is None else task_positions(fit, tasks)
    allowed = {k: v for k, v in options.items() if k in ("x", "draws", "seed")}
    found = fans(fit, chosen, **({"x": None} | allowed), levels=(0.95,))
    everyone = len(fit.posterior.tasks)
    which = f"{len(found)} of {everyone} tasks" if len(found) < everyone else f"{everyone} tasks"
    if tasks is None and len(found) < everyone:
        which += ", evenly spaced by mean response"
    inside = [_inside(fan) for fan in found]
    rows = sum(len(fan.data_x) for fan in found)
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
    if fan.joined:
        low, high = (np.interp(fan.data_x, fan.x, end) for end in (low, high))
    return int(((low <= fan.data_y) & (fan.data_y <= high)).sum())


def _draw(ax: Axes, fan: Fan) -> None:
    colour = COLOURS["predictive"]
    names = [f"{level:.0%}" for level in LEVELS]
    ends = list(zip(names, TINTS, fan.low, fan.high, strict=True))
    across = fan.data_x
    if fan.joined:
        for name, shade, low, high in ends:
            ax.fill_between(fan.x, low, high, color=tint(colour, shade), linewidth=0, label=name)
        ax.plot(fan.x, fan.mean, color=colour, linewidth=1.0, label="predictive mean")
    else:
        middle, width = _side_by_side(fan.x, fan.x)
        across, _ = _side_by_side(fan.data_x, fan.x)
        for name, shade, low, high in ends:
            ax.bar(
                middle, high - low, width, low, color=tint(colour, shade), linewidth=0, label=name
            )
        ax.hlines(
            fan.mean,
            middle - width / 2,
            middle + width / 2,
            color=colour,
            linewidth=1.0,
            label="predictive mean",
        )
    ax.plot(across, fan.data_y, ".", color=COLOURS["data"], markersize=3.5, label="observed")
    ax.xaxis.set_major_locator(MaxNLocator(4))
    ax.yaxis.set_major_locator(MaxNLocator(4))


def _side_by_side(x: Array, slots: Array) -> tuple[Array, float]:
    """x with equal values drawn apart inside their slot, and the width of a mark there."""
    distinct = np.unique(slots)
    gap = float(np.diff(distinct).min()) if len(distinct) > 1 else 1.0
    gap = max(gap, float(np.ptp(distinct)) / 100)
    moved, most = x.astype(float).copy(), 1
    for value in np.unique(x):
        same = np.flatnonzero(x == value)
        most = max(most, len(same))
        if len(same) > 1:
            moved[same] += gap * 0.3 * np.linspace(-1.0, 1.0, len(same))
    return moved, 0.7 * gap / most
