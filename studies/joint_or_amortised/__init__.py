"""Joint or amortised: which way of fitting leaves a θ₀ that serves unseen tasks best?

Huszár's notes on iMAML (2019) ask it of M = Σ_i f_i(θ_i) + ½‖θ_i − θ₀‖²_Λ: all θ_i descend beside
θ₀, now and then restarted at it, or are made a function of it (iMAML's amortised computation). Here
every method fits the same tasks, and is judged by the same rows of the same unseen tasks.

Each adapts to the first points of an unseen task as it does by itself (rule "own": free Q_i by the
joint descent with the prior held, MAML by its learned steps, the others to the minimum of the
anchored loss) and predicts its other rows: from draws of Q_i, or at the point with the noise that
the method has learned. Rule "descent" takes θ₀ alone: the same few gradient steps and the same
noise for all. Steps are such that the network's fits take about as long as each other (`seconds`,
of the CPU; those of the linear predictors end at a flat trace or the number in `outer_steps`).
`missed` is minus Fit's reachability gap, by the joint descent with the prior held; for points
`missed_by_descent` has instead what plain gradient steps on the anchored loss miss.

The settings of the network are those of short trials that looked at unseen tasks of other draws,
three to six for each method; the place of the restart is the one that harmed M least. A longer
budget can change the order of methods whose trace still falls (see `few_shot_sinusoid`). What a
restart gains in NLL it gains partly by a larger noise sd; rule "descent", with one noise for all,
has what it does to θ₀. Intervals are over tasks; `nll_seed_sd` has the spread between seeds.
"""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from studies._framework import Result
from studies.joint_or_amortised import figures, measure
from studies.joint_or_amortised.figures import AT, METHODS, select

QUESTION = "Fitted jointly or amortised: which start θ₀ serves an unseen task best?"
NETWORK = "sinusoid"


def run(quick: bool, device: str) -> Result:
    """Every method on every family, and the two figures."""
    table = pd.DataFrame(measure.measured(measure.QUICK if quick else measure.SIZE, device))
    table = table.astype(
        dict.fromkeys(["seed", "outer_steps", "points", "seeds", "tasks"], "Int64")
    )
    return Result(table)


def draw(table: pd.DataFrame) -> dict[str, Figure]:
    """The study's figures, by name."""
    return {
        "joint_or_amortised": figures.curves(table),
        "joint_or_amortised_summary": figures.summary(table),
    }


def headline(table: pd.DataFrame) -> str:
    """Which to use for linear predictors, which for a network, and what a restart mends."""
    own = select(table, panel="curve", rule="own")
    return " ".join([_linear(table, own), _network(table, own), _restart(table, own)])


def _linear(table: pd.DataFrame, own: pd.DataFrame) -> str:
    """Farthest from the fit that is solved, over linear families and numbers of points."""
    rows = own[own.family != NETWORK]
    means, medians = (
        rows.pivot_table(index=["family", "points"], columns="method", values=column)
        for column in ("nll", "nll_median")
    )
    away, typical = (nll.sub(nll["joint, solved"], axis=0) for nll in (means, medians))
    alike = away[["joint", "joint, restarted", "Laplace"]].abs().max().max()
    worst = {
        name: _farthest(away[name], typical[name])
        for name in ("variational iMAML", "iMAML", "MAML")
    }
    fits = select(table, panel="fit", method="joint, solved")
    seconds = fits[fits.family != NETWORK].groupby("family").seconds.mean()
    behind = "; ".join(f"{name}, {told}" for name, told in worst.items())
    return (
        "Where the prediction is linear in the weights joint descent, restarted or not, and "
        f"Laplace predict unseen tasks within {alike:.2g} nats a point of the joint fit that is "
        f"solved, in {seconds.min():.2g} to {seconds.max():.2g} s; behind it at most: {behind}."
    )


def _farthest(away: pd.Series, typical: pd.Series) -> str:
    family, points = away.idxmax()
    few = f"{points:.0f} point{'s' if points > 1 else ''}"
    size = f"{away.max():,.0f}" if away.max() >= 100 else f"{away.max():.2g}"
    return f"{family}, {few}: {size} (of medians {typical[family, points]:.2g})"


def _network(table: pd.DataFrame, own: pd.DataFrame) -> str:
    """The network's methods by their NLL, where each had about the same time."""
    rows = select(own, family=NETWORK)
    rows = rows[rows.method.isin(METHODS)]
    fits = select(table, panel="fit", family=NETWORK)
    seconds = fits.groupby("method").seconds.mean()
    moving = ", ".join(sorted(set(fits[fits.trace == "falling"].method))) or "none"
    at = select(rows, points=AT).sort_values("nll")
    told = ", ".join(_interval(row) for _, row in at.iterrows())
    best = rows.loc[rows.groupby("points").nll.idxmin()]
    runs = best.groupby("method", sort=False).points.agg(["min", "max"])
    where = ", ".join(
        f"{name} at {low:.0f}" + (f" to {high:.0f}" if high > low else "")
        for name, (low, high) in zip(runs.index, runs.to_numpy(), strict=True)
    )
    return (
        f"For the network, with {seconds.min():.0f} to {seconds.max():.0f} s each, nats a point "
        f"after {AT} points of a sinusoid: {told}; best by number of points: {where} (M still "
        f"falls: {moving})."
    )


def _interval(row: pd.Series) -> str:
    return f"{row['method']} {row['nll']:.2f} [{row['nll_low']:.2f}, {row['nll_high']:.2f}]"


def _restart(table: pd.DataFrame, own: pd.DataFrame) -> str:
    """What descent from θ₀ misses with and without a restart, and what that does to the NLL."""
    fits = select(table, panel="fit").groupby(["family", "method"])
    missed, solved, noise = (
        fits[column].mean() for column in ("missed_by_descent", "missed", "noise")
    )
    names = ("joint points", "joint points, restarted", "variational iMAML")
    plain, again, amortised = (missed[NETWORK, name] for name in names)
    linear = missed.drop(NETWORK).abs().max()
    before, after = (noise[NETWORK, name] for name in names[:2])
    return (
        f"Of the network's joint points gradient steps from θ₀ miss {plain:.0f} nats of M a task, "
        f"of those restarted half-way {again:.0f}, of variational iMAML {amortised:.0f} (of linear "
        f"predictors at most {linear:.1g}), while a quasi-Newton search from θ₀ misses "
        f"{solved[NETWORK, names[0]]:.1f} of the first; the restart gains "
        f"{_gain(own, 'joint points')} nats a point for points (their noise sd {before:.2f} "
        f"becomes {after:.2f}) and {_gain(own, 'joint')} for posteriors."
    )


def _gain(own: pd.DataFrame, name: str) -> str:
    at = select(own, family=NETWORK, points=AT).set_index("method")
    row = at.loc[f"{name}, restarted"]
    return f"{row.restart_gain:+.2f} ± {1.96 * row.restart_gain_se:.2f}"
