"""The study's figure: times, and memory against inner steps."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, ScalarFormatter

from bayesmeta.plots import COLOURS, DOUBLE, LINES, MARKERS, style

LABELS = {
    "loop": "plain torch, task by task",
    "torchopt": "TorchOpt, task by task",
    "eager": "bayesmeta",
    "compiled": "bayesmeta, compiled",
    "jax": "JAX, jit and vmap",
}


def draw(table: pd.DataFrame) -> Figure:
    """Median times with their quartiles on the left, peak memory on the right."""
    with style():
        figure = Figure(figsize=(DOUBLE, 2.5), layout="constrained")
        times, memory = figure.subplots(1, 2, width_ratios=(1.35, 1.0))
        _times(times, table[table["part"] == "time"].set_index("implementation"))
        _memory(memory, table[table["part"] == "memory"])
        times.set_title("(a) medians, with bars of their quartile range", loc="left")
        memory.set_title("(b) memory", loc="left")
    return figure


def _times(ax: Axes, rows: pd.DataFrame) -> None:
    shown = rows.loc[[name for name in LABELS if name in rows["ms"].dropna().index]]
    places = range(len(shown))[::-1]
    for place, (name, row) in zip(places, shown.iterrows(), strict=True):
        ours = name in ("eager", "compiled")
        ax.errorbar(
            row["ms"], place, xerr=row["spread_ms"] / 2, marker="D" if ours else "o",
            color=COLOURS["imaml" if ours else "reference"], markersize=3.5, capsize=3,
        )  # fmt: skip
        ax.annotate(
            f"{row['ms']:.3g} ms, {row['times_loop']:.2g}×", (row["ms"], place), (7, 0),
            textcoords="offset points", va="center", fontsize=7,
        )  # fmt: skip
    ax.set_yticks(places, [LABELS[str(name)] for name in shown.index])
    low, high = shown["ms"].min(), shown["ms"].max()
    ax.set(xscale="log", xlabel="ms for one meta-gradient of 25 tasks (×: as fast as plain torch)")
    ax.set(xlim=(low / 1.6, high * (high / low) ** 0.45 * 1.6), ylim=(-0.6, len(shown) - 0.4))
    _plain(ax)


def _memory(ax: Axes, rows: pd.DataFrame) -> None:
    for name, kin in (("unrolled", "maml"), ("implicit", "imaml")):
        part = rows[rows["implementation"] == name]
        ax.plot(
            part["inner_steps"], part["peak_mib"], label=name,
            color=COLOURS[kin], marker=MARKERS[kin], linestyle=LINES[kin], markersize=4,
        )  # fmt: skip
    ax.set(xscale="log", yscale="log", xlabel="inner steps", ylabel="peak of tensors, MiB")
    ax.set_xticks(sorted(rows["inner_steps"].unique()))
    ax.xaxis.set_minor_locator(NullLocator())
    _plain(ax)
    ax.yaxis.set_major_formatter(ScalarFormatter())
    ax.legend(frameon=False)


def _plain(ax: Axes) -> None:
    ax.xaxis.set_major_formatter(ScalarFormatter())
