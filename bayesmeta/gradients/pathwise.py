"""Derivatives through the inner algorithm's own path θ₀ → θ₁ → … → θ_T.

Unrolled       vᵀ ∂θ_T/∂(θ₀, Σ₀, ψ), every step recorded
Truncated(k)   the last k steps recorded; at the cut ∂θ_{T−k}/∂θ₀ = I
FirstOrder     ∂θ_T/∂θ₀ = I, nothing else moves: Truncated(0)
SeparatePaths  slopes from some paths, pulled back along others

Where the path is random its noise is that of the problem, so it can be run again: with
checkpoint=c only every c-th θ is kept, and c steps at a time are run again and recorded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.func import vjp
from torch.utils._pytree import tree_flatten, tree_unflatten

from bayesmeta.gradients.rule import At, Build, Params, Pullback, Rule, Solved, added, nothing
from bayesmeta.inner.loop import CODE, Adapted, Algorithm, Station, adapt, check_switch
from bayesmeta.results import InputError, Result


@dataclass(frozen=True)
class FirstOrder(Rule):
    """∂θ*/∂θ₀ = I (first-order MAML: Finn et al. 2017, section 5.2)."""

    def adapt(self, build: Build, params: Params, algorithm: Algorithm) -> tuple[Adapted, Pullback]:
        adapted = adapt(build(params), algorithm)

        def pull(cotangent: Tensor, start: Tensor | None = None) -> tuple[Params, Solved]:
            return nothing(params) | {"anchor": {"mean": cotangent}}, Solved.none(cotangent)

        return adapted, pull


@dataclass(frozen=True)
class Unrolled(Rule):
    """Backpropagation through every step (MAML: Finn et al. 2017, equation 1).

    Args:
        checkpoint: steps recorded at a time, the path being run a second time for it: memory for
            T/c weights and c steps instead of T steps; None records all T in the first run. The
            gradient is NaN if an algorithm takes other steps then.
    """

    checkpoint: int | None = None
    needs_path = True

    def __post_init__(self) -> None:
        _check_checkpoint(self)

    def adapt(self, build: Build, params: Params, algorithm: Algorithm) -> tuple[Adapted, Pullback]:
        return through(build, params, algorithm, algorithm.steps, self.checkpoint)


@dataclass(frozen=True)
class Truncated(Rule):
    """Backpropagation through the last steps only.

    Args:
        last: how many steps are recorded; 0 is `FirstOrder`, all of them is `Unrolled`. Shaban et
            al. (2019) drop the derivative at the cut; here the iterate there moves with θ₀ as if no
            step had been taken, which is exact for `last` = all steps with or without an anchor.
            Velocities and moments are carried over the cut as constants.
        checkpoint: as in `Unrolled`.
    """

    last: int = 1
    checkpoint: int | None = None
    needs_path = True

    def __post_init__(self) -> None:
        _check_last(self, self.last)
        _check_checkpoint(self)

    def adapt(self, build: Build, params: Params, algorithm: Algorithm) -> tuple[Adapted, Pullback]:
        return through(build, params, algorithm, self.last, self.checkpoint)


@dataclass(frozen=True)
class SeparatePaths(Rule):
    """Slopes of the query loss from some paths, pulled back along other paths of the same law.

        ∇ g(E_z θ_z) = (E_z J_z)ᵀ ∇g(E_z θ_z),    J_z = ∂θ_z/∂θ₀

    a product of two expectations: θ̄ is the mean of `forward` paths and J that of `backward` other
    ones. With every_pair all F + B paths are used both ways: path k pulls back ∇g at the mean of
    all paths but k. Unbiased for E[∇g(θ̄)] E[J], so for ∇g(E θ_z) where ∇g is linear; elsewhere off
    by O(Var θ̄), which falls as 1/F. A path that met its own slope would add Cov(J, ∇g). M itself,
    and ψ where g holds it (a learned noise sd), are taken at θ̄ too, and are off by
    ½ tr(∇²g Cov θ_z)/F, F + B − 1 in its place for every_pair, also where ∇g is linear.

    Args:
        forward, backward: paths per task and step.
        every_pair: use each path both ways.
        last: record only the last steps, as in `Truncated`; None records all.
        checkpoint: as in `Unrolled`.

    References:
        K. Cho's blog note of 2019 on stochastic inner loops, which has one step and two draws; the
        mean over several paths and every_pair are ours.
    """

    forward: int = 1
    backward: int = 1
    every_pair: bool = field(default=False, kw_only=True)
    last: int | None = field(default=None, kw_only=True)
    checkpoint: int | None = field(default=None, kw_only=True)
    needs_path = True

    def __post_init__(self) -> None:
        for name in ("forward", "backward"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise InputError(f"SeparatePaths({name}={value!r}): give at least 1 path")
        check_switch(self, "every_pair")
        if self.last is not None:
            _check_last(self, self.last)
        _check_checkpoint(self)

    def adapt(self, build: Build, params: Params, algorithm: Algorithm) -> tuple[Adapted, Pullback]:
        last = algorithm.steps if self.last is None else self.last
        return through(build, params, algorithm, last, self.checkpoint)

    def draws(self, wanted: int) -> int:
        return self.forward + self.backward

    def forward_only(self) -> int:
        return 0 if self.every_pair else self.forward

    def points(self, theta: Tensor, at: At) -> Tensor:
        if self.every_pair:
            return (theta.sum(0) - theta) / (len(theta) - 1)
        return theta[: self.forward].mean(0, keepdim=True)

    def cotangents(self, slopes: Tensor, values: Tensor, paths: int) -> Tensor:
        if self.every_pair:
            return slopes
        ahead = torch.zeros_like(slopes).expand(self.forward, -1, -1)
        return torch.cat([ahead, slopes.expand(self.backward, -1, -1) / self.backward])


def _check_last(rule: Rule, last: Any) -> None:
    if type(last) is not int or last < 0:
        raise InputError(
            f"{type(rule).__name__}(last={last!r}): record 0 steps or more, a whole number"
        )


def _check_checkpoint(rule: Any) -> None:
    steps = rule.checkpoint
    if steps is not None and (type(steps) is not int or steps < 1):
        raise InputError(
            f"{type(rule).__name__}(checkpoint={steps!r}): record at least 1 step at a time"
        )


def through(
    build: Build, params: Params, algorithm: Algorithm, recorded: int, checkpoint: int | None
) -> tuple[Adapted, Pullback]:
    """Record the last steps of a path: at once, or `checkpoint` of them at a time."""
    early = max(algorithm.steps - recorded, 0)
    recorded = algorithm.steps - early
    reached = None
    if early > 0:
        with torch.no_grad():
            reached = adapt(build(params), algorithm, steps=early)
    if checkpoint is None or checkpoint >= recorded:
        segment = Segment(build, algorithm, reached, recorded)
        adapted, back = segment.run(params, _begin(params, reached), _state(reached))

        def pull(cotangent: Tensor, start: Tensor | None = None) -> tuple[Params, Solved]:
            found, at_start, _ = back(cotangent, None)
            return _with_start(found, at_start), Solved.none(cotangent)

        return _totalled(adapted, reached), pull
    with torch.no_grad():
        begin = _begin(params, reached)
        adapted = adapt(
            build(params), algorithm, theta=begin, steps=recorded, after=reached, every=checkpoint
        )

    def pull_again(cotangent: Tensor, start: Tensor | None = None) -> tuple[Params, Solved]:
        found, here, onward = nothing(params), cotangent, None
        end = adapted.theta
        for station in reversed(adapted.stations):
            steps = min(checkpoint, early + recorded - station.step)
            after = reached if station.step == early else _at(adapted, station)
            segment = Segment(build, algorithm, after, steps)
            again, back = segment.run(params, station.theta, _state(after))
            # An algorithm that remembers outside its state takes other steps the second time, and
            # a wrong gradient must not look like one.
            same = torch.isclose(again.theta, end, rtol=1e-4, atol=1e-6).all(-1, keepdim=True)
            here, end = torch.where(same, here, torch.nan), station.theta
            part, here, onward = back(here, onward)
            found = added(found, part)
        return _with_start(found, here), Solved.none(cotangent)

    return _totalled(adapted, reached), pull_again


@dataclass(frozen=True, eq=False)
class Segment:
    """Some consecutive steps of a path, recorded.

    Args:
        build, algorithm: of the path.
        after: what went before; None at the start, where the state is made of the problem.
        steps: how many.
    """

    build: Build
    algorithm: Algorithm
    after: Adapted | None
    steps: int

    def run(
        self, params: Params, theta: Tensor, state: list[Tensor]
    ) -> tuple[Adapted, Callable[..., tuple[Params, Tensor, list[Tensor]]]]:
        """The path's end, and (∂θ, ∂state there) ↦ derivatives in the parameters, θ and state."""

        def path(inside: Params, begin: Tensor, before: list[Tensor]) -> Any:
            after = None if self.after is None else _merged(self.after, before)
            problem = self.build(inside)
            adapted = adapt(problem, self.algorithm, theta=begin, steps=self.steps, after=after)
            aside = (adapted.residual, adapted.steps, adapted.result)
            return (adapted.theta, _state(adapted)), aside

        found: tuple[Any, ...] = vjp(path, params, theta, state, has_aux=True)
        (end, left), pullback, aside = found
        residual, taken, result = (torch.as_tensor(a).detach() for a in aside)

        def back(
            cotangent: Tensor, onward: list[Tensor] | None
        ) -> tuple[Params, Tensor, list[Tensor]]:
            onward = [torch.zeros_like(t) for t in left] if onward is None else onward
            return pullback((cotangent, onward))

        return Adapted(end.detach(), residual, taken, result), back


