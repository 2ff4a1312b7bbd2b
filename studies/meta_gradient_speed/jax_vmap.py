"""The same in JAX: jit and vmap, one thread.

`linearize` computes what all Hessian products of a task share once.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

os.environ["XLA_FLAGS"] = (
    "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1 "
    + os.environ.get("XLA_FLAGS", "")
)

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

if TYPE_CHECKING:
    from studies.meta_gradient_speed.worker import Step, Task


def prepare(task: Task, name: str) -> Step:
    """The whole meta-gradient as one compiled call."""
    edges = np.cumsum([int(np.prod(shape)) for shape in task.shapes])[:-1].tolist()

    def energy(theta: Any, x: Any, y: Any) -> Any:
        parts = jnp.split(theta, edges)
        layers = [part.reshape(shape) for part, shape in zip(parts, task.shapes, strict=True)]
        hidden = x
        for weight, bias in zip(layers[:-2:2], layers[1:-2:2], strict=True):
            hidden = jnp.tanh(hidden @ weight.T + bias)
        return 0.5 * jnp.square(y - (hidden @ layers[-2].T + layers[-1])[:, 0]).sum()

    slope = jax.grad(energy)

    def one(theta0: Any, x: Any, y: Any, query_x: Any, query_y: Any) -> Any:
        def descend(_: Any, theta: Any) -> Any:
            gradient = slope(theta, x, y) + task.precision * (theta - theta0)
            return theta - task.rate * gradient

        theta = lax.fori_loop(0, task.steps, descend, theta0)
        b = slope(theta, query_x, query_y)
        _, product = jax.linearize(lambda t: slope(t, x, y), theta)
        return task.precision * _solve(lambda v: product(v) + task.precision * v, b, task.cg_steps)

    @jax.jit
    def total(theta0: Any, *sets: Any) -> Any:
        return jax.vmap(one, in_axes=(None, 0, 0, 0, 0))(theta0, *sets).sum(0)

    place = jax.devices("gpu" if task.device == "cuda" else task.device)[0]
    arguments = jax.device_put((task.theta0, task.x, task.y, task.query_x, task.query_y), place)
    return lambda: np.asarray(total(*arguments))


def _solve(product: Any, b: Any, steps: int) -> Any:
    """Conjugate gradients from 0."""

    def move(_: Any, state: Any) -> Any:
        x, r, p, rr = state
        ap = product(p)
        alpha = rr / (p @ ap)
        x, r = x + alpha * p, r - alpha * ap
        new = r @ r
        return x, r, r + new / rr * p, new

    return lax.fori_loop(0, steps, move, (jnp.zeros_like(b), b, b, b @ b))[0]
