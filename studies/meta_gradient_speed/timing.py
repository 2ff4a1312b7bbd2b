"""All contenders side by side, each in a process of its own, timed in turn."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import bayesmeta as bm
from studies._framework import ONE_THREAD, ROOT
from studies.meta_gradient_speed import plain_loop
from studies.meta_gradient_speed.worker import Task

OURS = ("eager", "compiled", "loop")
THEIRS = ("torchopt", "jax")
AGREE = 1e-3
"""Largest relative difference from float64: five CG steps amplify the rounding of float32."""
ENVIRONMENT = ONE_THREAD | {"PYTHONPATH": str(ROOT), "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}


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
        path = Path(folder) / "task.npz"
        task.save(path)
        started = [Contender(name, path, device) for name in names]
        for _ in range(turns):
            for contender in started:
                contender.take_turn()
        wanted = reference(task)
        rows = [contender.row(wanted, task.steps) for contender in started]
    loop = next(row["ms"] for row in rows if row["implementation"] == "loop")
    return [row | {"times_loop": loop / row["ms"]} for row in rows]


class Contender:
    """A worker, and the times it has reported.

    Args:
        name: in `worker.MODULES`.
        path: of the task; the gradient lands beside it.
        device: "cpu" or "cuda".
    """

    def __init__(self, name: str, path: Path, device: str) -> None:
        python = sys.executable
        if name in THEIRS:
            python = os.environ.get("BAYESMETA_COMPETITORS", python)
        self.name, self.gradient = name, path.with_name(f"{name}.npy")
        self.errors = path.with_name(f"{name}.err")
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                [python, str(Path(__file__).with_name("worker.py")), name, str(path), device],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=os.environ | ENVIRONMENT,
            )
        self.seconds: list[float] = []
        # The next starts when this one is ready: compiling beside another would slow both.
        self.first = self._heard()

    @property
    def absent(self) -> str:
        """What it lacks; "" where it can be timed."""
        return self.first.get("absent", "")

    def take_turn(self) -> None:
        """One more time."""
        if self.absent:
            return
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self.seconds.append(self._heard()["seconds"])

    def _heard(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            raise RuntimeError(f"{self.name} failed:\n{self.errors.read_text()}")
        return json.loads(line)

    def row(self, wanted: np.ndarray, steps: int) -> dict[str, Any]:
        """Its row of the table; times in ms, over turns.

        Raises:
            RuntimeError: its gradient is another one.
        """
        self.process.communicate()
        row = {"part": "time", "implementation": self.name, "inner_steps": steps}
        if self.absent:
            return row | {"ms": float("nan"), "note": self.absent}
        difference = np.linalg.norm(np.load(self.gradient) - wanted) / np.linalg.norm(wanted)
        if not difference < AGREE:
            raise RuntimeError(f"the gradient of {self.name} is off by {difference:.1e}")
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        middle = statistics.median(self.seconds)
        return row | {
            "ms": 1e3 * middle,
            "spread_ms": 1e3 * (high - low),
            "fastest_ms": 1e3 * min(self.seconds),
            "turns": len(self.seconds),
            "first_call_s": self.first["seconds"],
            "relative_difference": float(difference),
            "note": "",
        }
