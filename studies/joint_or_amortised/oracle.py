"""Prediction by the law that tasks are drawn from: what no fitted prior can beat on average."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

import bayesmeta as bm
from bayesmeta.families import Truth
from bayesmeta.fit import Prediction

F64 = torch.float64
GRID = 160
PART = 8
"""Tasks at a time: the grid is large."""
Reference = Callable[[bm.TaskFamily, bm.TaskFamily, int], Prediction]
"""From (support, query, draws)."""


def held_prior(model: bm.Model, truth: Truth) -> Reference:
    """The true N(θ₀, Σ₀), held: posteriors are exact, or the best Gaussians."""
    prior = bm.Prior("full", learn="none").at(mean=truth.theta0, covariance=truth.covariance)

    def predict(support: bm.TaskFamily, query: bm.TaskFamily, draws: int) -> Prediction:
        return bm.fit(model, support, prior=prior).predict(query, draws=draws)

    return predict


@dataclass(frozen=True)
class Waves:
    """The sinusoids' own two parameters on a grid, weighted by the support rows.

    y = A sin(x − φ) + N(0, noise²),  A ~ U(0.1, 5),  φ ~ U(0, π)

    Args:
        noise: sd of y.
        seed: of the draws from the weighted grid.
    """

    noise: float
    seed: int = 0

    def __call__(self, support: bm.TaskFamily, query: bm.TaskFamily, draws: int) -> Prediction:
        generator = torch.Generator().manual_seed(self.seed)
        middle = (torch.arange(GRID, dtype=F64, device=support.device) + 0.5) / GRID
        amplitude, phase = torch.meshgrid(0.1 + 4.9 * middle, math.pi * middle, indexing="ij")
        curves = torch.stack([amplitude.flatten(), phase.flatten()])
        parts = []
        for first in range(0, len(support), PART):
            index = list(range(first, min(first + PART, len(support))))
            parts.append(self._density(curves, support.subset(index)).sum(-1))
        weights = torch.cat(parts, 1).softmax(0).T.cpu()
        chosen = torch.multinomial(weights, draws, replacement=True, generator=generator).T
        theta = curves[:, chosen.to(support.device)]
        density = self._density(theta, query)
        mean = theta[0][..., None] * torch.sin(query.tensors["x"][..., 0] - theta[1][..., None])
        unit = torch.randn(mean.shape, generator=generator, dtype=F64).to(mean)
        mask = torch.ones_like(query.tensors["y"], dtype=torch.bool)
        return Prediction(mean + self.noise * unit, mask, density, query.names)

    def _density(self, theta: torch.Tensor, family: bm.TaskFamily) -> torch.Tensor:
        """(draw, task, row) log p(y | A, φ), θ (2, draw) of all tasks or (2, draw, task)."""
        theta = theta[..., None] if theta.ndim == 2 else theta
        x, y = family.tensors["x"][..., 0], family.tensors["y"]
        mean = theta[0][..., None] * torch.sin(x - theta[1][..., None])
        return torch.distributions.Normal(mean, self.noise).log_prob(y)
