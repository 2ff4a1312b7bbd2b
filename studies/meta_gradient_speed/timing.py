"""All contenders side by side, each in a process of its own, timed in turn."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import bayesmeta as bm
from studies._contest import Contender, competitors
from studies.meta_gradient_speed import plain_loop
from studies.meta_gradient_speed.worker import Task

OURS = ("eager", "compiled", "loop")
THEIRS = ("torchopt", "jax")
AGREE = 1e-3
"""Largest relative difference from float64: five CG steps amplify the rounding of float32."""
CASE = "sinusoids"
WORKER = Path(__file__).with_name("worker.py")


def full(device: str) -> list[dict[str, Any]]:
    """One row per contender."""
    return measure((*OURS, *THEIRS), device, turns=31)


def quick(device: str) -> list[dict[str, Any]]:
    """Without what must be compiled or installed."""
    return measure(("eager", "loop"), device, turns=3)


def sinusoids(device: str = "cpu") -> Task:
    """25 sinusoids with 10 + 10 points and a 1-40-40-1 network; λ as in Rajeswaran et al. (2019).

    With it every Hessian is positive definite: what a solver does on meeting another is not
    what is compared here.
    """
    generator = torch.Generator().manual_seed(0)
    family, _ = bm.families.sinusoid(tasks=25, rows=20, noise=0.1, generator=generator)
    network = bm.models.mlp((40, 40), family, bm.likelihoods.Gaussian(scale=1.0))
    x, y = (family.tensors[key].float().numpy() for key in "xy")
    return Task(
        *(x[:, :10], y[:, :10], x[:, 10:], y[:, 10:]),
        theta0=network.start.float().numpy(),
        widths=(1, 40, 40, 1),
        lr=0.05,
        lam=2.0,
        steps=16,
        cg_steps=5,
        device=device,
    )


def reference(task: Task) -> np.ndarray:
    """The meta-gradient in float64, by the loop over tasks."""
    doubles = {
        key: value.astype(np.float64)
        for key, value in vars(task).items()
        if isinstance(value, np.ndarray)
    }
    return plain_loop.prepare(replace(task, device="cpu", **doubles), "loop")()


def measure(names: Sequence[str], device: str, turns: int) -> list[dict[str, Any]]:
    """Start all, time each once a turn, and compare their gradients with float64."""
    task = sinusoids(device)
    with tempfile.TemporaryDirectory() as folder:
        task.save(Path(folder) / f"{CASE}.npz")
        started = [_started(name, Path(folder), device) for name in names]
        for _ in range(turns):
            for contender in started:
                contender.take_turn(CASE)
        wanted = reference(task)
        rows = [_row(contender, wanted, task.steps) for contender in started]
    loop = next(row["ms"] for row in rows if row["implementation"] == "loop")
    return [row | {"times_loop": loop / row["ms"]} for row in rows]


def _started(name: str, folder: Path, device: str) -> Contender:
    python = competitors() if name in THEIRS else sys.executable
    contender = Contender(name, WORKER, folder, device, python)
    contender.begin(CASE)
    return contender


def _row(contender: Contender, wanted: np.ndarray, steps: int) -> dict[str, Any]:
    """Its row of the table.

    Raises:
        RuntimeError: its gradient is another one.
    """
    contender.close()
    row = {"part": "time", "implementation": contender.name, "inner_steps": steps}
    row |= contender.times(CASE)
    if contender.absent(CASE):
        return row
    difference = contender.difference(CASE, wanted)
    if not difference < AGREE:
        raise RuntimeError(f"the gradient of {contender.name} is off by {difference:.1e}")
    return row | {"relative_difference": difference}
