"""What every gradient rule is: a way to adapt, and the pullback v ↦ vᵀ ∂θ*/∂(θ₀, Σ₀, ψ).

The parameters are a dictionary of dictionaries of tensors: `anchor` (θ₀ once per task, so that one
backward pass gives every task's own gradient), `covariance` (Σ₀'s free entries) and `shared` (ψ).

Where adaptation is random a task has K paths θ_k, and M is taken at points made of them: the paths
themselves for E_z g(θ_z), their mean for g(E_z θ_z). A rule says at which points M is evaluated,
and which slope goes back along which path. A slope ∇g is unbiased for a path's derivative when
the point it was taken at does not hold that path.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor

from bayesmeta.inner.loop import Adapted, Algorithm
from bayesmeta.inner.problem import InnerProblem

Params = dict[str, dict[str, Tensor]]
Build = Callable[[Params], InnerProblem]
At = Literal["draws", "mean"]


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


class Rule:
    """A gradient rule."""

    needs_path: ClassVar[bool] = False
    """Whether it differentiates the inner algorithm's steps."""
    warm_start: Any = False
    """Whether a solve is to start at the last one of the same task."""

    def adapt(self, build: Build, params: Params, algorithm: Algorithm) -> tuple[Adapted, Pullback]:
        """θ* of every path, and the pullback."""
        raise NotImplementedError

    def draws(self, wanted: int) -> int:
        """Paths per task, where the method wants so many."""
        return wanted

    def forward_only(self) -> int:
        """How many of them, the first, are not differentiated."""
        return 0

    def points(self, theta: Tensor, at: At) -> Tensor:
        """(point, task, dim) where M is evaluated, from θ (path, task, dim)."""
        return theta if at == "draws" else theta.mean(0, keepdim=True)

    def cotangents(self, slopes: Tensor, values: Tensor, paths: int) -> Tensor:
        """(path, task, dim) what each path pulls back.

        Args:
            slopes: (point, task, dim) derivatives of the mean over points of M_i.
            values: (point, task) M_i.
            paths: per task.
        """
        return slopes if len(slopes) == paths else slopes.expand(paths, -1, -1) / paths


def nothing(params: Params) -> Params:
    """A derivative of 0 in everything."""
    return {
        part: {k: torch.zeros_like(v) for k, v in values.items()} for part, values in params.items()
    }


def added(one: Params, other: Params) -> Params:
    """The sum of two derivatives."""
    return {part: {k: v + other[part][k] for k, v in one[part].items()} for part in one}
