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
GOAL = 0.9
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
    """The best as fitted, the others and MAML beside its goal, and what the means hide."""
    own = table[table["own"] & (table["points"] == 10)].sort_values("mse")
    best, second, last = own.iloc[0], own.iloc[1], own.iloc[-1]
    again = _row(table, best["method"], 5, best["adaptation"])
    maml, spent = _row(table, "maml", 10, "1"), table["seconds"]
    return (
        f"After {spent.min():.0f} to {spent.max():.0f} s of one core each, {_name(best)} fits "
        f"unseen sinusoids best, with a mean squared error of {best['mse']:.3f} (95 % interval "
        f"{best['mse_low']:.3f} to {best['mse_high']:.3f}) from 10 points and {again['mse']:.3f} "
        f"from 5. "
        f"Adapted from 10 points as it was fitted to be, the next is {_name(second)} with "
        f"{second['mse']:.3f}, the last {_name(last)} with {last['mse']:.3f}, and MAML comes to "
        f"{maml['mse']:.3f} after one step, where {GOAL:g} was the goal. "
        f"{_caution(table)}"
    )


def _caution(table: pd.DataFrame) -> str:
    """Of means that a few tasks rule, and most of all those that diverged."""
    off = table[table["mse"] > drawing.HIGHEST]
    if off.empty:
        ratio = (table["mse"] / table["mse_median"]).max()
        return f"Beware of means, which hard tasks rule: up to {ratio:.2g} times the median."
    names = " and ".join(drawing.NAMES[name] for name in dict.fromkeys(off["method"]))
    points = " or ".join(map(str, dict.fromkeys(off["points"])))
    return (
        f"Beware of several steps from {points} points by {names}: a few tasks diverge, so the "
        f"mean is {off['mse'].min():,.0f} or more where the median task's error is "
        f"{off['mse_median'].min():.2f} to {off['mse_median'].max():.2f}."
    )


def _row(table: pd.DataFrame, method: str, points: int, adaptation: str) -> pd.Series:
    rows = table[table["method"].eq(method) & table["points"].eq(points)]
    return rows[rows["adaptation"].eq(adaptation)].iloc[0]


def _name(row: pd.Series) -> str:
    return drawing.NAMES[row["method"]]
