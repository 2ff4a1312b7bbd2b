"""`python worker.py NAME FOLDER DEVICE`: one contender, ready to be timed on FOLDER/CASE.npz."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import ClassVar

import numpy as np

from studies._plain import Proximal, Stored
from studies._serving import Step, serve

__all__ = ["Step", "Task"]
MODULES = {
    "eager": "bayesmeta_step",
    "compiled": "bayesmeta_step",
    "loop": "plain_loop",
    "torchopt": "torchopt_loop",
    "jax": "jax_vmap",
}


@dataclass(frozen=True, eq=False)
class Task(Stored, Proximal):
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

    TUPLES: ClassVar[tuple[str, ...]] = ("widths",)
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
    def shapes(self) -> list[tuple[int, ...]]:
        """Of weights and biases, in the order they have in θ."""
        pairs = zip(self.widths, self.widths[1:], strict=False)
        return [shape for fan_in, out in pairs for shape in ((out, fan_in), (out,))]


def main(name: str, folder: Path, device: str) -> None:
    """Serve the contender of that name."""

    def prepare(case: str) -> Step:
        task = Task.load(folder / f"{case}.npz", device)
        return import_module(MODULES[name]).prepare(task, name)

    serve(prepare, lambda case: folder / f"{name}-{case}.npy", device)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
