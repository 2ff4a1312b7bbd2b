"""The two families, standardised, each seed with its own tasks to train on and to test on."""

from __future__ import annotations

import torch
from torch import Tensor

import bayesmeta as bm
from studies._sets import frame
from studies.any_optimiser.settings import SUPPORT, Size

ROWS = 12
NOISE = 0.3
CHICKS = 30
Tasks = tuple[bm.TaskFamily, bm.TaskFamily, bm.TaskFamily]


def sinusoids(seed: int, size: Size) -> Tasks:
    """To train on; support and query rows of unseen ones."""
    train, unseen = _sinusoids(size.train, 2 * seed), _sinusoids(size.sinusoids, 2 * seed + 1)
    return _split(*_standardised(train, unseen), seed)


def chicks(seed: int, size: Size) -> Tasks:
    """The same of chicks that were weighed at all twelve times, parted at random."""
    table = frame("chickweight").sort_values(["Chick", "Time"])
    whole = table.groupby("Chick").filter(lambda chick: len(chick) == ROWS)
    both = (torch.tensor(whole[name].to_numpy()).reshape(-1, ROWS) for name in ("Time", "weight"))
    x, y = (tensor.to(torch.float32) for tensor in both)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    train, unseen = ((x[part, :, None], y[part]) for part in (order[:CHICKS], order[CHICKS:]))
    again = tuple(tensor.repeat(size.splits, *(1,) * (tensor.ndim - 1)) for tensor in unseen)
    return _split(*_standardised(train, again), seed)


FAMILIES = {"sinusoids": sinusoids, "chicks": chicks}


def _sinusoids(count: int, seed: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    family, _ = bm.families.sinusoid(tasks=count, rows=ROWS, noise=NOISE, generator=generator)
    tensors = family.to(dtype=torch.float32).tensors
    return tensors["x"], tensors["y"]


def _standardised(
    train: tuple[Tensor, ...], unseen: tuple[Tensor, ...]
) -> tuple[bm.TaskFamily, bm.TaskFamily]:
    """Both families in units of the training tasks' sd, around their mean."""
    centres, scales = [t.mean() for t in train], [t.std() for t in train]
    scaled = [
        {
            name: (tensor - centre) / scale
            for name, tensor, centre, scale in zip("xy", part, centres, scales, strict=True)
        }
        for part in (train, unseen)
    ]
    new = [f"new {i}" for i in range(len(unseen[0]))]
    return bm.TaskFamily(scaled[0]), bm.TaskFamily(scaled[1], names=new)


def _split(train: bm.TaskFamily, unseen: bm.TaskFamily, seed: int) -> Tasks:
    return train, *unseen.split(SUPPORT, torch.Generator().manual_seed(seed))
