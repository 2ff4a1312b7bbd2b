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
    """Fixed points and the counter-example, which start is best when, and how rare all that is."""
    fits = select(table, panel="fixed point")
    bad = select(table, panel="example", case="example").iloc[0]
    every = select(table, panel="search")
    whole, inside = every.loc[every.pairs.idxmax()], every[every.high <= 1]
    several = int(whole.several_minima)
    return (
        f"{len(fits)} methods learn curvature-weighted averages of the optima, as in closed form "
        f"(fits within {fits.difference.max():.0e}), and MAML of convex losses need not be convex: "
        f"in the example its sum has {bad.proved_minima:.0f} proved minima with "
        f"{bad.barrier:.2g} nats between them, at αL = {bad.alpha_L:.2g}. "
        f"{_best(select(table, panel='adaptation'))}. "
        f"Such cases are rare and need long steps: {several} of {int(whole.pairs):,} random pairs "
        f"{'has' if several == 1 else 'have'} several minima, the proved one exceeds the condition "
        f"of Finn et al. (2019) {bad.over_bound:.0f} times, and of {int(inside.pairs.sum()):,} "
        f"pairs that keep it {int(inside.not_convex.sum()) or 'none'} lost its convexity."
    )


def _best(adapted: pd.DataFrame) -> str:
    """Whose start leaves the least loss after a few, some and many steps of adaptation."""
    least = adapted.loc[adapted.groupby("steps").loss.idxmin()].set_index("steps").method
    shown = sorted({n for n in (1, 5, int(least.index.max())) if n in least.index})
    starts = [f"of {figures.NAMES[least[n]].replace(',', ' with')} if n = {n}" for n in shown]
    return f"The start with the least loss after n steps of adaptation is that {', '.join(starts)}"
