"""The outer loop over (θ₀, Σ₀, ψ) of a method whose Q_i is a function of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bayesmeta.amortised.checks import check_anchor, check_minibatches, check_random
from bayesmeta.amortised.meta_gradient import sets
from bayesmeta.amortised.report import Report
from bayesmeta.amortised.step import MetaStep, Outcome
from bayesmeta.empirical import Empirical
from bayesmeta.gaussian import Gaussian
from bayesmeta.gradients.rule import Params
from bayesmeta.inner.noise import has
from bayesmeta.inner.paths import Paths
from bayesmeta.joint.gradient import EVIDENCE_DRAWS, EVIDENCE_ROUNDS, stream
from bayesmeta.joint.problem import Estimate, Problem
from bayesmeta.objective import Evidence, Validation, Variational, total
from bayesmeta.outer import Trace, descend, minimise
from bayesmeta.prior import Prior
from bayesmeta.results import InputError, Result
from bayesmeta.splits import Split, splittable
from bayesmeta.tasks import TaskBatch, TaskFamily

START_SD = 0.3
NOISY_STEPS = 5000
DETERMINISTIC_STEPS = 500
CHUNK = 2000
FAILURES = (Result.nonfinite, Result.diverged)
LARGEST = 3_000_000
"""Numbers of all runs of the tasks that are adapted together: weights, and data once per run."""
SHARED_LR = 0.01
Sets = tuple[TaskBatch, TaskBatch]


class _Fit:
    """The leaf tensors descended on, and M as a function of them."""

    def __init__(self, problem: Problem) -> None:
        check_random(problem.method, problem.family, query=problem.query is not None)
        check_minibatches(problem.model, problem.method, problem.family)
        check_anchor(problem.method, problem.prior)
        self.problem, self.method = problem, problem.method
        self.prior = start_prior(problem)
        self.shared = {
            k: v.detach().clone().requires_grad_() for k, v in problem.model.shared.items()
        }
        self.step = MetaStep(problem.model, self.prior, self.method, problem.family)
        self.call: Callable[..., Outcome] = self.step
        if self.method.compile:
            self.call = compiled(self.step)
        self.deterministic = deterministic(problem)
        self.everyone = problem.family.batch()
        mean = self.prior.free["mean"].detach()
        self.solutions: Tensor | None = None
        if self.method.gradient.warm_start:
            self.solutions = mean.new_full((len(problem.family), len(mean)), torch.nan)

    def parameters(self) -> list[Tensor]:
        return [p for p in self.prior.parameters() if p.requires_grad] + [*self.shared.values()]

    def evaluate(self, batch: TaskBatch, both: Sets, noise: Tensor | Paths) -> Tensor:
        """() M, scaled to all tasks, whose autograd derivative is the method's meta-gradient."""
        free = {k: v.detach() for k, v in self.prior.free.items()}
        shared = {k: v.detach() for k, v in self.shared.items()}
        start = None if self.solutions is None else self.solutions[batch.index]
        params = self.step.params(free, shared, len(batch))
        outcome = self.call(params, *both, noise, start)
        if self.solutions is not None:
            self.solutions[batch.index] = outcome.solved.value
        tasks = len(self.problem.family)
        gradients = outcome.gradients
        by_name = {"mean": gradients["anchor"]["mean"].sum(0), **gradients["covariance"]}
        pairs = [(p, by_name[k]) for k, p in self.prior.free.items() if p.requires_grad]
        pairs += [(p, gradients["shared"][k]) for k, p in self.shared.items()]
        # A linear function with the rule's own derivative, through the value of M.
        linear = sum(((p - p.detach()) * g).sum() for p, g in pairs)
        value = total(outcome.values, tasks) + (tasks / len(batch)) * linear
        learned = self.prior.learn == "all"
        return value - (self.prior.log_hyperprior() if learned else 0.0)

    def draw(self, batch: TaskBatch, split: Split | None) -> Sets:
        """Support and query sets of a batch; the same at every step where the method says so."""
        query = self.problem.query
        if isinstance(self.method.objective, Validation) and query is not None:
            return batch, query.batch(batch.index)
        if split is None:
            return batch, batch
        return split.draw(batch, self.problem.generator)

    def drawn(self, batch: TaskBatch, split: Split | None) -> tuple[Sets, Tensor | Paths]:
        """The sets of a batch, and what is random in one step on them."""
        both = self.draw(batch, split)
        mean = self.prior.free["mean"].detach()
        return both, self.step.noise(both[0], mean, self.problem.generator)


