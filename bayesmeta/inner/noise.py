"""z: the random numbers of an algorithm's path, drawn ahead, so that every path can be run again.

A path is one run of an algorithm on one task. Its noise is minibatches, dropped units and normal
increments, step by step. Whoever runs a path again with the same z takes the same steps.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from bayesmeta.inner.problem import InnerProblem
from bayesmeta.models import Model
from bayesmeta.models.dropout import dropped_shapes, keeping
from bayesmeta.results import InputError
from bayesmeta.splits import taken
from bayesmeta.tasks import TaskBatch


@dataclass(frozen=True, kw_only=True)
class Minibatched:
    """What makes the steps of a first-order algorithm random.

    Args:
        rows: support rows per step, whose gradient times n_i / rows stands for that of all n_i;
            None sees all of them.
        replacement: whether rows are drawn independently, or come in a random order, a new one
            after each pass (a task with no more than `rows` is then used whole).
        dropout: whether the module's dropout layers drop units in the steps; losses and
            predictions never do.
    """

    rows: int | None = None
    replacement: bool = False
    dropout: bool = False


def is_random(algorithm: Any) -> bool:
    """Whether two runs of an algorithm from one start end in two places."""
    return has(algorithm, "rows", "dropout", "normals") or hasattr(algorithm, "algorithms")


def has(algorithm: Any, *names: str) -> bool:
    """Whether any component of an algorithm has one of these switched on."""
    return any(getattr(part, name, None) for part in components(algorithm) for name in names)


def components(algorithm: Any) -> tuple[Any, ...]:
    """The algorithms of a mixture, or the one there is."""
    return tuple(getattr(algorithm, "algorithms", (algorithm,)))


@dataclass(frozen=True, eq=False)
class Noise:
    """z of some paths; the path axis first, then the step.

    Args:
        rows: (path, step, row) positions of support rows, or None.
        real: (path, step, row) which of them count, where a task has fewer; None: all.
        keep: per dropout layer (path, step, ...) True where a unit stays.
        normals: (path, step, dim) standard normals, or None.
    """

    rows: Tensor | None = None
    real: Tensor | None = None
    keep: dict[str, Tensor] = field(default_factory=dict)
    normals: Tensor | None = None

    def __getitem__(self, index: Tensor) -> Noise:
        """The noise of some of the paths."""
        return Noise(
            None if self.rows is None else self.rows[index],
            None if self.real is None else self.real[index],
            {name: keep[index] for name, keep in self.keep.items()},
            None if self.normals is None else self.normals[index],
        )

    def during(self, problem: InnerProblem, step: int | Tensor) -> InnerProblem:
        """The problem that a step sees; beyond the last step, what the last one saw.

        Args:
            problem: of all rows.
            step: number of the step, or (path,) one for each path.
        """
        batch, scale = problem.batch, problem.scale
        if self.rows is not None:
            rows = _during(self.rows, step)
            real = torch.ones_like(rows, dtype=torch.bool)
            real = real if self.real is None else _during(self.real, step)
            mask = batch.mask
            assert mask is not None
            whole = mask.sum(1).to(problem.start)
            batch = taken(batch, rows, real)
            scale = whole / real.sum(1)
        if self.keep:
            units = {name: _during(keep, step) for name, keep in self.keep.items()}
            tensors = batch.tensors | keeping(problem.model, units, problem.start)
            batch = replace(batch, tensors=tensors)
        normals = None if self.normals is None else _during(self.normals, step)
        return replace(problem, batch=batch, scale=scale, normals=normals, noise=None)


def _during(noise: Tensor, step: int | Tensor) -> Tensor:
    """(path, ...) of (path, step, ...)."""
    last = noise.shape[1] - 1
    if isinstance(step, int):
        return noise[:, min(step, last)]
    return noise[torch.arange(len(noise), device=noise.device), step.clamp(max=last)]


def draw_noise(
    algorithm: Any, model: Model, support: TaskBatch, like: Tensor, generator: torch.Generator
) -> Noise:
    """z of one path for each task of a batch, independent of each other.

    Args:
        algorithm: whose noise.
        model: with the dropout layers, if any.
        support: one task per path.
        like: (path, dim), for dtype and device.
        generator: the randomness; its device is where it is drawn.

    Raises:
        InputError: minibatches of tasks without rows.
    """
    steps, paths = max(algorithm.steps, 1), len(support)
    rows = real = normals = None
    if getattr(algorithm, "rows", None) is not None:
        rows, real = _minibatches(algorithm, support, steps, generator)
    keep = {}
    if getattr(algorithm, "dropout", False):
        width = None if rows is None else rows.shape[2]
        for name, (shape, chance) in dropped_shapes(model, support, width).items():
            keep[name] = (_uniform((paths, steps, *shape), generator) >= chance).to(like.device)
    if getattr(algorithm, "normals", False):
        normals = torch.randn(
            (paths, steps, like.shape[-1]),
            generator=generator,
            dtype=like.dtype,
            device=generator.device,
        ).to(like.device)
    return Noise(rows, real, keep, normals)


def _uniform(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Numbers in [0, 1), the same for every default dtype."""
    return torch.rand(shape, generator=generator, device=generator.device, dtype=torch.double)


def _minibatches(
    algorithm: Any, support: TaskBatch, steps: int, generator: torch.Generator
) -> tuple[Tensor, Tensor | None]:
    """(path, step, row) positions, and which of them count."""
    mask, size = support.mask, algorithm.rows
    if mask is None:
        raise InputError(
            f"rows={size} draws minibatches, and these tasks have no row axis: give mask= to the "
            "family and to the energy, or leave rows= out"
        )
    device, width = generator.device, mask.shape[1]
    count = mask.sum(1).to(device)
    # Real rows first, in their own order.
    place = torch.sort(~mask.to(device), dim=1, stable=True).indices
    if getattr(algorithm, "replacement", False):
        uniform = _uniform((len(mask), steps, size), generator)
        drawn = (uniform * count[:, None, None]).long()
        return place.gather(1, drawn.flatten(1)).reshape(drawn.shape).to(mask.device), None
    size = min(size, width)
    whole = count <= size
    passes = -(-steps * size // int(torch.where(whole, width, count).min()))
    uniform = _uniform((len(mask), passes, width), generator)
    beyond = torch.arange(width, device=device) >= count[:, None]
    order = uniform.masked_fill(beyond[:, None], 2.0).argsort(-1)
    position = torch.arange(steps * size, device=device).expand(len(mask), -1)
    # The stream of one permutation after another, cut into equal minibatches.
    lap = position // count[:, None] * width + position % count[:, None]
    drawn = order.flatten(1).gather(1, lap.clamp(max=passes * width - 1))
    own = (position % size).clamp(max=width - 1)
    drawn = torch.where(whole[:, None], own, drawn)
    real = ~whole[:, None] | (own < count[:, None])
    rows = place.gather(1, drawn).reshape(len(mask), steps, size)
    return rows.to(mask.device), real.reshape(rows.shape).to(mask.device)
