"""`bm.meta_gradient`: the gradient of M as written, and how well it was computed."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bayesmeta.amortised.audit import audited
from bayesmeta.amortised.checks import check_anchor, check_minibatches, check_random
from bayesmeta.amortised.report import Report
from bayesmeta.amortised.step import LEARNED_STEPS, MetaStep, Outcome
from bayesmeta.inner.noise import has
from bayesmeta.inner.paths import Paths
from bayesmeta.method import Method
from bayesmeta.models import Model
from bayesmeta.models.dropout import install
from bayesmeta.models.matching import paired, ready
from bayesmeta.models.precision import multiplying
from bayesmeta.objective import Validation
from bayesmeta.posteriors.free import Free
from bayesmeta.prior import Prior, with_values
from bayesmeta.results import InputError
from bayesmeta.splits import Split
from bayesmeta.tasks import TaskBatch, TaskFamily


@dataclass(frozen=True, eq=False)
class MetaGradient:
    """M and its derivatives, summed over the family's tasks.

    Args:
        value: () M in nats.
        theta0: (dim,) ∂M/∂θ₀.
        per_task: (task, dim) each task's part of it.
        covariance: ∂M by the free entries of Σ₀: `log_scale` (log sd) and, for low-rank and full
            forms, `factor`.
        shared: ∂M/∂ψ by name.
        report: how well each task was solved.
    """

    value: Tensor
    theta0: Tensor
    per_task: Tensor
    covariance: dict[str, Tensor]
    shared: dict[str, Tensor]
    report: Report

    def __repr__(self) -> str:
        return f"MetaGradient(M = {float(self.value):.6g} nats; {self.report})"


def meta_gradient(
    model: Model,
    prior: Prior,
    family: TaskFamily,
    method: Method,
    *,
    generator: torch.Generator | None = None,
    query: TaskFamily | None = None,
    audit: bool | int = False,
) -> MetaGradient:
    """The gradient of M = Σ_i M_i in θ₀, Σ₀ and ψ by the method's own rule.

    Args:
        model: f(θ, task), with ψ at its present values.
        prior: with values.
        family: the tasks, each once.
        method: with Proximal or Algorithmic Q_i.
        generator: the noise of support/query splits and of draws.
        query: the query sets, task by task, when they are not to be split off the family's rows.
        audit: compare this many tasks (True: 3) with the exact answer.

    Raises:
        InputError: free Q_i, a prior without values, or noise asked for without a generator.

    Example:
        >>> from bayesmeta import families, methods
        >>> family, _ = families.quadratics(tasks=3, dim=2, generator=torch.Generator())
        >>> model = Model.from_energy(families.quadratic_energy, 2)
        >>> prior = Prior("isotropic").at(mean=torch.zeros(2).double(), variance=1.0)
        >>> g = meta_gradient(model, prior, family, methods.imaml(support=None, steps=500, lr=0.1))
        >>> g.theta0.shape, g.per_task.shape
        (torch.Size([2]), torch.Size([3, 2]))
    """
    if isinstance(method.posterior, Free):
        raise InputError(
            "free Q_i are no function of θ₀, so M has no meta-gradient: fit them, or use a method "
            "that adapts (bm.methods.imaml, maml, laplace, …)"
        )
    prior = with_values(prior)
    check_random(method, family, query=query is not None)
    check_anchor(method, prior)
    model = prepared(model, family, method)
    check_minibatches(model, method, family)
    free = {k: v.detach().to(model.start) for k, v in prior.free.items()}
    query = None if query is None else paired(query, family, model)
    step = MetaStep(model, prior, method, family)
    support, seen = sets(family, method, generator, query)
    shared = {k: v.detach() for k, v in model.shared.items()}
    params = step.params(free, shared, len(family))
    if len(free["mean"]) != model.dim:
        raise InputError(f"the prior has {len(free['mean'])} weights, the model {model.dim}")
    noise = step.noise(support, free["mean"], _source(generator, method))
    with multiplying(model.precision):
        outcome = step(params, support, seen, noise)
    result = _assembled(outcome, step.method, family)
    if audit:
        if isinstance(noise, Paths):
            raise InputError(
                "a random meta-gradient has no exact answer to be audited against: see its bias "
                "and variance with bm.diagnostics.compare_estimators"
            )
        count = min(3 if audit is True else int(audit), len(family))
        found = audited(step, params, support, seen, noise, outcome, count)
        named = dict(zip(family.names, found, strict=False))
        result = replace(result, report=replace(result.report, audits=named))
    return result


def _assembled(outcome: Outcome, method: Method, family: TaskFamily) -> MetaGradient:
    per_task = outcome.gradients["anchor"]["mean"]
    return MetaGradient(
        value=outcome.values.sum(),
        theta0=per_task.sum(0),
        per_task=per_task,
        covariance=outcome.gradients["covariance"],
        shared=outcome.gradients["shared"],
        report=Report.of(outcome, method, family.names),
    )


def prepared(model: Model, family: TaskFamily, method: Method | None) -> Model:
    """A copy in the family's dtype, on its device, with what the inner algorithm learns in ψ."""
    floating = [t for t in family.tensors.values() if t.is_floating_point()]
    dtype = floating[0].dtype if floating else torch.get_default_dtype()
    model = copy.deepcopy(model).to(device=family.device, dtype=dtype)
    inner = None if method is None else method.inner
    if has(inner, "dropout"):
        install(model)
    model = ready(model, family)
    learned = learned_steps(model, method)
    if learned is not None and LEARNED_STEPS not in model.shared:
        model.add_shared(LEARNED_STEPS, learned)
    return model


def learned_steps(model: Model, method: Method | None) -> Tensor | None:
    """(dim,) where the step sizes that an inner algorithm learns start; None if it learns none."""
    inner = None if method is None else method.inner
    if not getattr(inner, "learn_lr", False):
        return None
    return torch.full_like(model.start, getattr(inner, "lr", 0.0))


def sets(
    family: TaskFamily,
    method: Method,
    generator: torch.Generator | None,
    query: TaskFamily | None,
) -> tuple[TaskBatch, TaskBatch]:
    """Support and query sets of every task."""
    everyone, objective = family.batch(), method.objective
    if not isinstance(objective, Validation):
        return everyone, everyone
    if query is not None:
        return everyone, query.batch()
    if objective.support is None:
        return everyone, everyone
    if generator is None:
        raise InputError(
            "splitting tasks at random into support and query rows needs generator=; or give "
            "query=, or support=None to use the same rows for both"
        )
    return Split(family, objective.support).draw(everyone, generator)


def _source(generator: torch.Generator | None, method: Method) -> torch.Generator:
    if generator is None and method.stochastic:
        raise InputError(
            "adaptation is random here, and its noise is an argument: give generator=, such as "
            "torch.Generator().manual_seed(0)"
        )
    if generator is None and method.posterior.form.name != "point":
        return torch.Generator().manual_seed(0)
    return torch.Generator() if generator is None else generator
