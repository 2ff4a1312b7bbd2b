"""What every gradient rule is: a way to adapt, and the pullback v ↦ vᵀ ∂θ*/∂(θ₀, Σ₀, ψ).

The parameters are a dictionary of dictionaries of tensors: `anchor` (θ₀ once per task, so that one
backward pass gives every task's own gradient), `covariance` (Σ₀'s free entries) and `shared` (ψ).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from bayesmeta.inner.loop import Adapted, Algorithm
from bayesmeta.inner.problem import InnerProblem

Params = dict[str, dict[str, Tensor]]
Build = Callable[[Params], InnerProblem]


@dataclass(frozen=True, eq=False)
class Solved:
    """How the pullback's linear solve went, per task.

    Args:
        residual: (task,) ‖v − A u‖ / ‖v‖; 0 where a rule solves nothing.
        steps: (task,) curvature products spent.
        negative: (task,) met negative curvature.
        value: (task, dim) u, where the next solve of these tasks may start.
    """

    residual: Tensor
    steps: Tensor
    negative: Tensor
    value: Tensor

    @classmethod
    def none(cls, like: Tensor) -> Solved:
        """Of a rule that solves nothing."""
        zero = torch.zeros_like(like[:, 0])
        return cls(zero, zero.long(), zero.bool(), torch.zeros_like(like))


class Pullback(Protocol):
    """v ↦ vᵀ ∂θ*/∂p, and how it was solved; `start` is an earlier u, for rules that solve."""

    def __call__(self, cotangent: Tensor, start: Tensor | None = None) -> tuple[Params, Solved]: ...


class Rule(Protocol):
    """A gradient rule."""

    @property
    def needs_path(self) -> bool:
        """Whether it differentiates the inner algorithm's steps."""
        ...

    @property
    def warm_start(self) -> bool:
        """Whether a solve is to start at the last one of the same task."""
        ...

    def adapt(
        self, build: Build, params: Params, algorithm: Algorithm
    ) -> tuple[Adapted, Pullback]: ...


def nothing(params: Params) -> Params:
    """A derivative of 0 in everything."""
    return {
        part: {k: torch.zeros_like(v) for k, v in values.items()} for part, values in params.items()
    }
