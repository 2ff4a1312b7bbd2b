"""One-step MAML of smooth, strongly convex losses of one weight: where its objective is convex.

    f(θ) = ½μ(θ − m)² + Σ_j w_j log(1 + e^{s_j (θ − t_j)}) + bθ

A quadratic and rows of logistic regression; log cosh is such a term with a slope taken off it. With
u(θ) = θ − αf'(θ) the adapted loss F = f(u) has

    F' = f'(u) u'        F'' = f''(u) u'² − α f'''(θ) f'(u)        u' = 1 − αf''(θ)

For α < 1/L u rises, so F falls and then rises, with f's own minimum. It need not be convex; and
where F''(r) < 0, F and the F of the mirrored task f(2r − θ) add up to a maximum at r, hence to two
minima at least. Every minimum of ΣF_i lies between the optima of the f_i.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from mpmath import iv

Array = np.ndarray


def logistic(z: Array) -> Array:
    """1/(1 + e^{−z}) without overflow."""
    return 0.5 * (1 + np.tanh(0.5 * z))


@dataclass(frozen=True, eq=False)
class Losses:
    """Losses f_i, any number of them side by side; each array has their axes, then (term).

    Args:
        mu: (...) μ.
        tilt: (...) b − μm.
        weight, slope, place: (..., term) w, s and t.
        sigmoid: of whatever numbers these are: floats, or intervals.
    """

    mu: Any
    tilt: Any
    weight: Any
    slope: Any
    place: Any
    sigmoid: Callable[[Any], Any] = logistic

    def _terms(self, theta: Any) -> tuple[Any, Any]:
        at = self.sigmoid(self.slope * (theta[..., None] - self.place))
        return at, 0.25 - (at - 0.5) ** 2  # σ', with σ in it once: intervals stay narrow

    def first(self, theta: Any) -> Any:
        """f'."""
        at, _ = self._terms(theta)
        return self.mu * theta + self.tilt + (self.weight * self.slope * at).sum(-1)

    def second(self, theta: Any) -> Any:
        """f''."""
        return self.mu + (self.weight * self.slope**2 * self._terms(theta)[1]).sum(-1)

    def third(self, theta: Any) -> Any:
        """f'''."""
        at, spread = self._terms(theta)
        return (self.weight * self.slope**3 * spread * (1 - 2 * at)).sum(-1)

    def value(self, theta: Array) -> Array:
        """f, but for the constant ½μm²."""
        rows = np.logaddexp(0.0, self.slope * (theta[..., None] - self.place))
        return 0.5 * self.mu * theta**2 + self.tilt * theta + (self.weight * rows).sum(-1)

    def adapted(self, theta: Any, alpha: Any) -> Any:
        """u(θ)."""
        return theta - alpha * self.first(theta)

    def adapted_first(self, theta: Any, alpha: Any) -> Any:
        """F'."""
        return self.first(self.adapted(theta, alpha)) * (1 - alpha * self.second(theta))

    def adapted_second(self, theta: Any, alpha: Any) -> Any:
        """F''."""
        u = self.adapted(theta, alpha)
        bent = alpha * self.third(theta) * self.first(u)
        return self.second(u) * (1 - alpha * self.second(theta)) ** 2 - bent

    def minima(self) -> Array:
        """(...) the minimum of each f, by bisection."""
        reach = (abs(self.tilt) + abs(self.weight * self.slope).sum(-1)) / self.mu
        low, high = -reach, reach
        for _ in range(80):
            middle = 0.5 * (low + high)
            rises = self.first(middle) > 0
            low, high = np.where(rises, low, middle), np.where(rises, middle, high)
        return 0.5 * (low + high)


