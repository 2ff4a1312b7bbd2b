"""bayesmeta's own meta-step, as it stands or compiled."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import bayesmeta as bm
from bayesmeta.amortised.descent import compiled
from bayesmeta.amortised.step import MetaStep
from bayesmeta.method import Method

if TYPE_CHECKING:
    from studies.meta_gradient_speed.worker import Step, Task


def prepare(task: Task, name: str) -> Step:
    """The whole meta-gradient as one call; compiled if the name says so."""
    step, arguments = meta_step(task, implicit(task))
    call = compiled(step) if name == "compiled" else step

    def gradient() -> np.ndarray:
        per_task = call(*arguments).gradients["anchor"]["mean"]
        return per_task.sum(0).cpu().numpy()

    return gradient


def implicit(task: Task) -> Method:
    """iMAML with the exact Hessian."""
    return bm.methods.imaml(  # whose numbers are for squared errors, twice the energy at sd 1
        steps=task.steps,
        lr=task.lr / 2,
        lam=2 * task.lam,
        cg_steps=task.cg_steps,
        curvature="hessian",
    )


def meta_step(task: Task, method: Method) -> tuple[MetaStep, tuple[Any, ...]]:
    """A method's meta-step on the task's tensors, and what to call it with."""

    def tensor(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(task.device)

    support, query = (
        bm.TaskFamily.from_tensors(x=tensor(x), y=tensor(y))
        for x, y in ((task.x, task.y), (task.query_x, task.query_y))
    )
    model = bm.models.mlp(task.widths[1:-1], support, bm.likelihoods.Gaussian(scale=1.0))
    model = model.to(device=task.device, dtype=torch.float32)
    mean = tensor(task.theta0)
    prior = bm.Prior("isotropic").at(mean=mean, variance=1.0)
    step = MetaStep(model, prior, method, support)
    free = {key: value.detach() for key, value in prior.free.items()}
    params = step.params(free, {}, len(support))
    noise = mean.new_zeros(1, len(support), 0)  # a point Q_i draws nothing
    return step, (params, support.batch(), query.batch(), noise)
