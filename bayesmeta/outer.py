"""The outer loop: minimise M over whatever tensors the method leaves free.

A deterministic objective goes to scipy's quasi-Newton minimisers, a noisy one to Adam. Either way
a step whose value or gradient is not finite is not taken, and is counted.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.optimize import OptimizeResult, minimize
from torch import Tensor

from bayesmeta.ranks import Ranks
from bayesmeta.results import Result
from bayesmeta.resuming import NOTHING_LOCAL, Checkpoint, Local, Memory, restore, standing
from bayesmeta.stopping import Stopped, asked_to_stop

DENSE_LIMIT = 300
REPORTED = 10
"""Steps between two values that are waited for, to be reported."""
PATIENCE = 50
"""Steps in a row that may fail before a descent gives up."""
Callback = Callable[[int, int, float], None]
Group = tuple[type[torch.optim.Adam] | type[torch.optim.SGD], Sequence[Tensor], float]


@dataclass
class Trace:
    """What an outer loop went through: M in nats per step, and how it ended.

    A descent that gave up is at its last good step.
    """

    values: list[float] = field(default_factory=list)
    skipped: int = 0
    gave_up: bool = False
    result: Result = Result.max_steps
    gradient: float = float("nan")


def minimise(
    objective: Callable[[], Tensor],
    parameters: Sequence[Tensor],
    *,
    steps: int,
    tolerance: float,
    callbacks: Sequence[Callback] = (),
) -> Trace:
    """Minimise a deterministic objective; the parameters are changed in place.

    Args:
        objective: () nats, differentiable in the parameters.
        parameters: leaf tensors.
        steps: at most so many quasi-Newton steps.
        tolerance: stop when no derivative exceeds it, in nats per unit of a parameter.
        callbacks: called with (step, steps, value).
    """
    if not parameters:
        return _nothing_to_learn(objective())
    trace = Trace()
    last = {"value": float("nan")}

    def nowhere(flat: np.ndarray) -> tuple[float, np.ndarray]:
        trace.skipped += 1
        return float("inf"), np.zeros_like(flat)

    def evaluate(flat: np.ndarray) -> tuple[float, np.ndarray]:
        _assign(parameters, flat)
        try:
            value = objective()
        except torch.linalg.LinAlgError:  # pyright: ignore[reportPrivateImportUsage]
            return nowhere(flat)
        gradients = torch.autograd.grad(value, parameters)
        gradient = torch.cat([g.flatten() for g in gradients]).double().cpu().numpy()
        last["value"] = float(value.detach())
        if not (np.isfinite(last["value"]) and np.isfinite(gradient).all()):
            return nowhere(flat)
        return last["value"], gradient

    def report(intermediate_result: OptimizeResult) -> None:
        trace.values.append(float(intermediate_result.fun))
        for callback in callbacks:
            callback(len(trace.values), steps, trace.values[-1])

    start = torch.cat([p.detach().flatten() for p in parameters]).double().cpu().numpy()
    first, _ = evaluate(start)
    trace.values.append(first)
    dense = len(start) <= DENSE_LIMIT
    options = {"maxiter": steps, "gtol": tolerance}
    if not dense:
        options |= {"maxfun": 20 * steps, "ftol": 0.0, "maxcor": 30}
    with np.errstate(all="ignore"):  # what overflows in there is told by the trace
        solution = minimize(
            evaluate,
            start,
            jac=True,
            method="BFGS" if dense else "L-BFGS-B",
            options=options,
            callback=report,
        )
    value, gradient = evaluate(solution.x)
    trace.values.append(value)
    trace.gradient = float(np.abs(gradient).max()) if np.isfinite(value) else float("nan")
    # A line search that can no longer tell two values apart has converged to rounding.
    rounding = max(1e-7, 100 * max(torch.finfo(p.dtype).eps for p in parameters))
    scale = rounding * max(1.0, abs(value))
    if not np.isfinite(value):
        trace.result = Result.nonfinite
    elif trace.gradient <= max(tolerance, scale):
        trace.result = Result.converged
    elif solution.nit < steps:
        trace.result = Result.precision
    return trace


def descend(
    objective: Callable[[int], Tensor],
    groups: Sequence[Group],
    *,
    steps: int,
    callbacks: Sequence[Callback] = (),
    after: Callable[[int], None] | None = None,
    checkpoint: Checkpoint | None = None,
    memory: Memory | None = None,
    local: Local = NOTHING_LOCAL,
) -> Trace:
    """Minimise a noisy objective, by Adam or SGD, the step size falling to 0 along a cosine.

    Of several processes each takes the same steps: value and gradients have to be the sums over
    all, but for the gradients of parameters that are `local`.

    Args:
        objective: step -> () nats.
        groups: (optimiser, leaf tensors it changes in place, its step size at the start).
        steps: number of steps.
        callbacks: called with (step, steps, value). One with `tensors()` and `restore(tensors)` has
            its state in the checkpoints.
        after: called with the step number after each step.
        checkpoint: where to go on from, and to write to.
        memory: what else is to be written, and put back.
        local: parameters of this rank's own tasks.
    """
    parameters = [p for _, some, _ in groups for p in some]
    if not parameters:
        return _nothing_to_learn(objective(0))
    values = torch.full((steps,), torch.nan, dtype=parameters[0].dtype, device=parameters[0].device)
    steppers = [(kind(some, lr=lr), lr) for kind, some, lr in groups if some]
    optimisers = [stepper for stepper, _ in steppers]
    state = _Standing(values, parameters, optimisers, local, memory, callbacks)
    with _kept(checkpoint, state) as (done, told):
        step, gave_up = steps - 1, False
        good = [p.detach().clone() for p in parameters]
        log = [] if checkpoint is None else [checkpoint.log(time.monotonic())]
        for step in range(done, steps):
            for stepper, lr in steppers:
                stepper.param_groups[0]["lr"] = lr * 0.5 * (1 + math.cos(math.pi * step / steps))
            values[step] = _take(state.optimisers, parameters, good, objective(step))
            if after is not None:
                after(step)
            stop = told()
            reported = step % REPORTED == REPORTED - 1 or step == steps - 1
            # The log before the checkpoint: it is cut where that says, and has no gap there.
            _tell(log if reported else (), step, values)
            try:
                _tell(callbacks if reported else (), step, values)
            finally:  # one that raises loses no step
                if checkpoint is not None and (stop is not None or checkpoint.due(step + 1, steps)):
                    checkpoint.save(step + 1, state.tensors(step + 1))
            if checkpoint is not None and stop is not None:
                raise Stopped(checkpoint.left(), stop)
            if gave_up := _hopeless(values[: step + 1]):
                _assign_each(parameters, good)
                break
    trace = Trace(values[: step + 1].tolist(), gave_up=gave_up)
    trace.skipped = sum(1 for v in trace.values if not np.isfinite(v))
    trace.result = Result.nonfinite if trace.skipped == len(trace.values) else Result.converged
    return trace


@dataclass(frozen=True, eq=False)
class _Standing:
    """All that a descent has to remember.

    Args:
        values: (step,) M of the steps taken so far.
        parameters, optimisers, local, memory: of `descend`.
        callbacks: of which those remember that have `tensors` and `restore`.
    """

    values: Tensor
    parameters: Sequence[Tensor]
    optimisers: Sequence[torch.optim.Optimizer]
    local: Local
    memory: Memory | None
    callbacks: Sequence[Callback]

    @property
    def remembering(self) -> dict[str, Memory]:
        """Callbacks with a memory, by the beginning of their tensors' names."""
        pairs = enumerate(self.callbacks)
        return {f"callback.{i}.": one for i, one in pairs if isinstance(one, Memory)}

    def tensors(self, done: int) -> dict[str, Tensor]:
        """After so many steps."""
        found = standing(self.parameters, self.optimisers, self.local)
        found["values"] = self.values[:done]
        for start, one in self.remembering.items():
            found |= {start + name: tensor for name, tensor in one.tensors().items()}
        return found if self.memory is None else found | self.memory.tensors()

    def restore(self, done: int, tensors: Mapping[str, Tensor]) -> None:
        """What `tensors` gave."""
        restore(tensors, self.parameters, self.optimisers, self.local)
        self.values[:done] = tensors["values"].to(self.values)
        for start, one in self.remembering.items():
            own = {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}
            one.restore(own)
        if self.memory is not None:
            self.memory.restore(tensors)


