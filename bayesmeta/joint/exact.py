"""Linear-Gaussian families: maximum likelihood or REML, with Q_i exact.

At the optimal full Q_i, −M is the log marginal likelihood, so minimising M over (θ₀, Σ₀, ψ, Q_i)
is maximum likelihood. θ₀ and the shared coefficients are profiled out, σ and A are descended on.
Of several processes every one computes the whole alike: each task is down to a few numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bayesmeta.gaussian import Gaussian
from bayesmeta.joint.problem import CovarianceRoot, Estimate, Problem
from bayesmeta.models import Model
from bayesmeta.outer import Trace, minimise
from bayesmeta.posteriors.conjugate import (
    Elimination,
    LinearTasks,
    condition,
    eliminate,
    log_evidence,
)
from bayesmeta.prior import Prior
from bayesmeta.results import InputError, Result
from bayesmeta.tasks import TaskBatch, TaskFamily

ZERO_SD = 3e-3
SNAP_NATS = 1e-5


def handles(model: Model, family: TaskFamily) -> bool:
    """Gaussian noise, and a prediction affine in (θ, ψ) jointly."""
    gaussian = getattr(model.likelihood, "name", None) == "gaussian"
    return gaussian and model.is_affine(family, jointly=True)


def applies(problem: Problem) -> bool:
    """Full Q_i and full batches, for a model it handles."""
    return problem.method.solves_posteriors and handles(problem.model, problem.family)


def known_errors(model: Model, batch: TaskBatch) -> Tensor | None:
    """(task, row) known noise sd: given row by row, or one number for all; None when learned."""
    if "standard_error" in batch.tensors:
        return batch.tensors["standard_error"]
    if any(name.startswith("likelihood.") for name in model.shared):
        return None
    scale = torch.as_tensor(model.require_likelihood().scale)
    return scale.to(model.response(batch.tensors)).expand(model.response(batch.tensors).shape)


def statistics(model: Model, batch: TaskBatch, prior: Prior) -> LinearTasks:
    """Sufficient statistics of a batch of tasks."""
    with torch.no_grad():
        design, constant = model.design(batch)
        mask = batch.mask
        response = model.response(batch.tensors)
        mask = torch.ones_like(response, dtype=torch.bool) if mask is None else mask
        return LinearTasks.build(
            design, response - constant, mask, adapted=model.dim, form=prior.form,
            errors=known_errors(model, batch),
        )  # fmt: skip


def estimate(problem: Problem) -> Estimate:
    """Maximise the evidence.

    Raises:
        InputError: the noise cannot be told apart from the spread of the tasks.
    """
    problem.refuse_checkpoint()
    model, prior, family = problem.model, problem.prior, problem.family
    tasks = statistics(model, family.batch(), prior)
    _refuse_unidentified(tasks, family, prior)
    root = CovarianceRoot(prior.form, model.blocks, tasks.yy, 1.0)
    start = 0.5 * (tasks.yy / 2 / max(tasks.observations, 1)).clamp(min=1e-300).log()
    log_noise = torch.zeros_like(start) if tasks.known_noise else start.clone().requires_grad_()
    free, held = _fixed_effects(tasks, prior)

    def relative_root() -> Tensor:
        if prior.learn == "all":
            return root()
        absolute = torch.linalg.solve(tasks.to_theta, prior().root().to(tasks.yy))
        return absolute * (-log_noise).exp()

    def objective() -> Tensor:
        part = eliminate(tasks, relative_root(), free, held)
        value = -log_evidence(tasks, part, log_noise, reml=problem.reml)
        return value - _log_hyperprior(prior, tasks, root, log_noise)

    parameters = ([] if tasks.known_noise else [log_noise]) + (
        root.parameters if prior.learn == "all" else []
    )
    trace = minimise(
        objective,
        parameters,
        steps=problem.steps,
        tolerance=problem.method.tolerance * len(problem.family),
        callbacks=problem.callbacks,
    )
    with torch.no_grad():
        if prior.learn == "all" and prior.hyperprior is None:
            root.snap(ZERO_SD, objective, slack=SNAP_NATS)
        part = eliminate(tasks, relative_root(), free, held)
        evidence = log_evidence(tasks, part, log_noise, reml=problem.reml)
        return _assemble(problem, tasks, root, part, log_noise, evidence, trace)


def _assemble(
    problem: Problem, tasks: LinearTasks, root: CovarianceRoot,
    part: Elimination, log_noise: Tensor, evidence: Tensor, trace: Trace,
) -> Estimate:  # fmt: skip
    model, prior = problem.model, problem.prior
    noise = log_noise.detach().exp()
    b = tasks.b_start + tasks.to_b @ part.fixed
    theta0 = b[: model.dim]
    if prior.learn == "all":
        fitted = prior.like(root.gaussian(theta0, noise * tasks.to_theta), model.blocks)
    elif prior.learn == "mean":
        held = prior()
        fitted = prior.like(Gaussian(theta0, held.diagonal, held.factor), model.blocks)
    else:
        fitted = prior
    basis = tasks.to_b @ part.free
    covariance = noise.square() * basis @ torch.linalg.solve(part.information, basis.mT)
    shared = _shared(model, b, log_noise)
    posterior, parts = adapted(model, fitted(), shared, problem.family)
    return Estimate(
        prior=fitted,
        shared=shared,
        posterior=posterior,
        log_evidence=float(evidence),
        task_evidence=parts,
        trace=trace,
        results=[Result.converged] * len(problem.family),
        fixed_covariance=covariance,
    )


def adapted(
    model: Model, prior: Gaussian, shared: dict[str, Tensor], family: TaskFamily
) -> tuple[Gaussian, Tensor]:
    """Q_i and the log evidence (task,) of tasks under a prior and ψ that are held.

    Args:
        model: affine, Gaussian.
        prior: N(θ₀, Σ₀).
        shared: ψ.
        family: the tasks.
    """
    batch = family.batch()
    with torch.no_grad():
        design, constant = model.design(batch)
        response = model.response(batch.tensors)
        b = torch.cat([prior.mean, *[shared[k].flatten() for k in model.shared_weights]])
        errors = known_errors(model, batch)
        if errors is None:
            errors = shared["likelihood.log_scale"].exp().expand(response.shape)
        mask = torch.ones_like(response, dtype=torch.bool) if batch.mask is None else batch.mask
        residual = response - constant - design @ b
        return condition(design[..., : model.dim], residual, errors, mask, prior)


def _fixed_effects(tasks: LinearTasks, prior: Prior) -> tuple[Tensor, Tensor]:
    """Basis of the fixed effects that are estimated, and where the others stand, in b'."""
    fixed = len(tasks.b_start)
    eye = torch.eye(fixed, dtype=tasks.yy.dtype, device=tasks.yy.device)
    if prior.learn != "none":
        return eye, torch.zeros_like(tasks.b_start)
    inverse = torch.linalg.inv(tasks.to_b)
    wanted = torch.zeros_like(tasks.b_start)
    wanted[: tasks.adapted] = prior().mean
    return inverse[:, tasks.adapted :], inverse @ (wanted - tasks.b_start)


