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
    """Bias and variance on squared errors, bias on Poisson losses, and where descent ends."""
    squares, curved = (select(table, panel=p) for p in ("quadratic", "poisson"))
    few, many = int(squares.paths.min()), int(squares.paths.max())
    shared = select(squares, rule="shared").set_index("paths").bias
    separate = squares[squares.rule != "shared"]
    ratio = _over(squares, "variance", "split halves", "every pair")
    last = select(curved, paths=many).set_index("rule").bias
    ends = select(table, panel="descent")
    place = ends.groupby(["rule", "paths"])[["loss_at_mean", "spread"]].mean()
    apart, alike = place.loc[("every pair", 4)], place.loc[("mean loss", 1)]
    return (
        f"For squared errors they remove its bias: shared paths are off by {shared[few]:.0%} of "
        f"the gradient's length with {few} paths and by {shared[many]:.1%} with {many}, separate "
        f"ones by no more than {separate.largest_z.max():.1f} standard errors. "
        f"For Poisson losses all are biased, with {many} paths by {last['shared']:.1%} if shared, "
        f"{last['split halves']:.1%} in split halves and {last['every pair']:.1%} by every pair, "
        f"which for squared errors has {ratio.min():.1f} to {ratio.max():.1f} times less variance "
        f"than split halves. "
        f"Separate paths see only the loss at the mean of all ends, which descent brings to "
        f"{apart.loss_at_mean:.2f} nats in place of {alike.loss_at_mean:.2f}, but one end by "
        f"itself then costs {apart.spread:.2f} nats more than that mean in place of "
        f"{alike.spread:.2f}."
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
