"""Fits of each form of prior in each case: its spread by layer, and what it is worth."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import bayesmeta as bm
from studies.shrinkage.problem import CASES, LAYERS, Problem, by_layer

Row = dict[str, Any]
FORMS = {
    "isotropic": "isotropic",
    "block": "block",
    "diagonal": "diagonal",
    "low-rank": "lowrank(4)",
    "block, other start": "block",
}
"""Of Σ₀. All learn θ₀ too: the last from a network of its own, the others from the true one."""
OWN = "block, other start"
TRUTH = "truth"
SUPPORT = 4
AT_ONCE = 500


@dataclass(frozen=True)
class Size:
    """How much is computed.

    Args:
        seeds: networks, each with tasks of its own; the control has one.
        tasks, rows: that are fitted.
        steps: of the joint descent.
        unseen: new tasks, each with SUPPORT rows to adapt to and `query` to predict.
        query: see above.
        draws: of each prior, to be weighted by the rows of each new task.
    """

    seeds: int = 3
    tasks: int = 80
    rows: int = 30
    steps: int = 600
    unseen: int = 30
    query: int = 20
    draws: int = 3000


QUICK = Size(seeds=1, tasks=8, rows=10, steps=8, unseen=4, query=5, draws=20)


@dataclass(frozen=True, eq=False)
class Exact:
    """Posteriors of new tasks by weighted draws of the prior: no Q_i, and no error but of draws.

    Args:
        score: (task,) log p(y | support) in nats per query row.
        sd: (task, dim) of the posterior.
        effective: (task,) number of draws that the weighted ones are worth.
    """

    score: Tensor
    sd: Tensor
    effective: Tensor


def exactly(
    fit: bm.Fit,
    support: bm.TaskFamily,
    query: bm.TaskFamily,
    draws: int,
    generator: torch.Generator,
) -> Exact:
    """The same draws of N(θ₀, Σ₀) for all tasks, each weighted by p(support | θ).

    With a handful of rows the prior is wide enough a proposal, and every form is judged by its
    prior alone: a poor Q_i would blur what the forms are worth.
    """
    theta = fit.prior.sample(draws, generator)
    seen, unseen = [], []
    for part in theta.split(AT_ONCE):
        each = part[:, None].expand(-1, len(support), -1)
        seen.append(fit.log_likelihood(each, support).sum(-1))
        unseen.append(fit.log_likelihood(each, query))
    log_weight = torch.cat(seen).log_softmax(0)
    weight = log_weight.exp()
    mean = weight.mT @ theta
    variance = weight.mT @ theta.square() - mean.square()
    return Exact(
        score=(log_weight[..., None] + torch.cat(unseen)).logsumexp(0).mean(-1),
        sd=variance.clamp(min=0).sqrt(),
        effective=1 / weight.square().sum(0),
    )


def measured(size: Size, device: str) -> Iterator[Row]:
    """Rows of panel "layer", one per layer, and of panel "score", one per fit."""
    for case in CASES:
        for seed in range(size.seeds if case != "none" else 1):
            problem = Problem(case, seed)
            family = problem.family(size.tasks, size.rows, 0).to(device=device)
            unseen = problem.family(size.unseen, SUPPORT + size.query, 1).to(device=device)
            truth = None
            for form in (TRUTH, *FORMS):
                fit = _fit(problem, family, form, size)
                generator = torch.Generator().manual_seed(seed)
                split = unseen.split(SUPPORT, generator)
                found = exactly(fit, *split, size.draws, generator)
                truth = truth or found
                for row in _rows(problem, form, fit, found, truth):
                    yield row | {"steps": size.steps}


def _fit(problem: Problem, family: bm.TaskFamily, form: str, size: Size) -> bm.Fit:
    """A joint fit with diagonal Q_i; for TRUTH its prior is held where the tasks come from."""
    model = problem.model(family, known=form != OWN)
    if form == TRUTH:
        prior = problem.true_prior(model.blocks)
        return bm.fit(model, family, method=_joint(1), prior=prior, seed=problem.seed)
    closed = not FORMS[form].startswith("lowrank")  # there it is a factor analysis in every step
    method = _joint(size.steps, "closed_form" if closed else "gradient")
    return bm.fit(model, family, method=method, prior=bm.Prior(FORMS[form]), seed=problem.seed)


def _joint(steps: int, update: str = "gradient") -> bm.methods.Method:
    return bm.methods.joint(
        covariance="diagonal", steps=steps, lr=0.03, warmup=0.3, prior_update=update
    )


def _rows(problem: Problem, form: str, fit: bm.Fit, found: Exact, truth: Exact) -> Iterator[Row]:
    """What a fit says of each layer, and how well it predicts unseen tasks beside the truth."""
    common = {"case": problem.case, "seed": problem.seed, "form": form}
    spreads = (by_layer(sd.cpu()) for sd in (problem.sd, fit.prior.sd(), found.sd))
    for layer, true, prior, posterior in zip(LAYERS, *spreads, strict=True):
        yield common | {
            "panel": "layer",
            "layer": layer,
            "true_sd": true,
            "prior_sd": prior,
            "posterior_sd": posterior,
        }
    behind = truth.score - found.score
    yield common | {
        "panel": "score",
        "score": float(found.score.mean()),
        "behind": float(behind.mean()),
        "behind_se": float(behind.std() / len(behind) ** 0.5),
        "effective_draws": float(found.effective.median()),
        "log_evidence": None if form == TRUTH else fit.log_evidence,
    }
