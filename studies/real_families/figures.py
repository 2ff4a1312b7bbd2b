"""One page of the tasks' posteriors, and every method's distance from the reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import NullLocator

from bayesmeta.plots import COLOURS, DOUBLE, MARKERS, spread, style
from studies.real_families.measure import Drawn

COLUMNS = 3
ONE_SD = 0.6827
LEAST, MOST = 1e-7, 1e3  # the last tick; the axis goes on to thrice that
LABELS = {
    "joint": "joint",
    "laplace": "Laplace",
    "quadrature": "quadrature",
    "variational_laplace": "variational, Gaussian",
    "variational_imaml": "variational, point",
    "imaml_hf": "iMAML, Newton-CG",
    "maml": "MAML",
    "reptile": "Reptile",
}
KIN = {"quadrature": "laplace", "variational_laplace": "variational_imaml"}
HOLLOW = ("quadrature", "variational_imaml")
PANELS = {
    "mean_off": ("(a) θ₀ and\nshared weights", "from the reference,\nin standard errors"),
    "sd_off": ("(b) prior sds\n", "from the reference,\nrelative"),
    "tasks_mean": (
        "(c) tasks' means,\nmethod's own prior",
        "from the reference,\nin posterior sds",
    ),
    "held_mean": ("(d) tasks' means,\nNUTS' prior held", "from NUTS,\nin posterior sds"),
}


def look(method: str) -> dict[str, Any]:
    """Colour and marker of a method; hollow where another of its kin is filled."""
    kin = KIN.get(method, method)
    face = "white" if method in HOLLOW else COLOURS[kin]
    return {
        "color": COLOURS[kin],
        "marker": MARKERS[kin],
        "markerfacecolor": face,
        "markeredgewidth": 0.8,
        "linestyle": "",
    }


def page(drawn: Sequence[Drawn]) -> Figure:
    """A panel per set: one weight of every task, sorted, over the prior."""
    rows = -(-len(drawn) // COLUMNS)
    with style():
        figure = Figure(figsize=(DOUBLE, 0.55 + 1.75 * rows), layout="constrained")
        panels = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
        for ax, one in zip(panels, drawn, strict=False):
            _spread(ax, one)
        for ax in panels[len(drawn) :]:
            ax.remove()
        figure.legend(
            handles=[
                Line2D([], [], color=COLOURS["posterior"], marker="o", markersize=4,
                       label="posterior mean ± sd"),
                Line2D([], [], color=COLOURS["reference"], marker="o", markersize=5,
                       markerfacecolor="none", linestyle="", label="reference"),
                Line2D([], [], color=COLOURS["nuts"], marker="s", markersize=5,
                       markerfacecolor="none", linestyle="", label="NUTS"),
                Line2D([], [], color=COLOURS["prior"], label="prior mean"),
                Patch(color=COLOURS["prior"], alpha=0.18, linewidth=0, label="prior mean ± sd"),
            ],
            loc="outside upper center", ncols=5, frameon=False,
        )  # fmt: skip
    return figure


def _spread(ax: Axes, drawn: Drawn) -> None:
    one, fit = drawn.one, drawn.fit
    spread(fit, one.shown, ax=ax, level=ONE_SD, no_pooling=False, legend=False, max_labels=0)
    tasks = len(fit.posterior.tasks)
    if drawn.markers is not None:
        order = np.argsort(fit.posterior.mean[:, one.shown].numpy(), kind="stable")
        nuts = drawn.source == "NUTS"
        row = ax.get_window_extent().height / ax.figure.dpi * 72 / (tasks + 1)
        ax.plot(
            drawn.markers[order, one.shown], np.arange(tasks), "s" if nuts else "o",
            color=COLOURS["nuts" if nuts else "reference"], markerfacecolor="none",
            markersize=float(np.clip(0.55 * row, 1.5, 4.0)) + 1.8, markeredgewidth=0.6, zorder=3,
            rasterized=tasks > 500,
        )  # fmt: skip
    ax.set_title(one.name.replace("_", " "), loc="left", fontweight="bold")
    ax.set_xlabel(one.label)
    ax.set_ylabel("task, by rank")


def distances(table: pd.DataFrame) -> Figure:
    """Each method's largest difference over the coefficients of a set, on log axes."""
    sets = list(table["set"].unique())[::-1]
    with style():
        figure = Figure(figsize=(DOUBLE, 1.9 + 0.33 * len(sets)), layout="constrained")
        panels = figure.subplots(1, len(PANELS), sharey=True)
        for ax, (column, (title, unit)) in zip(panels, PANELS.items(), strict=True):
            for place, method in enumerate(LABELS):
                _dots(ax, table, sets, method, column, 0.105 * (3.5 - place))
            ax.set(xscale="log", xlabel=f"largest difference\n{unit}", title=title)
            if column == "held_mean":
                ax.set_xlim(0.01, 1.5)
                ax.set_xticks([0.01, 0.1, 1], ["0.01", "0.1", "1"])
            else:
                ax.set_xlim(LEAST / 3, MOST * 3)
                names = ["≤10$^{-7}$", "10$^{-4}$", "0.1", "10$^{3}$"]
                ax.set_xticks([LEAST, 1e-4, 0.1, MOST], names)
            ax.xaxis.set_minor_locator(NullLocator())
            ax.axvline(1, color=COLOURS["reference"], linewidth=0.6, zorder=0, label="1 unit")
            for place in range(0, len(sets), 2):
                ax.axhspan(place - 0.5, place + 0.5, color="0.94", linewidth=0, zorder=-1)
        sampled = table[(table["method"] == "nuts") & table["mean_error"].notna()]
        errors = sampled.groupby("set")["mean_error"].max()
        panels[-1].plot(
            errors, [sets.index(str(s)) for s in errors.index], color=COLOURS["nuts"], marker="|",
            markersize=9, markeredgewidth=1.2, linestyle="", label="NUTS' standard error",
        )  # fmt: skip
        panels[0].set_yticks(range(len(sets)), [s.replace("_", " ") for s in sets])
        panels[0].set_ylim(-0.5, len(sets) - 0.5)
        handles = [Line2D([], [], markersize=4, label=LABELS[m], **look(m)) for m in LABELS]
        handles += panels[-1].get_legend_handles_labels()[0]
        figure.legend(
            handles=handles, loc="outside lower center", ncols=5, frameon=False, title_fontsize=7,
            title="reference: recorded fits of lme4, nlme or quadrature; no mark: no such number, "
            "or not compared",
        )  # fmt: skip
    return figure


def _dots(
    ax: Axes, table: pd.DataFrame, sets: list[str], method: str, column: str, shift: float
) -> None:
    rows = table[table["method"] == method]
    known = rows[column].abs().groupby(rows["set"]).max().dropna()
    places = np.array([sets.index(str(name)) for name in known.index]) + shift
    ax.plot(known.clip(lower=LEAST), places, markersize=3.5, **look(method))
