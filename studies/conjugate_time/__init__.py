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
from matplotlib.figure import Figure

from bayesmeta.plots import COLOURS, DOUBLE, style
from bayesmeta.results import InputError
from studies._framework import Result, in_own_process

QUESTION = "How long does a linear-Gaussian fit take, beside statsmodels and Pyro SVI?"
SAME = 1e-3
PLOT = "conjugate_time"


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
    return {
        PLOT: _figure(table),
    }


def headline(table: pd.DataFrame) -> str:
    """Seconds of each set, and how many times as long the others take."""
    said = []
    for name, rows in table.groupby("set", sort=False):
        rest = {
            "statsmodels": _fastest(rows, "statsmodels"),
            "Pyro SVI tuned": _setting(rows, "tuned"),
            "Pyro SVI untuned": _setting(rows, "untuned"),
        }
        ours = rows.loc[rows["tool"] == "bayesmeta", "seconds"].item()
        others = ", ".join(
            f"{tool} {row['times_ours']:.3g}×" for tool, row in rest.items() if row is not None
        )
        said.append(f"{name} {1e3 * ours:.0f} ms ({others})")
    return (
        "; ".join(said) + ": the time of bm.fit, and theirs as its multiple, at the same "
        f"log-likelihood (statsmodels within {SAME:g} nats, SVI within 0.1), one thread."
    )


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
        figure = Figure(figsize=(DOUBLE, 2.6), layout="constrained")
        panels = figure.subplots(1, len(sets), sharex=True, squeeze=False)[0]
        for ax, name in zip(panels, sets, strict=True):
            rows = table[(table["set"] == name) & np.isfinite(table["seconds"])]
            rows = rows.sort_values("seconds", ascending=False).reset_index(drop=True)
            labels = []
            for place, row in rows.iterrows():
                labels.append(_label(row))
                ours = row["tool"] == "bayesmeta"
                same = row["tool"] == "Pyro SVI" or abs(row["nats_below_best"]) <= SAME
                colour = COLOURS["joint" if ours else "reference"]
                ax.plot([row["fastest"], row["slowest"]], [place, place], color=colour)
                ax.plot(
                    row["seconds"], place, color=colour, markersize=5,
                    marker={"bayesmeta": "o", "statsmodels": "s", "Pyro SVI": "^"}[row["tool"]],
                    markerfacecolor=colour if same else "white",
                )  # fmt: skip
                ax.annotate(
                    f"{row['times_ours']:.3g}×", (row["slowest"], place), (5, 0),
                    textcoords="offset points", va="center", fontsize=7,
                )  # fmt: skip
            ax.set(xscale="log", title=name, xlabel="seconds")
            ax.set_yticks(range(len(labels)), labels)
            ax.margins(x=0.25)
        if (table["tool"].ne("Pyro SVI") & table["nats_below_best"].abs().gt(SAME)).any():
            figure.supxlabel(f"hollow: ends more than {SAME:g} nats off the maximum", fontsize=7)
    return figure


def _label(row: pd.Series) -> str:
    if row["tool"] == "bayesmeta":
        return "bayesmeta"
    return f"{row['tool']}, {row['setting'].split(':')[0]}"
