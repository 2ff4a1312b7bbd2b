"""The inner problem: one parameter, F(θ; θ₀) = f(θ) + ½ λ (θ − θ₀)², and several minima.

    f(θ) = ½ c θ² + Σ_k a_k sin(ω_k θ + φ_k)

Training and validation loss are the same f, as in the notes this study follows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

F64 = torch.float64
EDGE = 8.0  # no stationary point of F lies beyond, for |θ₀| < 5
Wave = tuple[float, float, float]


@dataclass(frozen=True)
class Stationary:
    """Where F'(·; θ₀) = 0.

    Args:
        minima: (basin,) ascending.
        maxima: (basin − 1,) between them: the boundaries of the basins.
    """

    minima: Tensor
    maxima: Tensor

    def basin(self, theta: Tensor) -> Tensor:
        """The number of the basin that θ lies in."""
        return torch.bucketize(theta, self.maxima)


@dataclass(frozen=True)
class Problem:
    """f, the anchor, and the steps of SGLD.

    Args:
        trend: c.
        waves: (a, ω, φ) of every sinusoid.
        lam: λ.
        lr: ε.
        steps: T.
    """

    trend: float = 0.2
    waves: tuple[Wave, ...] = ((1.0, 2.0, 0.0), (0.3, 1.0, 1.0))
    lam: float = 1.0
    lr: float = 0.05
    steps: int = 30

    def loss(self, theta: Tensor) -> Tensor:
        """f(θ), in nats."""
        waves = sum(a * torch.sin(w * theta + p) for a, w, p in self.waves)
        return 0.5 * self.trend * theta.square() + waves

    def slope(self, theta: Tensor) -> Tensor:
        """f'(θ)."""
        return self.trend * theta + sum(a * w * torch.cos(w * theta + p) for a, w, p in self.waves)

    def curvature(self, theta: Tensor) -> Tensor:
        """f''(θ)."""
        waves = sum(a * w * w * torch.sin(w * theta + p) for a, w, p in self.waves)
        return torch.full_like(theta, self.trend) - waves

    def force(self, theta: Tensor, theta0: Tensor | float) -> Tensor:
        """F'(θ; θ₀)."""
        return self.slope(theta) + self.lam * (theta - theta0)

    def response(self, theta: Tensor) -> Tensor:
        """dθ*/dθ₀ = λ / (λ + f''(θ*)) of a stationary point of F: a minimum, or a boundary."""
        return self.lam / (self.lam + self.curvature(theta))

    def smoothing(self, theta0: float, temperature: float) -> float:
        """Over how much of θ₀ noise smooths a jump of the deterministic outcome, at a maximum of f.

        Descent from either side of such a θ₀, with κ = −f''(θ₀) > λ, ends in different basins. Near
        it F' is linear, so an offset δ of θ₀ grows with the path as δ κ/γ, γ = κ − λ, and the noise
        with it as a normal of variance τ / (γ (1 + εγ/2)): a basin's probability is a normal
        distribution function of θ₀, with the sd returned, √(τγ)/κ for small steps.
        """
        kappa = -float(self.curvature(torch.tensor(theta0, dtype=F64)))
        gamma = kappa - self.lam
        return gamma / kappa * math.sqrt(temperature / gamma / (1 + self.lr * gamma / 2))

    def stationary(self, theta0: float, points: int = 4001) -> Stationary:
        """The minima and maxima of F(·; θ₀), by bisection to rounding.

        Two that lie within 2 EDGE / points of each other, about to merge, are seen as none.
        """
        grid = torch.linspace(-EDGE, EDGE, points, dtype=F64)
        at = self.force(grid, theta0)
        crossing = (at[:-1] < 0) != (at[1:] < 0)
        low, high, rising = grid[:-1][crossing], grid[1:][crossing], (at[1:] > 0)[crossing]
        for _ in range(60):
            middle = (low + high) / 2
            beyond = (self.force(middle, theta0) > 0) == rising
            low, high = torch.where(beyond, low, middle), torch.where(beyond, middle, high)
        middle = (low + high) / 2
        return Stationary(middle[rising], middle[~rising])

    def jumps(self, low: float, high: float) -> list[float]:
        """The θ₀ in an interval where `descended` jumps: the maxima of f sharper than λ."""
        bare = Problem(self.trend, self.waves, 0.0, self.lr, self.steps).stationary(0.0).maxima
        sharp = bare[self.curvature(bare) < -self.lam]
        return [theta0 for theta0 in sharp.tolist() if low < theta0 < high]

    def descended(self, theta0: float) -> Tensor:
        """() the minimum of F(·; θ₀) that small steps downhill from θ₀ lead to."""
        found = self.stationary(theta0)
        return found.minima[found.basin(torch.tensor(theta0, dtype=F64))]
