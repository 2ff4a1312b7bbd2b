"""bayesmeta's own outer step: what a fit does before its optimiser moves.

eager       all tasks at once
chunked     so many tasks at a time that their images fit into a processor's cache
compiled    torch.compile of the whole step
graph       the eager step captured in a CUDA graph
tf32        eager, products rounded to 10 bits on the way in (CUDA)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

import bayesmeta as bm
from bayesmeta.amortised.descent import Descent, Tasks
from bayesmeta.amortised.meta_gradient import prepared
from bayesmeta.choosing import default_prior
from bayesmeta.joint.problem import Problem
from bayesmeta.method import Method
from bayesmeta.models import Model
from studies._serving import Unable

if TYPE_CHECKING:
    from studies._serving import Step
    from studies.conv_speed.problem import Task

AT_ONCE = 320
"""Images of a chunk: what the largest layer of Conv4 makes of them is 16 MB."""
WARM = 3


def prepare(task: Task, name: str) -> Step:
    """The whole meta-gradient as one call."""
    chunk = chunk_size(task) if name == "chunked" else None
    chosen = replace(method(task), compile=name == "compiled")
    model = network(task, chunk)
    if name == "bfloat16" and task.theta0.dtype == np.float32:
        model = model.with_precision("bfloat16")
    step = gradient(*descent(task, model, chosen))
    if name == "graph":
        step = captured(step)
    return lambda: step().cpu().numpy()


def chunk_size(task: Task) -> int:
    """Tasks at a time."""
    images = task.y.shape[1] + task.query_y.shape[1]
    return max(1, AT_ONCE // images)


def network(task: Task, chunk: int | None = None) -> Model:
    """The task's network, without its weights."""
    channels, height, width = task.x.shape[2:]
    return bm.models.conv4(
        task.ways, (channels, height, width), filters=task.filters, chunk_size=chunk
    )


def method(task: Task) -> Method:
    """The task's method by bayesmeta's name."""
    options = {"steps": task.steps, "lr": task.lr, "support": None}
    if not task.implicit:
        return getattr(bm.methods, task.method)(**options)
    solve = {"cg_steps": task.cg_steps, "curvature": task.curvature}
    return bm.methods.imaml(lam=task.lam, **options, **solve)


def descent(task: Task, model: Model, chosen: Method | None = None) -> tuple[Descent, Tasks]:
    """What a fit takes its outer steps on, at θ₀, by the task's method or another one."""
    chosen = chosen or method(task)
    family, query = (
        bm.TaskFamily.from_tensors(
            **{key: torch.from_numpy(array).to(task.device) for key, array in (("x", x), ("y", y))}
        )
        for x, y in ((task.x, task.y), (task.query_x, task.query_y))
    )
    model = prepared(model, family, chosen)
    weights = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in model.unflatten(torch.from_numpy(task.theta0)).items():
            weights[name].copy_(value)
    prior = default_prior(None, chosen, model, family)
    found = Descent(Problem(model, family, prior, chosen, False, torch.Generator(), query=query))
    return found, found.draw()


def gradient(found: Descent, tasks: Tasks) -> Callable[[], Tensor]:
    """dM/dθ₀ of these tasks as one call."""
    return lambda: torch.autograd.grad(found.evaluate(tasks), found.parameters())[0]


def captured(step: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """The same kernels, launched by the device itself.

    Raises:
        Unable: there is no CUDA, or the step waits for the host somewhere.
    """
    if not torch.cuda.is_available():
        raise Unable("a CUDA graph needs CUDA")
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(WARM):
            step()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            found = step()
    except RuntimeError as error:
        raise Unable(f"no CUDA graph: {str(error).splitlines()[0]}") from error

    def replay() -> Tensor:
        graph.replay()
        return found

    return replay
