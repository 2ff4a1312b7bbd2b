"""From columns to the features x of every row, adapted ones first.

Two routes: a list of columns (no intercept in x: the model has its own bias), or a formula (the
intercept is a column of ones). Categories are treatment-coded: one column for each level but the
reference, named "Diet[2]". A design whose columns are linearly dependent is refused, since no data
could tell its weights apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from formulae.matrices import DesignMatrices
from formulae.terms import Call, Variable
from formulae.terms.call_resolver import LazyVariable
from formulae.terms.terms import Model
from formulae.transforms import TRANSFORMS

from bayesmeta.results import InputError
from bayesmeta.tables.columns import LARGEST, Levels, categories, is_category, numbers
from bayesmeta.tables.formulas import ENVIRONMENT, STATEFUL, UNREADABLE, Formula, nested_calls
from bayesmeta.tables.reading import Table, joined

RANK_TOLERANCE = 1e-10  # of a column's norm: what its predecessors leave unexplained

Coding = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, eq=False)
class Design:
    """The features of every row.

    Args:
        x: (row, features) float64, adapted features first.
        columns: a name for each feature.
        adapted: those inside the bar.
        coding: levels of each category, the reference first.
        offset: (row,) the sum of the formula's offset(...) terms, or None.
        transforms: what the formula's stateful functions learned (a mean, a scale), JSON-able.
    """

    x: np.ndarray
    columns: tuple[str, ...]
    adapted: tuple[str, ...] = ()
    coding: dict[str, tuple[str, ...]] = field(default_factory=dict)
    offset: np.ndarray | None = None
    transforms: list[dict[str, Any]] = field(default_factory=list)


def design_of_columns(table: Table, x: Sequence[str], coding: Coding | None = None) -> Design:
    """Features from a list of columns; "C(Diet)" makes a numeric column a category.

    Args:
        table: the table.
        x: column names.
        coding: the coding of an earlier table, to be used again; None to find it.
    """
    blocks, columns = [np.empty((len(table), 0))], []
    found = {}
    for name in x:
        predictor = _predictor(table, name, coding)
        if isinstance(predictor, Levels):
            found[name] = predictor.names
            blocks.append(predictor.codes[:, None] == np.arange(1, len(predictor.names)))
            columns.extend(f"{name}[{level}]" for level in predictor.names[1:])
        else:
            blocks.append(predictor[:, None])
            columns.append(name)
    design = Design(np.column_stack(blocks).astype(np.float64), tuple(columns), coding=found)
    if coding is None:
        refuse_dependent(table, design, has_bias=True)
    return design


def design_of_formula(
    table: Table,
    formula: Formula,
    coding: Coding | None = None,
    transforms: Sequence[dict[str, Any]] = (),
) -> Design:
    """Features from a formula's common part, those of the bar first.

    Args:
        table: the table.
        formula: what `parse_formula` read.
        coding: the coding of an earlier table; None to find it.
        transforms: what stateful functions learned from that earlier table.
    """
    formula = _with_named_categories(formula)
    frame, found = _formula_frame(table, formula, coding)
    _refuse_category_in_call(formula, found)
    stateful = [call for call in formula.calls() if call.callee in STATEFUL]
    for call, state in zip(stateful, transforms, strict=coding is not None):
        call.stateful_transform = _restored(call.callee, state)
    terms = _evaluated(table, formula, formula.common, frame)
    features = [term for term in terms if term.kind != "offset"]
    shifts = [np.ravel(term.data).astype(np.float64) for term in terms if term.kind == "offset"]
    in_bar = {formula.common[i].name for i in formula.adapted}
    features.sort(key=lambda term: term.name not in in_bar)
    adapted = tuple(label for term in features if term.name in in_bar for label in term.labels)
    design = Design(
        np.column_stack([term.data for term in features]).astype(np.float64),
        tuple(label for term in features for label in term.labels),
        adapted,
        found,
        np.sum(shifts, axis=0) if shifts else None,
        [_state(call.stateful_transform) for call in stateful],
    )
    _refuse_unusable(table, design)
    if coding is None:
        _refuse_other_coding(table, formula, frame, adapted, bool(found))
        refuse_dependent(table, design, has_bias=False)
    return design


def refuse_dependent(table: Table, design: Design, *, has_bias: bool) -> None:
    """Refuse a constant beside an intercept, and columns that others add up to.

    With columns of norm 1, |R_kk| of X = QR is the part of column k that columns before it leave.
    """
    ones = np.ones((len(table), int(has_bias)))
    x = np.hstack([ones, design.x])
    names = ["the intercept"] * has_bias + list(design.columns)
    norms = np.linalg.norm(x, axis=0)
    if x.shape[1] > len(x):
        raise InputError(
            f"{table.source} has {len(x)} rows for {x.shape[1]} coefficients: leave columns out"
        )
    r = np.asarray(np.linalg.qr(x / np.where(norms > 0, norms, 1.0), mode="r"))
    dependent = np.flatnonzero(np.abs(np.diag(r)) < RANK_TOLERANCE)
    if len(dependent) == 0:
        return
    k = dependent[0]
    if np.ptp(x[:, k]) == 0:
        raise InputError(
            f"{table.source}, column {names[k]!r} is {x[0, k]:g} in every row, so its weight "
            "cannot be estimated: leave it out"
        )
    weights = np.linalg.solve(r[:k, :k], r[:k, k])
    others = [names[i] for i in np.flatnonzero(np.abs(weights) > 1e-8)]
    quoted = joined([name if name == "the intercept" else repr(name) for name in others])
    raise InputError(
        f"{table.source}: column {names[k]!r} is an exact linear combination of {quoted}, so their "
        "weights cannot be told apart: leave one of them out"
    )


def raw_column(predictor: str, table: Table) -> str:
    """The column behind a predictor: "Diet" for "C(Diet)"."""
    if predictor not in table.columns and predictor.startswith("C(") and predictor.endswith(")"):
        return predictor[2:-1].strip().strip("`")
    return predictor


def _predictor(table: Table, name: str, coding: Coding | None) -> np.ndarray | Levels:
    raw = raw_column(name, table)
    if coding is not None:
        return categories(table, raw, coding[name]) if name in coding else numbers(table, raw)
    if raw == name and not is_category(table, raw):
        return numbers(table, raw, or_else=f", or write C({name}) if it is a category")
    found = categories(table, raw)
    if len(found.names) == 1:
        raise InputError(
            f"{table.source}, column {raw!r} is {found.names[0]!r} in every row, so its weight "
            "cannot be estimated: leave it out"
        )
    return found


def _formula_frame(
    table: Table, formula: Formula, coding: Coding | None
) -> tuple[pd.DataFrame, dict[str, tuple[str, ...]]]:
    """The columns a formula uses, numbers as float64 and categories ordered by their levels."""
    columns: dict[str, Any] = {}
    found = {}
    for name in formula.predictors:
        predictor = _predictor(table, name, coding)
        if isinstance(predictor, Levels):
            found[name] = predictor.names
            predictor = pd.Categorical.from_codes(
                predictor.codes, categories=list(predictor.names), ordered=True
            )
        columns[name] = predictor
    return pd.DataFrame(columns, index=range(len(table))), found


def _with_named_categories(formula: Formula) -> Formula:
    """Let C(x) be a column of that name, so that its levels are kept like any category's."""
    formula = replace(formula, common=deepcopy(formula.common), bar=deepcopy(formula.bar))
    for term in (*formula.common, *formula.bar):
        for i, component in enumerate(getattr(term, "components", ())):
            if isinstance(component, Call) and component.call.callee == "C":
                call = component.call
                if len(call.args) != 1 or call.kwargs or not isinstance(call.args[0], LazyVariable):
                    raise InputError(
                        f"the formula {formula.text!r} has {call}: C takes one column and nothing "
                        "else"
                    )
                term.components[i] = Variable(str(call))
    return formula


