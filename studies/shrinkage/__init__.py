"""Which layer do tasks differ in? A learned Λ = Σ₀⁻¹ as the answer, in every form.

After Chen et al. (2019), "Modular meta-learning with shrinkage": a prior with a variance of its own
for each module shrinks those that need not move. Here one network is shared but for one layer, so
that the true variances are known: 0.3² in that layer, and 0 in the others.
"""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from studies._framework import Result
from studies.shrinkage import figures, measure
from studies.shrinkage.figures import select
from studies.shrinkage.measure import OWN, SUPPORT, TRUTH
from studies.shrinkage.problem import LAYERS

QUESTION = "If tasks differ in one layer of a network only, does a learned prior find that layer?"


def run(quick: bool, device: str) -> Result:
    """All forms in all cases, and the two figures."""
    size = measure.QUICK if quick else measure.Size()
    return Result(pd.DataFrame(measure.measured(size, device)))


def draw(table: pd.DataFrame) -> dict[str, Figure]:
    """The study's figures, by name."""
    return {
        "shrinkage": figures.layers(table),
        "shrinkage_scores": figures.scores(table),
    }


def headline(table: pd.DataFrame) -> str:
    """How often the layer is found, how well and what that is worth, and where it is missed."""
    found = detection(table)
    block, other = (select(found, form=form) for form in ("block", OWN))
    layers = select(table, panel="layer", form="block")
    varying = layers[layers.true_sd > 0]
    scores = select(table, panel="score")
    behind = scores[scores.case != "none"].groupby("form").behind.mean()
    steps = f"{table.steps.max():,}"
    return (
        f"After {steps} steps of descent a block prior has its largest sd in the layer in which "
        f"tasks differ in {_told(block)} fits from the true network, and in {_told(other)} from "
        f"another one. "
        f"Its sd there is {varying.prior_sd.min():.2f} to {varying.prior_sd.max():.2f} where "
        f"{varying.true_sd.mean():.1f} is true, and with {SUPPORT} points of a new task it "
        f"predicts worse than the true prior by {behind['block']:.2f} nats a point, the isotropic "
        f"prior by {behind['isotropic']:.2f}. "
        f"From the true network it misses {_missed(block)}, and beware that nothing here shows "
        f"{steps} steps to be enough: all this is of that budget."
    )


def detection(table: pd.DataFrame) -> pd.DataFrame:
    """By fit, the sd of the layer that varies over the largest of the others.

    An isotropic prior cannot tell layers apart, and the true one need not.
    """
    rows = select(table, panel="layer")
    rows = rows[(rows.case != "none") & ~rows.form.isin([TRUTH, "isotropic"])]
    fits = rows.assign(varying=rows.true_sd > 0).groupby(["form", "case", "seed", "varying"])
    apart = fits.prior_sd.max().unstack("varying").reset_index()
    assert len(LAYERS) * len(apart) == len(rows)
    return apart.assign(ratio=apart[True] / apart[False])


def _told(found: pd.DataFrame) -> str:
    """As "7 of 9"."""
    return f"{(found.ratio > 1).sum()} of {len(found)}"


def _missed(found: pd.DataFrame) -> str:
    """As "the middle layer in 2 of 3 fits", the one that is missed most often."""
    counts = (found.ratio <= 1).groupby(found.case).agg(["sum", "count"])
    most = counts["sum"].idxmax()
    missed, fits = counts.loc[most]
    if not missed:
        return "no layer"
    return f"the {most} layer in {missed} of {fits} fit{'s' if fits > 1 else ''}"
