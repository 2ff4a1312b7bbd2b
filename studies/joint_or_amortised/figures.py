"""The study's two figures: learning curves by family, and what each method costs and misses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from bayesmeta.plots import COLOURS, DOUBLE, LINES, MARKERS, style

DISTRIBUTIONS = ("joint, solved", "joint", "joint, restarted", "Laplace")
POINTS = ("joint points", "joint points, restarted", "variational iMAML", "iMAML", "MAML")
METHODS = (*DISTRIBUTIONS, *POINTS)
ROLES = {
    "Laplace": "laplace",
    "variational iMAML": "variational_imaml",
    "iMAML": "imaml",
    "MAML": "maml",
}
"""All others are joint fits."""
REFERENCES = {"oracle": ("truth", ":"), "pooled": ("full_pooling", "-.")}
FAMILIES = {
    "linear": ("o", "white"),
    "logistic": ("s", COLOURS["reference"]),
    "sinusoid": ("^", "black"),
    "schools": ("D", "white"),
}
WIDE = 5.0
"""From so large a ratio of NLLs on an axis is logarithmic."""
AT = 5


def select(table: pd.DataFrame, **values: Any) -> pd.DataFrame:
    """The rows with these values in these columns."""
    for column, value in values.items():
        table = table.loc[table[column] == value]
    return table


def curves(table: pd.DataFrame) -> Figure:
    """Predictive NLL of unseen tasks against their points, adapted as each method does."""
    rows = select(table, panel="curve", rule="own")
    families = list(dict.fromkeys(rows.family))
    with style():
        figure = Figure(figsize=(DOUBLE, 4.1), layout="constrained")
        axes = figure.subplots(2, len(families), sharex=True, squeeze=False)
        for column, family in enumerate(families):
            part = select(rows, family=family)
            for ax, names in zip(axes[:, column], (DISTRIBUTIONS, POINTS), strict=True):
                _curves(ax, part, names)
            if part.nll.max() > WIDE * part.nll.min() > 0:
                axes[1, column].set_yscale("log")
                axes[1, column].set_ylim(0.7 * part.nll.min(), 1.4 * part.nll.max())
                axes[1, column].yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
                axes[1, column].yaxis.set_major_formatter(FuncFormatter(_plain))
                axes[1, column].yaxis.set_minor_formatter(NullFormatter())
                _below(axes[1, column], part)
            axes[0, column].set_title(_title(part))
            axes[1, column].set_xlabel("points of the new task")
        for ax, kind in zip(axes[:, 0], ("posteriors", "points"), strict=True):
            ax.set_ylabel(f"{kind}\nNLL, nats per point")
        figure.supxlabel(
            "bars: 95 % intervals over unseen tasks; ↓ one that goes below 0 on a logarithmic axis",
            fontsize=7,
        )
        found = [ax.get_legend_handles_labels() for ax in axes[:, 0]]
        # A network has no "joint, solved"; the first family has every name.
        named = {
            name: mark for marks, names in found for mark, name in zip(marks, names, strict=True)
        }
        figure.legend(
            named.values(), named.keys(), loc="outside upper center", ncols=6, frameon=False,
            columnspacing=1.2, handlelength=2.2,
        )  # fmt: skip
    return figure


def _title(part: pd.DataFrame) -> str:
    """As "sinusoid (2 seeds)"."""
    seeds = int(part.seeds.max())
    return f"{part.family.iloc[0]} ({seeds} seed{'s' if seeds > 1 else ''})"


def _below(ax: Axes, part: pd.DataFrame) -> None:
    """Arrows at the lower edge where an interval has no place on the axis."""
    for name in POINTS:
        rows = select(part, method=name)
        for points in rows[rows.nll_low <= 0].points:
            ax.annotate("↓", (points, 0.0), xycoords=("data", "axes fraction"), ha="left",
                        va="bottom", fontsize=8, color=look(name)["color"])  # fmt: skip


def _plain(value: float, _: int | None = None) -> str:
    return f"{value:g}"


def _curves(ax: Axes, part: pd.DataFrame, names: tuple[str, ...]) -> None:
    points = sorted(set(part.points))
    for name, (role, line) in REFERENCES.items():
        rows = select(part, method=name)
        if len(rows):
            ax.plot(rows.points, rows.nll, color=COLOURS[role], linestyle=line, linewidth=1.0,
                    label=name)  # fmt: skip
    for place, name in enumerate(names):
        rows = select(part, method=name).sort_values("points")
        shift = 1.035 ** (place - (len(names) - 1) / 2)  # or intervals would hide each other
        ax.errorbar(
            rows.points * shift, rows.nll, [rows.nll - rows.nll_low, rows.nll_high - rows.nll],
            elinewidth=0.6, label=name, **look(name),
        )  # fmt: skip
    ax.set_xscale("log")
    ax.set_xticks(points, [f"{n:.0f}" for n in points])
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.minorticks_off()


def look(name: str) -> dict[str, Any]:
    """Colour, marker and line of a method."""
    role = ROLES.get(name, "joint")
    found = {"color": COLOURS[role], "marker": MARKERS[role], "linestyle": LINES[role]}
    found["markersize"] = 3.6
    if name.endswith("restarted"):
        return found | {"linestyle": ":", "markerfacecolor": "white"}
    if name.endswith("solved"):
        return found | {"linestyle": "none", "marker": "x", "markersize": 5.0}
    return found


def summary(table: pd.DataFrame) -> Figure:
    """A row per method and a mark per family: how good, how calibrated, how dear, how reachable."""
    curve, fits = (select(table, panel=panel) for panel in ("curve", "fit"))
    at = select(curve, points=AT)
    panels = [
        (
            "behind the best,\nnats per point\n(linear below 0.1)",
            behind(select(at, rule="own")),
            "symlog",
        ),
        (
            "the same by one\ndescent from θ₀\n(linear below 0.1)",
            behind(select(at, rule="descent")),
            "symlog",
        ),
        (
            "calibration error,\nshare of points",
            _values(select(at, rule="own"), "calibration"),
            "linear",
        ),
        ("time of the fit, s", _values(fits, "seconds"), "log"),
        (
            "missed by descent\nfrom θ₀, nats a task\n(linear below 1)",
            _values(fits, "missed_by_descent"),
            "symlog",
        ),
    ]
    with style():
        figure = Figure(figsize=(DOUBLE, 3.5), layout="constrained")
        axes = figure.subplots(1, len(panels), sharey=True)
        for ax, letter, (label, values, scale) in zip(axes, "abcde", panels, strict=True):
            _dots(ax, values)
            ax.set_title(f"({letter})", loc="left")
            ax.set_xlabel(label)
            if scale == "symlog":
                ax.set_xscale("symlog", linthresh=0.1 if letter != "e" else 1.0)
            else:
                ax.set_xscale(scale)
            ax.xaxis.set_major_formatter(FuncFormatter(_plain))
        axes[0].set_yticks(range(len(METHODS)), METHODS)
        axes[0].set_ylim(len(METHODS) - 0.5, -0.5)
        figure.supxlabel(
            f"means over seeds; (a) to (c) after {AT} points of a new task; no mark: not measured",
            fontsize=7,
        )
        figure.legend(
            *axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False
        )
    return figure


def behind(rows: pd.DataFrame) -> pd.DataFrame:
    """(method, family) of NLL above the least of the methods' in the family."""
    values = _values(rows, "nll")
    return values - values.min()


def _values(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """(method, family) of a column's means over seeds."""
    means = rows.groupby(["method", "family"])[column].mean().unstack("family")
    return means.reindex(index=list(METHODS))


def _dots(ax: Axes, values: pd.DataFrame) -> None:
    for place in range(len(METHODS)):
        ax.axhline(place, color=COLOURS["reference"], linewidth=0.3)
    shown = [family for family in FAMILIES if family in values]
    for index, family in enumerate(shown):
        marker, face = FAMILIES[family]
        at = np.arange(len(METHODS)) + 0.2 * (index - (len(shown) - 1) / 2)
        ax.plot(values[family], at, linestyle="none", marker=marker, color="black", markersize=3.8,
                markerfacecolor=face, markeredgewidth=0.7, label=family)  # fmt: skip
