"""Draws × tasks as one batch of paths, grouped by the algorithm that runs them.

Path number k·T + i is draw k of task i, of T tasks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bayesmeta.inner.loop import Algorithm
from bayesmeta.inner.mixture import Mixture
from bayesmeta.inner.noise import Noise, draw_noise
from bayesmeta.models import Model
from bayesmeta.tasks import TaskBatch


@dataclass(frozen=True, eq=False)
class Group:
    """The paths that one algorithm runs.

    Args:
        algorithm: it.
        paths: (path,) their numbers.
        tasks: (path,) the positions of their tasks in the batch.
        noise: z.
    """

    algorithm: Algorithm
    paths: Tensor
    tasks: Tensor
    noise: Noise

    def support(self, batch: TaskBatch) -> TaskBatch:
        """The support set of every path."""
        return batch[self.tasks]

    def where(self, chosen: Tensor) -> Group:
        """Some of the paths; `chosen` (path,) positions in this group."""
        noise = self.noise[chosen]
        return Group(self.algorithm, self.paths[chosen], self.tasks[chosen], noise)


@dataclass(frozen=True, eq=False)
class Paths:
    """z of `draws` runs on every task of a batch.

    Args:
        draws: per task.
        groups: which together hold every path once.
    """

    draws: int
    groups: tuple[Group, ...]

    def parted(self, first: int) -> tuple[tuple[Group, ...], tuple[Group, ...]]:
        """The groups of the first so many draws, and those of the others."""
        if first == 0:
            return (), self.groups
        tasks = sum(len(g.paths) for g in self.groups) // self.draws
        halves: tuple[list[Group], list[Group]] = ([], [])
        for group in self.groups:
            early = group.paths < first * tasks
            for half, chosen in zip(halves, (early, ~early), strict=True):
                index = chosen.nonzero().flatten()
                if len(index):
                    half.append(group.where(index))
        return tuple(halves[0]), tuple(halves[1])

    def part(self, which: Tensor, tasks: int) -> Paths:
        """The paths of some tasks of the batch, numbered as a batch of those tasks alone.

        Args:
            which: (chosen,) positions of the tasks.
            tasks: in the batch.
        """
        groups = []
        for group in self.groups:
            place = torch.full((tasks,), -1, device=group.tasks.device)
            place[which] = torch.arange(len(which), device=place.device)
            kept = group.where((place[group.tasks] >= 0).nonzero().flatten())
            if len(kept.paths):
                own = place[kept.tasks]
                paths = (kept.paths // tasks) * len(which) + own
                groups.append(replace(kept, paths=paths, tasks=own))
        return Paths(self.draws, tuple(groups))


def draw_paths(
    algorithm: Any,
    model: Model,
    support: TaskBatch,
    like: Tensor,
    draws: int,
    generator: torch.Generator,
) -> Paths:
    """z of `draws` paths for every task, independent across draws and tasks.

    Args:
        algorithm: one, or a `Mixture` of which every path draws one.
        model: with its dropout layers, if any.
        support: the tasks.
        like: (dim,), for dtype and device.
        draws: per task.
        generator: the randomness.
    """
    count = draws * len(support)
    device = generator.device
    everyone = torch.arange(count, device=device)
    parts: list[tuple[Any, Tensor]] = [(algorithm, everyone)]
    if isinstance(algorithm, Mixture):
        weights = algorithm.weights or (1.0,) * len(algorithm.algorithms)
        chances = torch.tensor(weights, dtype=torch.double, device=device)
        choice = torch.multinomial(chances, count, replacement=True, generator=generator)
        chosen = [(part, (choice == i).nonzero()) for i, part in enumerate(algorithm.algorithms)]
        parts = [(part, found.flatten()) for part, found in chosen if len(found)]
    groups = []
    for part, paths in parts:
        tasks = (paths % len(support)).to(support.index.device)
        batch = support[tasks]
        noise = draw_noise(part, model, batch, like.expand(len(paths), -1), generator)
        groups.append(Group(part, paths.to(tasks.device), tasks, noise))
    return Paths(draws, tuple(groups))
