"""Fits that are killed at any moment, again and again, until they have ended.

A process loads the library once and forks each attempt; SIGKILL comes from outside at a moment
drawn uniformly over the time of the whole fit, and, counted apart, right before a change of a file
that is drawn from all that the fit makes, or with half of a file written. A fit that was killed is
gone on with by `bayesmeta fit --resume`, or by running its program again, and killed again. What it
ends with is held against a fit that nobody interrupted: every byte of prior, posteriors, trace and
data, and all that the record and the draws say but for the seconds and the note of having gone on.
"""

from __future__ import annotations

import json

import pandas as pd
from matplotlib.figure import Figure

from studies._framework import Result, in_own_process
from studies.interruption import figures
from studies.interruption.fits import KINDS, STEPS

QUESTION = "Is anything lost when a fit is killed, whatever it is doing?"
KILLS = {"random": 30, "aimed": 12, "SIGTERM": 3, "SIGINT": 3}
QUICK_KINDS, QUICK_KILLS = ("joint",), {"random": 3, "aimed": 2, "SIGTERM": 1}
QUICK_STEPS = 24


def run(quick: bool, device: str) -> Result:
    """A process kills the fits one after another; a row per kill."""
    asked = {
        "kinds": QUICK_KINDS if quick else KINDS,
        "steps": QUICK_STEPS if quick else STEPS,
        "kills": QUICK_KILLS if quick else KILLS,
    }
    rows = in_own_process("studies.interruption.harness", json.dumps(asked))
    table = pd.DataFrame(rows)
    return Result(table.assign(redone=table["step"] - table["found"]))


def draw(table: pd.DataFrame) -> dict[str, Figure]:
    """The study's figures, by name."""
    return {"interruption": figures.redone(table)}


def headline(table: pd.DataFrame) -> str:
    """How many kills, what was lost, and what was done twice."""
    killed, asked = table[table["how"].isin(figures.KILLED)], table[table["how"].str.match("SIG")]
    where = killed["where"].value_counts()
    fits = table.groupby("fit").first()
    unreadable = int(table["bad_checkpoints"].sum() + table["lost_run"].sum())
    again = fits[~fits["identical"]]
    places = ", ".join(f"{count} while {place}" for place, count in where.items())
    random = killed[killed["how"] == "random"]
    return (
        f"{len(killed)} kills ({len(random)} at random moments, the others at chosen changes of a "
        f"file; {places}) and {len(asked)} SIGTERM and SIGINT hit {len(fits)} fits of "
        f"{fits['kind'].nunique()} kinds, and {fits['identical'].sum()} ended with the bits of the "
        f"fit that nobody interrupted{_but(again)}. Checkpoints or runs found unreadable after "
        f"them: {unreadable}; files left over at the end: {fits['leftovers'].sum()}; logs with a "
        f"gap: {fits['log_gap'].sum()}. With a checkpoint every {_only(table['every'])} of "
        f"{_only(table['steps'])} steps a kill had {killed['redone'].max()} steps done again at "
        f"most and {killed['redone'].median():g} in the median, a signal {asked['redone'].max()} "
        "at most."
    )


def _but(others: pd.DataFrame) -> str:
    return f" (not {', '.join(others.index)})" if len(others) else ""


def _only(column: pd.Series) -> str:
    (value,) = column.unique()
    return str(value)
