"""What a family is drawn from (`Truth`), and how: laws of coordinates, rows, padding, responses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from bayesmeta.likelihoods import Gaussian, Likelihood
from bayesmeta.results import InputError
from bayesmeta.tasks import TaskFamily

Rows = int | tuple[int, int]
Curve = Callable[[Tensor, Tensor], Tensor]
F64 = torch.float64


@dataclass(frozen=True, eq=False)
class Truth:
    """What a family was drawn from.

    Args:
        theta: (task, dim) the coordinates of each task.
        names: one per coordinate.
        theta0: (dim,) mean of the coordinates.
        covariance: (dim, dim) of the coordinates.
        gaussian: whether they are Gaussian; if not, θ₀ and Σ₀ are their first two moments.
        curve: (θ (..., dim), x (..., row, features)) → (..., row) the noiseless prediction η,
            without an offset; None for an energy.
        shared: ψ, e.g. {"scale": 0.3}.
    """

    theta: Tensor
    names: tuple[str, ...]
    theta0: Tensor
    covariance: Tensor
    gaussian: bool
    curve: Curve | None = None
    shared: dict[str, float] = field(default_factory=dict)

    def prediction(self, family: TaskFamily) -> Tensor:
        """(task, row) η of every row of a family of these tasks, offset included."""
        if self.curve is None:
            raise InputError("tasks given by an energy have no rows to predict")
        prediction = self.curve(self.theta, family.tensors["x"])
        return prediction + family.tensors.get("offset", 0.0)

    def to(self, device: Any) -> Truth:
        """The same truth on another device."""
        place = {"theta": self.theta, "theta0": self.theta0, "covariance": self.covariance}
        return replace(self, **{name: value.to(device=device) for name, value in place.items()})


@dataclass(frozen=True)
class Uniform:
    """U(low, high), as a law to draw from."""

    low: float
    high: float

    @property
    def moments(self) -> tuple[float, float]:
        """Mean and variance."""
        return 0.5 * (self.low + self.high), (self.high - self.low) ** 2 / 12

    def __call__(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        unit = torch.rand(shape, generator=generator, device=generator.device, dtype=F64)
        return self.low + (self.high - self.low) * unit


@dataclass(frozen=True)
class Normal:
    """N(mean, sd²), as a law to draw from."""

    mean: float
    sd: float

    @property
    def moments(self) -> tuple[float, float]:
        """Mean and variance."""
        return self.mean, self.sd**2

    def __call__(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        unit = torch.randn(shape, generator=generator, device=generator.device, dtype=F64)
        return self.mean + self.sd * unit


class Draw:
    """The draws that make one family: its numbers of rows first, then whatever is asked for."""

    def __init__(self, tasks: int, rows: Rows, generator: torch.Generator) -> None:
        low, high = (rows, rows) if isinstance(rows, int) else rows
        if tasks < 1 or not 1 <= low <= high:
            raise InputError(f"tasks={tasks!r}, rows={rows!r}: at least 1 each, and low ≤ high")
        self.tasks, self.rows, self.generator = tasks, high, generator
        place = generator.device
        counts = torch.randint(low, high + 1, (tasks, 1), generator=generator, device=place)
        self.mask = torch.arange(high, device=place) < counts

    def per_task(self, law: Uniform | Normal, *shape: int) -> Tensor:
        return law((self.tasks, *shape), self.generator)

    def uniform(self, low: float, high: float) -> Tensor:
        """(task, row, 1) values, one feature."""
        return self.per_task(Uniform(low, high), self.rows, 1)

    def regression(
        self,
        theta0: Tensor | Sequence[float],
        covariance: Tensor | Sequence[Sequence[float]],
        intercept: bool,
        shared: dict[str, float] | None = None,
    ) -> tuple[Truth, Tensor]:
        """θ_i ~ N(θ₀, Σ₀) of a linear predictor, and standard normal features."""
        place = self.generator.device
        theta0 = torch.as_tensor(theta0, dtype=F64, device=place)
        covariance = torch.as_tensor(covariance, dtype=F64, device=place)
        dim = len(theta0)
        if dim <= intercept:
            raise InputError("theta0 needs at least one weight, and a bias unless intercept=False")
        theta = theta0 + self.per_task(Normal(0.0, 1.0), dim) @ _symmetric_root(covariance, dim)
        weights = tuple(f"weight[0,{i}]" for i in range(dim - intercept))
        names = (*weights, "bias[0]") if intercept else weights
        curve = line if intercept else line_through_zero
        x = self.per_task(Normal(0.0, 1.0), self.rows, dim - intercept)
        return Truth(theta, names, theta0, covariance, True, curve, shared or {}), x

    def curves(
        self, laws: Mapping[str, Uniform | Normal], curve: Curve, shared: dict[str, float]
    ) -> Truth:
        """Independent coordinates θ_i, each with its own law."""
        theta = torch.stack([self.per_task(law) for law in laws.values()], -1)
        moments = torch.tensor([law.moments for law in laws.values()], dtype=F64)
        moments = moments.to(theta.device)
        return Truth(theta, tuple(laws), moments[:, 0], moments[:, 1].diag(), False, curve, shared)

    def family(
        self,
        truth: Truth,
        likelihood: Likelihood | None,
        x: Tensor,
        *,
        device: Any,
        **extra: Tensor,
    ) -> tuple[TaskFamily, Truth]:
        """The family of these x, with y drawn from the likelihood (None: without noise)."""
        assert truth.curve is not None
        extra = {name: value.to(x.device) for name, value in extra.items()}
        prediction = truth.curve(truth.theta, x) + extra.get("offset", 0.0)
        if likelihood is not None:
            given = {name: extra[name] for name in likelihood.optional if name in extra}
            prediction = likelihood.sample(prediction, self.generator, **given)
        tensors = {"x": x, "y": prediction, **extra}
        padded = {name: self._padded(value) for name, value in tensors.items()}
        family = TaskFamily(padded, mask=self.mask)
        return family.to(device=device), truth.to(device)

    def _padded(self, values: Tensor) -> Tensor:
        """Rows beyond a task's number repeat its first."""
        mask = self.mask.reshape(*self.mask.shape, *[1] * (values.ndim - 2))
        return torch.where(mask, values, values[:, :1])


def _symmetric_root(covariance: Tensor, dim: int) -> Tensor:
    """The symmetric root of a covariance, singular ones included."""
    if covariance.shape != (dim, dim) or not torch.allclose(covariance, covariance.mT):
        raise InputError(
            f"the covariance of {dim} coordinates is a symmetric ({dim}, {dim}) matrix"
        )
    values, vectors = torch.linalg.eigh(covariance)
    if bool(values.min() < -1e-12 * values.abs().max()):
        raise InputError("the covariance has a negative eigenvalue: it is no covariance")
    return vectors @ (values.clamp(min=0.0).sqrt()[:, None] * vectors.mT)


def noise_likelihood(noise: float) -> Gaussian | None:
    """Gaussian noise of y, or none at all."""
    return None if noise == 0 else Gaussian(noise)


def line(theta: Tensor, x: Tensor) -> Tensor:
    """xᵀ w + b, with θ = (w, b)."""
    return line_through_zero(theta[..., :-1], x) + theta[..., -1:]


def line_through_zero(theta: Tensor, x: Tensor) -> Tensor:
    """xᵀ w, with θ = w."""
    return (x @ theta[..., None])[..., 0]
