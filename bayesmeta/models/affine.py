"""Whether a prediction is affine in its weights, found by trying it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bayesmeta.tasks import TaskBatch, TaskFamily

if TYPE_CHECKING:
    from bayesmeta.models.model import Model

SCALES = (1.0, 1e3, 1e6, 1e9)
TOGETHER = 4096
"""Tasks that are tried together: four predictions of all at once are more than the data."""


def is_affine(model: Model, family: TaskFamily, *, jointly: bool = False) -> bool:
    """Whether a prediction is affine in θ (or in θ and ψ jointly), tried on every task.

    Compares the prediction at a random combination of random points with the same combination of
    predictions, which are equal for an affine function and for no other; near and far from 0,
    because features in small units make a network look linear at small θ.

    Args:
        model: with a likelihood of single numbers, or the answer is no.
        family: the tasks.
        jointly: whether ψ moves too.
    """
    if model.likelihood is None or model.likelihood.name == "categorical":
        return False
    batch = family.batch()
    generator = torch.Generator().manual_seed(0)
    present = torch.cat(
        [model.start, *[w.detach().flatten() for w in model.shared_weights.values()]]
    )
    points = torch.randn(2, model.flat_dim, generator=generator, dtype=present.dtype)
    base = torch.zeros_like(present) if jointly else present.clone()
    base[: model.dim] = 0
    moves = points.to(present.device) * (1.0 if jointly else torch.arange(len(base)) < model.dim)
    vectors = torch.stack([base, base + moves[0], base + moves[1], base + moves[0] - 2 * moves[1]])
    places = torch.arange(len(batch), device=batch.index.device).split(TOGETHER)
    parts = (batch if len(places) == 1 else batch[some] for some in places)
    return all(
        _combines(model, base + s * (vectors - base), part) for part in parts for s in SCALES
    )


def _combines(model: Model, vectors: Tensor, batch: TaskBatch) -> bool:
    """Whether the prediction at the fourth vector follows from those at the first three."""
    with torch.no_grad():
        zero, one, two, both = model.over_tasks(
            lambda v, tensors, mask: model.flat_prediction(v, tensors),
            vectors[:, None].expand(-1, len(batch), -1),
            batch,
        )
    expected = zero + (one - zero) - 2 * (two - zero)
    size = max(float(v.abs().max()) for v in (zero, one, two, both)) + 1e-300
    error = float((both - expected).abs().max())
    return error <= 100 * torch.finfo(vectors.dtype).eps * size
