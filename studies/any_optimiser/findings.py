"""Errors against those of the starts trained by `shared`, seed by seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

LEVEL = 0.95
BASE = "shared"


@dataclass(frozen=True)
class Ratio:
    """A geometric mean over seeds of error / error of another start, and its t interval."""

    middle: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.middle:.2f} [{self.low:.2f}, {self.high:.2f}]"

    @property
    def verdict(self) -> str:
        """What the interval says of 1."""
        if self.high < 1:
            return "lower"
        return "higher" if self.low > 1 else "undecided"


def ratio(
    table: pd.DataFrame,
    family: str,
    method: str,
    algorithms: Sequence[str],
    *,
    to: str = BASE,
    value: str = "error",
) -> Ratio:
    """Geometric mean over algorithms and seeds, interval over seeds.

    Args:
        table: of the study.
        family: of tasks.
        method: that trained the starts.
        algorithms: that adapt them.
        to: the method of the other starts.
        value: column, "error" or "error_at_mean".
    """
    part = table[table["family"].eq(family) & table["algorithm"].isin(algorithms)]
    logs = np.log(part.pivot(index="seed", columns=["method", "algorithm"], values=value))
    differences = (logs[method] - logs[to]).mean(axis=1).to_numpy()
    middle, count = differences.mean(), len(differences)
    spread = differences.std(ddof=1) / count**0.5
    half = float(stats.t.ppf((1 + LEVEL) / 2, count - 1)) * spread
    return Ratio(*(float(np.exp(end)) for end in (middle, middle - half, middle + half)))


def algorithms(table: pd.DataFrame, seen: str) -> list[str]:
    """Those that the training of these starts has seen, in the table's order."""
    return list(dict.fromkeys(table[table["seen"].eq(seen)]["algorithm"]))


def error(table: pd.DataFrame, family: str, method: str, algorithm: str) -> float:
    """Geometric mean over seeds."""
    chosen = table["family"].eq(family) & table["method"].eq(method)
    part = table[chosen & table["algorithm"].eq(algorithm)]
    return float(np.exp(np.log(part["error"]).mean()))
