"""Unrolled meta-gradients of minibatch SGD: all draws and tasks in one batch, or one after another.

Every contender takes the same steps on the same minibatches, drawn ahead: bayesmeta with draws ×
tasks as one batch, bayesmeta called once per draw, and plain torch, path after path.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.autograd import grad
from torch.nn.functional import linear

import bayesmeta as bm
from bayesmeta.amortised.step import MetaStep
from bayesmeta.inner.paths import Group, Paths
from bayesmeta.plots import COLOURS, SINGLE, style
from bayesmeta.tasks import TaskBatch
from studies._framework import Result

QUESTION = "What does one more run of a random algorithm cost, in a batch and in a loop?"
TASKS, POINTS, ROWS, STEPS, RATE = 25, 10, 5, 10, 0.01
DRAWS = (1, 4, 16, 64)
PLAIN_DRAWS = 4
"""Beyond so many draws the loop over paths costs in proportion, and is not timed again."""
LABELS = {
    "batch": "draws × tasks, one batch",
    "draws": "a loop over draws",
    "paths": "a loop over draws and tasks, plain torch",
}
LOOKS = {
    "batch": (COLOURS["stochastic"], "X", "-"),
    "draws": (COLOURS["joint"], "o", "--"),
    "paths": (COLOURS["reference"], "s", ":"),
}
TICKS = (10, 20, 50, 100, 200)
Call = Callable[[], Tensor]


def run(quick: bool, device: str) -> Result:
    """Time all contenders in turn, for each number of draws."""
    bench = Bench(device)
    rows = []
    for draws in DRAWS[:2] if quick else DRAWS:
        rows += bench.measure(draws, turns=2 if quick else 15)
    table = pd.DataFrame(rows)
    return Result(table)


class Bench:
    """25 sinusoids with 10 + 10 points, a 1-40-40-1 network, ten steps of SGD on five points.

    Args:
        device: where to compute.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        generator = torch.Generator().manual_seed(0)
        family, _ = bm.families.sinusoid(
            tasks=TASKS, rows=2 * POINTS, noise=0.1, generator=generator
        )
        family = family.to(device=device, dtype=torch.float32)
        support, query = family.split(POINTS, generator)
        self.support, self.query = support.batch(), query.batch()
        self.model = bm.models.mlp((40, 40), support, bm.likelihoods.Gaussian(scale=1.0))
        self.model = self.model.to(device=device, dtype=torch.float32)
        self.method = bm.methods.stochastic(
            algorithm=bm.methods.GradientDescent(RATE, STEPS, per="task", rows=ROWS),
        )
        self.start = self.model.start
        prior = bm.Prior("point").at(mean=self.start, variance=0.0)
        self.step = MetaStep(self.model, prior, self.method, support)
        free = {name: value.detach() for name, value in prior.free.items()}
        self.params = self.step.params(free, {}, TASKS)

    def measure(self, draws: int, turns: int) -> list[dict[str, Any]]:
        """One row per contender; the turns are taken one after another."""
        noise = self.step.noise(
            self.support, self.start, torch.Generator().manual_seed(draws), draws
        )
        assert isinstance(noise, Paths)
        calls = {"batch": self.together(noise), "draws": self.one_by_one(noise)}
        if draws <= PLAIN_DRAWS:
            calls["paths"] = self.plainly(noise)
        wanted = calls["batch"]()
        off = {
            name: float((call() - wanted).norm() / wanted.norm()) for name, call in calls.items()
        }
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(turns):
            for name, call in calls.items():
                seconds[name].append(self.timed(call))
        return [
            {
                "implementation": name,
                "draws": draws,
                "tasks": TASKS,
                "device": self.device,
                "ms_per_draw": 1e3 * statistics.median(seconds[name]) / draws,
                "fastest_ms_per_draw": 1e3 * min(seconds[name]) / draws,
                "relative_difference": off[name],
            }
            for name in calls
        ]

    def timed(self, call: Call) -> float:
        """Seconds of one call, the device's work included."""
        self.settle()
        started = time.perf_counter()
        call()
        self.settle()
        return time.perf_counter() - started

    def settle(self) -> None:
        if self.device != "cpu":
            torch.cuda.synchronize(self.device)

    def gradient(self, noise: Paths) -> Tensor:
        return self.step(self.params, self.support, self.query, noise).gradients["anchor"]["mean"]

    def together(self, noise: Paths) -> Call:
        return lambda: self.gradient(noise).sum(0)

    def one_by_one(self, noise: Paths) -> Call:
        """The same draws in a loop, each with all tasks in one batch."""
        (group,) = noise.groups
        alone = [Paths(1, (_draw(group, k),)) for k in range(noise.draws)]
        return lambda: torch.stack([self.gradient(one).sum(0) for one in alone]).mean(0)

    def plainly(self, noise: Paths) -> Call:
        """Path after path, each step recorded by autograd."""
        (group,) = noise.groups
        minibatches = group.noise.rows
        assert minibatches is not None

        def call() -> Tensor:
            total = torch.zeros_like(self.start)
            for path, task in enumerate(group.tasks.tolist()):
                start = self.start.clone().requires_grad_()
                theta = start
                for rows in minibatches[path]:
                    loss = self.energy(theta, self.support, task, rows) * (POINTS / ROWS)
                    theta = theta - RATE * grad(loss, theta, create_graph=True)[0]
                total += grad(self.energy(theta, self.query, task), start)[0]
            return total / noise.draws

        return call

    def energy(
        self, theta: Tensor, batch: TaskBatch, task: int, rows: Tensor | None = None
    ) -> Tensor:
        """½ Σ (y − net(x; θ))² of some rows of one task."""
        x, y = batch.tensors["x"][task], batch.tensors["y"][task]
        if rows is not None:
            x, y = x[rows], y[rows]
        parts = [
            part.view(shape)
            for part, shape in zip(theta.split(self.model.sizes), self.model.shapes, strict=True)
        ]
        for weight, bias in zip(parts[:-2:2], parts[1:-2:2], strict=True):
            x = linear(x, weight, bias).tanh()
        return 0.5 * (y - linear(x, *parts[-2:])[:, 0]).square().sum()


