"""What tables show for the advice in `studies/_which.py`, a sentence each.

A sentence whose table is against the advice beside it is refused: the advice has to change then.
"""

from __future__ import annotations

import math

import pandas as pd

from bayesmeta.results import InputError
from studies._said import (
    adapted,
    at,
    at_least,
    at_most,
    count,
    finite,
    fitted_coverage,
    listed,
    nats,
    percent,
    span,
    tied,
    whole,
)
from studies.any_optimiser.findings import BASE, algorithms, ratio
from studies.calibration.figures import HIGH, select
from studies.calibration.fitted import AVOIDING, LIKELIHOOD
from studies.calibration.measure import NEW_ROW, SAID
from studies.few_shot_sinusoid.drawing import NAMES
from studies.shrinkage import detection
from studies.shrinkage.problem import LAYERS
from studies.sinusoid_prior import LEVEL

SAME = 0.01
"""Nats within which two fits are the same."""
FEW = 30
"""Tasks, below which a fitted prior is too narrow."""


def _borne_out(said: str, *conditions: bool) -> str:
    """The sentence.

    Raises:
        InputError: a condition of the advice is not met.
    """
    if not all(conditions):
        raise InputError(f"the table does not bear the advice out: {said}")
    return said


def _took(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 60 else f"{seconds / 60:.0f} min"


def exact(table: pd.DataFrame) -> str:
    """Of `reference_fits`."""
    off = whole(table.loc[table["criterion"] != "ELBO", "nats"]).abs()
    return _borne_out(
        f"the log-likelihood is within {at_most(off.max())} nats of that of lme4, nlme or "
        f"statsmodels in {count(len(off), 'fit')}",
        off.max() < SAME,
    )


def points(table: pd.DataFrame) -> str:
    """Of `joint_or_amortised`."""
    rows = table[(table["panel"] == "curve") & (table["rule"] == "own") & (table["points"] == 2)]
    nll = rows[rows["family"] == "linear"].set_index("method")["nll_median"]
    ours = at(nll, "joint, solved")
    others = whole(nll[nll.index.isin(["iMAML", "variational iMAML", "MAML"])]).sort_values()
    told = [f"{name} {nats(value)}" for name, value in others.items()]
    return _borne_out(
        f"nats a point on the median new line after 2 of its points: this {nats(ours)}, "
        f"{', '.join(told)}",
        ours < others.iloc[0],
    )


def few_weights(table: pd.DataFrame) -> str:
    """Of `laplace_nuts`."""
    whole(table["mean_difference"])
    off = table.assign(off=table["mean_difference"].abs()).groupby("method")["off"].median()
    joint, laplace = at(off, "joint"), at(off, "laplace")
    sampling = whole(table["mean_mcse"]).max()
    return _borne_out(
        f"in the median posterior means of yes/no tasks lie {100 * joint:.1f} % of an sd from "
        f"those of NUTS (sampling), whose own error is up to {100 * sampling:.1f} %; "
        f"with `method=m.laplace()` {percent(laplace)}",
        joint < laplace,
    )


def glmer(table: pd.DataFrame) -> str:
    """Of `glmer`."""
    off = whole(table.loc[table["tool"] == "glmer", "nats_from_ours"]).abs()
    return _borne_out(
        f"the log-likelihood is within {at_most(off.max())} nats of glmer's at equal nAGQ in "
        f"{count(len(off), 'fit')}",
        off.max() < SAME,
    )


def small_network(table: pd.DataFrame) -> str:
    """Of `joint_or_amortised`."""
    rows = table[(table["panel"] == "curve") & (table["rule"] == "own") & (table["points"] == 5)]
    rows = rows[(rows["family"] == "sinusoid") & ~rows["method"].isin(["oracle", "pooled"])]
    rows = rows.set_index("method")
    nll = whole(rows["nll"]).sort_values()
    told = [
        f"{name} {nats(nll[name])}"
        for name in nll.index
        if name in ("Laplace", "joint", "MAML", "iMAML")
    ]
    return _borne_out(
        f"nats a point after 5 points of an unseen sinusoid: {', '.join(told)}",
        tied(rows.loc[nll.index], "nll_low", "nll_high") == ["Laplace"],
    )


def uncertain_network(table: pd.DataFrame) -> str:
    """Of `sinusoid_prior`."""
    few = table[table["points"] == 3].set_index("method")
    ours = at(few["nll"], "fitted prior")
    one, each = at(few["nll"], "full pooling"), at(few["nll"], "no pooling")
    held = at(few["coverage"], "fitted prior")
    within = 2 * at(few["nll_se"], "fitted prior")
    return _borne_out(
        f"with 3 points of a new sinusoid {nats(ours)} nats a point, and {percent(held)} of new "
        f"points in {percent(LEVEL)} intervals; one network for all tasks {nats(one)} nats, one "
        f"for each task {each:.0f} nats",
        ours + within < min(one, each),
        held + 2 * at(few["coverage_se"], "fitted prior") >= LEVEL,
    )


def best_start(table: pd.DataFrame) -> str:
    """Of `few_shot_sinusoid`."""
    seconds, best = adapted(table, 10)
    first = [f"{NAMES[name]} {best['mse'][name]:.3f}" for name in best.index[:3]]
    step = table[(table["points"] == 10) & (table["adaptation"].astype(str) == "1")]
    step = step[step["method"] != "imaml_hf"].sort_values("mse").set_index("method")
    quick = tied(step, "mse_low", "mse_high")
    once = [f"{NAMES[name]} {at(step['mse'], name):.3f}" for name in quick]
    return _borne_out(
        f"squared error on new sinusoids with ten points after {seconds} s of training, each at "
        f"its best number of steps: {listed(first)}; after one gradient step {listed(once)}",
        set(best.index[:2]) == {"laplace", "variational_imaml"},
        len(tied(best.iloc[1:], "mse_low", "mse_high")) == 1,
        set(quick) <= {"maml", "fomaml"},
    )


def images(table: pd.DataFrame) -> str:
    """Of `omniglot`."""
    main = select(table, part="table", split="random", ways=5, shots=1)
    right = whole(main["inductive_accuracy"]).sort_values(ascending=False)
    best = main.loc[right.index].set_index("method")
    whole(best["seconds"])
    told = [
        f"{name} {row['inductive_accuracy']:.0f} % in {_took(row['seconds'])}"
        for name, row in best.head(3).iterrows()
    ]
    wrong, half = 100 - best["inductive_accuracy"], best["inductive_half_width"]
    ends = pd.DataFrame({"low": wrong - half, "high": wrong + half})
    return _borne_out(
        "5-way 1-shot Omniglot, right answers and time of training, each query image by itself: "
        f"{'; '.join(told)}",
        set(best.index[:2]) == {"MAML", "iMAML, gradient descent"},
        len(tied(ends.iloc[1:], "low", "high")) == 1,
    )


def memory(table: pd.DataFrame) -> str:
    """Of `compute_memory`."""
    inner = table[table["part"] == "inner"]
    flat = inner[inner["rule"] == "imaml"]
    most = int(whole(inner.loc[inner["rule"] == "maml", "inner_steps"]).max())
    at_end = inner[inner["inner_steps"] == most].set_index("rule")
    full, again = (at(at_end["peak_mib"], rule) for rule in ("maml", "maml_checkpoint"))
    times = at(at_end["seconds"], "maml_checkpoint") / at(at_end["seconds"], "maml")
    held = whole(flat["peak_mib"])
    return _borne_out(
        f"a Conv4 task's gradient by iMAML takes {held.max():.0f} MiB with "
        f"{span(flat['inner_steps'])} inner steps; by MAML {full:,.0f} MiB with {most}, with "
        f"steps computed again {again:.0f} MiB and {times:.1f} times as long",
        held.max() <= 1.05 * held.min(),
        max(held.max(), again) < full,
    )


def layers(table: pd.DataFrame) -> str:
    """Of `shrinkage`."""
    whole(select(table, panel="layer")["prior_sd"])
    found = detection(table)
    fits = found.groupby("form").size()
    right = found[found["ratio"] > 1].groupby("form").size().reindex(fits.index, fill_value=0)
    trained, other = (int(at(right, form)) for form in ("block", "block, other start"))
    chance = at(fits, "block") / len(LAYERS)
    scores = table[(table["panel"] == "score") & (table["case"] != "none")]
    whole(scores["behind"])
    behind = scores.groupby("form")["behind"].mean()
    lost = {name: at(behind, name) for name in ("low-rank", "block", "isotropic")}
    told = ", ".join(f"{name} {nats(value)}" for name, value in lost.items())
    return _borne_out(
        f"the layer that differs has the largest sd of a block prior in {trained} of "
        f"{at(fits, 'block'):.0f} fits that start at the network tasks differ from ({chance:.0f} "
        f"by chance), in {other} of {at(fits, 'block, other start'):.0f} that start elsewhere; "
        f"nats a point behind the true prior: {told}",
        trained > chance,
        lost["low-rank"] == min(lost.values()),
    )


def few_tasks(table: pd.DataFrame) -> str:
    """Of `calibration`."""
    fitted = fitted_coverage(table)
    held, error = fitted["coverage"], fitted["coverage_se"]
    tasks = sorted({n for _, n in held.index})
    enough = [n for n in tasks if n >= FEW]
    if not enough or enough[0] == tasks[0]:
        raise InputError(f"the table needs fits to fewer than {FEW} tasks, and to more")
    (plain, mended), (many, as_many) = (
        [at(held, (form, n)) for form in (LIKELIHOOD, AVOIDING)] for n in (tasks[0], enough[0])
    )
    noise = math.hypot(*(at(error, (form, tasks[0])) for form in (LIKELIHOOD, AVOIDING)))
    return _borne_out(
        f"with {count(tasks[0], 'task')} {percent(HIGH)} intervals hold the truth in "
        f"{percent(plain)} of cases by maximum likelihood and {percent(mended)} with this; with "
        f"{enough[0]} in {percent(many)} and {percent(as_many)}",
        mended > plain + 2 * noise,
        many > HIGH - 0.03,
    )


def forms(table: pd.DataFrame) -> str:
    """Of `calibration`."""
    rows = select(table, part="held", level=HIGH, data="all", family="linear, ρ = 0.9")
    weights = rows[~rows["quantity"].isin([NEW_ROW, SAID])]
    whole(weights["coverage"])
    worst = weights.groupby("form")["coverage"].min()
    full, diagonal = at(worst, "best Gaussian"), at(worst, "best diagonal")
    return _borne_out(
        f"{percent(HIGH)} intervals of correlated weights, their sums and differences hold the "
        f"truth in at least {at_least(full)} of cases (full) and {at_least(diagonal)} (diagonal)",
        full > HIGH - 0.03,
        diagonal < full,
    )


def any_optimiser(table: pd.DataFrame) -> str:
    """Of `any_optimiser`."""
    new = algorithms(table, "none")
    whole(table.loc[table["seen"] == "none", "error"])
    said, higher = [], []
    for family in dict.fromkeys(table["family"]):
        there = table.loc[(table["seen"] == "none") & (table["family"] == family), "method"]
        if missing := sorted({BASE, "maml", "mixture"} - set(there)):
            raise InputError(f"the table has no new optimisers on {family} for {listed(missing)}")
        found = {name: ratio(table, family, name, new) for name in ("maml", "mixture")}
        maml, mixture = (
            f"{finite(one.middle, family):.2f}{' (undecided)' * (one.verdict == 'undecided')}"
            for one in found.values()
        )
        said.append(f"{maml} (MAML's start) and {mixture} (a mixture's) on {family}")
        higher.append(found["maml"].verdict == "higher")
    return _borne_out(
        f"by {count(len(new), 'optimiser')} new to every start the squared error is "
        f"{', '.join(said)} times that of `m.stochastic`",
        *higher,
    )


def two_paths(table: pd.DataFrame) -> str:
    """Of `two_paths`."""
    rows = table[table["panel"] == "quadratic"]
    fewest = whole(rows["paths"]).min()
    rows = rows[rows["paths"] == fewest].set_index("rule")
    same, apart = (abs(at(rows["bias"], rule)) for rule in ("shared", "every pair"))
    error = at(rows["bias_error"], "every pair")
    return _borne_out(
        f"a gradient that takes the same {count(fewest, 'run')} forward and back is off by "
        f"{percent(same)} of its length, by separate ones {100 * apart:.1f} ± {100 * error:.1f} %",
        apart < 3 * error,
        same > apart + 3 * error,
    )


def minima(table: pd.DataFrame) -> str:
    """Of `which_minimum`."""
    rows = table[table["panel"] == "point"]
    steep = rows[whole(rows["probability"]).abs() > 0.1 * whole(rows["total"]).abs()]
    length = steep["total"].abs()
    implicit, score = (
        finite((whole(steep[rule]) - steep["total"]).abs().div(length).median(), rule)
        for rule in ("implicit", "score")
    )
    return _borne_out(
        "where the start decides which minimum is reached, implicit gradients miss "
        f"{percent(implicit)} of the derivative, the score {percent(score)} (medians of "
        f"{count(len(steep), 'case')})",
        score < implicit,
    )
