"""The response of each row, checked against what its likelihood can take.

gaussian, student_t: any finite number. bernoulli: two levels, coded 0 and 1. categorical: two or
more levels, coded 0, 1, 2, ... binomial: successes out of trials. poisson, negative_binomial:
counts 0, 1, 2, ...
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from bayesmeta.results import InputError
from bayesmeta.tables.columns import LARGEST, categories, is_category, numbers
from bayesmeta.tables.formulas import ENVIRONMENT, parse_response_call
from bayesmeta.tables.reading import Table, joined
from bayesmeta.tables.requests import LIKELIHOODS, REAL, Request, split_response
from bayesmeta.tasks import TableInfo


@dataclass(frozen=True, eq=False)
class Response:
    """The response row by row.

    Args:
        y: (row,) float64, or int64 for categorical; None when the new table has no response.
        trials: (row,) float64, binomial only.
        levels: what 0, 1, ... stand for, for bernoulli and categorical.
        parts: its columns, [y] or [successes, trials]; None for a function of columns.
    """

    y: np.ndarray | None
    trials: np.ndarray | None = None
    levels: tuple[str, ...] | None = None
    parts: list[str] | None = None

    def coding(self, written: str) -> dict[str, tuple[str, ...]]:
        return {} if self.levels is None else {written: self.levels}


def read_response(
    table: Table, request: Request, *, known: TableInfo | None = None, optional: bool = False
) -> Response:
    """Read and check the response that a request names.

    Args:
        table: the table.
        request: what to read.
        known: the earlier table whose reading is to be repeated.
        optional: an absent or wholly empty response column is fine (rows to predict).

    Raises:
        InputError: a value that the likelihood cannot take; names file, row and column.
    """
    written, likelihood = request.response, request.likelihood
    if likelihood not in LIKELIHOODS:
        raise InputError(
            f"there is no likelihood {likelihood!r}: choose one of {', '.join(LIKELIHOODS)}"
        )
    parts = _parts(table, request, known)
    if parts is None:
        return _transformed(table, written, likelihood=likelihood, optional=optional)
    _refuse_other_parts(parts, likelihood, written)
    levels = None if known is None else (known.coding or {}).get(written)
    response = _plain(table, parts, likelihood=likelihood, levels=levels, optional=optional)
    return replace(response, parts=parts)


def _parts(table: Table, request: Request, known: TableInfo | None) -> list[str] | None:
    """The response's columns; None when it should be read as a function of columns."""
    if known is not None and known.terms is not None:
        return known.terms["response"]
    parts = split_response(request.response, table.columns)
    if request.formula is not None and not set(parts) <= set(table.columns):
        return parts if parse_response_call(request.response) is None else None
    return parts


def _refuse_other_parts(parts: list[str], likelihood: str, written: str) -> None:
    """Successes/trials are for the binomial, and the binomial is for them."""
    if len(parts) == 2 and likelihood != "binomial":
        raise InputError(
            f"the response {written!r} is successes/trials, which needs likelihood 'binomial', "
            f"not {likelihood!r}"
        )
    if len(parts) == 1 and likelihood == "binomial":
        raise InputError(
            f"likelihood 'binomial' needs the response as successes/trials, not {written!r}: "
            "name the two columns, or choose 'bernoulli' for rows of 0 and 1"
        )


def _plain(
    table: Table,
    parts: list[str],
    *,
    likelihood: str,
    levels: tuple[str, ...] | None,
    optional: bool,
) -> Response:
    y = parts[0]
    n = None if len(parts) == 1 else _positive_counts(table, parts[1])
    if optional and _is_absent(table, y):
        return Response(None, n, levels)
    if likelihood == "bernoulli":
        return _bernoulli(table, y, levels)
    if likelihood == "categorical":
        return _categorical(table, y, levels)
    if likelihood in REAL:
        return Response(_real(table, y))
    values = _counts(table, y)
    if n is not None:
        _refuse_more_successes(table, parts, values, n)
    return Response(values, n)


