"""TorchOpt's implicit differentiation of an inner solver, task after task."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from plain_loop import energy
from torch import Tensor

from studies._torchopt import adaptation

if TYPE_CHECKING:
    from studies._serving import Step
    from studies.meta_gradient_speed.worker import Task


def prepare(task: Task, name: str) -> Step:
    """The whole meta-gradient as one call."""
    adapt = adaptation(lambda theta, x, y: energy(theta, x, y, task.shapes), task)

    def tensor(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(task.device)

    theta0 = tensor(task.theta0).requires_grad_()
    sets = list(zip(*map(tensor, (task.x, task.y, task.query_x, task.query_y)), strict=True))

    def step() -> np.ndarray:
        total = torch.zeros_like(theta0)
        for x, y, query_x, query_y in sets:
            loss = energy(adapt(theta0, x, y), query_x, query_y, task.shapes)
            total += torch.autograd.grad(loss, theta0)[0]
        return total.cpu().numpy()

    return step
