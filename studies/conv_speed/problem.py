"""The meta-gradients that are computed, as arrays: what every contender is given.

It is read in whatever Python a contender has, so it needs numpy alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from studies._plain import Proximal, Stored

KERNEL, LAYERS = 3, 4
METHODS = ("maml", "fomaml", "imaml_ggn", "imaml_hessian")


@dataclass(frozen=True, eq=False)
class Task(Stored, Proximal):
    """One meta-gradient to compute: d/dθ₀ of the summed query losses of a few tasks.

        f_i(θ) = −Σ_rows log p(y | x; θ),    g_i is f_i of the query images
        maml, fomaml    θ ← θ − (lr/n) ∇f_i(θ), `steps` times from θ₀; then dg_i/dθ₀ or ∇g_i
        imaml           θ ← θ − (lr/n) (∇f_i(θ) + n λ (θ − θ₀)), `steps` times from θ₀;
                        (H_i + n λ) u_i = ∇g_i by `cg_steps` from 0; then n λ u_i

    of the network: four times [3 × 3 convolution by strides of 2, normalisation over the task's
    images and places, ReLU], then a linear layer.

    Args:
        x, y: (task, image, channel, side, side) and (task, image), the support.
        query_x, query_y: the query.
        theta0: (dim,) θ₀: convolution, scale and shift of each layer, then weights and biases of
            the last.
        filters, ways: of the network.
        method: in METHODS; after "imaml_" which H_i.
        lr, lam, steps, cg_steps: as above, the first two per image.
        device: "cpu" or "cuda".
    """

    x: np.ndarray
    y: np.ndarray
    query_x: np.ndarray
    query_y: np.ndarray
    theta0: np.ndarray
    filters: int
    ways: int
    method: str
    lr: float
    lam: float
    steps: int
    cg_steps: int
    device: str = "cpu"

    @property
    def curvature(self) -> str:
        """Which H_i: ggn or hessian."""
        return self.method.partition("_")[2]

    @property
    def implicit(self) -> bool:
        return self.method.startswith("imaml")

    @property
    def images(self) -> int:
        """Support and query images of all tasks."""
        return self.y.size + self.query_y.size

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Of the weights, in the order they have in θ."""
        channels, side = self.x.shape[2:4]
        found: list[tuple[int, ...]] = []
        for _ in range(LAYERS):
            found += [(self.filters, channels, KERNEL, KERNEL), (self.filters,), (self.filters,)]
            channels, side = self.filters, math.ceil(side / 2)
        return [*found, (self.ways, self.filters * side * side), (self.ways,)]

    def double(self, tasks: int) -> Task:
        """The first tasks, in float64."""
        names = ("x", "y", "query_x", "query_y")
        first = {name: getattr(self, name)[:tasks] for name in names}
        first |= {name: first[name].astype(np.float64) for name in ("x", "query_x")}
        return replace(self, theta0=self.theta0.astype(np.float64), **first)
