"""The study's figure: times beside the loop, and the forms of the convolution."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from bayesmeta.plots import COLOURS, DOUBLE, style

METHODS = {
    "maml": "MAML",
    "fomaml": "first-order MAML",
    "imaml_ggn": "iMAML, Gauss-Newton",
    "imaml_hessian": "iMAML, Hessian",
}
OURS, OTHERS = COLOURS["imaml"], COLOURS["reference"]
LOOKS = {
    "loop": ("torch, task by task", "o", OTHERS, OTHERS),
    "torchopt": ("TorchOpt", "s", OTHERS, "white"),
    "eager": ("bayesmeta", "D", OURS, OURS),
    "chunked": ("bayesmeta, some tasks at a time", "D", OURS, "white"),
    "compiled": ("bayesmeta, compiled", "^", OURS, OURS),
    "graph": ("bayesmeta, CUDA graph", "v", OURS, OURS),
    "tf32": ("bayesmeta, TF32", "P", OURS, "white"),
    "bfloat16": ("bayesmeta, bfloat16", "X", OURS, "white"),
    "products": ("bare matrix products", "|", "black", "black"),
}
"""Name, marker, its edge and its face."""
NOT_OURS = ("loop", "torchopt", "tf32", "bfloat16")
"""Contenders that are others', or compute something else."""
FORMS = {
    "grouped": ("a group per task", "D", OURS),
    "unfold": ("unfold", "o", COLOURS["laplace"]),
    "slices": ("slices, channels last", "s", COLOURS["joint"]),
    "written": ("groups, without vmap", "^", OTHERS),
    "written, channels last": ("the same, channels last", "v", OTHERS),
}
PASSES = {
    "value": "value",
    "gradient": "gradient",
    "hessian": "Hessian product",
    "step": "step of MAML",
}


def draw(table: pd.DataFrame) -> Figure:
    """Median times with their quartiles on the left, forms on the right."""
    with style():
        figure = Figure(figsize=(DOUBLE, 2.9), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1.25, 1.0))
        _times(left, table[table["part"] == "step"].dropna(subset="ms"))
        forms = table[table["part"] == "form"]
        _forms(right, forms[~forms["tuned"].astype(bool)])
    return figure


def _times(ax: Axes, rows: pd.DataFrame) -> None:
    cases = list(rows.groupby(["method", "queries"], sort=False))
    for place, (_, case) in enumerate(cases):
        bare = {"implementation": "products", "ms": case["products_ms"].iloc[0], "spread_ms": 0.0}
        for row in [*case.to_dict("records"), bare]:
            _, marker, edge, face = LOOKS[row["implementation"]]
            ax.errorbar(
                row["ms"], -place, xerr=row["spread_ms"] / 2, marker=marker, color=edge,
                markerfacecolor=face, markersize=9 if marker == "|" else 5, capsize=1.5,
                markeredgewidth=1.5 if marker == "|" else 0.9, elinewidth=0.8,
            )  # fmt: skip
        best = case.loc[~case["implementation"].isin(NOT_OURS), "times_loop"].max()
        ax.annotate(
            f"{best:.2g}×", (case["ms"].max(), -place), (8, 0), textcoords="offset points",
            va="center", fontsize=7,
        )  # fmt: skip
    labels = [
        f"{METHODS[method]}\n{queries:.0f} {'query' if queries == 1 else 'queries'} a class"
        for (method, queries), _ in cases
    ]
    ax.set_yticks([-place for place in range(len(cases))], labels)
    tasks = int(rows["tasks"].iloc[0])
    ax.set(
        xscale="log", xlabel=f"ms for one meta-gradient of {tasks} tasks (× as fast as the loop)"
    )
    low, high = rows["products_ms"].min(), rows["ms"].max()
    ax.set(xlim=(low / 1.5, high * 2.2), ylim=(0.6 - len(cases), 0.6))
    _plain(ax)
    shown = [name for name in LOOKS if name in {*rows["implementation"], "products"}]
    _legend(ax, [LOOKS[name] for name in shown])


def _forms(ax: Axes, rows: pd.DataFrame) -> None:
    groups = list(rows.groupby(["images", "pass"], sort=False))
    for place, (_, group) in enumerate(groups):
        for row in group.to_dict("records"):
            _, marker, colour = FORMS[row["implementation"]]
            relative = 1 / row["times_grouped"]
            ax.plot(relative, -place, marker, color=colour, markersize=4.5)
    labels = [
        f"{PASSES[str(kind)]}, {group['tasks'].iloc[0]:.0f} × {images:.0f}"
        for (images, kind), group in groups
    ]
    ax.set_yticks([-place for place in range(len(groups))], labels)
    ax.axvline(1.0, color=OTHERS, linewidth=0.6, zorder=0)
    ax.set(xscale="log", xlabel="time beside that of a group per task")
    ax.set_ylabel("pass, tasks × images")
    ax.set(ylim=(0.5 - len(groups), 0.5))
    ax.xaxis.set_major_locator(LogLocator(2.0))
    _plain(ax)
    used = [FORMS[name] for name in FORMS if name in set(rows["implementation"])]
    _legend(ax, [(name, marker, colour, colour) for name, marker, colour in used])


def _legend(ax: Axes, looks: list[tuple[str, str, str, str]]) -> None:
    handles = [
        Line2D([], [], linestyle="", marker=marker, color=edge, markerfacecolor=face, label=name,
               markersize=4.5, markeredgewidth=1.4 if marker == "|" else 0.9)
        for name, marker, edge, face in looks
    ]  # fmt: skip
    ax.legend(
        handles=handles, frameon=False, loc="lower center", bbox_to_anchor=(0.42, 1.0), ncols=2,
        handletextpad=0.2, columnspacing=0.8, borderaxespad=0.2,
    )  # fmt: skip


def _plain(ax: Axes) -> None:
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
