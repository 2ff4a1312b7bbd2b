"""Functions of a symmetric matrix that treat its leading eigenvalues apart, with a safe derivative.

Differentiating an eigendecomposition divides by differences of eigenvalues, also of those whose
order does not matter, and padding makes equal ones. The function itself does not: by Daleckii and
Krein (1965) its derivative has divided differences of the function in their place.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

NEAR = 1e-4


def leading(
    matrix: Tensor,
    rank: int,
    function: Callable[[Tensor], Tensor],
    derivative: Callable[[Tensor], Tensor],
    rest: float,
) -> Tensor:
    """V diag(φ(s)) Vᵀ of A = V diag(s) Vᵀ, φ the function of the `rank` largest s, else `rest`.

    Differentiable once, wherever the last s that counts is larger than the first that does not.

    Args:
        matrix: (..., k, k) A.
        rank: how many eigenvalues count.
        function, derivative: of one eigenvalue.
        rest: φ of the others.

    Example:
        >>> a = torch.diag(torch.tensor([3.0, 1.0, 0.0]))
        >>> leading(a, 1, lambda s: s + 1, torch.ones_like, 0.0).diagonal().tolist()
        [4.0, 0.0, 0.0]
    """
    held = matrix.detach()
    values, vectors = torch.linalg.eigh(held)
    counts = torch.arange(values.shape[-1], device=values.device) >= values.shape[-1] - rank
    mapped = torch.where(counts, function(values), torch.full_like(values, rest))
    low, high = values.unsqueeze(-1), values.unsqueeze(-2)
    gap = low - high
    close = gap.abs() <= NEAR * (1 + low.abs())
    divided = (mapped.unsqueeze(-1) - mapped.unsqueeze(-2)) / torch.where(close, 1.0, gap)
    both = counts.unsqueeze(-1) & counts.unsqueeze(-2)
    slope = torch.where(close, torch.where(both, derivative(0.5 * (low + high)), 0.0), divided)
    change = vectors.mT @ (matrix - held) @ vectors
    return vectors @ (torch.diag_embed(mapped) + slope * change) @ vectors.mT
