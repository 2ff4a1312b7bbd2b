"""E_{Q_i} f_i(θ) for Gaussian Q_i, three ways: by the linear predictor, by nodes, by draws.

For a prediction affine in θ, η = Zθ + c is Gaussian row by row under Q_i, so the expectation is
one-dimensional: closed-form or Gauss-Hermite (`Likelihood.expected_log_prob`). For up to three
weights a product of Gauss-Hermite rules covers any energy. Otherwise draws θ = m + S^{1/2} ε.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.func import grad, jacrev

from bayesmeta.gaussian import Gaussian
from bayesmeta.models import Model
from bayesmeta.tasks import TaskBatch

NODES_PER_DIM = 9
NODE_DIM_LIMIT = 3
Shared = dict[str, Tensor]


def predictor_loss(
    model: Model, batch: TaskBatch, shared: Shared, mean: Tensor, variance: Tensor
) -> Tensor:
    """(task, row) −E log p(y | η) for η ~ N(mean, variance), 0 at padding."""
    likelihood = model.require_likelihood()
    y, options = model.response(batch.tensors), model.options(batch.tensors)
    rows = model.at(
        None, shared, lambda: likelihood.expected_log_prob(mean, variance, y, **options)
    )
    return -rows if batch.mask is None else -torch.where(batch.mask, rows, 0.0)


@dataclass(frozen=True, eq=False)
class LinearExpectation:
    """By the linear predictor η = offset(location) + Z θ̃, with θ̃ the deviation from θ₀.

    Args:
        model, batch: whose loss.
        adapted: (task, row, p) Z.
        fixed: (task, row, p+q) W, the fixed effects' design.
        constant: (task, row).
    """

    model: Model
    batch: TaskBatch
    adapted: Tensor
    fixed: Tensor
    constant: Tensor

    def value(self, location: Tensor, shared: Shared, deviation: Gaussian) -> Tensor:
        """(task,) E f_i; location is b (p+q,), deviation the law of θ_i − θ₀."""
        mean, variance = self._predictor(location, deviation)
        return predictor_loss(self.model, self.batch, shared, mean, variance).sum(-1)

    def _predictor(self, location: Tensor, deviation: Gaussian) -> tuple[Tensor, Tensor]:
        mean = self.constant + self.fixed @ location
        mean = mean + (self.adapted @ deviation.mean.unsqueeze(-1)).squeeze(-1)
        variance = torch.zeros_like(mean)
        if deviation.diagonal is not None:
            variance = variance + (
                self.adapted.square() @ deviation.diagonal.unsqueeze(-1)
            ).squeeze(-1)
        if deviation.factor is not None:
            variance = variance + (self.adapted @ deviation.factor).square().sum(-1)
        return mean, variance

    def derivatives(
        self, location: Tensor, shared: Shared, deviation: Gaussian
    ) -> tuple[Tensor, Tensor, Tensor]:
        """E f, E ∇f, E ∇²f per task: ∂/∂mean of η gives the first, 2 ∂/∂variance the second."""
        mean, variance = (t.detach().requires_grad_() for t in self._predictor(location, deviation))
        loss = predictor_loss(self.model, self.batch, shared, mean, variance)
        slope, half = torch.autograd.grad(loss.sum(), (mean, variance))
        gradient = (self.adapted.mT @ slope.unsqueeze(-1)).squeeze(-1)
        curvature = self.adapted.mT @ (2 * half.unsqueeze(-1) * self.adapted)
        return loss.detach().sum(-1), gradient, curvature


@dataclass(frozen=True, eq=False)
class NodeExpectation:
    """By a product Gauss-Hermite rule: exact for polynomials of degree 17 in each direction.

    Args:
        model, batch: whose loss.
        nodes: (node, dim), `weights` (node,).
    """

    model: Model
    batch: TaskBatch
    nodes: Tensor
    weights: Tensor

    @classmethod
    def build(cls, model: Model, batch: TaskBatch, like: Tensor) -> NodeExpectation:
        points, weights = np.polynomial.hermite_e.hermegauss(NODES_PER_DIM)
        grid = torch.cartesian_prod(*[torch.as_tensor(points).to(like)] * model.dim)
        products = torch.cartesian_prod(*[torch.as_tensor(weights).to(like)] * model.dim)
        products = products.reshape(len(grid), -1).prod(-1)
        return cls(model, batch, grid.reshape(len(grid), -1), products / products.sum())

    def _points(self, location: Tensor, deviation: Gaussian) -> Tensor:
        nodes = self.nodes[:, None].expand(-1, len(self.batch), -1)
        return location + deviation.transform(nodes)

    def value(self, location: Tensor, shared: Shared, deviation: Gaussian) -> Tensor:
        """(task,) E f_i; location is θ₀ (dim,)."""
        points = self._points(location, deviation)
        return self.weights @ self.model.energies(points, self.batch, shared)

    def derivatives(
        self, location: Tensor, shared: Shared, deviation: Gaussian
    ) -> tuple[Tensor, Tensor, Tensor]:
        """E f, E ∇f, E ∇²f per task."""
        points = self._points(location, deviation).detach()

        def average(function: Callable[..., Tensor]) -> Tensor:
            values = self.model.over_tasks(
                lambda t, tensors, mask: function(t, shared, tensors, mask), points, self.batch
            )
            return torch.tensordot(self.weights, values.detach(), 1)

        energy = self.model.energy
        return average(energy), average(grad(energy)), average(jacrev(grad(energy)))


def drawn_loss(
    model: Model, batch: TaskBatch, shared: Shared, posteriors: Gaussian, noise: Tensor
) -> Tensor:
    """(task,) mean of f_i over draws θ = m_i + S_i^{1/2} ε, for ε (draw, task, noise_dim)."""
    return model.energies(posteriors.transform(noise), batch, shared).mean(0)
