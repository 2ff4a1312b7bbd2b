"""One tanh network for all tasks, of which each task changes the weights of a single layer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

import bayesmeta as bm

F64 = torch.float64
LAYERS = ("first", "middle", "last")
CASES = (*LAYERS, "none")
HIDDEN = (6, 6)
CHANGE = 0.3
NOISE = 0.1
GAIN, BIAS = 1.5, 0.5
REACH = 2.0
NEVER = 1e-10
"""Variance that stands for none: a precision has to be finite."""


@dataclass(frozen=True)
class Problem:
    """Tasks y = net(x; θ_i) + noise, where θ_i differs from θ₀ in the layer `case` alone.

    Args:
        case: the layer that varies, or "none".
        seed: of the network and of every task.
    """

    case: str
    seed: int

    @cached_property
    def theta0(self) -> Tensor:
        """(dim,) the common network: each tensor in the order of the module's parameters."""
        generator = torch.Generator().manual_seed(1000 + self.seed)
        parts = []
        for fan_in, fan_out in zip((1, *HIDDEN), (*HIDDEN, 1), strict=True):
            for scale, count in ((GAIN / fan_in**0.5, fan_in * fan_out), (BIAS, fan_out)):
                parts.append(scale * torch.randn(count, generator=generator, dtype=F64))
        return torch.cat(parts)

    @cached_property
    def sd(self) -> Tensor:
        """(dim,) true standard deviation of each weight between tasks."""
        return CHANGE * torch.tensor([LAYERS[i] == self.case for i in layer_of_weights()]).to(F64)

    def family(self, tasks: int, rows: int, draw: int) -> bm.TaskFamily:
        """So many tasks; another `draw` has other tasks of the same network."""
        generator = torch.Generator().manual_seed(10 * self.seed + draw)
        away = torch.randn(tasks, len(self.theta0), generator=generator, dtype=F64)
        x = REACH * (2 * torch.rand(tasks, rows, 1, generator=generator, dtype=F64) - 1)
        noise = torch.randn(tasks, rows, generator=generator, dtype=F64)
        y = network(self.theta0 + self.sd * away, x) + NOISE * noise
        names = [f"{draw}.{i}" for i in range(tasks)]
        return bm.TaskFamily.from_tensors(x=x, y=y, names=names)

    def model(self, family: bm.TaskFamily, *, known: bool) -> bm.Model:
        """The network with the noise known, at θ₀ if that is known, else at weights of its own."""
        likelihood = bm.likelihoods.Gaussian(scale=NOISE)
        model = bm.models.mlp(HIDDEN, family, likelihood, seed=self.seed)
        if known:
            torch.nn.utils.vector_to_parameters(self.theta0, model.module.parameters())
        return model

    def true_prior(self, blocks: Tensor) -> bm.Prior:
        """N(θ₀, Σ₀) as the tasks are drawn, held."""
        variance = self.sd.square().clamp(min=NEVER)
        prior = bm.Prior("block", learn="none")
        return prior.at(mean=self.theta0, variance=variance, blocks=blocks)


def sizes() -> list[tuple[int, int]]:
    """Weights and biases of each layer."""
    return [(a * b, b) for a, b in zip((1, *HIDDEN), (*HIDDEN, 1), strict=True)]


def layer_of_weights() -> Tensor:
    """(dim,) the layer of each weight: its matrix and its biases are one layer."""
    counts = torch.tensor([sum(pair) for pair in sizes()])
    return torch.repeat_interleave(torch.arange(len(counts)), counts)


def network(theta: Tensor, x: Tensor) -> Tensor:
    """(task, row) the network written out, apart from the library's module.

    Args:
        theta: (task, dim).
        x: (task, row, 1).
    """
    parts = iter(theta.split([count for pair in sizes() for count in pair], dim=-1))
    for index, weight in enumerate(parts):
        bias = next(parts)
        x = x @ weight.unflatten(-1, (bias.shape[-1], -1)).mT + bias[:, None]
        x = x.tanh() if index < len(HIDDEN) else x
    return x[..., 0]


def by_layer(sd: Tensor) -> list[float]:
    """Root mean square of standard deviations (..., dim) in each layer."""
    layer = layer_of_weights()
    return [float(sd[..., layer == i].square().mean().sqrt()) for i in range(len(LAYERS))]
