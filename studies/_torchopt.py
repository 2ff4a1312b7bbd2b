"""TorchOpt's implicit differentiation of proximal gradient descent, for one task at a time.

Its gradient rule is a torch.autograd.Function without a batching rule, so vmap does not take it;
one decorated solver serves all tasks. The linear solver is its own conjugate gradients, on products
with the exact Hessian.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchopt.diff.implicit import custom_root
from torchopt.linear_solve import solve_cg

Energy = Callable[[Tensor, Tensor, Tensor], Tensor]


def adaptation(energy: Energy, task: Any) -> Energy:
    """(θ₀, x, y) -> θ*, differentiable in θ₀.

    Args:
        energy: f(θ, x, y) of one task.
        task: with `precision`, `rate`, `steps` and `cg_steps`.
    """
    slope = torch.func.grad(energy)

    def optimality(theta: Tensor, theta0: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return slope(theta, x, y) + task.precision * (theta - theta0)

    @custom_root(optimality, argnums=1, solve=solve_cg(maxiter=task.cg_steps, rtol=0.0))
    def adapt(theta: Tensor, theta0: Tensor, x: Tensor, y: Tensor) -> Tensor:
        for _ in range(task.steps):
            theta = theta.detach().requires_grad_()
            with torch.enable_grad():
                (gradient,) = torch.autograd.grad(energy(theta, x, y), theta)
            with torch.no_grad():
                theta = theta - task.rate * (gradient + task.precision * (theta - theta0))
        return theta

    return lambda theta0, x, y: adapt(theta0.detach(), theta0, x, y)
