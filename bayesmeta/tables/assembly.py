"""Families of tasks from tables: rows are gathered by task, padded, masked, and annotated.

What was read is kept in `TableInfo`, so that a new table is read in exactly the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from bayesmeta.results import InputError
from bayesmeta.tables.columns import Levels, groups
from bayesmeta.tables.designs import Design, design_of_columns, design_of_formula
from bayesmeta.tables.formulas import parse_formula
from bayesmeta.tables.reading import Table, open_table
from bayesmeta.tables.remarks import refuse_constant_response, refuse_single_task, remarks
from bayesmeta.tables.requests import (
    Request,
    read_offset,
    read_standard_error,
    refuse_shared_roles,
)
from bayesmeta.tables.responses import read_response
from bayesmeta.tasks import TableInfo, TaskFamily
from bayesmeta.typed import BROKEN

LARGEST_FAMILY = 16 * 2**30  # bytes of padded features


def family_from_csv(
    path: str | Path,
    *,
    task: str,
    y: str,
    x: Sequence[str] | str = (),
    offset: str | None = None,
    exposure: str | None = None,
    standard_error: str | None = None,
    likelihood: str = "gaussian",
) -> TaskFamily:
    r"""A family of tasks from a delimited text file, one row per observation.

    Args:
        path: the file; its first line names the columns.
        task: the group column, or "a:b" for the interaction of two.
        y: the response column; "successes/trials" for a binomial.
        x: predictor columns. Text is a category; "C(Diet)" makes a numeric column one. No
            intercept is added: models have their own.
        offset: a column added to the linear predictor.
        exposure: a column > 0 whose log is added to the linear predictor of counts.
        standard_error: a column > 0, the known noise sd of each row, in units of y.
        likelihood: the name of the likelihood that y must suit.

    Returns:
        Tensors x (task, row, features), y (task, row) and, where given, trials, offset,
        standard_error; tasks and rows in file order; `table.notes` says what was done.

    Raises:
        InputError: anything that would make a wrong number, with file, line and column.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "growth.csv")
        ...     _ = file.write_text("plant,day,cm\na,0,1\na,1,2.5\nb,0,1.5\n")
        ...     family = family_from_csv(file, task="plant", x=["day"], y="cm")
        >>> family.names, family.rows.tolist(), family.tensors["y"].tolist()
        (('a', 'b'), [2, 1], [[1.0, 2.5], [1.5, 1.5]])
    """
    columns = (x,) if isinstance(x, str) else tuple(x)
    request = Request(task, y, likelihood, None, columns, offset, exposure, standard_error)
    return _family(open_table(path), request)


def family_from_dataframe(
    frame: pd.DataFrame,
    *,
    task: str,
    y: str,
    x: Sequence[str] | str = (),
    offset: str | None = None,
    exposure: str | None = None,
    standard_error: str | None = None,
    likelihood: str = "gaussian",
    source: str = "DataFrame",
) -> TaskFamily:
    """A family of tasks from a DataFrame, one row per observation; see `family_from_csv`.

    Args:
        frame: the rows. pandas categories keep their order, and booleans are categories.
        task: the group column, or "a:b".
        y: the response column, or "successes/trials".
        x: predictor columns.
        offset: a column added to the linear predictor.
        exposure: a column > 0 whose log is added to it.
        standard_error: a column > 0, the known noise sd.
        likelihood: the name of the likelihood that y must suit.
        source: what messages call the table.

    Example:
        >>> frame = pd.DataFrame({"g": ["a", "a", "b", "b"], "y": [1.0, 2, 3, 4]})
        >>> family_from_dataframe(frame, task="g", y="y").tensors["x"].shape
        torch.Size([2, 2, 0])
    """
    columns = (x,) if isinstance(x, str) else tuple(x)
    request = Request(task, y, likelihood, None, columns, offset, exposure, standard_error)
    return _family(open_table(frame, source=source), request)


def family_from_formula(
    formula: str,
    data: pd.DataFrame | str | Path,
    *,
    offset: str | None = None,
    exposure: str | None = None,
    standard_error: str | None = None,
    likelihood: str = "gaussian",
) -> TaskFamily:
    """A family of tasks from an lme4-style formula: the bar is adapted, the rest is shared.

    Args:
        formula: e.g. "Reaction ~ Days + (Days | Subject)", "incidence/size ~ period + (1 | herd)".
        data: a DataFrame or a file.
        offset: a column added to the linear predictor, beside any offset(...) in the formula.
        exposure: a column > 0 whose log is added to it.
        standard_error: a column > 0, the known noise sd.
        likelihood: the name of the likelihood that the response must suit.

    Returns:
        As `family_from_csv`, but x has a column of ones named "Intercept" where the formula has
        one, and adapted columns come first (`table.adapted`).

    Example:
        >>> frame = pd.DataFrame({"g": ["a", "a", "b", "b"], "t": [0, 1, 0, 2], "y": [1, 2, 3, 5]})
        >>> family = family_from_formula("y ~ t + (1 | g)", frame)
        >>> family.table.columns, family.table.adapted
        (('Intercept', 't'), ('Intercept',))
    """
    read = parse_formula(formula)
    request = Request(
        read.task, read.response, likelihood, read, (), offset, exposure, standard_error
    )
    return _family(open_table(data), request)


def family_like(
    table: TableInfo, data: pd.DataFrame | str | Path, *, require_response: bool = True
) -> TaskFamily:
    """A new table read exactly as an earlier one: same columns, coding and transformations.

    One task, one row and constant columns are all fine here.

    Args:
        table: the `table` of the family that was read first.
        data: the new rows.
        require_response: False lets the response be absent (or empty); then there is no "y".

    Raises:
        InputError: as when reading first, and for a level that the first table did not have.
    """
    if table.terms is None:
        raise InputError(f"the record of {table.source} does not say how to read a new table")
    new = open_table(data)
    try:
        formula = None if table.formula is None else parse_formula(table.formula)
        request = Request(
            table.task,
            table.response,
            table.terms["likelihood"],
            formula,
            table.x,
            table.offset,
            table.exposure,
            table.standard_error,
        )
        return _family(new, request, known=table, optional=not require_response)
    except InputError:
        raise
    except BROKEN as error:  # the record may be of a file that somebody changed
        raise InputError(
            f"{new.source} cannot be read as the record of {table.source} says ({error!r}): fit "
            "again"
        ) from error


def row_order(table: TableInfo, data: pd.DataFrame | str | Path) -> np.ndarray:
    """Where each row of a family came from: positions in the table, task by task.

    `frame.iloc[row_order(family.table, frame)]` lists the rows in the order of
    `family.tensors["y"][family.mask]`.
    """
    return np.argsort(groups(open_table(data), table.task).codes, kind="stable")


def _family(
    table: Table, request: Request, *, known: TableInfo | None = None, optional: bool = False
) -> TaskFamily:
    tasks = groups(table, request.task)
    refuse_shared_roles(table, request)
    response = read_response(table, request, known=known, optional=optional)
    design = _design(table, request, known)
    arrays = {
        "x": design.x,
        "y": response.y,
        "trials": response.trials,
        "offset": read_offset(table, request, design.offset),
        "standard_error": read_standard_error(table, request),
    }
    if known is None:
        refuse_single_task(table, request, tasks)
        refuse_constant_response(table, request, response)
    tensors, mask = padded(tasks, {k: v for k, v in arrays.items() if v is not None})
    info = TableInfo(
        source=table.source,
        task=request.task,
        response=request.response,
        columns=design.columns,
        adapted=design.adapted,
        formula=None if request.formula is None else request.formula.text,
        x=request.x,
        coding=design.coding | response.coding(request.response),
        offset=request.offset,
        exposure=request.exposure,
        standard_error=request.standard_error,
        notes=tuple(remarks(table, request, tasks, design, response)),
        terms={
            "likelihood": request.likelihood,
            "response": response.parts,
            "transforms": design.transforms,
        },
    )
    return TaskFamily(tensors, mask=mask, names=tasks.names, table=info)


def padded(tasks: Levels, arrays: dict[str, np.ndarray]) -> tuple[dict[str, Tensor], Tensor]:
    """Gather rows by task; shorter tasks are padded by their last row.

    Args:
        tasks: the task of each row.
        arrays: name -> (row, ...).

    Returns:
        name -> (task, row, ...), and the mask (task, row), True on real rows.

    Example:
        >>> tensors, mask = padded(Levels(np.array([0, 1, 0]), ("a", "b")), {"y": np.arange(3.0)})
        >>> tensors["y"].tolist(), mask.tolist()
        ([[0.0, 2.0], [1.0, 1.0]], [[True, True], [True, False]])
    """
    order = np.argsort(tasks.codes, kind="stable")
    count = np.bincount(tasks.codes, minlength=len(tasks.names))
    start = np.cumsum(count) - count
    place = np.arange(count.max())
    bytes_needed = 8 * len(count) * len(place) * sum(a[0].size for a in arrays.values())
    if bytes_needed > LARGEST_FAMILY:
        raise InputError(
            f"task {tasks.names[int(count.argmax())]!r} has {count.max()} rows while the middle "
            f"task has {int(np.median(count))}, and padding all {len(count)} tasks to it would "
            f"take {bytes_needed / 2**30:.0f} GiB: divide that task or fit it apart"
        )
    rows = order[start[:, None] + np.minimum(place, count[:, None] - 1)]
    mask = torch.from_numpy(place < count[:, None])
    return {name: torch.from_numpy(array[rows]) for name, array in arrays.items()}, mask


def _design(table: Table, request: Request, known: TableInfo | None) -> Design:
    coding = None if known is None else known.coding or {}
    if request.formula is None:
        return design_of_columns(table, request.x, coding)
    transforms = [] if known is None or known.terms is None else known.terms["transforms"]
    return design_of_formula(table, request.formula, coding, transforms)
