"""The one verb: from a model, a family and a method to a fitted prior and its posteriors."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
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
from bayesmeta.gaussian import Gaussian
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
from bayesmeta.results import InputError, Result
from bayesmeta.resuming import Checkpoint, as_checkpoint
from bayesmeta.standardise import Standardisation
from bayesmeta.streams import STEP_TASKS, TaskStream
from bayesmeta.tasks import TaskFamily

__all__ = ["Fit", "Named", "Prediction", "fit", "load"]

load: Callable[..., Fit] = checkpoint.load
NO_NOISE = 1e-3
SEPARATED = 1e-3
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
        callbacks: called with (step, steps, M in nats).
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
    given.standardise(standardise)
    given.prior = checked_prior(given.prior, given.method, given.model, given.family, given.notes)
    ranks = Ranks.present()
    given.notes += ranks.notes()
    written = as_checkpoint(checkpoint)
    if written is not None:
        identity = _identity(given, model, prior, query, seed)
        written = written.of(identity, writes=ranks.first, notes=given.notes)
    problem = Problem(
        given.model, given.inside, given.prior, given.method, reml, generator, callbacks,
        given.query, given.stream, written,
    )  # fmt: skip
    solver = choose(problem)
    # Whoever calls from a torch.no_grad() block wants a fit all the same.
    with torch.enable_grad(), multiplying(given.model.precision):
        estimate: Estimate = SOLVERS[solver].estimate(problem)
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
    notes = given.notes + _standardisation_notes(units, model)
    notes += _notes(estimate, model, given.prior, given.inside)
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
        flagged=flags(family.names, estimate.results, estimate.task_evidence, method),
        notes=notes,
        trace=estimate.trace.values,
        stream=None if given.stream is None else given.stream.record(),
    )


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


def _notes(estimate: Estimate, model: Model, prior: Prior, family: TaskFamily) -> list[str]:
    notes = []
    if prior.form.name == "point":
        notes.append(
            "This method learns a start θ₀ and no Σ₀: the prior has no sd, and draws for tasks "
            "without data are all at θ₀."
        )
    elif prior.learn == "all":
        notes += boundary_notes(estimate.prior().map(Tensor.detach), model.names)
    if prior.hyperprior is not None and prior.learn == "all":
        notes.append(
            "Σ₀ has the weak boundary-avoiding hyper-prior, so it is not a maximum-likelihood "
            "estimate; log_evidence leaves the hyper-prior out."
        )
    notes += _noise_notes(estimate, model, family) + _separation_notes(estimate, model, family)
    if estimate.trace.result is not Result.converged:
        notes.append(f"The outer loop {estimate.trace.result.sentence}.")
    if estimate.trace.skipped:
        notes.append(f"{estimate.trace.skipped} outer steps were not finite and were not taken.")
    return notes


def _separation_notes(estimate: Estimate, model: Model, family: TaskFamily) -> list[str]:
    """Binary responses that the predictors tell apart without error."""
    kind = getattr(model.likelihood, "name", "")
    sure = estimate.log_evidence > -SEPARATED * family.observations
    if kind not in ("bernoulli", "binomial") or not sure:
        return []
    sentence = (
        "The predictors separate the responses (nearly) without error, so their weights have no "
        "finite maximum-likelihood value and the ones given are only large: leave a predictor out, "
        "or hold the prior."
    )
    return [sentence]


def _noise_notes(estimate: Estimate, model: Model, family: TaskFamily) -> list[str]:
    """A noise that has gone to zero, which no data of so few rows a task can rule out."""
    log_noise = estimate.shared.get("likelihood.log_scale")
    if log_noise is None or family.mask is None:
        return []
    if log_noise.exp() > NO_NOISE * model.response(family.tensors)[family.mask].std():
        return []
    sentence = (
        "The noise sd is estimated as practically 0: the tasks' weights fit their rows exactly, so "
        "intervals for new rows are too narrow. Give more rows per task, adapt fewer weights, or "
        "give the noise (a known scale, or standard errors)."
    )
    return [sentence]


def boundary_notes(prior: Gaussian, names: Sequence[str]) -> list[str]:
    """Sentences for a singular Σ₀, as a statistician expects them."""
    sd = prior.sd()
    zero = [name for name, value in zip(names, sd.tolist(), strict=True) if value == 0]
    notes = [
        f"The prior sd of {name} is estimated as 0 (the boundary): the tasks differ no more in it "
        "than noise alone explains, and every task has the same value. With few tasks, consider "
        "the boundary-avoiding hyper-prior."
        for name in zero
    ]
    rest = sd > 0
    count = int(rest.sum())
    if 2 <= count <= 50 and prior.factor is not None:
        values = torch.linalg.eigvalsh(prior.correlation()[rest][:, rest])
        if float(values[0]) < 1e-8:
            notes.append(
                "Σ₀ is singular (the boundary): a combination of "
                f"{', '.join(n for n, keep in zip(names, rest.tolist(), strict=True) if keep)} "
                "does not vary between tasks (a correlation of ±1 when there are two). Simplify "
                'the prior (form "diagonal"), or use the boundary-avoiding hyper-prior.'
            )
    return notes


def _standardisation_notes(standardisation: Standardisation | None, model: Model) -> list[str]:
    if standardisation is None:
        return []
    return [
        "x" + (" and y were" if standardisation.y_scale != 1 else " was")
        + " standardised on the training tasks; predictions, noise and evidence are in original "
        f"units, the {model.dim} network weights in standardised ones."
    ]  # fmt: skip
