"""What a column means: numbers, categories, or the tasks themselves.

A text that reads as a number is a number; other text is a category; a task column is always a
label, exactly as written. Every function checks the whole column and names the first bad cell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from pandas.api import types

from bayesmeta.results import InputError
from bayesmeta.tables.reading import Table, joined

MISSING = ("", "NA", "N/A", "#N/A", "NaN", "nan", "null", "NULL")
LARGEST = 1e150  # the square of anything larger overflows a float64
MOST_LEVELS = 20
MIXED_SHARE = 0.05  # of the rows, that a text among numbers must fill to be a level, not a typo


@dataclass(frozen=True, eq=False)
class Levels:
    """A column of labels: codes (row,) into names.

    Args:
        codes: (row,) position in `names`.
        names: the distinct labels.
    """

    codes: np.ndarray
    names: tuple[str, ...]


def numbers(table: Table, name: str, *, or_else: str = "") -> np.ndarray:
    """(row,) float64 values of a column that must be numeric, finite and of sane magnitude.

    Args:
        table: the table.
        name: the column.
        or_else: further advice where a text stands for a number.

    Raises:
        InputError: a value is missing, text, not finite or above `LARGEST`; names the row.
    """
    column = table.column(name)
    _refuse_dates(table, name, column)
    values = _parsed(column)
    unread = np.isnan(values)
    if unread.any():
        _refuse_unread(table, name, unread, or_else)
    table.refuse_row(
        name, np.isinf(values), "{value} is not finite", "correct it or remove the row"
    )
    table.refuse_row(
        name,
        np.abs(values) > LARGEST,
        "{value} is too large to square in double precision",
        "correct it, or change the column's units",
    )
    return values


def _refuse_unread(table: Table, name: str, unread: np.ndarray, or_else: str) -> None:
    column = table.column(name)
    missing = unread.copy()
    missing[unread] = _missing(column.loc[unread])
    table.refuse_row(
        name, missing, "the value is missing ({value})", "fill it in or remove the row"
    )
    advice = f"correct it or remove the row{or_else}"
    if _has_decimal_commas(column.loc[unread]):
        advice = "write decimals with a point, not a comma"
    table.refuse_row(name, unread, "{value} is not a number", advice)


def is_category(table: Table, name: str) -> bool:
    """Whether a predictor is a category rather than a number.

    Numeric columns are numbers; pandas categories, booleans and texts are categories. A column
    that mixes the two is a category when its texts recur (levels 0, 1, 2, 3+), and otherwise a
    number with a typing error in it.
    """
    column = table.column(name)
    _refuse_dates(table, name, column)
    if isinstance(column.dtype, pd.CategoricalDtype) or types.is_bool_dtype(column):
        return True
    if types.is_numeric_dtype(column):
        return False
    text = np.isnan(_parsed(column))
    text[text] = ~_missing(column.loc[text])
    if not text.any():
        return False
    if text.all():
        return _has_few_levels(table, name, column)
    return _recurs(column, text)


def mixes_numbers_and_text(table: Table, name: str) -> bool:
    """Whether a category's levels are partly numbers, so that a typing error could hide there."""
    column = table.column(name)
    if types.is_numeric_dtype(column) or isinstance(column.dtype, pd.CategoricalDtype):
        return False
    text = np.isnan(_parsed(pd.Series(column.unique())))
    return bool(text.any() and not text.all())


def labels(table: Table, name: str) -> Levels:
    """The labels of a column exactly as written, in order of first appearance."""
    codes, unique = pd.factorize(table.written(name))
    absent = np.append(_missing(pd.Series(unique)), True)  # factorize codes a null as -1, the last
    table.refuse_row(
        name,
        absent[codes],
        "the label is missing ({value})",
        "fill it in, remove the row, or rename the label",
    )
    return _merged(codes, [_text(value) for value in np.asarray(unique, dtype=object)])


def categories(table: Table, name: str, levels: Sequence[str] | None = None) -> Levels:
    """A category's codes, and its levels with the reference first.

    Args:
        table: the table.
        name: the column.
        levels: the levels of an earlier table; None to find them. Found levels are sorted (as
            numbers if all are), but a pandas category keeps its own order.

    Raises:
        InputError: a label is missing, or is not among `levels`.
    """
    found = labels(table, name)
    found = _merged(found.codes, _canonical([label.strip() for label in found.names]))
    if levels is None:
        levels = _ordered(table.column(name), found.names)
    place = {level: i for i, level in enumerate(levels)}
    to = np.array([place.get(label, -1) for label in found.names])
    codes = to[found.codes]
    table.refuse_row(
        name,
        codes < 0,
        f"the level {{value}} is not one of those fitted ({joined(levels, 12)})",
        "correct it, or fit again with this level in the data",
    )
    return Levels(codes, tuple(levels))


