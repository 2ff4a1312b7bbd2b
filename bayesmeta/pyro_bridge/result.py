"""Draws of a Markov chain, and whether they can be used."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bayesmeta.pyro_bridge.mixing import effective_size, split_rhat

LARGEST_RHAT = 1.01
FEWEST_EFFECTIVE = 100  # per chain


@dataclass(frozen=True, eq=False)
class NutsResult:
    """Posterior draws by NUTS. All draws of one chain come before those of the next.

    Args:
        names: of the coordinates.
        tasks: names of the tasks.
        draws: (draw, task, dim) of θ_i, in the units of the model's θ.
        chains: how many chains the draws come from.
        divergences: draws (after warm-up) whose trajectory diverged.
        seconds: wall-clock time.
        theta0: (draw, dim) of θ₀, for the whole hierarchy; otherwise None, as are the next two.
        prior_sd: (draw, dim) square roots of the diagonal of Σ₀.
        correlation: (draw, dim, dim) of Σ₀.
        shared: draws of ψ by parameter name, (draw, *shape), in the model's own (unconstrained)
            form; empty when ψ is held.
        constants: draws of the likelihood's learned constants in the units of the data, e.g.
            {"scale": (draw,)}.
        hyperpriors: what the hierarchy took for them, in sentences.
    """

    names: tuple[str, ...]
    tasks: tuple[str, ...]
    draws: Tensor
    chains: int
    divergences: int
    seconds: float
    theta0: Tensor | None = None
    prior_sd: Tensor | None = None
    correlation: Tensor | None = None
    shared: dict[str, Tensor] = field(default_factory=dict)
    constants: dict[str, Tensor] = field(default_factory=dict)
    hyperpriors: tuple[str, ...] = ()

    @property
    def mean(self) -> Tensor:
        """(task, dim) posterior means."""
        return self.draws.mean(0)

    @property
    def sd(self) -> Tensor:
        """(task, dim) posterior standard deviations."""
        return self.draws.std(0)

    @property
    def rhat(self) -> Tensor:
        """(task, dim) split-R̂."""
        return self.rhat_of(self.draws)

    @property
    def ess(self) -> Tensor:
        """(task, dim) effective sample size for the mean."""
        return self.ess_of(self.draws)

    @property
    def mcse(self) -> Tensor:
        """(task, dim) Monte Carlo standard error of the mean."""
        return self.sd / self.ess.sqrt()

    @property
    def noise(self) -> Tensor | None:
        """(draw,) noise sd of a Gaussian or Student-t likelihood that learns it."""
        return self.constants.get("scale")

    def rhat_of(self, draws: Tensor) -> Tensor:
        """Split-R̂ of any (draw, ...) made from these draws; 1 where nothing moves."""
        return split_rhat(self._by_chain(draws))

    def ess_of(self, draws: Tensor) -> Tensor:
        """Effective sample size of any (draw, ...); the number of draws where nothing moves."""
        return effective_size(self._by_chain(draws))

    def problems(self) -> list[str]:
        """What forbids using these draws as a reference, each with what to try; [] if nothing."""
        found = []
        if self.divergences:
            found.append(
                f"{self.divergences} of {len(self.draws)} trajectories diverged: raise "
                "target_accept=, or try centred=True in a hierarchy with many rows per task"
            )
        rhat = torch.cat([self.rhat_of(v).flatten() for v in self._varying()]).max().item()
        if not rhat <= LARGEST_RHAT:
            found.append(f"split-R̂ reaches {rhat:.3f}, above {LARGEST_RHAT}: raise warmup=, draws=")
        ess = torch.cat([self.ess_of(v).flatten() for v in self._varying()]).min().item()
        if not ess >= FEWEST_EFFECTIVE * self.chains:
            found.append(
                f"the effective sample size falls to {ess:.0f}, under {FEWEST_EFFECTIVE} per "
                "chain: raise draws="
            )
        return found

    def _varying(self) -> Iterator[Tensor]:
        yield self.draws
        yield from (v for v in (self.theta0, self.prior_sd, self.correlation) if v is not None)
        yield from self.shared.values()

    def _by_chain(self, draws: Tensor) -> Tensor:
        return draws.reshape(self.chains, -1, *draws.shape[1:])
