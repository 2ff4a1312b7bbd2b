"""What the figures read from a fit: coordinates by name, numbers as arrays, labels with units."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from bayesmeta.plots._style import plain, short
from bayesmeta.results import InputError

if TYPE_CHECKING:
    from bayesmeta.fit import Fit

Array = NDArray[Any]

LONG = 34  # letters of a label on one line
_SCALES = {
    "bernoulli": "log odds",
    "binomial": "log odds",
    "categorical": "log odds",
    "poisson": "log mean",
    "negative_binomial": "log mean",
}


def array(values: Any) -> Array:
    """A tensor on any device, or anything array-like, as float64."""
    if isinstance(values, Tensor):
        values = values.detach().cpu().double().numpy()
    return np.asarray(values, dtype=np.float64)


def number(value: float) -> str:
    """Four significant digits, as a caption writes them.

    Example:
        >>> number(251.4051), number(-0.65614)
        ('251.4', '-0.6561')
    """
    return f"{value:.4g}"


def z(level: float) -> float:
    """The half-width, in standard deviations, of a normal's central interval of mass `level`.

    Example:
        >>> round(z(0.95), 3)
        1.96
    """
    if not 0.0 < level < 1.0:
        raise InputError(f"an interval's level lies between 0 and 1, not {level}")
    return NormalDist().inv_cdf(0.5 + level / 2.0)


def position(fit: Fit, coordinate: str | int) -> int:
    """The position in θ of a coordinate given by name or by position."""
    names = list(fit.prior.names)
    if isinstance(coordinate, str):
        if coordinate not in names:
            shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
            raise InputError(f"no coordinate is named {coordinate!r}; there are: {shown}")
        return names.index(coordinate)
    if not -len(names) <= coordinate < len(names):
        raise InputError(f"coordinate {coordinate} of {len(names)}: count from 0")
    return coordinate % len(names)


def task_positions(fit: Fit, tasks: Any) -> list[int]:
    """The positions of tasks given by name or by position."""
    names = list(fit.posterior.tasks)
    found = []
    for task in [tasks] if isinstance(tasks, (str, int)) else list(tasks):
        if isinstance(task, str):
            if task not in names:
                raise InputError(f"no task is named {task!r}; names look like {names[0]!r}")
            found.append(names.index(task))
        elif not -len(names) <= task < len(names):
            raise InputError(f"task {task} of {len(names)}: count from 0")
        else:
            found.append(int(task) % len(names))
    return found


def response(fit: Fit, limit: int = 28) -> str:
    """The response's name as the table wrote it; "y" without a table."""
    table = fit.family.table
    return short(table.response, limit) if table is not None else "y"


def feature(fit: Fit, coordinate: int) -> str | None:
    """The table's column that a coordinate multiplies, "Intercept", or None where unknown.

    A coordinate is recognised by its own name, or as a weight of a linear layer on the table's
    columns: weight[0,j] multiplies column j.
    """
    table, name = fit.family.table, fit.prior.names[coordinate]
    if table is None:
        return None
    if name in table.columns or name == "Intercept":
        return name
    parts = {f"weight[0,{j}]": column for j, column in enumerate(table.columns)}
    linear = all(n in parts or n == "bias[0]" for n in fit.prior.names)
    return (parts | {"bias[0]": "Intercept"}).get(name) if linear else None


def label(fit: Fit, coordinate: int) -> str:
    """A coordinate's name, and its unit in the table's words."""
    name, column = fit.prior.names[coordinate], feature(fit, coordinate)
    return short(name) if column is None else f"{short(column)} ({_unit(fit, column, 28)})"


def axis_label(fit: Fit, coordinate: int) -> str:
    """`label` for an axis: on two lines where one would be long."""
    text, column = label(fit, coordinate), feature(fit, coordinate)
    if len(text) > LONG and column is not None:
        text = f"{short(column)}\n({_unit(fit, column, 14)})"
    return plain(text)


