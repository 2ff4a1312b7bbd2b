"""The figure of what makes the meta-objective smooth: sums over tasks, and noise."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from bayesmeta.plots import COLOURS, DOUBLE, style
from studies.anchor.measure import RANGE, power, select

GREY = COLOURS["reference"]
MEASURES = {  # name, colour, marker
    "all_jumps": ("all jumps", "#D55E00", "^"),
    "largest_jump": ("largest jump", "#E69F00", "s"),
    "distance": ("rms from parabola", "#0072B2", "o"),
}
WARM = (("#0072B2", (0, (5, 1.5)), "o"), ("#E69F00", (0, (3, 1, 1, 1)), "s"), ("#D55E00", "-", "^"))
FOUR = (("#0072B2", "o"), ("#009E73", "s"), ("#E69F00", "^"), ("#D55E00", "D"))
APART = 1.9
WIDER = (RANGE[0] - 0.2, RANGE[1] + 0.2)
"""So that marks at the ends are whole."""
WHOLE = FuncFormatter(lambda value, _: f"{value:g}")


def smoothing(table: pd.DataFrame) -> Figure:
    """Above the mean over tasks, its roughness and its slope; below the same task with noise."""
    with style():
        figure = Figure(figsize=(DOUBLE, 5.2), layout="constrained")
        means, rough, slope, noise, steep, left = figure.subplots(2, 3).flat
        _means(means, select(table, panel="sum"))
        _rough(rough, select(table, panel="roughness"))
        _slope(slope, select(table, panel="gradient"), select(table, panel="factor"))
        _noise(noise, table)
        _steep(steep, select(table, panel="steepness"))
        _left(left, select(table, panel="minima"))
        for ax, title in (
            (means, "(a) mean of n random tasks"),
            (rough, "(b) its roughness"),
            (slope, f"(c) its slope, n = {select(table, panel='gradient').tasks.iloc[0]}"),
            (noise, "(d) one task, with noise"),
            (steep, "(e) steepness at its jumps"),
            (left, "(f) minima left by noise"),
        ):
            ax.set_title(title, loc="left")
        figure.supxlabel(
            "bars: ± 2 standard errors; grey in (a): the parabola that the mean tends to; "
            "(e) marks: by the Gibbs law, lines: as predicted for little noise",
            fontsize=7,
        )
    return figure


def _means(ax: Axes, rows: pd.DataFrame) -> None:
    """One above the other, each over the parabola that it tends to."""
    counts = [n for n in (1, 3, 10, 100) if n in set(rows.tasks)]
    for place, tasks in enumerate(counts):
        part = select(rows, tasks=tasks)
        at, value, limit = (part[name].to_numpy() for name in ("theta0", "value", "limit"))
        lifted = APART * (len(counts) - 1 - place) - limit.mean()
        ax.plot(at, limit + lifted, color=GREY, linewidth=2.2, alpha=0.6)
        ax.plot(at, value - value.mean() + lifted + limit.mean(), color="black", linewidth=0.9)
        ax.text(0, lifted + 0.55, f"n = {tasks}", ha="center", va="bottom", fontsize=7)
    ax.set(xlabel="anchor θ₀", ylabel="meta-objective, nats (moved apart)", xlim=RANGE)


def _rough(ax: Axes, rows: pd.DataFrame) -> None:
    """Means over families and their 2 standard errors."""
    for column, (name, colour, marker) in MEASURES.items():
        grouped = rows.groupby("tasks")[column]
        mean, error = grouped.mean(), 2 * grouped.std() / np.sqrt(grouped.count())
        at = mean.index.to_numpy(dtype=float)
        ax.errorbar(at, mean.to_numpy(), yerr=error.to_numpy(), color=colour, marker=marker,
                    markersize=4, linewidth=0.9,
                    label=f"{name}: $n^{{{power(rows, column)[0]:.2f}}}$")  # fmt: skip
    ax.set(xscale="log", yscale="log", xlabel="tasks n", ylabel="nats")
    ax.set_ylim(bottom=0.4 * rows.groupby("tasks").largest_jump.mean().min())  # for the legend
    ax.xaxis.set_major_locator(FixedLocator(sorted(rows.tasks.unique())))
    ax.xaxis.set_minor_locator(NullLocator())
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(WHOLE)
    ax.legend(frameon=False, loc="lower left")


def _slope(ax: Axes, rows: pd.DataFrame, factor: pd.DataFrame) -> None:
    at, limit = rows.theta0.to_numpy(), rows.limit_slope.to_numpy()
    ax.plot(at, limit, color=GREY, linewidth=2.2, alpha=0.6, label="parabola")
    ax.plot(at, factor.predicted.iloc[0] * limit, color="black", linewidth=0.9,
            label="implicit, predicted")  # fmt: skip
    ax.errorbar(at, rows.implicit, yerr=2 * rows.error, color=COLOURS["imaml"], marker="D",
                markersize=3, linestyle="none", markerfacecolor="white",
                label="implicit, library")  # fmt: skip
    ax.set(xlabel="anchor θ₀", ylabel="nats per unit of θ₀", xlim=WIDER)
    ax.legend(frameon=False, loc="upper left")


def _noise(ax: Axes, table: pd.DataFrame) -> None:
    """Lines: the Gibbs law; marks: where the library's runs are after T steps."""
    curve = select(table, panel="curve")
    value = curve.value.to_numpy()
    ax.plot(curve.theta0, np.where(np.abs(np.gradient(value)) > 0.05, np.nan, value),
            color="black", linewidth=0.9, label="τ = 0")  # fmt: skip
    runs = select(table, panel="runs")
    for tau, (colour, line, marker) in zip(runs.temperature.unique(), WARM, strict=False):
        part = select(table, panel="gibbs", temperature=tau)
        ax.plot(part.theta0, part.value, color=colour, linestyle=line, linewidth=1.0)
        part = select(runs, temperature=tau)
        ax.errorbar(part.theta0, part.value, yerr=2 * part.error, color=colour, marker=marker,
                    markersize=3, linestyle="none", elinewidth=0.8,
                    label=f"τ = {tau:g}")  # fmt: skip
    ax.set(xlabel="anchor θ₀", ylabel="E f, nats (lines: Gibbs, marks: SGLD)", xlim=WIDER)
    ax.set_ylim(top=1.35)
    ax.legend(frameon=False, loc="upper center", ncols=2, handlelength=1.2)


def _steep(ax: Axes, rows: pd.DataFrame) -> None:
    """Marks: by the Gibbs law; lines: the logistic that it is for little noise."""
    for theta0, (colour, marker) in zip(rows.theta0.unique(), FOUR, strict=False):
        part = select(rows, theta0=float(theta0)).sort_values("temperature")
        ax.plot(part.temperature, part.predicted, color=colour, linewidth=0.9)
        ax.plot(part.temperature, part.steepest, marker, color=colour, markersize=4,
                label=f"θ₀ = {theta0:.2f}".replace("-", "−"))  # fmt: skip
    ax.set(xscale="log", yscale="log", xlabel="temperature τ, nats")
    ax.set(ylabel="largest |dE f/dθ₀|, nats per unit of θ₀")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(WHOLE)
    ax.legend(frameon=False, loc="lower left", handlelength=1.0)


def _left(ax: Axes, rows: pd.DataFrame) -> None:
    ax.step(rows.temperature, rows.minima.astype(float), where="post", color="black")
    ax.set(xlabel="temperature τ, nats", ylabel="local minima of E f(θ₀)", ylim=(0, 3.5))
    ax.set_yticks([0, 1, 2, 3])
