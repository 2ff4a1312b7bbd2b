"""The study's two figures; every line is a median over tasks."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from bayesmeta.plots import COLOURS, DOUBLE, LINES, MARKERS, style

ERROR = "relative error of the meta-gradient"
MEDIANS = "medians over tasks; CG: steps of conjugate gradients"
DASHES = (":", (0, (3, 1, 1, 1)), (0, (5, 1.5)))


def select(table: pd.DataFrame, **values: Any) -> pd.DataFrame:
    """The rows with these values in these columns."""
    for column, value in values.items():
        table = table.loc[table[column] == value]
    return table


def accuracy(table: pd.DataFrame) -> Figure:
    """Error against inner steps of both algorithms, and at θ* against CG steps."""
    with style():
        figure = Figure(figsize=(DOUBLE, 2.9), layout="constrained")
        descent, nesterov, conjugate = figure.subplots(1, 3)
        _descent(descent, select(table, panel="accuracy", inner="GD"))
        _nesterov(nesterov, select(table, panel="accuracy", inner="Nesterov"))
        _conjugate(conjugate, select(table, panel="cg"))
        for ax in (descent, nesterov, conjugate):
            ax.set(xscale="log", yscale="log")
        for ax in (nesterov, conjugate):
            ax.yaxis.set_major_locator(LogLocator(numticks=9))
            ax.yaxis.set_minor_locator(NullLocator())
        descent.set(ylabel=ERROR)
        figure.supxlabel(MEDIANS, fontsize=7)
    return figure


def _descent(ax: Axes, rows: pd.DataFrame) -> None:
    implicit = select(rows, method="GD implicit")
    *few, enough = sorted(implicit.cg_steps.unique())
    _line(ax, select(rows, method="GD truncated"), "steps", "truncated_maml", "last 10 % unrolled")
    _line(ax, select(rows, method="GD unrolled"), "steps", "maml", "unrolled")
    for steps, dashes in zip(few, DASHES, strict=True):
        part, look = select(implicit, cg_steps=steps), {"marker": "", "linestyle": dashes}
        _line(ax, part, "steps", "imaml", f"implicit, {steps} CG", **look)
    part = select(implicit, cg_steps=enough)
    _line(ax, part, "steps", "imaml", f"implicit, {enough} CG")
    ax.set(xlabel="inner steps", title=f"(a) gradient descent, κ = {rows.kappa.iloc[0]}")
    ax.legend(frameon=False, loc="lower left", handlelength=2.4, fontsize=6.5)


def _nesterov(ax: Axes, rows: pd.DataFrame) -> None:
    implicit = select(rows, method="Nesterov implicit")
    name = f"implicit, {implicit.cg_steps.max()} CG"
    _line(ax, select(rows, method="Nesterov unrolled"), "steps", "maml", "unrolled")
    _line(ax, implicit, "steps", "imaml", name)
    ax.set(xlabel="inner steps", title=f"(b) Nesterov, κ = {rows.kappa.iloc[0]}")
    ax.legend(frameon=False, loc="lower left", handlelength=2.4, fontsize=6.5)


def _conjugate(ax: Axes, rows: pd.DataFrame) -> None:
    rows = rows.loc[rows["cg_steps"] > 0]
    _line(ax, rows, "cg_steps", "imaml", "implicit")
    ax.set(xlabel="CG steps", title="(c) implicit, at the minimum θ*")


def growth(table: pd.DataFrame, slopes: dict[str, tuple[float, float]]) -> Figure:
    """Steps against κ with fitted and the paper's powers; Lemma 3's bound over the error."""
    with style():
        figure = Figure(figsize=(DOUBLE, 3.0), layout="constrained")
        left, right = figure.subplots(1, 2)
        _growth(left, select(table, panel="growth"), slopes)
        _bound(right, select(table, panel="lemma3"))
        for ax in (left, right):
            ax.set(xscale="log", yscale="log")
        left.set_ylim(top=1e5)  # for the legend
        figure.supxlabel(f"{MEDIANS}; paper: Rajeswaran et al. (2019)", fontsize=7)
    return figure


def _growth(ax: Axes, rows: pd.DataFrame, slopes: dict[str, tuple[float, float]]) -> None:
    for method, (power, paper) in slopes.items():
        role = "maml" if method.endswith("unrolled") else "imaml"
        look: dict[str, Any] = {}
        if method.startswith("Nesterov"):
            # Both hardly differ: the larger marks show behind the smaller ones.
            size = 5.5 if method.endswith("unrolled") else 3.0
            look = {"linestyle": "--", "markerfacecolor": "white", "markersize": size}
        elif method == "CG":
            look = {"linestyle": ":", "marker": "o"}
        name = f"{method}: κ$^{{{power:.2f}}}$ (paper: κ$^{{{paper:g}}}$)"
        _line(ax, select(rows, method=method), "kappa", role, name, value="steps", **look)
    power_of_ten = f"10$^{{{math.log10(rows.error.iloc[0]):g}}}$"
    ax.set(xlabel="condition number κ", ylabel=f"steps to a relative error of {power_of_ten}")
    ax.set_title("(a) steps against condition number")
    ax.legend(frameon=False, fontsize=6.5, handlelength=2.4)


def _bound(ax: Axes, rows: pd.DataFrame) -> None:
    few, enough = sorted(rows.cg_steps.unique())
    for steps, dashes in ((few, DASHES[0]), (enough, LINES["imaml"])):
        part = select(rows, cg_steps=steps)
        look: dict[str, Any] = {"linestyle": dashes}
        grey = look | {"color": COLOURS["reference"], "marker": ""}
        _line(ax, part, "steps", "imaml", f"bound, {steps} CG", value="bound", **grey)
        _line(ax, part, "steps", "imaml", f"error, {steps} CG", **look)
    ax.set(xlabel="inner steps of gradient descent", ylabel=ERROR)
    ax.set(title=f"(b) the paper's Lemma 3, κ = {rows.kappa.iloc[0]}")
    ax.legend(frameon=False, loc="lower left", handlelength=2.4)


def _line(
    ax: Axes, rows: pd.DataFrame, x: str, role: str, name: str, *, value: str = "error", **look: Any
) -> None:
    """The median over tasks, in the look of a method unless told otherwise."""
    middle = rows.groupby(x)[value].median()
    usual = {"color": COLOURS[role], "marker": MARKERS[role], "linestyle": LINES[role],
             "markersize": 3.5}  # fmt: skip
    ax.plot(
        middle.index.to_numpy(dtype=float), middle.to_numpy(dtype=float),
        linewidth=1.1, label=name, **usual | look,
    )  # fmt: skip
