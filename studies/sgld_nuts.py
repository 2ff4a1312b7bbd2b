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
DARK = "#7A5200"
LOOKS = {  # name, colour and marker: orange sees all rows, dark a minibatch; hollow is the variant
    "all rows": ("all rows", COLOURS["stochastic"], "o", None),
    "preconditioned": ("all rows, preconditioned", COLOURS["stochastic"], "P", "white"),
    "10 rows, in passes": ("10 rows, in passes", DARK, "s", None),
    "10 rows, at random": ("10 rows, at random", DARK, "^", "white"),
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
        figure = Figure(figsize=(DOUBLE, 3.1), layout="constrained")
        left, right = figure.subplots(1, 2)
        _panel(left, table, "mean_difference", "mean − NUTS' mean (% of NUTS' sd)")
        _panel(right, table, "sd_difference", "sd / NUTS' sd − 1 (%)")
        expected = table[table["kind"] == "all rows"].groupby("step")["sd_expected"].median()
        right.plot(
            expected.index, 100 * expected, "--", color=COLOURS["reference"], zorder=0,
            label="all rows, by theory: covariance (A − εA²/2)⁻¹",
        )  # fmt: skip
        for ax, title in ((left, "(a) posterior means"), (right, "(b) posterior sds")):
            ax.axhline(0, color="black", linewidth=0.6, zorder=0)
            ax.set_title(title, loc="left")
        weights = len(table[["task", "weight"]].drop_duplicates())
        figure.legend(
            *right.get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False,
            title=f"marks: median of the {weights} weights of all tasks; bars: from the least to "
            "the largest of them",
            title_fontsize=7,
        )  # fmt: skip
    return figure


def _panel(ax: Axes, table: pd.DataFrame, column: str, label: str) -> None:
    for place, (kind, (name, colour, marker, face)) in enumerate(LOOKS.items()):
        grouped = 100 * table[table["kind"] == kind].set_index("step")[column]
        grouped = grouped.groupby("step")
        at = np.array(list(grouped.groups)) * 1.06 ** (place - 1.5)
        middle = grouped.median().to_numpy()
        low, high = grouped.min().to_numpy(), grouped.max().to_numpy()
        ax.errorbar(
            at, middle, yerr=[middle - low, high - middle], color=colour, marker=marker,
            markersize=5, markerfacecolor=face or colour, linestyle="none", elinewidth=0.9,
            label=name,
        )  # fmt: skip
    sizes = sorted(set(table["step"]))
    ax.set(xscale="log", xlabel="step size ε (squared units of θ per nat)", ylabel=label)
    ax.set_xticks(sizes, [f"{size:g}" for size in sizes])
    ax.minorticks_off()


def draw(table: pd.DataFrame) -> dict[str, Figure]:
    """The study's figures, by name."""
    return {"sgld_nuts": _figure(table)}


def headline(table: pd.DataFrame) -> str:
    """The closest runs, those of the largest step, and what a smaller step does not mend."""
    size = table.assign(mean_off=100 * table["mean_difference"].abs())
    size = size.assign(sd_off=100 * table["sd_difference"], theory=100 * table["sd_expected"])
    typical = size.groupby(["kind", "step"], sort=False)[["mean_off", "sd_off", "theory"]].median()
    kind, step = typical["sd_off"].abs().idxmin()
    best, runs = typical.loc[(kind, step)], table["runs"].iloc[0]
    large, small = table["step"].max(), table["step"].min()
    coarse, fine = (typical.xs(one, level="step") for one in (large, small))
    least, most = coarse["sd_off"].idxmin(), coarse["sd_off"].idxmax()
    worse = fine.index[fine["sd_off"].abs() > coarse["sd_off"].abs()]
    helped = (
        f"A smaller step does not mend {_named(worse[0])}, whose sds are off by "
        f"{fine['sd_off'][worse[0]]:+.0f} % at ε = {small:g}"
        if len(worse)
        else "Only the median weight is told of here"
    )
    return (
        f"Their means come within {best['mean_off']:.1f} % of an sd and their sds within "
        f"{abs(best['sd_off']):.1f} % of NUTS' on the median weight of {table['task'].nunique()} "
        f"logistic tasks, by {_named(kind)} in steps of ε = {step:g}. "
        f"With ε = {large:g} sds are off by {coarse['sd_off'][least]:+.0f} % ({_named(least)}) to "
        f"{coarse['sd_off'][most]:+.0f} % ({_named(most)}), where theory for a Gaussian posterior "
        f"predicts {coarse['theory']['all rows']:+.0f} % for all rows. "
        f"{helped}, and differences below {100 / runs**0.5:.1f} % of an sd are within the standard "
        f"error of {runs:,} runs (NUTS' own: at most {100 * table['nuts_error'].max():.1f} %)."
    )


def _named(kind: object) -> str:
    """As in a sentence."""
    said = str(kind).replace(",", "")
    return f"{said} runs" if said == "preconditioned" else f"runs that see {said}"