def _begin(params: Params, reached: Adapted | None) -> Tensor:
    return params["anchor"]["mean"].detach() if reached is None else reached.theta


def _with_start(found: Params, at_start: Tensor) -> Params:
    """The derivative in θ₀ with that of the start, which moves with θ₀."""
    return found | {"anchor": {"mean": found["anchor"]["mean"] + at_start}}


def _totalled(adapted: Adapted, reached: Adapted | None) -> Adapted:
    return adapted if reached is None else replace(adapted, steps=adapted.steps + reached.steps)


def _at(adapted: Adapted, station: Station) -> Adapted:
    """An adaptation as it stood at a station."""
    result = torch.where(station.alive, CODE[Result.max_steps], CODE[Result.nonfinite])
    return replace(
        adapted,
        theta=station.theta,
        state=station.state,
        result=result,
        done=station.step,
        stations=[],
    )


def _state(adapted: Adapted | None) -> list[Tensor]:
    """The floating tensors of an algorithm's state: what a derivative passes through."""
    if adapted is None:
        return []
    leaves = tree_flatten(adapted.state)[0]
    return [leaf for leaf in leaves if _floating(leaf)]


def _merged(adapted: Adapted, floats: list[Tensor]) -> Adapted:
    """The adaptation with other floating tensors in its state."""
    leaves, form = tree_flatten(adapted.state)
    given = iter(floats)
    leaves = [next(given) if _floating(leaf) else leaf for leaf in leaves]
    return replace(adapted, state=tree_unflatten(leaves, form))


def _floating(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()