def _transformed(table: Table, written: str, *, likelihood: str, optional: bool) -> Response:
    """A response written as a function of columns, such as log(y)."""
    call = parse_response_call(written)
    if call is None or likelihood not in REAL:
        raise InputError(
            f"the response {written!r} is computed, which needs likelihood 'gaussian' or "
            f"'student_t', not {likelihood!r}"
        )
    names = sorted(call.var_names - {""})
    if optional and any(_is_absent(table, name) for name in names):
        return Response(None)
    frame = pd.DataFrame({name: numbers(table, name) for name in names})
    with np.errstate(all="ignore"):
        values = np.asarray(call.call.eval(frame, ENVIRONMENT), dtype=np.float64)
    table.refuse_row(
        names[0],
        ~(np.abs(values) <= LARGEST),
        f"{call.name} is not finite for {{value}}",
        "correct the row, or use another function",
    )
    return Response(values)


def _is_absent(table: Table, y: str) -> bool:
    if y not in table.columns:
        return True
    column = table.frame[y]
    return bool((column.isna() | (column.astype(str).str.strip() == "")).all())


def _real(table: Table, y: str) -> np.ndarray:
    table.column(y)  # an absent column is the first thing to say
    if is_category(table, y) and len(categories(table, y).names) == 2:
        found = categories(table, y).names
        raise InputError(
            f"{table.cell(y, 0)}: {table.written(y).iloc[0]!r} is not a number; the two levels "
            f"{joined(found)} suit likelihood 'bernoulli'"
        )
    return numbers(table, y)


def _counts(table: Table, y: str) -> np.ndarray:
    values = _whole_numbers(table, y)
    table.refuse_row(y, values < 0, "{value} is negative, which no count is", "correct it")
    return values


def _whole_numbers(table: Table, y: str) -> np.ndarray:
    values = numbers(table, y)
    table.refuse_row(
        y,
        values != np.floor(values),
        "{value} is not a whole number",
        "correct it, or choose likelihood 'gaussian'",
    )
    return values


def _positive_counts(table: Table, trials: str) -> np.ndarray:
    values = _counts(table, trials)
    table.refuse_row(
        trials, values <= 0, "there are {value} trials", "remove the row or correct the number"
    )
    return values


def _refuse_more_successes(
    table: Table, parts: list[str], values: np.ndarray, n: np.ndarray
) -> None:
    successes, trials = parts
    too_many = values > n
    if too_many.any():
        table.refuse_row(
            successes,
            too_many,
            f"{{value}} successes are more than the {n[too_many][0]:g} trials of column {trials!r}",
            "correct one of the two",
        )


def _bernoulli(table: Table, y: str, levels: tuple[str, ...] | None) -> Response:
    found = categories(table, y, levels)
    if levels is None and set(found.names) <= {"0", "1"}:
        codes = np.array([int(name) for name in found.names])[found.codes]
        return Response(codes.astype(np.float64), levels=("0", "1"))
    if len(found.names) > 2:
        table.refuse_row(
            y,
            found.codes > 1,
            f"{{value}} is a third level beside {joined(found.names[:2])}",
            "correct it, or choose likelihood 'categorical'",
        )
    _refuse_one_level(table, y, found.names, "bernoulli")
    return Response(found.codes.astype(np.float64), levels=found.names)


def _categorical(table: Table, y: str, levels: tuple[str, ...] | None) -> Response:
    if levels is None and not is_category(table, y):
        _whole_numbers(table, y)
    found = categories(table, y, levels)
    _refuse_one_level(table, y, found.names, "categorical")
    return Response(found.codes.astype(np.int64), levels=found.names)


def _refuse_one_level(table: Table, y: str, levels: tuple[str, ...], likelihood: str) -> None:
    if len(levels) == 1:
        raise InputError(
            f"{table.source}, column {y!r} is {joined(levels)!r} in every row: likelihood "
            f"{likelihood!r} needs two levels"
        )
