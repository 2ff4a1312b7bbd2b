"""Separate forward and backward paths through stochastic gradient descent, against shared ones.

Cho (2019) asks for the slope of the query loss from one minibatch path and its pullback along
another. That is the gradient of g(E_z θ_z), the loss at the mean of all paths. Here it is compared
with K paths that meet their own slope, on tasks where all answers are known without drawing.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from studies._framework import Result
from studies.two_paths import figures, measure
from studies.two_paths.figures import select

QUESTION = "What do separate forward and backward paths change in a stochastic meta-gradient?"
QUICK = measure.Size(
    paths=(2, 8, 16), draws=2000, repeats=200, starts=5, runs=2, copies=10, steps=10, settled=5
)
ASYMPTOTIC = 8
"""From so many paths on a power is fitted."""


def run(quick: bool, device: str) -> Result:
    """The measurements, one under the other."""
    size = QUICK if quick else measure.Size()
    parts = (
        *(measure.quadratic, measure.poisson, measure.starts),
        *(measure.descents, measure.minima),
    )
    table = pd.DataFrame([row for part in parts for row in part(size, device)])
    table = table.astype(dict.fromkeys(["paths", "ahead", "estimates", "start", "run"], "Int64"))
    return Result(table)


def draw(table: pd.DataFrame) -> dict[str, Figure]:
    """The study's figures, by name."""
    slopes = {rule: slope(table, rule)[0] for rule in measure.RULES}
    return {
        "two_paths": figures.estimators(table, slopes),
        "two_paths_descent": figures.descent(table),
    }


def headline(table: pd.DataFrame) -> str:
    """Bias, variance, the power of K, and where descent ends, from the table."""
    squares, curved = (select(table, panel=p) for p in ("quadratic", "poisson"))
    few, many = int(squares.paths.min()), int(squares.paths.max())
    shared = select(squares, rule="shared").set_index("paths").bias
    separate = squares[squares.rule != "shared"]
    ratio = _over(squares, "variance", "split halves", "every pair")
    curved_cost = _over(curved, "rmse", "every pair", "shared")
    others = select(table, panel="starts")
    known, biases = others.variance_ratio, others.bias_ratio.dropna()
    powers = ", ".join(
        f"{rule} {slope(table, rule)[0]:.3f} ± {2 * slope(table, rule)[1]:.3f}"
        for rule in measure.RULES
    )
    last = select(curved, paths=many).set_index("rule").bias
    ends = select(table, panel="descent")
    place = ends.groupby(["rule", "paths"])[["loss_at_mean", "spread"]].mean()
    apart, alike = place.loc[("every pair", 4)], place.loc[("mean loss", 1)]
    off = select(squares, rule="shared").largest_z.max()
    return (
        f"For ∇g(E θ) of squared errors shared paths are off by {shared[few]:.0%} of its length "
        f"with {few} and {shared[many]:.1%} with {many} paths (within {off:.1f} standard errors of "
        f"the prediction), and separate ones within {separate.largest_z.max():.1f} of 0; every "
        f"pair has {ratio.min():.2f} to {ratio.max():.2f} times less variance than split halves at "
        f"equal draws (predicted at {len(known)} other starts: {known.min():.2f} to "
        f"{known.max():.2f}). For Poisson losses every rule is biased, by the number of paths "
        f"averaged ahead to the power of {powers}: with {many} paths by {last['shared']:.1%}, "
        f"{last['split halves']:.1%} and {last['every pair']:.1%} (shared paths by "
        f"{biases.min():.2g} to {biases.max():.2g} times as much as split halves at {len(biases)} "
        f"other starts), with {curved_cost.min():.2f} to {curved_cost.max():.2f} times the error "
        f"of shared paths for every pair. Descent ends where each rule's own objective is least "
        f"(within {ends.largest_z.max():.1f} standard errors): separate paths leave g(E θ) at "
        f"{apart.loss_at_mean:.3g} nats and the mean loss at {alike.loss_at_mean:.3g}, but the "
        f"spread of the ends, which separate paths do not see, adds {apart.spread:.3g} in place of "
        f"{alike.spread:.3g}."
    )


def _over(rows: pd.DataFrame, column: str, one: str, other: str) -> pd.Series:
    """By the number of paths, a column of one rule over that of another."""
    above, below = (select(rows, rule=r).set_index("paths")[column] for r in (one, other))
    return pd.Series(above / below)


def slope(table: pd.DataFrame, rule: str) -> tuple[float, float]:
    """The power that a rule's bias on Poisson losses goes with, and its standard error.

    Of the number of paths at whose mean the slope is taken: weighted least squares of log on log,
    from `ASYMPTOTIC` paths on.
    """
    part = select(table, panel="poisson", rule=rule)
    part = part[part.paths >= ASYMPTOTIC]
    bias, error = (part[name].to_numpy(dtype=float) for name in ("bias", "bias_error"))
    x, weight = np.log(part.ahead.to_numpy(dtype=float)), (bias / error) ** 2
    x = x - np.average(x, weights=weight)
    total = float((weight * x**2).sum())
    return float((weight * x * np.log(bias)).sum() / total), total**-0.5
