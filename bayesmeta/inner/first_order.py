"""Inner algorithms that use ∇F only: gradient descent, Nesterov, momentum, Adam, RMSProp.

Each sees all rows, or with rows= a minibatch of them in every step: stochastic gradient descent and
its kin. See `inner.noise`.

With per="row" a step is α = lr/n_i of ∇F_i, n_i the task's support rows, because papers take the
mean loss over rows, and 2σ² times that for Gaussian noise of sd σ, because their loss is the
squared error; with per="task" it is lr of ∇F_i in nats.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from bayesmeta.inner.loop import Algorithm, check_limits, check_number, check_switch
from bayesmeta.inner.noise import Minibatched
from bayesmeta.inner.problem import InnerProblem
from bayesmeta.results import InputError

Per = Literal["row", "task"]
LEARNED = "inner.lr"
ARMIJO = 0.3
SHRINK, GROW = 0.5, 2.0


def rounding(value: Tensor) -> Tensor:
    """A difference of two values that may be rounding only, in nats."""
    return 8 * torch.finfo(value.dtype).eps * value.abs()


@dataclass(frozen=True)
class GradientDescent(Minibatched):
    """Gradient descent, the inner loop of MAML.

        θ ← θ − α ∇F(θ),    α = lr/n_i or lr

    Args:
        lr: α, or where α starts.
        steps: how many, at most.
        per: "row": α = lr/n_i, or 2σ² lr/n_i for Gaussian noise; "task": α = lr.
        backtracking: every task searches its own α. A step is taken if it lowers F by at least
            0.3 α‖∇F‖² (Armijo), and α doubles after it; otherwise θ stays and α halves. One trial
            per step. Not differentiable.
        learn_lr: lr is `problem.shared["inner.lr"]`, (dim,), one step size per weight, learned
            from outside like any ψ (Meta-SGD); the number `lr` is its start.
        tolerance: stop a task at ‖∇F_i‖ <= tolerance, in nats per unit of θ; 0 takes all steps.
        rows, replacement, dropout: minibatch noise, see `Minibatched`.

    Raises:
        InputError: a number that means nothing, or both backtracking and learn_lr.

    References:
        Finn, Abbeel and Levine (2017), "Model-Agnostic Meta-Learning", eq. 1.
        Li, Zhou, Chen and Li (2017), "Meta-SGD", eq. 2.
    """

    lr: float = 0.01
    steps: int = 5
    per: Per = field(default="row", kw_only=True)
    backtracking: bool = field(default=False, kw_only=True)
    learn_lr: bool = field(default=False, kw_only=True)
    tolerance: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        check_step(self, self.per)
        if self.backtracking and self.learn_lr:
            raise InputError(
                "GradientDescent(backtracking=True, learn_lr=True): step sizes are either "
                "searched or learned; choose one"
            )

    @property
    def differentiable(self) -> bool:
        return not self.backtracking

    def init(self, problem: InnerProblem, theta: Tensor) -> tuple[Tensor, ...]:
        if not self.backtracking:
            return ()
        return step_size(problem, self.lr, self.per), problem.value(theta)

    def step(
        self, problem: InnerProblem, theta: Tensor, gradient: Tensor, state: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        if self.backtracking:
            return _backtrack(problem, theta, gradient, *state)
        return theta - step_size(problem, self._rate(problem), self.per) * gradient, state

    def _rate(self, problem: InnerProblem) -> float | Tensor:
        if not self.learn_lr:
            return self.lr
        if LEARNED not in problem.shared:
            raise InputError(
                f'GradientDescent(learn_lr=True) finds no "{LEARNED}" among the shared '
                "parameters: add it, (dim,), one step size per weight"
            )
        return problem.shared[LEARNED]


def _backtrack(
    problem: InnerProblem, theta: Tensor, gradient: Tensor, size: Tensor, value: Tensor
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """One Armijo trial per task; `size` (task, 1), `value` (task,) is F at θ."""
    trial = theta - size * gradient
    trial_value = problem.value(trial)
    needed = ARMIJO * size[:, 0] * gradient.square().sum(-1)
    slack = rounding(value)
    taken = trial_value <= value - needed + slack
    # Where F cannot tell any more, a step size that was good keeps the descent going.
    grow = torch.where(needed > slack, GROW, 1.0).to(size)
    size = size * torch.where(taken, grow, SHRINK)[:, None]
    theta = torch.where(taken[:, None], trial, theta)
    return theta, (size, torch.where(taken, trial_value, value))


@dataclass(frozen=True)
class Nesterov(Minibatched):
    """Nesterov's accelerated gradient, κ → √κ steps on ill-conditioned tasks.

        x⁺ = θ − α ∇F(θ),    θ ← x⁺ + β (x⁺ − x)

    θ is the extrapolated point, where the gradient is taken. With `condition` κ, β = (√κ−1)/(√κ+1).
    Without, β = (t−1)/t⁺ with t⁺ = (1 + √(1+4t²))/2, and a task whose momentum points uphill,
    ∇F(θ)ᵀ(x⁺ − x) > 0, starts over with t = 1. That restart jumps as F changes, so only
    the form with `condition` counts as differentiable.

    Args:
        lr: α; 1/L for curvatures up to L is safe.
        steps: how many, at most.
        per: "row": α = lr/n_i, or 2σ² lr/n_i for Gaussian noise; "task": α = lr.
        condition: κ, the ratio of the largest to the smallest curvature of F, or None.
        tolerance: stop a task at ‖∇F_i‖ <= tolerance, in nats per unit of θ; 0 takes all steps.
        rows, replacement, dropout: minibatch noise, see `Minibatched`.

    References:
        Nesterov (2018), "Lectures on Convex Optimization", scheme 2.2.22.
        O'Donoghue and Candès (2015), "Adaptive Restart for Accelerated Gradient Schemes", eq. 12.
    """

    lr: float = 0.01
    steps: int = 5
    per: Per = field(default="row", kw_only=True)
    condition: float | None = field(default=None, kw_only=True)
    tolerance: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        check_step(self, self.per)
        if self.condition is not None:
            check_number(self, "condition", low=1.0, strict=False)

    @property
    def differentiable(self) -> bool:
        return self.condition is not None

    def init(self, problem: InnerProblem, theta: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(theta), torch.ones_like(theta[:, :1])

    def step(
        self, problem: InnerProblem, theta: Tensor, gradient: Tensor, state: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        # How far θ was extrapolated, not x: a cut of the path holds the one and moves the other.
        ahead, age = state
        before = theta - ahead
        now = theta - step_size(problem, self.lr, self.per) * gradient
        if self.condition is not None:
            root = self.condition**0.5
            ahead = (root - 1) / (root + 1) * (now - before)
            return now + ahead, (ahead, age)
        uphill = (gradient * (now - before)).sum(-1, keepdim=True) > 0
        age = torch.where(uphill, 1.0, age)
        older = 0.5 * (1 + (1 + 4 * age.square()).sqrt())
        ahead = (age - 1) / older * (now - before)
        return now + ahead, (ahead, older)


@dataclass(frozen=True)
class Momentum(Minibatched):
    """Gradient descent with heavy-ball momentum.

        v ← m v + ∇F(θ),    θ ← θ − α v

    Args:
        lr: α.
        steps: how many, at most.
        momentum: m in [0, 1).
        per: "row": α = lr/n_i, or 2σ² lr/n_i for Gaussian noise; "task": α = lr.
        tolerance: stop a task at ‖∇F_i‖ <= tolerance, in nats per unit of θ; 0 takes all steps.
        rows, replacement, dropout: minibatch noise, see `Minibatched`.

    References:
        Polyak (1964), "Some methods of speeding up the convergence of iteration methods", eq. 9.
    """

    lr: float = 0.01
    steps: int = 5
    momentum: float = 0.9
    per: Per = field(default="row", kw_only=True)
    tolerance: float = field(default=0.0, kw_only=True)
    differentiable = True

    def __post_init__(self) -> None:
        check_step(self, self.per)
        check_number(self, "momentum", low=0.0, high=1.0, strict=False)

    def init(self, problem: InnerProblem, theta: Tensor) -> Tensor:
        return torch.zeros_like(theta)

    def step(
        self, problem: InnerProblem, theta: Tensor, gradient: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        velocity = self.momentum * state + gradient
        return theta - step_size(problem, self.lr, self.per) * velocity, velocity


@dataclass(frozen=True)
class Adam(Minibatched):
    """Adam; its steps have length about lr per weight, whatever the scale of F.

        m ← β₁ m + (1−β₁) g,    v ← β₂ v + (1−β₂) g²,    θ ← θ − lr m̂ / (√v̂ + ε)

    with m̂ = m/(1−β₁ᵗ), v̂ = v/(1−β₂ᵗ), and g = ∇F(θ) in nats.

    Args:
        lr: in units of θ.
        steps: how many, at most.
        betas: (β₁, β₂), each in [0, 1).
        epsilon: ε, in nats per unit of θ.
        tolerance: stop a task at ‖∇F_i‖ <= tolerance, in nats per unit of θ; 0 takes all steps.
        rows, replacement, dropout: minibatch noise, see `Minibatched`.

    References:
        Kingma and Ba (2015), "Adam", algorithm 1.
    """

    lr: float = 0.01
    steps: int = 5
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    tolerance: float = field(default=0.0, kw_only=True)
    differentiable = True

    def __post_init__(self) -> None:
        check_limits(self)
        check_number(self, "lr", low=0.0)
        check_number(self, "epsilon", low=0.0)
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise InputError(f"Adam(betas={self.betas!r}): give two numbers in [0, 1)")
        check_minibatches(self)

    def init(self, problem: InnerProblem, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return torch.zeros_like(theta), torch.zeros_like(theta), torch.zeros_like(theta[:, :1])

    def step(
        self,
        problem: InnerProblem,
        theta: Tensor,
        gradient: Tensor,
        state: tuple[Tensor, Tensor, Tensor],
    ) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        first, second, count = state
        b1, b2 = self.betas
        count = count + 1
        first = b1 * first + (1 - b1) * gradient
        second = b2 * second + (1 - b2) * gradient.square()
        mean = first / (1 - b1**count)
        square = second / (1 - b2**count)
        step = self.lr * mean / (moving_root(square) + self.epsilon)
        return theta - step, (first, second, count)


@dataclass(frozen=True)
class RMSProp(Minibatched):
    """RMSProp: gradient steps divided by the gradients' running size.

        v ← ρ v + (1−ρ) g²,    θ ← θ − lr g / (√v + ε)

    with g = ∇F(θ) in nats and v = 0 at the start, so that the first steps are the longest.

    Args:
        lr: in units of θ.
        steps: how many, at most.
        decay: ρ in [0, 1).
        epsilon: ε, in nats per unit of θ.
        tolerance: stop a task at ‖∇F_i‖ <= tolerance, in nats per unit of θ; 0 takes all steps.
        rows, replacement, dropout: minibatch noise, see `Minibatched`.

    References:
        Tieleman and Hinton (2012), lecture 6.5 of "Neural Networks for Machine Learning".
    """

    lr: float = 0.01
    steps: int = 5
    decay: float = 0.99
    epsilon: float = 1e-8
    tolerance: float = field(default=0.0, kw_only=True)
    differentiable = True

    def __post_init__(self) -> None:
        check_limits(self)
        check_number(self, "lr", low=0.0)
        check_number(self, "epsilon", low=0.0)
        check_number(self, "decay", low=0.0, high=1.0, strict=False)
        check_minibatches(self)

    def init(self, problem: InnerProblem, theta: Tensor) -> Tensor:
        return torch.zeros_like(theta)

    def step(
        self, problem: InnerProblem, theta: Tensor, gradient: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        average = self.decay * state + (1 - self.decay) * gradient.square()
        return theta - self.lr * gradient / (moving_root(average) + self.epsilon), average


def moving_root(square: Tensor) -> Tensor:
    """√v, with derivative 0 at 0, where a weight that F ignores stays for ever."""
    seen = square > 0
    return torch.where(seen, torch.where(seen, square, 1.0).sqrt(), 0.0)


def check_minibatches(algorithm: Algorithm) -> None:
    """Refuse minibatches of no rows, and what compares losses of different minibatches.

    Raises:
        InputError: one of these.
    """
    check_switch(algorithm, "replacement", "dropout")
    name, rows = type(algorithm).__name__, getattr(algorithm, "rows", None)
    if rows is not None and (type(rows) is not int or rows < 1):
        raise InputError(f"{name}(rows={rows!r}): give a whole number of rows, at least 1")
    noisy = rows is not None or getattr(algorithm, "dropout", False)
    searching = getattr(algorithm, "backtracking", False)
    if noisy and (searching or algorithm.tolerance > 0 or not algorithm.differentiable):
        raise InputError(
            f"{name} with rows= or dropout= sees another loss in every step, so it can neither "
            "search nor restart nor tell that it is done: leave backtracking= and tolerance= out, "
            "and give Nesterov its condition="
        )


def step_size(problem: InnerProblem, lr: float | Tensor, per: Per) -> Tensor:
    """(task, 1) or (task, dim) α."""
    if per == "task":
        return lr * torch.ones_like(problem.rows)
    scale = problem.model.paper_scale(problem.batch, problem.shared)
    return lr * scale / problem.rows


def check_step(algorithm: Algorithm, per: str) -> None:
    """Refuse step sizes, limits and minibatches that mean nothing."""
    check_limits(algorithm)
    check_number(algorithm, "lr", low=0.0)
    check_minibatches(algorithm)
    if per not in ("row", "task"):
        raise InputError(f'{type(algorithm).__name__}(per={per!r}): give "row" or "task"')
