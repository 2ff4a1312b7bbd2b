"""How long is the difference of two means of noisy vectors, once their noise is taken out of it?

With d = a − b and C = Cov(d), E‖d‖² = ‖E d‖² + tr C: the length of d is too long on average, and
more so in many dimensions. C may have fewer observations than dimensions, so only traces of it are
used, which the differences between observations give without C itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy.special import fdtrc
from torch import Tensor

NORMAL = 1.96


@dataclass(frozen=True, eq=False)
class Sample:
    """A mean of independent vectors, and how they scatter.

    Args:
        mean: (dim,).
        deviations: (n, dim) of the vectors from their mean; none where the mean is exact.
    """

    mean: Tensor
    deviations: Tensor

    @classmethod
    def of(cls, vectors: Tensor) -> Sample:
        """Of (n, dim) vectors, n >= 2."""
        vectors = vectors.double()
        mean = vectors.mean(0)
        return cls(mean, vectors - mean)

    @classmethod
    def exact(cls, value: Tensor) -> Sample:
        """A value without noise."""
        return cls(value.double(), value.new_zeros(0, len(value)).double())

    @property
    def freedom(self) -> int:
        return max(len(self.deviations) - 1, 0)

    @property
    def spread(self) -> float:
        """Trace of the covariance of one vector."""
        if not self.freedom:
            return 0.0
        return float(self.deviations.square().sum() / self.freedom)

    @property
    def trace(self) -> float:
        """Trace of the covariance of the mean."""
        return self.spread / max(len(self.deviations), 1)

    def variance_along(self, direction: Tensor) -> float:
        """Of the mean's component along a unit vector."""
        if not self.freedom:
            return 0.0
        along = self.deviations @ direction
        return float(along.square().sum() / self.freedom / len(along))


@dataclass(frozen=True)
class Length:
    """The length of a difference of means, E d.

    Args:
        value: √max(0, ‖d‖² − tr C).
        error: standard error of ‖d‖, along d.
        low, high: 95 % interval of ‖E d‖: every x for which ‖d‖² is within 1.96 sd of its mean
            x² + tr C, its variance being 2 tr C² + 4x² times that along d.
        p: of ‖d‖² under E d = 0; NaN where nothing is random.
    """

    value: float
    error: float
    low: float
    high: float
    p: float


def length(a: Sample, b: Sample) -> Length:
    """‖E a − E b‖ of two independent means.

    ‖d‖²/tr C is taken for F with ν and ν·n degrees of freedom, ν = (tr C)²/tr C², which has the
    right mean and variance, and is Student's test in one dimension.

    References:
        Bai and Saranadasa (1996), "Effect of high dimension", for the unbiased tr C².

    Example:
        >>> a = torch.tensor([[1.0], [3.0], [2.0], [2.0]])
        >>> found = length(Sample.of(a), Sample.exact(torch.tensor([1.0])))
        >>> round(found.p, 4), round(found.error, 4)  # t = 2.4495 on 3 degrees of freedom
        (0.0917, 0.4082)
    """
    difference = a.mean - b.mean
    observed = float(difference.square().sum())
    noise = a.trace + b.trace
    root = math.sqrt(observed)
    if noise == 0 or not math.isfinite(observed + noise):
        return Length(root, noise, root, root, math.nan)
    square = _overlap(a, a) + 2 * _overlap(a, b) + _overlap(b, b)
    # What tr C² can be in so many dimensions; its unbiased estimate may be anything.
    square = min(max(square, noise * noise / len(difference)), noise * noise)
    direction = difference / max(root, torch.finfo(torch.double).tiny)
    along = a.variance_along(direction) + b.variance_along(direction)
    freedom = noise * noise / sum(s.trace * s.trace / s.freedom for s in (a, b) if s.freedom)
    nu = noise * noise / square
    p = float(fdtrc(nu, nu * freedom, observed / noise))
    low, high = _interval(observed - noise, square, along)
    return Length(math.sqrt(max(0.0, observed - noise)), math.sqrt(along), low, high, p)


def _interval(gap: float, square: float, along: float) -> tuple[float, float]:
    """Roots x of (gap − x²)² = 1.96² (2 square + 4x² along)."""
    z = NORMAL**2
    gap = max(gap, 0.0)  # below the noise's own length there would be no x at all
    middle = gap + 2 * z * along
    half = math.sqrt(max(0.0, middle * middle - gap * gap + 2 * z * square))
    low, high = middle - half, middle + half
    seen = gap > 0 and gap * gap > 2 * z * square
    return math.sqrt(max(0.0, low)) if seen else 0.0, math.sqrt(max(0.0, high))


def _overlap(a: Sample, b: Sample) -> float:
    """tr(A B) of the covariances A and B of two means; unbiased, also where they are one."""
    if not (a.freedom and b.freedom):
        return 0.0
    n, one, other = a.freedom, a.deviations, b.deviations
    if one.shape[1] ** 2 <= len(one) * len(other):
        product = float(((one.T @ one) * (other.T @ other)).sum())
    else:  # the same number
        product = float((one @ other.T).square().sum())
    product /= n * b.freedom
    if a is b and n > 1:
        product = n * n / ((n + 2) * (n - 1)) * (product - a.spread * a.spread / n)
    return product / (len(one) * len(other))
