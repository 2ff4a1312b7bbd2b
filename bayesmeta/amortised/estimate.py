"""A fit of (θ₀, Σ₀, ψ) whose Q_i is a function of them: the descent, then every task's own Q_i."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bayesmeta.amortised.descent import Descent
from bayesmeta.amortised.memory import within_memory
from bayesmeta.amortised.meta_gradient import sets
from bayesmeta.amortised.report import Report
from bayesmeta.amortised.step import MetaStep
from bayesmeta.empirical import Empirical
from bayesmeta.gaussian import Gaussian
from bayesmeta.gradients.rule import Params
from bayesmeta.inner.noise import has
from bayesmeta.joint.gradient import EVIDENCE_DRAWS, EVIDENCE_ROUNDS
from bayesmeta.joint.problem import Estimate, Problem
from bayesmeta.objective import Evidence, Validation, Variational
from bayesmeta.ranks import Ranks
from bayesmeta.results import Result
from bayesmeta.resuming import telling_what_is_left
from bayesmeta.splits import splittable
from bayesmeta.tasks import TaskBatch, TaskFamily

CHUNK = 2000
FEW_WEIGHTS = 10_000
"""Beyond so many there is one round of draws: of a large network each is dearer than a fit step."""
FAILURES = (Result.nonfinite, Result.diverged)
LARGEST = 3_000_000
"""Numbers of all runs of the tasks that are adapted together: weights, and data once per run."""
Sets = tuple[TaskBatch, TaskBatch]


def estimate(problem: Problem) -> Estimate:
    """Minimise M over (θ₀, Σ₀, ψ), then adapt every task on all its rows."""
    ranks = Ranks.present()
    with telling_what_is_left(problem.checkpoint):
        problem.refuse_unlike(ranks)
        fit = Descent(problem)
        trace = fit.search()
        shared = {k: v.detach() for k, v in fit.shared.items()}
        prior = problem.prior.like(_learned(fit, shared), problem.model.blocks)
        posterior, evidence, results = adapted(
            problem.with_prior(prior), shared, problem.family, problem.query, ranks
        )
        failures = fit.failures.everywhere()
    return Estimate(
        prior=prior,
        shared=shared,
        posterior=posterior,
        log_evidence=float(evidence.sum()),
        task_evidence=evidence,
        trace=trace,
        results=results,
        failures=failures,
    )


def _learned(fit: Descent, shared: dict[str, Tensor]) -> Gaussian:
    """N(θ₀, Σ₀) as it was learned; where λ is given, Σ₀ = Λ⁻¹ of a task with the mean of rows."""
    gaussian = fit.prior().map(Tensor.detach)
    lam = fit.method.lam
    if lam is None:
        return gaussian
    family = fit.problem.family
    rows = 1.0 if family.mask is None else float(family.rows.double().mean())
    scale = fit.problem.model.paper_scale(family.batch(), shared)
    return Gaussian(gaussian.mean, torch.ones_like(gaussian.mean) * scale / (lam * rows))


def adapted(
    problem: Problem,
    shared: dict[str, Tensor],
    family: TaskFamily,
    query: TaskFamily | None = None,
    ranks: Ranks | None = None,
) -> tuple[Gaussian | Empirical, Tensor, list[Result]]:
    """Q_i of tasks by the method's own algorithm, and −M_i (task,).

    All rows of a task are its support for Q_i. Where M needs a query set, −M_i is of a random
    split of the rows, and NaN where a task has too few.

    Args:
        problem: with the prior to adapt under.
        shared: ψ.
        family: the tasks.
        query: their query sets, if they are given.
        ranks: processes that share the tasks, where nothing is drawn; where noise is, every one
            adapts all tasks, so that each task's noise is what it is in one process. None: this
            process alone.
    """
    step = MetaStep(problem.model, problem.prior, problem.method, family)
    if ranks is None or len(family) < ranks.size or not _settled(step, query):
        ranks = Ranks()
    free = {k: v.detach() for k, v in problem.prior.free.items()}

    def some(index: Tensor) -> tuple[Gaussian | Empirical, Tensor, list[Result]]:
        part = family if len(index) == len(family) else family.subset(index)
        seen = query if query is None or part is family else query.subset(index)
        return _adapted(problem, step, step.params(free, shared, len(part)), part, seen)

    mine = ranks.share(len(family)).split(_together(problem, step, family))
    posteriors, values, results = zip(*(within_memory(some, index) for index in mine), strict=True)
    posterior, ended = _joined(list(posteriors)), [one for part in results for one in part]
    if ranks.size > 1:
        posterior = posterior.map(ranks.gathered)
    return posterior, -ranks.gathered(torch.cat(values)), ranks.collected(ended)


def _adapted(
    problem: Problem, step: MetaStep, params: Params, family: TaskFamily, query: TaskFamily | None
) -> tuple[Gaussian | Empirical, Tensor, list[Result]]:
    """Q_i and M_i (task,) of tasks that are adapted together."""
    mean = params["anchor"]["mean"][0]
    with torch.no_grad():
        noise = step.noise(family.batch(), mean, problem.generator, _samples(step))
        posterior, reached = step.adapt(params, family.batch(), noise)
        del noise  # of all runs, the largest thing here
        value, ended = _values(problem, step, params, family, query, posterior)
    if step.method.stochastic:  # a run that failed is in Q_i all the same
        pairs = zip(ended, reached.results(), strict=True)
        ended = [run if run in FAILURES else result for result, run in pairs]
    return posterior, value, ended


def _settled(step: MetaStep, query: TaskFamily | None) -> bool:
    """Whether nothing is drawn: no noise of an algorithm or of Q_i, no split of the rows."""
    method = step.method
    drawn = method.stochastic or method.posterior.form.name != "point"
    support = getattr(method.objective, "support", None)
    return not drawn and (support is None or query is not None)


def _values(
    problem: Problem,
    step: MetaStep,
    params: Params,
    family: TaskFamily,
    query: TaskFamily | None,
    posterior: Gaussian | Empirical,
) -> tuple[Tensor, list[Result]]:
    """M_i (task,), NaN for tasks with too few rows to split, and how each task's solves went."""
    objective = problem.method.objective
    support = objective.support if isinstance(objective, Validation) else None
    if support is None or query is not None:
        ends = getattr(posterior, "draws", None)  # of runs on all rows, which are the support
        return _valued(problem, step, params, family, query, ends)
    enough = splittable(family, support)
    if bool(enough.all()):
        return _valued(problem, step, params, family, query)
    values = torch.full_like(params["anchor"]["mean"][:, 0], torch.nan)
    ended: list[Result] = [Result.converged] * len(family)
    for which in (enough, ~enough):
        index = which.nonzero().flatten().cpu()
        if not len(index):
            continue
        some = {"anchor": {"mean": params["anchor"]["mean"][index]}}
        part, short = family.subset(index), which is not enough
        value, results = _valued(problem, step, params | some, part, part if short else None)
        values[index] = torch.nan if short else value
        for place, result in zip(index.tolist(), results, strict=True):
            ended[place] = result
    return values, ended


