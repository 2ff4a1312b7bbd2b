"""Many independent estimates of ∂M/∂θ₀ at a time: copies of the family as so many more tasks."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bayesmeta.amortised.meta_gradient import prepared
from bayesmeta.amortised.step import MetaStep
from bayesmeta.diagnostics.noisy_means import Sample
from bayesmeta.gradients.pathwise import SeparatePaths, Unrolled
from bayesmeta.inner.loop import CODE
from bayesmeta.inner.paths import repeated
from bayesmeta.method import Method
from bayesmeta.models import Model
from bayesmeta.models.matching import paired
from bayesmeta.objective import Evidence
from bayesmeta.prior import Prior
from bayesmeta.results import InputError, Result
from bayesmeta.tasks import TaskFamily

LARGEST_BATCH = 2e7  # numbers in the steps of all paths of a batch
ESTIMATES = 200  # into which a reference's paths are gathered for E_z g(θ_z)
GROUPS = 20  # and for g(E_z θ_z), where larger groups are less biased


@dataclass(frozen=True, eq=False)
class Runs:
    """Estimates of one method: as a sample, the share broken, and seconds for each."""

    sample: Sample
    broken: float
    seconds: float


@dataclass(frozen=True, eq=False)
class Bench:
    """The problem that all methods differentiate.

    Args:
        model, prior: θ₀ and f.
        support, query: S_i and V_i.
        batch: estimates at a time, or None.
    """

    model: Model
    prior: Prior
    support: TaskFamily
    query: TaskFamily
    batch: int | None

    def run(self, method: Method, repeats: int, generator: torch.Generator) -> Runs:
        """Independent estimates of ∂M/∂θ₀, copies of the family as so many more tasks."""
        model = prepared(self.model, self.support, method)
        free = {k: v.detach().to(model.start) for k, v in self.prior.free.items()}
        if len(free["mean"]) != model.dim:
            raise InputError(f"the prior has {len(free['mean'])} weights, the model {model.dim}")
        shared = {k: v.detach() for k, v in model.shared.items()}
        step, tasks = MetaStep(model, self.prior, method, self.support), len(self.support)
        query = paired(self.query, self.support, model).batch()

        def estimates(count: int, noise: torch.Generator) -> tuple[Tensor, Tensor]:
            copies = torch.arange(tasks, device=self.support.device).repeat(count)
            both = repeated(self.support.batch(), copies), repeated(query, copies)
            params = step.params(free, shared, len(copies))
            outcome = step(params, *both, step.noise(both[0], free["mean"], noise))
            broken = (outcome.adapted.result == CODE[Result.nonfinite]).reshape(count, tasks)
            gradient = outcome.gradients["anchor"]["mean"].reshape(count, tasks, -1)
            return gradient.sum(1).cpu(), broken.any(1).cpu()

        estimates(1, torch.Generator(generator.device).manual_seed(0))
        size = self.batch or max(1, int(LARGEST_BATCH / tasks / _numbers(method, model.dim)))
        sizes, start = (
            [min(size, repeats - i) for i in range(0, repeats, size)],
            time.perf_counter(),
        )
        found = [estimates(count, generator) for count in sizes]
        seconds = (time.perf_counter() - start) / repeats
        gradients, broken = (torch.cat(parts) for parts in zip(*found, strict=True))
        if not is_noisy(method):  # batched sums may still differ in their rounding
            return Runs(Sample.exact(gradients[0]), float(broken[0]), seconds)
        return Runs(Sample.of(gradients), float(broken.double().mean()), seconds)

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
        return self.run(whole, repeats, generator).sample


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
