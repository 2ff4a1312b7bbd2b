"""Many independent estimates of ∂M/∂θ₀ at a time: copies of the family as so many more tasks."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bayesmeta.amortised.meta_gradient import prepared
from bayesmeta.amortised.step import MetaStep
from bayesmeta.diagnostics.noisy_means import Sample
from bayesmeta.gradients.pathwise import SeparatePaths, Unrolled
from bayesmeta.inner.loop import CODE
from bayesmeta.method import Method
from bayesmeta.models import Model
from bayesmeta.models.matching import paired
from bayesmeta.objective import Evidence
from bayesmeta.prior import Prior
from bayesmeta.results import InputError, Result
from bayesmeta.tasks import TaskFamily

LARGEST_BATCH = 2e7  # numbers in the steps of all paths of a batch
ESTIMATES = 200  # into which a reference's paths are gathered for E_z g(θ_z)
ROUNDS = 5  # batches at least, for the median of their times
GROUPS = 20  # and for g(E_z θ_z), where larger groups are less biased
Seeded = Callable[[], torch.Generator]


@dataclass(frozen=True, eq=False)
class Runs:
    """Estimates of one method: as a sample, the share broken, and seconds for each."""

    sample: Sample
    broken: float
    seconds: float


class Runner:
    """Makes the estimates of one method, a batch at a time.

    Args:
        bench: the problem.
        method: how ∂M/∂θ₀ is estimated.
        repeats: estimates in all.
        generator: their noise.
    """

    def __init__(
        self, bench: Bench, method: Method, repeats: int, generator: torch.Generator
    ) -> None:
        self.generator, self.left = generator, repeats
        self.noisy = is_noisy(method)
        self.model = prepared(bench.model, bench.support, method)
        self.step = MetaStep(self.model, bench.prior, method, bench.support)
        self.free = {k: v.detach().to(self.model.start) for k, v in bench.prior.free.items()}
        if len(self.free["mean"]) != self.model.dim:
            raise InputError(
                f"the prior has {len(self.free['mean'])} weights, the model {self.model.dim}"
            )
        self.shared = {k: v.detach() for k, v in self.model.shared.items()}
        self.support = bench.support.batch()
        self.query = paired(bench.query, bench.support, self.model).batch()
        most = int(LARGEST_BATCH / len(self.support) / _numbers(method, self.model.dim))
        self.size = bench.batch or max(1, min(most, -(-repeats // ROUNDS)))
        self.parts: list[tuple[Tensor, Tensor]] = []
        self.seconds: list[float] = []
        # The first call of anything is slow.
        self._estimates(1, torch.Generator(generator.device).manual_seed(0))

    def advance(self) -> None:
        """One batch more."""
        count = min(self.size, self.left)
        start = time.perf_counter()
        self.parts.append(self._estimates(count, self.generator))
        self.seconds.append((time.perf_counter() - start) / count)
        self.left -= count

    def runs(self) -> Runs:
        """What was found."""
        gradients, broken = (torch.cat(parts) for parts in zip(*self.parts, strict=True))
        # Without noise the copies of a batch may still differ in their rounding.
        sample = Sample.of(gradients) if self.noisy else Sample.exact(gradients[0])
        return Runs(sample, float(broken.double().mean()), statistics.median(self.seconds))

    def _estimates(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(estimate, dim) and (estimate,) whether a path broke; waits for the device."""
        tasks = len(self.support)
        copies = torch.arange(tasks, device=self.support.index.device).repeat(count)
        both = self.support[copies], self.query[copies]
        params = self.step.params(self.free, self.shared, len(copies))
        noise = self.step.noise(both[0], self.free["mean"], generator)
        outcome = self.step(params, *both, noise)
        broken = (outcome.adapted.result == CODE[Result.nonfinite]).reshape(count, tasks)
        gradient = outcome.gradients["anchor"]["mean"].reshape(count, tasks, -1)
        return gradient.sum(1).cpu(), broken.any(1).cpu()


@dataclass(frozen=True, eq=False)
class Bench:
    """The problem that all methods differentiate.

    Args:
        model, prior: f, θ₀ and Σ₀.
        support, query: S_i and V_i.
        batch: estimates at a time, or None.
    """

    model: Model
    prior: Prior
    support: TaskFamily
    query: TaskFamily
    batch: int | None

    def run(self, methods: Mapping[str, Method], repeats: int, seeded: Seeded) -> dict[str, Runs]:
        """Independent estimates by each method, which take turns: a busy minute slows them all."""
        runners = {n: Runner(self, m, repeats, seeded()) for n, m in methods.items()}
        while any(runner.left for runner in runners.values()):
            for runner in runners.values():
                if runner.left:
                    runner.advance()
        return {name: runner.runs() for name, runner in runners.items()}

    def reference(self, method: Method, paths: int, generator: torch.Generator) -> Sample:
        """The gradient that a method's estimates are to have on average, by many paths per task."""
        if method.at == "draws":
            rule, draws = Unrolled(), max(1, paths // ESTIMATES)
            repeats = max(2, paths // draws)
        else:
            largest = int(LARGEST_BATCH / len(self.support) / _numbers(method, self.model.dim, 1))
            group = max(2, min(paths // GROUPS, largest))
            rule = SeparatePaths(group // 2, group - group // 2, every_pair=True)
            draws, repeats = 1, max(2, paths // group)
        try:
            whole = replace(method, gradient=rule, draws=draws)
        except InputError as error:
            raise InputError(
                f"no reference can be computed, so give reference=: {error}"
            ) from error
        runs = self.run({"": whole}, repeats, lambda: generator)[""]
        if runs.broken == 1:
            raise InputError(
                "every path of the reference broke (met a value that is not finite): lower lr= of "
                "the methods, or give reference="
            )
        return runs.sample


def _numbers(method: Method, dim: int, paths: int | None = None) -> int:
    """Held by the steps of one task's paths; their minibatches and predictions come on top."""
    assert method.inner is not None
    if paths is None:
        paths = method.gradient.draws(method.draws) if method.stochastic else 1
    return paths * dim * (method.inner.steps + 1)


def is_noisy(method: Method) -> bool:
    """Whether two estimates differ: by paths, or by draws of a Gaussian Q_i."""
    gaussian = method.posterior.form.name != "point"
    return method.stochastic or (gaussian and not isinstance(method.objective, Evidence))
