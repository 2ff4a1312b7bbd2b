"""TorchOpt's implicit differentiation of an inner solver, task after task, as its iMAML example."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from plain_loop import energy, tensors

from studies._torchopt import adaptation

if TYPE_CHECKING:
    from studies._serving import Step
    from studies.conv_speed.problem import Task


def prepare(task: Task, name: str) -> Step:
    """The whole meta-gradient as one call."""
    adapt = adaptation(lambda theta, x, y: energy(theta, x, y, task.shapes), task)
    theta0, sets = tensors(task)
    theta0.requires_grad_()

    def step() -> np.ndarray:
        total = torch.zeros_like(theta0)
        for near, far in sets:
            loss = energy(adapt(theta0, *near), *far, task.shapes)
            total += torch.autograd.grad(loss, theta0)[0]
        return total.cpu().numpy()

    return step
