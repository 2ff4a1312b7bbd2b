"""The one verb: from a model, a family and a method to a fitted prior and its posteriors."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from bayesmeta import checkpoint, methods
from bayesmeta.adapting import check_values
from bayesmeta.amortised import estimate as amortised
from bayesmeta.amortised.meta_gradient import prepared
from bayesmeta.choosing import (
    check_stream,
    checked_prior,
    checked_query,
    choose,
    default_prior,
)
from bayesmeta.fitted import Fit
from bayesmeta.identity import digest, of_model
from bayesmeta.joint import exact, gradient, profile
from bayesmeta.joint.problem import Estimate, Problem
from bayesmeta.judging import certain_notes, evidence_kind, flags, scored_rows
from bayesmeta.method import Method
from bayesmeta.models import Model
from bayesmeta.models.precision import multiplying
from bayesmeta.objective import Validation
from bayesmeta.outer import Callback
from bayesmeta.predictions import Named, Prediction
from bayesmeta.prior import Prior
from bayesmeta.ranks import Ranks
from bayesmeta.remarks import fit_notes, standardisation_notes
from bayesmeta.results import Flag, InputError
from bayesmeta.resuming import Checkpoint, as_checkpoint
from bayesmeta.standardise import Standardisation
from bayesmeta.streams import STEP_TASKS, TaskStream
from bayesmeta.tasks import TaskFamily
from bayesmeta.unsound import BAD_DATA, BAD_LOSS, Reason, bad_data, unsound

__all__ = ["Fit", "Named", "Prediction", "fit", "load"]

load: Callable[..., Fit] = checkpoint.load
SOLVERS: dict[str, ModuleType] = {
    "exact": exact,
    "profile": profile,
    "gradient": gradient,
    "amortised": amortised,
}


def fit(
    model: Model,
    family: TaskFamily | TaskStream,
    *,
    method: Method | None = None,
    prior: Prior | None = None,
    query: TaskFamily | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    reml: bool = False,
    standardise: bool | None = None,
    callbacks: Sequence[Callback] = (),
    checkpoint: Checkpoint | str | PathLike[str] | None = None,
) -> Fit:
    """Fit N(θ₀, Σ₀), ψ and a posterior for every task.

        min Σ_i [ E_{Q_i} f_i(θ) + β KL(Q_i ‖ N(θ₀, Σ₀)) ]

    Args:
        model: f(θ, task); a copy is fitted, in the family's dtype.
        family: the tasks, or a stream of them (`bm.FewShot`): then every outer step draws new ones,
            `batch=` of the method or 16, and the posteriors are of so many more.
        method: default `bm.methods.joint()`, with diagonal Q_i beyond 50 weights.
        prior: form of Σ₀, hyper-prior, and what is learned. Default: for joint and laplace
            `bm.Prior("full")`, diagonal beyond 50 weights; for methods that learn no Σ₀ the one
            that belongs to them (a point for MAML, Λ = n λ I for iMAML with lam=).
        query: the query sets of a method with a Validation objective, task by task; by default rows
            of each task are split off at random.
        seed: of all noise; the global random state is left alone.
        device: where to compute; the family's device by default.
        reml: restricted maximum likelihood (θ₀ and shared coefficients integrated under a flat
            prior); linear-Gaussian tasks only.
        standardise: centre and scale x, and y where it is real, before fitting. Default: for
            families from a table whose prediction is not linear in its weights.
        callbacks: called with (step, steps, M in nats). What an object among them has to remember
            goes into checkpoints if it has `tensors()` → dict and `restore(dict)`.
        checkpoint: `bm.Checkpoint(folder)` or the folder, where a fit by adam or sgd writes where
            it stands, and from where the same call goes on.

    Raises:
        InputError: model, family, prior and method do not go together; the sentence says why.

    Example:
        >>> from bayesmeta import families, likelihoods
        >>> generator = torch.Generator().manual_seed(0)
        >>> family, truth = families.linear_gaussian(tasks=50, rows=10, generator=generator)
        >>> model = Model(torch.nn.Linear(1, 1), likelihoods.Gaussian())
        >>> fit(model, family).evidence_kind
        'exact'
    """
    started = time.perf_counter()
    _refuse_wrong_types(model, family, method, prior)
    if not 0 <= seed < 2**63:
        raise InputError(f"seed must lie between 0 and 2**63, not {seed}")
    generator = torch.Generator().manual_seed(seed)
    family = family if device is None else family.to(device=device)
    given = _given(model, family, method, prior, query, generator)
    if model.likelihood is not None:  # an energy has its own ways with numbers
        given.leave_out(bad_data(given.family, given.query), BAD_DATA)
    given.standardise(standardise)
    given.prior = checked_prior(given.prior, given.method, given.model, given.family, given.notes)
    ranks = Ranks.present()
    given.notes += ranks.notes()
    written = as_checkpoint(checkpoint)
    if written is not None:
        identity = _identity(given, model, prior, query, seed)
        written = written.of(identity, writes=ranks.first, notes=given.notes)

    def problem_of() -> Problem:
        return Problem(
            given.model, given.inside, given.prior, given.method, reml, generator, callbacks,
            given.query, given.stream, written,
        )  # fmt: skip

    problem = problem_of()
    solver = choose(problem)
    if solver != "exact" and given.stream is None and given.leave_out(unsound(problem), BAD_LOSS):
        problem = problem_of()
    # Whoever calls from a torch.no_grad() block wants a fit all the same.
    try:
        with torch.enable_grad(), multiplying(given.model.precision):
            estimate: Estimate = SOLVERS[solver].estimate(problem)
    except torch.linalg.LinAlgError as error:  # pyright: ignore[reportPrivateImportUsage]
        raise InputError(
            "a matrix of this fit has no inverse in its precision, as where numbers of very "
            "different sizes meet: look for a value out of all proportion, or change the units of "
            "a column"
        ) from error
    if not bool(estimate.task_evidence.isfinite().any()):
        raise InputError(
            "the loss is not finite for any task: check that the energy or module gives finite "
            "values at its starting weights"
        )
    found = _result(given, estimate, solver, reml=reml)
    return replace(found, seconds=time.perf_counter() - started, seed=seed)


@dataclass
class _Given:
    """What is to be fitted, as it becomes complete.

    Args:
        model: a copy, in the family's dtype and on its device.
        method: which.
        family: the tasks in original units; of a stream, those that the posteriors are of.
        inside: the tasks in the units of the fit.
        query: the query sets, if they are given.
        stream: what outer steps draw from.
        prior: the form of Σ₀, and what is learned of it.
        standardisation: from original units to those of the fit.
        left_out: tasks that the fit goes without.
        notes: what a person should know.
    """

    model: Model
    method: Method
    family: TaskFamily
    inside: TaskFamily
    query: TaskFamily | None
    stream: TaskStream | None
    prior: Prior
    notes: list[str]
    standardisation: Standardisation | None = None
    left_out: list[Flag] = field(default_factory=list)

    def leave_out(self, tasks: Tensor, reason: Reason) -> bool:
        """Go on without some tasks, named and flagged; not without all. Whether it does."""
        if not 0 < len(tasks) < len(self.family):
            return False
        names = [self.family.names[i] for i in tasks.tolist()]
        self.left_out += [reason.flag(name) for name in names]
        self.notes.append(reason.note(names, len(self.family)))
        others = torch.ones(len(self.family), dtype=torch.bool)
        others[tasks] = False
        kept = others.nonzero().flatten()
        self.family, self.inside = self.family.subset(kept), self.inside.subset(kept)
        self.query = None if self.query is None else self.query.subset(kept)
        return True

    def standardise(self, wanted: bool | None) -> None:
        """Units for the fit, and constants of the likelihood to start from."""
        units = _standardisation(self.model, self.family, wanted)
        if units is not None:
            self.standardisation, self.inside = units, units.apply(self.family)
            self.query = None if self.query is None else units.apply(self.query)
        if self.model.likelihood is not None:
            if units is not None and units.y_scale != 1:
                self.model.likelihood = self.model.likelihood.rescale(1 / units.y_scale)
            _initialise(self.model, self.inside)


def _given(
    model: Model,
    family: TaskFamily | TaskStream,
    method: Method | None,
    prior: Prior | None,
    query: TaskFamily | None,
    generator: torch.Generator,
) -> _Given:
    """The tasks, a model that takes them, a method, and the prior that belongs to it."""
    stream = None
    if isinstance(family, TaskStream):
        check_stream(family, model, method, query)
        assert method is not None
        stream = family
        family, query = stream.family(method.batch or STEP_TASKS, generator)
    model = _prepared(model, family, method)
    if method is None:
        method = methods.joint(covariance=methods.default_form(model.dim))
    if stream is None or isinstance(method.objective, Validation):
        query = checked_query(query, family, method, model)
    prior = default_prior(prior, method, model, family)
    notes = list(family.table.notes) if family.table else []
    return _Given(model, method, family, family, query, stream, prior, notes)


def _result(given: _Given, estimate: Estimate, solver: str, *, reml: bool) -> Fit:
    """The fit in original units, with what is to be said of it."""
    model, family, method = given.model, given.family, given.method
    model.load_shared(estimate.shared)
    units = given.standardisation
    log_scale = 0.0 if units is None else math.log(units.y_scale)
    scored = scored_rows(method, family, given.query)
    notes = given.notes + standardisation_notes(units, model)
    notes += fit_notes(estimate, model, given.prior, given.inside)
    notes += certain_notes(estimate.posterior, method)
    return Fit(
        model=model,
        family=family,
        choices=method,
        solver=solver,
        fitted_prior=estimate.prior,
        posterior=Named(model.names, estimate.posterior.map(Tensor.detach), family.names),
        log_evidence=estimate.log_evidence - int(scored.sum()) * log_scale,
        evidence_kind="restricted" if reml else evidence_kind(solver, method),
        task_evidence=estimate.task_evidence - scored.to(estimate.task_evidence) * log_scale,
        standardisation=units,
        standard_errors=_standard_errors(estimate, model),
        flagged=[
            *given.left_out,
            *_failed(estimate, family),
            *flags(family.names, estimate.results, estimate.task_evidence, method),
        ],
        notes=notes,
        trace=estimate.trace.values,
        stream=None if given.stream is None else given.stream.record(),
    )


def _failed(estimate: Estimate, family: TaskFamily) -> list[Flag]:
    if estimate.failures is None:
        return []
    return estimate.failures.flags(family.names, len(estimate.trace.values))


def _identity(
    given: _Given, model: Model, prior: Prior | None, query: TaskFamily | None, seed: int
) -> dict[str, Any]:
    """What a fit has in common with one that goes on from where it stood.

    Args:
        given: what is fitted.
        model, prior, query, seed: as they were given.
    """
    data = given.family.fingerprint() if given.stream is None else given.stream.record()
    return {
        "method": given.method.to_json(),
        "prior": given.prior.to_json(),
        "data": data,
        "seed": seed,
        "query": None if query is None else query.fingerprint(),
        "values": None if prior is None else digest(dict(prior.free)),
        "standardise": given.standardisation is not None,
        "model": of_model(model, given.model),
    }


def _prepared(model: Model, family: TaskFamily, method: Method | None) -> Model:
    """A copy of the model in the family's dtype and on its device."""
    model = prepared(model, family, method)
    if model.dim == 0:
        raise InputError("the model has no adapted weights: name some with adapt=")
    return model


