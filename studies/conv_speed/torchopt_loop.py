"""TorchOpt's implicit differentiation of an inner solver, task after task, as its iMAML example.

The linear solver is its own conjugate gradients, on products with the exact Hessian. Its gradient
rule is a torch.autograd.Function without a batching rule, so vmap does not take it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from plain_loop import energy, tensors
from torch import Tensor
from torchopt.diff.implicit import custom_root
from torchopt.linear_solve import solve_cg

if TYPE_CHECKING:
    from studies._serving import Step
    from studies.conv_speed.problem import Task


def prepare(task: Task, name: str) -> Step:
    """The whole meta-gradient as one call."""
    slope = torch.func.grad(lambda theta, x, y: energy(theta, x, y, task.shapes))

    def optimality(theta: Tensor, theta0: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return slope(theta, x, y) + task.precision * (theta - theta0)

    @custom_root(optimality, argnums=1, solve=solve_cg(maxiter=task.cg_steps, rtol=0.0))
    def adapt(theta: Tensor, theta0: Tensor, x: Tensor, y: Tensor) -> Tensor:
        for _ in range(task.steps):
            theta = theta.detach().requires_grad_()
            with torch.enable_grad():
                (gradient,) = torch.autograd.grad(energy(theta, x, y, task.shapes), theta)
            with torch.no_grad():
                theta = theta - task.rate * (gradient + task.precision * (theta - theta0))
        return theta

    theta0, sets = tensors(task)
    theta0.requires_grad_()

    def step() -> np.ndarray:
        total = torch.zeros_like(theta0)
        for (x, y), far in sets:
            theta = adapt(theta0.detach(), theta0, x, y)
            total += torch.autograd.grad(energy(theta, *far, task.shapes), theta0)[0]
        return total.cpu().numpy()

    return step
