"""The one loop behind every inner algorithm: all tasks at once, each stopped by its own residual.

An algorithm only proposes the next θ. The loop masks: a task that has stopped stays exactly where
it is, and a task whose next point is not finite keeps the last finite one. Both are `where`s, so
the loop can be differentiated (an unrolled gradient) and, without a tolerance, compiled.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from bayesmeta.gaussian import Gaussian
from bayesmeta.inner.problem import InnerProblem
from bayesmeta.results import InputError, Result

CHECK_EVERY = 4
GROWTH = 1e6
CODE = {result: code for code, result in enumerate(Result)}


@dataclass(frozen=True, eq=False)
class Adapted:
    """θ_i of every task after adaptation, and how each ended.

    Args:
        theta: (task, dim); carries the graph of the steps when something was to be differentiated.
        residual: (task,) ‖∇F_i(θ_i)‖ at `theta`, in nats per unit of θ, without a graph.
        steps: (task,) steps taken.
        result: (task,) index into `list(Result)`.
    """

    theta: Tensor
    residual: Tensor
    steps: Tensor
    result: Tensor

    def results(self) -> list[Result]:
        """How each task ended, on the host."""
        members = list(Result)
        return [members[code] for code in self.result.tolist()]


class Algorithm(Protocol):
    """What an inner algorithm must have; any object with these five names will do.

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
) -> Adapted:
    """Adapt θ of every task: θ_i ← step(θ_i, ∇F_i(θ_i)), until ‖∇F_i‖ <= tolerance.

    Differentiable in everything `problem` holds and in `theta`. A task that fails gives no
    gradient, and none of its NaNs reaches the gradient of what tasks share; seeing to that costs
    one more ∇F per step, only while a graph is recorded.

    Args:
        problem: F_i of every task.
        algorithm: how to step.
        theta: (task, dim) where to start; `problem.start` by default.
        steps: in place of the algorithm's own number.

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
        return _Loop(problem, algorithm, theta).run(limit)


class _Loop:
    """What the steps of one adaptation share."""

    def __init__(self, problem: InnerProblem, algorithm: Algorithm, theta: Tensor) -> None:
        self.algorithm = algorithm
        self.original = theta
        gradient = problem.gradient(theta)
        self.healthy = _finite(theta, gradient)
        self.first = _norm(gradient)
        self.recording = gradient.requires_grad
        if self.recording:
            # 0 · NaN is NaN in a backward pass: a broken task walks as a copy of a sound one.
            stand_in = torch.where(
                self.healthy,
                torch.arange(len(theta), device=theta.device),
                self.healthy.int().argmax(),
            )
            problem, theta = _reindexed(problem, stand_in), theta[stand_in]
            gradient = problem.gradient(theta)
        self.problem, self.theta, self.gradient = problem, theta, gradient

    def run(self, limit: int) -> Adapted:
        theta, gradient, alive, residual = self.theta, self.gradient, self.healthy, self.first
        tolerance = self.algorithm.tolerance
        state = self.algorithm.init(self.problem, theta)
        taken = torch.zeros_like(alive, dtype=torch.long)
        for step in range(limit):
            running = alive & (residual > tolerance) if tolerance > 0 else alive
            if tolerance > 0 and step % CHECK_EVERY == 0 and not bool(running.any()):
                break
            proposal, next_state = self.algorithm.step(self.problem, theta, gradient, state)
            if proposal.shape != theta.shape:
                raise InputError(
                    f"{type(self.algorithm).__name__}.step gave a theta {tuple(proposal.shape)} "
                    f"for {tuple(theta.shape)}: return (task, dim)"
                )
            last = step == limit - 1
            theta, gradient, finite = self.move(theta, gradient, proposal, running, last=last)
            moved, alive = running & finite, alive & (finite | ~running)
            state = tree_map(_chooser(moved), next_state, state)
            residual = torch.where(moved, _norm(gradient), residual)
            taken = taken + moved
        # A failed task's θ is a constant: what a loss makes of it is no gradient of anything.
        theta = torch.where(alive[:, None], theta, theta.detach())
        theta = torch.where(self.healthy[:, None], theta, self.original.detach())
        return Adapted(theta, residual, taken, self.code(theta.detach(), residual, alive))

    def move(
        self, theta: Tensor, gradient: Tensor, proposal: Tensor, running: Tensor, *, last: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """θ and ∇F after one step of the tasks that run, and where the step was finite."""
        if not self.recording:
            proposed = self.problem.gradient(proposal)
            finite = _finite(proposal, proposed)
            moved = (running & finite)[:, None]
            return (
                torch.where(moved, proposal, theta),
                torch.where(moved, proposed, gradient),
                finite,
            )
        with torch.no_grad():
            proposed = self.problem.gradient(proposal.detach())
        finite = _finite(proposal, proposed)
        moved = (running & finite)[:, None]
        theta = torch.where(moved, proposal, theta)
        # Nobody differentiates the last gradient: its values are known already.
        following = torch.where(moved, proposed, gradient) if last else self.problem.gradient(theta)
        return theta, following, finite

    def code(self, theta: Tensor, residual: Tensor, alive: Tensor) -> Tensor:
        """(task,) how each task ended."""
        with torch.no_grad():
            problem = self.problem
            rise = problem.value(theta) > problem.value(self.theta)
            if self.algorithm.tolerance > 0:
                solved = residual <= self.algorithm.tolerance
            else:
                scale = self.first
                if problem.anchor is not None:
                    pull = problem.precision_product(theta - problem.anchor.mean)
                    scale = torch.maximum(scale, _norm(pull))
                solved = residual <= math.sqrt(torch.finfo(theta.dtype).eps) * scale
            code = torch.where(solved, CODE[Result.converged], CODE[Result.max_steps])
            diverged = (residual > GROWTH * self.first) & rise
            code = torch.where(diverged, CODE[Result.diverged], code)
            return torch.where(alive, code, CODE[Result.nonfinite])


def _reindexed(problem: InnerProblem, index: Tensor) -> InnerProblem:
    """The same problem with task index[i] at place i."""
    batch = problem.batch
    mask = None if batch.mask is None else batch.mask[index]
    tensors = {name: tensor[index] for name, tensor in batch.tensors.items()}
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
        batch=replace(batch, tensors=tensors, mask=mask, index=batch.index[index]),
        start=problem.start[index],
        anchor=anchor,
    )


def _finite(theta: Tensor, gradient: Tensor) -> Tensor:
    """(task,) whether a point, and the gradient there with its norm, are finite."""
    return theta.isfinite().all(-1) & _norm(gradient).isfinite()


def _norm(gradient: Tensor) -> Tensor:
    return torch.linalg.vector_norm(gradient.detach(), dim=-1)


def _chooser(condition: Tensor) -> Any:
    def choose(yes: Tensor, no: Tensor) -> Tensor:
        return torch.where(condition.reshape(-1, *[1] * (yes.ndim - 1)), yes, no)

    return choose