@contextmanager
def _kept(
    checkpoint: Checkpoint | None, state: _Standing
) -> Iterator[tuple[int, Callable[[], int | None]]]:
    """Go on from a checkpoint, with its folder for this descent alone, and listen to signals.

    Yields:
        The steps taken, and what gives the number of a signal that asked to stop.
    """
    if checkpoint is None:
        yield 0, _unasked
        return
    with ExitStack() as held:

        def begin() -> tuple[int, dict[str, Tensor]] | None:
            held.enter_context(checkpoint.held())
            return checkpoint.load()

        found, done = Ranks.present().from_first(begin), 0
        if found is not None:
            done, tensors = found
            state.restore(done, tensors)
        # Of several processes torchrun's own signals are heard, in `launch`.
        with asked_to_stop(wanted=Ranks.present().size == 1) as told:
            yield done, told


def _tell(callbacks: Sequence[Callback], step: int, values: Tensor) -> None:
    """Wait for the value of a step, and report it."""
    for callback in callbacks:
        callback(step + 1, len(values), float(values[step]))


def _hopeless(values: Tensor) -> bool:
    """Whether none of the last steps was taken; looked at now and then, as it is waited for."""
    return len(values) % PATIENCE == 0 and bool(values[-PATIENCE:].isnan().all())


def _unasked() -> None:
    """Nobody asks a fit to stop that could not go on."""


def _take(
    steppers: Sequence[torch.optim.Optimizer],
    parameters: Sequence[Tensor],
    good: Sequence[Tensor],
    value: Tensor,
) -> Tensor:
    """One step where all is finite, which the device decides without being waited for.

    Args:
        steppers: change the parameters.
        parameters: leaf tensors.
        good: becomes where M was last finite.
        value: () M.

    Returns:
        () the value, NaN where no step was taken.
    """
    gradients = torch.autograd.grad(value, parameters)
    finite = torch.isfinite(value) & torch.stack([g.isfinite().all() for g in gradients]).all()
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = torch.where(finite, gradient, torch.zeros_like(gradient))
    before = [p.detach().clone() for p in parameters]
    for stepper in steppers:
        stepper.step()
    with torch.no_grad():
        for parameter, old, last in zip(parameters, before, good, strict=True):
            parameter.copy_(torch.where(finite, parameter, old))
            last.copy_(torch.where(finite, old, last))
    return torch.where(finite, value.detach(), torch.nan)


def _assign_each(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)


def _nothing_to_learn(value: Tensor) -> Trace:
    return Trace([float(value.detach())], result=Result.converged, gradient=0.0)


def _assign(parameters: Sequence[Tensor], flat: np.ndarray) -> None:
    values = torch.as_tensor(flat)
    with torch.no_grad():
        place = 0
        for parameter in parameters:
            part = values[place : place + parameter.numel()]
            parameter.copy_(part.reshape(parameter.shape))
            place += parameter.numel()
