"""MAML on quadratics, and on the smooth convex losses after them, where a post stops in a question.

N. Golmant ("MAML for quadratics", 2018) finds one-step MAML's fixed point for two quadratic tasks,
an average of their optima weighted by A(I − αA)², and asks whether MAML of smooth convex losses is
convex and has one minimum. Here the averages of other methods stand beside it, each met by bm.fit,
and the question is answered by a counter-example that is proved, and by a search around it.
"""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from studies._framework import Result
from studies.quadratics import figures, measure
from studies.quadratics.figures import select

QUESTION = (
    "Which start does each method learn for two quadratics, when is it best, and is MAML of convex "
    "losses convex?"
)


def run(quick: bool, device: str) -> Result:
    """The measurements, one under the other; always on the CPU, where these sizes belong."""
    size = measure.QUICK if quick else measure.Size()
    parts = (
        *(measure.fixed_points(size), measure.eigenvalues(), measure.adaptations(size)),
        *(measure.counter_example(size), measure.searched(size)),
    )
    table = pd.DataFrame([row for part in parts for row in part])
    whole = ("steps", "proved_minima", "cells", "pairs", "most_minima")
    counts = ("not_convex", "sum_not_convex", "several_minima")
    table = table.astype(dict.fromkeys((*whole, *counts), "Int64"))
    return Result(table)


def draw(table: pd.DataFrame) -> dict[str, Figure]:
    """The study's figures, by name."""
    return {
        "quadratics": figures.weighted(table),
        "quadratics_adaptation": figures.adaptation(table),
        "quadratics_convexity": figures.convexity(table),
    }


def headline(table: pd.DataFrame) -> str:
    """Fixed points, which start is best when, the counter-example and the search."""
    fits = select(table, panel="fixed point")
    adapted = select(table, panel="adaptation")
    case = select(table, panel="example").set_index("case")
    bad, convex = case.loc["example"], case.loc["last convex"]
    ends = select(table, panel="descent", case="example").fit
    low, high = int((ends < 0).sum()), int((ends > 0).sum())
    every = select(table, panel="search")
    whole, inside = every.loc[every.pairs.idxmax()], every[every.high <= 1]
    kept, broken = int(inside.pairs.sum()), int(inside.not_convex.sum())
    counts = ["pairs", "not_convex", "several_minima"]
    beyond = whole[counts] - inside[counts].sum()
    return (
        f"Fits by {len(fits)} methods end within {fits.difference.max():.1g} of the "
        f"curvature-weighted averages in closed form; of {adapted.method.nunique()} starts the "
        f"best after n steps of adaptation is {_best(adapted)}. "
        f"For smooth, strongly convex losses one-step MAML need be neither convex nor of one "
        f"minimum: two tasks of one binary row each, under Gaussian priors, have "
        f"{bad.proved_minima:.0f} minima at αL = {bad.alpha_L:.3g} (proved by interval "
        f"arithmetic) with {bad.barrier:.2g} nats between them, {low} of {low + high} fits end in "
        f"the left one and {high} in the right, and both adapted losses are convex up to "
        f"αL = {convex.alpha_L:.2g}. "
        f"The condition of Finn et al. (2019), which this α exceeds {bad.over_bound:.0f} times, "
        f"is kept by {kept:,} of {int(whole.pairs):,} random pairs of losses, of which {broken} "
        f"have an adapted loss that is not convex; of the other {int(beyond.pairs):,}, "
        f"{beyond.not_convex / beyond.pairs:.1%} have (the first at {whole.first_not_convex:.2g} "
        f"times the condition), and {int(beyond.several_minima)} sums have several minima, at "
        f"most {int(whole.most_minima)}."
    )


def _best(adapted: pd.DataFrame) -> str:
    """Which start leaves the least loss, by ranges of the number of steps."""
    least = adapted.loc[adapted.groupby("steps").loss.idxmin()].sort_values("steps")
    runs = (least.method != least.method.shift()).cumsum()
    said = []
    for _, part in least.groupby(runs):
        first, last = int(part.steps.min()), int(part.steps.max())
        name = figures.NAMES[part.method.iloc[0]]
        said.append(f"{name} (n = {first}{f' to {last}' if last > first else ''})")
    return ", ".join(said)
