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
from studies.shrinkage.measure import FORMS, OWN, SUPPORT, TRUTH
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
    """How often the layer is found, by how much, what is left elsewhere, and what it is worth."""
    found = detection(table)
    layers = select(table, panel="layer", form="block")
    layers = layers.assign(varying=layers.true_sd > 0, control=layers.case == "none")
    varying = select(layers, varying=True)
    other = select(layers, varying=False, control=False).prior_sd
    control = select(layers, control=True).prior_sd
    scores = select(table, panel="score")
    behind = scores[scores.case != "none"].groupby("form").behind.mean()
    told = {form: _told(select(found, form=form)) for form in found.form.unique()}
    worth = ", ".join(f"{behind[form]:.2f} ({form})" for form in FORMS)
    return (
        f"After {table.steps.max()} steps of joint descent the layer in which tasks differ has the "
        f"largest sd of the block prior in {told['block']} fits from the true network and in "
        f"{told[OWN]} from another one, of the diagonal prior in {told['diagonal']}, of "
        f"the low-rank one in {told['low-rank']}. "
        f"The block prior's sd there is {varying.prior_sd.min():.2f} to "
        f"{varying.prior_sd.max():.2f} where {varying.true_sd.mean():.1f} is true, and the layers "
        f"that do not vary keep {other.median():.3f} in the median (up to {other.max():.3f}; "
        f"{control.median():.3f} when no task differs). "
        f"With {SUPPORT} points of a new task, weighed without approximation, the learned priors "
        f"predict worse than the true one by {worth} nats a point."
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
    """As "7 of 9 (2.1 times the next in the median, missed 2 × middle)"."""
    missed = found[found.ratio <= 1].case.value_counts().sort_index()
    where = " and ".join(f"{count} × {case}" for case, count in missed.items())
    return (
        f"{(found.ratio > 1).sum()} of {len(found)} ({found.ratio.median():.1f} times the next in "
        f"the median{', missed ' if where else ''}{where})"
    )
