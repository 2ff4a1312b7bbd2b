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
    size = pd.DataFrame(
        {
            "method": table["method"],
            "mean": 100 * table["mean_difference"].abs(),
            "sd": 100 * table["sd_difference"].abs(),
        }
    )
    middle, most = (getattr(size.groupby("method"), name)() for name in ("median", "max"))
    inside = size["mean"] <= 200 * table["mean_mcse"]
    share = inside[size["method"] == "joint"].mean()
    return (
        f"Laplace's means are {middle['mean']['laplace']:.1f} % of a posterior sd from NUTS' for "
        f"the median weight of {table['task'].nunique()} tasks, and up to "
        f"{most['mean']['laplace']:.1f} %, and its sds are off by {middle['sd']['laplace']:.1f} % "
        f"and up to {most['sd']['laplace']:.1f} %. "
        f"The best Gaussians under the same prior are {middle['mean']['joint']:.1f} % and up to "
        f"{most['mean']['joint']:.1f} % off in their means, {middle['sd']['joint']:.1f} % and up "
        f"to {most['sd']['joint']:.1f} % in their sds. "
        f"NUTS' own standard error is up to {100 * table['mean_mcse'].max():.1f} % of an sd, so "
        f"{share:.0%} of the best Gaussians' means cannot be told from NUTS' (within 2 standard "
        f"errors)."
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
                "markerfacecolor": "none" if method == "laplace" else COLOURS[str(method)],
                "linestyle": "",
                "markersize": 3,
                "markeredgewidth": 0.7,
                "label": LABELS[str(method)],
            }
            left.plot(rows["nuts_mean"], 100 * rows["mean_difference"], **look)
            right.plot(rows["nuts_sd"], 100 * rows["sd_difference"], **look)
        for ax, what in ((left, "mean"), (right, "sd")):
            ax.axhline(0, color=COLOURS["reference"], linestyle="--", zorder=0, label="as NUTS")
            ax.set_xlabel(f"posterior {what} by NUTS (log-odds)")
        left.set_ylabel("mean − NUTS' mean (% of NUTS' sd)")
        right.set_ylabel("sd / NUTS' sd − 1 (%)")
        left.set_title("(a) posterior means", loc="left")
        right.set_title("(b) posterior sds", loc="left")
        weights = len(table[["task", "weight"]].drop_duplicates())
        figure.legend(
            *left.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False,
            title=f"a mark per weight of every task, {weights} for each method", title_fontsize=7,
        )  # fmt: skip
    return figure