def _refuse_wrong_types(model: Any, family: Any, method: Any, prior: Any) -> None:
    for name, value, kind, how in (
        ("model", model, Model, "bm.Model(module, likelihood)"),
        (
            "family",
            family,
            TaskFamily | TaskStream,
            "bm.TaskFamily.from_csv(...) or another of its makers",
        ),
        ("method", method, Method | None, "bm.methods.joint(...)"),
        ("prior", prior, Prior | None, 'bm.Prior("diagonal")'),
    ):
        if not isinstance(value, kind):
            hint = "fit.fitted_prior, with its form" if isinstance(value, Named) else how
            raise InputError(f"{name} is a {type(value).__name__}: give {hint}")


def _initialise(model: Model, family: TaskFamily) -> None:
    likelihood = model.require_likelihood()
    y = model.response(family.tensors)
    check_values(model, family)
    likelihood.initialise(y, family.mask)


def _standardisation(
    model: Model, family: TaskFamily, wanted: bool | None
) -> Standardisation | None:
    if wanted is None:
        wanted = family.table is not None and not (
            model.likelihood is None or model.is_affine(family, jointly=True)
        )
    if not wanted:
        return None
    if model.likelihood is None or not {"x", "y"} <= set(family.tensors):
        raise InputError("standardise=True needs a likelihood and tensors named x and y")
    return Standardisation.of(family, real_response=model.likelihood.responses == "real")


def _standard_errors(estimate: Estimate, model: Model) -> dict[str, float]:
    if estimate.fixed_covariance is None:
        return {}
    names = list(model.names) + list((model.spec or {}).get("shared_names", []))
    if estimate.prior.learn == "none":
        return {}
    errors = estimate.fixed_covariance.diagonal().clamp(min=0).sqrt().tolist()
    return dict(zip(names, errors, strict=False))
