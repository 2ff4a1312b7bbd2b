"""`bayesmeta predict`: every row of a CSV beside its predictive distribution."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bayesmeta.commands import Rows, open_run, table_of
from bayesmeta.results import InputError

if TYPE_CHECKING:
    from bayesmeta.fit import Fit, Prediction
    from bayesmeta.tasks import TaskFamily

PREFIX = "predicted_"


def predict_run(
    run: Path, new: Path, *, support: Path | None, level: float, draws: int, seed: int
) -> Rows:
    """The rows of `new` in their order, each with mean, sd and interval of its prediction.

    Tasks with rows in `support` are adapted on them; tasks of the fit use their posterior; the
    others are predicted from the prior.

    Args:
        run: a run folder.
        new: a CSV with the fitted columns; the response may be missing.
        support: a CSV with responses, of new tasks.
        level: mass of the central predictive interval.
        draws: number of predictive draws.
        seed: of the draws.

    Raises:
        InputError: a table cannot be read as the fitted one was, or an option is out of range.
    """
    from bayesmeta.tables import family_like, read_csv, row_order

    if not 0 < level < 1:
        raise InputError(f"--level must lie between 0 and 1, not {level}")
    if draws < 2:
        raise InputError(f"--draws must be at least 2, not {draws}")
    fitted = open_run(run)
    table, frame = table_of(fitted), read_csv(new)
    columns = _columns(fitted)
    taken = [PREFIX + name for name in columns if PREFIX + name in frame.columns]
    if taken:
        raise InputError(f"{new.name} already has a column {taken[0]!r}: rename or remove it")
    family = family_like(table, new, require_response=False)
    adapted = None if support is None else fitted.adapt(family_like(table, support))
    by_task: dict[str, list[list[Any]]] = {}
    score = 0.0
    for part, source in _parts(fitted, adapted, family):
        prediction = source.predict(part, draws=draws, seed=seed)
        score += float(prediction.log_score().sum())
        by_task |= _by_task(source, prediction, level)
    values = [row for name in family.names for row in by_task[name]]
    placed: list[list[Any]] = [[]] * len(values)
    for position, row in zip(row_order(table, new).tolist(), values, strict=True):
        placed[position] = row
    cells = [[*old, *row] for old, row in zip(frame.values.tolist(), placed, strict=True)]
    header = [*frame.columns, *(PREFIX + name for name in columns)]
    return Rows(header, cells, _remarks(by_task, score, len(cells)))


def _columns(fitted: Fit) -> list[str]:
    levels = _levels(fitted)
    return ["from", *(["mean", "sd", "low", "high"] if levels is None else levels)]


def _levels(fitted: Fit) -> list[str] | None:
    """The categories of a response that has no order, else None."""
    table = table_of(fitted)
    if fitted.likelihood is None or fitted.likelihood.name != "categorical":
        return None
    return list((table.coding or {})[table.response])


def _parts(
    fitted: Fit, adapted: Fit | None, family: TaskFamily
) -> Iterator[tuple[TaskFamily, Fit]]:
    """The family's tasks with the fit that predicts them."""
    supported = set() if adapted is None else set(adapted.posterior.tasks)
    inside = [name for name in family.names if name in supported]
    outside = [name for name in family.names if name not in supported]
    if adapted is not None and inside:
        yield family.subset(inside), adapted
    if outside:
        yield family.subset(outside), fitted


def _by_task(source: Fit, prediction: Prediction, level: float) -> dict[str, list[list[Any]]]:
    """task -> its rows' values, in the order of `_columns`."""
    import torch

    if prediction.classes is None:
        values = torch.stack([prediction.mean, prediction.sd, *prediction.interval(level)], -1)
    else:
        values = prediction.probabilities
    prior = set(prediction.from_prior)
    return {
        task: [["prior" if task in prior else "posterior", *row] for row in rows[mask].tolist()]
        for task, rows, mask in zip(prediction.tasks, values, prediction.mask, strict=True)
    }


def _remarks(by_task: dict[str, list[list[Any]]], score: float, rows: int) -> Sequence[str]:
    lines = []
    unknown = [task for task, values in by_task.items() if values[0][0] == "prior"]
    if unknown:
        lines.append(
            f"{len(unknown)} of {len(by_task)} tasks have no posterior and are predicted from the "
            f"prior ({unknown[0]!r} for one); --support FILE.csv adapts them to rows of their own."
        )
    if score == score:
        text = f"{score / rows:.4f}".replace("-", "−")
        lines.append(f"Mean log predictive density of the observed responses: {text} nats a row.")
    return lines
