"""Estimators of a random meta-gradient: how biased each is, and what a second of it buys."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from bayesmeta.plots._style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    SINGLE,
    VERMILLION,
    figure_key,
    new_figure,
    plain,
    short_names,
    style,
    tint,
)
from bayesmeta.results import InputError

if TYPE_CHECKING:
    from bayesmeta.diagnostics.estimators import Estimator, EstimatorComparison

LOOKS = ((BLUE, "o"), (ORANGE, "s"), (GREEN, "^"), (VERMILLION, "D"))
SMALLEST = 1e-5  # of the gradient: a bias below it is drawn there
LETTERS = 17


def estimators(
    comparison: EstimatorComparison,
    *,
    axes: Sequence[Axes] | None = None,
    width: float = SINGLE,
) -> Figure:
    """Bias with its 95 % interval, and precision per second, one line per method.

    Left, the length of the bias over that of the gradient, on a logarithmic axis. A filled mark
    is a bias that is seen. A hollow one stands at the upper end of an interval that holds 0: the
    bias, if there is one, is smaller. Right, 1 / (rmse² seconds): twice as much means the same
    accuracy in half the time. A bias is part of the rmse, and no more time takes it away. Colour
    and marker tell which M the gradient is of.

    Args:
        comparison: of `bm.diagnostics.compare_estimators`.
        axes: two to draw on; None makes a figure.
        width: of that figure, in inches.

    Returns:
        The figure.

    Raises:
        InputError: other than two axes.

    Caption for a paper:
        Bias (left; bars are 95 % intervals, hollow marks upper limits where the interval holds 0)
        and effective precision per second (right) of estimators of the meta-gradient.
    """
    if axes is not None and len(axes) != 2:
        raise InputError(f"axes= takes two, for bias and for precision, not {len(axes)}")
    found = comparison.estimators
    with style():
        if axes is None:
            fig = new_figure(width, 1.1 + 0.19 * len(found))
            axes = list(fig.subplots(1, 2, sharey=True))
            own = True
        else:
            fig, own = axes[0].figure.figure, False
        bias, precision = axes
        _draw_bias(bias, comparison)
        _draw_precision(precision, comparison)
        for ax in axes:
            ax.set_ylim(len(found) - 0.4, -0.6)
            ax.tick_params(axis="y", length=0)
            for place in range(len(found)):
                ax.axhline(place, color=tint(GREY, 0.25), linewidth=0.5, zorder=0)
        names = [plain(name) for name in short_names([e.method for e in found], LETTERS)]
        bias.set_yticks(range(len(found)), names)
        grey = {"color": GREY, "marker": "o", "markersize": 4, "markerfacecolor": "white"}
        bias.plot([], [], **grey, label="upper limit (95 %): no bias seen")
    if own:
        figure_key(fig, [precision, bias])
    return fig


def _looks(found: Sequence[Estimator]) -> dict[str, dict[str, Any]]:
    """Colour and marker by target."""
    targets = dict.fromkeys(e.target for e in found)
    return {
        target: {"color": LOOKS[i % len(LOOKS)][0], "marker": LOOKS[i % len(LOOKS)][1]}
        for i, target in enumerate(targets)
    }


def _in_symbols(target: str) -> str:
    """The words for a target, its formula set as one."""
    formulas = {
        "E_z g(θ_z)": r"$\mathrm{E}_z\,g(\theta_z)$",
        "g(E_z θ_z)": r"$g(\mathrm{E}_z\,\theta_z)$",
    }
    for words, formula in formulas.items():
        if target.startswith(words):
            return formula + plain(target.removeprefix(words))
    return plain(target)


def _draw_bias(ax: Axes, comparison: EstimatorComparison) -> None:
    """Bias over the gradient's length; 0 has no place on a logarithmic axis but its edge."""
    found, looks = comparison.estimators, _looks(comparison.estimators)
    rows = np.array([(e.bias_low, e.bias, e.bias_high) for e in found])
    rows /= np.array([float(comparison.references[e.target].norm()) for e in found])[:, None]
    shown = rows[np.isfinite(rows) & (rows > SMALLEST)]
    left = 0.5 * min(shown.min(), 0.02) if shown.size else SMALLEST
    right = 2.0 * max(shown.max(), 0.2) if shown.size else 1.0
    for place, (e, (low, middle, high)) in enumerate(zip(found, rows, strict=True)):
        look = looks[e.target]
        if not np.isfinite(high):
            continue
        if high <= SMALLEST:
            ax.text(left, place, " 0", va="center", fontsize=7, color=look["color"])
            continue
        seen = low > 0
        ends = [max(low, left), high]
        ax.plot(ends, [place, place], color=look["color"], linewidth=1.0)
        face = look["color"] if seen else "white"
        ax.plot(middle if seen else high, place, **look, markersize=4, markerfacecolor=face)
    ax.set_xscale("log")
    ax.set_xlim(left, right)
    ax.set_xlabel("relative bias")
    _decades(ax, lambda value, _: f"{100 * value:.4g} %")


def _draw_precision(ax: Axes, comparison: EstimatorComparison) -> None:
    """Precision per second; a method that is exact has no number."""
    looks = _looks(comparison.estimators)
    for place, e in enumerate(comparison.estimators):
        value = e.precision_per_second
        if np.isfinite(value) and value > 0:
            name = _in_symbols(e.target)
            ax.plot(value, place, **looks[e.target], markersize=4, linestyle="none", label=name)
    ax.set_xscale("log")
    low, high = ax.get_xlim()
    # Two decades at least: methods alike look alike, and two ticks have labels.
    middle, half = np.sqrt(low * high), max(1.1 * np.sqrt(high / low), 10.0)
    ax.set_xlim(middle / half, middle * half)
    ax.set_xlabel("precision per second\n(unit of θ / nat)² / s")
    _decades(ax)


def _decades(ax: Axes, said: Callable[[float, int], str] | None = None) -> None:
    """A tick at each power of ten, or fewer, so that labels have room."""
    ax.xaxis.set_major_locator(LogLocator(numticks=4))
    ax.xaxis.set_minor_formatter(NullFormatter())
    if said is not None:
        ax.xaxis.set_major_formatter(FuncFormatter(said))
