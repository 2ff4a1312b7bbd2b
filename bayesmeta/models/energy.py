"""A model from a plain function f(θ, *task tensors) → nats."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bayesmeta.models.model import Energy, Model, Tensors
from bayesmeta.results import InputError
from bayesmeta.tasks import TaskFamily


class EnergyModel(Model):
    """θ is the only parameter; the energy is the user's."""

    def __init__(self, fn: Energy, dim: int, names: Sequence[str] | None) -> None:
        holder = nn.Module()
        holder.theta = nn.Parameter(torch.zeros(dim))
        default = [f"theta[{i}]" for i in range(dim)] if names is None else names
        super().__init__(holder, None, names=default)
        self.fn = fn
        self.takes_mask = "mask" in inspect.signature(fn).parameters

    def bind(self, family: TaskFamily) -> Model:
        refuse_padding(family, self.takes_mask, "the energy")
        return self

    def energy(
        self, theta: Tensor, shared: Tensors, tensors: Tensors, mask: Tensor | None = None
    ) -> Tensor:
        options = {"mask": mask} if self.takes_mask else {}
        return self.fn(theta, *tensors.values(), **options)


def refuse_padding(family: TaskFamily, takes_mask: bool, what: str) -> None:
    """Say no to ragged tasks where padding would be counted as data."""
    if family.ragged and not takes_mask:
        raise InputError(
            f"tasks differ in their number of rows, and {what} cannot tell padding from data: "
            "give it an argument mask=, (row,) True on real rows"
        )
