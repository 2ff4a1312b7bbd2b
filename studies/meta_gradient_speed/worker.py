"""`python worker.py NAME TASK.npz DEVICE`: one contender, ready to be timed.

It prints a line of JSON when its first call is done (compilation included), then one for each
line it reads: the seconds per call. Its gradient is left beside the task. It runs by its path in
whatever Python has the contender's packages, so it needs numpy alone.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

Step = Callable[[], np.ndarray]
MODULES = {
    "eager": "bayesmeta_step",
    "compiled": "bayesmeta_step",
    "loop": "plain_loop",
    "torchopt": "torchopt_loop",
    "jax": "jax_vmap",
}
TURN = 0.1
"""Seconds of one turn: a fast contender is called as often as that takes."""


@dataclass(frozen=True, eq=False)
class Task:
    """One meta-gradient to compute: Σ_i dg_i(θ*_i)/dθ₀ for tanh networks.

        f_i(θ) = ½ Σ_rows (y − net(x; θ))²,    F_i(θ) = f_i(θ) + ½ n λ ‖θ − θ₀‖²
        θ*_i: `steps` of θ ← θ − (lr/n) ∇F_i(θ) from θ₀;    g_i is f_i of the query rows
        (∇²f_i + n λ) u_i = ∇g_i: `cg_steps` from u_i = 0;    the gradient is Σ_i n λ u_i

    Args:
        x, y: (task, row, 1) and (task, row), the support.
        query_x, query_y: the query.
        theta0: (dim,) θ₀, weight (out, in) and bias of layer after layer.
        widths: of the network, its input and output included.
        lr, lam: as above, per row.
        steps, cg_steps: how many.
        device: "cpu" or "cuda".
    """

    x: np.ndarray
    y: np.ndarray
    query_x: np.ndarray
    query_y: np.ndarray
    theta0: np.ndarray
    widths: tuple[int, ...]
    lr: float
    lam: float
    steps: int
    cg_steps: int
    device: str = "cpu"

    @property
    def precision(self) -> float:
        """n λ, the same for all tasks."""
        return self.lam * self.y.shape[1]

    @property
    def rate(self) -> float:
        """lr / n."""
        return self.lr / self.y.shape[1]

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Of weights and biases, in the order they have in θ."""
        pairs = zip(self.widths, self.widths[1:], strict=False)
        return [shape for fan_in, out in pairs for shape in ((out, fan_in), (out,))]

    def save(self, path: Path) -> None:
        np.savez(path, **{key: value for key, value in vars(self).items() if key != "device"})

    @classmethod
    def load(cls, path: Path, device: str) -> Task:
        values: dict[str, Any] = {}
        with np.load(path) as stored:
            for key, value in stored.items():
                values[key] = value if value.ndim else value.item()
        return cls(**values | {"widths": tuple(values["widths"].tolist()), "device": device})


def serve(name: str, path: Path, device: str) -> None:
    """Prepare, leave the gradient behind, and time whenever asked."""
    if device == "cpu" and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    task = Task.load(path, device)
    started = time.perf_counter()
    try:
        step: Step = import_module(MODULES[name]).prepare(task, name)
    except ImportError as error:
        _say(absent=str(error))
        return
    gradient = step()
    _say(seconds=time.perf_counter() - started)
    np.save(path.with_name(f"{name}.npy"), gradient)
    for _ in sys.stdin:
        # Whoever had the core last has left its own data in the caches.
        once = _seconds(step, 1)
        _say(seconds=_seconds(step, max(1, math.ceil(TURN / once))))


def _seconds(step: Step, calls: int) -> float:
    """Per call; every call ends with its result on the host."""
    started = time.perf_counter()
    for _ in range(calls):
        step()
    return (time.perf_counter() - started) / calls


def _say(**values: Any) -> None:
    print(json.dumps(values), flush=True)


if __name__ == "__main__":
    serve(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