def compiled(step: MetaStep) -> Callable[..., Outcome]:
    """The meta-step as one compiled graph."""
    return torch.compile(step.__call__, dynamic=False)


def deterministic(problem: Problem) -> bool:
    """Whether M is the same function at every step."""
    method, objective = problem.method, problem.method.objective
    if method.batch is not None:
        return False
    draws = method.posterior.form.name != "point" and not hasattr(objective, "points")
    if (draws or method.stochastic) and method.noise == "fresh":
        return False
    if not isinstance(objective, Validation) or objective.support is None:
        return True
    return problem.query is not None or not objective.fresh


def start_prior(problem: Problem) -> Prior:
    """The given prior, or one around the model's present weights."""
    prior, model = problem.prior, problem.model
    blocks = model.blocks.to(model.start.device)
    if prior.has_values:
        return prior.like(prior(), blocks)
    mean = model.start
    if prior.form.name == "point":
        return prior.like(Gaussian(mean), blocks)
    started = prior.like(Gaussian(mean, torch.full_like(mean, START_SD**2)), blocks)
    if prior.form.name == "lowrank":
        factor = started.free["factor"]
        waves = torch.arange(factor.numel(), device=factor.device).add(1).to(factor).sin()
        with torch.no_grad():
            factor.copy_(0.1 * START_SD * waves.reshape(factor.shape))
    return started


def _search(fit: _Fit) -> Trace:
    problem, method = fit.problem, fit.step.method
    objective = method.objective
    split = None
    if isinstance(objective, Validation) and objective.support and problem.query is None:
        split = Split(problem.family, objective.support)
    optimiser = method.optimiser
    if optimiser == "auto":
        exact = fit.deterministic and method.exact_gradient
        optimiser = "quasi-newton" if exact else "adam"
    asked = 'optimiser="quasi-newton"' if optimiser == "quasi-newton" else None
    if method.noise == "common" and (method.stochastic or method.posterior.form.name != "point"):
        asked = 'noise="common"'
    if asked is not None and not fit.deterministic:
        raise InputError(
            f"{asked} needs the same M at every step: leave batch= out, use Validation(fresh=False)"
            ' or support=None, and noise="common" for a Gaussian Q_i or a random algorithm'
        )
    fixed = fit.drawn(fit.everyone, split) if fit.deterministic else None
    if optimiser == "quasi-newton":
        assert fixed is not None
        return minimise(
            lambda: fit.evaluate(fit.everyone, *fixed),
            fit.parameters(),
            steps=method.steps or DETERMINISTIC_STEPS,
            tolerance=method.tolerance * len(problem.family),
            callbacks=problem.callbacks,
        )
    batches = stream(problem, fit.everyone)

    def noisy(step: int) -> Tensor:
        if fixed is not None:
            return fit.evaluate(fit.everyone, *fixed)
        batch = next(batches)
        return fit.evaluate(batch, *fit.drawn(batch, split))

    steps = method.steps or NOISY_STEPS
    if optimiser == "sgd":
        # Papers step along the mean over tasks; ψ, which they do not have, goes with Adam.
        prior = [p for p in fit.prior.parameters() if p.requires_grad]
        groups = [
            (torch.optim.SGD, prior, method.lr / len(problem.family)),
            (torch.optim.Adam, [*fit.shared.values()], SHARED_LR),
        ]
    else:
        groups = [(torch.optim.Adam, fit.parameters(), method.lr)]
    return descend(
        noisy,
        groups,
        steps=steps,
        callbacks=problem.callbacks,
    )


