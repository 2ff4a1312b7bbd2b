"""Binary, count and class responses, each in the form that stays finite where the truth is."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from bayesmeta.likelihoods.base import Likelihood
from bayesmeta.likelihoods.quadrature import QuadratureLikelihood
from bayesmeta.results import InputError

MOST_NUMBERS = 10**8  # in the points of a rule
EXACT_LINEAR = 40.0  # log(1 + exp x) = x in float64 from x = 37 on
STIRLING_FROM = 30.0  # where four terms of Stirling's series are exact to rounding
POISSON_UP_TO = 1e15  # torch.poisson counts in int64, and wraps around without a word above 9e18


class Bernoulli(QuadratureLikelihood):
    """y ∈ {0, 1} with log-odds η.

        log p = log σ(η) if y = 1, log σ(−η) if y = 0

    Args:
        nodes: points of the expectation's rule; with 20 it errs by 1e-11 nats a row at
            sd(η) = 1, 1e-6 at 2 and 2e-3 at 5.

    Example:
        >>> value = Bernoulli().log_prob(torch.tensor([-1000.0]), torch.ones(1))
        >>> value.item()
        -1000.0
    """

    name: ClassVar[str] = "bernoulli"
    responses: ClassVar[str] = "binary"
    support: ClassVar[str] = "it must be 0 or 1"

    def __init__(self, *, nodes: int = 20) -> None:
        super().__init__(nodes=nodes)

    def _log_prob(self, prediction: Tensor, y: Tensor, extra: Tensor | None) -> Tensor:
        return y * _log_sigmoid(prediction) + (1.0 - y) * _log_sigmoid(-prediction)

    def _sample(
        self, prediction: Tensor, generator: torch.Generator, extra: Tensor | None
    ) -> Tensor:
        return torch.bernoulli(prediction.sigmoid(), generator=generator)

    def _mean(self, prediction: Tensor, trials: Tensor | None) -> Tensor:
        return prediction.sigmoid()

    def _possible(self, y: Tensor, trials: Tensor | None) -> Tensor:
        return (y == 0) | (y == 1)


class Binomial(QuadratureLikelihood):
    """y successes in n trials, each with log-odds η.

        log p = log (n choose y) + y log σ(η) + (n − y) log σ(−η)

    Args:
        nodes: as in `Bernoulli`.

    Example:
        >>> two, one = torch.full((1,), 2.0), torch.ones(1)
        >>> value = Binomial().log_prob(torch.zeros(1), one, trials=two)
        >>> round(math.exp(value.item()), 6)
        0.5
    """

    name: ClassVar[str] = "binomial"
    responses: ClassVar[str] = "count"
    optional: ClassVar[tuple[str, ...]] = ("trials",)
    required: ClassVar[tuple[str, ...]] = ("trials",)
    support: ClassVar[str] = "it must be a whole number from 0 to the number of trials"

    def __init__(self, *, nodes: int = 20) -> None:
        super().__init__(nodes=nodes)

    def _log_prob(self, prediction: Tensor, y: Tensor, extra: Tensor | None) -> Tensor:
        assert extra is not None  # `required` has seen to it
        choose = torch.lgamma(extra + 1) - torch.lgamma(y + 1) - torch.lgamma(extra - y + 1)
        inside = y * _log_sigmoid(prediction) + (extra - y) * _log_sigmoid(-prediction)
        return choose + inside

    def _sample(
        self, prediction: Tensor, generator: torch.Generator, extra: Tensor | None
    ) -> Tensor:
        assert extra is not None
        trials, chance = torch.broadcast_tensors(extra, prediction.sigmoid())
        return torch.binomial(trials.contiguous(), chance.contiguous(), generator=generator)

    def _mean(self, prediction: Tensor, trials: Tensor | None) -> Tensor:
        if trials is None:
            raise InputError("the mean of a binomial needs trials=")
        return trials * prediction.sigmoid()

    def _possible(self, y: Tensor, trials: Tensor | None) -> Tensor:
        assert trials is not None
        return _whole(y) & _whole(trials) & (y <= trials)


class Categorical(QuadratureLikelihood):
    """y ∈ {0, …, K−1} with one logit per class.

        log p = η_y − log Σ_k exp η_k

    The expectation averages over fixed quasi-random points in K dimensions, whose mean and
    covariance are exactly 0 and I. It errs by some 1e-3 nats a row where the logits' sd is 1,
    1e-2 at 2 and 5e-2 at 5.

    Args:
        classes: K.
        nodes: number of points; half of them, and their mirror images.

    Example:
        >>> value = Categorical(4).log_prob(torch.zeros(1, 4), torch.tensor([2]))
        >>> round(math.exp(value.item()), 6)
        0.25
    """

    name: ClassVar[str] = "categorical"
    responses: ClassVar[str] = "class"
    support: ClassVar[str] = "it must be a class number, 0 or more and below the number of classes"

    def __init__(self, classes: int, *, nodes: int = 512) -> None:
        if isinstance(classes, bool) or not isinstance(classes, int) or classes < 2:
            raise InputError(f"classes={classes!r}: a categorical response has 2 classes or more")
        self.classes = classes
        super().__init__(classes=classes, nodes=nodes)

    def _rule(self, nodes: int) -> tuple[Tensor, Tensor]:
        half = nodes // 2
        if half < self.classes:
            raise InputError(f"nodes={nodes}: {self.classes} classes need {2 * self.classes}")
        if nodes * self.classes > MOST_NUMBERS:
            raise InputError(
                f"nodes={nodes} points for {self.classes} classes are more than {MOST_NUMBERS} "
                "numbers: give fewer"
            )
        sobol = torch.quasirandom.SobolEngine(self.classes, scramble=True, seed=0)
        normal = torch.special.ndtri(sobol.draw(half, dtype=torch.float64).clamp(1e-12, 1 - 1e-12))
        covariance = normal.T @ normal / half
        normal = torch.linalg.solve_triangular(
            torch.linalg.cholesky(covariance), normal.T, upper=False
        ).T
        points = torch.cat([normal, -normal])
        return points, points.new_full((len(points),), 1.0 / len(points))

    def _deviations(self, points: Tensor, variance: Tensor, mean: Tensor) -> Tensor:
        if variance.ndim == mean.ndim:
            points = points.reshape(-1, *[1] * (mean.ndim - 1), self.classes)
            return points * variance.sqrt()
        factor = torch.linalg.cholesky(variance)
        return torch.einsum("...ij,nj->n...i", factor, points)

    def _shifted(self, variance: Tensor, shift: float | Tensor, mean: Tensor) -> Tensor:
        if variance.ndim == mean.ndim:
            return variance + shift
        identity = torch.eye(self.classes, dtype=mean.dtype, device=mean.device)
        return variance + shift * identity

    def _log_prob(self, prediction: Tensor, y: Tensor, extra: Tensor | None) -> Tensor:
        if prediction.shape[-1] != self.classes:
            raise InputError(
                f"the model predicts {prediction.shape[-1]} logits for {self.classes} classes"
            )
        logits = prediction.log_softmax(-1)
        label = y.long().expand(logits.shape[:-1]).unsqueeze(-1)
        return logits.gather(-1, label).squeeze(-1)

    def _sample(
        self, prediction: Tensor, generator: torch.Generator, extra: Tensor | None
    ) -> Tensor:
        # The largest of logit + Gumbel noise is a draw from the softmax.
        uniform = torch.rand(
            prediction.shape, generator=generator, device=generator.device, dtype=prediction.dtype
        )
        return (prediction - (-uniform.log()).log()).argmax(-1)

    def _mean(self, prediction: Tensor, trials: Tensor | None) -> Tensor:
        return prediction.softmax(-1)

    def _possible(self, y: Tensor, trials: Tensor | None) -> Tensor:
        return _whole(y) & (y < self.classes)


class Poisson(Likelihood):
    """y events with log mean η.

        log p = y η − exp η − log y!,    E log p = y m − exp(m + variance/2) − log y!

    Example:
        >>> value = Poisson().log_prob(torch.zeros(1), torch.zeros(1))  # −exp 0
        >>> value.item()
        -1.0
    """

    name: ClassVar[str] = "poisson"
    responses: ClassVar[str] = "count"
    support: ClassVar[str] = "it must be a whole number, 0 or more"

    def __init__(self) -> None:
        super().__init__()

    def _log_prob(self, prediction: Tensor, y: Tensor, extra: Tensor | None) -> Tensor:
        return y * prediction - prediction.exp() - torch.lgamma(y + 1)

    def _expected(self, mean: Tensor, variance: Tensor, y: Tensor, extra: Tensor | None) -> Tensor:
        return y * mean - (mean + 0.5 * variance).exp() - torch.lgamma(y + 1)

    def _sample(
        self, prediction: Tensor, generator: torch.Generator, extra: Tensor | None
    ) -> Tensor:
        return _poisson(prediction.exp(), generator)

    def _mean(self, prediction: Tensor, trials: Tensor | None) -> Tensor:
        return prediction.exp()

    def _possible(self, y: Tensor, trials: Tensor | None) -> Tensor:
        return _whole(y)


class NegativeBinomial(QuadratureLikelihood):
    """y events with log mean η and variance μ + μ²/c, where μ = exp η and c is the concentration.

        log p = y η − (y + c) log(1 + μ/c) + [log Γ(y + c) − log Γ(c) − y log c] − log y!

    The bracket goes to 0 as c grows: the Poisson is reached without cancellation.

    Args:
        concentration: c if it is known; None learns it as `log_concentration`.
        nodes: as in `Bernoulli`.

    Example:
        >>> value = NegativeBinomial(concentration=1.0).log_prob(torch.zeros(1), torch.zeros(1))
        >>> round(math.exp(value.item()), 6)  # geometric with mean 1
        0.5
    """

    name: ClassVar[str] = "negative_binomial"
    responses: ClassVar[str] = "count"
    support: ClassVar[str] = "it must be a whole number, 0 or more"
    constants: ClassVar[tuple[str, ...]] = ("concentration",)

    def __init__(self, concentration: float | None = None, *, nodes: int = 20) -> None:
        super().__init__(concentration=concentration, nodes=nodes)
        self._constant("concentration")

    @property
    def concentration(self) -> Tensor:
        """() c; infinite for a Poisson."""
        return self._value("concentration")

    def initialise(self, y: Tensor, mask: Tensor | None = None) -> None:
        counts = (y if mask is None else y[mask]).double()
        mean = float(counts.mean())
        excess = float((counts - mean).square().mean()) - mean
        moment = mean**2 / excess if excess > 0 else math.inf
        self._start("concentration", min(max(moment, 0.1), 100.0))

    def _log_prob(self, prediction: Tensor, y: Tensor, extra: Tensor | None) -> Tensor:
        c = self.concentration.to(prediction)
        tail = (y + c) * _log_sigmoid(c.log() - prediction)
        return y * prediction + tail + _log_rising_ratio(c, y) - torch.lgamma(y + 1)

    def _sample(
        self, prediction: Tensor, generator: torch.Generator, extra: Tensor | None
    ) -> Tensor:
        c = self.concentration.to(prediction)
        shape = c.expand(prediction.shape).contiguous()
        # The only gamma sampler of torch that takes a generator (torch.distributions calls it too),
        # private, so pyright must be told.
        gamma = torch._standard_gamma(  # pyright: ignore[reportPrivateImportUsage]
            shape, generator=generator
        )
        return _poisson(prediction.exp() * (gamma / c), generator)

    def _mean(self, prediction: Tensor, trials: Tensor | None) -> Tensor:
        return prediction.exp()

    def _possible(self, y: Tensor, trials: Tensor | None) -> Tensor:
        return _whole(y)


def _log_sigmoid(x: Tensor) -> Tensor:
    """The logarithm of σ(x), with finite derivatives of every order, at 0 and far out too.

    `logaddexp` has a NaN second derivative far out, and vmap over that of `logsigmoid` warns.
    """
    return -functional.softplus(-x, threshold=EXACT_LINEAR)


def _log_rising_ratio(c: Tensor, y: Tensor) -> Tensor:
    """The difference log Γ(c + y) − log Γ(c) − y log c, without cancellation for large c."""
    small, large = c.clamp(max=STIRLING_FROM), c.clamp(min=STIRLING_FROM)
    direct = torch.lgamma(small + y) - torch.lgamma(small) - y * small.log()
    series = (large + y - 0.5) * torch.log1p(y / large) - y
    series = series + _stirling_remainder(large + y) - _stirling_remainder(large)
    return torch.where(c < STIRLING_FROM, direct, series)


def _stirling_remainder(x: Tensor) -> Tensor:
    """The remainder log Γ(x) − [(x − ½) log x − x + ½ log 2π], for x ≥ 30."""
    square = x.square().reciprocal()
    return (1 / 12 - square * (1 / 360 - square * (1 / 1260 - square / 1680))) / x


def _poisson(rate: Tensor, generator: torch.Generator) -> Tensor:
    """Poisson draws; normal ones where counts no longer differ from their neighbours in float64."""
    noise = torch.randn(rate.shape, generator=generator, device=rate.device, dtype=rate.dtype)
    small = torch.poisson(rate.clamp(max=POISSON_UP_TO), generator=generator)
    return torch.where(rate <= POISSON_UP_TO, small, (rate * (1 + noise * rate.rsqrt())).round())


def _whole(y: Tensor) -> Tensor:
    """Where y is a whole number, 0 or more."""
    return (y >= 0) & (y == y.floor()) & y.isfinite()
