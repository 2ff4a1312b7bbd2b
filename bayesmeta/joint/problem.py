"""What every solver of the joint fit receives, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from bayesmeta.empirical import Empirical
from bayesmeta.failures import Failures
from bayesmeta.forms import Form
from bayesmeta.gaussian import Gaussian, triangular
from bayesmeta.identity import digest, of_model
from bayesmeta.method import Method
from bayesmeta.models import Model
from bayesmeta.outer import Callback, Trace
from bayesmeta.prior import Prior
from bayesmeta.ranks import Ranks
from bayesmeta.results import InputError, Result
from bayesmeta.resuming import Checkpoint
from bayesmeta.streams import TaskStream
from bayesmeta.tasks import TaskFamily


@dataclass(frozen=True, eq=False)
class Problem:
    """A fit to be done.

    Args:
        model: bound to the family; its parameters are the start of ψ and θ₀.
        family: the tasks.
        prior: form, hyper-prior, what is learned; with values when given.
        method: the choices.
        reml: restricted maximum likelihood, on the exact path.
        generator: the noise of draws and batches.
        callbacks: called with (step, steps, M).
        query: the query sets, task by task, when they are not split off the tasks' rows.
        stream: what the tasks of outer steps are drawn from, in the place of the family.
        checkpoint: where the outer loop writes where it stands.
    """

    model: Model
    family: TaskFamily
    prior: Prior
    method: Method
    reml: bool
    generator: torch.Generator
    callbacks: Sequence[Callback] = ()
    query: TaskFamily | None = None
    stream: TaskStream | None = None
    checkpoint: Checkpoint | None = None

    def with_prior(self, prior: Prior) -> Problem:
        """The same problem under another prior."""
        return replace(self, prior=prior)

    @property
    def steps(self) -> int:
        return self.method.steps or 500

    def refuse_checkpoint(self) -> None:
        """Say no to a checkpoint of a search that has none.

        Raises:
            InputError: there is one, and it is required.
        """
        if self.checkpoint is not None and self.checkpoint.required:
            raise InputError(
                "checkpoint= is for fits by adam or sgd, and this one is a deterministic search, "
                "of all tasks at once: leave it out"
            )

    def refuse_unlike(self, ranks: Ranks) -> None:
        """Say no where processes that share a fit were not given the same one.

        Raises:
            InputError: they were not; the sentence says what differs.
        """
        if ranks.size == 1:
            return
        data = self.family.fingerprint() if self.stream is None else self.stream.record()
        values = self.prior.free if self.prior.has_values else {}
        given = {
            "data": [data, self.query.fingerprint() if self.query is not None else None],
            "method": self.method.to_json(),
            "prior": [self.prior.to_json(), digest(dict(values))],
            "seed": digest({"state": self.generator.get_state()}),
        }
        # A model built with another seed has another start; "seed" is that of the noise.
        ranks.refuse_unlike(of_model(self.model, self.model) | given)


@dataclass(eq=False)
class Estimate:
    """A fit that was done.

    Args:
        prior: with its fitted values.
        shared: ψ.
        posterior: Q_i, task axis first.
        log_evidence: nats, exact or a lower bound.
        task_evidence: (task,) its parts at the fitted prior and ψ (their sum, but for REML).
        trace: of the outer loop.
        results: how each task's own solve ended.
        fixed_covariance: of the estimates of (θ₀, the module's ψ), or None.
        failures: tasks that failed on the way, where that is looked at.
    """

    prior: Prior
    shared: dict[str, Tensor]
    posterior: Gaussian | Empirical
    log_evidence: float
    task_evidence: Tensor
    trace: Trace
    results: list[Result] = field(default_factory=list)
    fixed_covariance: Tensor | None = None
    failures: Failures | None = None


class CovarianceRoot:
    """A' with Σ₀ = T A' A'ᵀ Tᵀ in a form's free entries, smooth through zero variances.

    Args:
        form: of Σ₀.
        blocks: (p,) parameter tensor of each weight.
        like: a tensor with the dtype and device.
        scale: start of the standard deviations, in scaled coordinates.
    """

    def __init__(self, form: Form, blocks: Tensor, like: Tensor, scale: float) -> None:
        p = len(blocks)
        self.form, self.blocks = form, blocks.to(like.device)
        count = {"isotropic": 1, "block": int(blocks.max()) + 1}.get(form.name, p)
        self.diagonal = like.new_full((count,), scale).requires_grad_()
        self.parameters = [self.diagonal]
        self.rows, self.columns = torch.tril_indices(p, p, -1, device=like.device)
        if form.name == "full" and p > 1:
            self.parameters.append(like.new_zeros(len(self.rows)).requires_grad_())
        if form.name == "lowrank":
            waves = torch.arange(p * form.rank, device=like.device).add(1).to(like).sin()
            factor = 0.3 * scale * waves.reshape(p, form.rank)
            self.parameters.append(factor.requires_grad_())

    def __call__(self) -> Tensor:
        """A' (p, k)."""
        p = len(self.blocks)
        spread = self.diagonal
        if self.form.name == "isotropic":
            spread = spread.expand(p)
        if self.form.name == "block":
            spread = spread[self.blocks]
        root = torch.diag(spread)
        if self.form.name == "full" and p > 1:
            root = root.index_put((self.rows, self.columns), self.parameters[1])
        if self.form.name == "lowrank":
            root = torch.cat([self.parameters[1], root], 1)
        return root

    def snap(self, threshold: float, objective: Callable[[], Tensor], *, slack: float) -> None:
        """Put directions with sd below `threshold` at exactly zero, if M rises by ≤ `slack`."""
        before = objective().detach()
        saved = [p.detach().clone() for p in self.parameters]
        self._zero_below(threshold)
        if not bool(objective().detach() <= before + slack):
            with torch.no_grad():
                for parameter, value in zip(self.parameters, saved, strict=True):
                    parameter.copy_(value)

    def _zero_below(self, threshold: float) -> None:
        with torch.no_grad():
            if self.form.name != "full":
                small = self.diagonal.abs() <= threshold
                self.diagonal.copy_(torch.where(small, 0.0, self.diagonal))
                return
            left, values, _ = torch.linalg.svd(self())
            root = triangular(left * torch.where(values > threshold, values, 0.0))
            self.diagonal.copy_(root.diagonal())
            if len(self.parameters) > 1:
                self.parameters[1].copy_(root[self.rows, self.columns])

    def gaussian(self, mean: Tensor, change: Tensor) -> Gaussian:
        """N(mean, T A' A'ᵀ Tᵀ) in the shape of the form, for T = `change`."""
        root = change @ self().detach()
        if self.form.name == "full":
            return Gaussian(mean, None, triangular(root))
        if self.form.name == "lowrank":
            rank = self.form.rank
            return Gaussian(mean, root[:, rank:].diagonal().square(), root[:, :rank])
        return Gaussian(mean, root.diagonal().square())
