"""Q_i of tasks under a prior and ψ that are held: adaptation, and its limit of a vague prior."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor

from bayesmeta.amortised import estimate as amortised
from bayesmeta.amortised.checks import check_anchor, check_minibatches
from bayesmeta.empirical import Empirical
from bayesmeta.gaussian import Gaussian
from bayesmeta.inner.noise import has
from bayesmeta.joint import exact, gradient, profile
from bayesmeta.joint.problem import Problem
from bayesmeta.method import Method
from bayesmeta.models import Model
from bayesmeta.models.dropout import install
from bayesmeta.models.matching import ready
from bayesmeta.prior import Prior
from bayesmeta.results import InputError, Result
from bayesmeta.tasks import TableInfo, TaskFamily

VAGUE = 1e3
IDENTIFIED = 0.1
SENSIBLE = 10.0


def check_values(model: Model, family: TaskFamily) -> None:
    """Refuse values that are not finite, and responses the likelihood gives no probability."""
    if model.likelihood is None:
        return
    for name, tensor in family.tensors.items():
        bad = (~tensor.isfinite()).flatten(1).any(1).nonzero().flatten().tolist()
        if bad:
            raise InputError(
                f"{name} of task {family.names[bad[0]]!r} holds a value that is not finite: "
                "correct it, or leave the row out"
            )
    y, options = model.response(family.tensors), model.options(family.tensors)
    model.likelihood.check(y, family.mask, names=family.names, **options)


def check_reading(ours: TableInfo | None, family: TaskFamily) -> None:
    """Refuse a family that was read from a table otherwise than the fitted one.

    Raises:
        InputError: other columns, coding or response.
    """
    theirs = family.table
    if ours is None or theirs is None or ours is theirs:
        return
    for what in ("columns", "adapted", "coding", "response"):
        wanted, got = getattr(ours, what), getattr(theirs, what)
        if wanted != got and not (what == "response" and "y" not in family.tensors):
            raise InputError(
                f"the new table was read with other {what} than the fitted one ({got}, not "
                f"{wanted}): read it with fit.read(data)"
            )


def adapt_tasks(
    model: Model,
    prior: Prior,
    method: Method,
    solver: str,
    family: TaskFamily,
    generator: torch.Generator,
) -> tuple[Gaussian | Empirical, Tensor, list[Result]]:
    """Q_i, the evidence or its bound (task,), and how each task ended.

    Args:
        model: with fitted ψ.
        prior: with fitted values.
        method, solver: of the fit.
        family: the tasks, in internal units.
        generator: the noise of draws.
    """
    if has(method.inner, "dropout"):
        model = copy.deepcopy(model)
        install(model)
    model = ready(model, family)
    check_values(model, family)
    shared = {k: v.detach() for k, v in model.shared.items()}
    held = Prior(prior.form, learn="none").like(prior(), model.blocks)
    if solver == "exact":
        posterior, evidence = exact.adapted(model, held(), shared, family)
        return posterior, evidence, [Result.converged] * len(family)
    if solver == "profile":
        return profile.adapted(model, held(), shared, family, method=method)
    if solver == "amortised":
        check_minibatches(model, method, family)
        if method.stochastic:
            check_anchor(method, held)
        problem = Problem(model, family, held, method, False, generator)
        return amortised.adapted(problem, shared, family)
    method = replace(method, batch=None, reset_every=None, prior_update="gradient")
    problem = Problem(model, family, held, method, False, generator)
    return gradient.adapted(problem, shared)


def vague_estimates(
    model: Model, prior: Gaussian, posteriors: Gaussian | Empirical, family: TaskFamily
) -> Gaussian:
    """Q_i under a prior a thousand times as wide, NaN where even that prior still decides.

    Args:
        model: with fitted ψ.
        prior: the fitted N(θ₀, Σ₀).
        posteriors: fitted Q_i, where the search begins.
        family: the tasks, in internal units.

    Returns:
        Gaussians with a task axis; all NaN for a model with many weights that is not linear.
    """
    nothing = torch.full_like(posteriors.mean, torch.nan)
    if not (exact.handles(model, family) or profile.handles(model, family)):
        return Gaussian(nothing, nothing)
    typical = torch.maximum(prior.sd(), posteriors.sd().mean(0))
    typical = torch.where(typical > 0, typical, prior.mean.abs().clamp(min=1.0))
    wide = Gaussian(prior.mean, None, torch.diag(VAGUE * typical))
    shared = {k: v.detach() for k, v in model.shared.items()}
    if exact.handles(model, family):
        estimate, _ = exact.adapted(model, wide, shared, family)
    else:
        narrow = torch.diag_embed((0.1 * typical).square().expand(posteriors.mean.shape))
        start = Gaussian.from_covariance(posteriors.mean, posteriors.covariance() + narrow)
        estimate, _, _ = profile.adapted(model, wide, shared, family, start)
    exactly = exact.handles(model, family)
    # Beyond a few prior sds the quadrature of a discrete likelihood means nothing.
    widest = IDENTIFIED * VAGUE if exactly else SENSIBLE
    alone = estimate.sd() < widest * typical
    mean = torch.where(alone, estimate.mean, torch.nan)
    return Gaussian(mean, torch.where(alone, estimate.variance(), torch.nan))
