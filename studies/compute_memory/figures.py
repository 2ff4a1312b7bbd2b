"""The study's figure: memory and time against inner steps, log-log, as Figure 2b of the paper."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, StrMethodFormatter

from bayesmeta.plots import COLOURS, DOUBLE, LINES, MARKERS, style

DOTTED = (0, (4, 1, 1, 1))
LOOKS = {
    "maml": ("MAML", COLOURS["maml"], MARKERS["maml"], LINES["maml"]),
    "maml_checkpoint": ("MAML, checkpoint at every step", COLOURS["maml"], "v", DOTTED),
    "truncated_maml": (
        "MAML, last step only",
        COLOURS["truncated_maml"], MARKERS["truncated_maml"], LINES["truncated_maml"],
    ),
    "fomaml": ("first-order MAML", COLOURS["fomaml"], MARKERS["fomaml"], LINES["fomaml"]),
    "imaml": ("iMAML, Gauss-Newton", COLOURS["imaml"], MARKERS["imaml"], LINES["imaml"]),
    "imaml_hessian": ("iMAML, Hessian", COLOURS["imaml"], "d", LINES["imaml_hf"]),
}  # fmt: skip
"""Name, colour, marker and line of each rule."""


def draw(table: pd.DataFrame) -> Figure:
    """Memory on the left, time on the right, one legend above."""
    inner = table[table["part"] == "inner"]
    with style():
        figure = Figure(figsize=(DOUBLE, 2.9), layout="constrained")
        memory, seconds = figure.subplots(1, 2)
        _against(memory, inner, "peak_mib", "peak of tensors for one task, MiB")
        _against(seconds, inner, "seconds", "time of one meta-gradient, s")
        memory.set_title("(a) memory", loc="left")
        seconds.set_title("(b) time", loc="left")
        figure.legend(
            *memory.get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False
        )
    return figure


def _against(ax: Axes, rows: pd.DataFrame, value: str, label: str) -> None:
    for rule, (name, colour, marker, line) in LOOKS.items():
        part = rows[rows["rule"] == rule]
        ax.plot(
            part["inner_steps"], part[value], label=name, color=colour, marker=marker,
            linestyle=line, markersize=4, markerfacecolor="white" if rule != "maml" else colour,
            markeredgewidth=0.9,
        )  # fmt: skip
    ax.set(xscale="log", yscale="log", xlabel="inner steps", ylabel=label)
    ax.set_xticks(sorted(rows["inner_steps"].unique()))
    ax.xaxis.set_minor_locator(NullLocator())
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
