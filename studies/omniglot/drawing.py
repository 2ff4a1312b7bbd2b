"""The figures: the papers' table beside ours, single changes to iMAML, and the official runs."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bayesmeta.plots import COLOURS, DOUBLE, SINGLE, style
from studies.omniglot.official_runs import PUBLISHED

KINDS = {"inductive": ("o", "white", -0.13), "transductive": ("o", None, 0.13)}
KIND_MEANS = (
    "inductive: each query image by itself; transductive: all of a task normalised together"
)
BARS = "bars: 95 % intervals of accuracy over test tasks"
MEASURES = {
    "accuracy": "accuracy (%)",
    "nll": "−log p (nats per query image)",
    "calibration": "calibration error (%)",
}


def figures(table: pd.DataFrame) -> dict[str, Figure]:
    """Those that the rows of a table allow."""
    found = {}
    main = table[table["part"] == "table"]
    for (ways, shots), part in main.groupby(["ways", "shots"], sort=False):
        found[f"omniglot_{ways}_way_{shots}_shot"] = _scores(part)
    if len(effects := table[table["part"] == "effect"]):
        found["omniglot_effects"] = _effects(effects)
    if len(runs := table[table["part"] == "runs"]):
        found["omniglot_runs"] = _runs(runs)
    return found


def _scores(part: pd.DataFrame) -> Figure:
    """A row per method, a panel per measure, the splits below each other."""
    splits = list(dict.fromkeys(part["split"]))
    with style():
        height = max(2.4, 0.7 + 0.3 * len(part))
        figure = Figure(figsize=(DOUBLE, height), layout="constrained")
        heights = [int((part["split"] == split).sum()) for split in splits]
        grid = figure.subplots(
            len(splits), len(MEASURES), squeeze=False, sharex="col", height_ratios=heights
        )
        for axes, split in zip(grid, splits, strict=True):
            rows = part[part["split"] == split]
            for ax, measure in zip(axes, MEASURES, strict=True):
                _panel(ax, rows, measure)
            axes[0].set_title(f"{split} split", loc="left")
            _names(axes[0], [_label(row) for row in rows.itertuples()])
            for ax in axes[1:]:
                ax.set_yticks(range(len(rows)), [""] * len(rows))
        for ax, label in zip(grid[-1], MEASURES.values(), strict=True):
            ax.set_xlabel(label)
        handles, names = grid[0][0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside upper center", ncols=3, frameon=False)
        figure.supxlabel(f"{KIND_MEANS}\n{BARS}, hardly wider than the marks", fontsize=7)
    return figure


def _label(row: object) -> str:
    return f"{row.method}\n{row.iterations:,.0f} steps, {row.seconds / 60:.0f} min"


def _names(ax: Axes, names: list[str]) -> None:
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -0.5)


def _panel(ax: Axes, rows: pd.DataFrame, measure: str) -> None:
    places = np.arange(len(rows))
    for kind, (marker, inside, shift) in KINDS.items():
        colour = COLOURS["posterior"]
        half = rows[f"{kind}_half_width"] if measure == "accuracy" else None
        ax.errorbar(
            rows[f"{kind}_{measure}"], places + shift, xerr=half, linestyle="none", marker=marker,
            markersize=4, color=colour, markerfacecolor=inside or colour, elinewidth=0.8,
            label=kind,
        )  # fmt: skip
    if measure == "accuracy" and rows["paper_accuracy"].notna().any():
        ax.plot(
            rows["paper_accuracy"], places, linestyle="none", marker="D", markersize=3.5,
            color=COLOURS["reference"], label="paper (transductive, full budget)",
        )  # fmt: skip
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.grid(axis="y", linewidth=0.3, alpha=0.5)


def _effects(effects: pd.DataFrame) -> Figure:
    """Accuracy after the same few outer steps, one argument changed at a time, by method."""
    groups = list(effects.groupby("method", sort=False))
    with style():
        figure = Figure(figsize=(SINGLE, 1.0 + 0.24 * len(effects)), layout="constrained")
        heights = [len(rows) for _, rows in groups]
        grid = figure.subplots(
            len(groups), 1, squeeze=False, sharex=True, height_ratios=heights
        ).flat
        for ax, (method, rows) in zip(grid, groups, strict=True):
            _panel(ax, rows, "accuracy")
            _names(ax, list(rows["changed"]))
            ax.set_title(method, loc="left")
        steps = effects["iterations"].iloc[0]
        figure.axes[-1].set_xlabel(
            f"accuracy (%) after {steps:.0f} outer steps\n(bars: 95 % intervals)"
        )
        handles, names = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside upper center", ncols=2, frameon=False)
    return figure


def _runs(runs: pd.DataFrame) -> Figure:
    """The error of every official run, beside what was published of all 20."""
    with style():
        figure = Figure(figsize=(SINGLE, 2.6), layout="constrained")
        ax = figure.subplots()
        names = [*PUBLISHED, "MAML, transductive", "MAML, inductive"]
        for place, name in enumerate(names):
            if name in PUBLISHED:
                ax.plot(PUBLISHED[name], place, "D", markersize=3.5, color=COLOURS["reference"])
                continue
            errors = runs[f"{name.rpartition(' ')[2]}_error"].to_numpy()
            spread = place + 0.25 * np.sin(np.arange(len(errors)) * 2.4)
            ax.plot(errors, spread, ".", markersize=3, color=COLOURS["maml"], alpha=0.5)
            ax.plot(errors.mean(), place, "o", markersize=5, color=COLOURS["maml"])
        _names(ax, names)
        ax.set_xlim(left=-2)
        ax.set_xlabel("error (%)\n◆ published, ● our mean\nsmall dots: single runs")
    return figure
