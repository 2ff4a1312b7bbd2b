"""Named Gaussians and draws of predictions: what a fit hands out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

import torch
from torch import Tensor

from bayesmeta.empirical import Empirical
from bayesmeta.gaussian import Gaussian
from bayesmeta.models.modules import check_modules
from bayesmeta.models.precision import multiplying
from bayesmeta.results import InputError, check_whole

if TYPE_CHECKING:
    from bayesmeta.fitted import Fit
    from bayesmeta.tasks import TaskBatch, TaskFamily

LARGEST_DRAWS = 1e7  # weights of all draws that are predicted with together
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


@dataclass(frozen=True, eq=False, repr=False)
class Prediction:
    """Draws of the predictive distribution of every row of a family.

    Args:
        draws: (draw, task, row) of y in original units.
        mask: (task, row) True on real rows; draws at padding mean nothing.
        log_density: (draw, task, row) log p(y | θ_draw) in nats, or None without y.
        tasks: names.
        from_prior: names of the tasks without a posterior, predicted from the prior.
        classes: (draw, task, row, class) p(y = class | θ_draw); None where y is no class.
    """

    draws: Tensor
    mask: Tensor
    log_density: Tensor | None
    tasks: tuple[str, ...]
    from_prior: tuple[str, ...] = ()
    classes: Tensor | None = None

    def __repr__(self) -> str:
        said = f"{len(self.draws)} draws, {len(self.tasks)} tasks, {int(self.mask.sum())} rows"
        if self.from_prior:
            said += (
                f"; {len(self.from_prior)} tasks have no posterior of that name and are predicted "
                f"from the prior ({self.from_prior[0]!r} for one)"
            )
        return f"Prediction({said})"

    @property
    def probabilities(self) -> Tensor:
        """(task, row, class) p(y = class), the mean over θ; `classes.std(0)` is their spread.

        Raises:
            InputError: y is no class.
        """
        if self.classes is None:
            raise InputError("the response is no class: use .mean, .sd and .interval()")
        return self.classes.mean(0)

    @property
    def mean(self) -> Tensor:
        """(task, row)."""
        return self._ordered().mean(0)

    @property
    def sd(self) -> Tensor:
        """(task, row)."""
        return self._ordered().std(0)

    def interval(self, level: float = 0.9) -> tuple[Tensor, Tensor]:
        """Ends (task, row) of the central interval that holds y with probability `level`."""
        if not 0 < level < 1:
            raise InputError(f"level must lie between 0 and 1, not {level}")
        tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=self._ordered().dtype)
        low, high = torch.quantile(self.draws, tails.to(self.draws.device), dim=0)
        return low, high

    def _ordered(self) -> Tensor:
        """The draws, where y has an order."""
        if self.classes is not None:
            raise InputError("classes have no mean, sd or interval: use .probabilities")
        return self.draws

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


def predict(
    fit: Fit, family: TaskFamily, *, draws: int, seed: int, inductive: bool = False
) -> Prediction:
    """θ from every task's posterior, or the prior, then y from the likelihood.

    Args:
        fit: that knows the tasks, or does not.
        family: rows to predict, in original units.
        draws: number of draws.
        seed: of the draws.
        inductive: see `Fit.predict`.

    Raises:
        InputError: `draws` is no number of draws, or the rows do not fit the model.
    """
    check_whole("draws", draws, least=1)
    check_whole("seed", seed)
    generator = torch.Generator().manual_seed(seed)
    batch = fit.seen(family, inductive=inductive)
    likelihood = fit.model.require_likelihood()
    check_modules(fit.model, fit.internal(family))
    with torch.no_grad(), multiplying(fit.model.precision):
        eta, density = _at_draws(fit, family, batch, draws, generator, inductive)
        y = likelihood.sample(eta, generator, **fit.model.options(batch.tensors))
    if fit.standardisation is not None:
        y = fit.standardisation.undo_response(y)
    mask = family.mask if family.mask is not None else torch.ones(
        y.shape[1:3], dtype=torch.bool, device=y.device
    )  # fmt: skip
    known = set(fit.posterior.tasks)
    unknown = tuple(name for name in family.names if name not in known)
    classes = eta.softmax(-1) if likelihood.name == "categorical" else None
    return Prediction(y, mask.to(y.device), density, family.names, unknown, classes)


def _at_draws(
    fit: Fit,
    family: TaskFamily,
    batch: TaskBatch,
    draws: int,
    generator: torch.Generator,
    inductive: bool,
) -> tuple[Tensor, Tensor | None]:
    """Predictions at draws of θ, and log p(y | θ), so many draws at a time as memory allows."""
    strangers = set(family.names) - set(fit.posterior.tasks)
    laws = [fit.posterior.gaussian, *[fit.prior.gaussian] * bool(strangers)]
    certain = all(law.is_point for law in laws)  # and every draw the same
    size = max(1, int(LARGEST_DRAWS // (len(family) * fit.model.dim)))
    parts = []
    for start in range(0, 1 if certain else draws, size):
        theta = fit.draws(family, 1 if certain else min(size, draws - start), generator)
        known = "y" in family.tensors
        density = [fit.log_likelihood(theta, family, inductive=inductive)] if known else []
        parts.append([fit.model.predict(theta, batch), *density])
    joined = [torch.cat(part) for part in zip(*parts, strict=True)]
    eta, *density = (t.expand(draws, *t.shape[1:]) if certain else t for t in joined)
    return eta, density[0] if density else None
