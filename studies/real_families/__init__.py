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
    """How close exact methods, variational ones and points come, and what points lack."""
    linear = table["set"].isin(_sets(table, "reference", evidence_kind="exact"))
    exact, other = table[linear], table[~linear]
    sizes = table.groupby("set")[["tasks", "rows"]].first().sum()
    apart = (
        f"{_most(exact, EXACT, 'mean_off'):.0e} standard errors of θ₀ on linear-Gaussian sets "
        f"({exact['set'].nunique()})"
    )
    if len(other):
        most = _most(other, EXACT, "mean_off")
        apart += f" and {most:.2g} on others ({other['set'].nunique()})"
    return (
        f"On {table['set'].nunique()} real families ({sizes['tasks']:,} tasks, {sizes['rows']:,} "
        f"rows) joint and Laplace fits agree with those of lme4, nlme or quadrature within "
        f"{apart}. {_typical(table)} {_lacking(table)}"
    )


def _typical(table: pd.DataFrame) -> str:
    """By how much θ₀ or a shared weight is off in the median set."""
    others = [m for m in figures.LABELS if m not in (*EXACT, "quadrature")]
    rows = table[table["method"].isin(others)].dropna(subset=["mean_off"])
    worst = rows["mean_off"].abs().groupby([rows["method"], rows["set"]]).max()
    typical = worst.groupby("method").median().sort_values()
    least, most = (figures.LABELS[typical.index[i]].replace(", ", " (") for i in (0, -1))
    least, most = (f"{name})" if "(" in name else name for name in (least, most))
    said = f"{typical.iloc[-1]:.2g} standard errors by {most}"
    if len(typical) > 1:
        said = f"{typical.iloc[0]:.2g} standard errors by the best, {least}, and {said}, the worst"
    return f"In the median set descents leave θ₀ or a shared weight off by {said}."


def _lacking(table: pd.DataFrame) -> str:
    """What points say wrongly of the noise, and Laplace's method of the tasks' means."""
    points = [m for m in figures.LABELS if _of(table, m)["tasks_sd"].isna().all()]
    noise = table[table["method"].isin(points)]["noise_off"].dropna()
    said = "Points have no posterior sds"
    if len(noise):
        said += f", and their noise sds are off by {noise.min():+.0%} to {noise.max():+.0%}"
    held = {m: _of(table, m).groupby("set")["held_mean"].first().dropna() for m in EXACT}
    if all(len(one) for one in held.values()):
        worst = held["laplace"].idxmax()
        said += (
            f", and under the prior that NUTS has Laplace's means of tasks lie up to "
            f"{held['laplace'].max():.2g} posterior sds from NUTS' ({worst.replace('_', ' ')}), "
            f"those of joint fits {held['joint'].max():.2g}"
        )
    return f"{said}."


def _of(table: pd.DataFrame, method: str) -> pd.DataFrame:
    return table[table["method"] == method]


def _sets(table: pd.DataFrame, method: str, **values: str) -> list[str]:
    rows = _of(table, method)
    for column, value in values.items():
        rows = rows[rows[column] == value]
    return list(rows["set"].unique())


def _most(table: pd.DataFrame, methods: Sequence[str], column: str) -> float:
    return float(table[table["method"].isin(methods)][column].abs().max())
