"""A distribution over algorithms: z holds the choice of the optimiser itself."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields, is_dataclass, replace
from itertools import product
from typing import Any

from torch import Tensor

from bayesmeta.inner.loop import Algorithm, check_limits
from bayesmeta.inner.problem import InnerProblem
from bayesmeta.results import InputError


@dataclass(frozen=True)
class Mixture:
    """Every path draws its algorithm: z₀ ~ weights, then the algorithm's own noise.

    Args:
        algorithms: to draw from, each with its own steps, step size and minibatches.
        weights: their probabilities; None: all alike.

    Raises:
        InputError: none, or nested mixtures, or weights that are no probabilities.

    Example:
        >>> from bayesmeta.inner.first_order import Adam, GradientDescent
        >>> mixture = Mixture.over(GradientDescent(), lr=(0.01, 0.1), rows=(2, 5, None))
        >>> len(mixture.algorithms), Mixture((Adam(), *mixture.algorithms)).steps
        (6, 5)
    """

    algorithms: tuple[Algorithm, ...]
    weights: tuple[float, ...] | None = None
    tolerance = 0.0
    differentiable = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "algorithms", tuple(self.algorithms))
        if not self.algorithms or any(isinstance(a, Mixture) for a in self.algorithms):
            raise InputError("a Mixture needs one algorithm or more, none of them a Mixture")
        for algorithm in self.algorithms:
            if not hasattr(algorithm, "step"):
                raise InputError(
                    f"{algorithm!r} is no algorithm: give objects, such as bm.methods.Adam(0.01)"
                )
            if getattr(algorithm, "learn_lr", False):
                raise InputError(
                    "learned step sizes belong to one algorithm: use no Mixture, or learn_lr=False"
                )
            check_limits(algorithm)
            if not algorithm.differentiable or algorithm.tolerance > 0:
                raise InputError(
                    f"{algorithm!r} cannot be part of a Mixture: use algorithms that take a fixed "
                    "number of steps, without line search, restart or tolerance="
                )
        if self.weights is None:
            return
        object.__setattr__(self, "weights", tuple(float(w) for w in self.weights))
        short = len(self.weights) != len(self.algorithms)
        if short or min(self.weights) < 0 or not math.isclose(sum(self.weights), 1.0):
            raise InputError(
                f"weights={self.weights} of {len(self.algorithms)} algorithms: give one "
                "probability each, which sum to 1"
            )

    @classmethod
    def over(cls, algorithm: Any, **values: Iterable[Any]) -> Mixture:
        """All combinations of some of an algorithm's numbers, each equally likely.

        Args:
            algorithm: with the numbers that do not vary.
            **values: for each field that varies, the values it takes.

        Raises:
            InputError: the algorithm has no such field.
        """
        if isinstance(algorithm, type) or not is_dataclass(algorithm):
            raise InputError(
                "Mixture.over takes a dataclass object, such as GradientDescent(), not "
                f"{algorithm!r}"
            )
        single = [k for k, v in values.items() if isinstance(v, str) or not isinstance(v, Iterable)]
        if single:
            raise InputError(
                f"{single[0]}={values[single[0]]!r}: give the values it takes, a tuple"
            )
        known = {f.name for f in fields(algorithm)}
        unknown = [name for name in values if name not in known]
        if unknown:
            has = ", ".join(sorted(known))
            raise InputError(f"{type(algorithm).__name__} has no {unknown[0]!r}; it has {has}")
        combinations = product(*(tuple(v) for v in values.values()))
        varied: Any = algorithm
        return cls(
            tuple(replace(varied, **dict(zip(values, c, strict=True))) for c in combinations)
        )

    @property
    def steps(self) -> int:
        """Of the longest."""
        return max(algorithm.steps for algorithm in self.algorithms)

    def init(self, problem: InnerProblem, theta: Tensor) -> Any:
        raise NotImplementedError("a Mixture's paths are run by the algorithms they drew")

    def step(self, problem: InnerProblem, theta: Tensor, gradient: Tensor, state: Any) -> Any:
        raise NotImplementedError("a Mixture's paths are run by the algorithms they drew")
