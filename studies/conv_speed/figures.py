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
OURS, OTHERS = COLOURS["data"], COLOURS["reference"]
"""Methods are rows, so the colours name whose code it is."""
LOOKS = {
    "loop": ("plain torch, task by task", "o", OTHERS, OTHERS),
    "torchopt": ("TorchOpt", "s", OTHERS, "white"),
    "eager": ("bayesmeta", "D", OURS, OURS),
    "chunked": ("bayesmeta, some tasks at a time", "D", OURS, "white"),
    "compiled": ("bayesmeta, compiled", "^", OURS, OURS),
    "graph": ("bayesmeta, CUDA graph", "v", OURS, OURS),
    "tf32": ("bayesmeta, TF32", "P", OURS, "white"),
    "bfloat16": ("bayesmeta, bfloat16", "X", OURS, "white"),
    "products": ("bare matrix products", "|", OURS, OURS),
}
"""Name, marker, its edge and its face."""
NOT_OURS = ("loop", "torchopt", "tf32", "bfloat16")
"""Contenders that are others', or compute something else."""
FORMS = {
    "grouped": ("a group per task (bayesmeta)", "D", OURS, OURS),
    "unfold": ("patches by unfold", "o", OTHERS, OTHERS),
    "slices": ("patches by slices", "s", OTHERS, "white"),
    "written": ("groups without vmap", "^", OTHERS, OTHERS),
    "written, channels last": ("the same, channels last", "v", OTHERS, "white"),
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
        figure = Figure(figsize=(DOUBLE, 3.6), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1.25, 1.0))
        _times(left, table[table["part"] == "step"].dropna(subset="ms"))
        forms = table[table["part"] == "form"]
        _forms(right, forms[~forms["tuned"].astype(bool)])
    return figure


def _times(ax: Axes, rows: pd.DataFrame) -> None:
    cases = list(rows.groupby(["method", "queries"], sort=False))
    for place, (_, case) in enumerate(cases):
        bare = {"implementation": "products", "ms": case["products_ms"].iloc[0], "spread_ms": 0.0}
        found = [bare, *case.to_dict("records")]
        for i, row in enumerate(found):
            _, marker, edge, face = LOOKS[row["implementation"]]
            ax.errorbar(
                row["ms"], _beside(place, i, len(found)), xerr=row["spread_ms"] / 2,
                marker=marker, color=edge, markerfacecolor=face,
                markersize=7 if marker == "|" else 4,
                markeredgewidth=1.5 if marker == "|" else 0.9, elinewidth=0.8,
            )  # fmt: skip
        best = case.loc[~case["implementation"].isin(NOT_OURS), "times_loop"].max()
        ends = (case["ms"] + case["spread_ms"] / 2).max()
        ax.annotate(
            f"{best:.2g}×", (ends, -place), (5, 0), textcoords="offset points", va="center",
            fontsize=7,
        )  # fmt: skip
    labels = [f"{METHODS[method]},\n{asked(queries)}" for (method, queries), _ in cases]
    _rows(ax, labels)
    tasks = int(rows["tasks"].iloc[0])
    ax.set(
        xscale="log",
        xlabel=f"ms for a meta-gradient of {tasks} tasks: medians\n"
        "(bars wider than the mark: quartiles; number: speed of\n"
        "the fastest of bayesmeta ÷ that of plain torch)",
    )
    low, high = rows["products_ms"].min(), rows["ms"].max()
    ax.set(xlim=(low / 1.5, high * 2.6))
    _plain(ax)
    shown = [name for name in LOOKS if name in {*rows["implementation"], "products"}]
    _legend(ax, [LOOKS[name] for name in shown])


def _forms(ax: Axes, rows: pd.DataFrame) -> None:
    groups = list(rows.groupby(["images", "pass"], sort=False))
    for place, (_, group) in enumerate(groups):
        for i, row in enumerate(group.to_dict("records")):
            _, marker, edge, face = FORMS[row["implementation"]]
            ax.plot(
                1 / row["times_grouped"], _beside(place, i, len(group)), marker, color=edge,
                markerfacecolor=face, markersize=4, markeredgewidth=0.9,
            )  # fmt: skip
    labels = [
        f"{PASSES[str(kind)]}, {group['tasks'].iloc[0]:.0f} × {images:.0f}"
        for (images, kind), group in groups
    ]
    _rows(ax, labels)
    ax.axvline(1.0, color=OTHERS, linewidth=0.6, zorder=0)
    ax.set(xscale="log", xlabel="median time ÷ a group per task's")
    ax.set_ylabel("pass, tasks × images each")
    ax.xaxis.set_major_locator(LogLocator(10.0, subs=(1.0, 1.5, 2.0, 3.0, 5.0)))
    _plain(ax)
    used = [FORMS[name] for name in FORMS if name in set(rows["implementation"])]
    _legend(ax, used)


def _rows(ax: Axes, labels: list[str]) -> None:
    """Names of the rows, and a line between two of them."""
    ax.set_yticks([-place for place in range(len(labels))], labels)
    ax.set_ylim(0.5 - len(labels), 0.5)
    for place in range(1, len(labels)):
        ax.axhline(0.5 - place, color=OTHERS, linewidth=0.3, zorder=0)


def asked(queries: float) -> str:
    """The number of query images, in words."""
    return f"{queries:.0f} {'query' if queries == 1 else 'queries'} a class"


def _beside(place: int, i: int, count: int) -> float:
    """Where in its row the i-th of so many marks goes, so that none hides another."""
    return -place - 0.17 * (i - (count - 1) / 2)


def _legend(ax: Axes, looks: list[tuple[str, str, str, str]]) -> None:
    handles = [
        Line2D([], [], linestyle="", marker=marker, color=edge, markerfacecolor=face, label=name,
               markersize=4.5, markeredgewidth=1.4 if marker == "|" else 0.9)
        for name, marker, edge, face in looks
    ]  # fmt: skip
    ax.legend(
        handles=handles, frameon=False, loc="lower center", bbox_to_anchor=(0.25, 1.0), ncols=2,
        handletextpad=0.2, columnspacing=0.8, borderaxespad=0.2,
    )  # fmt: skip


def _plain(ax: Axes) -> None:
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