@dataclass(frozen=True)
class Constants:
    """What the theorem asks about two losses on an interval between their optima.

    Args:
        mu, smooth, rho, steep: least f'', largest f'', largest |f'''| and largest |f'|.
    """

    mu: Any
    smooth: Any
    rho: Any
    steep: Any

    @classmethod
    def on(cls, losses: Losses, theta: Array) -> Constants:
        """By a grid (..., task, place) that both tasks of a pair share, the worse of the two."""
        second, third, first = losses.second(theta), losses.third(theta), losses.first(theta)
        last = (-2, -1)
        return cls(
            second.min(last), second.max(last), abs(third).max(last), abs(first).max(last)
        )  # fmt: skip

    @property
    def bound(self) -> Any:
        """α up to which ΣF_i is convex, indeed F_i'' ≥ μ/8.

        Finn, Rajeswaran, Kakade & Levine 2019, "Online meta-learning", theorem 1.
        """
        return np.minimum(1 / (2 * self.smooth), self.mu / (8 * self.rho * self.steep))


def pair(mu: Any, centre: Any, weight: Any, slope: Any, shift: Any) -> tuple[Any, ...]:
    """μ, tilt, w, s, t of ½μ(θ ± m)² + w log(1 + e^{±sθ − shift}), the one the other's mirror."""
    zero = 0 * mu
    return (
        np.array([mu, mu])[:, None],
        np.array([mu * centre, -mu * centre])[:, None],
        np.array([[weight], [weight]])[:, None],
        np.array([[slope], [zero - slope]])[:, None],
        np.array([[shift / slope], [zero - shift / slope]])[:, None],
    )


INTERVAL: Any = iv.mpf
EXAMPLE = {"mu": "0.1", "centre": "3", "weight": "1", "slope": "1", "shift": "1"}
"""Two tasks of one binary row each, under Gaussian priors around −3 and 3."""
EXAMPLE_ALPHA = "2.7"
EXAMPLE_SMOOTH = 0.35
"""L = μ + w s²/4, attained where the logistic's slope is greatest."""


def example() -> Losses:
    """The counter-example in floats; its arrays are (task, 1), to be met by places."""
    return Losses(*pair(**{name: float(text) for name, text in EXAMPLE.items()}))


def enclosed() -> Losses:
    """The counter-example in intervals that hold its decimal numbers exactly."""
    numbers = {name: INTERVAL(text) for name, text in EXAMPLE.items()}
    return Losses(*pair(**numbers), sigmoid=np.vectorize(_enclosed_logistic, otypes=[object]))


def _enclosed_logistic(z: Any) -> Any:
    exp: Any = iv.exp
    return 1 / (1 + exp(-z))


def proved_minima(low: float, high: float, alpha: str = EXAMPLE_ALPHA) -> tuple[int, int]:
    """How many minima the counter-example's objective has on an interval, by interval arithmetic.

    Cells are halved until in each the slope has one sign, or the second derivative has one, so that
    no cell holds two zeros of the slope; then they are counted by its sign at the cells' ends.

    Returns:
        Their number, and the number of cells.
    """
    losses, step = enclosed(), np.array([INTERVAL(alpha)], dtype=object)

    def total(derivative: Callable[[Any, Any], Any], ends: tuple[float, float]) -> Any:
        return derivative(np.array([INTERVAL(list(ends))], dtype=object), step).sum()

    def signed(interval: Any) -> bool:
        return bool(interval > 0) or bool(interval < 0)

    todo, cells = [(low, high)], []
    while todo:
        cell = todo.pop()
        if any(signed(total(d, cell)) for d in (losses.adapted_first, losses.adapted_second)):
            cells.append(cell)
            continue
        middle = 0.5 * sum(cell)
        if not cell[0] < middle < cell[1]:
            raise ArithmeticError(f"no sign can be told at {middle}")
        todo += [(cell[0], middle), (middle, cell[1])]
    ends = sorted({end for cell in cells for end in cell})
    slopes = [total(losses.adapted_first, (end, end)) for end in ends]
    if not all(map(signed, slopes)):
        raise ArithmeticError("the slope's sign is not certain at some cell's end")
    falls_then_rises = sum(bool(a < 0) and bool(b > 0) for a, b in pairwise(slopes))
    return falls_then_rises, len(cells)
