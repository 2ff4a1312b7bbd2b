"""Time of a conjugate fit: `bm.fit`, statsmodels MixedLM and Pyro SVI on the same two tables.

    timing   who is timed and how: interleaved repeats in one process, on one thread
    svi      the same model and objective in Pyro

statsmodels is given each of its optimisers, and counts with the fastest that ends within
1e-3 nats of the maximum. Pyro SVI counts when its ELBO, computed exactly and off the clock, is
within 0.1 nats of the maximum: it is spared the steps that a person without that number would
still take. "Tuned" is the best of a grid of Adam's settings for that very table, the search not
counted; "untuned" is one setting for both.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bayesmeta.plots import COLOURS, DOUBLE, style
from bayesmeta.results import InputError
from studies._framework import Result, in_own_process

QUESTION = "How long does a linear-Gaussian fit take, beside statsmodels and Pyro SVI?"
SAME = 1e-3
SETTINGS = {
    "lbfgs": "L-BFGS",
    "bfgs": "BFGS",
    "nm then bfgs": "Nelder-Mead, BFGS",
    "cg": "conjugate gradients",
    "powell": "Powell",
}
"""Names of statsmodels' optimisers for a reader."""


def run(quick: bool, device: str) -> Result:
    """Time everything in one other process.

    Raises:
        InputError: `device` is not the CPU: statsmodels knows no other.
    """
    if device != "cpu":
        raise InputError(f"conjugate_time compares on the CPU only: leave --device {device} out")
    rows = in_own_process("studies.conjugate_time.timing", "quick" if quick else "full")
    table = pd.DataFrame(rows)
    ours = table[table["tool"] == "bayesmeta"].set_index("set")["seconds"]
    table["times_ours"] = table["seconds"] / table["set"].map(ours)
    return Result(table)


def draw(table: pd.DataFrame) -> dict[str, Figure]:
    """The study's figures, by name."""
    return {"conjugate_time": _figure(table)}


def headline(table: pd.DataFrame) -> str:
    """Seconds of each set, how many times as long the others take, and how they were counted."""
    ours = table[table["tool"] == "bayesmeta"]
    fits = " and ".join(f"{1e3 * r['seconds']:.0f} ms on {r['set']}" for _, r in ours.iterrows())
    sets = [rows for _, rows in table.groupby("set", sort=False)]
    theirs = [_fastest(rows, "statsmodels") for rows in sets]
    tuned, untuned = ([_setting(rows, word) for rows in sets] for word in ("tuned", "untuned"))
    return (
        f"A linear-Gaussian fit by bayesmeta takes {fits}, on one thread. "
        f"In the same order this takes statsmodels {_times(theirs)} as long by its fastest "
        f"optimiser that ends within {SAME:g} nats of the maximum, and Pyro SVI untuned "
        f"{_times(untuned)}. "
        f"Beware that SVI counts as soon as it is within 0.1 nats of the maximum{_tuning(tuned)}."
    )


def _tuning(tuned: list[pd.Series | None]) -> str:
    """What tuning is worth, where it was done."""
    if all(row is None for row in tuned):
        return ""
    return (
        f", and that tuning its settings to the very table leaves it at {_times(tuned)}, with the "
        "time of the search not counted"
    )


def _times(rows: list[pd.Series | None]) -> str:
    """Multiples of our time, set by set."""
    return " and ".join("never" if r is None else f"{r['times_ours']:.3g}×" for r in rows)


def _fastest(rows: pd.DataFrame, tool: str) -> pd.Series | None:
    """The tool's fastest setting that reaches the maximum."""
    arrived = rows[(rows["tool"] == tool) & (rows["nats_below_best"].abs() <= SAME)]
    return None if arrived.empty else arrived.loc[arrived["seconds"].idxmin()]


def _setting(rows: pd.DataFrame, word: str) -> pd.Series | None:
    chosen = rows[rows["setting"].str.startswith(f"{word}:")]
    return None if chosen.empty else chosen.iloc[0]


def _figure(table: pd.DataFrame) -> Figure:
    """Median seconds of every contender, from fastest to slowest repeat; a panel per set."""
    sets = list(table["set"].unique())
    with style():
        figure = Figure(figsize=(DOUBLE, 3.1), layout="constrained")
        panels = figure.subplots(1, len(sets), sharex=True, squeeze=False)[0]
        for ax, name in zip(panels, sets, strict=True):
            rows = table[(table["set"] == name) & np.isfinite(table["seconds"])]
            rows = rows.sort_values("seconds", ascending=False).reset_index(drop=True)
            for place, row in rows.iterrows():
                _contender(ax, row, place)
            ax.set(xscale="log", title=name, xlabel="seconds of one fit")
            ax.set_yticks(range(len(rows)), [_label(row) for _, row in rows.iterrows()])
            ax.margins(x=0.3)
        figure.legend(
            handles=_keys(table), loc="outside lower center", ncols=3, frameon=False
        )  # fmt: skip
    return figure


MARKS = {"bayesmeta": "o", "statsmodels": "s", "Pyro SVI": "^"}
OURS, OTHERS = COLOURS["joint"], COLOURS["reference"]


def _contender(ax: Axes, row: pd.Series, place: int) -> None:
    """Its median, repeats and multiple of our time, in one row of a panel."""
    colour = OURS if row["tool"] == "bayesmeta" else OTHERS
    bars = [[row["seconds"] - row["fastest"]], [row["slowest"] - row["seconds"]]]
    ax.errorbar(
        row["seconds"], place, xerr=bars, color=colour, elinewidth=1.2,
        marker=MARKS[row["tool"]], markersize=4.5,
        markerfacecolor=colour if _arrived(row) else "white",
    )  # fmt: skip
    ax.annotate(
        f"{row['times_ours']:.3g}×", (row["slowest"], place), (5, 0),
        textcoords="offset points", va="center", fontsize=7,
    )  # fmt: skip


def _arrived(row: pd.Series) -> bool:
    """SVI is stopped where it arrives."""
    return row["tool"] == "Pyro SVI" or abs(row["nats_below_best"]) <= SAME


def _keys(table: pd.DataFrame) -> list[Line2D]:
    """What marks, bars and numbers stand for."""
    few, many = table["repeats"].min(), table["repeats"].max()
    some = {"linestyle": "", "color": OTHERS, "markersize": 5}
    keys = [
        Line2D([], [], marker="o", linestyle="", color=OURS, markersize=5, label="bayesmeta"),
        Line2D([], [], marker="s", label=f"statsmodels, within {SAME:g} nats", **some),
        Line2D([], [], marker="^", label="Pyro SVI, until within 0.1 nats", **some),
        Line2D([], [], marker="_", label=f"fastest to slowest of {few} to {many} repeats", **some),
        Line2D([], [], marker="", linestyle="", label="number: median ÷ that of bayesmeta"),
    ]
    if not table.apply(_arrived, axis=1).all():
        hollow = {"marker": "s", "markerfacecolor": "white"}
        keys.insert(
            2, Line2D([], [], label=f"over {SAME:g} nats off or no number", **hollow, **some)
        )
    return keys


def _label(row: pd.Series) -> str:
    """A contender's name beside its row."""
    if row["tool"] == "bayesmeta":
        return "bayesmeta"
    setting = row["setting"].split(":")[0]
    return f"{row['tool']}, {SETTINGS.get(setting, setting)}"
