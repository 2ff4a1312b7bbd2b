"""Fit one method for so many seconds, and measure it on unseen tasks.

`python -m studies.few_shot_sinusoid.worker NAME TRIAL SECONDS SEED CHARGE` prints the rows as JSON.
"""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

import bayesmeta as bm
from bayesmeta.methods import Method
from studies.few_shot_sinusoid.settings import GRID, SUPPORT, Setting

POINTS = (5, 10)
STEPS = (0, 1, 5, 10)
ROWS = 2 * SUPPORT
QUERY = 100
DRAWS = 50
PACE_SECONDS = 3.0


@dataclass(frozen=True)
class Size:
    """How much of everything.

    Args:
        seconds: of training.
        train: tasks to fit to.
        test: unseen tasks.
        seed: of the unseen tasks; that of the training tasks is 0.
        compile: whether to compile what can be.
        charge: whether compilation counts.
        steps: outer steps, in the place of a budget.
    """

    seconds: float = 100.0
    train: int = 4_000
    test: int = 600
    seed: int = 1
    compile: bool = True
    charge: bool = True
    steps: int | None = None


@dataclass(frozen=True)
class Pace:
    """What a short run of the same fit says of the long one, in seconds."""

    start: float
    step: float


class _Enough(Exception):
    """The pace is known."""


def core_seconds() -> float:
    """Of one core, by this process and the compilers it waited for.

    What a clock on the wall shows while nothing else runs, and the same if something does.
    """
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


class _Clock:
    """A callback that notes when every tenth outer step was done."""

    def __init__(self, enough: float = math.inf) -> None:
        self.started, self.enough = core_seconds(), enough
        self.marks: list[tuple[int, float]] = []

    def __call__(self, step: int, steps: int, value: float) -> None:
        self.marks.append((step, core_seconds() - self.started))
        if len(self.marks) > 2 and self.marks[-1][1] - self.marks[0][1] > self.enough:
            raise _Enough

    @property
    def step(self) -> float:
        """Seconds per outer step after the first ten."""
        (first, began), (last, ended) = self.marks[0], self.marks[-1]
        return (ended - began) / max(1, last - first)


def measure(name: str, trial: int, size: Size) -> list[dict[str, Any]]:
    """Fit, adapt to unseen tasks, and score their other points: a row per points and steps."""
    setting = GRID[name][trial]
    fitted, spent = _fit(setting, size)
    unseen = _tasks(size.test, max(POINTS) + QUERY, seed=size.seed)
    support, query = unseen.split(max(POINTS), torch.Generator().manual_seed(size.seed))
    common = {"method": name, "setting": setting.label} | spent
    return [
        {"points": points} | _score(errors) | common | {"adaptation": steps, "own": own}
        for points in POINTS
        for steps, own, errors in _errors(setting, fitted, _first(support, points), query, size)
    ]


def _tasks(count: int, rows: int, *, seed: int) -> bm.TaskFamily:
    generator = torch.Generator().manual_seed(seed)
    family, _ = bm.families.sinusoid(tasks=count, rows=rows, generator=generator)
    names = [f"sinusoid {seed}.{i}" for i in range(count)]
    return bm.TaskFamily(family.to(dtype=torch.float32).tensors, names=names)


def _model(noise: float | None) -> bm.Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = (nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1))
        return bm.Model(nn.Sequential(*layers), bm.likelihoods.Gaussian(scale=noise))


def _fit(setting: Setting, size: Size) -> tuple[bm.Fit, dict[str, Any]]:
    """As many outer steps as the seconds allow, which a short run of the same fit foretells.

    The step size falls along a cosine to 0 at the last step, so their number must be known ahead.
    """
    family = _tasks(min(size.train, setting.tasks or size.train), ROWS, seed=0)
    method = setting.method
    if not size.compile:
        method = replace(method, compile=False)
    steps, pace = size.steps, Pace(0.0, 0.0)
    if steps is None:
        pace = _pace(setting, method, family)
        left = size.seconds - (pace.start if size.charge else 0.0)
        steps = max(10, int(left / pace.step))
    clock = _Clock()
    fitted = _begin(setting, replace(method, steps=steps), family, clock)
    looped = steps * clock.step
    return fitted, {
        "seconds": pace.start + looped,
        "start_seconds": pace.start,
        "outer_steps": steps,
        "compiled": method.compile,
        "train_tasks": len(family),
        "noise": fitted.noise,
    }


