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
        "which_minimum_objective": figures.objective(table),
        "which_minimum_gradient": figures.gradient(table),
        "which_minimum_spread": figures.spread(table),
    }


def headline(table: pd.DataFrame) -> str:
    """Estimators in their standard errors, the implicit gradient beside both, and the smoothing."""
    rows = select(table, panel="point")
    early, late = (rows[rows.steps == steps] for steps in (rows.steps.min(), rows.steps.max()))
    score, pathwise, lost = z(rows, "score"), z(early, "pathwise"), z(late, "pathwise")
    moving = late[late.probability.abs() > 0.1 * late.total.abs()]
    share = moving.probability.abs() / (moving.probability.abs() + moving.location.abs())
    from_location = (late.implicit - late.location).abs()
    cold = late.temperature == late.temperature.min()
    from_total = (moving.implicit - moving.total).abs()
    return (
        f"Score lies within {score.max():.1f} standard errors of the exact d/dθ₀ E[g] in all "
        f"{len(rows)} cases and pathwise within {pathwise.max():.1f} in the {len(early)} with "
        f"T = {early.steps.iloc[0]} steps, but with T = {late.steps.iloc[0]} pathwise misses it by "
        f"more than 5 of its own in {(lost > 5).sum()} of {len(late)}: its exact sd, up to "
        f"{late.pathwise_sd.max():,.0f} a path (score {late.score_sd.max():.2g}), comes from paths "
        f"so rare that {int(late.paths.iloc[0]):,} need not hold one. "
        f"There the implicit gradient is {from_location.median():.2g} from the location part in "
        f"the median ({from_location[cold].median():.1g} at "
        f"τ = {late.temperature.min():g}), and {from_total.median():.2g} from the total in the "
        f"{len(moving)} cases where the probability part is over a tenth of it (its median share "
        f"there: {100 * share.median():.0f} %). "
        f"Noise smooths a jump of the deterministic objective as the normal predicted, of sd "
        f"√(τ(κ − λ))/κ for small steps, κ = −f''(θ₀), "
        f"within {100 * (smoothed(rows) - 1).abs().max():.1g} %."
    )


def smoothed(rows: pd.DataFrame) -> pd.Series:
    """At the jump, the sd of the normal as steep as P_b, over the one that is predicted."""
    rows = select(rows, theta0=JUMP)
    width = 1 / (math.sqrt(2 * math.pi) * rows.steepest)
    return width / rows.temperature.map(lambda tau: PROBLEM.smoothing(JUMP, tau))


def z(rows: pd.DataFrame, rule: str) -> pd.Series:
    """How far an estimate is from the exact total, in its standard errors."""
    return (rows[rule] - rows.total).abs() / rows[f"{rule}_se"]
