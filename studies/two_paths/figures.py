"""The study's two figures: marks are measured, lines are predicted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter, ScalarFormatter

from bayesmeta.plots import COLOURS, DOUBLE, MARKERS, style
from studies.two_paths.problem import RULES

SHARED, SEPARATE = COLOURS["reference"], COLOURS["two_path"]
LOOK: dict[str, tuple[str, str, str, float, str]] = {  # colour, marker, line, its size, its inside
    "shared": (SHARED, "o", "-", 5.5, "white"),
    "split halves": (SEPARATE, "s", "--", 3.5, "white"),
    "every pair": (SEPARATE, MARKERS["two_path"], ":", 5.5, SEPARATE),
    "mean loss": (SHARED, "D", "-", 4.0, SHARED),
}
"""Shared paths are grey and separate ones orange, as in the study any_optimiser."""
NAMES = {
    "shared": "shared paths",
    "split halves": "separate paths, split halves",
    "every pair": "separate paths, every pair",
    "mean loss": "shared paths, mean loss",
}
AVERAGED = {"shared": "K", "split halves": "(K/2)", "every pair": "(K−1)"}
LINEAR = 0.05


def select(table: pd.DataFrame, **values: Any) -> pd.DataFrame:
    """The rows with these values in these columns."""
    for column, value in values.items():
        table = table.loc[table[column] == value]
    return table


def estimators(table: pd.DataFrame, slopes: dict[str, float]) -> Figure:
    """Bias on squared errors, standard deviation there, and bias on Poisson losses, against K."""
    squares, poisson = (select(table, panel=name) for name in ("quadratic", "poisson"))
    roots = squares.assign(
        sd=squares.variance**0.5,
        sd_error=squares.variance_error / (2 * squares.variance**0.5),
        sd_predicted=squares.variance_predicted**0.5,
    )
    with style():
        figure = Figure(figsize=(DOUBLE, 3.0), layout="constrained")
        linear, spread, curved = figure.subplots(1, 3)
        _panel(linear, squares, "bias", NAMES, apart=0.1)
        _panel(spread, roots, "sd", NAMES)
        names = {rule: f"{AVERAGED[rule]}$^{{{slopes[rule]:.2f}}}$" for rule in RULES}
        _panel(curved, poisson, "bias", names)
        linear.set_yscale("symlog", linthresh=LINEAR)
        linear.set(
            ylabel=f"bias / |∇g(E θ)| (linear below {100 * LINEAR:.0f} %)", ylim=(-0.04, 1.6)
        )
        linear.yaxis.set_major_locator(FixedLocator([-0.02, 0.0, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0]))
        linear.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
        spread.set(yscale="log", ylabel="standard deviation / |∇g(E θ)|")
        spread.yaxis.set_major_locator(FixedLocator([0.2, 0.5, 1.0, 2.0]))
        spread.yaxis.set_major_formatter(ScalarFormatter())
        curved.set(yscale="log", ylabel="|bias| / |∇g(E θ)|")
        curved.set_ylim(bottom=0.16 * poisson.bias.min())  # room for the legend
        curved.yaxis.set_major_locator(FixedLocator([0.01, 0.1, 1.0]))
        curved.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
        for ax in (linear, spread):
            ax.yaxis.set_minor_locator(NullLocator())
        for ax, title in (
            (linear, "(a) bias, squared errors"),
            (spread, "(b) spread, squared errors"),
            (curved, "(c) bias, Poisson losses"),
        ):
            ax.set_title(title, loc="left")
        curved.legend(frameon=False, loc="lower left", title="fitted power", title_fontsize=7)
        figure.legend(
            *linear.get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False,
            title="marks: measured, bars: ± 2 standard errors; lines: predicted (in (b) for "
            "separate paths); E θ: the mean end of all paths",
            title_fontsize=7,
        )  # fmt: skip
    return figure


def _panel(
    ax: Axes, rows: pd.DataFrame, column: str, names: dict[str, str], apart: float = 0.0
) -> None:
    """What was measured with 2 standard errors, over what was predicted, against K."""
    for shift, rule in zip((0.0, -apart, apart), RULES, strict=True):
        part, (colour, marker, line, size, inside) = select(rows, rule=rule), LOOK[rule]
        paths, measured = _floats(part, "paths"), _floats(part, column)
        ax.plot(paths, _floats(part, f"{column}_predicted"), color=colour, linestyle=line,
                linewidth=0.9)  # fmt: skip
        ax.errorbar(
            paths * np.exp(shift), measured, yerr=2 * _floats(part, f"{column}_error"),
            color=colour, marker=marker, markersize=size, linestyle="none", elinewidth=0.8,
            markerfacecolor=inside, label=names[rule],
        )  # fmt: skip
    ax.set(xscale="log", xlabel="paths K per task")
    ax.xaxis.set_major_locator(FixedLocator(sorted(rows.paths.unique())))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(ScalarFormatter())


def descent(table: pd.DataFrame) -> Figure:
    """Where each rule's descents end: in the plane of θ₀, and by the two parts of the mean loss."""
    curve, ends = select(table, panel="minima"), select(table, panel="descent")
    with style():
        figure = Figure(figsize=(DOUBLE, 3.2), layout="constrained")
        plane, parts = figure.subplots(1, 2)
        _ends(plane, curve, ends, ("fixed_1", "fixed_2"), ("theta0_1", "theta0_2"))
        _ends(parts, curve, ends, ("spread", "loss_at_mean"), ("spread", "loss_at_mean"))
        plane.set(xlabel="θ₀, first weight", ylabel="θ₀, second weight")
        plane.set_title("(a) where descent ends", loc="left")
        parts.set(xlabel="spread of the ends, E g(θ) − g(E θ), nats")
        parts.set(ylabel="loss at their mean, g(E θ), nats")
        parts.set_title("(b) the two parts of the mean loss there", loc="left")
        handles, names = plane.get_legend_handles_labels()
        figure.legend(
            handles, names, loc="outside upper center", ncols=3, frameon=False,
            title="marks: mean end of descents, bars: ± 2 standard errors", title_fontsize=7,
        )  # fmt: skip
    return figure


def _ends(
    ax: Axes, curve: pd.DataFrame, ends: pd.DataFrame, known: tuple[str, str], seen: tuple[str, str]
) -> None:
    """Where g(E θ) + (1/K)(E g(θ) − g(E θ)) is least, and means of descents with 2 s.e."""
    ax.plot(*(_floats(curve, name) for name in known), color="black", linewidth=0.7,
            label="minima of what K shared paths see, K = 1 … ∞")  # fmt: skip
    marked = curve[curve.mixed.isin(ends.mixed.unique())]
    ax.plot(*(_floats(marked, name) for name in known), color="black", marker="+", markersize=12,
            markeredgewidth=0.7, linestyle="none", label="predicted ends")  # fmt: skip
    for (rule, paths), part in ends.groupby(["rule", "paths"], sort=False):
        colour, marker, _, size, inside = LOOK[str(rule)]
        middle = [_floats(part, name).mean() for name in seen]
        error = [2 * _floats(part, name).std(ddof=1) / len(part) ** 0.5 for name in seen]
        ax.errorbar(
            [middle[0]], [middle[1]], xerr=[error[0]], yerr=[error[1]], color=colour,
            marker=marker, markersize=size, linestyle="none", elinewidth=0.8,
            markerfacecolor=SHARED if (rule, paths) == ("shared", 4) else inside,
            label=f"{NAMES[str(rule)]}, K = {paths}",
        )  # fmt: skip


def _floats(rows: pd.DataFrame, column: str) -> np.ndarray:
    return rows[column].to_numpy(dtype=float)
