"""Real responses: Gaussian, and Student-t for data with outliers."""

from __future__ import annotations

import copy
import math
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from bayesmeta.likelihoods.base import Likelihood
from bayesmeta.likelihoods.quadrature import QuadratureLikelihood
from bayesmeta.results import InputError

Scaled = TypeVar("Scaled", bound=Likelihood)
MAD_TO_SD = 1.482602218505602  # 1 / Φ⁻¹(3/4)


class Gaussian(Likelihood):
    """y ~ N(η, scale²).

        log p = −½ ((y − η)/s)² − log s − ½ log 2π,    E log p = log p(y | mean) − variance / (2 s²)

    with s the row's standard error where the data have one, and the scale otherwise.

    Args:
        scale: the noise sd if it is known, in the units of y; None learns it as `log_scale`.

    Example:
        >>> value = Gaussian(scale=2.0).log_prob(torch.zeros(1), torch.zeros(1))
        >>> round(value.item(), 6)  # −log 2 − ½ log 2π
        -1.612086
    """

    name: ClassVar[str] = "gaussian"
    responses: ClassVar[str] = "real"
    optional: ClassVar[tuple[str, ...]] = ("standard_error",)
    support: ClassVar[str] = "it must be a finite number"
    constants: ClassVar[tuple[str, ...]] = ("scale",)

    def __init__(self, scale: float | None = None) -> None:
        super().__init__(scale=scale)
        self._constant("scale")

    @property
    def scale(self) -> Tensor:
        """() noise sd."""
        return self._value("scale")

    @property
    def paper_scale(self) -> Tensor | float:
        """2σ²: papers take the squared error of a row, which is 2σ² (−log p) + constant."""
        known = self.options["scale"]
        return 2 * self.scale.square() if known is None else 2 * known**2

    def rescale(self, y_scale: float) -> Gaussian:
        return _rescaled(self, y_scale)

    def initialise(self, y: Tensor, mask: Tensor | None = None) -> None:
        self._start("scale", _spread(y, mask, robust=False))

    def _sd(self, prediction: Tensor, standard_error: Tensor | None) -> Tensor:
        return self.scale.to(prediction) if standard_error is None else standard_error

    def _log_prob(self, prediction: Tensor, y: Tensor, extra: Tensor | None) -> Tensor:
        sd = self._sd(prediction, extra)
        return -0.5 * ((y - prediction) / sd).square() - sd.log() - 0.5 * math.log(2 * math.pi)

    def _expected(self, mean: Tensor, variance: Tensor, y: Tensor, extra: Tensor | None) -> Tensor:
        return self._log_prob(mean, y, extra) - 0.5 * variance / self._sd(mean, extra).square()

    def _sample(
        self, prediction: Tensor, generator: torch.Generator, extra: Tensor | None
    ) -> Tensor:
        noise = torch.randn(
            prediction.shape, generator=generator, device=generator.device, dtype=prediction.dtype
        )
        return prediction + self._sd(prediction, extra) * noise


class StudentT(QuadratureLikelihood):
    """y ~ η + scale · t(df); η is the mean when df > 1 and the median always.

        log p = log Γ((df+1)/2) − log Γ(df/2) − ½ log(π df) − log s − (df+1)/2 log(1 + z²/df),
        z = (y − η)/s

    The expectation's rule errs, at df = 4, by 1e-7 nats a row where sd(η) is one scale, 3e-4 at
    two and 2e-2 at five; give more `nodes` for wider ones, or a df below 4.

    Args:
        scale: in the units of y; None learns it as `log_scale`.
        df: degrees of freedom; None learns them as `log_df`.
        nodes: points of the rule.

    Example:
        >>> value = StudentT(scale=1.0, df=1.0).log_prob(torch.zeros(1), torch.zeros(1))
        >>> round(math.exp(value.item()) * math.pi, 6)  # the Cauchy density
        1.0
    """

    name: ClassVar[str] = "student_t"
    responses: ClassVar[str] = "real"
    support: ClassVar[str] = "it must be a finite number"
    constants: ClassVar[tuple[str, ...]] = ("scale", "df")

    def __init__(
        self, scale: float | None = None, df: float | None = 4.0, *, nodes: int = 20
    ) -> None:
        super().__init__(scale=scale, df=df, nodes=nodes)
        self._constant("scale")
        self._constant("df", start=4.0)

    @property
    def scale(self) -> Tensor:
        """() scale; the noise sd is √(df / (df − 2)) times it, when df > 2."""
        return self._value("scale")

    @property
    def df(self) -> Tensor:
        """() degrees of freedom."""
        return self._value("df")

    def rescale(self, y_scale: float) -> StudentT:
        return _rescaled(self, y_scale)

    def initialise(self, y: Tensor, mask: Tensor | None = None) -> None:
        self._start("scale", _spread(y, mask, robust=True))

    def _log_prob(self, prediction: Tensor, y: Tensor, extra: Tensor | None) -> Tensor:
        scale, df = self.scale.to(prediction), self.df
        # In float64: the two log Γ cancel to their last digits as df grows.
        constant = torch.lgamma(0.5 * (df + 1)) - torch.lgamma(0.5 * df)
        constant = constant - 0.5 * (math.pi * df).log() - self.scale.log()
        df = df.to(prediction)
        tail = torch.log1p(((y - prediction) / scale).square() / df)
        return constant.to(prediction) - 0.5 * (df + 1) * tail

    def _bend(self) -> Tensor:
        return self.scale.square() * self.df.clamp(max=1.0)

    def _sample(
        self, prediction: Tensor, generator: torch.Generator, extra: Tensor | None
    ) -> Tensor:
        # Bailey (1994), Mathematics of Computation 62, 779: exact for every df > 0.
        radius, angle = torch.rand(
            (2, *prediction.shape),
            generator=generator,
            device=generator.device,
            dtype=prediction.dtype,
        )
        scale, df = self.scale.to(prediction), self.df.to(prediction)
        size = (df * torch.expm1(-2.0 / df * torch.log1p(-radius))).sqrt()
        return prediction + scale * size * torch.cos(2 * math.pi * angle)


def _rescaled(likelihood: Scaled, y_scale: float) -> Scaled:
    if not 0 < y_scale < math.inf:
        raise InputError(f"y_scale={y_scale!r}: the scale of y must be positive and finite")
    other = copy.deepcopy(likelihood)
    if other.options["scale"] is not None:
        other.options["scale"] *= y_scale
        return other
    with torch.no_grad():
        other.get_parameter("log_scale").add_(math.log(y_scale))
    return other


def _spread(y: Tensor, mask: Tensor | None, *, robust: bool) -> float:
    """The sd of the real rows, or its estimate from the median deviation; 1 if all are alike."""
    values = (y if mask is None else y[mask]).double().flatten()
    deviations = values - (values.median() if robust else values.mean())
    spread = float(deviations.square().mean().sqrt())
    if robust:
        spread = MAD_TO_SD * float(deviations.abs().median()) or spread
    return spread if 0 < spread < math.inf else 1.0
