"""What a careful user writes in plain torch: task after task, each kernel on one task's data.

The inner loop records no graph, the proximal term is differentiated by hand, and one retained
graph of ∇f serves all Hessian products of a task.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.autograd import grad
from torch.nn.functional import linear

from studies._plain import conjugate_gradients

if TYPE_CHECKING:
    from studies.meta_gradient_speed.worker import Step, Task


def energy(theta: Tensor, x: Tensor, y: Tensor, shapes: list[tuple[int, ...]]) -> Tensor:
    """½ Σ (y − net(x; θ))² for one task."""
    parts = theta.split([math.prod(shape) for shape in shapes])
    layers = [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
    hidden = x
    for weight, bias in zip(layers[:-2:2], layers[1:-2:2], strict=True):
        hidden = linear(hidden, weight, bias).tanh()
    return 0.5 * (y - linear(hidden, *layers[-2:])[:, 0]).square().sum()


def prepare(task: Task, name: str) -> Step:
    """The whole meta-gradient as one call."""

    def tensor(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(task.device)

    theta0 = tensor(task.theta0)
    support = list(zip(tensor(task.x), tensor(task.y), strict=True))
    query = list(zip(tensor(task.query_x), tensor(task.query_y), strict=True))

    def one(near: tuple[Tensor, Tensor], far: tuple[Tensor, Tensor]) -> Tensor:
        theta = theta0
        for _ in range(task.steps):
            theta = theta.detach().requires_grad_()
            (slope,) = grad(energy(theta, *near, task.shapes), theta)
            with torch.no_grad():
                theta = theta - task.rate * (slope + task.precision * (theta - theta0))
        theta = theta.detach().requires_grad_()
        (b,) = grad(energy(theta, *far, task.shapes), theta)
        (slope,) = grad(energy(theta, *near, task.shapes), theta, create_graph=True)

        def product(v: Tensor) -> Tensor:
            return grad(slope, theta, v, retain_graph=True)[0] + task.precision * v

        return task.precision * conjugate_gradients(product, b, task.cg_steps)

    def step() -> np.ndarray:
        total = torch.zeros_like(theta0)
        for near, far in zip(support, query, strict=True):
            total += one(near, far)
        return total.cpu().numpy()

    return step
