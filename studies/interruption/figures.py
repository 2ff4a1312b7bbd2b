"""Every kill of the study: where in the fit it fell, and the steps that were done again."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bayesmeta.plots import COLOURS, DOUBLE, style

KILLED = {"random": "SIGKILL at a random moment", "aimed": "SIGKILL at a change of a file"}
LOOKS = {
    "computing": ("o", COLOURS["joint"]),
    "writing a checkpoint": ("^", COLOURS["maml"]),
    "writing the run": ("s", COLOURS["imaml"]),
}
ASKED = ("D", COLOURS["reptile"])
BESIDE = 0.62
"""Steps that marks in one place are spread over, in all."""


def redone(table: pd.DataFrame) -> Figure:
    """Steps done again against the step of the kill; random kills left, aimed ones right."""
    asked = table[table["how"].str.match("SIG")]
    with style():
        figure = Figure(figsize=(DOUBLE, 2.9), layout="constrained")
        both = figure.subplots(1, 2, sharey=True, sharex=True)
        for ax, (how, title) in zip(both, KILLED.items(), strict=True):
            some = table[table["how"] == how]
            _saw(ax, table)
            for where, (marker, colour) in LOOKS.items():
                _marks(ax, some[some["where"] == where], marker, colour)
            ax.set_title(f"{title} ({len(some)})")
            ax.set(xlabel="outer steps taken when it came")
        _marks(both[0], asked, *ASKED)
        both[0].set(ylabel="outer steps done again")
        shown = [
            Line2D([], [], linestyle="none", marker=m, mfc="none", color=c, label=f"while {where}")
            for where, (m, c) in LOOKS.items()
        ]
        shown += [
            Line2D([], [], linestyle="none", marker=ASKED[0], mfc="none", color=ASKED[1],
                   label=f"SIGTERM or SIGINT, anywhere ({len(asked)})"),
            Line2D([], [], color=COLOURS["reference"], linewidth=0.8,
                   label="steps since the last checkpoint"),
        ]  # fmt: skip
        figure.legend(handles=shown, frameon=False, loc="outside lower center", ncols=3)
    return figure


def _saw(ax: Axes, table: pd.DataFrame) -> None:
    """Steps since the last checkpoint."""
    steps, every = int(table["steps"].max()), int(table["every"].max())
    at = np.arange(steps + 1)
    ax.plot(at, at % every, color=COLOURS["reference"], linewidth=0.8, zorder=0)
    ax.set_yticks(range(0, every + 1, max(every // 6, 1)))


def _marks(ax: Axes, some: pd.DataFrame, marker: str, colour: str) -> None:
    """A hollow mark per kill; those of one place are set side by side, in rows."""
    place = some.groupby(["step", "redone"])
    rank, many = place.cumcount(), place["step"].transform("size")
    ax.plot(
        some["step"] + _beside(rank, many), some["redone"] + _beside(rank * 7 % many, many) / 4,
        linestyle="none", marker=marker, markersize=3.2, mfc="none", mew=0.7, color=colour,
    )  # fmt: skip


def _beside(rank: pd.Series, many: pd.Series) -> pd.Series:
    return BESIDE * ((rank + 0.5) / many - 0.5)
