"""What a fit gives: N(θ₀, Σ₀), every Q_i, predictions, all with names and in original units."""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bayesmeta import records
from bayesmeta.adapting import adapt_tasks, check_reading, vague_estimates
from bayesmeta.amortised.meta_gradient import MetaGradient, meta_gradient
from bayesmeta.empirical import Empirical
from bayesmeta.gaussian import Gaussian
from bayesmeta.inner.loop import Algorithm
from bayesmeta.judging import (
    certain_notes,
    evidence_kind,
    evidence_name,
    flags,
    scored_rows,
    unknown_notes,
)
from bayesmeta.likelihoods import Likelihood
from bayesmeta.method import Method
from bayesmeta.models import Model
from bayesmeta.models.precision import multiplying
from bayesmeta.objective import Evidence
from bayesmeta.posteriors.free import Free
from bayesmeta.predictions import Named, Prediction, predict
from bayesmeta.prior import Prior
from bayesmeta.ranks import Ranks
from bayesmeta.results import Flag, InputError
from bayesmeta.standardise import Standardisation
from bayesmeta.tasks import TaskBatch, TaskFamily

FEWEST_EXPORTED = 10


@dataclass(eq=False, repr=False)
class Fit:
    """A fitted prior, the posteriors of its tasks, and what can be asked of them.

    Args:
        model: with ψ at its fitted values, in internal units.
        family: the tasks of `posterior`, in original units.
        choices: the method.
        solver: exact, profile, gradient or amortised.
        fitted_prior: the prior module with its values.
        posterior: Q_i.
        log_evidence: nats, of y in original units.
        evidence_kind: "exact", "restricted" (REML), "laplace", "quadrature", "bound", "penalised"
            (point Q_i: no bound), or "validation" (of query rows).
        task_evidence: (task,) nats.
        standardisation: of x and y, for networks; None when fitted in original units.
        standard_errors: of θ₀ and shared coefficients, by name; exact path only.
        flagged: tasks that need an eye.
        notes: what was done that a person should know.
        trace: M in nats per outer step.
        seconds: taken.
        seed: of the noise.
        stream: what the tasks of outer steps were drawn from; None: from `family`.
    """

    model: Model
    family: TaskFamily
    choices: Method
    solver: str
    fitted_prior: Prior
    posterior: Named[Gaussian | Empirical]
    log_evidence: float
    evidence_kind: str
    task_evidence: Tensor
    standardisation: Standardisation | None = None
    standard_errors: dict[str, float] = field(default_factory=dict)
    flagged: list[Flag] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    trace: list[float] = field(default_factory=list)
    seconds: float = 0.0
    seed: int = 0
    stream: dict[str, Any] | None = None

    def __repr__(self) -> str:
        dim, flagged = len(self.model.names), len(self.flagged)
        label, how = evidence_name(self.evidence_kind)
        return (
            f"Fit({len(self.family)} tasks, {dim} adapted weights; {label.lower()} "
            f"{self.log_evidence:.6g} nats ({how}, {self.solver} solver)"
            + (f"; {flagged} tasks flagged, see .flagged)" if flagged else ")")
        )

    @property
    def prior(self) -> Named[Gaussian]:
        """N(θ₀, Σ₀)."""
        with torch.no_grad():
            return Named(self.model.names, self.fitted_prior().map(Tensor.detach))

    @property
    def likelihood(self) -> Likelihood | None:
        """The likelihood with its fitted constants, in original units."""
        likelihood = copy.deepcopy(self.model.likelihood)
        if likelihood is not None and self.standardisation is not None:
            scale = self.standardisation.y_scale
            likelihood = likelihood if scale == 1 else likelihood.rescale(scale)
        return None if likelihood is None else likelihood.requires_grad_(False)

    @property
    def method(self) -> dict[str, Any]:
        """The method, the solver that was used, and what the evidence is, as a record."""
        record = self.choices.to_json() | {"solver": self.solver, "evidence": self.evidence_kind}
        return record | {"prior": self.fitted_prior.to_json()}

    @property
    def shared(self) -> dict[str, float | list[float]]:
        """ψ by name: shared coefficients, then constants of the likelihood other than its scale."""
        return records.shared_values(self)

    @property
    def noise(self) -> float | None:
        """Noise sd in original units; None if the likelihood has none or rows have their own."""
        if self.likelihood is None or "standard_error" in self.family.tensors:
            return None
        constants = self.likelihood.summary()
        if self.likelihood.name == "student_t":
            df = constants["df"]
            return constants["scale"] * math.sqrt(df / (df - 2)) if df > 2 else None
        return constants.get("scale")

    def read(self, data: Any, *, require_response: bool = True) -> TaskFamily:
        """A new table, read exactly as the fitted one was: same columns, same coding.

        Args:
            data: path of a CSV, or a DataFrame.
            require_response: whether every row must have the response; `predict` needs none.

        Raises:
            InputError: the fit is not of a table, or the new one lacks what it needs.
        """
        if self.family.table is None:
            raise InputError("this fit is not of a table: build the new family as the first one")
        from bayesmeta.tables import family_like

        return family_like(self.family.table, data, require_response=require_response)

    def _same_reading(self, family: Any, *, require_response: bool) -> TaskFamily:
        """A family for this fit: tables are read like the fitted one, families must match it."""
        if not isinstance(family, TaskFamily):
            return self.read(family, require_response=require_response)
        check_reading(self.family.table, family)
        return family

    def internal(self, family: TaskFamily) -> TaskFamily:
        """A family in the units the model was fitted in."""
        mean, x = self.posterior.mean, family.tensors.get("x")
        if x is not None and x.dtype == torch.uint8:
            raise InputError("x is uint8: a model sees images in [0, 1], so give x.float() / 255")
        family = family.to(device=mean.device, dtype=mean.dtype)
        return family if self.standardisation is None else self.standardisation.apply(family)

    def seen(self, family: TaskFamily, *, inductive: bool = False) -> TaskBatch:
        """The rows of a family as the model sees them: beside the support rows, where it needs.

        Args:
            family: in original units.
            inductive: whether statistics of a batch are those of the support rows in any case.

        Raises:
            InputError: it needs them, and a task has none: it is not among the fit's.
        """
        batch = self.internal(family).batch()
        if not self.model.needs_context(inductive):
            return batch
        strangers = set(family.names) - set(self.family.names)
        if strangers:
            raise InputError(
                f"task {min(strangers)!r} has no support rows here, whose statistics "
                'batch_norm="support" and inductive=True take for its query rows: '
                "fit.adapt(support).predict(query), with the same names of tasks"
            )
        support = self.internal(self.family.subset(family.names)).batch()
        return self.model.seen(batch, support, inductive=inductive)

    def adapt(
        self,
        family: Any,
        *,
        seed: int | None = None,
        algorithm: Algorithm | None = None,
        method: Method | None = None,
    ) -> Fit:
        """Posteriors of unseen tasks under this prior and ψ, by the same algorithm or another.

        Args:
            family: new tasks, adapted to all their rows; a CSV path or DataFrame is read like the
                fitted table.
            seed: of the noise; the fit's by default. Tasks adapted one call at a time share their
                noise, unless each call has a seed of its own.
            algorithm: in the place of the fit's own, where Q_i is a function of θ₀.
            method: in the place of the whole method, with Q_i that an algorithm adapts.

        Returns:
            A fit whose `posterior`, `family` and `log_evidence` are those of the new tasks.
        """
        started = time.perf_counter()
        family = self._same_reading(family, require_response=True)
        generator = torch.Generator().manual_seed(self.seed if seed is None else seed)
        choices = self.choices if method is None else method
        if isinstance(choices.posterior, Free) and (method or algorithm) is not None:
            raise InputError(
                "free Q_i are not adapted by an algorithm: give method=, one that adapts, such as "
                "bm.methods.stochastic(...)"
            )
        choices = choices if algorithm is None else choices.adapting_by(algorithm)
        solver = self.solver if choices is self.choices else "amortised"
        inside = self.internal(family)
        with multiplying(self.model.precision):
            posterior, evidence, results = adapt_tasks(
                self.model, self.fitted_prior, choices, solver, inside, generator
            )
        notes = [] if family.table in (None, self.family.table) else list(family.table.notes)
        notes += unknown_notes(evidence, choices) + certain_notes(posterior, choices)
        evidence = evidence - self._log_units(scored_rows(choices, family))
        return replace(
            self,
            family=family,
            choices=choices,
            solver=solver,
            posterior=Named(self.model.names, posterior, family.names),
            log_evidence=float(evidence.sum()),
            evidence_kind=evidence_kind(solver, choices),
            task_evidence=evidence,
            flagged=flags(family.names, results, evidence, choices),
            notes=notes,
            trace=[],
            seconds=time.perf_counter() - started,
        )

    def _log_units(self, rows: Tensor) -> Tensor:
        """(task,) what log p(y) of so many rows loses by going back to original units."""
        scale = 1.0 if self.standardisation is None else self.standardisation.y_scale
        return rows.to(self.task_evidence) * math.log(scale)

    def reachability_gap(self) -> Tensor:
        """(task,) M at the fitted Q_i minus M at what adaptation from θ₀ reaches, in nats.

        Negative where joint descent found a better Q_i than a new start from θ₀ does.
        """
        return self.adapt(self.family).task_evidence - self.task_evidence

    def meta_gradient(self, *, audit: int = 3, seed: int = 0) -> MetaGradient:
        """The gradient of M at the fitted values, in internal units, by the method's own rule.

        Where M is taken by quadrature this is that of Laplace's method. Query rows are split off at
        random, also where the fit was given its query sets, which it does not keep.

        Args:
            audit: so many tasks are compared with the exact answer, where there is one.
            seed: of splits and draws.

        Raises:
            InputError: free Q_i, which are no function of θ₀, or a task with too few rows to split.
        """
        method = self.choices
        if isinstance(method.objective, Evidence):
            method = replace(method, objective=Evidence(points=1))
        audit = 0 if method.stochastic else audit
        generator = torch.Generator().manual_seed(seed)
        return meta_gradient(
            self.model, self.fitted_prior, self.internal(self.family), method,
            generator=generator, audit=audit,
        )  # fmt: skip

    def no_pooling(self) -> Named[Gaussian]:
        """Each task's estimate from its own rows alone (ψ held); NaN where they do not suffice."""
        estimate = vague_estimates(
            self.model,
            self.prior.gaussian,
            self.posterior.gaussian,
            self.internal(self.family),
        )
        return Named(self.model.names, estimate, self.family.names)

    def draws(self, family: TaskFamily, n: int, generator: torch.Generator) -> Tensor:
        """(n, task, dim) θ of each task: from its posterior if it has one, else from the prior."""
        place = {name: i for i, name in enumerate(self.posterior.tasks)}
        index = torch.tensor([place.get(name, -1) for name in family.names])
        known = (index >= 0).to(self.posterior.mean.device)
        theta = self.prior.gaussian[None].map(lambda t: t.expand(len(family), *t.shape[1:]))
        # A point's draws are views of one tensor, which must not be written into.
        theta = theta.sample(n, generator).clone()
        if bool(known.any()):
            chosen = self.posterior.gaussian[index[index >= 0].to(known.device)]
            theta[:, known] = chosen.sample(n, generator)
        return theta

    def predict(
        self, family: Any = None, draws: int = 1000, seed: int = 0, *, inductive: bool = False
    ) -> Prediction:
        """Draws of y for every row: θ from the task's posterior, then y from the likelihood.

        Of classes, such as those of images, `.probabilities` of the result is what is asked for.

        Args:
            family: rows to predict, in original units; y is needed only for `log_score`. Tasks
                known by name use their posterior, others the prior. A CSV path or DataFrame is read
                like the fitted table. Default: the fit's own family.
            draws: number of draws.
            seed: of the draws.
            inductive: judge every row from the rows the task was adapted to alone, where batch
                normalisation would else take the rows together (batch_norm="transductive").
        """
        family = self.family if family is None else family
        family = self._same_reading(family, require_response=False)
        return predict(self, family, draws=draws, seed=seed, inductive=inductive)

    def log_likelihood(
        self, theta: Tensor, family: TaskFamily | None = None, *, inductive: bool = False
    ) -> Tensor:
        """(draw, task, row) log p(y | θ) in nats of y in original units, 0 at padding."""
        family = self.family if family is None else family
        batch = self.seen(family, inductive=inductive)
        with torch.no_grad(), multiplying(self.model.precision):
            rows = self.model.log_prob_rows(theta, batch)
        if self.standardisation is None or batch.mask is None:
            return rows
        return torch.where(batch.mask, rows - math.log(self.standardisation.y_scale), 0.0)

    def log_ratio(self, n: int, generator: torch.Generator) -> Tensor:
        """(n, task) log p(y|θ) p(θ) − log q(θ) at draws θ ~ Q_i, in nats.

        Where Σ₀ is singular both densities are taken on its support.
        """
        prior, posterior = self.prior.gaussian, self.posterior.gaussian
        if isinstance(posterior, Empirical):
            raise InputError("the draws of a stochastic algorithm have no density log q(θ)")
        with torch.no_grad():
            theta = posterior.sample(n, generator)
            loss = self.model.energies(theta, self.internal(self.family).batch())
            loss = loss + self._log_units(self.family.rows)
            if bool((prior.log_det() > -torch.inf) & prior.sd().min().gt(0)):
                return prior.log_prob(theta) - loss - posterior.log_prob(theta)
            # Scaled to correlations, so that a small unit is not taken for a zero variance.
            unit = torch.where(prior.sd() > 0, 1 / prior.sd(), 0.0)
            values, vectors = torch.linalg.eigh(unit[:, None] * prior.covariance() * unit)
            basis = (unit[:, None] * vectors[:, values > 1e-12]).T
            if not len(basis):
                return -loss
            projected = theta @ basis.T
            log_prior = prior.linear(basis).log_prob(projected)
            return log_prior - loss - posterior.linear(basis).log_prob(projected)

    def to_arviz(self, *, draws: int = 1000, seed: int = 0) -> Any:
        """ArviZ InferenceData (0.2x) or DataTree (1.x); see `bayesmeta.arviz_export`."""
        from bayesmeta.arviz_export import to_arviz

        return to_arviz(self, draws=draws, seed=seed)

    def save(self, folder: str | Path) -> Path:
        """Write a run folder; see `bayesmeta.checkpoint`. Returns its path.

        Its files come to their place together: of an earlier run there, and of this one, one is
        always whole. Other files stay as they are.

        Draws for ArviZ, posterior.nc, are left out where fewer than 10 fit into 100 MB, and of a
        stream, whose tasks are any. Of several processes that share a fit, the first writes.
        """
        if Ranks.present().rank > 0:
            return Path(folder)
        from bayesmeta.arviz_export import LARGEST_FILE, save_netcdf
        from bayesmeta.atomic import whole_files
        from bayesmeta.checkpoint import RECORD, write

        largest = LARGEST_FILE / (8 * FEWEST_EXPORTED)  # numbers of one draw, and one of θ
        exported = (len(self.family) + 1) * self.model.dim <= largest
        with whole_files(Path(folder), last=RECORD) as new:
            write(self, new)
            if self.model.likelihood is not None and self.stream is None and exported:
                save_netcdf(self, new / "posterior.nc")
        return Path(folder)

    def record(self) -> dict[str, Any]:
        """The object that `bayesmeta fit --json` prints, but for `run`; NaN is None.

        Beyond 1000 weights it has their quartiles in the place of their names and values.
        """
        return records.result(self)
