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
SAW = "since the last checkpoint\n(alike marks are stacked)"
APART = 1.5
"""Steps between two marks that would lie on each other."""
ROWS = 4
"""Of marks that would; they are no more apart than steps are."""


def redone(table: pd.DataFrame) -> Figure:
    """Steps done again against the step of the kill; random kills, aimed ones, and signals."""
    asked = table["how"].str.match("SIG")
    panels = {title: table[table["how"] == how] for how, title in KILLED.items()}
    panels["SIGTERM or SIGINT"] = table[asked]
    with style():
        figure = Figure(figsize=(DOUBLE, 2.9), layout="constrained")
        axes = figure.subplots(1, 3, sharey=True, sharex=True, width_ratios=(5, 4, 4))
        for ax, (title, some) in zip(axes, panels.items(), strict=True):
            _saw(ax, table)
            for where, look in LOOKS.items():
                _marks(ax, some[some["where"] == where], *look)
            ax.set_title(f"{title} ({len(some)})", fontsize="small")
            ax.set(xlabel="outer steps taken")
        axes[0].set(ylabel="outer steps done again")
        shown = [
            Line2D([], [], linestyle="none", marker=m, mfc="none", color=c, label=f"while {where}")
            for where, (m, c) in LOOKS.items()
        ]
        grey = COLOURS["reference"]
        shown += [Line2D([], [], color=grey, linewidth=0.8, label=SAW)]
        figure.legend(handles=shown, frameon=False, loc="outside lower center", ncols=4)
    return figure


def _saw(ax: Axes, table: pd.DataFrame) -> None:
    """Steps since the last checkpoint, which falls to 0 where one is written."""
    steps, every = int(table["steps"].max()), int(table["every"].max())
    ends = np.arange(0, steps + 1, every)
    at, since = np.repeat(ends, 2)[1:], np.tile([0, every], len(ends))[:-1]
    ax.plot([*at, steps], [*since, 0], color=COLOURS["reference"], linewidth=0.6, zorder=0)
    ax.set_yticks(range(0, every + 1, max(every // 6, 1)))
    ax.set_xticks(range(0, steps + 1, max(steps // 3, 1)))


def _marks(ax: Axes, some: pd.DataFrame, marker: str, colour: str) -> None:
    """A hollow mark per kill; those of one place are stacked, then set side by side."""
    rank = some.groupby(["step", "redone"]).cumcount()
    ax.plot(
        some["step"] + APART * (rank // ROWS), some["redone"] + 0.2 * (rank % ROWS),
        linestyle="none", marker=marker, markersize=2.8, mfc="none", mew=0.6, color=colour,
    )  # fmt: skip
