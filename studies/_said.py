"""Words and numbers of the sentences in `studies/_which.py` and `studies/_pages.py`.

A table that lacks a number, or has none there that is finite, is refused: a sentence without it
would say something else than was asked.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np
import pandas as pd

from bayesmeta.results import InputError
from studies.calibration.figures import HIGH, select
from studies.calibration.fitted import OWN


def at(values: pd.Series, key: Hashable) -> float:
    """The number with this label.

    Raises:
        InputError: there is none, there are several, or it is not finite.

    Example:
        >>> at(pd.Series({"maml": 0.5}), "maml")
        0.5
    """
    found = [value for label, value in values.items() if label == key]
    if len(found) != 1:
        raise InputError(f"the table has {count(len(found), 'value')} for {key!r}: one is needed")
    return finite(found[0], str(key))


def finite(value: float, name: str) -> float:
    """The value, as a float.

    Raises:
        InputError: it is infinite or no number.
    """
    if not math.isfinite(value):
        raise InputError(f"the table's value for {name!r} is {value}: a finite one is needed")
    return float(value)


def whole(values: pd.Series) -> pd.Series:
    """The same; minima, means and medians of it leave nothing out unsaid.

    Raises:
        InputError: it is empty, or a value is not finite.
    """
    if values.empty:
        raise InputError(f"the table has no rows for {str(values.name)!r}")
    bad = int((~np.isfinite(values.to_numpy(float))).sum())
    if bad:
        raise InputError(f"the table has {count(bad, 'value')} of {values.name!r} not finite")
    return values


def count(number: float, noun: str) -> str:
    """As "1 fit" or "6,000 fits"."""
    return f"{number:,.0f} {noun}{'' if number == 1 else 's'}"


def nats(value: float) -> str:
    """Two digits, and no minus before zero."""
    return f"{round(value, 2) + 0:.2f}"


def percent(share: float) -> str:
    """As "97 %"."""
    return f"{round(100 * share)} %"


def at_least(share: float) -> str:
    """The same, rounded down."""
    return f"{math.floor(round(100 * share, 6))} %"


def at_most(value: float) -> str:
    """One digit, rounded up, as in "within 0.0003".

    Example:
        >>> at_most(0.00024)
        '0.0003'
    """
    if value == 0:
        return "0"
    unit = 10.0 ** math.floor(math.log10(value))
    return f"{math.ceil(round(value / unit, 6)) * unit:.1g}"


def span(values: pd.Series) -> str:
    """As "107 to 150", or "125" where both ends are that."""
    low, high = (f"{end:.0f}" for end in (whole(values).min(), values.max()))
    return low if low == high else f"{low} to {high}"


def listed(names: Sequence[str]) -> str:
    """As "a, b and c"."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def tied(scores: pd.DataFrame, low: str, high: str) -> list[str]:
    """Labels of the rows whose intervals reach that of the first row, itself among them.

    Args:
        scores: the best first; lower is better.
        low, high: columns, the ends of intervals.
    """
    whole(scores[low])
    return list(scores.index[scores[low] <= whole(scores[high]).iloc[0]])


def adapted(table: pd.DataFrame, points: int) -> tuple[str, pd.DataFrame]:
    """Of `few_shot_sinusoid`: seconds of training, and every method's best number of steps.

    Args:
        table: of the study.
        points: of a new sinusoid.

    Returns:
        The seconds in words, and one row a method, the least squared error first.
    """
    rows = table[table["points"] == points]
    best = rows.loc[whole(rows["mse"]).groupby(rows["method"]).idxmin()]
    return span(rows["seconds"]), best.sort_values("mse").set_index("method")


def fitted_coverage(table: pd.DataFrame) -> pd.DataFrame:
    """(form, tasks) of `calibration`: 95 % intervals of own tasks, linear; share and its error."""
    rows = select(table, part="fitted", level=HIGH, data=OWN, family="linear")
    whole(rows["coverage"])
    return rows.set_index(["form", "tasks"])[["coverage", "coverage_se"]]
