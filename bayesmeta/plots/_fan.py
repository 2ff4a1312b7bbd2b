"""Where along x a predictive fan is drawn, and its numbers there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from bayesmeta.plots._reading import Array, array, response
from bayesmeta.plots._style import short
from bayesmeta.results import InputError
from bayesmeta.tasks import TaskFamily

if TYPE_CHECKING:
    from bayesmeta.fit import Fit

POINTS = 41
DRAWS = 1000


@dataclass(frozen=True, eq=False)
class Fan:
    """One task's predictive distribution along x, and its data.

    Args:
        task: the task's name.
        x: (point,) where the intervals are.
        low, high: (level, point) ends of the central intervals.
        mean: (point,) predictive mean.
        joined: whether neighbouring points belong together, as along a continuous x.
        at_rows: whether the points are the task's rows.
        data_x, data_y: (row,) the task's rows.
    """

    task: str
    x: Array
    low: Array
    high: Array
    mean: Array
    joined: bool
    at_rows: bool
    data_x: Array
    data_y: Array


def fans(
    fit: Fit,
    tasks: Sequence[int],
    *,
    x: str | int | None,
    levels: tuple[float, ...],
    draws: int = DRAWS,
    seed: int = 0,
) -> list[Fan]:
    """The fans of some tasks.

    Along a continuous column the prediction is made on a grid over the range of all tasks, along
    one with two values at both, if no other column varies inside a task or if all follow from this
    one (as Days² does from Days). Otherwise it is made at the rows.
    """
    check(fit)
    column = x_column(fit.family, x)
    family = fit.family.subset(list(tasks))
    grid = _grid_family(family, column, fit.family)
    joined = grid is not None and _values(grid, column).shape[1] > 2
    found = []
    for i, name in enumerate(family.names):
        task = family.subset([i])
        place = task if grid is None else grid.subset([i])
        real, rows = _real(place), _real(task)
        sample = _response_draws(fit, place, draws, seed)[:, real] / _trials(place)[real]
        tails = [[0.5 - level / 2, 0.5 + level / 2] for level in levels]
        ends = np.quantile(sample, np.array(tails).T, axis=0)
        found.append(
            Fan(
                name,
                _values(place, column)[0, real],
                ends[0],
                ends[1],
                sample.mean(0),
                joined,
                grid is None,
                _values(task, column)[0, rows],
                (array(task.tensors["y"])[0] / _trials(task))[rows],
            )
        )
    return found


def check(fit: Fit) -> None:
    """Raise InputError where a fit has no fans."""
    if fit.likelihood is None:
        raise InputError("this model has an energy but no likelihood of rows: nothing to predict")
    if fit.likelihood.name == "categorical":
        raise InputError("categories have no order, so there are no predictive intervals to draw")
    if "y" not in fit.family.tensors or fit.family.mask is None:
        raise InputError("a predictive fan needs a family with a tensor y, (task, row)")


def shows_probability(fit: Fit) -> bool:
    """Whether the fan is of p(y = 1): an interval of a y that is 0 or 1 would say nothing."""
    return fit.likelihood is not None and fit.likelihood.name == "bernoulli"


def x_column(family: TaskFamily, x: str | int | None) -> int | None:
    """The position in the tensor x of the column to draw along; None counts the rows.

    By default the first column with more than two values among those that vary inside tasks, or
    else the only one of those; where none varies inside a task, the same among all columns.
    """
    features, names = _features(family), _names(family)
    if isinstance(x, str):
        if x not in names:
            raise InputError(f"no column is named {x!r}; x has: {', '.join(names) or 'none'}")
        return names.index(x)
    if x is not None:
        if not 0 <= x < features.shape[-1]:
            raise InputError(f"column {x} of {features.shape[-1]}: count from 0")
        return x
    inside = (features != features[:, :1]).any((0, 1))
    columns = np.flatnonzero(inside) if inside.any() else np.arange(features.shape[-1])
    distinct = {int(j): len(np.unique(features[..., j])) for j in columns}
    many = [j for j, count in distinct.items() if count > 2]
    two = [j for j, count in distinct.items() if count == 2]
    return many[0] if many else two[0] if len(two) == 1 else None


def x_label(fit: Fit, x: str | int | None) -> str:
    """The name of what is across."""
    column = x_column(fit.family, x)
    return "observation" if column is None else short(_names(fit.family)[column])


def y_label(fit: Fit) -> str:
    """The name of the response, as it is drawn."""
    name, table = response(fit), fit.family.table
    if shows_probability(fit):
        levels = (table.coding or {}).get(table.response, ()) if table is not None else ()
        return f"P({name} = {short(levels[1]) if len(levels) == 2 else 1})"
    # A table writes counts of trials as successes/trials, which says what is drawn.
    proportion = "trials" in fit.family.tensors and table is None
    return f"{name} / trials" if proportion else name


def _response_draws(fit: Fit, family: TaskFamily, draws: int, seed: int) -> Array:
    """(draw, row) of y for one task; of p(y = 1) where y is 0 or 1.

    Every row is given the same random numbers. Each row's distribution is what it was, and the
    fan's edges become as smooth as the model is.
    """
    likelihood = fit.model.require_likelihood()
    with torch.no_grad():
        theta = fit.draws(family, draws, torch.Generator().manual_seed(seed))
        batch = fit.internal(family).batch()
        prediction = fit.model.predict(theta, batch)
        if shows_probability(fit):
            return array(likelihood.mean(prediction))[:, 0]
        options = fit.model.options(batch.tensors)
        rows = []
        for j in range(prediction.shape[-1]):
            noise = torch.Generator().manual_seed(seed + 1)
            here = {name: tensor[:, j : j + 1] for name, tensor in options.items()}
            rows.append(likelihood.sample(prediction[..., j : j + 1], noise, **here))
        y = torch.cat(rows, -1)
        if fit.standardisation is not None:
            y = fit.standardisation.undo_response(y)
    return array(y)[:, 0]


def _real(task: TaskFamily) -> Array:
    """(row,) of a family of one task."""
    assert task.mask is not None
    return array(task.mask)[0].astype(bool)


def _features(family: TaskFamily) -> Array:
    x = family.tensors.get("x")
    return np.zeros((len(family), 1, 0)) if x is None or x.ndim != 3 else array(x)


def _names(family: TaskFamily) -> list[str]:
    count = _features(family).shape[-1]
    if family.table is not None and len(family.table.columns) == count:
        return list(family.table.columns)
    return ["x"] if count == 1 else [f"x[{j}]" for j in range(count)]


def _values(family: TaskFamily, column: int | None) -> Array:
    """(task, row) of one column, or the number of the row."""
    assert family.mask is not None
    if column is None:
        return np.broadcast_to(np.arange(1.0, family.mask.shape[1] + 1), family.mask.shape)
    return _features(family)[..., column]


def _trials(task: TaskFamily) -> Array:
    """(row,) trials of each row of one task, 1 where the response is not counted in trials."""
    assert task.mask is not None
    trials = task.tensors.get("trials")
    return np.ones(task.mask.shape[1]) if trials is None else array(trials)[0]


def _grid_family(
    family: TaskFamily, column: int | None, all_tasks: TaskFamily
) -> TaskFamily | None:
    """The tasks at values of x over the range of `all_tasks`; None where x cannot vary alone."""
    if column is None or family.mask is None or all_tasks.mask is None:
        return None
    values = all_tasks.tensors["x"][..., column][all_tasks.mask].unique()
    if len(values) > 2:
        values = torch.linspace(float(values[0]), float(values[-1]), POINTS, dtype=values.dtype)
    mask, features = family.mask, family.tensors["x"]
    others = {k: v for k, v in family.tensors.items() if k not in ("x", "y")}
    rest = features[..., [j for j in range(features.shape[-1]) if j != column]]
    if not all(_constant(v, mask) for v in [*others.values(), rest]):
        return _grid_by_table(family, column, values)
    tensors = {k: _first_row(v, mask, len(values)) for k, v in others.items()}
    x = _first_row(features, mask, len(values)).clone()
    x[..., column] = values
    real = torch.ones(len(family), len(values), dtype=torch.bool, device=mask.device)
    return TaskFamily({**tensors, "x": x}, mask=real, names=family.names, table=family.table)


def _grid_by_table(family: TaskFamily, column: int, values: Tensor) -> TaskFamily | None:
    """The grid read as a table of tasks and x alone; None where the columns need more than that."""
    if family.table is None:
        return None
    import pandas as pd

    from bayesmeta.tables import family_like

    rows = {
        family.table.task: np.repeat(np.array(family.names), len(values)),
        family.table.columns[column]: np.tile(array(values), len(family)),
    }
    try:
        grid = family_like(family.table, pd.DataFrame(rows), require_response=False)
        return grid.to(device=family.device).subset(family.names)
    except InputError:
        return None


def _constant(tensor: Tensor, mask: Tensor) -> bool:
    """Whether nothing varies inside a task; padding repeats a real row, so it may be looked at."""
    return tensor.shape[:2] != mask.shape or bool((tensor == tensor[:, :1]).all())


def _first_row(tensor: Tensor, mask: Tensor, points: int) -> Tensor:
    if tensor.shape[:2] != mask.shape:
        return tensor
    return tensor[:, :1].expand(len(tensor), points, *tensor.shape[2:])
