"""The four measurements, as rows of the table."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from bayesmeta.gradients.implicit import Implicit
from bayesmeta.gradients.pathwise import Truncated, Unrolled
from studies.meta_gradient_accuracy.problem import Problem, Reached, hardest, spread

TARGET = 1e-4
FEW_CG = (2, 5, 10)
Row = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """How large a run is.

    Args:
        kappa: condition number of the first figure and of Lemma 3.
        steps: inner steps there, for gradient descent and for Nesterov.
        sweep: condition numbers of Table 1.
        unrolled: the largest κ at which gradient descent is unrolled (its steps are all recorded).
        dim, tasks: of these families.
        cg_dim: weights of the task of the CG sweep, more than CG steps are needed.
    """

    kappa: int = 1000
    steps: tuple[int, int] = (3163, 1000)
    sweep: tuple[int, ...] = (10, 30, 100, 300, 1000, 3000)
    unrolled: int = 1000
    dim: int = 40
    tasks: int = 5
    cg_dim: int = 600

    @property
    def enough(self) -> int:
        """CG steps that leave rounding only."""
        return 5 * self.dim


def accuracy(size: Size, device: str) -> Iterator[Row]:
    """Figure 2a: errors against inner steps."""
    problem = Problem.draw(size.kappa, spread(size.dim, size.kappa), size.tasks, device)
    base = {"panel": "accuracy", "kappa": size.kappa}
    for inner, make, last in (
        ("GD", problem.descent, size.steps[0]),
        ("Nesterov", problem.nesterov, size.steps[1]),
    ):
        path = problem.path(make(last))
        for steps in log_spaced(last):
            here = base | {"inner": inner, "steps": steps}
            for few in (*FEW_CG, size.enough) if inner == "GD" else (size.enough,):
                found = problem.gradient(Reached(path[steps - 1]), Implicit(steps=few)).per_task
                name = {"method": f"{inner} implicit", "cg_steps": few, "recorded": 0}
                yield from _per_task(here | name, problem.errors(found))
            found = problem.gradient(make(steps), Unrolled()).per_task
            name = {"method": f"{inner} unrolled", "recorded": steps}
            yield from _per_task(here | name, problem.errors(found))
            if inner == "GD":
                tail = math.ceil(steps / 10)
                found = problem.gradient(make(steps), Truncated(tail)).per_task
                name = {"method": "GD truncated", "recorded": tail}
                yield from _per_task(here | name, problem.errors(found))


def cg_steps(size: Size, device: str) -> Iterator[Row]:
    """Errors at θ* itself against CG steps."""
    problem = Problem.draw(size.kappa, spread(size.dim, size.kappa), size.tasks, device)
    inner = Reached(problem.minimum.to(device))
    for steps in sorted({0, *FEW_CG, *log_spaced(size.enough)}):
        base = {"panel": "cg", "kappa": size.kappa, "cg_steps": steps}
        found = problem.gradient(inner, Implicit(steps=steps)).per_task
        yield from _per_task(base | {"method": "CG"}, problem.errors(found))


def growth(size: Size, device: str) -> Iterator[Row]:
    """Table 1: steps until every task's error is below the target, against κ."""
    for kappa in size.sweep:
        yield from _descents(size, Problem.draw(kappa, spread(size.dim, kappa), size.tasks, device))
        yield _conjugate(Problem.draw(kappa, hardest(size.cg_dim, kappa), 1, device))


def _descents(size: Size, problem: Problem) -> Iterator[Row]:
    """Inner steps of gradient descent and of Nesterov, implicit and unrolled."""
    kappa, rule = problem.kappa, Implicit(steps=size.enough)
    for inner, make, longest in (
        ("GD", problem.descent, 0.5 * kappa * (4 - math.log(TARGET))),
        ("Nesterov", problem.nesterov, math.sqrt(kappa) * (6 - math.log(TARGET))),
    ):
        base = {"panel": "growth", "kappa": kappa, "inner": inner, "error": TARGET}
        path = problem.path(make(math.ceil(longest)))
        implicit = needed(
            lambda t, path=path: problem.error(Reached(path[t - 1]), rule),
            len(path) // 2,
            len(path),
        )
        name = {"method": f"{inner} implicit", "cg_steps": size.enough, "recorded": 0}
        yield base | name | {"steps": implicit}
        if inner == "Nesterov" or kappa <= size.unrolled:
            steps = needed(
                lambda t, make=make: problem.error(make(t), Unrolled()), implicit, 2 * len(path)
            )
            yield base | {"method": f"{inner} unrolled", "steps": steps, "recorded": steps}


def _conjugate(problem: Problem) -> Row:
    """CG steps at the true minimum."""
    inner = Reached(problem.minimum.to(problem.family.device))
    steps = needed(
        lambda t: problem.error(inner, Implicit(steps=t)),
        math.ceil(0.5 * math.sqrt(problem.kappa) * math.log(2 / TARGET)),
        problem.minimum.shape[-1],
    )
    base = {"panel": "growth", "kappa": problem.kappa, "error": TARGET, "method": "CG"}
    return base | {"steps": steps, "cg_steps": steps, "recorded": 0}


def lemma3(size: Size, device: str) -> Iterator[Row]:
    """The bound that an audit gives, beside the error against the closed form."""
    problem = Problem.draw(size.kappa, spread(size.dim, size.kappa), size.tasks, device)
    path = problem.path(problem.descent(size.steps[0]))
    for steps in log_spaced(size.steps[0]):
        for few in (FEW_CG[-1], size.enough):
            inner = Reached(path[steps - 1])
            found = problem.gradient(inner, Implicit(steps=few), audit=size.tasks)
            base = {"panel": "lemma3", "method": "GD implicit", "inner": "GD", "cg_steps": few}
            rows = _per_task(
                base | {"kappa": size.kappa, "steps": steps}, problem.errors(found.per_task)
            )
            for row, audit in zip(rows, found.report.audits.values(), strict=True):
                yield row | {"bound": audit.bound}


def needed(error: Callable[[int], float], guess: int, most: int) -> int:
    """The number of steps at which an error that falls geometrically reaches the target.

    By the secant method on its logarithm, until that is within one per cent.
    """
    before, now = guess, min(most, math.ceil(1.2 * guess) + 1)
    was = math.log(error(before) / TARGET)
    for _ in range(12):
        at = math.log(error(now) / TARGET)
        steps = now - at * (now - before) / (at - was)
        if abs(at) < 0.01 * -math.log(TARGET) or round(steps) == now or abs(now - before) == 1:
            return math.ceil(steps)
        before, was, now = now, at, max(1, min(most, round(steps)))
        if now == before:
            break
    raise RuntimeError(f"no number of steps up to {most} gives an error of {TARGET:g}")


def log_spaced(most: int) -> list[int]:
    """Whole numbers from 1 to `most`, four to the factor of ten."""
    count = round(4 * math.log10(most)) + 1
    return sorted({round(v) for v in np.geomspace(1, most, count).tolist()})


def _per_task(row: Row, errors: list[float]) -> list[Row]:
    return [row | {"task": task, "error": error} for task, error in enumerate(errors)]
