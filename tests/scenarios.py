"""Families whose meta-gradients are known in closed form, independent of the library's solvers.

Each scenario gives M as a plain differentiable function of (θ₀, Σ₀, ψ), written with dense matrices
from the textbook solution of its inner problem, so that autograd of it is the reference.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bayesmeta import Model, Prior, TaskFamily, likelihoods
from bayesmeta.families import quadratic_energy, quadratics

F64 = torch.float64
FORMS = ("isotropic", "block", "diagonal", "lowrank(2)", "full")


@dataclass(frozen=True, eq=False)
class Scenario:
    """A family, its model, and M by the book.

    Args:
        model, family, query: what `meta_gradient` takes.
        dim: of θ.
        adapted: (θ₀ (task, dim), Λ (dim, dim), ψ) → θ* (task, dim).
        loss: (θ (task, dim), ψ) → (task,) g_i.
        fit: (θ, ψ) → (task,) f_i.
    """

    model: Model
    family: TaskFamily
    query: TaskFamily
    adapted: Callable[..., Tensor]
    loss: Callable[..., Tensor]
    fit: Callable[..., Tensor]

    @property
    def dim(self) -> int:
        return self.model.dim

    def prior(self, form: str, seed: int = 0) -> Prior:
        """A prior of a form with nothing symmetric about it."""
        generator = torch.Generator().manual_seed(seed)
        mean = torch.randn(self.dim, generator=generator, dtype=F64)
        root = torch.randn(self.dim, self.dim, generator=generator, dtype=F64)
        covariance = 0.1 * root @ root.T + torch.diag(torch.linspace(0.5, 1.5, self.dim, dtype=F64))
        blocks = torch.arange(self.dim) * 2 // self.dim
        if form == "lowrank(2)":
            prior = Prior(form).at(mean=mean, variance=covariance.diagonal(), blocks=blocks)
            with torch.no_grad():
                prior.free["factor"].copy_(0.5 * root[:, :2])
            return prior
        return Prior(form).at(mean=mean, covariance=covariance, blocks=blocks)

    def shared(self) -> dict[str, Tensor]:
        return {k: v.detach().clone() for k, v in self.model.shared.items()}


def gaussian_of(prior: Prior, free: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """θ₀ and the dense Λ of free parameters."""
    gaussian = prior.form.constrain(free, prior.blocks)
    return gaussian.mean, torch.linalg.inv(gaussian.covariance())


def quadratic(tasks: int = 3, dim: int = 4, seed: int = 0) -> Scenario:
    """½(θ−c)ᵀA(θ−c), non-commuting A, another quadratic as the query loss."""
    generator = torch.Generator().manual_seed(seed)
    family, _ = quadratics(tasks=tasks, dim=dim, generator=generator)
    query, _ = quadratics(tasks=tasks, dim=dim, generator=generator)

    def adapted(mean: Tensor, precision: Tensor, shared: dict[str, Tensor]) -> Tensor:
        A, c = family.tensors.values()
        right = (A @ c[..., None])[..., 0] + (precision @ mean[..., None])[..., 0]
        return torch.linalg.solve(A + precision, right)

    def quadratic_of(some: TaskFamily) -> Callable[..., Tensor]:
        A, c = some.tensors.values()
        return lambda t, s: 0.5 * ((t - c)[:, None] @ A @ (t - c)[..., None])[:, 0, 0]

    model = Model.from_energy(quadratic_energy, dim)
    return Scenario(model, family, query, adapted, quadratic_of(query), quadratic_of(family))


class _Regression(nn.Module):
    """x·θ + z·ψ, with two parameter tensors in θ, so that blocks differ."""

    def __init__(self, dim: int, fixed: int) -> None:
        super().__init__()
        half = dim // 2
        self.low = nn.Parameter(torch.zeros(half, dtype=F64))
        self.high = nn.Parameter(torch.zeros(dim - half, dtype=F64))
        self.fixed = nn.Parameter(torch.linspace(-0.5, 0.5, fixed, dtype=F64))

    def forward(self, x: Tensor) -> Tensor:
        return x @ torch.cat([self.low, self.high, self.fixed])


def regression(
    tasks: int = 4, rows: int = 12, dim: int = 6, fixed: int = 2, condition: float = 3e3
) -> Scenario:
    """Linear regression, f_i of the given condition number; ψ is fixed effects and the noise."""
    generator = torch.Generator().manual_seed(1)

    def draw() -> TaskFamily:
        left = torch.linalg.qr(torch.randn(tasks, rows, dim, generator=generator, dtype=F64)).Q
        right = torch.linalg.qr(torch.randn(tasks, dim, dim, generator=generator, dtype=F64)).Q
        spread = torch.logspace(0, 0.5, dim, base=condition, dtype=F64)
        x = left * spread @ right.mT
        z = torch.randn(tasks, rows, fixed, generator=generator, dtype=F64)
        y = x @ torch.randn(tasks, dim, 1, generator=generator, dtype=F64)
        y = y[..., 0] + torch.randn(tasks, rows, generator=generator, dtype=F64)
        return TaskFamily.from_tensors(x=torch.cat([x, z], -1), y=y)

    family, query = draw(), draw()
    model = Model(_Regression(dim, fixed), likelihoods.Gaussian(), adapt=["low", "high"])
    model = model.to(dtype=F64)

    def parts(some: TaskFamily, shared: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        x = some.tensors["x"]
        rest = some.tensors["y"] - x[..., dim:] @ shared["module.fixed"]
        return x[..., :dim], rest, (2 * shared["likelihood.log_scale"]).exp()

    def adapted(mean: Tensor, precision: Tensor, shared: dict[str, Tensor]) -> Tensor:
        x, rest, variance = parts(family, shared)
        right = (x.mT @ rest[..., None])[..., 0] / variance + (precision @ mean[..., None])[..., 0]
        return torch.linalg.solve(x.mT @ x / variance + precision, right)

    def nll(some: TaskFamily) -> Callable[..., Tensor]:
        def value(theta: Tensor, shared: dict[str, Tensor]) -> Tensor:
            x, rest, variance = parts(some, shared)
            error = rest - (x @ theta[..., None])[..., 0]
            constant = (2 * torch.pi * variance).log()
            return 0.5 * (error.square() / variance + constant).sum(-1)

        return value

    return Scenario(model, family, query, adapted, nll(query), nll(family))


SCENARIOS = {"quadratic": quadratic, "regression": regression}


def poisson_network() -> tuple[Model, Prior, TaskFamily]:
    """A nonlinear model with a discrete likelihood, ragged tasks, and a shared layer."""
    generator = torch.Generator().manual_seed(3)
    lengths = [7, 5, 9]
    x = [torch.randn(n, 2, generator=generator, dtype=F64) for n in lengths]
    y = [torch.poisson((0.5 + t[:, 0]).clamp(-2, 2).exp(), generator=generator) for t in x]
    family = TaskFamily.from_tensors(x=x, y=y)
    module = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.7 * torch.randn(parameter.shape, generator=generator, dtype=F64))
    model = Model(module, likelihoods.Poisson(), adapt=["0.bias", "2"])
    prior = Prior("diagonal").at(
        mean=model.start + 0.1, variance=torch.linspace(0.3, 0.8, model.dim, dtype=F64)
    )
    return model, prior, family