def _begin(setting: Setting, method: Method, family: bm.TaskFamily, clock: _Clock) -> bm.Fit:
    """A fit in the paper's own units."""
    return bm.fit(
        _model(setting.noise), family, method=method, standardise=False, callbacks=[clock]
    )


def _pace(setting: Setting, method: Method, family: bm.TaskFamily) -> Pace:
    """Seconds to the first step, compilation included, and per step."""
    clock = _Clock(enough=PACE_SECONDS)
    endless = replace(method, steps=10**6)
    with suppress(_Enough):
        _begin(setting, endless, family, clock)
    return Pace(clock.marks[0][1] - clock.marks[0][0] * clock.step, clock.step)


def _errors(
    setting: Setting, fitted: bm.Fit, support: bm.TaskFamily, query: bm.TaskFamily, size: Size
) -> Iterator[tuple[str, bool, Tensor]]:
    """(steps, whether they are the method's own, squared error of each task), for every number."""
    if setting.adaptation is not None:
        settled = setting.adaptation
        if size.steps is not None:
            settled = _short(settled, size.steps)
        yield "converged", True, _squared(_with(fitted, settled).adapt(support), query)
        return
    trained = setting.method.inner.steps
    for steps in sorted({*STEPS, trained}):
        method = replace(setting.method, inner=replace(setting.method.inner, steps=steps))
        yield str(steps), steps == trained, _squared(_with(fitted, method).adapt(support), query)


def _short(method: Method, steps: int) -> Method:
    if method.inner is None:
        return replace(method, steps=steps)
    return replace(method, inner=replace(method.inner, steps=steps))


def _with(fitted: bm.Fit, method: Method) -> bm.Fit:
    """The fit with another adaptation of new tasks."""
    return replace(fitted, choices=method)


def _first(support: bm.TaskFamily, points: int) -> bm.TaskFamily:
    """The first `points` support rows, which are in random order; more points hold fewer."""
    tensors = {k: v[:, :points] for k, v in support.tensors.items()}
    return bm.TaskFamily(tensors, names=support.names)


def _squared(fitted: bm.Fit, query: bm.TaskFamily) -> Tensor:
    """(task,) mean squared error of the prediction on the query rows.

    At θ* where adaptation ends in a point or a mode, at the mean over draws for a free Q_i.
    """
    theta = fitted.posterior.mean
    batch, y = query.batch(), query.tensors["y"]
    with torch.no_grad():
        if fitted.choices.inner is not None:
            return (fitted.model.predict(theta, batch) - y).square().mean(1)
        generator = torch.Generator().manual_seed(0)
        mean = torch.zeros_like(y)
        for _ in range(DRAWS):
            draw = fitted.posterior.gaussian.sample(1, generator)
            mean = mean + fitted.model.predict(draw, batch)[0] / DRAWS
        return (mean - y).square().mean(1)


def _score(errors: Tensor) -> dict[str, float | int]:
    """Mean over tasks and its 95 % interval."""
    errors = errors.double()
    mean, half = float(errors.mean()), 1.96 * float(errors.std()) / math.sqrt(len(errors))
    ends = {"mse_low": mean - half, "mse_high": mean + half, "mse_median": float(errors.median())}
    return {"mse": mean} | ends | {"test_tasks": len(errors)}


def main() -> None:
    """One method in a process of its own, with an empty cache of compiled code if it counts."""
    name, trial, seconds, seed, charge = sys.argv[1:]
    size = Size(seconds=float(seconds), seed=int(seed), charge=charge == "charge")
    with tempfile.TemporaryDirectory() as cache:
        if size.charge:
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
        print(json.dumps(measure(name, int(trial), size)))


if __name__ == "__main__":
    main()
