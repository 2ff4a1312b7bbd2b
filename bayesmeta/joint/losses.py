"""f_i(θ₀ + A u) of every task as a function of u, and its derivatives.

By the linear predictor, where the prediction is one, or of any model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from bayesmeta.inner.problem import InnerProblem
from bayesmeta.models import Model
from bayesmeta.tasks import TaskBatch

Shared = dict[str, Tensor]


class Loss(Protocol):
    """f_i(θ₀ + A u); everything it returns is differentiable in θ₀, A, ψ and u."""

    def value(self, u: Tensor) -> Tensor:
        """(..., task) for u (..., task, k)."""
        ...

    def gradient(self, u: Tensor) -> Tensor:
        """(task, k)."""
        ...

    def derivatives(self, u: Tensor, kind: str) -> tuple[Tensor, Tensor, Tensor]:
        """Value (task,), gradient (task, k), Hessian or Gauss-Newton matrix (task, k, k)."""
        ...


@dataclass(frozen=True, eq=False)
class LinearLoss:
    """By the linear predictor η = η₀ + B u, B = Z A; a row's −log p depends on its own η only.

    Args:
        rows: η (..., task, row) -> −log p of every row, 0 at padding.
        base: (task, row) η₀, at θ₀.
        design: (task, row, k) B.
    """

    rows: Callable[[Tensor], Tensor]
    base: Tensor
    design: Tensor

    def _predictor(self, u: Tensor) -> Tensor:
        return self.base + (self.design @ u.unsqueeze(-1)).squeeze(-1)

    def value(self, u: Tensor) -> Tensor:
        return self.rows(self._predictor(u)).sum(-1)

    def gradient(self, u: Tensor) -> Tensor:
        _, _, slope = self._slope(u)
        return self._pulled(slope)

    def derivatives(self, u: Tensor, kind: str) -> tuple[Tensor, Tensor, Tensor]:
        recorded = torch.is_grad_enabled()
        eta, loss, slope = self._slope(u)
        with torch.enable_grad():
            (weight,) = torch.autograd.grad(slope.sum(), eta, create_graph=recorded)
        if not recorded:
            loss, slope = loss.detach(), slope.detach()
        weight = weight.clamp(min=0) if kind == "ggn" else weight
        second = self.design.mT @ (weight.unsqueeze(-1) * self.design)
        return loss.sum(-1), self._pulled(slope), second

    def _pulled(self, slope: Tensor) -> Tensor:
        return (self.design.mT @ slope.unsqueeze(-1)).squeeze(-1)

    def _slope(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """η, −log p of every row, and its derivative in η, all (task, row), with their graph."""
        eta = self._predictor(u)
        with torch.enable_grad():
            eta = eta if eta.requires_grad else eta.detach().requires_grad_()
            loss = self.rows(eta)
            (slope,) = torch.autograd.grad(loss.sum(), eta, create_graph=True)
        return eta, loss, slope


@dataclass(frozen=True, eq=False)
class GeneralLoss:
    """By the model itself.

    Args:
        problem: f of every task, without an anchor.
        location: (p,) θ₀.
        root: (p, k) A.
    """

    problem: InnerProblem
    location: Tensor
    root: Tensor

    def _theta(self, u: Tensor) -> Tensor:
        return self.location + u @ self.root.mT

    def value(self, u: Tensor) -> Tensor:
        return self.problem.energy(self._theta(u))

    def gradient(self, u: Tensor) -> Tensor:
        return self.problem.gradient(self._theta(u)) @ self.root

    def derivatives(self, u: Tensor, kind: str) -> tuple[Tensor, Tensor, Tensor]:
        theta = self._theta(u)
        gradient = self.problem.gradient(theta) @ self.root
        second = self.problem.curvature(theta, kind).dense(theta)
        return self.problem.energy(theta), gradient, self.root.mT @ second @ self.root


@dataclass(frozen=True, eq=False)
class LinearTasks:
    """Tasks whose prediction is Z θ + X ψ + c.

    Args:
        model, batch: whose loss.
        adapted: (task, row, p) Z.
        fixed: (task, row, p+q) [Z X].
        constant: (task, row) c.
    """

    model: Model
    batch: TaskBatch
    adapted: Tensor
    fixed: Tensor
    constant: Tensor

    def loss(self, location: Tensor, shared: Shared, root: Tensor) -> LinearLoss:
        """At fixed effects `location` (p+q,) and constants `shared`, with A = `root`."""
        base = self.constant + self.fixed @ location

        def rows(eta: Tensor) -> Tensor:
            return -self.model.log_prob_at(eta, self.batch, shared)

        return LinearLoss(rows, base, self.adapted @ root)


@dataclass(frozen=True, eq=False)
class GeneralTasks:
    """Tasks of any model."""

    model: Model
    batch: TaskBatch

    def loss(self, location: Tensor, shared: Shared, root: Tensor) -> GeneralLoss:
        """At (θ₀, the module's ψ) laid out in `location`, and the other ψ in `shared`."""
        p = self.model.dim
        shared = shared | self.model.split_shared(location[p:])
        start = location[:p].expand(len(self.batch), p)
        problem = InnerProblem(self.model, self.batch, shared, start, None)
        return GeneralLoss(problem, location[:p], root)
