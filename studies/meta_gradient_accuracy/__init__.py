"""Meta-gradients in θ₀ against the closed form, as in Figure 2a, Table 1 and Lemma 3 of iMAML.

Rajeswaran et al. (2019) call the distance to the gradient at the true minimum of the anchored loss
the exact-solve error (their Definition 3). Here it is relative, task by task.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from studies._framework import Result
from studies.meta_gradient_accuracy import figures, measure
from studies.meta_gradient_accuracy.figures import select
from studies.meta_gradient_accuracy.measure import FEW_CG, TARGET

QUESTION = "How close is each meta-gradient to the exact one, after how many steps?"
PAPER = {
    "GD unrolled": 1.0,
    "GD implicit": 1.0,
    "Nesterov unrolled": 0.5,
    "Nesterov implicit": 0.5,
    "CG": 0.5,
}
QUICK = measure.Size(
    kappa=20, steps=(10, 32), sweep=(5, 20), unrolled=20, dim=8, tasks=2, cg_dim=60
)


def run(quick: bool, device: str) -> Result:
    """The four measurements, one under the other."""
    size = QUICK if quick else measure.Size()
    parts = (measure.accuracy, measure.cg_steps, measure.growth, measure.lemma3)
    table = pd.DataFrame([row for part in parts for row in part(size, device)])
    whole = ["steps", "cg_steps", "recorded", "task"]  # some panels have none: whole, but nullable
    table = table.astype(dict.fromkeys(whole, "Int64"))
    return Result(table)


def draw(table: pd.DataFrame) -> dict[str, Figure]:
    """The study's figures, by name."""
    slopes = {method: (slope(table, method), paper) for method, paper in PAPER.items()}
    return {
        "meta_gradient_accuracy": figures.accuracy(table),
        "meta_gradient_accuracy_growth": figures.growth(table, slopes),
    }


def headline(table: pd.DataFrame) -> str:
    """Accuracy, growth and bound, from the table."""
    near = select(table, panel="accuracy")
    enough = int(max(near["cg_steps"].dropna().tolist()))
    fast = select(near, method="Nesterov implicit")
    last = select(fast, steps=fast["steps"].max())
    gains = _gains(near, enough)
    few = select(table, panel="cg", cg_steps=max(FEW_CG)).error.median()
    bound = select(table, panel="lemma3")
    slack = (bound.bound / bound.error)[bound.cg_steps == enough]
    return (
        f"At condition number κ = {near.kappa.iloc[0]:g} the implicit meta-gradient is within "
        f"{last.error.max():.0e} of the exact one (relative) after {int(last.steps.iloc[0]):,} "
        f"steps of Nesterov's method and {enough} of conjugate gradients. "
        f"After equally many steps of gradient descent its error is below that of unrolling in "
        f"{int((gains > 1).sum())} of {len(gains)} cases, and the steps to {TARGET:g} grow as κ to "
        f"the power {slope(table, 'GD implicit'):.2f}, with Nesterov's method "
        f"{slope(table, 'Nesterov implicit'):.2f}. "
        f"Beware of few steps of conjugate gradients, as {max(FEW_CG)} leave an error of "
        f"{few:.2g}, and of the bound in Lemma 3 of Rajeswaran et al. (2019), which holds in "
        f"{int((bound.error <= bound.bound).sum())} of {len(bound)} cases but is up to "
        f"{slack.max():.2g} times the error."
    )


def slope(table: pd.DataFrame, method: str) -> float:
    """The power of κ with which a method's steps to the target grow: least squares, log-log."""
    part = select(table, panel="growth", method=method)
    steps = part.steps.to_numpy(dtype=float)
    return float(np.polyfit(np.log(part.kappa.to_numpy(dtype=float)), np.log(steps), 1)[0])


def _gains(table: pd.DataFrame, enough: int) -> pd.Series:
    """By task and steps of gradient descent, the unrolled error over the implicit one."""
    unrolled, implicit = (
        part.set_index(["task", "steps"])["error"]
        for part in (
            select(table, method="GD unrolled"),
            select(table, method="GD implicit", cg_steps=enough),
        )
    )
    return pd.Series(unrolled / implicit)
