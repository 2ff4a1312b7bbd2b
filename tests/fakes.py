"""A fit of linear-Gaussian tasks at a known prior, in closed form: what a figure reads, no fit.

The posterior of a task is N((Λ + XᵀX/σ²)⁻¹ (Λθ₀ + Xᵀy/σ²), (Λ + XᵀX/σ²)⁻¹). Figures are drawn from
it for cases that a real fit would take long to reach: hundreds of tasks, a prior sd of exactly 0,
tasks without an estimate of their own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bayesmeta.tasks import TableInfo, TaskFamily


@dataclass
class Named:
    """N(mean, covariance), batched over tasks or not."""

    names: tuple[str, ...]
    mean: Tensor
    cov: Tensor
    tasks: tuple[str, ...] = ()

    def covariance(self) -> Tensor:
        return self.cov

    def sd(self) -> Tensor:
        return self.cov.diagonal(dim1=-2, dim2=-1).sqrt()

    def correlation(self) -> Tensor:
        return self.cov / (self.sd()[..., None] * self.sd()[..., None, :])


@dataclass
class Prediction:
    draws: Tensor
    mask: Tensor

    @property
    def mean(self) -> Tensor:
        return self.draws.mean(0)

    def interval(self, level: float) -> tuple[Tensor, Tensor]:
        low = self.draws.quantile((1 - level) / 2, dim=0)
        return low, self.draws.quantile((1 + level) / 2, dim=0)


@dataclass
class FakeFit:
    """Known prior, exact posteriors; x has an intercept column, so design = x."""

    family: TaskFamily
    prior: Named
    scale: float
    trace: list[float] = field(default_factory=lambda: [30.0, 12.0, 11.0])
    flagged: list[Any] = field(default_factory=list)
    evidence_kind: str = "exact"
    solver: str = "exact"

    def __post_init__(self) -> None:
        self.likelihood = SimpleNamespace(name="gaussian")
        x, y, mask = self.family.tensors["x"], self.family.tensors["y"], self.family.mask
        assert mask is not None
        weighted = x * mask[..., None]
        self.gram = weighted.transpose(1, 2) @ x / self.scale**2
        self.moment = (weighted.transpose(1, 2) @ y[..., None])[..., 0] / self.scale**2
        # Σ (I + GΣ)⁻¹ holds for a singular Σ too.
        prior, eye = self.prior.cov, torch.eye(x.shape[-1], dtype=x.dtype)
        cov = prior @ torch.linalg.inv(eye + self.gram @ prior)
        residual = self.moment - self.gram @ self.prior.mean
        mean = self.prior.mean + (cov @ residual[..., None])[..., 0]
        self.posterior = Named(self.prior.names, mean, cov, self.family.names)

    def no_pooling(self) -> Any:
        known = torch.linalg.matrix_rank(self.gram) == self.gram.shape[-1]
        mean = torch.full_like(self.moment, torch.nan)
        mean[known] = torch.linalg.solve(self.gram[known], self.moment[known])
        return SimpleNamespace(mean=mean)

    def predict(
        self, family: TaskFamily | None = None, draws: int = 1000, seed: int = 0
    ) -> Prediction:
        family = self.family if family is None else family
        place = [self.family.names.index(name) for name in family.names]
        generator = torch.Generator().manual_seed(seed)
        mean, cov = self.posterior.mean[place], self.posterior.cov[place]
        values, axes = torch.linalg.eigh(cov)
        root = axes * values.clamp(min=0).sqrt()[:, None]
        noise = torch.randn(draws, *mean.shape, 1, dtype=mean.dtype, generator=generator)
        theta = mean + (root @ noise)[..., 0]
        line = torch.einsum("trd,std->str", family.tensors["x"], theta)
        noise = torch.randn(line.shape, dtype=line.dtype, generator=generator)
        assert family.mask is not None
        return Prediction(line + self.scale * noise, family.mask)


def fake_fit(
    tasks: int = 18,
    dim: int = 2,
    *,
    rows: int = 8,
    sd: tuple[float, ...] = (24.0, 5.7, 0.6),
    names: list[str] | None = None,
    single: tuple[int, ...] = (),
    seed: int = 0,
    table: bool = True,
) -> Any:
    """A fit of simulated tasks y = θ₀ + θ₁ x + θ₂ x² + noise; tasks in `single` have one row."""
    generator = torch.Generator().manual_seed(seed)
    mean = torch.tensor([251.0, 10.5, -0.4], dtype=torch.float64)[:dim]
    spread = torch.tensor(sd, dtype=torch.float64)[:dim]
    correlation = torch.full((dim, dim), 0.3, dtype=torch.float64).fill_diagonal_(1.0)
    cov = spread[:, None] * correlation * spread
    theta = mean + spread * torch.randn(tasks, dim, dtype=torch.float64, generator=generator)
    days = torch.arange(rows, dtype=torch.float64).expand(tasks, rows)
    x = torch.stack([days**power for power in range(dim)], -1)
    noise = torch.randn(tasks, rows, dtype=torch.float64, generator=generator)
    y = (x @ theta[..., None])[..., 0] + 25.0 * noise
    mask = torch.ones(tasks, rows, dtype=torch.bool)
    mask[list(single), 1:] = False
    for task in single:  # padding repeats a real row
        x[task], y[task] = x[task, :1], y[task, :1]
    columns = ("Intercept", "Days", "I(Days ** 2)")[:dim]
    info = TableInfo("sleep.csv", "Subject", "Reaction", columns, columns, "Reaction ~ ...")
    given = names or [str(300 + i) for i in range(tasks)]
    family = TaskFamily({"x": x, "y": y}, mask=mask, names=given, table=info if table else None)
    return FakeFit(family, Named(columns, mean, cov), scale=25.0)


LONG_NAMES = [
    "Lac qui Parle County, Minnesota (survey of 1987)",
    "Île-de-France, Hauts-de-Seine, canton n° 3",
    "Łódź – Śródmieście",
    "Θεσσαλονίκη, κέντρο",
    "costs $5 or $10_x^2",
    "two\nlines",
]


def seen(values: Any) -> np.ndarray:
    return np.asarray(values, dtype=float)
