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
SMALLEST_DRAWN = 1e-9
UNCHECKED = "glmer, calc.derivs = FALSE"


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
    fits = f"{len(ours)} fit{'s' * (len(ours) != 1)}"
    time = f"{_span(1e3 * ours['seconds'], '.0f')} ms"
    if theirs.empty:
        return f"Time of {fits}: {time}; R with lme4 is not installed here, so no comparison."
    nats, ratios = theirs["nats_from_ours"], theirs["times_ours"]
    within = int((nats.abs() <= SAME).sum())
    bare = table.loc[table["tool"] == UNCHECKED, "times_ours"]
    return (
        f"bayesmeta reaches glmer's log-likelihood within {SAME:g} nats in {within} of {fits}, "
        f"with differences of at most {nats.abs().max():.1g} nats and glmer's the higher in "
        f"{int((nats > 0).sum()) or 'none'}. "
        f"A fit by bayesmeta takes {time} on one thread and one by glmer "
        f"{_span(ratios, '.2g')} times as long, {ratios.median():.2g} in the median, "
        f"so that bayesmeta is the faster in {int((ratios > 1).sum()) or 'none'} of {len(theirs)}. "
        f"Beware that part of glmer's time goes into checking its convergence, and that without "
        f"this it takes {_span(bare, '.2g')} times as long."
    )


def _span(values: pd.Series, form: str) -> str:
    """From the least to the largest, as one number where they read the same."""
    low, high = f"{values.min():{form}}", f"{values.max():{form}}"
    return low if low == high else f"{low} to {high}"


LOOKS = {
    OURS: ("bayesmeta", "o", COLOURS["joint"], COLOURS["joint"]),
    "glmer": ("glmer", "s", COLOURS["reference"], COLOURS["reference"]),
    UNCHECKED: ("glmer without its convergence check", "D", COLOURS["reference"], "white"),
}
"""Name, marker, its edge and its face."""


def _figure(table: pd.DataFrame) -> Figure:
    """Median seconds, from fastest to slowest repeat, and what glmer's log-likelihood lacks."""
    keys = list(dict.fromkeys(zip(table["fit"], table["points"], strict=True)))[::-1]
    with style():
        figure = Figure(figsize=(DOUBLE, 1.3 + 0.34 * len(keys)), layout="constrained")
        times, nats = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
        for i, (tool, (label, marker, colour, face)) in enumerate(LOOKS.items()):
            rows = table[table["tool"] == tool]
            places = [
                keys.index(k) - 0.22 * (i - 1)
                for k in zip(rows["fit"], rows["points"], strict=True)
            ]
            times.hlines(places, rows["fastest"], rows["slowest"], color=colour, linewidth=1)
            marks = {"linestyle": "", "marker": marker, "color": colour, "markerfacecolor": face}
            times.plot(rows["seconds"], places, label=label, markersize=4, **marks)
            if tool != OURS:
                lacks = rows["nats_from_ours"].abs().clip(lower=SMALLEST_DRAWN)
                nats.plot(lacks, places, markersize=4, **marks)
        goal = f"within {SAME:g} nats: agreement"
        times.plot([], [], color=COLOURS["reference"], linestyle="--", label=goal)
        nats.axvline(SAME, color=COLOURS["reference"], linestyle="--")
        repeats = table["repeats"].max()
        times.set(xscale="log", title="time of one fit")
        times.set_xlabel(f"seconds (median; bar: fastest to slowest of {repeats})")
        nats.set(xscale="log", title="log-likelihood", xlabel="|glmer − bayesmeta|, nats")
        nats.set_xlim(SMALLEST_DRAWN / 3, 0.1)
        ticks = [SMALLEST_DRAWN, 1e-7, 1e-5, 1e-3, 1e-1]
        signs = ["≤ ", *[""] * (len(ticks) - 1)]
        labels = [f"{s}$10^{{{np.log10(t):.0f}}}$" for s, t in zip(signs, ticks, strict=True)]
        nats.set_xticks(ticks, labels)
        nats.minorticks_off()
        times.set_yticks(range(len(keys)), [_name(*key) for key in keys])
        times.set_ylim(-0.5, len(keys) - 0.5)
        for ax in (times, nats):
            for place in range(1, len(keys)):
                ax.axhline(place - 0.5, color=COLOURS["reference"], linewidth=0.3, zorder=0)
        handles, names = times.get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=4, frameon=False)
    return figure


def _name(fit: str, points: int) -> str:
    return f"{fit}\n{'Laplace' if points == 1 else f'{points}-point quadrature'}"
