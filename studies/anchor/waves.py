"""Wavy losses of one parameter, the global minimum of each with its anchor, and where it jumps.

    F_i(θ; θ₀) = f_i(θ) + ½ λ (θ − θ₀)²,    f_i(θ) = ½ c θ² + Σ_k a_k sin(ω_k θ + φ_ik)

With h = f + ½ λ θ², F is h(θ) − λ θ₀ θ up to a constant, so that its global minimum is where the
lower convex hull of h has the slope λ θ₀. Where the hull leaves h there is a jump: the segment ends
at the two minima that tie, and its slope is λ times the θ₀ where they do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

F64 = torch.float64
EDGE, SPACING = 9.0, 0.01  # of the nodes of the hull; no θ* of |θ₀| < 5 lies beyond
POLISH = 8
NODES = np.linspace(-EDGE, EDGE, round(2 * EDGE / SPACING) + 1)


@dataclass(frozen=True)
class Jumps:
    """Where the global minimum of a task changes place.

    Args:
        task: (jump,) which.
        theta0: (jump,) where the two minima tie.
        below, above: (jump,) the minima to the left and right of it.
        rise: (jump,) by how much f(θ*(θ₀)) rises there.
    """

    task: Tensor
    theta0: Tensor
    below: Tensor
    above: Tensor
    rise: Tensor

    def within(self, low: float, high: float) -> Jumps:
        inside = (self.theta0 > low) & (self.theta0 < high)
        fields = (self.task, self.theta0, self.below, self.above, self.rise)
        return Jumps(*(field[inside] for field in fields))


@dataclass(frozen=True, eq=False)
class Waves:
    """f of every task, and λ.

    Args:
        phases: (task, wave) φ.
        amplitudes, frequencies: a and ω of the waves, the same in all tasks.
        trend: c.
        lam: λ.
    """

    phases: Tensor
    amplitudes: tuple[float, ...] = (0.8, 0.35)
    frequencies: tuple[float, ...] = (2.0, 4.6)
    trend: float = 0.2
    lam: float = 1.0

    def __len__(self) -> int:
        return len(self.phases)

    def loss(self, theta: Tensor) -> Tensor:
        """f(θ) in nats; θ is (task, point), or broadcasts with it."""
        return 0.5 * self.trend * theta.square() + self._waves(theta, 0)

    def slope(self, theta: Tensor) -> Tensor:
        """f'(θ)."""
        return self.trend * theta + self._waves(theta, 1)

    def curvature(self, theta: Tensor) -> Tensor:
        """f''(θ)."""
        return self.trend + self._waves(theta, 2)

    def anchored(self, theta: Tensor, theta0: Tensor) -> Tensor:
        """F(θ; θ₀)."""
        return self.loss(theta) + 0.5 * self.lam * (theta - theta0).square()

    def response(self, minimum: Tensor) -> Tensor:
        """dθ*/dθ₀ = λ / (λ + f''(θ*))."""
        return self.lam / (self.lam + self.curvature(minimum))

    def _waves(self, theta: Tensor, order: int) -> Tensor:
        """The derivative of that order of the sum of sines."""
        a, w = (theta.new_tensor(v) for v in (self.amplitudes, self.frequencies))
        angle = w * theta[..., None] + self.phases[:, None, :] + order * math.pi / 2
        return (a * w**order * angle.sin()).sum(-1)

    def minima(self, theta0: Tensor) -> Tensor:
        """(task, point) θ*(θ₀): where F is least, to rounding.

        Args:
            theta0: (point,).
        """
        slopes = self.lam * theta0.numpy()
        near = np.stack(
            [around(*task, slopes) for task in zip(self._bent, self._hulls, strict=True)]
        )
        anchors = theta0.repeat(3)  # of the three starts, of which two may be in different minima
        found = self._polished(torch.from_numpy(NODES[near]).flatten(1), anchors)
        value = self.anchored(found, anchors).unflatten(1, (3, -1))
        return found.unflatten(1, (3, -1)).gather(1, value.argmin(1, keepdim=True))[:, 0]

    @cached_property
    def jumps(self) -> Jumps:
        """All of them: θ₀ and both minima, to rounding, by Newton's method from the hulls."""
        ends = [np.stack([hull[:-1], hull[1:]]) for hull in self._hulls]
        task = np.repeat(np.arange(len(self)), [pair.shape[1] for pair in ends])
        low, high = np.concatenate(ends, 1)
        task, low, high = (v[high - low > 1] for v in (task, low, high))
        at = (self._bent[task, high] - self._bent[task, low]) / (NODES[high] - NODES[low])
        theta0 = torch.from_numpy(at / self.lam)[:, None]
        below, above = (torch.from_numpy(NODES[end])[:, None] for end in (low, high))
        own = replace(self, phases=self.phases[torch.from_numpy(task)])
        for _ in range(POLISH):
            below, above = (own._polished(end, theta0, steps=1) for end in (below, above))
            tie = own.anchored(above, theta0) - own.anchored(below, theta0)
            theta0 = theta0 + tie / (self.lam * (above - below))
        rise = own.loss(above) - own.loss(below)
        return Jumps(torch.from_numpy(task), *(v[:, 0] for v in (theta0, below, above, rise)))

    def _polished(self, theta: Tensor, theta0: Tensor, steps: int = POLISH) -> Tensor:
        """Newton's method for F' = 0, never further than the distance of two nodes in one step."""
        for _ in range(steps):
            force = self.slope(theta) + self.lam * (theta - theta0)
            step = force / (self.curvature(theta) + self.lam)
            theta = theta - step.clamp(-SPACING, SPACING)
        return theta

    @cached_property
    def _bent(self) -> np.ndarray:
        """(task, node) h = f + ½ λ θ²."""
        nodes = torch.from_numpy(NODES)[None].expand(len(self), -1)
        return self.anchored(nodes, torch.zeros((), dtype=F64)).numpy()

    @cached_property
    def _hulls(self) -> list[np.ndarray]:
        return [lower_hull(h) for h in self._bent]


def lower_hull(heights: np.ndarray) -> np.ndarray:
    """The numbers of the evenly spaced points that lie on the lower convex hull of all."""
    y, kept = heights.tolist(), [0]
    for new in range(1, len(y)):
        while len(kept) > 1:
            before, last = kept[-2:]
            if (y[last] - y[before]) * (new - last) < (y[new] - y[last]) * (last - before):
                break
            kept.pop()
        kept.append(new)
    return np.array(kept)


def around(heights: np.ndarray, hull: np.ndarray, slopes: np.ndarray) -> np.ndarray:
    """(3, slope) the nodes of the hull next to where it has a slope: at a jump, both its ends."""
    between = np.diff(heights[hull]) / np.diff(NODES[hull])
    at = np.searchsorted(between, slopes)
    return hull[np.stack([at - 1, at, at + 1]).clip(0, len(hull) - 1)]
