"""Direct: ∂M with every θ* held fixed (of a Gaussian Q_i the mean; its covariance moves).

At a Q_i where ∂M/∂Q_i = 0 the total derivative of M in (θ₀, Σ₀, ψ) is the partial one, by the
envelope theorem; while everything descends together it is the partial derivative by definition.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from bayesmeta.gradients.rule import Build, Params, Pullback, Rule, Solved, nothing
from bayesmeta.inner.loop import Adapted, Algorithm, adapt


@dataclass(frozen=True)
class Direct(Rule):
    """Differentiate M in (θ₀, Σ₀, ψ) with every θ* held."""

    def adapt(self, build: Build, params: Params, algorithm: Algorithm) -> tuple[Adapted, Pullback]:
        def pull(cotangent: Tensor, start: Tensor | None = None) -> tuple[Params, Solved]:
            return nothing(params), Solved.none(cotangent)

        return adapt(build(params), algorithm), pull
