"""What is asked of a table: which column plays which part, and the known parts of each row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bayesmeta.results import InputError
from bayesmeta.tables.columns import group_columns, numbers
from bayesmeta.tables.designs import raw_column
from bayesmeta.tables.formulas import Formula
from bayesmeta.tables.reading import Table

REAL = ("gaussian", "student_t")
COUNTS = ("poisson", "negative_binomial")
LIKELIHOODS = (*REAL, "bernoulli", "binomial", "categorical", *COUNTS)


@dataclass(frozen=True)
class Request:
    """Which column plays which part.

    Args:
        task: the group column, or "a:b".
        response: as written, e.g. "Reaction" or "incidence/size".
        likelihood: one of `LIKELIHOODS`.
        formula: the formula, or None when the predictors are listed in `x`.
        x: predictor columns.
        offset, exposure, standard_error: columns.
    """

    task: str
    response: str
    likelihood: str
    formula: Formula | None = None
    x: tuple[str, ...] = ()
    offset: str | None = None
    exposure: str | None = None
    standard_error: str | None = None

    @property
    def predictors(self) -> tuple[str, ...]:
        return self.x if self.formula is None else self.formula.predictors


def split_response(written: str, columns: Sequence[str]) -> list[str]:
    """The columns of a response as written: [y], or [successes, trials].

    Example:
        >>> split_response("incidence / size", ["herd", "incidence", "size"])
        ['incidence', 'size']
    """
    bare = written.strip()
    parts = bare.split("/", 1) if bare not in columns and "/" in bare else [bare]
    return [part.strip().removeprefix("`").removesuffix("`") for part in parts]


def refuse_shared_roles(table: Table, request: Request) -> None:
    """A column cannot be both what is explained and what explains it, nor the task as well."""
    predictors = [raw_column(name, table) for name in request.predictors]
    repeated = [name for i, name in enumerate(request.x) if name in request.x[:i]]
    if repeated:
        raise InputError(f"predictor {repeated[0]!r} is listed twice: list it once")
    known_parts = [request.offset, request.exposure, request.standard_error]
    group = group_columns(table, request.task)
    task = group[0] if len(group) == 1 else None  # an interaction's parts may also be predictors
    response = split_response(request.response, table.columns)[0]
    if response == task:
        raise InputError(f"column {task!r} is both the task and the response: name two columns")
    for role, name in (("task", task), ("response", response)):
        if name in predictors:
            raise InputError(
                f"column {name!r} is both the {role} and a predictor: predict from other columns"
            )
        if name is not None and name in known_parts:
            raise InputError(
                f"column {name!r} is both the {role} and an offset, exposure or standard error: "
                "name another column"
            )


def read_offset(table: Table, request: Request, in_formula: np.ndarray | None) -> np.ndarray | None:
    """(row,) what is added to the linear predictor: offsets, and the log of the exposure."""
    parts = [] if in_formula is None else [in_formula]
    if request.offset is not None:
        parts.append(numbers(table, request.offset))
    if request.exposure is not None:
        if request.likelihood not in COUNTS:
            raise InputError(
                f"an exposure column is for counts ({', '.join(COUNTS)}), not for likelihood "
                f"{request.likelihood!r}: use offset= for a shift of the linear predictor"
            )
        parts.append(np.log(_positive(table, request.exposure, "exposure")))
    return np.sum(parts, axis=0) if parts else None


def read_standard_error(table: Table, request: Request) -> np.ndarray | None:
    """(row,) the known noise sd of each row."""
    if request.standard_error is None:
        return None
    if request.likelihood != "gaussian":
        raise InputError(
            f"a standard error column is for likelihood 'gaussian', not {request.likelihood!r}: "
            "leave it out"
        )
    return _positive(table, request.standard_error, "standard error")


def _positive(table: Table, name: str, what: str) -> np.ndarray:
    values = numbers(table, name)
    why = f"{{value}} is no {what}, which must be above 0"
    table.refuse_row(name, values <= 0, why, "correct it or remove the row")
    return values
