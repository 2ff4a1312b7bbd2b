"""The figure: squared error against adaptation steps, a panel per number of points."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bayesmeta.plots import COLOURS, DOUBLE, LINES, MARKERS, style

LOWEST, HIGHEST, TOP = 0.03, 10.0, 70.0
EDGE = 16.0
"""Where the arrow begins of a mean above `HIGHEST`, that of a few tasks that diverged."""
TICKS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, HIGHEST)
APART = 0.12
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
    steps = sorted({*table["adaptation"]} - {"converged"}, key=int)
    places = {name: place for place, name in enumerate([*steps, "converged"])}
    with style():
        figure = Figure(figsize=(DOUBLE, 3.9), layout="constrained")
        panels = figure.subplots(1, table["points"].nunique(), sharex=True, sharey=True)
        for ax, (points, part) in zip(panels, table.groupby("points"), strict=True):
            _panel(ax, part, places)
            ax.set_title(f"{points} points of the new task")
        panels[0].set_ylabel("mean squared error at its other points")
        handles, _ = panels[0].get_legend_handles_labels()
        figure.legend(
            handles=[*handles, *_keys(table)], loc="outside upper center", ncols=4, frameon=False
        )
    return figure


def _panel(ax: Axes, part: pd.DataFrame, places: dict[str, int]) -> None:
    ended = part["adaptation"] == "converged"
    for rows in (part[~ended], part[ended]):
        methods = list(dict.fromkeys(rows["method"]))
        for i, name in enumerate(methods):
            own = rows[rows["method"] == name]
            shift = APART * (i - (len(methods) - 1) / 2)
            _method(ax, name, own, own["adaptation"].map(places).to_numpy(dtype=float) + shift)
    ax.set_yscale("log")
    ax.set_ylim(LOWEST, TOP)
    ax.set_yticks(TICKS, [f"{tick:g}" for tick in TICKS])
    ax.minorticks_off()
    labels = ["to the\nend" if name == "converged" else name for name in places]
    ax.set_xticks([*places.values()], labels)
    ax.set_xlabel("adaptation steps (methods side by side)")


def _method(ax: Axes, name: str, rows: pd.DataFrame, at: np.ndarray) -> None:
    """Line, bars and rings of one method, and arrows where its mean is off the scale."""
    off = (rows["mse"] > HIGHEST).to_numpy()
    shown = rows["mse"].mask(off, EDGE).to_numpy(dtype=float)
    bars = [
        (rows["mse"] - rows["mse_low"]).mask(off, 0.0),
        (rows["mse_high"] - rows["mse"]).mask(off, 0.0),
    ]
    look = {"color": COLOURS[name], "marker": MARKERS[name], "markersize": 3.5}
    ax.errorbar(
        at, shown, bars, linestyle=LINES[name] if len(rows) > 1 else "none", linewidth=1.0,
        elinewidth=0.8, capsize=1.5, label=NAMES[name], **look,
    )  # fmt: skip
    own = rows["own"].to_numpy(dtype=bool)
    if len(rows) > 1:
        ax.plot(at[own], shown[own], **_ring(COLOURS[name]))
    side = -1 if name == "maml" else 1  # Reptile's arrow is close by on the right
    for place, mean in zip(at[off], rows["mse"][off], strict=True):
        ax.annotate(
            "", (place, TOP), (place, EDGE), annotation_clip=False,
            arrowprops={"arrowstyle": "-|>", "color": COLOURS[name], "shrinkA": 2, "shrinkB": 0},
        )  # fmt: skip
        ax.annotate(
            _number(mean), (place, TOP), (6 * side, 0), textcoords="offset points", fontsize=7,
            ha="center", va="top", rotation=90, color=COLOURS[name],
        )  # fmt: skip


def _number(value: float) -> str:
    """Two digits and a power of ten."""
    power = math.floor(math.log10(value))
    return f"${value / 10.0**power:.1f}\\times 10^{{{power}}}$"


def _ring(colour: str) -> dict:
    return {
        "marker": "o", "linestyle": "none", "markersize": 8, "markerfacecolor": "none",
        "markeredgecolor": colour, "markeredgewidth": 0.8,
    }  # fmt: skip


def _keys(table: pd.DataFrame) -> list[Line2D]:
    """What rings, bars and arrows stand for."""
    grey = COLOURS["reference"]
    tasks = int(table["test_tasks"].iloc[0])
    keys = [
        Line2D([], [], label="steps it was fitted for", **_ring(grey)),
        Line2D([], [], color=grey, marker="|", linestyle="none", markersize=9,
               label=f"95 % interval, {tasks} tasks"),
    ]  # fmt: skip
    if (table["mse"] > HIGHEST).any():
        keys.append(
            Line2D([], [], color=grey, marker=r"$\uparrow$", linestyle="none", markersize=7,
                   label="mean off the scale: some tasks diverged")
        )  # fmt: skip
    return keys