def groups(table: Table, name: str) -> Levels:
    """The task of each row; "a:b" is the interaction of columns a and b, if no column is so named.

    Returns:
        Codes and names in order of first appearance.
    """
    parts = [name] if name in table.columns else group_columns(table, name)
    crossed = labels(table, parts[0])
    for part in parts[1:]:
        other = labels(table, part)
        pairs, unique = pd.factorize(crossed.codes * len(other.names) + other.codes)
        left, right = np.divmod(unique, len(other.names))
        joint = [f"{crossed.names[i]}:{other.names[j]}" for i, j in zip(left, right, strict=True)]
        crossed = Levels(pairs, tuple(joint))
    if len(set(crossed.names)) < len(crossed.names):
        raise InputError(
            f"{table.source}: different tasks of {name!r} get the same name when joined by ':'; "
            "rename the labels that contain ':'"
        )
    return crossed


def group_columns(table: Table, name: str) -> list[str]:
    """The raw columns behind a task column, two or more for an interaction."""
    parts = name.split(":")
    if name not in table.columns and all(part in table.columns for part in parts):
        return parts
    return [name]


def _missing(column: pd.Series) -> np.ndarray:
    absent = column.isna().to_numpy(dtype=bool)
    if types.is_string_dtype(column) or types.is_object_dtype(column):
        stripped = column.astype(str).str.strip()
        absent = absent | stripped.isin(MISSING).to_numpy(dtype=bool)
    return absent


def _parsed(column: pd.Series) -> np.ndarray:
    """float64 values, NaN where a cell does not read as a number."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        column = column.astype(str)
    values = pd.Series(pd.to_numeric(column, errors="coerce"))
    return values.to_numpy(dtype=np.dtype(np.float64), na_value=np.nan)


def _refuse_dates(table: Table, name: str, column: pd.Series) -> None:
    is_time = types.is_datetime64_any_dtype(column) or types.is_timedelta64_dtype(column)
    if is_time or types.is_complex_dtype(column):
        raise InputError(
            f"{table.source}, column {name!r} holds {column.dtype} values: turn it into a number "
            "first, such as days since a start"
        )


def _has_decimal_commas(texts: pd.Series) -> bool:
    with_points = texts.astype(str).str.replace(",", ".", n=1, regex=False)
    return bool(np.isfinite(_parsed(with_points)).all())


def _has_few_levels(table: Table, name: str, column: pd.Series) -> bool:
    """True for a category; a column of ever new texts is neither a number nor a category."""
    if _has_decimal_commas(column):
        return False  # `numbers` then refuses it, with the advice
    distinct = column.nunique()
    if distinct > MOST_LEVELS and distinct > len(column) / 2:
        raise InputError(
            f"{table.cell(name, 0)}: {column.iloc[0]!r} is not a number, and {distinct} different "
            f"texts in {len(column)} rows are no category; leave the column out or code it first"
        )
    return True


def _recurs(column: pd.Series, text: np.ndarray) -> bool:
    if column.nunique() > min(MOST_LEVELS, len(column) / 3):
        return False
    counts = column.loc[text].value_counts()
    return bool(counts.min() >= max(2, MIXED_SHARE * len(column)))


def _text(value: object) -> str:
    """A label as text; a whole number loses the point that pandas adds."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _canonical(names: Sequence[str]) -> list[str]:
    """Numeric levels spelt one way ("1" and "1.0" are one level) when all levels are numbers."""
    values = _parsed(pd.Series(names, dtype=object))
    return list(map(_text, values.tolist() if np.isfinite(values).all() else names))


def _merged(codes: np.ndarray, names: Sequence[str]) -> Levels:
    """Codes after labels that are spelt alike became one, in order of first appearance."""
    merged, unique = pd.factorize(np.array(names, dtype=object))
    return Levels(merged[codes], tuple(map(str, unique)))


def _ordered(column: pd.Series, names: Sequence[str]) -> list[str]:
    if isinstance(column.dtype, pd.CategoricalDtype):
        own = _canonical([_text(level).strip() for level in column.dtype.categories])
        return [level for level in own if level in set(names)]
    values = _parsed(pd.Series(names, dtype=object))
    if np.isfinite(values).all():
        return [names[int(i)] for i in np.argsort(values, kind="stable")]
    return sorted(names)