def _valued(
    problem: Problem,
    step: MetaStep,
    params: dict[str, dict[str, Tensor]],
    family: TaskFamily,
    query: TaskFamily | None,
    ends: Tensor | None = None,
) -> tuple[Tensor, list[Result]]:
    """M_i (task,) at β = 1 and by many draws, and how each task's solves went."""
    both = sets(family, problem.method, problem.generator, query)
    noise = step.noise(both[0], params["anchor"]["mean"], problem.generator)
    outcome = step(params, *both, noise)
    report = Report.of(outcome, step.method, family.names)
    if isinstance(step.method.objective, Evidence):
        return outcome.values, report.result
    if step.method.stochastic:
        if ends is None:
            many = step.noise(both[0], params["anchor"]["mean"], problem.generator, _samples(step))
            runs = step.adapt(params, both[0], many)[0]
            assert isinstance(runs, Empirical)
            ends = runs.draws
        return _unweighted(step).values(params, *both, ends), report.result
    return _averaged(problem, step, params, both, outcome.adapted.theta), report.result


def _averaged(
    problem: Problem, step: MetaStep, params: Params, both: Sets, theta: Tensor
) -> Tensor:
    """(task,) M_i at β = 1, a Gaussian Q_i by as many draws as the evidence of a free one."""
    step = _unweighted(step)
    many = step.using(replace(step.method, draws=EVIDENCE_DRAWS))
    once = step.method.posterior.form.name == "point" or problem.model.dim > FEW_WEIGHTS
    rounds = 1 if once else EVIDENCE_ROUNDS
    noises = (many.noise(both[0], theta, problem.generator) for _ in range(rounds))
    with torch.no_grad():
        values = [many.loss(theta[None], params, *both, noise)[0] / rounds for noise in noises]
    return torch.stack(values).sum(0)


def _together(problem: Problem, step: MetaStep, family: TaskFamily) -> int:
    """Tasks to adapt at a time: all their runs are in memory at once."""
    runs, limit = _samples(step), problem.model.chunk_size or CHUNK
    if runs is None or not step.method.stochastic:
        return limit
    data = sum(t[0].numel() for t in family.tensors.values())
    noisy = has(step.algorithm, "normals", "dropout")
    numbers = data + problem.model.dim * (1 + step.algorithm.steps * noisy)
    return max(1, min(limit, LARGEST // (runs * numbers)))


def _unweighted(step: MetaStep) -> MetaStep:
    """The step with β = 1, the only one that bounds the evidence."""
    objective = step.method.objective
    if not isinstance(objective, Variational):
        return step
    return step.using(replace(step.method, objective=replace(objective, beta=1.0)))


def _samples(step: MetaStep) -> int | None:
    """Runs per task that stand for the law of a stochastic algorithm."""
    return getattr(step.method.posterior, "samples", None)


def _joined(parts: list[Any]) -> Gaussian | Empirical:
    if len(parts) == 1:
        return parts[0]
    if isinstance(parts[0], Empirical):
        return Empirical(torch.cat([part.draws for part in parts], 1))
    columns = zip(*((p.mean, p.diagonal, p.factor) for p in parts), strict=True)
    mean, diagonal, factor = (None if c[0] is None else torch.cat(c) for c in columns)
    assert mean is not None
    return Gaussian(mean, diagonal, factor, sign=parts[0].sign)