def _log_hyperprior(
    prior: Prior, tasks: LinearTasks, root: CovarianceRoot, log_noise: Tensor
) -> Tensor | float:
    """½ log|Σ₀| with Σ₀ = σ² T A' A'ᵀ Tᵀ."""
    if prior.hyperprior is None or prior.learn != "all":
        return 0.0
    half = root()
    gram = half @ half.mT
    change = torch.linalg.slogdet(tasks.to_theta).logabsdet  # T may mirror a coordinate
    return 0.5 * torch.logdet(gram) + change + tasks.adapted * log_noise


def _shared(model: Model, b: Tensor, log_noise: Tensor) -> dict[str, Tensor]:
    """ψ by name: the module's shared weights from b, the noise from log σ."""
    shared = model.split_shared(b[model.dim :])
    if "likelihood.log_scale" in model.shared:
        shared["likelihood.log_scale"] = log_noise.detach().clone()
    return shared


def _refuse_unidentified(tasks: LinearTasks, family: TaskFamily, prior: Prior) -> None:
    if tasks.known_noise or prior.learn != "all":
        return
    if int(family.rows.max()) <= 1:
        raise InputError(
            "every task has a single row, so the noise cannot be told apart from the spread of "
            "the tasks: give known standard errors (standard_error=), or a known noise scale"
        )
    if float(tasks.yy) <= 1e-20 * tasks.observations * (1 + float(tasks.b_start.square().sum())):
        raise InputError(
            "the predictors fit the response without any error, so there is no noise to estimate: "
            "check that the response is not computed from a predictor"
        )
