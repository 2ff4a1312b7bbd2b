"""`bm.fit` by the evidence beside lme4's glmer: the same tables, the same function maximised.

    timing   who is timed and how: interleaved repeats, both tools on one thread
    lme4     glmer in a process of R that stays open

Laplace's method on four fits, adaptive Gauss-Hermite quadrature with nine points where one weight
varies between tasks (glmer has none for two). Both tools start from the table in memory and end
with the fit. glmer counts with its defaults, and again without the finite differences that it adds
for its warnings about convergence (calc.derivs = FALSE).
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from bayesmeta.plots import COLOURS, DOUBLE, style
from bayesmeta.results import InputError
from studies._framework import Result, in_own_process

QUESTION = "Does bm.fit by the evidence reach glmer's log-likelihood, and in what time?"
OURS = "bayesmeta"
SAME = 0.01
SMALLEST_DRAWN = 1e-7


def run(quick: bool, device: str) -> Result:
    """Time everything in one other process; without R and lme4, only ours.

    Raises:
        InputError: `device` is not the CPU: glmer knows no other.
    """
    if device != "cpu":
        raise InputError(f"glmer compares on the CPU only: leave --device {device} out")
    rows = in_own_process("studies.glmer.timing", "quick" if quick else "full")
    table = pd.DataFrame(rows)
    ours = table[table["tool"] == OURS].set_index(["fit", "points"])
    where = pd.MultiIndex.from_frame(table[["fit", "points"]])
    table["nats_from_ours"] = table["log_likelihood"] - ours["log_likelihood"].loc[where].to_numpy()
    table["times_ours"] = table["seconds"] / ours["seconds"].loc[where].to_numpy()
    return Result(table)


def draw(table: pd.DataFrame) -> dict[str, Figure]:
    """The study's figures, by name."""
    return {
        "glmer": _figure(table),
    }


def headline(table: pd.DataFrame) -> str:
    """The largest difference in log-likelihood, and the range of times."""
    ours, theirs = table[table["tool"] == OURS], table[table["tool"] == "glmer"]
    time = f"{1e3 * ours['seconds'].min():.0f} to {1e3 * ours['seconds'].max():.0f} ms"
    if theirs.empty:
        return f"{len(ours)} fits take {time}; R with lme4 is not installed here, so no comparison."
    nats, ratios = theirs["nats_from_ours"].to_numpy(), theirs["times_ours"].to_numpy()
    verdict = "all" if (np.abs(nats) <= SAME).all() else "not all"
    faster = int((ratios > 1).sum())
    return (
        f"{len(ours)} fits differ from glmer's log-likelihood by {nats.min():.2g} to "
        f"{nats.max():+.2g} nats (glmer minus ours), {verdict} within {SAME:g}; they take {time}, "
        f"glmer {ratios.min():.2g} to {ratios.max():.2g} times as long (median "
        f"{np.median(ratios):.2g}; bm.fit is the faster in {faster} of {len(theirs)}), one thread."
    )


def _figure(table: pd.DataFrame) -> Figure:
    """Median seconds, from fastest to slowest repeat, and what glmer's log-likelihood lacks."""
    keys = list(dict.fromkeys(zip(table["fit"], table["points"], strict=True)))[::-1]
    looks = {
        OURS: ("o", COLOURS["joint"], COLOURS["joint"]),
        "glmer": ("s", COLOURS["reference"], COLOURS["reference"]),
        "glmer, calc.derivs = FALSE": ("s", COLOURS["reference"], "white"),
    }
    with style():
        figure = Figure(figsize=(DOUBLE, 1.1 + 0.3 * len(keys)), layout="constrained")
        times, nats = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
        for tool, (marker, colour, face) in looks.items():
            rows = table[table["tool"] == tool]
            places = [keys.index(k) for k in zip(rows["fit"], rows["points"], strict=True)]
            times.hlines(places, rows["fastest"], rows["slowest"], color=colour, linewidth=1)
            marks = {"linestyle": "", "marker": marker, "color": colour, "markerfacecolor": face}
            times.plot(rows["seconds"], places, label=tool, markersize=5, **marks)
            if tool != OURS:
                lacks = rows["nats_from_ours"].abs().clip(lower=SMALLEST_DRAWN)
                nats.plot(lacks, places, markersize=5, **marks)
        nats.axvline(SAME, color=COLOURS["reference"], linestyle="--")
        times.set(xscale="log", xlabel="seconds", title="one fit")
        nats.set(xscale="log", xlabel="|difference| (nats)", title="log-likelihood")
        nats.set_xlim(SMALLEST_DRAWN / 2, 0.1)
        times.set_yticks(range(len(keys)), [_name(*key) for key in keys])
        for ax in (times, nats):
            ax.grid(axis="y", linewidth=0.3)
        handles, names = times.get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=3, frameon=False)
    return figure


def _name(fit: str, points: int) -> str:
    return f"{fit}\n{'Laplace' if points == 1 else f'{points}-point quadrature'}"
