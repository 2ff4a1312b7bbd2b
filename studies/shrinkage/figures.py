"""The study's two figures: sd by layer, and how far behind the true prior each form predicts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from bayesmeta.plots import COLOURS, DOUBLE, style
from bayesmeta.plots._style import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILLION
from studies.shrinkage.measure import FORMS, TRUTH
from studies.shrinkage.problem import CASES, CHANGE, LAYERS

LOOK = {"first": (BLUE, "o"), "middle": (ORANGE, "s"), "last": (GREEN, "^")}
FORM_LOOK = {
    "isotropic": (PURPLE, "P"),
    "block": (BLUE, "o"),
    "diagonal": (SKY, "s"),
    "low-rank": (VERMILLION, "^"),
    "block, other start": (BLACK, "D"),
}
LINEAR = 0.1
"""Nats within which the axis of scores is linear."""
TITLES = {case: f"{case} layer varies" for case in LAYERS} | {"none": "no layer varies"}


def select(table: pd.DataFrame, **values: Any) -> pd.DataFrame:
    """The rows with these values in these columns."""
    for column, value in values.items():
        table = table.loc[table[column] == value]
    return table


def layers(table: pd.DataFrame) -> Figure:
    """Learned sd by layer and form, a panel per case, with the sd that new tasks have left."""
    rows = select(table, panel="layer")
    with style():
        figure = Figure(figsize=(DOUBLE, 4.4), layout="constrained")
        axes = figure.subplots(2, 2, sharex=True, sharey=True)
        for ax, case, letter in zip(axes.flat, CASES, "abcd", strict=True):
            _case(ax, select(rows, case=case))
            ax.set_title(f"({letter}) {TITLES[case]}", loc="left")
        for ax in axes[:, 0]:
            ax.set_ylabel("sd of a layer's weights")
        for ax in axes[1]:
            names = [form.replace(", ", ",\n") for form in (*FORMS, TRUTH)]
            ax.set_xticks(range(len(names)), names)
        axes[0, 0].set_ylim(bottom=-0.012)
        figure.supxlabel(
            f"form of the prior; each mark a seed, after {rows.steps.max():,} steps of descent",
            fontsize=8,
        )
        figure.legend(handles=_key(), loc="outside upper center", ncols=6, frameon=False,
                      columnspacing=1.2, handletextpad=0.4)  # fmt: skip
    return figure


def _case(ax: Axes, rows: pd.DataFrame) -> None:
    """Each seed a mark: filled the prior, hollow the posteriors of new tasks."""
    if rows.true_sd.max() > 0:
        ax.axhline(CHANGE, color=COLOURS["reference"], linewidth=0.7, linestyle=":")
    for position, form in enumerate((*FORMS, TRUTH)):
        for shift, layer in zip((-0.26, 0.0, 0.26), LAYERS, strict=True):
            part = select(rows, form=form, layer=layer)
            colour, marker = LOOK[layer]
            for offset, column, face in (
                (-0.05, "prior_sd", colour),
                (0.05, "posterior_sd", "white"),
            ):
                at = np.full(len(part), position + shift + offset)
                ax.plot(at, part[column].to_numpy(), linestyle="none", marker=marker,
                        markersize=3.2, color=colour, markerfacecolor=face,
                        markeredgewidth=0.7)  # fmt: skip
    for position in range(len(FORMS)):
        ax.axvline(position + 0.5, color=COLOURS["reference"], linewidth=0.3)


def _key() -> list[Line2D]:
    def entry(colour: str, marker: str, face: str, label: str) -> Line2D:
        return Line2D([], [], linestyle="none", color=colour, marker=marker, markersize=4,
                      markerfacecolor=face, label=label)  # fmt: skip

    layers = [entry(colour, mark, colour, f"{name} layer") for name, (colour, mark) in LOOK.items()]
    grey = COLOURS["reference"]
    kinds = [("prior", grey), ("posterior of a new task", "white")]
    true = Line2D([], [], color=grey, linewidth=0.7, linestyle=":", label="true sd where it varies")
    return [*layers, *(entry(grey, "o", face, label) for label, face in kinds), true]


def scores(table: pd.DataFrame) -> Figure:
    """What is lost against the true prior, by case and form: each seed, and their mean."""
    rows = select(table, panel="score")
    with style():
        figure = Figure(figsize=(DOUBLE, 2.7), layout="constrained")
        ax = figure.subplots()
        ax.axhline(0, color=COLOURS["reference"], linewidth=0.8)
        for index, (form, (colour, marker)) in enumerate(FORM_LOOK.items()):
            for position, case in enumerate(CASES):
                part = select(rows, form=form, case=case)
                at = position + 0.16 * (index - (len(FORM_LOOK) - 1) / 2)
                seeds = at + 0.035 * (np.arange(len(part)) - (len(part) - 1) / 2)
                ax.errorbar(
                    seeds, part.behind.to_numpy(), 2 * part.behind_se.to_numpy(),
                    color=colour, marker=marker, markersize=3.2, linestyle="none",
                    elinewidth=0.7, label=form if position == 0 else None,
                )  # fmt: skip
                ax.hlines(part.behind.mean(), at - 0.06, at + 0.06, color=colour, linewidth=1.6)
        ax.set_xticks(range(len(CASES)), [TITLES[case] for case in CASES])
        ax.set_yscale("symlog", linthresh=LINEAR)
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}".replace("-", "−")))
        ax.set_ylabel(f"behind the true prior, nats a point\n(linear within ± {LINEAR:g})")
        figure.supxlabel(
            "marks: seeds; bars: ± 2 standard errors; dashes: means over seeds; after "
            f"{rows.steps.max():,} steps of descent",
            fontsize=7,
        )
        figure.legend(
            *ax.get_legend_handles_labels(), loc="outside upper center", ncols=5, frameon=False
        )
    return figure
