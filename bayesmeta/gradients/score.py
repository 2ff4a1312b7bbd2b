"""Score: how the probability of every path changes with (θ₀, Σ₀, ψ), where steps are Gaussian.

    ∇ E_z g(θ_T) = E_z[ (g(θ_T) − b) Σ_t ∇ log p(θ_{t+1} | θ_0 … θ_t; θ₀, Σ₀, ψ) + ∂g ]

The loss is not differentiated in θ, only evaluated. b is the mean of g over the task's other
paths, which does not depend on this one, so the estimate stays unbiased.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.func import vjp
from torch.utils._pytree import tree_map

from bayesmeta.gradients.rule import Build, Params, Pullback, Rule, Solved, added, nothing
from bayesmeta.inner.loop import CODE, Adapted, Algorithm, adapt, reindexed, stand_ins
from bayesmeta.inner.problem import InnerProblem
from bayesmeta.results import Result


@dataclass(frozen=True)
class Score(Rule):
    """The likelihood-ratio gradient over several paths, each with the others' mean as baseline.

    For paths that end in different minima. Which one they reach is decided on the barrier between
    them, where the derivative of a path grows without bound: `Unrolled` is unbiased there too, but
    of a variance that grows exponentially with the steps, carried by paths so rare that the others
    look as if θ₀ moved the minima only (`python -m studies run which_minimum`). Where there is one
    minimum to go to, unrolled paths are the better ones by far.

    Memory is flat in the number of steps but for their θ, which are kept.

    References:
        Williams (1992), "Simple statistical gradient-following algorithms", for a sum over steps
        section 5; the leave-one-out baseline is that of Kool, van Hoof and Welling (2019), "Buy 4
        REINFORCE samples, get a baseline for free!".
    """

    def adapt(self, build: Build, params: Params, algorithm: Algorithm) -> tuple[Adapted, Pullback]:
        with torch.no_grad():
            adapted = adapt(build(params), algorithm, every=1)
        sound = adapted.result != CODE[Result.nonfinite]
        index = stand_ins(sound)

        def pull(cotangent: Tensor, start: Tensor | None = None) -> tuple[Params, Solved]:
            # A broken path has no density: a sound one walks in its place, with weight 0.
            weights = torch.where(sound, cotangent[:, 0], 0.0)
            found = _scored(build, params, algorithm, adapted, index, weights)
            return found, Solved.none(cotangent.expand_as(adapted.theta))

        return adapted, pull

    def cotangents(self, slopes: Tensor, values: Tensor, paths: int) -> Tensor:
        others = (values.sum(0) - values) / (paths - 1)
        return ((values - others) / paths)[..., None]


def _scored(
    build: Build,
    params: Params,
    algorithm: Algorithm,
    adapted: Adapted,
    index: Tensor,
    weights: Tensor,
) -> Params:
    """Σ_paths w Σ_t ∇ log p(θ_{t+1} | θ_0 … θ_t), from the last step to the first."""
    found, onward = nothing(params), None
    ends = [s.theta for s in adapted.stations[1:]] + [adapted.theta]
    steps = list(zip(adapted.stations, ends, strict=True))
    if not _everywhere(build(params), params, adapted):
        steps = steps[:1]
    for station, end in reversed(steps):
        state = tree_map(lambda t: t[index], station.state)
        density = _density(build, algorithm, station.step, end[index], index)
        (_, left), pullback, *_ = vjp(density, params, station.theta[index], state)
        onward = tree_map(torch.zeros_like, left) if onward is None else onward
        part, at_start, onward = pullback((weights, onward))
        found = added(found, part)
        if station.step == 0:
            found["anchor"]["mean"] = found["anchor"]["mean"] + at_start
    return found


def _everywhere(problem: InnerProblem, params: Params, adapted: Adapted) -> bool:
    """Whether steps after the first depend on the parameters other than by where they start."""
    return problem.anchor is not None or bool(params["shared"]) or adapted.state != ()


def _density(
    build: Build, algorithm: Algorithm, step: int, end: Tensor, index: Tensor
) -> Callable[..., tuple[Tensor, Any]]:
    """log p of a step's end (path,), up to a constant, and the next state."""

    def density(params: Params, theta: Tensor, state: Any) -> tuple[Tensor, Any]:
        problem = reindexed(build(params), index).during(step)
        before = algorithm.init(problem, theta) if step == 0 else state
        gradient = problem.gradient(theta)
        mean, sd, after = cast(Any, algorithm).transition(problem, theta, gradient, before)
        logs = -0.5 * ((end - mean) / sd).square() - sd.log()
        return logs.sum(-1), after

    return density
