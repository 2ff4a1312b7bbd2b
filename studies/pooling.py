"""What a fitted prior is worth on real families, by rows held out of each task."""

from __future__ import annotations

import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

import bayesmeta as bm
from bayesmeta import plots
from bayesmeta.plots import COLOURS, MARKERS, style
from studies._framework import Result
from studies._sets import frame

QUESTION = "How much better are rows of real tasks predicted under a fitted prior?"
SETS = {
    "sleepstudy": "Reaction ~ Days + (Days | Subject)",
    "orthodont": "distance ~ age + (age | Subject)",
    "oxboys": "height ~ age + (age | Subject)",
    "chickweight": "weight ~ Time + (Time | Chick)",
    "radon": "log_radon ~ floor + (floor | county)",
}
KINDS = {"fitted prior": "joint", "no pooling": "no_pooling", "full pooling": "full_pooling"}
BASELINES = ("no pooling", "full pooling")
WIDE = 1e4
DRAWS = 4000


def run(quick: bool, device: str) -> Result:
    """Fit to three quarters of each task's rows, score the rest, over random splits."""
    rows = [
        row
        for name in (list(SETS)[:2] if quick else SETS)
        for seed in range(2 if quick else 10)
        for row in _split_scores(name, seed, device)
    ]
    splits = pd.DataFrame(rows)
    grouped = splits.groupby(["set", "method"], sort=False)
    table = grouped.nll.agg(["mean", "sem", "count"]).reset_index()
    table["gain"] = grouped.gain.mean().to_numpy()
    table["gain_se"] = grouped.gain.sem().to_numpy()
    return Result(table)


def draw(table: pd.DataFrame) -> dict[str, Figure]:
    """The scores; and the spread of the posteriors of one set, which a fit gives at once."""
    whole = _fit(_family("sleepstudy", "cpu"))
    with style():
        spread = plots.draw("spread", whole)
    for ax, label in zip(spread.axes, ("intercept (ms)", "Days (ms per day)"), strict=True):
        ax.set_xlabel(label)
    spread.axes[0].set_ylabel("subject")
    with style():
        spread.supxlabel("green line: mean of the prior; bars: 90 % intervals", fontsize=7)
    return {"pooling_scores": _draw(table), "pooling_spread": spread}


def headline(table: pd.DataFrame) -> str:
    """Where the fitted prior gains, how much over both baselines, and where that is not sure."""
    sets, splits = table["set"].nunique(), table["count"].max()
    gains = {name: table[table.method == name].set_index("set") for name in BASELINES}
    better = " and ".join(f"than with {k} on {(v.gain > 0).sum()}" for k, v in gains.items())
    spans = ", and ".join(f"{_span(rows.gain)} over {name}" for name, rows in gains.items())
    unsure = [
        f"{name} over {baseline}"
        for baseline, rows in gains.items()
        for name in rows.index[rows.gain < 2 * rows.gain_se]
    ]
    close = f"on {' and on '.join(unsure)}" if unsure else "on no family"
    return (
        f"Of {sets} real families, rows held out are predicted better under the fitted prior "
        f"{better}. "
        f"The gain is {spans}. "
        f"Beware that it is within two standard errors of nothing {close}, and that these errors "
        f"are over {splits} random splits of the same rows."
    )


def _span(gain: pd.Series) -> str:
    """As "0.02 (oxboys) to 0.18 (radon) nats a row"."""
    low, high = gain.idxmin(), gain.idxmax()
    return f"{gain[low]:.3f} ({low}) to {gain[high]:.3f} ({high}) nats a row"


def _family(name: str, device: str) -> bm.TaskFamily:
    return bm.TaskFamily.from_formula(SETS[name], frame(name)).to(device=device)


def _fit(
    family: bm.TaskFamily, prior: bm.Prior | None = None, noise: float | None = None
) -> bm.Fit:
    likelihood = bm.likelihoods.Gaussian(scale=noise)
    return bm.fit(bm.models.linear(family, likelihood), family, prior=prior)


def _split_scores(name: str, seed: int, device: str) -> list[dict[str, object]]:
    """The predictive NLL per held-out row under each kind of pooling, for one random split."""
    family = _family(name, device)
    several = family.subset([i for i, n in enumerate(family.rows.tolist()) if n > 1])
    support, query = several.split(0.75, torch.Generator().manual_seed(seed))
    fitted = _fit(support)
    mean, variance = fitted.prior.mean, fitted.prior.sd() ** 2
    wide = bm.Prior("diagonal", learn="mean").at(mean=mean, variance=WIDE * variance.clamp(1e-6))
    none = bm.Prior("diagonal", learn="mean").at(mean=mean, variance=1e-12 * variance + 1e-20)
    fits = {
        "fitted prior": fitted,
        # Its noise is the fitted prior's: by itself it would find none where rows equal weights.
        "no pooling": _fit(support, wide, fitted.noise),
        "full pooling": _fit(support, none),
    }
    scores = {
        kind: -float(fit.predict(query, draws=DRAWS).log_score().sum()) / query.observations
        for kind, fit in fits.items()
    }
    return [
        {"set": name, "method": kind, "nll": nll, "gain": nll - scores["fitted prior"]}
        for kind, nll in scores.items()
    ]


def _draw(table: pd.DataFrame) -> Figure:
    """How many nats a row each baseline loses, per set, with two standard errors."""
    with style():
        figure = Figure(figsize=(7.0, 2.4), layout="constrained")
        ax = figure.subplots()
        sets = list(dict.fromkeys(table["set"]))
        for shift, kind in ((-0.12, "no pooling"), (0.12, "full pooling")):
            part, role = table[table.method == kind].set_index("set").loc[sets], KINDS[kind]
            places = [i + shift for i in range(len(sets))]
            ax.errorbar(
                part.gain, places, xerr=2 * part.gain_se, fmt=MARKERS[role],
                color=COLOURS[role], markerfacecolor="white", markersize=5, label=kind,
            )  # fmt: skip
        ax.axvline(0.0, color=COLOURS["joint"], label="fitted prior")
        ax.set_xscale("symlog", linthresh=0.1)
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.set_yticks(range(len(sets)), sets)
        ax.invert_yaxis()
        ax.set_xlabel(
            "loss against the fitted prior, nats per held-out row "
            "(linear below 0.1; bars: ± 2 standard errors)"
        )
        ax.set_xlim(-0.03, None)
        names = ax.get_legend_handles_labels()
        figure.legend(*names, loc="outside upper center", ncols=3, frameon=False)
    return figure
