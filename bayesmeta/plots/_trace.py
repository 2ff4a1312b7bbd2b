"""The objective against the steps of the outer loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes

from bayesmeta.plots._reading import Array, array, number
from bayesmeta.plots._style import COLOURS, SINGLE, new_axes, round_ticks, small
from bayesmeta.results import InputError

if TYPE_CHECKING:
    from bayesmeta.fit import Fit

FEW_STEPS = 30
ROUNDING = 1e-11  # of M: differences below it are those of float64 sums
VIEWS = ("auto", "value", "distance")


def trace(
    fit: Fit,
    *,
    ax: Axes | None = None,
    view: str = "auto",
    label: str | None = None,
    role: str = "posterior",
) -> Axes:
    """M in nats at each outer step, or how far it still was from the smallest value reached.

    The distance M_t − min M, on a logarithmic axis, shows the whole way of a long run: a straight
    fall is a constant rate, a floor is the noise of a stochastic objective. Steps at the minimum
    itself, to rounding, are left out; the last before it fall away, as it is one of them.

    Args:
        fit: a fit.
        ax: where to draw; None makes a figure of one column's width.
        view: "value", "distance", or "auto": distance beyond 30 steps.
        label: name of the run, where several are drawn on one Axes.
        role: key of `COLOURS`.

    Returns:
        The axes.

    Raises:
        InputError: no such view.
    """
    if view not in VIEWS:
        raise InputError(f"view must be one of {', '.join(VIEWS)}, not {view!r}")
    values = array(fit.trace)
    if ax is None:
        ax = new_axes(SINGLE, 2.2)
    steps = np.arange(len(values))
    distance = view == "distance" or (view == "auto" and len(values) > FEW_STEPS)
    gap = values - _least(values)
    shown = np.where(gap > ROUNDING * abs(_least(values)), gap, np.nan)
    marker = "o" if len(values) <= FEW_STEPS else ""
    if distance and np.isfinite(shown).any():
        ax.plot(
            steps,
            shown,
            marker=marker,
            markersize=3.5,
            color=COLOURS[role],
            linewidth=0.9,
            label=label,
        )
        ax.set_yscale("log")
        ax.set_ylabel("M − min M (nats)")
    else:
        ax.plot(
            steps,
            values,
            marker=marker,
            markersize=3.5,
            color=COLOURS[role],
            linewidth=0.9,
            label=label,
        )
        ax.set_ylabel("M (nats)")
        ax.yaxis.set_major_locator(round_ticks(5))
        ax.ticklabel_format(axis="y", useOffset=False)
    ax.set_xlabel("outer step")
    ax.xaxis.set_major_locator(round_ticks(5, integer=True))
    if len(values) < 2:
        _say_there_is_no_path(ax, values)
    return ax


def trace_caption(fit: Fit, **_: Any) -> str:
    """What the trace shows, in numbers of this fit."""
    values = array(fit.trace)
    name = {
        "exact": "the exact −log evidence",
        "restricted": "the exact −log evidence with θ₀ integrated out",
        "bound": "an upper bound on −log evidence",
        "laplace": "the Laplace approximation of −log evidence",
        "quadrature": "−log evidence by quadrature",
        "penalised": "the penalised −log-likelihood",
        "validation": "the −log-likelihood of query rows",
    }[fit.evidence_kind]
    if len(values) < 2:
        if fit.solver == "exact":
            return f"M, {name}, was minimised in closed form: there is no path to show."
        return f"These tasks were adapted, not fitted: M, {name}, has no path to show."
    least = _least(values)
    settled = int(np.argmax(~(values > least + 0.01)))
    return (
        f"M, {name}, over {len(values) - 1} outer steps: from {number(values[0])} to "
        f"{values[-1]:.2f} nats; first within 0.01 nats of its smallest value at step {settled}."
    )


def _least(values: Array) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.min()) if finite.size else np.nan


def _say_there_is_no_path(ax: Axes, values: Array) -> None:
    ax.set_xticks([0] if len(values) else [])
    if not len(values):
        ax.set_yticks([])
    ax.annotate(
        "no outer steps",
        (0.5, 0.85),
        xycoords="axes fraction",
        ha="center",
        fontsize=small(ax),
    )