def _unit(fit: Fit, column: str, limit: int) -> str:
    """The response's scale per unit of a column; a level or an intercept is counted per nothing."""
    likelihood = fit.likelihood.name if fit.likelihood is not None else ""
    scale = _SCALES.get(likelihood, response(fit, limit))
    coding = (fit.family.table.coding if fit.family.table is not None else None) or {}
    if column == "Intercept" or column.split("[")[0] in coding:
        return scale
    return f"{scale} per {short(column, limit) if column.isidentifier() else 'unit'}"


@dataclass(frozen=True)
class Spread:
    """One coordinate of a fit as arrays.

    Args:
        prior_mean, prior_sd: numbers θ₀ and sd of the coordinate.
        mean, sd: (task,) of the posteriors.
        alone: (task,) estimates from each task's own data, NaN where there is none.
        draws: (draw, task) of posteriors known by draws; None where they are Gaussian.
    """

    prior_mean: float
    prior_sd: float
    mean: Array
    sd: Array
    alone: Array
    draws: Array | None = None

    def ends(self, level: float) -> tuple[Array, Array]:
        """(task,) ends of the central intervals that hold so much of each posterior."""
        if self.draws is None:
            half = z(level) * self.sd
            return self.mean - half, self.mean + half
        low, high = np.quantile(self.draws, [(1 - level) / 2, (1 + level) / 2], axis=0)
        return low, high

    def density(self, tasks: Array, x: Array) -> Array:
        """(task, x) densities of some tasks; of draws, smoothed by Scott's rule.

        Args:
            tasks: their positions.
            x: (x,) for all of them, or (task, x).
        """
        centre, sd = self.mean[tasks][:, None], self.sd[tasks][:, None]
        if self.draws is None:
            return bell((x - centre) / sd) / sd
        width = sd * len(self.draws) ** -0.2
        x = np.broadcast_to(x, (len(tasks), np.shape(x)[-1]))
        parts = (bell((x - draw[tasks][:, None]) / width) for draw in self.draws)
        return np.asarray(sum(parts)) / (width * len(self.draws))


def read(fit: Fit, coordinate: int, no_pooling: Any = None) -> Spread:
    """The numbers of one coordinate; `no_pooling` as in `estimates_alone`."""
    alone = estimates_alone(fit, no_pooling)
    draws = getattr(fit.posterior, "draws", None)
    return Spread(
        prior_mean=float(array(fit.prior.mean)[coordinate]),
        prior_sd=float(array(fit.prior.sd())[coordinate]),
        mean=array(fit.posterior.mean)[:, coordinate],
        sd=array(fit.posterior.sd())[:, coordinate],
        alone=alone[:, coordinate],
        draws=None if draws is None else array(draws)[:, :, coordinate],
    )


def bell(away: Array) -> Array:
    """The standard normal density."""
    return np.exp(-0.5 * away**2) / np.sqrt(2.0 * np.pi)


def estimates_alone(fit: Fit, no_pooling: Any | Literal[False] | None) -> Array:
    """(task, dim) no-pooling means: computed (None), given, or left out (False: all NaN)."""
    if no_pooling is False:
        return np.full(np.shape(fit.posterior.mean), np.nan)
    estimate = fit.no_pooling() if no_pooling is None else no_pooling
    alone = array(estimate.mean)
    return np.where(np.isfinite(alone), alone, np.nan)


def window(core: Array, others: Array) -> tuple[float, float]:
    """Limits that show all of `core`, and of `others` what lies inside Tukey's outer fences.

    An estimate from one task's few rows can lie anywhere; the limits are not its to set.
    """
    low, high = float(np.min(core)), float(np.max(core))
    others = others[np.isfinite(others)]
    if others.size:
        quarter, three_quarters = np.quantile(others, [0.25, 0.75])
        fence = 3.0 * (three_quarters - quarter)
        low = min(low, max(float(others.min()), quarter - fence))
        high = max(high, min(float(others.max()), three_quarters + fence))
    margin = 0.04 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin
