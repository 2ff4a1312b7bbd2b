"""Everything descends together: (θ₀, Σ₀, ψ) and every Q_i, for any model and any form of Q_i.

The expectation is by the linear predictor where the prediction is affine in (θ, ψ), at the point
for point Q_i, and by draws θ = m_i + S_i^{1/2} ε otherwise. Deterministic full-batch objectives go
to a quasi-Newton minimiser, the others to Adam.

Several processes share a fit by Adam: each rank holds the Q_i of its own tasks, with what Adam
keeps of them, and the gradients of (θ₀, Σ₀, ψ) are summed. Noise is drawn for all tasks on every
rank, so that each task's is what it is in one process. The quasi-Newton search has all Q_i in one
vector, whose every step depends on all of it; each rank computes the whole of it alike.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bayesmeta.gaussian import Gaussian
from bayesmeta.joint.descent import Descent
from bayesmeta.joint.problem import Estimate, Problem
from bayesmeta.objective import per_task
from bayesmeta.outer import Trace, descend, minimise
from bayesmeta.ranks import Ranks
from bayesmeta.results import Result
from bayesmeta.resuming import Local, telling_what_is_left

WARMUP_FROM = 0.02
NOISY_STEPS = 5000
DETERMINISTIC_STEPS = 3000
EVIDENCE_DRAWS = 16
EVIDENCE_ROUNDS = 16


def _search(descent: Descent) -> Trace:
    problem, method = descent.problem, descent.method
    if descent.deterministic:
        problem.refuse_checkpoint()
        return minimise(
            lambda: descent.value(descent.everyone, descent.common),
            descent.parameters(),
            steps=method.steps or DETERMINISTIC_STEPS,
            tolerance=method.tolerance,
            callbacks=problem.callbacks,
        )
    steps = method.steps or NOISY_STEPS
    rise = 0 if descent.affine else method.warmup * steps

    def objective(step: int) -> Tensor:
        batch = next(descent.batches)
        fresh = method.noise == "fresh" or len(batch) < len(descent.everyone)
        noise = descent.draw(len(batch), method.draws) if fresh else descent.common
        weight = 1.0 if step >= rise else WARMUP_FROM + (1 - WARMUP_FROM) * step / rise
        return descent.value(batch, noise, weight)

    return descend(
        objective,
        [(torch.optim.Adam, descent.parameters(), method.lr)],
        steps=steps,
        callbacks=problem.callbacks,
        after=descent.reset,
        checkpoint=problem.checkpoint,
        memory=descent,
        local=Local(list(descent.table.values()), descent.ranks, descent.mine),
    )


def _bound(descent: Descent) -> Tensor:
    """(task,) −M_i at β = 1, by many draws where draws are needed."""
    with torch.no_grad():
        posteriors, prior = descent.posteriors(), descent.present_prior()
        # A few draws at a time: all at once would need more memory than the fit.
        rounds = 1 if descent.settled else EVIDENCE_ROUNDS
        losses = torch.zeros_like(posteriors.mean[:, 0])
        for _ in range(rounds):
            noise = descent.draw(len(descent.everyone), EVIDENCE_DRAWS)[:, descent.mine]
            losses = losses + descent.losses(descent.own, posteriors, noise) / rounds
        return descent.ranks.gathered(-per_task(losses, posteriors, prior, 1.0))


def estimate(problem: Problem) -> Estimate:
    """Minimise M over everything."""
    ranks = Ranks.present()
    with telling_what_is_left(problem.checkpoint):
        problem.refuse_unlike(ranks)
        descent = Descent(problem, None, ranks)
        trace = _search(descent)
        bound, posterior = _bound(descent), descent.all_posteriors()
        present = descent.present_prior()
        failures = descent.failures.everywhere()
    with torch.no_grad():
        shared = {k: v.detach() for k, v in descent.unscaled().items()}
        prior = problem.prior.like(present.rescaled(descent.scale), problem.model.blocks)
        return Estimate(
            prior=prior,
            shared=shared,
            posterior=posterior.rescaled(descent.scale),
            log_evidence=float(bound.sum()),
            task_evidence=bound,
            trace=trace,
            results=_results(bound, trace),
            failures=failures,
        )


def adapted(problem: Problem, shared: dict[str, Tensor]) -> tuple[Gaussian, Tensor, list[Result]]:
    """Q_i and −M_i (task,) of a family under a prior and ψ that are held, by this process alone.

    Args:
        problem: with a prior that learns nothing.
        shared: ψ.
    """
    descent = Descent(problem, shared)
    trace = _search(descent)
    with torch.no_grad():
        bound = _bound(descent)
        posterior = descent.posteriors().rescaled(descent.scale)
    return posterior, bound, _results(bound, trace)


def _results(bound: Tensor, trace: Trace) -> list[Result]:
    finite = bound.isfinite().tolist()
    return [trace.result if ok else Result.nonfinite for ok in finite]
