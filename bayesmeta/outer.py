"""The outer loop: minimise M over whatever tensors the method leaves free.

A deterministic objective goes to scipy's quasi-Newton minimisers, a noisy one to Adam. Either way
a step whose value or gradient is not finite is not taken, and is counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.optimize import OptimizeResult, minimize
from torch import Tensor

from bayesmeta.ranks import Ranks
from bayesmeta.results import Result
from bayesmeta.resuming import NOTHING_LOCAL, Checkpoint, Local, Memory, restore, standing

DENSE_LIMIT = 300
Callback = Callable[[int, int, float], None]
Group = tuple[type[torch.optim.Adam] | type[torch.optim.SGD], Sequence[Tensor], float]


@dataclass
class Trace:
    """What an outer loop went through: M in nats per step, and how it ended."""

    values: list[float] = field(default_factory=list)
    skipped: int = 0
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

    def evaluate(flat: np.ndarray) -> tuple[float, np.ndarray]:
        _assign(parameters, flat)
        value = objective()
        gradients = torch.autograd.grad(value, parameters)
        gradient = torch.cat([g.flatten() for g in gradients]).double().cpu().numpy()
        last["value"] = float(value.detach())
        if not (np.isfinite(last["value"]) and np.isfinite(gradient).all()):
            trace.skipped += 1
            return float("inf"), np.zeros_like(gradient)
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
        callbacks: called with (step, steps, value).
        after: called with the step number after each step.
        checkpoint: where to go on from, and to write to.
        memory: what else is to be written, and put back.
        local: parameters of this rank's own tasks.
    """
    parameters = [p for _, some, _ in groups for p in some]
    if not parameters:
        return _nothing_to_learn(objective(0))
    trace = Trace()
    values = torch.full((steps,), torch.nan, dtype=parameters[0].dtype, device=parameters[0].device)
    steppers = [(kind(some, lr=lr), lr) for kind, some, lr in groups if some]
    done = 0
    found = None if checkpoint is None else Ranks.present().from_first(checkpoint.load)
    if found is not None:
        done, tensors = found
        restore(tensors, parameters, [stepper for stepper, _ in steppers], local)
        values[:done] = tensors["values"].to(values)
        if memory is not None:
            memory.restore(tensors)
    for step in range(done, steps):
        value = objective(step)
        gradients = torch.autograd.grad(value, parameters)
        finite = torch.isfinite(value) & torch.stack([g.isfinite().all() for g in gradients]).all()
        for stepper, lr in steppers:
            stepper.param_groups[0]["lr"] = lr * 0.5 * (1 + math.cos(math.pi * step / steps))
        _take([stepper for stepper, _ in steppers], parameters, gradients, finite)
        values[step] = torch.where(finite, value.detach(), torch.nan)
        if after is not None:
            after(step)
        if checkpoint is not None and checkpoint.due(step + 1, steps):
            kept = standing(parameters, [stepper for stepper, _ in steppers], local)
            kept["values"] = values[: step + 1]
            checkpoint.save(step + 1, kept | ({} if memory is None else memory.tensors()))
        if callbacks and (step % 10 == 9 or step == steps - 1):
            for callback in callbacks:
                callback(step + 1, steps, float(values[step]))
    trace.values = values.tolist()
    trace.skipped = sum(1 for v in trace.values if not np.isfinite(v))
    trace.result = Result.nonfinite if trace.skipped == steps else Result.converged
    return trace


def _take(
    steppers: Sequence[torch.optim.Optimizer],
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    finite: Tensor,
) -> None:
    """One step where all is finite, which the device decides without being waited for."""
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = torch.where(finite, gradient, torch.zeros_like(gradient))
    before = [p.detach().clone() for p in parameters]
    for stepper in steppers:
        stepper.step()
    with torch.no_grad():
        for parameter, old in zip(parameters, before, strict=True):
            parameter.copy_(torch.where(finite, parameter, old))


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
