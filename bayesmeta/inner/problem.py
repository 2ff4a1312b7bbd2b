"""What an inner algorithm and a gradient rule receive: F_i(θ) = f_i(θ) + ½‖θ − θ₀‖²_Λ, all tasks.

Without an anchor F = f. Tasks do not interact, so the gradient of ΣF_i holds every task's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bayesmeta.curvature import Curvature, gauss_newton, hessian
from bayesmeta.derivatives import slope
from bayesmeta.gaussian import Gaussian
from bayesmeta.models import Model
from bayesmeta.results import InputError
from bayesmeta.tasks import TaskBatch

if TYPE_CHECKING:
    from bayesmeta.inner.noise import Noise

Shared = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class InnerProblem:
    """The problem that adaptation solves, for all tasks of a batch at once.

    Args:
        model: f.
        batch: the support sets.
        shared: ψ.
        start: (task, dim) where adaptation starts: θ₀, once per task.
        anchor: N(θ₀, Σ₀) with a task axis on its mean, or None: no proximal term.
        noise: z of a stochastic algorithm, one path per task of the batch.
        scale: (task,) what f of a minibatch is multiplied by to stand for all rows.
        normals: (task, dim) the standard normals of one step.
    """

    model: Model
    batch: TaskBatch
    shared: Shared
    start: Tensor
    anchor: Gaussian | None
    noise: Noise | None = None
    scale: Tensor | None = None
    normals: Tensor | None = None

    def during(self, step: int | Tensor) -> InnerProblem:
        """What the step of that number, or those, sees: minibatch, dropped units, normals."""
        return self if self.noise is None else self.noise.during(self, step)

    @property
    def rows(self) -> Tensor:
        """(task, 1) support rows, of which a minibatch is a part; 1 without a row axis."""
        if self.batch.mask is None:
            return torch.ones_like(self.start[:, :1])
        count = self.batch.mask.sum(1, keepdim=True).to(self.start)
        return count if self.scale is None else count * self.scale[:, None]

    def require_anchor(self) -> Gaussian:
        """N(θ₀, Σ₀)."""
        assert self.anchor is not None, "only a Proximal Q_i, which has an anchor, asks for it"
        return self.anchor

    def energy(self, theta: Tensor) -> Tensor:
        """(..., task) f_i(θ_i) in nats, for θ (..., task, dim)."""
        energy = self.model.energies(theta, self.batch, self.shared)
        return energy if self.scale is None else energy * self.scale

    def value(self, theta: Tensor) -> Tensor:
        """(..., task) F_i(θ_i) in nats."""
        energy = self.energy(theta)
        return energy if self.anchor is None else energy + self.anchor.quadratic(theta)

    def evaluate(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """(task,) F_i(θ_i) in nats and (task, dim) ∇F_i(θ_i); differentiable."""
        value, gradient = slope(self.energy, theta)
        if self.anchor is None:
            return value, gradient
        force = self.force(theta)
        return value + 0.5 * ((theta - self.anchor.mean) * force).sum(-1), gradient + force

    def gradient(self, theta: Tensor) -> Tensor:
        """(task, dim) ∇F_i(θ_i); differentiable."""
        gradient = slope(self.energy, theta)[1]
        return gradient if self.anchor is None else gradient + self.force(theta)

    def force(self, theta: Tensor) -> Tensor:
        """(task, dim) Λ(θ − θ₀), the anchor's part of ∇F; 0 without an anchor."""
        if self.anchor is None:
            return torch.zeros_like(theta)
        return self.anchor.precision_product(theta - self.anchor.mean)

    def precision_product(self, v: Tensor) -> Tensor:
        """(task, dim) Λ v; 0 without an anchor."""
        return torch.zeros_like(v) if self.anchor is None else self.anchor.precision_product(v)

    def precision_matrix(self) -> Tensor:
        """(task, dim, dim) Λ, dense; 0 without an anchor."""
        start = self.start
        eye = torch.eye(start.shape[-1], dtype=start.dtype, device=start.device)
        if self.anchor is None:
            return torch.zeros_like(eye).expand(len(start), *eye.shape)
        return self.anchor.precision_columns(eye).expand(len(start), *eye.shape)

    def covariance_product(self, v: Tensor) -> Tensor:
        """(task, dim) Σ₀ v; v without an anchor."""
        return v if self.anchor is None else self.anchor.covariance_product(v)

    def curvature(self, theta: Tensor, kind: str) -> Curvature:
        """H_i, or the generalised Gauss-Newton matrix G_i, of f_i (without Λ) at θ.

        Raises:
            InputError: the model has no likelihood, which the Gauss-Newton matrix needs.
        """
        if kind != "ggn":
            return hessian(lambda t: slope(self.energy, t)[1], theta)
        if self.model.likelihood is None:
            raise InputError(
                "the Gauss-Newton matrix needs a model with a likelihood; for an energy use "
                'curvature="hessian"'
            )
        return gauss_newton(
            lambda t: self.model.predict(t, self.batch, self.shared),
            lambda eta: -self.model.log_prob_at(eta, self.batch, self.shared),
            theta,
        )