def estimate(problem: Problem) -> Estimate:
    """Minimise M over (θ₀, Σ₀, ψ), then adapt every task on all its rows."""
    fit = _Fit(problem)
    trace = _search(fit)
    shared = {k: v.detach() for k, v in fit.shared.items()}
    prior = problem.prior.like(_learned(fit, shared), problem.model.blocks)
    posterior, evidence, results = adapted(
        problem.with_prior(prior), shared, problem.family, problem.query
    )
    return Estimate(
        prior=prior,
        shared=shared,
        posterior=posterior,
        log_evidence=float(evidence.sum()),
        task_evidence=evidence,
        trace=trace,
        results=results,
    )


def _learned(fit: _Fit, shared: dict[str, Tensor]) -> Gaussian:
    """N(θ₀, Σ₀) as it was learned; where λ is given, Σ₀ = Λ⁻¹ of a task with the mean of rows."""
    gaussian = fit.prior().map(Tensor.detach)
    lam = fit.method.lam
    if lam is None:
        return gaussian
    family = fit.problem.family
    rows = 1.0 if family.mask is None else float(family.rows.double().mean())
    scale = fit.problem.model.paper_scale(fit.everyone, shared)
    return Gaussian(gaussian.mean, torch.ones_like(gaussian.mean) * scale / (lam * rows))


def adapted(
    problem: Problem,
    shared: dict[str, Tensor],
    family: TaskFamily,
    query: TaskFamily | None = None,
) -> tuple[Gaussian | Empirical, Tensor, list[Result]]:
    """Q_i of tasks by the method's own algorithm, and −M_i (task,).

    All rows of a task are its support for Q_i. Where M needs a query set, −M_i is of a random
    split of the rows, and NaN where a task has too few.

    Args:
        problem: with the prior to adapt under.
        shared: ψ.
        family: the tasks.
        query: their query sets, if they are given.
    """
    step = MetaStep(problem.model, problem.prior, problem.method, family)
    free = {k: v.detach() for k, v in problem.prior.free.items()}
    parts, evidence, results = [], [], []
    for index in torch.arange(len(family)).split(_together(problem, step, family)):
        some = family if len(index) == len(family) else family.subset(index)
        params = step.params(free, shared, len(some))
        with torch.no_grad():
            noise = step.noise(some.batch(), free["mean"], problem.generator, _samples(step))
            posterior, reached = step.adapt(params, some.batch(), noise)
            parts.append(posterior)
            del noise  # of all runs, the largest thing here
            seen = query if query is None or some is family else query.subset(index)
            value, ended = _values(problem, step, params, some, seen, posterior)
        evidence.append(value)
        if step.method.stochastic:  # a run that failed is in Q_i all the same
            pairs = zip(ended, reached.results(), strict=True)
            ended = [run if run in FAILURES else result for result, run in pairs]
        results += ended
    return _joined(parts), -torch.cat(evidence), results


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
    rounds = 1 if step.method.posterior.form.name == "point" else EVIDENCE_ROUNDS
    noises = (many.noise(both[0], theta, problem.generator) for _ in range(rounds))
    with torch.no_grad():
        values = [many.loss(theta[None], params, *both, noise)[0] / rounds for noise in noises]
    return torch.stack(values).sum(0)


def _together(problem: Problem, step: MetaStep, family: TaskFamily) -> int:
    """Tasks to adapt at a time: all their runs are in memory at once."""
    runs = _samples(step)
    if runs is None or not step.method.stochastic:
        return CHUNK
    data = sum(t[0].numel() for t in family.tensors.values())
    noisy = has(step.algorithm, "normals", "dropout")
    numbers = data + problem.model.dim * (1 + step.algorithm.steps * noisy)
    return max(1, min(CHUNK, LARGEST // (runs * numbers)))


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
