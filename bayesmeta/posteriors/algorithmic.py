"""Algorithmic Q_i: what an algorithm started at θ₀ returns.

For a deterministic algorithm the law of its result is a point.
"""

from __future__ import annotations

from dataclasses import dataclass

from bayesmeta.forms import Form


@dataclass(frozen=True)
class Algorithmic:
    """Q_i = the point Alg(f_i, θ₀); the prior enters through the start alone."""

    @property
    def form(self) -> Form:
        return Form("point")