def _refuse_category_in_call(formula: Formula, found: Mapping[str, Any]) -> None:
    for term in formula.common:
        for component in getattr(term, "components", ()):
            if isinstance(component, Call):
                inside = sorted(component.var_names & set(found))
                nested = [c for c in nested_calls(component.call) if c.callee == "C"]
                if inside or nested:
                    name = inside[0] if inside else str(nested[0])
                    raise InputError(
                        f"the formula {formula.text!r} computes {component.name} from {name!r}, "
                        "which is a category: use the category as a term of its own"
                    )


def _evaluated(
    table: Table, formula: Formula, terms: Sequence[Any], frame: pd.DataFrame
) -> list[Any]:
    """The terms with their data, in formulae's order and coding."""
    try:
        with np.errstate(all="ignore"):  # what is not finite is named by `_refuse_unusable`
            matrices = DesignMatrices(Model(*terms), frame, ENVIRONMENT)
    except (*UNREADABLE, ArithmeticError) as error:
        raise InputError(
            f"the formula {formula.text!r} cannot be applied to {table.source}: {error}"
        ) from None
    return [] if matrices.common is None else list(matrices.common.terms.values())


def _refuse_unusable(table: Table, design: Design) -> None:
    for name, values in zip(design.columns, design.x.T, strict=True):
        _refuse_not_finite(table, name, values)
    if design.offset is not None:
        _refuse_not_finite(table, "offset", design.offset)


def _refuse_not_finite(table: Table, name: str, values: np.ndarray) -> None:
    bad = ~(np.abs(values) <= LARGEST)
    if bad.any():
        first = int(np.flatnonzero(bad)[0])
        raise InputError(
            f"{table.cell(name, first)}: the formula gives {values[first]:g} here; correct the "
            "row, or use another function"
        )


def _refuse_other_coding(
    table: Table,
    formula: Formula,
    frame: pd.DataFrame,
    adapted: tuple[str, ...],
    has_categories: bool,
) -> None:
    """The bar alone must give the columns it picks from the common part (R's coding rules)."""
    if not has_categories:
        return
    alone = _evaluated(table, formula, formula.bar, frame)
    labels = [label for term in alone for label in term.labels]
    if set(labels) != set(adapted):
        raise InputError(
            f"the formula {formula.text!r} codes the bar as {', '.join(labels)} but these terms of "
            f"the common part as {', '.join(adapted)}: give the bar the intercept and the lower "
            "terms that the common part has"
        )


def _state(transform: Any) -> dict[str, Any]:
    """What a stateful transform learned, as JSON."""
    return {name: _plain(value) for name, value in vars(transform).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return {"array": value.tolist()}
    if isinstance(value, dict):
        return {"pairs": [[_plain(k), _plain(v)] for k, v in value.items()]}
    return value.item() if isinstance(value, np.generic) else value


def _restored(callee: str, state: Mapping[str, Any]) -> Any:
    transform = TRANSFORMS[callee]()
    vars(transform).update({name: _original(value) for name, value in state.items()})
    return transform


def _original(value: Any) -> Any:
    if isinstance(value, dict) and "array" in value:
        return np.asarray(value["array"])
    if isinstance(value, dict):
        return {k: _original(v) for k, v in value["pairs"]}
    return value
