"""How many tasks it takes for the test of ranks to find an sd that is too small."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Normal

from bayesmeta.diagnostics import rank_uniformity
from studies.calibration.measure import BINS, Row, binomial_error
from studies.calibration.problem import EXACT, F64, PLANTED, TOO_NARROW

STRICT = 0.01
"""Ranks with a smaller p-value are called not uniform."""
AT_ONCE = 50


@dataclass(frozen=True)
class Size:
    """How much is computed.

    Args:
        tasks: in a set.
        sets: of each size.
        draws: of every posterior.
    """

    tasks: tuple[int, ...] = (100, 300, 1000, 3000)
    sets: int = 1000
    draws: int = 399


def power(size: Size) -> Iterator[Row]:
    """Rows of part "power": the share of sets that the test calls not uniform."""
    generator = torch.Generator().manual_seed(0)
    for tasks in size.tasks:
        for form, share in ((EXACT, 1.0), (PLANTED, TOO_NARROW)):
            p = p_values(tasks, size.sets, share, size.draws, generator)
            found = float((p < STRICT).double().mean())
            yield {
                "part": "power",
                "form": form,
                "tasks": tasks,
                "sets": size.sets,
                "detected": found,
                "detected_se": binomial_error(found, size.sets),
            }


def p_values(tasks: int, sets: int, share: float, draws: int, generator: torch.Generator) -> Tensor:
    """(set,) of normal posteriors whose sd is this share of the right one.

    Of L draws, each lies below the truth with probability Φ(z / share), z ~ N(0, 1).
    """
    found = []
    for first in range(0, sets, AT_ONCE):
        number = min(AT_ONCE, sets - first)
        z = torch.randn(tasks, number, generator=generator, dtype=F64)
        below = Normal(0.0, 1.0).cdf(z / share)
        ranks = torch.binomial(torch.full_like(z, draws), below, generator=generator).long()
        found.append(rank_uniformity(ranks, draws, bins=BINS))
    return torch.cat(found)
