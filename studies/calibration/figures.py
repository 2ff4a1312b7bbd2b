"""The study's figures: coverage by family, ranks, functionals and new rows, and fitted priors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import binom

from bayesmeta.plots import COLOURS, DOUBLE, style
from bayesmeta.plots._style import BLACK, GREEN, GREY, ORANGE, VERMILLION
from studies.calibration import fitted as fits
from studies.calibration.measure import BINS, NEW_ROW, SAID
from studies.calibration.problem import CASES, EXACT, PLANTED, POINT, RANK_ONE

HIGH = 0.95
JOINT, LAPLACE = COLOURS["joint"], COLOURS["laplace"]
LOOK: dict[str, tuple[str, str, str, bool]] = {  # colour, marker, line, whether it is filled
    EXACT: (BLACK, "*", "-", True),
    PLANTED: (GREY, "x", ":", True),
    "best Gaussian": (JOINT, "o", "-", True),
    "best diagonal": (JOINT, "o", "--", False),
    "Laplace": (LAPLACE, "s", "-", True),
    "Laplace, diagonal": (LAPLACE, "s", "--", False),
    RANK_ONE: (GREEN, "D", "-.", True),
    POINT: (VERMILLION, "^", "-", True),
}
PRIORS: dict[str, tuple[str, str, str, bool]] = {
    fits.TRUE_PRIOR: (BLACK, "*", "-", True),
    fits.LIKELIHOOD: (JOINT, "o", "-", True),
    fits.RESTRICTED: (JOINT, "v", "--", False),
    fits.LAPLACE: (LAPLACE, "s", "-", True),
    fits.QUADRATURE: (LAPLACE, "D", "--", False),
    fits.AVOIDING: (ORANGE, "P", "-.", True),
}
FUNCTIONALS = ("sum", "difference")
WIDE = ("linear, ρ = 0", "linear, ρ = 0.9", "sinusoid")
"""Families where coverage falls further than in the others."""
BAND = 0.99
BARS = "bars: ± 2 standard errors"
TOP = 3.0
EXPECTED = (
    "lines: what the exact posterior expects, or the marks themselves where that is not known"
)


def select(table: pd.DataFrame, **values: Any) -> pd.DataFrame:
    """The rows with these values in these columns."""
    for column, value in values.items():
        table = table.loc[table[column] == value]
    return table


def coverage(table: pd.DataFrame) -> Figure:
    """Coverage of the weights' 95 % intervals minus 95 %, against rows, a panel per family."""
    rows = select(table, part="held", level=HIGH, data="all")
    weights = rows[~rows.quantity.isin([NEW_ROW, SAID, *FUNCTIONALS])]
    shown = [form for form in LOOK if form not in (POINT, "Laplace, diagonal")]
    names = _families(table)
    lines = [[name for name in names if (name in WIDE) == wide] for wide in (True, False)]
    with style():
        figure = Figure(figsize=(DOUBLE, 4.2), layout="constrained")
        columns = max(len(lines[0]) + 1, len(lines[1]))
        grid = figure.subplots(2, columns, squeeze=False, sharey="row")
        letters = iter("abcdefgh")
        for axes, line in zip(grid, lines, strict=True):
            for ax, name in zip(axes, line, strict=False):
                _against_rows(ax, select(weights, family=name), shown)
                ax.set_title(f"({next(letters)}) {name}", loc="left")
            for ax in axes[len(line) :]:
                ax.set_axis_off()
        figure.supylabel("coverage minus 95 %, percentage points", fontsize=8)
        figure.supxlabel(f"{BARS}; {EXPECTED}", fontsize=7)
        handles, labels = grid[0, 0].get_legend_handles_labels()
        grid[0, -1].legend(handles, labels, loc="center", frameon=False)
    return figure


