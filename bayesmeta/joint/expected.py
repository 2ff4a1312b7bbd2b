"""M at the best full Gaussian Q_i of every task: minus the evidence lower bound."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from bayesmeta.expectation import LinearExpectation, NodeExpectation
from bayesmeta.gaussian import Gaussian, triangular
from bayesmeta.inner.expected_newton import State, solve
from bayesmeta.results import Result

TOLERANCE = 1e-8
Shared = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Bound:
    """E_{Q_i} f_i + KL(Q_i ‖ prior); at the solved Q_i its gradient is the partial one.

    Args:
        expectation: of the loss.
    """

    expectation: LinearExpectation | NodeExpectation

    def begin(self, tasks: int, root: Tensor) -> State:
        """Q_i = N(θ₀, Σ₀) for every task."""
        return State.at_prior(tasks, root)

    def solve(self, location: Tensor, shared: Shared, root: Tensor, state: State) -> State:
        """The best Q_i, from those of the last call."""
        place, shared = self._split(location, shared)
        return solve(self.expectation, place, shared, root, state, tolerance=TOLERANCE)

    def value(self, location: Tensor, shared: Shared, root: Tensor, state: State) -> Tensor:
        """(task,) M_i in nats."""
        place, shared = self._split(location, shared)
        loss = self.expectation.value(place, shared, state.deviation(root))
        return loss + state.divergence()

    def pooled(self, location: Tensor, shared: Shared) -> Tensor:
        """() M with every task at θ₀."""
        place, shared = self._split(location, shared)
        model, batch = self.expectation.model, self.expectation.batch
        nothing = Gaussian(location.new_zeros(len(batch), model.dim))
        return self.expectation.value(place, shared, nothing).sum()

    def posterior(self, location: Tensor, shared: Shared, root: Tensor, state: State) -> Gaussian:
        """Q_i."""
        deviation = state.deviation(root)
        assert deviation.factor is not None
        mean = location[: len(root)] + deviation.mean
        return Gaussian(mean, None, triangular(deviation.factor))

    def results(self, location: Tensor, shared: Shared, root: Tensor, state: State) -> list[Result]:
        """How each task ended."""
        return state.results(TOLERANCE * 100)

    def _split(self, location: Tensor, shared: Shared) -> tuple[Tensor, Shared]:
        """What the expectation takes: only the linear predictor's knows the module's ψ by place."""
        if isinstance(self.expectation, LinearExpectation):
            return location, shared
        model = self.expectation.model
        return location[: model.dim], shared | model.split_shared(location[model.dim :])
