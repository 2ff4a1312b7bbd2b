"""Kinds of change by what came of them."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bayesmeta.plots import COLOURS, DOUBLE, style
from studies.hostile.watching import ANOTHER, ANSWERS, DEFECT, FLAGGED, REFUSED, SAME

LOOKS = {
    REFUSED: (COLOURS["joint"], ""),
    SAME: (COLOURS["laplace"], "////"),
    ANOTHER: (COLOURS["imaml"], "...."),
    FLAGGED: (COLOURS["stochastic"], "\\\\\\\\"),
    DEFECT: (COLOURS["maml"], "xxxx"),
}
WORDS = {
    REFUSED: "refused, in one sentence",
    SAME: "the same numbers",
    ANOTHER: "another input, sound",
    FLAGGED: "not finite, and said",
    DEFECT: "crash, hang or silence",
}
TITLES = {
    "damaged": "run folders, damaged",
    "forged": "run folders, changed and sealed again",
    "table": "tables",
}
NARROW = 0.055
"""Of the widest bar: a count in less would not be read, and stands beside it."""


def answers(table: pd.DataFrame) -> Figure:
    """A bar to a kind of change, in parts by what came of it, with their counts."""
    merged = table.assign(input=table["input"].replace("command line", "table"))
    counts = merged.groupby(["input", "change", "answer"], sort=False)["cases"].sum()
    with style():
        figure = Figure(figsize=(DOUBLE, 4.6), layout="constrained")
        grid = figure.add_gridspec(2, 2, height_ratios=(10, 13), width_ratios=(1, 1))
        places = {
            "damaged": figure.add_subplot(grid[0, 0]),
            "forged": figure.add_subplot(grid[1, 0]),
            "table": figure.add_subplot(grid[:, 1]),
        }
        for name, ax in places.items():
            if name in counts.index:
                _bars(ax, counts[name].unstack(fill_value=0).reindex(columns=ANSWERS, fill_value=0))
            ax.set_title(TITLES[name], loc="left")
        for name in ("forged", "table"):
            places[name].set_xlabel("cases")
        shown = [name for name in ANSWERS if merged.loc[merged["answer"] == name, "cases"].sum()]
        bars = {bar.get_label(): bar for ax in places.values() for bar in ax.containers}
        figure.legend(
            [bars[WORDS[name]] for name in shown], [WORDS[name] for name in shown],
            loc="outside upper center", ncols=len(shown), frameon=False,
            handlelength=1.6, columnspacing=1.2,
        )  # fmt: skip
    return figure


def _bars(ax: Axes, counts: pd.DataFrame) -> None:
    widest, left = counts.sum(axis=1).max(), pd.Series(0, index=counts.index)
    for answer, (colour, hatch) in LOOKS.items():
        part = counts[answer]
        bars = ax.barh(
            range(len(counts)), part, left=left, color=colour, hatch=hatch, height=0.8,
            edgecolor="white", linewidth=0.5, label=WORDS[answer],
        )  # fmt: skip
        for bar, number in zip(bars, part, strict=True):
            if number > NARROW * widest:
                ax.text(
                    bar.get_x() + bar.get_width() / 2, bar.get_y() + bar.get_height() / 2,
                    str(number), ha="center", va="center", fontsize=6,
                    bbox={"boxstyle": "round,pad=0.15", "color": "white"},
                )  # fmt: skip
        left = left + part
    for place, (_, row) in enumerate(counts.iterrows()):
        small = [name for name in LOOKS if 0 < row[name] <= NARROW * widest]
        for i, name in enumerate(small):  # beside the bar, in the order of its parts
            text = f"{row[name]}{',' if i + 1 < len(small) else ''}"
            ax.text(
                row.sum() + widest * (0.012 + 0.04 * i), place, text,
                ha="left", va="center", fontsize=6, color=LOOKS[name][0],
            )  # fmt: skip
    ax.set_yticks(range(len(counts)), [str(name) for name in counts.index])
    ax.set_ylim(len(counts) - 0.4, -0.6)
    ax.set_xlim(0, 1.1 * widest)
