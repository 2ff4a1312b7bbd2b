"""Posteriors of every task against a long NUTS run, the prior held alike in both.

Eight schools with the prior at N(8, 5²), where Q_i is exact; cbpp (binomial) and grouseticks
(Poisson) with prior and shared coefficients held at the fit, where Q_i is the best Gaussian.

k̂ and the efficiency are those of the importance ratios posterior / Q_i, by
`bayesmeta.diagnostics.khat`. Where a task's rows bound its weight on one side only (a herd without
cases), the posterior has the prior's tail on the other, and k̂ tends to 1 − (posterior variance /
prior variance) for every Gaussian Q_i however good: the efficiency tells whether it matters.

Every θ_i here is one number, so quadrature gives its exact moments too: a difference from NUTS that
quadrature does not have is NUTS' own.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import bayesmeta as bm
from bayesmeta.plots import COLOURS, DOUBLE, MARKERS, style
from studies._framework import Result
from studies._sets import frame, linear_fit

QUESTION = "Do the tasks' posteriors agree with a long NUTS run under the same prior?"
GOAL = 0.05
GOOD_K = 0.7
MCSE_DRAWN = 2
GRID_SDS, GRID_POINTS = 12.0, 4001


def run(quick: bool, device: str) -> Result:
    """Fit, sample, compare; `device` is where the fits are computed."""
    chosen = {"eight_schools": FITS["eight_schools"]} if quick else FITS
    table = pd.concat([_compare(name, make(device), quick) for name, make in chosen.items()])
    table = table.reset_index(drop=True)
    return Result(table)


def draw(table: pd.DataFrame) -> dict[str, Figure]:
    """The study's figures, by name."""
    return {"nuts_agreement": _figure(table)}


def headline(table: pd.DataFrame) -> str:
    """How many tasks agree, how much of the rest is NUTS' own error, and what to make of k̂."""
    means, sds = (table[f"{what}_difference"].abs() for what in ("mean", "sd"))
    agreed = int(((means <= GOAL) & (sds <= GOAL)).sum())
    exact = table[["mean_quadrature_difference", "sd_quadrature_difference"]].abs().max()
    error = table[["mean_mcse", "sd_mcse"]].max(axis=None)
    sets, flagged = table["set"].nunique(), int(table["flagged"].sum())
    worst = str(table.loc[np.maximum(means, sds).idxmax(), "set"]).replace("_", " ")
    return (
        f"In {agreed} of {len(table)} tasks of {sets} set{'s' * (sets != 1)} mean and sd agree "
        f"with NUTS to {100 * GOAL:.0f} % of the posterior sd, and nowhere are means off by more "
        f"than {100 * means.max():.1f} % or sds by more than {100 * sds.max():.1f} %. "
        f"The worst is in {worst}, and from the exact moments, by quadrature, means are off by at "
        f"most {100 * exact.iloc[0]:.1f} % and sds by {100 * exact.iloc[1]:.1f} %, the rest being "
        f"NUTS' own error (standard error up to {100 * error:.1f} %). "
        f"Beware of Pareto's k̂, which calls weighted draws of Q unreliable in "
        f"{flagged or 'no'} task{'s' * (flagged != 1)}, though "
        f"{100 * table['efficiency'].min():.3g} % or more of them are effective in every task."
    )


def _eight_schools(device: str) -> bm.Fit:
    prior = bm.Prior("diagonal", learn="none").at(mean=8.0, variance=25.0)
    return linear_fit(
        "y ~ 1 + (1 | school)",
        frame("eight_schools"),
        known_error="sigma",
        prior=prior,
        device=device,
    )


def _cbpp(device: str) -> bm.Fit:
    formula = "incidence/size ~ C(period) + (1 | herd)"
    return linear_fit(formula, frame("cbpp"), likelihood="binomial", device=device)


def _grouseticks(device: str) -> bm.Fit:
    formula = "TICKS ~ C(YEAR) + (1 | BROOD)"
    return linear_fit(formula, frame("grouseticks"), likelihood="poisson", device=device)


FITS: dict[str, Callable[[str], bm.Fit]] = {
    "eight_schools": _eight_schools,
    "cbpp": _cbpp,
    "grouseticks": _grouseticks,
}


def _compare(name: str, fit: bm.Fit, quick: bool) -> pd.DataFrame:
    """One row per task and coordinate."""
    size = {"draws": 100, "warmup": 50, "chains": 1} if quick else {
        "draws": 5000, "warmup": 1000, "chains": 4
    }  # fmt: skip
    draws = bm.nuts(fit, **size)
    if not quick and draws.problems():
        raise RuntimeError(f"{name}: NUTS is no reference: {'; '.join(draws.problems())}")
    ratios = bm.diagnostics.khat(fit, draws=1000 if quick else 10_000)
    mean, sd = fit.posterior.mean, fit.posterior.sd()
    exact_mean, exact_sd = _quadrature(fit)
    columns = {
        "mean": mean,
        "sd": sd,
        "nuts_mean": draws.mean,
        "nuts_sd": draws.sd,
        "mean_difference": (mean - draws.mean) / draws.sd,
        "mean_mcse": draws.mcse / draws.sd,
        "sd_difference": sd / draws.sd - 1,
        "sd_mcse": _sd_error(draws) / draws.sd,
        "mean_quadrature_difference": (mean - exact_mean) / exact_sd,
        "sd_quadrature_difference": sd / exact_sd - 1,
        "rhat": draws.rhat,
        "ess": draws.ess,
    }
    tasks, dim = mean.shape
    table = pd.DataFrame(
        {
            "set": name,
            "task": np.repeat(fit.posterior.tasks, dim),
            "coordinate": np.tile(fit.posterior.names, tasks),
        }
    )
    values = {key: value.detach().cpu().flatten().numpy() for key, value in columns.items()}
    by_task = {"pareto_k": ratios.k, "efficiency": ratios.efficiency, "flagged": ratios.large}
    values |= {key: np.repeat(value, dim) for key, value in by_task.items()}
    return table.assign(**values, draws=len(draws.draws), divergences=draws.divergences)


