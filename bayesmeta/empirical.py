"""A law known by draws: the posterior of a stochastic algorithm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Empirical:
    """Draws of θ, equally likely, with the moments that figures and tables ask of a posterior.

    Args:
        draws: (draw, ..., dim).

    Example:
        >>> Empirical(torch.tensor([[0.0], [2.0]])).mean
        tensor([1.])
    """

    draws: Tensor
    is_point = False

    @property
    def dim(self) -> int:
        return self.draws.shape[-1]

    @property
    def mean(self) -> Tensor:
        """(..., dim)."""
        return self.draws.mean(0)

    def variance(self) -> Tensor:
        """(..., dim), with divisor draws − 1."""
        return self.draws.var(0)

    def sd(self) -> Tensor:
        """(..., dim)."""
        return self.draws.std(0)

    def covariance(self) -> Tensor:
        """(..., dim, dim), with divisor draws − 1."""
        away = (self.draws - self.mean).movedim(0, -2)
        return away.mT @ away / (len(self.draws) - 1)

    def correlation(self) -> Tensor:
        """(..., dim, dim); NaN where a variance is zero."""
        sd = self.sd()
        scale = torch.where(sd > 0, 1 / sd, torch.nan)
        return scale.unsqueeze(-1) * self.covariance() * scale.unsqueeze(-2)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """(n, ..., dim) of the draws: each as often as any other, up to one, in random order."""
        device = torch.device("cpu") if generator is None else generator.device
        count = len(self.draws)
        laps = [
            torch.randperm(count, generator=generator, device=device) for _ in range(-(-n // count))
        ]
        return self.draws[torch.cat(laps)[:n].to(self.draws.device)]

    def map(self, change: Callable[[Tensor], Tensor]) -> Empirical:
        """The law with its tensor changed."""
        return Empirical(change(self.draws))

    def __getitem__(self, index: Any) -> Empirical:
        """Some of the tasks."""
        return Empirical(self.draws[:, index])
