"""Derivatives through the inner algorithm's own path θ₀ → θ₁ → … → θ_T.

Unrolled       vᵀ ∂θ_T/∂(θ₀, Σ₀, ψ), every step recorded
Truncated(k)   the last k steps recorded; at the cut ∂θ_{T−k}/∂θ₀ = I
FirstOrder     ∂θ_T/∂θ₀ = I, nothing else moves: Truncated(0)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import vjp

from bayesmeta.gradients.rule import Build, Params, Pullback, Solved, nothing
from bayesmeta.inner.loop import Adapted, Algorithm, adapt
from bayesmeta.results import InputError


@dataclass(frozen=True)
class FirstOrder:
    """∂θ*/∂θ₀ = I (first-order MAML: Finn et al. 2017, section 5.2)."""

    needs_path = False
    warm_start = False

    def adapt(self, build: Build, params: Params, algorithm: Algorithm) -> tuple[Adapted, Pullback]:
        adapted = adapt(build(params), algorithm)

        def pull(cotangent: Tensor, start: Tensor | None = None) -> tuple[Params, Solved]:
            return nothing(params) | {"anchor": {"mean": cotangent}}, Solved.none(cotangent)

        return adapted, pull


@dataclass(frozen=True)
class Truncated:
    """Backpropagation through the last steps only.

    Args:
        last: how many steps are recorded; 0 is `FirstOrder`, all of them is `Unrolled`. Shaban et
            al. (2019) drop the derivative at the cut; here the iterate there moves with θ₀ as if no
            step had been taken, which is exact for `last` = all steps with or without an anchor.
            Velocities and moments are carried over the cut as constants.
    """

    last: int = 1
    needs_path = True
    warm_start = False

    def __post_init__(self) -> None:
        if type(self.last) is not int or self.last < 0:
            raise InputError(f"last={self.last!r}: record 0 steps or more, a whole number")

    def adapt(self, build: Build, params: Params, algorithm: Algorithm) -> tuple[Adapted, Pullback]:
        early = max(algorithm.steps - self.last, 0)
        if early == 0:
            return _through(build, params, algorithm, algorithm.steps, None)
        with torch.no_grad():
            reached = adapt(build(params), algorithm, steps=early)
        return _through(build, params, algorithm, self.last, reached)


@dataclass(frozen=True)
class Unrolled:
    """Backpropagation through every step (MAML: Finn et al. 2017, equation 1)."""

    needs_path = True
    warm_start = False

    def adapt(self, build: Build, params: Params, algorithm: Algorithm) -> tuple[Adapted, Pullback]:
        return _through(build, params, algorithm, algorithm.steps, None)


def _through(
    build: Build, params: Params, algorithm: Algorithm, steps: int, reached: Adapted | None
) -> tuple[Adapted, Pullback]:
    """Record `steps` steps from `reached` (or from the start), which moves with θ₀."""
    centre = params["anchor"]["mean"].detach()

    def path(inside: Params) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        problem = build(inside)
        shift = inside["anchor"]["mean"] - centre
        begin = problem.start if reached is None else reached.theta + shift
        adapted = adapt(problem, algorithm, theta=begin, steps=steps, after=reached)
        return adapted.theta, (adapted.residual, adapted.steps, adapted.result)

    found: tuple[Any, ...] = vjp(path, params, has_aux=True)
    theta, pullback, rest = found

    def pull(cotangent: Tensor, start: Tensor | None = None) -> tuple[Params, Solved]:
        return pullback(cotangent)[0], Solved.none(cotangent)

    residual, taken, result = (torch.as_tensor(r).detach() for r in rest)
    taken = taken if reached is None else taken + reached.steps
    return Adapted(theta.detach(), residual, taken, result), pull
