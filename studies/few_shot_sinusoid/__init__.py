"""MAML's sinusoids by eight methods, each with the same 120 seconds of one core.

    settings   what every method chose from
    tuning     how: two trials each, on validation tasks
    worker     one method in a process of its own: fit, adapt to unseen tasks, score

    y = A sin(x − φ),  A ~ U(0.1, 5),  φ ~ U(0, π),  x ~ U(−5, 5);  ReLU network 1-40-40-1

Training tasks are 4,000 with 20 rows, of which a method with a query set draws 10 at each step to
adapt to, as good as a stream of fresh ones; a step takes 25 of them. The 120 seconds are the core's
own, of the process and its compilers, from the call of `bm.fit` to the last outer step: starting up
and compiling count, tuning and the adaptation of the training tasks at the end of a fit do not. How
many outer steps that is, a run of 3 s more foretells, since the step size falls to 0 with the last;
the table has the seconds that it came to.

Test tasks get 5 or 10 points and are scored at 100 more. θ₀ is adapted by the method's own
algorithm, Newton steps for imaml_hf, in as many steps as the table says; `own` marks the number
that the method was fitted for. laplace and joint adapt to the end and learn a diagonal Σ₀; laplace
predicts at the mode, joint at the mean of 50 draws. A mean over tasks is ruled by those in which a
fixed step diverges, where there are any; the table has the median beside it.
"""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from bayesmeta.results import InputError
from studies._framework import Result, in_own_process
from studies.few_shot_sinusoid import drawing
from studies.few_shot_sinusoid.settings import CHOSEN
from studies.few_shot_sinusoid.worker import Size, measure

QUESTION = "After equal training time, how well does each method fit a sinusoid it has not seen?"
SECONDS = 120
SEED = 1
GOAL, GOAL_SECONDS = 0.9, 120
QUICK = Size(train=60, test=20, compile=False, steps=3)


def run(quick: bool, device: str) -> Result:
    """Every method with its chosen setting, one after the other.

    Raises:
        InputError: `device` is not the CPU, whose seconds are the budget.
    """
    if device != "cpu":
        raise InputError(
            f"few_shot_sinusoid counts the seconds of one CPU core: leave --device {device} out"
        )
    rows = []
    for name, trial in CHOSEN.items():
        if quick:
            rows += measure(name, trial, QUICK)
        else:
            module = "studies.few_shot_sinusoid.worker"
            rows += in_own_process(module, name, trial, SECONDS, SEED, "charge")
    table = pd.DataFrame(rows)
    return Result(table)


def draw(table: pd.DataFrame) -> dict[str, Figure]:
    """The study's figures, by name."""
    return {
        "few_shot_sinusoid": drawing.draw(table),
    }


def headline(table: pd.DataFrame) -> str:
    """MAML against its goal, and every method as it was fitted to adapt, from the table."""
    maml = _row(table, "maml", 10, "1")
    own = table[table["own"] & (table["points"] == 10)].sort_values("mse")
    others = ", ".join(
        f"{r['method']} {r['mse']:.3g} ({_steps(r['adaptation'])})" for _, r in own.iterrows()
    )
    ten = table[(table["points"] == 10) & table["adaptation"].isin(("10", "converged"))]
    best = ten.loc[ten["mse"].idxmin()]
    again = _row(table, best["method"], 5, best["adaptation"])
    spent = table["seconds"]
    return (
        f"With {maml['seconds']:.0f} s of one core MAML's squared error on unseen sinusoids is "
        f"{_interval(maml)} after one step on 10 points (goal: at most {GOAL:g} within "
        f"{GOAL_SECONDS} s). Adapted to 10 points as each was fitted to, in {spent.min():.0f} to "
        f"{spent.max():.0f} s, best first: {others}. After ten steps or to the end the smallest "
        f"error is {best['method']}'s, {_interval(best)} with 10 points and {_interval(again)} "
        f"with 5."
    )


def _row(table: pd.DataFrame, method: str, points: int, adaptation: str) -> pd.Series:
    rows = table[table["method"].eq(method) & table["points"].eq(points)]
    return rows[rows["adaptation"].eq(adaptation)].iloc[0]


def _interval(row: pd.Series) -> str:
    return f"{row['mse']:.3g} [{row['mse_low']:.3g}, {row['mse_high']:.3g}]"


def _steps(adaptation: str) -> str:
    return (
        "to the end"
        if adaptation == "converged"
        else f"{adaptation} steps".replace("1 steps", "1 step")
    )
