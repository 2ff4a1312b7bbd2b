"""The matrix products of a gradient alone: what no way of writing a convolution can do without.

A convolution is the product of its input's patches, (images · places, 9 · channels), and its
weights; its derivatives are two more. All operands are there, in the best layout for a product, and
so is the room for the result. A step is timed as so many gradients as it has floating-point
operations (see `operations`).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

if TYPE_CHECKING:
    from studies._serving import Step
    from studies.conv_speed.problem import Task

Shape = tuple[int, int, int]


def layers(task: Task) -> list[Shape]:
    """(rows, inputs, outputs) of the product that each layer is, for one task's support."""
    images, side = task.y.shape[1], task.x.shape[3]
    found: list[Shape] = []
    for shape in task.shapes[:-2:3]:
        side = math.ceil(side / 2)
        found.append((images * side * side, math.prod(shape[1:]), shape[0]))
    return [*found, (images, task.shapes[-2][1], task.shapes[-2][0])]


def prepare(task: Task, name: str) -> Step:
    """The products of one gradient of the support's energy, all tasks at once."""
    tasks = len(task.y)
    products: list[tuple[Tensor, Tensor, Tensor]] = []
    for place, (rows, inputs, outputs) in enumerate(layers(task)):
        patches, weights, slope = (
            torch.rand(tasks, *shape, device=task.device)
            for shape in ((rows, inputs), (inputs, outputs), (rows, outputs))
        )
        wanted = [(patches, weights), (patches.mT, slope)]
        if place > 0:  # nobody asks for the derivative in the images
            wanted.append((slope, weights.mT.contiguous()))
        products += [(a, b, a @ b) for a, b in wanted]

    def step() -> np.ndarray:
        for left, right, room in products:
            torch.bmm(left, right, out=room)
        return products[-1][-1][0, 0].cpu().numpy()

    return step


def gradient_operations(task: Task) -> int:
    """Floating-point operations of `prepare`'s step."""
    each = [2 * math.prod(shape) for shape in layers(task)]
    return len(task.y) * (3 * sum(each) - each[0])


def operations(task: Task) -> tuple[int, int]:
    """Those of a meta-gradient in products of matrices, by support and query images.

    Counted in the plain loop: torch's own count of the derivative of a grouped convolution takes
    every group for all of them.
    """
    from studies.conv_speed import plain_loop

    theta0, sets = plain_loop.tensors(task)
    near, far = sets[0]
    theta = theta0.clone().requires_grad_()
    with FlopCounterMode(display=False) as all_of_it:
        plain_loop.of_one(task, theta0, near, far)
    with FlopCounterMode(display=False) as query:
        torch.autograd.grad(plain_loop.energy(theta, *far, task.shapes), theta)
    total, seen = all_of_it.get_total_flops(), query.get_total_flops()
    return len(sets) * (total - seen), len(sets) * seen
