"""The figure: squared error against adaptation steps, a panel per number of points."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from bayesmeta.plots import COLOURS, DOUBLE, LINES, MARKERS, style

TICKS = (0, 1, 5, 10, 16)
END = 20.0
APART = 1.2
LOWEST = 0.03
HIGHEST = 20.0
"""Means above it are those of a few tasks that diverged; the table has them."""
NAMES = {
    "maml": "MAML",
    "fomaml": "first-order MAML",
    "reptile": "Reptile",
    "imaml": "iMAML",
    "imaml_hf": "iMAML, Newton-CG",
    "variational_imaml": "variational iMAML",
    "laplace": "Laplace",
    "joint": "joint",
}


def draw(table: pd.DataFrame) -> Figure:
    """Means over unseen tasks with 95 % intervals."""
    with style():
        figure = Figure(figsize=(DOUBLE, 3.3), layout="constrained")
        panels = figure.subplots(1, table["points"].nunique(), sharex=True, sharey=True)
        for ax, (points, part) in zip(panels, table.groupby("points"), strict=True):
            _panel(ax, part)
            ax.set_title(f"{points} points of the new task")
        panels[0].set_ylabel("squared error on its other points")
        handles, names = panels[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside upper center", ncols=4, frameon=False)
    return figure


def _panel(ax: Axes, part: pd.DataFrame) -> None:
    ended = 0
    for name, rows in part.groupby("method", sort=False):
        look = {"color": COLOURS[name], "marker": MARKERS[name], "markersize": 4}
        if "converged" in set(rows["adaptation"]):
            place, line = [END + APART * ended], "none"
            ended += 1
        else:
            place, line = rows["adaptation"].astype(float), LINES[name]
        bars = [rows["mse"] - rows["mse_low"], rows["mse_high"] - rows["mse"]]
        ax.errorbar(
            place, rows["mse"], bars, linestyle=line, elinewidth=0.8, label=NAMES[name], **look
        )
        own = rows["own"].to_numpy(dtype=bool)
        if line != "none":
            ax.plot(
                place[own], rows["mse"][own], "o", markersize=9, markerfacecolor="none",
                markeredgecolor=COLOURS[name], markeredgewidth=0.8,
            )  # fmt: skip
    ax.set_yscale("log")
    ax.set_ylim(LOWEST, HIGHEST)
    if (part["mse"] > HIGHEST).any():
        ax.annotate(
            "above: a few tasks diverged", (0.98, 0.93), xycoords="axes fraction", ha="right",
            fontsize=7, backgroundcolor="white",
        )  # fmt: skip
    ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.set_xticks([*TICKS, END + APART / 2], [*map(str, TICKS), "to the\nend"])
    ax.set_xlabel("adaptation steps (ring: as fitted)")
