"""Ten-dimensional logistic tasks: Laplace's posteriors, and the best Gaussians, beside NUTS.

One prior, fitted by the Laplace evidence, is held in all three. Laplace's Q_i is centred at the
posterior's mode with the curvature there; the joint fit's Q_i is the Gaussian with the least KL.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

import bayesmeta as bm
from bayesmeta.plots import COLOURS, DOUBLE, MARKERS, style
from studies._framework import Result

QUESTION = "How far are Laplace's posteriors of ten-dimensional logistic tasks from NUTS?"
DIM = 10
METHODS = ("laplace", "joint")
LABELS = {"laplace": "Laplace", "joint": "best Gaussian (joint)"}


def run(quick: bool, device: str) -> Result:
    """Fit the prior, adapt twice, sample."""
    generator = torch.Generator().manual_seed(0)
    family, _ = bm.families.logistic(
        tasks=12 if quick else 24,
        rows=60,
        generator=generator,
        theta0=torch.linspace(-1, 1, DIM),
        covariance=torch.eye(DIM),
        intercept=True,
        device=device,
    )
    module = torch.nn.Linear(DIM - 1, 1)
    model = bm.Model(module, bm.likelihoods.Bernoulli())
    fit = bm.fit(model, family, method=bm.methods.laplace(), prior=bm.Prior("diagonal"))
    held = bm.Prior("diagonal", learn="none").like(fit.prior.gaussian)
    best = bm.fit(model, family, method=bm.methods.joint(), prior=held)
    size = (
        {"draws": 100, "warmup": 50, "chains": 1}
        if quick
        else {"draws": 2500, "warmup": 500, "chains": 4}
    )
    draws = bm.nuts(fit, **size)
    if not quick and draws.problems():
        raise RuntimeError(f"NUTS is no reference: {'; '.join(draws.problems())}")
    parts = [_compare(name, q, draws) for name, q in zip(METHODS, (fit, best), strict=True)]
    table = pd.concat(parts, ignore_index=True)
    return Result(table)


def _compare(method: str, fit: bm.Fit, draws: bm.pyro_bridge.NutsResult) -> pd.DataFrame:
    """One row per task and weight."""
    mean, sd = fit.posterior.mean, fit.posterior.sd()
    tasks, dim = mean.shape
    values = {
        "mean": mean,
        "sd": sd,
        "nuts_mean": draws.mean,
        "nuts_sd": draws.sd,
        "mean_difference": (mean - draws.mean) / draws.sd,
        "mean_mcse": draws.mcse / draws.sd,
        "sd_difference": sd / draws.sd - 1,
    }
    columns = {k: v.detach().cpu().flatten().numpy() for k, v in values.items()}
    return pd.DataFrame(
        {
            "method": method,
            "task": np.repeat(fit.posterior.tasks, dim),
            "weight": np.tile(fit.posterior.names, tasks),
        }
    ).assign(**columns)


def draw(table: pd.DataFrame) -> dict[str, Figure]:
    """The study's figures, by name."""
    return {"laplace_nuts": _figure(table)}


def headline(table: pd.DataFrame) -> str:
    """The typical and the largest differences of each."""
    said = []
    for method, rows in table.groupby("method", sort=False):
        means, sds = 100 * rows["mean_difference"].abs(), 100 * rows["sd_difference"]
        said.append(
            f"{LABELS[str(method)]}: means differ by {means.median():.1f} % of a posterior sd "
            f"(median; at most {means.max():.1f} %), sds by {sds.median():+.1f} % "
            f"({sds.min():+.1f} to {sds.max():+.1f} %)"
        )
    error = 100 * table["mean_mcse"].max()
    tasks = table["task"].nunique()
    return (
        f"{tasks} tasks × {DIM} weights, 60 binary rows each. {'; '.join(said)}. NUTS' own "
        f"standard error is at most {error:.1f} % of an sd."
    )


def _figure(table: pd.DataFrame) -> Figure:
    """Means and sds against NUTS."""
    with style():
        figure = Figure(figsize=(DOUBLE, 3.0), layout="constrained")
        left, right = figure.subplots(1, 2)
        for method, rows in table.groupby("method", sort=False):
            look = {
                "color": COLOURS[str(method)],
                "marker": MARKERS[str(method)],
                "linestyle": "",
                "markersize": 3,
                "alpha": 0.7,
                "label": LABELS[str(method)],
            }
            left.plot(rows["nuts_mean"], 100 * rows["mean_difference"], **look)
            right.plot(rows["nuts_sd"], 100 * rows["sd_difference"], **look)
        for ax, what in ((left, "mean"), (right, "sd")):
            ax.axhline(0, color=COLOURS["reference"], linestyle="--", zorder=0)
            ax.set_xlabel(f"posterior {what} by NUTS (log-odds)")
        left.set_ylabel("mean − NUTS mean (% of a posterior sd)")
        right.set_ylabel("sd over NUTS' sd − 1 (%)")
        handles, names = left.get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=2, frameon=False)
    return figure
