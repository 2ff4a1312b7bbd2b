"""Langevin dynamics as a posterior: the ends of many short runs, beside NUTS, on logistic tasks.

One prior, fitted by the Laplace evidence, is held. Every run of SGLD starts at θ₀ and descends on
f_i + ½‖θ − θ₀‖²_Λ for the same time, in steps of ε. For a Gaussian posterior of precision A the law
it tends to has the covariance (A − εA²/2)⁻¹, so its sds are too large by about a quarter of εA.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import bayesmeta as bm
from bayesmeta.plots import COLOURS, DOUBLE, style
from studies._framework import Result

QUESTION = "Do the ends of Langevin runs make a posterior, and at which step size?"
TIME = 12.0
"""ε × steps, in squared units of θ per nat: a dozen relaxation times of the prior alone."""
SIZES = (0.08, 0.04, 0.02, 0.01)
KINDS = {
    "all rows": {},
    "10 rows, in passes": {"rows": 10},
    "10 rows, at random": {"rows": 10, "replacement": True},
    "preconditioned": {"preconditioned": True, "decay": 0.95},
}
LOOKS = {
    "all rows": ("posterior", "o"),
    "10 rows, in passes": ("stochastic", "X"),
    "10 rows, at random": ("no_pooling", "^"),
    "preconditioned": ("reptile", "P"),
}


def run(quick: bool, device: str) -> Result:
    """Fit the prior, sample it by NUTS, and by SGLD of each kind and step size."""
    family, _ = bm.families.logistic(
        tasks=8,
        rows=40,
        generator=torch.Generator().manual_seed(0),
        theta0=torch.tensor([-0.5, 1.0]),
        covariance=torch.eye(2),
        intercept=True,
        device=device,
    )
    model = bm.Model(torch.nn.Linear(1, 1), bm.likelihoods.Bernoulli())
    fit = bm.fit(model, family, method=bm.methods.laplace(), prior=bm.Prior("full"))
    size = (
        {"draws": 100, "warmup": 50, "chains": 1}
        if quick
        else {"draws": 5000, "warmup": 500, "chains": 4}
    )
    draws = bm.nuts(fit, **size)
    if not quick and draws.problems():
        raise RuntimeError(f"NUTS is no reference: {'; '.join(draws.problems())}")
    held = bm.Prior("full", learn="none").like(fit.prior.gaussian)
    rows = []
    for kind, options in KINDS.items():
        for step in SIZES[:1] if quick else SIZES:
            runs = 100 if quick else 4000
            method = langevin(step, runs, **options)
            rows.append(
                _compared(kind, step, bm.fit(model, family, method=method, prior=held), draws)
            )
    table = pd.concat(rows, ignore_index=True)
    return Result(table)


def langevin(step: float, runs: int, **options) -> bm.methods.Method:
    """Ends of so many runs of SGLD from θ₀, under the prior."""
    m = bm.methods
    algorithm = m.SGLD(step, round(TIME / step), per="task", **options)
    posterior = m.Algorithmic(anchored=True, samples=runs)
    return m.Method(posterior, algorithm, m.FirstOrder(), m.Validation(None))


def _compared(
    kind: str, step: float, fit: bm.Fit, draws: bm.pyro_bridge.NutsResult
) -> pd.DataFrame:
    """One row per task and weight."""
    mean, sd = fit.posterior.mean, fit.posterior.sd()
    runs = len(fit.posterior.draws)
    away = draws.draws - draws.mean
    precision = torch.linalg.inv(torch.einsum("stj,stk->tjk", away, away) / (len(away) - 1))
    limit = torch.linalg.inv(precision - 0.5 * step * precision @ precision)
    expected = limit.diagonal(dim1=1, dim2=2).sqrt() / draws.sd - 1
    values = {
        "mean_difference": (mean - draws.mean) / draws.sd,
        "sd_difference": sd / draws.sd - 1,
        "sd_expected": expected if kind != "preconditioned" else torch.full_like(sd, torch.nan),
        "nuts_error": draws.mcse / draws.sd,
    }
    columns = {k: v.detach().cpu().flatten().numpy() for k, v in values.items()}
    tasks, dim = mean.shape
    names = {
        "task": np.repeat(fit.posterior.tasks, dim),
        "weight": np.tile(fit.posterior.names, tasks),
    }
    return pd.DataFrame(
        {"kind": kind, "step": step, "steps": round(TIME / step), "runs": runs} | names | columns
    )


def _figure(table: pd.DataFrame) -> Figure:
    """Errors of means and sds against ε: a mark per kind at the median, a bar over all weights."""
    with style():
        figure = Figure(figsize=(DOUBLE, 2.7), layout="constrained")
        left, right = figure.subplots(1, 2)
        _panel(left, table, "mean_difference", "mean, in posterior sds of NUTS")
        _panel(right, table, "sd_difference", "sd, relative to NUTS")
        expected = table[table["kind"] == "all rows"].groupby("step")["sd_expected"].median()
        right.plot(
            expected.index, expected, "--", color=COLOURS["reference"], zorder=0,
            label="Gaussian posterior, (A − εA²/2)⁻¹",
        )  # fmt: skip
        for ax in (left, right):
            ax.axhline(0, color="black", linewidth=0.6)
        figure.legend(
            *right.get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False
        )
    return figure


def _panel(ax: Axes, table: pd.DataFrame, column: str, label: str) -> None:
    for place, (kind, rows) in enumerate(table.groupby("kind", sort=False)):
        role, marker = LOOKS[str(kind)]
        grouped = rows.groupby("step")[column]
        at = np.array(list(grouped.groups)) * 1.06 ** (place - 1.5)
        middle = grouped.median().to_numpy()
        low, high = grouped.min().to_numpy(), grouped.max().to_numpy()
        ax.errorbar(
            at, middle, yerr=[middle - low, high - middle], color=COLOURS[role], marker=marker,
            markersize=5, linestyle="none", elinewidth=0.9, label=kind,
        )  # fmt: skip
    sizes = sorted(set(table["step"]))
    ax.set(xscale="log", xlabel="step size ε", ylabel=label)
    ax.set_xticks(sizes, [f"{size:g}" for size in sizes])
    ax.minorticks_off()


def draw(table: pd.DataFrame) -> dict[str, Figure]:
    """The study's figures, by name."""
    return {"sgld_nuts": _figure(table)}


def headline(table: pd.DataFrame) -> str:
    """Errors at the smallest and the largest step."""
    parts = []
    for kind, rows in table.groupby("kind", sort=False):
        words = []
        for step in (rows["step"].max(), rows["step"].min()):
            some = rows[rows["step"] == step]
            mean, sd = some["mean_difference"].abs().median(), some["sd_difference"].median()
            words.append(
                f"ε = {step:g}: means off by {100 * mean:.1f} % of an sd, sds by {100 * sd:+.1f} %"
            )
        parts.append(f"{kind}: {'; '.join(dict.fromkeys(words))}")
    first = table.iloc[0]
    expected = table.loc[(table["kind"] == "all rows") & (table["step"] == table["step"].max())]
    return (
        f"{first['runs']:,} runs from θ₀ for each of {table['task'].nunique()} logistic tasks "
        f"against NUTS (medians over weights). {'. '.join(parts)}. Theory for a Gaussian posterior "
        f"and the largest ε: sds {100 * expected['sd_expected'].median():+.1f} %. NUTS' own error "
        f"is at most {100 * table['nuts_error'].max():.1f} % of an sd, that of the runs "
        f"{100 / first['runs'] ** 0.5:.1f} %."
    )
