"""Named Gaussians and draws of predictions: what a fit hands out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from bayesmeta.empirical import Empirical
from bayesmeta.gaussian import Gaussian
from bayesmeta.results import InputError

Law = TypeVar("Law", bound=Gaussian | Empirical, covariant=True)


@dataclass(frozen=True, eq=False)
class Named(Generic[Law]):
    """A Gaussian, or a law known by draws, whose coordinates have names; with `tasks`, one each.

    Args:
        names: (dim,) coordinates.
        gaussian: N(m, S), or the draws of a stochastic algorithm.
        tasks: names of the leading axis; empty for a prior.
    """

    names: tuple[str, ...]
    gaussian: Law
    tasks: tuple[str, ...] = ()

    @property
    def mean(self) -> Tensor:
        """(dim,) or (task, dim)."""
        return self.gaussian.mean

    @property
    def draws(self) -> Tensor | None:
        """(draw, task, dim) of a law known by draws; None for a Gaussian."""
        return getattr(self.gaussian, "draws", None)

    def sd(self) -> Tensor:
        """(dim,) or (task, dim)."""
        return self.gaussian.sd()

    def covariance(self) -> Tensor:
        """(dim, dim) or (task, dim, dim)."""
        return self.gaussian.covariance()

    def correlation(self) -> Tensor:
        """(dim, dim) or (task, dim, dim); NaN where a variance is zero."""
        return self.gaussian.correlation()

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """(n, dim) or (n, task, dim) draws."""
        return self.gaussian.sample(n, generator)


@dataclass(frozen=True, eq=False)
class Prediction:
    """Draws of the predictive distribution of every row of a family.

    Args:
        draws: (draw, task, row) of y in original units.
        mask: (task, row) True on real rows; draws at padding mean nothing.
        log_density: (draw, task, row) log p(y | θ_draw) in nats, or None without y.
        tasks: names.
        from_prior: names of the tasks without a posterior, predicted from the prior.
    """

    draws: Tensor
    mask: Tensor
    log_density: Tensor | None
    tasks: tuple[str, ...]
    from_prior: tuple[str, ...] = ()

    @property
    def mean(self) -> Tensor:
        """(task, row)."""
        return self.draws.mean(0)

    @property
    def sd(self) -> Tensor:
        """(task, row)."""
        return self.draws.std(0)

    def interval(self, level: float = 0.9) -> tuple[Tensor, Tensor]:
        """Ends (task, row) of the central interval that holds y with probability `level`."""
        if not 0 < level < 1:
            raise InputError(f"level must lie between 0 and 1, not {level}")
        tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=self.draws.dtype)
        low, high = torch.quantile(self.draws, tails.to(self.draws.device), dim=0)
        return low, high

    def log_score(self, *, joint: bool = False) -> Tensor:
        """(task,) log predictive density of the observed y in nats, NaN without y.

            Σ_rows log mean_draws p(y_row | θ)         (rows one at a time)
            log mean_draws Π_rows p(y_row | θ)         (joint=True: the task's rows together)

        The logarithm is of the mean over draws; a mean of logarithms would be another number.
        """
        if self.log_density is None:
            return torch.full(self.draws.shape[1:2], torch.nan, device=self.draws.device)
        count = torch.tensor(float(len(self.draws)), dtype=self.draws.dtype).log()
        density = self.log_density.sum(-1) if joint else self.log_density
        mixed = density.logsumexp(0) - count
        return mixed if joint else torch.where(self.mask, mixed, 0.0).sum(-1)
