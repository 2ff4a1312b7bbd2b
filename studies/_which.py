"""*Which method?*: decisions for a newcomer, each with what was measured for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from studies.any_optimiser.findings import algorithms, ratio
from studies.calibration import HIGH
from studies.calibration.figures import select
from studies.calibration.fitted import AVOIDING, LIKELIHOOD, OWN
from studies.calibration.measure import NEW_ROW, SAID
from studies.shrinkage import detection

HEAD = """# Which method?

Find the lines that are your case; where two are, the upper one comes first. The last column is
computed from the table of the study it names, and holds at the sizes that study has. All methods
are an argument of the same `bm.fit(model, family, method=...)`, so trying a second costs a word.
"""


@dataclass(frozen=True)
class Decision:
    """A line of the page.

    Args:
        case: what one has or wants.
        use: what to write.
        study: that measured it.
        because: says what its table shows.
    """

    case: str
    use: str
    study: str
    because: Callable[[pd.DataFrame], str]


def _exact(table: pd.DataFrame) -> str:
    exact = table[table["criterion"] != "ELBO"]
    return (
        f"{len(exact)} fits are within {exact['nats'].abs().max():.0e} nats of lme4, nlme and "
        f"statsmodels"
    )


def _few_weights(table: pd.DataFrame) -> str:
    off = 100 * table.assign(off=table["mean_difference"].abs()).groupby("method")["off"].median()
    return (
        f"posterior means of binary tasks lie {off['joint']:.1f} % of an sd from NUTS', Laplace's "
        f"{off['laplace']:.0f} %"
    )


def _glmer(table: pd.DataFrame) -> str:
    theirs = table[table["tool"] == "glmer"]["nats_from_ours"].abs()
    return f"{len(theirs)} fits are within {theirs.max():.0e} nats of glmer at equal nAGQ"


def _uncertain_network(table: pd.DataFrame) -> str:
    few = table[table["points"] == 3].set_index("method")
    fitted = few.loc["fitted prior"]
    return (
        f"with 3 points of a new sinusoid {round(fitted['nll'], 2) + 0:.2f} nats a point and "
        f"{fitted['coverage']:.0%} of new points in 90 % intervals; one network for all tasks "
        f"{few.loc['full pooling', 'nll']:.2f} nats"
    )


def _small_network(table: pd.DataFrame) -> str:
    rows = table[(table["panel"] == "curve") & (table["rule"] == "own") & (table["points"] == 5)]
    nll = rows[rows["family"] == "sinusoid"].set_index("method")["nll"]
    told = (f"{name} {nll[name]:.2f}" for name in ("Laplace", "joint", "MAML", "iMAML"))
    return f"nats a point after 5 points of an unseen sinusoid, lower is better: {', '.join(told)}"


def _points(table: pd.DataFrame) -> str:
    rows = table[(table["panel"] == "curve") & (table["rule"] == "own") & (table["points"] == 2)]
    nll = rows[rows["family"] == "linear"].set_index("method")["nll_median"]
    behind = (
        f"{name} {nll[name] - nll['joint, solved']:.1f}"
        for name in ("iMAML", "variational iMAML", "MAML")
    )
    return f"nats a point behind it after 2 points of the median new line: {', '.join(behind)}"


def _best_start(table: pd.DataFrame) -> str:
    ten = table[table["points"] == 10]
    own = ten[ten["own"]].set_index("method")
    least = ten.groupby("method")["mse"].min().sort_values()
    told = ", ".join(f"{name} {value:.3f}" for name, value in least.items())
    return (
        f"squared error on ten points of new sinusoids after {own['seconds'].min():.0f} to "
        f"{own['seconds'].max():.0f} s, each at its best number of steps: {told}; maml after one "
        f"step {own.loc['maml', 'mse']:.3f}"
    )


def _images(table: pd.DataFrame) -> str:
    main = table[(table["part"] == "table") & (table["split"] == "random")]
    main = main[(main["ways"] == 5) & (main["shots"] == 1)]
    best = main.sort_values("inductive_accuracy", ascending=False)
    told = (
        f"{row.method} {row.inductive_accuracy:.0f} % in {row.seconds / 60:.0f} min"
        for row in best.head(4).itertuples()
    )
    return f"5-way 1-shot Omniglot, a query image by itself: {'; '.join(told)}"


def _memory(table: pd.DataFrame) -> str:
    inner = table[table["part"] == "inner"].set_index(["rule", "inner_steps"])["peak_mib"]
    return (
        f"a Conv4 task takes {inner['imaml'].max():.0f} MiB at any number of inner steps, MAML's "
        f"{inner['maml', 16]:.0f} at 16"
    )


def _layers(table: pd.DataFrame) -> str:
    found = detection(table).groupby("form")["ratio"]
    right, fits = found.apply(lambda ratio: int((ratio > 1).sum())), found.size()
    scores = table[(table["panel"] == "score") & (table["case"] != "none")]
    behind = scores.groupby("form")["behind"].mean()
    told = ", ".join(f"{name} {behind[name]:.2f}" for name in ("low-rank", "block", "isotropic"))
    return (
        f"the layer has the largest sd in {right['block']} of {fits['block']} fits from a trained "
        f"network, {right['block, other start']} of {fits['block, other start']} from another; "
        f"nats a point behind the true prior: {told}"
    )


def _few_tasks(table: pd.DataFrame) -> str:
    held = fitted_coverage(table)
    fewest = min(n for _, n in held.index)
    return (
        f"with {fewest} tasks 95 % intervals hold the truth in "
        f"{held[LIKELIHOOD, fewest]:.0%} (maximum likelihood) and "
        f"{held[AVOIDING, fewest]:.0%} (this)"
    )


def fitted_coverage(table: pd.DataFrame) -> pd.Series:
    """(form, tasks) of the study calibration: coverage of 95 % intervals, linear own tasks."""
    rows = select(table, part="fitted", level=HIGH, data=OWN, family="linear")
    return rows.set_index(["form", "tasks"])["coverage"]


def _forms(table: pd.DataFrame) -> str:
    rows = select(table, part="held", level=HIGH, data="all", family="linear, ρ = 0.9")
    weights = rows[~rows["quantity"].isin([NEW_ROW, SAID])]
    worst = weights.groupby("form")["coverage"].min()
    return (
        "95 % intervals of correlated weights, their sums and differences hold the truth in at "
        f"least {worst['best Gaussian']:.0%} (full) and {worst['best diagonal']:.0%} (diagonal)"
    )


def _any_optimiser(table: pd.DataFrame) -> str:
    new = algorithms(table, "none")
    said = [
        f"{ratio(table, family, 'maml', new).middle:.2f} (MAML) and "
        f"{ratio(table, family, 'mixture', new).middle:.2f} (mixture) on {family}"
        for family in dict.fromkeys(table["family"])
    ]
    return (
        f"by {len(new)} optimisers new to it, the squared error is "
        f"{', '.join(said)} times that of `stochastic`"
    )


def _two_paths(table: pd.DataFrame) -> str:
    squared = table[(table["panel"] == "quadratic") & (table["paths"] == 2)]
    bias = squared.set_index("rule")["bias"].abs()
    return (
        f"of two runs, gradients by the same ones are off by {bias['shared']:.0%}, by separate "
        f"ones {bias['split halves']:.1%}"
    )


def _minima(table: pd.DataFrame) -> str:
    steep = table[
        (table["panel"] == "point") & (table["probability"].abs() > 0.1 * table["total"].abs())
    ]
    share = (steep["probability"] / steep["total"]).abs().median()
    return (
        f"where the start decides which minimum is reached, {share:.0%} of the derivative is that "
        "part, which implicit gradients leave out"
    )


DECISIONS = (
    Decision(
        "a table, Gaussian noise, a prediction linear in its weights (lme4's ground)",
        "`bm.fit(model, family)`: exact, no method to choose",
        "reference_fits",
        _exact,
    ),
    Decision(
        "the same, and MAML or its like comes to mind",
        "`bm.fit(model, family)` all the same: a point does not know what it does not know",
        "joint_or_amortised",
        _points,
    ),
    Decision(
        "counts or yes/no, or a formula of your own with up to three weights (`from_energy`); "
        "posteriors matter",
        "`bm.fit(model, family)`: `joint`, the best Gaussian posteriors",
        "laplace_nuts",
        _few_weights,
    ),
    Decision(
        "the same, and the number has to be glmer's",
        "`laplace()`, with `points=9` for its nAGQ = 9",
        "glmer",
        _glmer,
    ),
    Decision(
        "a network of up to some hundred weights, and few points of a new task",
        '`laplace(covariance="lowrank(20)", curvature="ggn", batch=16, steps=1)`',
        "joint_or_amortised",
        _small_network,
    ),
    Decision(
        "a larger network on a table or on curves, and you want to know how sure it is",
        '`joint(covariance="diagonal")`, or `"lowrank(10)"`',
        "sinusoid_prior",
        _uncertain_network,
    ),
    Decision(
        "a small network, and only the error on a new task counts",
        "`laplace` or `variational_imaml`; `maml` where adaptation must be one step",
        "few_shot_sinusoid",
        _best_start,
    ),
    Decision(
        "images, told apart from a few of each class",
        "`maml`; `imaml(lam=0.1)` with 5 inner steps or more",
        "omniglot",
        _images,
    ),
    Decision(
        "with any of these, fewer than some thirty tasks",
        '`prior=bm.Prior("full", hyperprior="boundary-avoiding")` with it',
        "calibration",
        _few_tasks,
    ),
    Decision(
        "to know single weights, or differences of them, with intervals that hold",
        '`covariance="full"`; `"diagonal"` only where weights are too many',
        "calibration",
        _forms,
    ),
    Decision(
        "many inner steps, or little memory",
        "`imaml`; or `maml(checkpoint=1)`, slower",
        "compute_memory",
        _memory,
    ),
    Decision(
        "to learn in which layers tasks differ",
        '`joint` with `bm.Prior("block")`, from a trained network; `"lowrank(r)"` to predict',
        "shrinkage",
        _layers,
    ),
    Decision(
        "a start that whoever uses it will train with an optimiser you do not know",
        "`stochastic`, or a `Mixture` of optimisers",
        "any_optimiser",
        _any_optimiser,
    ),
    Decision(
        "an average of several random runs, g(E θ)",
        "`two_path(every_pair=True)`",
        "two_paths",
        _two_paths,
    ),
    Decision(
        "runs that may end in one of several minima",
        '`stochastic(gradient="score")`, with Langevin noise',
        "which_minimum",
        _minima,
    ),
)


def which(figures: Path) -> str:
    """The page."""
    lines = ["| you have, or want | use | because |", "|---|---|---|"]
    for one in DECISIONS:
        because = one.because(pd.read_csv(figures / f"{one.study}.csv"))
        lines.append(
            f"| {one.case} | {one.use} | {because} ([{one.study}](README.md#{one.study})) |"
        )
    return "\n".join([HEAD, *lines, ""])
