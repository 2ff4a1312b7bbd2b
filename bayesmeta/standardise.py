"""Centred and scaled data for networks, and the way back to the units of the table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bayesmeta.tasks import TaskFamily
from bayesmeta.typed import made


@dataclass(frozen=True)
class Standardisation:
    """x' = (x − x_mean) / x_scale and, for a real response, y' = (y − y_mean) / y_scale.

    Fitted on the training tasks, pooled over their real rows; a new task is changed by the same
    numbers. A column that is constant becomes ones, not zeros: it may be an intercept. Linear
    predictors are fitted without it: their coefficients stay in original units.

    Args:
        x_mean, x_scale: one number per feature.
        y_mean, y_scale: 0 and 1 where y is not real.
    """

    x_mean: tuple[float, ...]
    x_scale: tuple[float, ...]
    y_mean: float = 0.0
    y_scale: float = 1.0

    @classmethod
    def of(cls, family: TaskFamily, *, real_response: bool) -> Standardisation:
        """Means and standard deviations over all real rows of a family."""
        assert family.mask is not None
        x = family.tensors["x"][family.mask]
        y = family.tensors["y"][family.mask]
        mean, scale, ones = x.mean(0), x.std(0, correction=0), torch.ones_like(x[0])
        constant = (x == x[0]).all(0)
        scale = torch.where(constant, torch.where(x[0] == 0, ones, x[0]), scale)
        mean = torch.where(constant, 0.0, mean)
        response = (0.0, 1.0)
        if real_response:
            spread = float(y.std(correction=0))
            response = (float(y.mean()), spread if spread > 0 else 1.0)
        return cls(tuple(mean.tolist()), tuple(scale.tolist()), *response)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Standardisation:
        """What `dataclasses.asdict` wrote."""
        features = {k: tuple(record[k]) for k in ("x_mean", "x_scale")}
        return made(cls, features | {"y_mean": record["y_mean"], "y_scale": record["y_scale"]})

    def apply(self, family: TaskFamily) -> TaskFamily:
        """The family in standardised units."""
        tensors = dict(family.tensors)
        x = tensors["x"]
        tensors["x"] = (x - x.new_tensor(self.x_mean)) / x.new_tensor(self.x_scale)
        for name, shift in (("y", self.y_mean), ("offset", 0.0), ("standard_error", 0.0)):
            if name in tensors and (self.y_mean, self.y_scale) != (0.0, 1.0):
                tensors[name] = (tensors[name] - shift) / self.y_scale
        return TaskFamily(
            tensors,
            mask=family.mask,
            names=family.names,
            table=family.table,
            rowwise=family.rowwise,
        )

    def undo_response(self, y: Tensor) -> Tensor:
        """y in original units."""
        if (self.y_mean, self.y_scale) == (0.0, 1.0):
            return y
        return y * self.y_scale + self.y_mean
