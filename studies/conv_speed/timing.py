"""All contenders side by side, each in a process of its own, timed in turn."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import bayesmeta as bm
from studies._contest import Contender, competitors
from studies.conv_speed import products
from studies.conv_speed.bayesmeta_step import chunk_size
from studies.conv_speed.problem import Task
from studies.omniglot.data import glyphs

WORKER = Path(__file__).with_name("worker.py")
ON_CPU = ("loop", "eager", "chunked")
ROUNDED = ("tf32", "bfloat16")
"""Contenders whose difference in float32 is no error, but the price of their speed."""
ON_CUDA = (*ON_CPU, "compiled", "graph", *ROUNDED)
CHECKED = 2
"""Tasks of the comparison in float64."""
AGREE = 1e-8
SAME = 0.02
"""Largest relative differences from the loop over tasks, in float64 and as timed. In float32 most
tasks agree to 1e-6, but rounding can turn a unit of a ReLU on or off, which moves the answer of a
task by some 1e-3, as it moves that of the loop when θ₀ changes by half a unit in its last place."""
GRAIN = 0.1
"""Noise on blank paper: where all of it is one colour, rounding turns a unit of a ReLU on or off at
hundreds of places at once, and float32 gives but one or two digits of a meta-gradient."""


SIZES = {"imaml_ggn": {"lr": 0.1, "lam": 2.0}, "imaml_hessian": {"lr": 0.002, "lam": 300.0}}
"""At first weights exact Hessians are indefinite up to λ = 100. What a solver does on meeting one
is not what is compared here, and λ has no influence on the time."""


@dataclass(frozen=True)
class Setting:
    """Sizes of the tasks and of the network."""

    tasks: int
    ways: int
    side: int
    filters: int
    steps: int
    cg_steps: int


FULL = Setting(tasks=16, ways=5, side=28, filters=64, steps=16, cg_steps=5)
QUICK = Setting(tasks=3, ways=5, side=12, filters=4, steps=2, cg_steps=2)


@dataclass(frozen=True)
class Case:
    """One thing to be timed.

    Args:
        method: in `problem.METHODS`.
        queries: query images of each class.
        turns: how often.
    """

    method: str
    queries: int
    turns: int

    @property
    def name(self) -> str:
        return f"{self.method}-{self.queries}"

    @property
    def check(self) -> str:
        """The same in float64."""
        return f"{self.name}-check"


CASES = (
    *(Case("maml", queries, 7) for queries in (1, 15)),
    *(Case("fomaml", queries, 5) for queries in (1, 15)),
    *(Case(name, 15, 3) for name in ("imaml_ggn", "imaml_hessian")),
)
QUICK_CASES = (Case("maml", 2, 2), Case("imaml_hessian", 2, 2))


def full(device: str) -> list[dict[str, Any]]:
    """One row per case and contender."""
    names = ON_CUDA if device == "cuda" else ON_CPU
    return measure(FULL, CASES, (*names, "torchopt"), device)


def quick(device: str) -> list[dict[str, Any]]:
    """Without what must be compiled or installed."""
    return measure(QUICK, QUICK_CASES, ("loop", "eager"), device)


def task(setting: Setting, case: Case, device: str = "cpu") -> Task:
    """Drawn glyphs, one support image a class."""
    images = glyphs(20, size=setting.side)
    generator = torch.Generator().manual_seed(0)
    grain = GRAIN * torch.rand(images.values.shape, generator=generator)
    images = replace(images, values=images.values / 255 + grain)
    stream = bm.FewShot(images, setting.ways, 1, case.queries)
    support, query = stream.draw(setting.tasks, generator)
    arrays = [part.tensors[key].numpy() for part in (support, query) for key in "xy"]
    implicit = case.method.startswith("imaml")
    return Task(
        *arrays,
        theta0=bm.models.conv4(setting.ways, stream.shape, filters=setting.filters).start.numpy(),
        filters=setting.filters,
        ways=setting.ways,
        method=case.method,
        **SIZES.get(case.method, {"lr": 0.4, "lam": 2.0}),
        steps=setting.steps if implicit else 1,
        cg_steps=setting.cg_steps,
        device=device,
    )


def measure(
    setting: Setting, cases: tuple[Case, ...], names: tuple[str, ...], device: str
) -> list[dict[str, Any]]:
    """Start all, time each once a turn, and see that all compute the same."""
    rows = []
    with tempfile.TemporaryDirectory() as place, started(names, Path(place), device) as found:
        bare = next(contender for contender in found if contender.name == "products")
        for case in cases:
            wanted = task(setting, case)
            wanted.save(Path(place) / f"{case.name}.npz")
            wanted.double(CHECKED).save(Path(place) / f"{case.check}.npz")
            able = [c for c in found if c is not bare and _may(c.name, wanted)]
            for contender in able:
                contender.begin(case.name)
                contender.begin(case.check)
            parts = _bare_cases(wanted, Path(place))
            for name in parts:
                bare.begin(name)
            for _ in range(case.turns):
                for contender in able:
                    contender.take_turn(case.name)
                for name in parts:
                    bare.take_turn(name)
            needed = _needed(wanted, [bare.times(name)["ms"] for name in parts])
            rows += _rows(able, case, wanted, needed)
    return rows


@contextmanager
def started(names: tuple[str, ...], folder: Path, device: str) -> Iterator[list[Contender]]:
    """The contenders, until they are no longer needed."""
    found = []
    try:
        for name in (*names, "products"):
            python = competitors() if name == "torchopt" else sys.executable
            found.append(Contender(name, WORKER, folder, device, python))
        yield found
    finally:
        for contender in found:
            contender.close()


def _may(name: str, task: Task) -> bool:
    """TorchOpt's implicit gradient is with the exact Hessian; all tasks may fit one chunk."""
    if name == "chunked":
        return chunk_size(task) < len(task.y)
    return name != "torchopt" or task.method == "imaml_hessian"


