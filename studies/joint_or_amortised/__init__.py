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
    """Which to use for linear predictors, which for a network, and what to beware of."""
    own = select(table, panel="curve", rule="own")
    return " ".join([_linear(own), _network(own), _beware(table, own)])


def _linear(own: pd.DataFrame) -> str:
    """How far the quick ways are from the fit that is solved, and the farthest of the others."""
    rows = own[own.family != NETWORK]
    nll = rows.pivot_table(index=["family", "points"], columns="method", values="nll")
    away = nll.sub(nll["joint, solved"], axis=0)
    alike = away[["joint", "joint, restarted", "Laplace"]].abs().max().max()
    return (
        "Where the prediction is linear in the weights, joint descent, restarted or not, and the "
        f"Laplace approximation serve unseen tasks within {alike:.2g} nats a point of the joint "
        "fit that is solved."
    )


def _network(own: pd.DataFrame) -> str:
    """The network's best two methods, where each had about the same time."""
    rows = select(own, family=NETWORK, points=AT)
    first, second, *_, last = (
        row for _, row in rows[rows.method.isin(METHODS)].sort_values("nll").iterrows()
    )
    return (
        f"For a network {first['method']} serves best after {AT} points of a sinusoid, with "
        f"{_interval(first)} nats a point (95 % interval), before {second['method']} with "
        f"{_interval(second)}, while {last['method']} have {last['nll']:.2f}."
    )


def _interval(row: pd.Series) -> str:
    return f"{row['nll']:.2f} [{row['nll_low']:.2f}, {row['nll_high']:.2f}]"


def _beware(table: pd.DataFrame, own: pd.DataFrame) -> str:
    """How few seeds there are, which fits have not ended, and what a restart mends."""
    fits = select(table, panel="fit", family=NETWORK)
    seeds, methods = fits.seed.nunique(), fits.method.nunique()
    moving = fits[fits.trace == "falling"].method.nunique()
    return (
        f"Beware that the network's fits have {seeds} seed{'s' if seeds > 1 else ''} only, that M "
        f"still falls in {moving} of {methods} methods, so that longer fits may change the order, "
        f"and that a restart gains {_gain(own, 'joint points')} nats for points but "
        f"{_gain(own, 'joint')} for posteriors."
    )


def _gain(own: pd.DataFrame, name: str) -> str:
    at = select(own, family=NETWORK, points=AT).set_index("method")
    row = at.loc[f"{name}, restarted"]
    return f"{row.restart_gain:z.2f} ± {1.96 * row.restart_gain_se:.2f}".replace("-", "−")
