"""How E[g] of Langevin dynamics moves with θ₀: by where minima are, and by which is found.

After F. Huszár's notes on iMAML (inference.vc, 2019), "What is missing? Stochasticity": as the
anchor θ₀ moves, the minima move, and so do the probabilities of ending in each. With basins b,

    d/dθ₀ E[g] = Σ_b P_b dE[g | b]/dθ₀  +  Σ_b E[g | b] dP_b/dθ₀
                 location                  probability

One parameter, so that all of it is known exactly; the library's estimates stand beside it.
"""

from __future__ import annotations

import math

import pandas as pd
from matplotlib.figure import Figure

from studies._framework import Result
from studies.which_minimum import figures, measure
from studies.which_minimum.measure import JUMP, PROBLEM, select

QUESTION = (
    "With several minima, how does E[g] of SGLD move with θ₀, and which estimator sees which part?"
)


def run(quick: bool, device: str) -> Result:
    """Exact curves, and rows with the library's estimates beside the exact values."""
    size = measure.QUICK if quick else measure.Size()
    table = pd.DataFrame([*measure.curves(size), *measure.points(size, device)])
    table = table.astype({"steps": "Int64", "paths": "Int64"})
    return Result(table)


def draw(table: pd.DataFrame) -> dict[str, Figure]:
    """The study's figures, by name."""
    return {
        "which_minimum_law": figures.law(table),
        "which_minimum_objective": figures.objective(table, _smoothed_off(table)),
        "which_minimum_gradient": figures.gradient(table),
        "which_minimum_spread": figures.spread(table),
    }


def headline(table: pd.DataFrame) -> str:
    """Who sees which part, what the implicit gradient lacks, and what pathwise hides."""
    rows = select(table, panel="point")
    early, late = (rows[rows.steps == steps] for steps in (rows.steps.min(), rows.steps.max()))
    lost = (z(late, "pathwise") > 5).sum()
    moving = late[late.probability.abs() > 0.1 * late.total.abs()]
    share = moving.probability.abs() / (moving.probability.abs() + moving.location.abs())
    from_location, from_total = (
        (part.implicit - part[name]).abs().median()
        for part, name in ((late, "location"), (moving, "total"))
    )
    return (
        f"Score sees all of dE[g]/dθ₀, within {z(rows, 'score').max():.1f} standard errors in "
        f"{len(rows)} cases, pathwise too after {early.steps.iloc[0]} steps "
        f"({z(early, 'pathwise').max():.1f}), and the implicit gradient only that minima move: "
        f"after {late.steps.iloc[0]} steps it is {from_location:.2g} from this part in the median. "
        f"Where the probability of each minimum moves too ({len(moving)} cases), that part is "
        f"{share.median():.0%} of both in the median, and the implicit gradient is "
        f"{from_total:.2g} from the total. "
        f"Beware of pathwise after {late.steps.iloc[0]} steps: it misses by over 5 of its own "
        f"standard errors in {lost} of {len(late)} cases, as its exact sd, up to "
        f"{late.pathwise_sd.max():,.0f} a path (score {late.score_sd.max():.2g}), comes from paths "
        f"too rare for {int(late.paths.iloc[0]):,} to hold one."
    )


def _smoothed_off(table: pd.DataFrame) -> float:
    """The largest relative error of the width that is predicted for a smoothed jump."""
    return float((smoothed(select(table, panel="point")) - 1).abs().max())


def smoothed(rows: pd.DataFrame) -> pd.Series:
    """At the jump, the sd of the normal as steep as P_b, over the one that is predicted."""
    rows = select(rows, theta0=JUMP)
    width = 1 / (math.sqrt(2 * math.pi) * rows.steepest)
    return width / rows.temperature.map(lambda tau: PROBLEM.smoothing(JUMP, tau))


def z(rows: pd.DataFrame, rule: str) -> pd.Series:
    """How far an estimate is from the exact total, in its standard errors."""
    return (rows[rule] - rows.total).abs() / rows[f"{rule}_se"]
