"""Real families of tasks, read from the tests' data."""

from __future__ import annotations

import pandas as pd

import bayesmeta as bm
from studies._framework import ROOT

DATA = ROOT / "tests" / "data"


def frame(name: str) -> pd.DataFrame:
    """A table of tests/data."""
    return pd.read_csv(DATA / f"{name}.csv")


def linear_fit(
    formula: str,
    table: pd.DataFrame,
    *,
    likelihood: str = "gaussian",
    known_error: str | None = None,
    **options: object,
) -> bm.Fit:
    """A linear predictor fitted to a table; `options` are those of `bm.fit`."""
    family = bm.TaskFamily.from_formula(
        formula, table, likelihood=likelihood, standard_error=known_error
    )
    model = bm.models.linear(family, bm.likelihoods.by_name(likelihood))
    return bm.fit(model, family, **options)
