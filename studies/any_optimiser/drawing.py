"""The figure: error against that of shared paths, by algorithm, a panel per family."""

from __future__ import annotations

from string import ascii_lowercase

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from bayesmeta.plots import COLOURS, DOUBLE, MARKERS, style
from studies.any_optimiser.findings import algorithms, error, ratio

LOOKS = {  # shared paths are grey and separate ones orange, as in the study two_paths
    "shared_mean": ("shared paths, loss at the mean", COLOURS["reference"], "o", "white"),
    "separate": ("separate paths", COLOURS["two_path"], MARKERS["two_path"], None),
    "mixture": ("mixture of optimisers", COLOURS["posterior"], "s", None),
    "maml": ("MAML, full batch", COLOURS["maml"], MARKERS["maml"], None),
}
NOTES = {
    "stochastic": "(in every training but MAML's)",
    "maml": "(in MAML's training)",
    "mixture": "(in the mixture's training)",
    "none": "",
}
"""Groups from top to bottom, and what stands under the names of their algorithms."""
ALL = "mean of these"
SPREAD = 0.66
GAP = 0.3
EDGE = 0.55


def draw(table: pd.DataFrame) -> Figure:
    """Ratios with 95 % intervals over seeds; at the right the error of shared paths itself."""
    places = _places(table)
    with style():
        figure = Figure(figsize=(DOUBLE, 4.8), layout="constrained")
        panels = figure.subplots(1, table["family"].nunique(), sharey=True)
        families = dict.fromkeys(table["family"])
        for ax, letter, family in zip(panels, ascii_lowercase, families, strict=False):
            _panel(ax, table, family, places)
            ax.set_title(f"({letter}) {family}", loc="left")
        notes = {name: NOTES[seen] for seen in NOTES for name in algorithms(table, seen)}
        labels = [f"{name}\n{notes[name]}" if notes.get(name) else name for name in places]
        panels[0].set_yticks(list(places.values()), labels)
        panels[0].set_ylim(max(places.values()) + EDGE, -EDGE)
        figure.supxlabel("squared error / squared error of shared paths", fontsize=8)
        handles, names = panels[0].get_legend_handles_labels()
        figure.legend(
            handles, names, loc="outside upper center", ncols=3, frameon=False,
            title=f"marks: geometric mean of {table['seed'].nunique()} seeds, bars: its 95 % "
            "interval",
            title_fontsize=7,
        )  # fmt: skip
    return figure


def _places(table: pd.DataFrame) -> dict[str, float]:
    """Where each algorithm stands, with a gap between groups."""
    places, at = {}, 0.0
    for seen in NOTES:
        for name in algorithms(table, seen):
            places[name] = at
            at += 1
        at += GAP
    return places | {ALL: at - GAP / 2}


def _panel(ax: Axes, table: pd.DataFrame, family: str, places: dict[str, float]) -> None:
    ax.axvline(
        1, color=COLOURS["reference"], linewidth=0.8, zorder=0, label="shared paths, mean loss (1)"
    )
    unseen = algorithms(table, "none")
    for index, (method, (label, colour, marker, inside)) in enumerate(LOOKS.items()):
        shift = SPREAD * (index / (len(LOOKS) - 1) - 0.5)
        found = [ratio(table, family, method, unseen if name == ALL else [name]) for name in places]
        middle = [r.middle for r in found]
        bars = [
            [r.middle - r.low for r in found],
            [r.high - r.middle for r in found],
        ]
        ax.errorbar(
            middle, [at + shift for at in places.values()], xerr=bars, linestyle="none",
            marker=marker, markersize=5 if marker == "*" else 3.5, color=colour,
            markerfacecolor=inside or colour, elinewidth=0.8, label=label,
        )  # fmt: skip
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.axhspan(
        places[unseen[0]] - EDGE, places[ALL] + EDGE, color=COLOURS["reference"], alpha=0.1,
        linewidth=0, zorder=-1,
    )  # fmt: skip
    aside = ax.get_yaxis_transform()
    for name, at in places.items():
        if name != ALL:
            own = f"{error(table, family, 'shared', name):#.2g}"
            ax.text(1.02, at, own, fontsize=7, va="center", transform=aside)
    ax.text(
        1.13, -EDGE, "squared error\nof shared paths", fontsize=7, va="bottom", ha="right",
        style="italic", transform=aside,
    )  # fmt: skip
    ax.text(
        0.99, places[ALL] + EDGE - 0.05, "new to every start", fontsize=7, va="bottom",
        ha="right", style="italic", transform=aside,
    )  # fmt: skip
