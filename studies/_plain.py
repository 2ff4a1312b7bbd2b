"""What contenders that bring their own mathematics share: a task on disk, and a plain solver.

They run in whatever Python has their packages, which need not be this one; so torch and numpy do.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor


class Stored:
    """A dataclass of arrays and numbers that goes to a file, all but its device."""

    TUPLES: ClassVar[tuple[str, ...]] = ()
    """Fields that are tuples of numbers."""
    device: str

    def save(self, path: Path) -> None:
        np.savez(path, **{key: value for key, value in vars(self).items() if key != "device"})

    @classmethod
    def load(cls, path: Path, device: str) -> Self:
        values: dict[str, Any] = {"device": device}
        with np.load(path) as stored:
            for key, value in stored.items():
                values[key] = value if value.ndim else value.item()
        return cls(**values | {key: tuple(values[key].tolist()) for key in cls.TUPLES})


class Proximal:
    """What a step size and λ of a mean over rows are for nats of n rows, as in all tasks here."""

    y: np.ndarray
    lr: float
    lam: float

    @property
    def precision(self) -> float:
        """n λ."""
        return self.lam * self.y.shape[1]

    @property
    def rate(self) -> float:
        """lr / n."""
        return self.lr / self.y.shape[1]


def conjugate_gradients(product: Callable[[Tensor], Tensor], b: Tensor, steps: int) -> Tensor:
    """A⁻¹b of a positive definite A known by its products, from 0."""
    x, r = b * 0.0, b
    p, rr = r, r @ r
    for _ in range(steps):
        ap = product(p)
        alpha = rr / (p @ ap)
        x, r = x + alpha * p, r - alpha * ap
        new = r @ r
        p, rr = r + new / rr * p, new
    return x
