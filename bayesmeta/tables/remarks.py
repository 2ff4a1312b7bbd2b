"""What a person should know about how a table was read, and families that nobody can fit."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from bayesmeta.results import InputError
from bayesmeta.tables.columns import Levels, mixes_numbers_and_text
from bayesmeta.tables.designs import Design, raw_column
from bayesmeta.tables.reading import DELIMITERS, Table, joined
from bayesmeta.tables.requests import REAL, Request
from bayesmeta.tables.responses import Response


def refuse_single_task(table: Table, request: Request, tasks: Levels) -> None:
    """One task says nothing about how tasks differ."""
    if len(tasks.names) == 1:
        raise InputError(
            f"{table.source} has one task only, {tasks.names[0]!r} in column {request.task!r}: a "
            "prior over tasks needs at least 2, so check which column names the tasks"
        )


def refuse_constant_response(table: Table, request: Request, response: Response) -> None:
    """A constant leaves a learned noise no scale; with known standard errors it is fine."""
    learned_noise = request.likelihood in REAL and request.standard_error is None
    if learned_noise and response.y is not None and np.ptp(response.y) == 0:
        raise InputError(
            f"{table.source}, column {request.response!r} is {response.y[0]:g} in every row: there "
            "is no variation to model"
        )


def remarks(
    table: Table, request: Request, tasks: Levels, design: Design, response: Response
) -> Iterator[str]:
    """Sentences on how the table was read."""
    if table.lines is not None and table.lines.delimiter != ",":
        yield f"{table.source} was read as separated by {DELIMITERS[table.lines.delimiter]}s"
    for name, levels in design.coding.items():
        yield _coding(table, name, levels, design.columns)
    if response.levels not in (None, ("0", "1")):
        coded = ", ".join(f"{level} = {i}" for i, level in enumerate(response.levels))
        yield f"the response {request.response} is coded {coded}"
    if response.y is not None and np.ptp(response.y) == 0:
        yield f"the response {request.response} is {response.y[0]:g} in every row"
    yield from _single_rows(request, tasks)
    if len({name.strip() for name in tasks.names}) < len(tasks.names):
        yield f"some tasks of {request.task} differ only in spaces around their names"


def _coding(table: Table, name: str, levels: tuple[str, ...], columns: tuple[str, ...]) -> str:
    alone = f"{name}[{levels[0]}]" in columns
    reference = "each with a column" if alone else f"compared with {levels[0]}"
    sentence = f"{name} is a category with levels {joined(levels, 12)}, {reference}"
    if mixes_numbers_and_text(table, raw_column(name, table)):
        sentence += "; it mixes numbers and text, so check it for typing errors"
    return sentence


def _single_rows(request: Request, tasks: Levels) -> Iterator[str]:
    count = np.bincount(tasks.codes, minlength=len(tasks.names))
    single = [tasks.names[i] for i in np.flatnonzero(count == 1)]
    if not single:
        return
    if len(single) == len(tasks.names):
        if request.likelihood in REAL and request.standard_error is None:
            yield (
                "every task has a single row: noise and spread between tasks cannot be told apart "
                "unless the noise is known"
            )
        return
    have = "1 task has" if len(single) == 1 else f"{len(single)} tasks have"
    yield f"{have} a single row, so the prior weighs most there: {joined(single)}"