def functionals(table: pd.DataFrame) -> Figure:
    """The same for a sum, a difference, new rows, and the classes said with confidence."""
    rows = select(table, part="held", data="all")
    rows = rows[(rows.level == HIGH) | (rows.quantity == SAID)]
    panels = [(quantity, "linear, ρ = 0.9", quantity) for quantity in FUNCTIONALS]
    panels += [(NEW_ROW, family, NEW_ROW) for family in (*WIDE[::2], "Poisson")]
    classes = [family for family in _families(table) if "logistic" in family]
    panels += [(SAID, family, SAID) for family in classes]
    found = [(label, name, select(rows, quantity=q, family=name)) for q, name, label in panels]
    found = [one for one in found if len(one[2])]
    shown = [form for form in LOOK if form != PLANTED]
    with style():
        figure = Figure(figsize=(DOUBLE, 4.4), layout="constrained")
        grid = figure.subplots(2, -(-len(found) // 2), squeeze=False)
        for ax, (label, name, part), letter in zip(grid.flat, found, "abcdefgh", strict=False):
            _against_rows(ax, part, shown)
            ax.set_title(f"({letter}) {label}\n{name}", loc="left", fontsize=7)
            share = "share right − confidence" if label == SAID else "coverage − 95 %"
            if ax in grid[:, 0] or (label == SAID and name == classes[0]):
                ax.set_ylabel(share)
        for ax in grid.flat[len(found) :]:
            ax.set_axis_off()
        figure.supxlabel(f"vertical axes: percentage points; {BARS}\n{EXPECTED}", fontsize=7)
        known: dict[str, Any] = {}
        for ax in grid.flat:
            known |= dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
        names = [form for form in shown if form in known]
        figure.legend([known[form] for form in names], names, loc="outside upper center", ncols=4,
                      frameon=False)  # fmt: skip
    return figure


def _families(table: pd.DataFrame) -> list[str]:
    """Those that were run, in the order of the study."""
    run = set(select(table, part="held").family)
    return [case.name for case in CASES if case.name in run]


def _against_rows(ax: Axes, rows: pd.DataFrame, forms: list[str]) -> None:
    """Marks are measured, with 2 s.e.; lines are what the exact posterior expects, where known.

    A mean over quantities has no smaller error than one: all are of the same tasks.
    """
    ax.axhline(0, color=GREY, linewidth=0.6)
    counts = sorted(int(n) for n in rows.rows.unique())
    for index, form in enumerate(forms):
        part = select(rows, form=form)
        if part.empty:
            continue
        columns = ["coverage", "coverage_se", "nominal", "predicted"]
        mean = pd.DataFrame(part.groupby("rows")[columns].mean())
        places = np.array([counts.index(int(n)) for n in mean.index], dtype=float)
        known = mean.predicted.where(part.groupby("rows").predicted.count() > 0, mean.coverage)
        if form == EXACT:
            known = mean.nominal
        shift = 0.07 * (index - (len(forms) - 1) / 2)
        _series(ax, places, mean, known, LOOK[form], form, shift)
    ax.set_xticks(range(len(counts)), [str(n) for n in counts])
    ax.set_xlabel("rows per task")


def _series(
    ax: Axes, places: Any, mean: pd.DataFrame, line: Any, look: Any, label: str, shift: float
) -> None:
    """Measured marks, moved aside, and a line through what is expected."""
    colour, marker, dashes, filled = look
    nominal = mean.nominal.to_numpy(dtype=float)
    ax.plot(places, 100 * (line.to_numpy(dtype=float) - nominal), color=colour, linestyle=dashes,
            linewidth=0.8)  # fmt: skip
    ax.errorbar(
        places + shift,
        100 * (mean.coverage.to_numpy(dtype=float) - nominal),
        yerr=200 * mean.coverage_se.to_numpy(dtype=float),
        color=colour, marker=marker, markersize=4.5 if marker == "*" else 3.5,
        markerfacecolor=colour if filled else "white", markeredgewidth=0.8, linestyle="none",
        elinewidth=0.6, label=label,
    )  # fmt: skip


def ranks(table: pd.DataFrame) -> Figure:
    """Ranks of the truth among posterior draws: columns are families, lines are forms."""
    rows = select(table, part="ranks")
    names = _families(table)
    forms = [form for form in LOOK if form not in (POINT, RANK_ONE)]
    with style():
        figure = Figure(figsize=(DOUBLE, 5.2), layout="constrained")
        grid = figure.subplots(len(forms), len(names), sharex=True, sharey=True, squeeze=False)
        for axes, form in zip(grid, forms, strict=True):
            for ax, name in zip(axes, names, strict=True):
                _histogram(ax, select(rows, family=name, form=form), LOOK[form][0])
            axes[0].set_ylabel(form.replace(", ", ",\n").replace("best ", "best\n"))
        for ax, name in zip(grid[0], names, strict=True):
            quantity = select(rows, family=name).quantity.iloc[0]
            ax.set_title(f"{name.replace(', ', chr(10))}\n{quantity}", fontsize=7)
        for ax in grid[-1]:
            ax.set_xticks([0, BINS], ["0", "1"])
        grid[0, 0].set(ylim=(0, TOP), xlim=(0, BINS))
        figure.supxlabel(
            "rank of the truth among the posterior draws, as a share\n"
            f"({rows.rows.iloc[0]} rows per task; grey: where {100 * BAND:g} % of bins of a "
            "uniform law lie; ↑ bins beyond the axis)",
            fontsize=8,
        )
        figure.supylabel("tasks in a bin, relative to a uniform law", fontsize=8)
    return figure


def _histogram(ax: Axes, rows: pd.DataFrame, colour: str) -> None:
    """Counts over their expectation, the band in which 99 % of bins lie, and what goes beyond."""
    tasks = int(rows.tasks.iloc[0])
    expected = tasks / BINS
    low, high = (float(binom.ppf(q, tasks, 1 / BINS)) for q in ((1 - BAND) / 2, (1 + BAND) / 2))
    ax.axhspan(low / expected, high / expected, color="#D9D9D9", linewidth=0)
    ax.axhline(1, color=GREY, linewidth=0.5)
    heights = rows["count"].to_numpy(dtype=float) / expected
    ax.stairs(heights.clip(max=TOP), range(BINS + 1), color=colour, linewidth=0.9)
    for place, side in ((0, "left"), (BINS - 1, "right")):
        if heights[place] > TOP:
            ax.annotate(f"↑ {heights[place]:.1f}", ((place + 0.5) / BINS, 0.97),
                        xycoords="axes fraction", xytext=(4 if side == "left" else -4, 0),
                        textcoords="offset points", ha=side, va="top", fontsize=6)  # fmt: skip


def fitted(table: pd.DataFrame) -> Figure:
    """Coverage of 95 % intervals under a fitted prior, against the number of tasks fitted to."""
    rows = select(table, part="fitted", level=HIGH)
    with style():
        figure = Figure(figsize=(DOUBLE, 4.4), layout="constrained")
        grid = figure.subplots(2, 2, sharex=True, sharey=True)
        panels = [
            (family, data) for family in ("linear", "logistic") for data in (fits.OWN, fits.NEW)
        ]
        for ax, (family, data), letter in zip(grid.flat, panels, "abcd", strict=True):
            part = select(rows, family=family, data=data)
            _against_tasks(ax, part)
            count = int(part.rows.iloc[0])
            ax.set_title(f"({letter}) {family}, {data} of {count} rows", loc="left")
        for ax in grid[1]:
            ax.set_xlabel("tasks the prior is fitted to")
        figure.supxlabel(f"{BARS} over fits; {EXPECTED}; grey: 95 %", fontsize=7)
        for ax in grid[:, 0]:
            ax.set_ylabel("coverage of 95 % intervals, %")
            ax.legend(frameon=False, loc="lower right")
    return figure


def _against_tasks(ax: Axes, rows: pd.DataFrame) -> None:
    """Marks measured, with 2 s.e. over fits; lines by the exact posterior, for linear tasks."""
    ax.axhline(100 * HIGH, color=GREY, linewidth=0.6)
    counts = sorted(int(n) for n in rows.tasks.unique())
    shown = [name for name in PRIORS if name in set(rows.form)]
    for index, name in enumerate(shown):
        colour, marker, dashes, filled = PRIORS[name]
        part = select(rows, form=name).sort_values("tasks")
        places = np.array([counts.index(int(n)) for n in part.tasks], dtype=float)
        line = part.predicted.fillna(part.coverage).to_numpy(dtype=float)
        ax.plot(places, 100 * line, color=colour, linestyle=dashes, linewidth=0.8)
        ax.errorbar(
            places + 0.06 * (index - (len(shown) - 1) / 2),
            100 * part.coverage.to_numpy(dtype=float),
            yerr=200 * part.coverage_se.to_numpy(dtype=float),
            color=colour, marker=marker, markersize=5.5 if marker == "*" else 4,
            markerfacecolor=colour if filled else "white", markeredgewidth=0.8,
            linestyle="none", elinewidth=0.7, label=name,
        )  # fmt: skip
    ax.set_xticks(range(len(counts)), [str(n) for n in counts])
