"""E log p(y | η) over η ~ N(m, V), where no closed form exists, by a fixed rule Σ w h(m + √V z).

The rules are symmetric in z, so the sum is a smooth function of V; but √V is not one at V = 0,
where a row without any adapted feature is, and autograd would answer NaN. With E(v) the rule's
value,

    2 E(v + ε) − E(v + 2ε)  =  E(v) − ε² E″(v) + O(ε³)

has no root of zero in it and differs from E(v) by less than rounding: ε² is 3e-12 in float64, in
units of the square of the length over which the log-density bends, and E″ = h⁗/4.
"""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
import torch
from torch import Tensor

from bayesmeta.likelihoods.base import Likelihood
from bayesmeta.results import InputError

MOST_NODES = 300
# √ε is where the rounding of a second derivative in v, about eps / ε^1.5, still leaves 7 digits.
SHIFT_EXPONENT = 0.375


class QuadratureLikelihood(Likelihood):
    """A likelihood whose expectation is a quadrature; Gauss-Hermite unless a class says otherwise.

    Args:
        nodes: points of the rule.
        options: as in `Likelihood`.
    """

    def __init__(self, *, nodes: int, **options: float | None) -> None:
        super().__init__(**options, nodes=nodes)
        if isinstance(nodes, bool) or not isinstance(nodes, int) or nodes < 1:
            raise InputError(f"nodes={nodes!r}: a quadrature needs a positive number of points")
        # Plain attributes: a buffer would be rounded by a passage through float32.
        self.points, self.weights = self._rule(nodes)

    def _rule(self, nodes: int) -> tuple[Tensor, Tensor]:
        """Points (node,) and weights (node,) of the expectation over N(0, 1)."""
        if nodes > MOST_NODES:
            raise InputError(
                f"nodes={nodes}: beyond {MOST_NODES} the weights of Gauss and Hermite overflow; "
                "give fewer"
            )
        points, weights = np.polynomial.hermite_e.hermegauss(nodes)
        return torch.from_numpy(points), torch.from_numpy(weights / weights.sum())

    def _bend(self) -> float | Tensor:
        """Square of the length, in units of η, over which the log-density bends."""
        return 1.0

    def _deviations(self, points: Tensor, variance: Tensor, mean: Tensor) -> Tensor:
        """(node, *mean) what the rule adds to the mean."""
        return points.reshape(-1, *[1] * mean.ndim) * variance.sqrt()

    def _expected(self, mean: Tensor, variance: Tensor, y: Tensor, extra: Tensor | None) -> Tensor:
        points = self.points.to(device=mean.device, dtype=mean.dtype)
        weights = self.weights.to(device=mean.device, dtype=mean.dtype)
        shift = torch.finfo(mean.dtype).eps ** SHIFT_EXPONENT * self._bend()

        def rule(shift: float | Tensor) -> Tensor:
            deviations = self._deviations(points, self._shifted(variance, shift, mean), mean)
            values = self._log_prob(mean + deviations, y, extra)
            return (weights.reshape(-1, *[1] * (values.ndim - 1)) * values).sum(0)

        return 2.0 * rule(shift) - rule(2.0 * shift)

    def _shifted(self, variance: Tensor, shift: float | Tensor, mean: Tensor) -> Tensor:
        return variance + shift

    @abstractmethod
    def _log_prob(self, prediction: Tensor, y: Tensor, extra: Tensor | None) -> Tensor: ...
