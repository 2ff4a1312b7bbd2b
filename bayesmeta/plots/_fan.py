"""Where along x a predictive fan is drawn, and its numbers there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from bayesmeta.plots._reading import Array, array, response
from bayesmeta.plots._style import plain
from bayesmeta.results import InputError
from bayesmeta.tasks import TaskFamily

if TYPE_CHECKING:
    from bayesmeta.fit import Fit

POINTS = 60
DRAWS = 400
_UNORDERED = "categories have no order, so no intervals to draw: use calibration of the scores"


@dataclass(frozen=True)
class Fan:
    """One task's predictive distribution along x, and its data.

    Args:
        task: the task's name.
        x: (point,) where the intervals are.
        low, high: (level, point) ends of the central intervals.
        mean: (point,) predictive mean.
        joined: whether neighbouring points belong together, as along a continuous x.
        data_x, data_y: (row,) the task's rows.
    """

    task: str
    x: Array
    low: Array
    high: Array
    mean: Array
    joined: bool
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
    """The fans of some tasks, from one call of `fit.predict`.

    Along a continuous column the prediction is made on a grid, along one with two values at both,
    if nothing else varies inside a task; where something does, at the rows.
    """
    if fit.likelihood is not None and fit.likelihood.name == "categorical":
        raise InputError(_UNORDERED)
    family = fit.family.subset(list(tasks))
    if "y" not in family.tensors or family.mask is None:
        raise InputError("a predictive fan needs a family with x and y: this model has neither")
    column = x_column(family, x)
    grid = _grid_family(family, column)
    prediction = fit.predict(family if grid is None else grid, draws=draws, seed=seed)
    scale = _trials(family if grid is None else grid)
    ends = [prediction.interval(level) for level in levels]
    low = np.stack([array(end[0]) / scale for end in ends], 1)
    high = np.stack([array(end[1]) / scale for end in ends], 1)
    mean = array(prediction.mean) / scale
    data_x, data_y = _values(family, column), array(family.tensors["y"]) / _trials(family)
    at = data_x if grid is None else _values(grid, column)
    mask = array(family.mask).astype(bool)
    found = []
    for i, name in enumerate(family.names):
        order = np.arange(at.shape[1]) if grid is not None else np.flatnonzero(mask[i])
        found.append(
            Fan(
                name,
                at[i, order],
                low[i][:, order],
                high[i][:, order],
                mean[i, order],
                grid is not None and len(order) > 2,
                data_x[i, mask[i]],
                data_y[i, mask[i]],
            )
        )
    return found


def x_column(family: TaskFamily, x: str | int | None) -> int | None:
    """The position in the tensor x of the column to draw along; None counts the rows.

    By default the first column with more than two values, or else the only one that varies.
    """
    features = _features(family)
    names = _names(family)
    if isinstance(x, str):
        if x not in names:
            raise InputError(f"no column is named {x!r}; x has: {', '.join(names) or 'none'}")
        return names.index(x)
    if x is not None:
        if not 0 <= x < features.shape[-1]:
            raise InputError(f"column {x} of {features.shape[-1]}: count from 0")
        return x
    distinct = [len(np.unique(features[..., j])) for j in range(features.shape[-1])]
    many = [j for j, count in enumerate(distinct) if count > 2]
    two = [j for j, count in enumerate(distinct) if count == 2]
    return many[0] if many else two[0] if len(two) == 1 else None


def x_label(fit: Fit, x: str | int | None) -> str:
    """The name of what is across."""
    column = x_column(fit.family, x)
    return "observation" if column is None else plain(_names(fit.family)[column])


def y_label(fit: Fit) -> str:
    """The name of the response; counts of trials are drawn as proportions."""
    return response(fit) if "trials" not in fit.family.tensors else f"{response(fit)} (proportion)"


def _features(family: TaskFamily) -> Array:
    x = family.tensors.get("x")
    shape = (len(family), 1, 0)
    return np.zeros(shape) if x is None or x.ndim != 3 else array(x)


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


def _trials(family: TaskFamily) -> Array | float:
    trials = family.tensors.get("trials")
    return 1.0 if trials is None else array(trials)


def _grid_family(family: TaskFamily, column: int | None) -> TaskFamily | None:
    """The tasks at evenly spaced x over the range of all of them, or at both of two values.

    What else the rows hold (offset, trials, known errors, other columns) must be the same in all
    rows of a task; where it is not there is no grid, None.
    """
    if column is None or family.mask is None:
        return None
    others = {k: v for k, v in family.tensors.items() if k not in ("x", "y")}
    mask, features = family.mask, family.tensors["x"]
    rest = features[..., [j for j in range(features.shape[-1]) if j != column]]
    if not all(_constant(v, mask) for v in [*others.values(), rest]):
        return None
    grid = features[..., column].unique()
    if len(grid) > 2:
        grid = torch.linspace(float(grid[0]), float(grid[-1]), POINTS, dtype=features.dtype)
    points = len(grid)
    tensors = {k: _first_row(v, mask, points) for k, v in others.items()}
    x = _first_row(features, mask, points).clone()
    x[..., column] = grid
    real = torch.ones(len(family), points, dtype=torch.bool, device=mask.device)
    return TaskFamily({**tensors, "x": x}, mask=real, names=family.names, table=family.table)


def _constant(tensor: torch.Tensor, mask: torch.Tensor) -> bool:
    if tensor.shape[:2] != mask.shape:
        return True
    # Padding repeats a real row, so it does not hide that a task varies.
    return bool((tensor == tensor[:, :1]).all())


def _first_row(tensor: torch.Tensor, mask: torch.Tensor, points: int) -> torch.Tensor:
    if tensor.shape[:2] != mask.shape:
        return tensor
    return tensor[:, :1].expand(len(tensor), points, *tensor.shape[2:])