def _sd_error(draws: bm.pyro_bridge.NutsResult) -> torch.Tensor:
    """Monte Carlo standard error of the sds: that of the variance, over twice the sd."""
    squares = (draws.draws - draws.mean).square()
    return squares.std(0) / draws.ess_of(squares).sqrt() / (2 * draws.sd)


def _quadrature(fit: bm.Fit) -> tuple[torch.Tensor, torch.Tensor]:
    """(task, 1) exact posterior means and sds of one-dimensional tasks, on an even grid."""
    mean, sd = fit.posterior.mean, fit.posterior.sd()
    grid = torch.linspace(-GRID_SDS, GRID_SDS, GRID_POINTS).to(mean)[:, None, None] * sd + mean
    with torch.no_grad():
        energy = fit.model.energies(grid, fit.family.batch())
        weight = torch.softmax(fit.prior.gaussian.log_prob(grid) - energy, 0)[..., None]
    exact = (weight * grid).sum(0)
    return exact, (weight * (grid - exact).square()).sum(0).sqrt()


def _figure(table: pd.DataFrame) -> Figure:
    """Differences of means and sds in posterior sds, and k̂; a row of panels per set."""
    sets = list(table["set"].unique())
    most = max(_reach(table, "mean"), _reach(table, "sd"), 150 * GOAL)
    with style():
        figure = Figure(figsize=(DOUBLE, 0.8 + 1.4 * len(sets)), layout="constrained")
        grid = figure.subplots(len(sets), 3, squeeze=False)
        for panels, name in zip(grid, sets, strict=True):
            rows = table[table["set"] == name]
            _differences(panels[0], rows, "mean")
            _differences(panels[1], rows, "sd")
            _reliability(panels[2], rows)
            for ax in panels[:2]:
                ax.set_ylim(-most, most)
            panels[2].set_xlim(-0.4, max(GOOD_K, table["pareto_k"].max()) + 0.6)
            panels[0].set_ylabel(f"{name.replace('_', ' ')}\n% of posterior sd")
        grid[0][0].set_title("mean of Q − mean by NUTS")
        grid[0][1].set_title("sd of Q − sd by NUTS")
        grid[0][2].set_title("importance-weighted draws of Q")
        handles = [h for ax in (grid[0][0], grid[0][2]) for h in ax.get_legend_handles_labels()[0]]
        figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    return figure


def _reach(table: pd.DataFrame, column: str) -> float:
    """The per cent to which the longest bar goes."""
    off, error = table[f"{column}_difference"].abs(), table[f"{column}_mcse"]
    return 105 * float((off + MCSE_DRAWN * error).max())


def _differences(ax: Axes, rows: pd.DataFrame, column: str) -> None:
    """Of all tasks, from the lowest to the highest."""
    rows = rows.sort_values(f"{column}_difference")
    off, error = (100 * rows[f"{column}_{what}"] for what in ("difference", "mcse"))
    places = range(len(rows))
    ax.axhspan(
        -100 * GOAL, 100 * GOAL, color=COLOURS["reference"], alpha=0.15, linewidth=0,
        label=f"± {100 * GOAL:.0f} %: agreement",
    )  # fmt: skip
    ax.vlines(
        places, off - MCSE_DRAWN * error, off + MCSE_DRAWN * error, color=COLOURS["nuts"],
        label=f"± {MCSE_DRAWN} NUTS standard errors", linewidth=0.9,
    )  # fmt: skip
    ax.plot(
        places, off, color=COLOURS["posterior"], linestyle="", marker=MARKERS["posterior"],
        markersize=3.5 if len(rows) < MANY else 1.5, label="difference of a task",
    )  # fmt: skip
    ax.set_xticks([])
    ax.set_xlabel(f"{len(rows)} tasks, lowest to highest")


MANY = 50
"""So many tasks have small marks."""


def _reliability(ax: Axes, rows: pd.DataFrame) -> None:
    """Effective draws against k̂, of every task."""
    ax.plot(
        rows["pareto_k"], 100 * rows["efficiency"], color=COLOURS["posterior"], linestyle="",
        marker=MARKERS["posterior"], markerfacecolor="none", markersize=3.5, markeredgewidth=0.7,
        label="a task",
    )  # fmt: skip
    ax.axvline(
        GOOD_K, color=COLOURS["reference"], linestyle="--",
        label=f"k̂ = {GOOD_K:g}: unreliable on the right, by the usual rule",
    )  # fmt: skip
    ax.set(xlim=(-0.4, 7.2), ylim=(0, 108), xlabel="Pareto k̂ of the weights")
    ax.set_ylabel("effective draws, %")
    ax.annotate(
        f"{len(rows)} tasks", (0.97, 0.08), xycoords="axes fraction", ha="right", fontsize=7
    )