def _draw(group: Group, draw: int) -> Group:
    """The paths of one draw, numbered from 0."""
    chosen = (group.paths // TASKS == draw).nonzero().flatten()
    alone = group.where(chosen)
    return replace(alone, paths=alone.paths % TASKS)


def _figure(table: pd.DataFrame) -> Figure:
    """Milliseconds per draw against the number of draws."""
    with style():
        figure = Figure(figsize=(SINGLE, 2.6), layout="constrained")
        ax = figure.subplots()
        for name, rows in table.groupby("implementation", sort=False):
            colour, marker, line = LOOKS[str(name)]
            ax.plot(
                rows["draws"], rows["ms_per_draw"], line, color=colour, marker=marker,
                label=LABELS[str(name)],
            )  # fmt: skip
        ax.set(xscale="log", yscale="log", xlabel="draws per task", ylabel="ms per draw")
        ax.set_xticks(sorted(set(table["draws"])), [str(n) for n in sorted(set(table["draws"]))])
        ax.set_yticks(TICKS, [str(n) for n in TICKS])
        ax.minorticks_off()
        ax.grid(axis="y", alpha=0.3)
        figure.legend(*ax.get_legend_handles_labels(), loc="outside upper left", frameon=False)
    return figure


def draw(table: pd.DataFrame) -> dict[str, Figure]:
    """The study's figures, by name."""
    return {"draws_speed": _figure(table)}


def headline(table: pd.DataFrame) -> str:
    """Time per draw, alone and in the largest batch, beside the loops, and where gains end."""
    at = table.set_index(["implementation", "draws"])["ms_per_draw"]
    sizes = sorted(set(table["draws"]))
    many, before = sizes[-1], sizes[-2]
    batch, loop = at["batch", many], at["draws", many]
    plain = at["paths"].iloc[-1]  # of most draws
    return (
        f"In a batch of {many} draws one more run of {STEPS} steps of minibatch SGD on {TASKS} "
        f"sinusoids costs {batch:.3g} ms of an unrolled meta-gradient, where a single draw costs "
        f"{at['batch', 1]:.3g} ms. "
        f"In a loop over draws each costs {loop:.3g} ms, {loop / batch:.3g} times as much, and in "
        f"a loop over draws and tasks in plain torch {plain:.3g} ms, {plain / batch:.3g} times. "
        f"Beware that most is won early: a draw costs {at['batch', before]:.3g} ms in a batch of "
        f"{before} ({table['device'].iloc[0].upper()}, and all agree to "
        f"{table['relative_difference'].max():.0e})."
    )
