"""The one loop behind every inner algorithm: all tasks at once, each stopped by its own residual.

An algorithm only proposes the next θ. The loop masks: a task that has stopped stays exactly where
it is, and a task whose next point is not finite keeps the last finite one. Both are `where`s, so
the loop can be differentiated (an unrolled gradient) and, without a tolerance, compiled.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from bayesmeta.derivatives import readable
from bayesmeta.gaussian import Gaussian
from bayesmeta.inner.problem import InnerProblem
from bayesmeta.results import InputError, Result

CHECK_EVERY = 4
GROWTH = 100.0
CODE = {result: code for code, result in enumerate(Result)}


@dataclass(frozen=True, eq=False)
class Station:
    """Where the paths stood before step number `step`, and which had not failed."""

    step: int
    theta: Tensor
    state: Any
    alive: Tensor


@dataclass(frozen=True, eq=False)
class Adapted:
    """θ_i of every task after adaptation, and how each ended.

    Args:
        theta: (task, dim); carries the graph of the steps when something was to be differentiated.
        residual: (task,) ‖∇F_i(θ_i)‖ at `theta`, in nats per unit of θ, without a graph.
        steps: (task,) steps taken.
        result: (task,) index into `list(Result)`.
        state: the algorithm's own after the last step.
        first: (task,) F_i and ‖∇F_i‖ where adaptation began.
        done: number of the next step, which decides the noise that it sees.
        stations: θ and the state before each `every`-th step, where they were asked for.

    F is that of the last step's minibatch, where steps see minibatches.
    """

    theta: Tensor
    residual: Tensor
    steps: Tensor
    result: Tensor
    state: Any = ()
    first: tuple[Tensor, Tensor] | None = None
    done: int = 0
    stations: list[Station] = field(default_factory=list)

    def results(self) -> list[Result]:
        """How each task ended, on the host."""
        members = list(Result)
        return [members[code] for code in self.result.tolist()]


class Algorithm(Protocol):
    """What an inner algorithm must have; any object with these five names will do.

    It is random if it also has `rows` (an int: a minibatch of so many in each step, and with
    `replacement` = True rows drawn independently), `dropout` = True, or `normals` = True: then
    `problem.normals` (task, dim) in `step` are standard normals of its own. Noise from anywhere
    else could not be run again, and is not seen as noise.

    Attributes:
        steps: at most so many.
        tolerance: a task stops at ‖∇F_i‖ <= tolerance, nats per unit of θ; 0 takes all steps.
        differentiable: whether the steps are smooth in everything they use. When False the loop
            runs without a graph, and its θ is a constant to whoever differentiates.
    """

    @property
    def steps(self) -> int: ...
    @property
    def tolerance(self) -> float: ...
    @property
    def differentiable(self) -> bool: ...

    def init(self, problem: InnerProblem, theta: Tensor) -> Any:
        """The state before the first step: any pytree of tensors, task axis first."""
        ...

    def step(
        self, problem: InnerProblem, theta: Tensor, gradient: Tensor, state: Any
    ) -> tuple[Tensor, Any]:
        """The next θ (task, dim) and state, from ∇F (task, dim) at θ."""
        ...


def check_limits(algorithm: Algorithm) -> None:
    """Refuse step counts and tolerances that mean nothing.

    Raises:
        InputError: `steps` is no whole number >= 0, or `tolerance` is negative.
    """
    name, steps = type(algorithm).__name__, algorithm.steps
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 0:
        raise InputError(f"{name}(steps={steps!r}): give a whole number of steps, at least 0")
    check_number(algorithm, "tolerance", low=0.0, strict=False)


def check_switch(choice: object, *names: str) -> None:
    """Refuse anything but True and False, such as the true word "no".

    Raises:
        InputError: one of the fields is neither.
    """
    for name in names:
        value = getattr(choice, name, False)
        if not isinstance(value, bool):
            raise InputError(f"{type(choice).__name__}({name}={value!r}): give True or False")


def check_number(
    algorithm: object, field: str, *, low: float, high: float = math.inf, strict: bool = True
) -> None:
    """Refuse a field of an algorithm outside (low, high), or [low, high) when not strict.

    Raises:
        InputError: it is outside, or not a number.
    """
    value = getattr(algorithm, field)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and (low < value < high or (value == low and not strict)):
        return
    bounds = f"{'>' if strict else '>='} {low:g}" + (f" and < {high:g}" if high < math.inf else "")
    raise InputError(f"{type(algorithm).__name__}({field}={value!r}): give a number {bounds}")


def adapt(
    problem: InnerProblem,
    algorithm: Algorithm,
    *,
    theta: Tensor | None = None,
    steps: int | None = None,
    after: Adapted | None = None,
    every: int | None = None,
) -> Adapted:
    """Adapt θ of every task: θ_i ← step(θ_i, ∇F_i(θ_i)), until ‖∇F_i‖ <= tolerance.

    Differentiable, in reverse mode, in everything `problem` holds and in `theta`. A task that fails
    gives no gradient, and none of its NaNs reaches the gradient of what tasks share; seeing to that
    costs one more ∇F per step, only while a graph is recorded.

    Args:
        problem: F_i of every task.
        algorithm: how to step.
        theta: (task, dim) where to start; `problem.start` by default.
        steps: in place of the algorithm's own number.
        after: an earlier adaptation, with whose state and noise this one goes on from `theta`.
        every: record a station before each so many steps.

    Raises:
        InputError: `theta` or the algorithm's proposal has the wrong shape, or steps < 0.

    Example:
        >>> from bayesmeta import models, tasks
        >>> from bayesmeta.inner.first_order import GradientDescent
        >>> model = models.Model.from_energy(lambda t, c: 0.5 * (t - c).square().sum(), 1)
        >>> batch = tasks.TaskFamily.from_tensors(c=torch.tensor([[1.0], [2.0]])).batch()
        >>> problem = InnerProblem(model, batch, {}, torch.zeros(2, 1), None)
        >>> adapt(problem, GradientDescent(lr=0.5, steps=2)).theta.tolist()
        [[0.75], [1.5]]
    """
    theta = theta if theta is not None else problem.start
    if theta.shape != problem.start.shape:
        raise InputError(
            f"theta is {tuple(theta.shape)}, but this batch starts at "
            f"{tuple(problem.start.shape)}: (task, dim)"
        )
    limit = algorithm.steps if steps is None else steps
    if limit < 0:
        raise InputError(f"steps={limit}: give at least 0")
    with nullcontext() if algorithm.differentiable else torch.no_grad():
        begin = 0 if after is None else after.done
        failed = None if after is None else after.result == CODE[Result.nonfinite]
        return _Loop(problem, algorithm, theta.clone(), begin, failed).run(limit, after, every)


@dataclass(frozen=True, eq=False)
class _Point:
    """θ of every task and what F is there; only θ and ∇F may carry a graph."""

    theta: Tensor
    gradient: Tensor
    value: Tensor
    residual: Tensor

    def finite(self) -> Tensor:
        """(task,) whether θ and ∇F are, and with them their norms."""
        return (_norm(self.theta) + self.residual).isfinite()


class _Loop:
    """What the steps of one adaptation share."""

    def __init__(
        self,
        problem: InnerProblem,
        algorithm: Algorithm,
        theta: Tensor,
        begin: int,
        failed: Tensor | None,
    ) -> None:
        self.algorithm, self.begin = algorithm, begin
        self.original = theta
        self.seen = problem.during(begin)
        value, gradient = self.seen.evaluate(theta)
        self.at = _Point(theta, gradient, value.detach(), _norm(gradient))
        self.healthy = self.at.finite() if failed is None else self.at.finite() & ~failed
        self.recording = gradient.requires_grad
        if self.recording and not (readable(self.healthy) and bool(self.healthy.all())):
            # 0 · NaN is NaN in a backward pass: a broken task walks as a copy of a sound one.
            stand_in = stand_ins(self.healthy)
            problem, theta = reindexed(problem, stand_in), theta[stand_in]
            self.seen = problem.during(begin)
            gradient = self.seen.gradient(theta)
            self.at = _Point(theta, gradient, self.at.value[stand_in], self.at.residual[stand_in])
        self.problem = problem
        self.clock = torch.full((len(theta),), begin, device=theta.device)

    def run(self, limit: int, after: Adapted | None, every: int | None) -> Adapted:
        at, alive, tolerance = self.at, self.healthy, self.algorithm.tolerance
        stations = []
        if after is None:
            state, first = self.algorithm.init(self.seen, at.theta), (at.value, at.residual)
        else:
            state, first = after.state, after.first or (at.value, at.residual)
        taken = torch.zeros_like(alive, dtype=torch.long)
        for step in range(limit):
            running = alive & (at.residual > tolerance) if tolerance > 0 else alive
            if tolerance > 0 and step % CHECK_EVERY == 0 and not bool(running.any()):
                break
            if every is not None and step % every == 0:
                stations.append(Station(self.begin + step, at.theta, state, alive))
            proposal, next_state = self.propose(at, state)
            at, finite = self.move(
                at, proposal, running, self.begin + step + 1, last=step == limit - 1
            )
            moved, alive = running & finite, alive & (finite | ~running)
            state = tree_map(_chooser(moved), next_state, state)
            taken = taken + moved
        # A failed task's θ is a constant: what a loss makes of it is no gradient of anything.
        theta = torch.where(alive[:, None], at.theta, at.theta.detach())
        theta = torch.where(self.healthy[:, None], theta, self.original.detach())
        code = self.code(at, alive, *first)
        done = self.begin + limit
        return Adapted(theta, at.residual, taken, code, state, first, done, stations)

    def propose(self, at: _Point, state: Any) -> tuple[Tensor, Any]:
        """The algorithm's next θ and state.

        Raises:
            InputError: it gave something else.
        """
        found = self.algorithm.step(self.seen, at.theta, at.gradient, state)
        name, wanted = type(self.algorithm).__name__, f"theta {tuple(at.theta.shape)}"
        if not (isinstance(found, tuple) and len(found) == 2 and isinstance(found[0], Tensor)):
            raise InputError(f"{name}.step must return a pair, the next {wanted} and the state")
        if found[0].shape != at.theta.shape or found[0].dtype != at.theta.dtype:
            raise InputError(
                f"{name}.step gave a theta {tuple(found[0].shape)} of {found[0].dtype} for "
                f"{tuple(at.theta.shape)} of {at.theta.dtype}: return (task, dim), same dtype"
            )
        return found

    def move(
        self, at: _Point, proposal: Tensor, running: Tensor, step: int, *, last: bool
    ) -> tuple[_Point, Tensor]:
        """Where one step takes the tasks that run, and (task,) whether the step was finite.

        `step` is the number of the next one, in whose eyes it has to be.
        """
        self.seen = self.problem.during(step)
        with torch.no_grad():
            value, proposed = self.seen.evaluate(proposal.detach())
        new = _Point(proposal, proposed, value, _norm(proposed))
        finite = new.finite()
        moved = running & finite
        theta = torch.where(moved[:, None], proposal, at.theta)
        if self.recording and not last:
            if self.problem.noise is not None:
                # What failed may be what only this minibatch sees: who stays, sees the last one.
                self.clock = torch.where(moved, step, self.clock)
                self.seen = self.problem.during(self.clock)
            gradient = self.seen.gradient(theta)
        else:  # nobody differentiates the last gradient: its values are known already
            gradient = torch.where(moved[:, None], proposed, at.gradient)
        value = torch.where(moved, new.value, at.value)
        return _Point(theta, gradient, value, torch.where(moved, new.residual, at.residual)), finite

    def code(self, at: _Point, alive: Tensor, value: Tensor, residual: Tensor) -> Tensor:
        """(task,) how each task ended, which began at F = `value`, ‖∇F‖ = `residual`."""
        with torch.no_grad():
            if self.algorithm.tolerance > 0:
                solved = at.residual <= self.algorithm.tolerance
            else:
                scale = torch.maximum(residual, _norm(self.problem.force(at.theta)))
                solved = at.residual <= math.sqrt(torch.finfo(at.theta.dtype).eps) * scale
            code = torch.where(solved, CODE[Result.converged], CODE[Result.max_steps])
            # A start close to a minimum may see ‖∇F‖ grow; not F by more than itself and a nat.
            rise = at.value - value > 1 + value.abs()
            diverged = (at.residual > GROWTH * residual) & rise
            if self.problem.noise is not None:  # one minibatch is no measure of another
                diverged = torch.zeros_like(diverged)
            code = torch.where(diverged, CODE[Result.diverged], code)
            return torch.where(alive, code, CODE[Result.nonfinite])


def stand_ins(sound: Tensor) -> Tensor:
    """(task,) each sound task itself, and a sound one in the place of every other."""
    everyone = torch.arange(len(sound), device=sound.device)
    return torch.where(sound, everyone, sound.int().argmax())


def reindexed(problem: InnerProblem, index: Tensor) -> InnerProblem:
    """The same problem with task index[i] at place i."""
    anchor = problem.anchor
    if anchor is not None:
        # Σ₀ is common to the tasks unless it has a task axis of its own.
        diagonal, factor = anchor.diagonal, anchor.factor
        if diagonal is not None and diagonal.ndim == 2:
            diagonal = diagonal[index]
        if factor is not None and factor.ndim == 3:
            factor = factor[index]
        anchor = Gaussian(anchor.mean[index], diagonal, factor)
    return replace(
        problem,
        batch=problem.batch[index],
        start=problem.start[index],
        anchor=anchor,
        noise=None if problem.noise is None else problem.noise[index],
    )


def _norm(gradient: Tensor) -> Tensor:
    return torch.linalg.vector_norm(gradient.detach(), dim=-1)


def _chooser(condition: Tensor) -> Any:
    def choose(yes: Any, no: Any) -> Any:
        if not isinstance(yes, Tensor):
            return yes
        return torch.where(condition.reshape(-1, *[1] * (yes.ndim - 1)), yes, no)

    return choose
