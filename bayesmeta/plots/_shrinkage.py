"""The shrinkage map: two coordinates of every task, from its own estimate to the pooled one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.patches import FancyArrowPatch

from bayesmeta.plots._places import name_points
from bayesmeta.plots._reading import (
    Array,
    array,
    axis_label,
    estimates_alone,
    number,
    position,
    window,
)
from bayesmeta.plots._style import (
    COLOURS,
    MARKERS,
    MOST_VECTORS,
    SINGLE,
    key,
    new_axes,
    percent,
    round_ticks,
)
from bayesmeta.results import InputError

if TYPE_CHECKING:
    from bayesmeta.fit import Fit

LEVELS = (0.5, 0.9)
MOST_ARROWS = 60
MOST_NAMES = 8


def shrinkage(
    fit: Fit,
    first: str | int = 0,
    second: str | int = 1,
    *,
    ax: Axes | None = None,
    no_pooling: Any = None,
    legend: bool = True,
) -> Axes:
    """Arrows from each task's own estimate to its posterior mean, over ellipses of the prior.

    An ellipse of mass p is {θ : (θ−θ₀)ᵀ Σ₀⁻¹ (θ−θ₀) = −2 log(1−p)}, here for 50 and 90 %. Own
    estimates far outside the others lie beyond the limits; their line still points to them. Up to
    eight tasks are named.

    Args:
        fit: a fit with at least two coordinates.
        first: name or position of the coordinate across.
        second: of the coordinate upward.
        ax: where to draw; None makes a figure of one column's width.
        no_pooling: as in `spread`.
        legend: whether to draw the legend, above the axes.

    Returns:
        The axes.

    Raises:
        InputError: a coordinate does not exist, or both are the same.
    """
    pair = _pair(fit, first, second)
    pooled = array(fit.posterior.mean)[:, pair]
    alone = estimates_alone(fit, no_pooling)[:, pair]
    centre = array(fit.prior.mean)[pair]
    covariance = array(fit.prior.covariance())[np.ix_(pair, pair)]
    own = ax is None
    if ax is None:
        ax = new_axes(SINGLE, 3.0)

    outlines = [ellipse(centre, covariance, level) for level in LEVELS]
    colour = COLOURS["prior"]
    for level, outline, dash in zip(LEVELS, outlines, ("--", "-"), strict=True):
        name = f"prior, {percent(level)}"
        ax.plot(*outline.T, dash, color=colour, linewidth=0.9, label=name, zorder=4)
    ax.plot(
        *centre, "+", color=colour, markersize=8, markeredgewidth=1.4, label="prior mean", zorder=4
    )
    _draw_moves(ax, alone, pooled)
    core = np.concatenate([pooled, *outlines])
    ax.set_xlim(*window(core[:, 0], alone[:, 0]))
    ax.set_ylim(*window(core[:, 1], alone[:, 1]))
    ax.set_xlabel(axis_label(fit, pair[0]))
    ax.set_ylabel(axis_label(fit, pair[1]))
    ax.xaxis.set_major_locator(round_ticks(5))
    ax.yaxis.set_major_locator(round_ticks(5))
    if len(pooled) <= MOST_NAMES:
        way = np.linspace(alone, pooled, 9).reshape(-1, 2)
        name_points(ax, list(fit.posterior.tasks), pooled, np.concatenate([way, outlines[0]]))
    if legend:
        key(ax, own=own)
    return ax


def shrinkage_caption(
    fit: Fit, first: str | int = 0, second: str | int = 1, *, no_pooling: Any = None, **_: Any
) -> str:
    """What the map shows, in numbers of this fit."""
    pair = _pair(fit, first, second)
    sd = array(fit.prior.sd())[pair]
    names = [fit.prior.names[i] for i in pair]
    alone = estimates_alone(fit, no_pooling)[:, pair]
    missing = int((~np.isfinite(alone).all(1)).sum())
    moves = "From each task's estimate by its own rows (hollow) to its posterior mean (filled), for"
    text = moves if missing < len(alone) else f"Posterior means of {len(alone)} tasks, for"
    text += f" {names[0]} and {names[1]}; ellipses hold 50 and 90 % of the prior"
    if (sd == 0).any():
        still = " and ".join(n for n, s in zip(names, sd, strict=True) if s == 0)
        text += f", whose sd is 0 for {still}: no spread is left between tasks"
    else:
        text += f" (correlation {number(array(fit.prior.correlation())[tuple(pair)])})"
    if 0 < missing < len(alone):
        text += f". {missing} tasks have no estimate of their own and no arrow"
    return text + "."


def ellipse(centre: Array, covariance: Array, level: float, points: int = 121) -> Array:
    """(points, 2) outline that holds `level` of a two-dimensional normal; flat where it is.

    Example:
        >>> outline = ellipse(np.zeros(2), np.eye(2), 0.5)
        >>> radius = np.hypot(*outline.T)
        >>> bool(np.allclose(radius, np.sqrt(2 * np.log(2))))
        True
    """
    values, axes = np.linalg.eigh(covariance)
    half = np.sqrt(np.clip(values, 0.0, None) * -2.0 * np.log1p(-level))
    angle = np.linspace(0.0, 2.0 * np.pi, points)
    circle = np.stack([np.cos(angle), np.sin(angle)], -1)
    return centre + (circle * half) @ axes.T


def _pair(fit: Fit, first: str | int, second: str | int) -> list[int]:
    if len(fit.prior.names) < 2:
        raise InputError("a shrinkage map needs two coordinates and this fit has one: draw spread")
    pair = [position(fit, first), position(fit, second)]
    if pair[0] == pair[1]:
        raise InputError("a shrinkage map needs two different coordinates")
    return pair


def _draw_moves(ax: Axes, alone: Array, pooled: Array) -> None:
    """Hollow to filled; heads on the arrows while there are few enough to see them."""
    known = np.isfinite(alone).all(1)
    few, pixels = len(pooled) <= MOST_ARROWS, len(pooled) > MOST_VECTORS
    size = 3.6 if few else float(np.clip(40 / np.sqrt(len(pooled)), 1.3, 3.0))
    colour = COLOURS["no_pooling"]
    if few:
        for start, end in zip(alone[known], pooled[known], strict=True):
            ax.add_patch(
                FancyArrowPatch(
                    start,
                    end,
                    arrowstyle="-|>,head_length=2.0,head_width=1.0",
                    color=colour,
                    linewidth=0.6,
                    shrinkA=0.4 * size,
                    shrinkB=0.4 * size,
                )
            )
    else:
        moves = np.stack([alone[known], pooled[known]], 1)
        ax.add_collection(
            LineCollection(
                list(moves), colors=colour, linewidths=0.35, zorder=1, rasterized=pixels
            ),
            autolim=False,
        )
    if known.any():
        ax.plot(
            *alone[known].T,
            MARKERS["no_pooling"],
            markersize=size,
            markerfacecolor="white",
            markeredgecolor=colour,
            markeredgewidth=0.7 if few else 0.35,
            label="own rows alone",
            rasterized=pixels,
            zorder=2,
        )
    ax.plot(
        *pooled.T,
        MARKERS["posterior"],
        color=COLOURS["posterior"],
        markersize=size,
        markeredgewidth=0,
        label="posterior mean",
        rasterized=pixels,
        zorder=3,
    )
