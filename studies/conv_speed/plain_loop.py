"""What a careful user writes in plain torch: task after task, each kernel on one task's images.

Nothing is recorded that is not differentiated; one retained graph serves all curvature products of
a task, and the proximal term is differentiated by hand.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.autograd import grad
from torch.nn.functional import conv2d, cross_entropy, linear, relu

from studies._plain import conjugate_gradients

if TYPE_CHECKING:
    from studies._serving import Step
    from studies.conv_speed.problem import Task

EPS = 1e-5
OVER = (0, 2, 3)


def network(theta: Tensor, x: Tensor, shapes: list[tuple[int, ...]]) -> Tensor:
    """(image, class) predictions for one task's images, normalised together."""
    parts = theta.split([math.prod(shape) for shape in shapes])
    weights = [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
    for kernel, scale, shift in zip(weights[:-2:3], weights[1:-2:3], weights[2:-2:3], strict=True):
        x = conv2d(x, kernel, stride=2, padding=1)
        centred = x - x.mean(OVER, keepdim=True)
        size = (centred.square().mean(OVER, keepdim=True) + EPS).rsqrt()
        x = relu(centred * (size * scale[:, None, None]) + shift[:, None, None])
    return linear(x.flatten(1), *weights[-2:])


def energy(theta: Tensor, x: Tensor, y: Tensor, shapes: list[tuple[int, ...]]) -> Tensor:
    """−Σ log p(y | x; θ) for one task."""
    return cross_entropy(network(theta, x, shapes), y, reduction="sum")


def prepare(task: Task, name: str) -> Step:
    """The whole meta-gradient as one call."""
    theta0, sets = tensors(task)

    def step() -> np.ndarray:
        total = torch.zeros_like(theta0)
        for near, far in sets:
            total += of_one(task, theta0, near, far)
        return total.cpu().numpy()

    return step


Rows = tuple[Tensor, Tensor]


def tensors(task: Task) -> tuple[Tensor, list[tuple[Rows, Rows]]]:
    """θ₀, and support and query of each task."""

    def tensor(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(task.device)

    support = zip(tensor(task.x), tensor(task.y), strict=True)
    query = zip(tensor(task.query_x), tensor(task.query_y), strict=True)
    return tensor(task.theta0), list(zip(support, query, strict=True))


def of_one(task: Task, theta0: Tensor, near: Rows, far: Rows) -> Tensor:
    """One task's part of the meta-gradient."""
    if task.method == "maml":
        return _unrolled(task, theta0, near, far)
    theta = _adapted(task, theta0, near)
    (slope,) = grad(energy(theta, *far, task.shapes), theta)
    if not task.implicit:
        return slope
    product = (_gauss_newton if task.curvature == "ggn" else _hessian)(task, theta, near)
    return task.precision * conjugate_gradients(
        lambda v: product(v) + task.precision * v, slope, task.cg_steps
    )


def _unrolled(task: Task, theta0: Tensor, near: Rows, far: Rows) -> Tensor:
    theta0 = theta0.detach().requires_grad_()
    theta = theta0
    for _ in range(task.steps):
        (slope,) = grad(energy(theta, *near, task.shapes), theta, create_graph=True)
        theta = theta - task.rate * slope
    return grad(energy(theta, *far, task.shapes), theta0)[0]


def _adapted(task: Task, theta0: Tensor, near: Rows) -> Tensor:
    """θ after the inner steps, ready to be differentiated at."""
    theta = theta0
    for _ in range(task.steps):
        theta = theta.detach().requires_grad_()
        (slope,) = grad(energy(theta, *near, task.shapes), theta)
        with torch.no_grad():
            if task.implicit:
                slope = slope + task.precision * (theta - theta0)
            theta = theta - task.rate * slope
    return theta.detach().requires_grad_()


Product = Callable[[Tensor], Tensor]


def _hessian(task: Task, theta: Tensor, near: Rows) -> Product:
    (slope,) = grad(energy(theta, *near, task.shapes), theta, create_graph=True)
    return lambda v: grad(slope, theta, v, retain_graph=True)[0]


def _gauss_newton(task: Task, theta: Tensor, near: Rows) -> Product:
    """Jᵀ W J, W the second derivative of −log softmax."""
    eta = network(theta, near[0], task.shapes)
    u = torch.zeros_like(eta, requires_grad=True)
    (pulled,) = grad(eta, theta, u, create_graph=True)  # Jᵀu, linear in u: its derivative is J
    p = eta.detach().softmax(-1)

    def product(v: Tensor) -> Tensor:
        (change,) = grad(pulled, u, v, retain_graph=True)
        weighted = p * (change - (p * change).sum(-1, keepdim=True))
        return grad(eta, theta, weighted, retain_graph=True)[0]

    return product


def plain_float32(*, tf32: bool) -> None:
    """Say for convolutions and products alike, as torch's own default differs between them."""
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
