"""Fifteen real families of tasks, every method that applies, and other programs' fits beside them.

    sets         the families, what varies between tasks, units that suit descent
    references   lme4, nlme, statsmodels, and the exact posteriors at their estimates
    fits         every method's fit in one form
    measure      rows: one per set, method and coefficient, with its distance from the reference
    figures      a page of posteriors, and the distances

Joint, Laplace and quadrature see the table as it is. The methods that descend get standardised
columns and one setting for all sets, whose numbers are not chosen set by set; where the library
refuses, or something had to give, `why` says so. With prior and ψ held alike the Gaussian Q_i of
variational iMAML is Laplace's, so only Laplace's and the joint one are compared so with NUTS.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from bayesmeta.results import InputError
from studies._framework import Result
from studies.real_families import figures, measure
from studies.real_families.fits import Size
from studies.real_families.sets import SETS

QUESTION = "What does every applicable method say of every real family of tasks?"
QUICK = Size(
    steps=3,
    draws=0,
    sets=("eight_schools", "dyestuff", "baseball"),
    methods=("joint", "laplace", "maml"),
)
COLUMNS = (
    *("set", "method", "coefficient", "role", "prior_mean", "prior_sd", "noise", "noise_off"),
    *("log_evidence", "evidence_kind", "nats", "mean_off", "sd_off", "tasks_mean", "tasks_sd"),
    *("held_mean", "held_sd", "mean_error", "sd_error", "divergences", "rhat"),
    *("seconds", "tasks", "rows", "why"),
)
EXACT = ("joint", "laplace")
ARRIVED = 0.001
"""Nats within which another program's optimiser counts as arrived."""


def run(quick: bool, device: str) -> Result:
    """Every set, one after the other.

    Raises:
        InputError: `device` is not the CPU: seconds are compared with other programs'.
    """
    if device != "cpu":
        raise InputError(f"the times are those of a CPU: leave --device {device} out")
    size = QUICK if quick else Size()
    chosen = [one for one in SETS if size.sets is None or one.name in size.sets]
    rows, drawn = [], []
    for one in chosen:
        found, shown = measure.compare(one, size)
        rows += found
        drawn.append(shown)
    table = pd.DataFrame(rows).reindex(columns=list(COLUMNS))
    return Result(table, {"real_families_spread": figures.page(drawn)})


def draw(table: pd.DataFrame) -> dict[str, Figure]:
    """The figure of the table; the page of posteriors is of the fits themselves."""
    return {
        "real_families": figures.distances(table),
    }


def headline(table: pd.DataFrame) -> str:
    """How close exact methods, Laplace, variational and point methods come, from the table."""
    linear = table["set"].isin(_sets(table, "reference", evidence_kind="exact"))
    exact, other = table[linear], table[~linear]
    sizes = table.groupby("set")[["tasks", "rows"]].first().sum()
    said = (
        f"On {table['set'].nunique()} real families ({sizes['tasks']:,} tasks, {sizes['rows']:,} "
        f"rows) joint and Laplace equal the recorded fits of lme4, nlme or quadrature: on "
        f"{exact['set'].nunique()} linear-Gaussian ones within {_most(exact, EXACT, 'nats'):.0e} "
        f"nats, {_most(exact, EXACT, 'mean_off'):.0e} standard errors of θ₀, "
        f"{_most(exact, EXACT, 'sd_off'):.0e} in prior sds (relative) and "
        f"{_most(exact, EXACT, 'tasks_mean'):.0e} posterior sds of the tasks' means"
    )
    others = _of(exact, "statsmodels").groupby("set")["nats"].first().abs().dropna()
    if len(others):
        arrived = int((others <= ARRIVED).sum())
        said += (
            f" (statsmodels' MixedLM arrives within {ARRIVED} nats on {arrived} of {len(others)})"
        )
    if (other["method"] == "quadrature").any():
        bounds = _of(other, "joint")["nats"]
        said += (
            f"; on the other {other['set'].nunique()} within "
            f"{_most(other, ['laplace'], 'nats'):.1g} nats (Laplace's evidence) and "
            f"{_most(other, ['quadrature'], 'nats'):.0e} (quadrature), and the joint bound is at "
            f"most {-bounds.min():.2g} nats below"
        )
    return f"{said}. {_held(table)}{_losses(table)}"


def _held(table: pd.DataFrame) -> str:
    """Posteriors against NUTS, prior and ψ held alike."""
    drawn = table[(table["method"] == "nuts") & table["mean_error"].notna()]
    if drawn.empty:
        return ""
    parts = []
    for method in EXACT:
        rows = _of(table, method).dropna(subset=["held_mean"]).groupby("set").first()
        worst = rows["held_mean"].idxmax()
        parts.append(
            f"{figures.LABELS[method]}'s means are within {rows['held_mean'].median():.2f} in the "
            f"median set, {rows['held_mean'].max():.2f} at most ({worst}), and sds within "
            f"{rows['held_sd'].median():.0%} and {rows['held_sd'].max():.0%}"
        )
    return (
        f"Under the prior that NUTS has too ({drawn['set'].nunique()} sets; largest differences of "
        f"all tasks, in posterior sds; NUTS' own standard errors up to "
        f"{drawn['mean_error'].max():.2f} and {drawn['sd_error'].max():.0%}) {'; '.join(parts)}. "
    )


def _losses(table: pd.DataFrame) -> str:
    """What variational and point methods leave of θ₀, and points of the tasks and the noise."""
    off, tasks, noises = [], [], []
    for method in (m for m in figures.LABELS if m not in (*EXACT, "quadrature")):
        rows, label = _of(table, method), figures.LABELS[method]
        means = rows["mean_off"].abs().groupby(rows["set"]).max().dropna()
        if means.empty:
            continue
        off.append(f"{label} {means.median():.2g} ({means.max():.2g}, {means.idxmax()})")
        if rows["tasks_sd"].isna().all():
            tasks.append(f"{rows.groupby('set')['tasks_mean'].first().median():.2g} ({label})")
            noises.append(rows["noise_off"].dropna())
    noise = pd.concat(noises) if noises else pd.Series(dtype=float)
    return (
        f"θ₀ or a shared weight is off, in standard errors in the median set (at most), by "
        f"{'; '.join(off)}; points have no posterior sd, and the worst task's weight is off by "
        f"{', '.join(tasks)} posterior sds in the median set and the noise sd by "
        f"{noise.min():+.0%} to {noise.max():+.0%}."
    )


def _of(table: pd.DataFrame, method: str) -> pd.DataFrame:
    return table[table["method"] == method]


def _sets(table: pd.DataFrame, method: str, **values: str) -> list[str]:
    rows = _of(table, method)
    for column, value in values.items():
        rows = rows[rows[column] == value]
    return list(rows["set"].unique())


def _most(table: pd.DataFrame, methods: Sequence[str], column: str) -> float:
    return float(table[table["method"].isin(methods)][column].abs().max())