def _bare_cases(task: Task, folder: Path) -> list[str]:
    """Products with the patches of the support, and of the query."""
    names = []
    for x, y in ((task.x, task.y), (task.query_x, task.query_y)):
        names.append(f"images-{y.shape[1]}")
        replace(task, x=x, y=y).save(folder / f"{names[-1]}.npz")
    return names


def _needed(task: Task, ms: list[float]) -> dict[str, float]:
    """Floating-point operations of a meta-gradient, and how long they take as bare products."""
    counted = products.operations(task)
    sets = (task, replace(task, x=task.query_x, y=task.query_y))
    shares = [n / products.gradient_operations(s) for n, s in zip(counted, sets, strict=True)]
    return {
        "gflop": sum(counted) / 1e9,
        "products_ms": sum(share * each for share, each in zip(shares, ms, strict=True)),
    }


def _rows(
    able: list[Contender], case: Case, task: Task, needed: dict[str, float]
) -> list[dict[str, Any]]:
    """One row per contender of a case.

    Raises:
        RuntimeError: the gradient of one is another one.
    """
    loop = next(contender for contender in able if contender.name == "loop")
    size = {"method": case.method, "queries": case.queries, "tasks": len(task.y)}
    rows = []
    for contender in able:
        row = {"part": "step", "implementation": contender.name, **size, **needed}
        row |= contender.times(case.name)
        if not contender.absent(case.name):
            row |= _agreement(contender, loop, case)
            row |= {
                "times_loop": loop.times(case.name)["ms"] / row["ms"],
                "of_products": needed["products_ms"] / row["ms"],
                "tasks_per_s": 1e3 * len(task.y) / row["ms"],
                "images_per_s": 1e3 * task.images / row["ms"],
            }
        rows.append(row)
    return rows


def _agreement(contender: Contender, loop: Contender, case: Case) -> dict[str, float]:
    """Relative difference from the loop over tasks, as timed and in float64.

    Raises:
        RuntimeError: they compute something else.
    """
    single = contender.difference(case.name, loop.answer(case.name))
    double = contender.difference(case.check, loop.answer(case.check))
    same = single < SAME or contender.name in ROUNDED
    if not (same and double < AGREE):
        raise RuntimeError(
            f"{contender.name} is off by {single:.1e}, in float64 by {double:.1e}: {case.name}"
        )
    return {"difference": single, "difference_float64": double}
