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


def _best_start(table: pd.DataFrame) -> str:
    own = table[(table["points"] == 10) & table["own"]].set_index("method")["mse"].sort_values()
    return (
        f"squared error on new sinusoids after equal training time: {own.index[0]} "
        f"{own.iloc[0]:.3f}, {own.index[1]} {own.iloc[1]:.3f}, imaml {own['imaml']:.3f}, maml "
        f"{own['maml']:.3f}"
    )


def _memory(table: pd.DataFrame) -> str:
    inner = table[table["part"] == "inner"].set_index(["rule", "inner_steps"])["peak_mib"]
    return (
        f"a Conv4 task takes {inner['imaml'].max():.0f} MiB at any number of inner steps, MAML's "
        f"{inner['maml', 16]:.0f} at 16"
    )


def _layers(table: pd.DataFrame) -> str:
    behind = table[table["panel"] == "score"].groupby("form")["behind"].mean()
    return (
        f"nats a point behind the true prior: block {behind['block']:.2f}, diagonal "
        f"{behind['diagonal']:.2f}, isotropic {behind['isotropic']:.2f}, low-rank "
        f"{behind['low-rank']:.2f}"
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
        f"95 % intervals of correlated weights and of their sums hold the truth in no less than "
        f"{worst['best Gaussian']:.0%} (full) and {worst['best diagonal']:.0%} (diagonal)"
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
        "a network on a table or on curves, and you want to know how sure it is",
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
        "besides, fewer than some thirty tasks, whatever the model",
        '`bm.Prior("full", hyperprior="boundary-avoiding")` beside it',
        "calibration",
        _few_tasks,
    ),
    Decision(
        "to know single weights, or sums of them, with intervals that hold",
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
        '`joint` with `bm.Prior("block")`, from a trained start',
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
