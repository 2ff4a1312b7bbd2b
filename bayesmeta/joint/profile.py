"""Every Q_i solved to the end at each outer step, and M then descended on in (θ₀, Σ₀, ψ).

At the solved Q_i, ∂M/∂Q_i = 0, so the gradient of the profiled M is the partial one with Q_i held
(`Direct`, exact by the envelope theorem). For likelihoods without a closed form and few weights:
any prediction affine in (θ, ψ), or any energy with up to three weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bayesmeta.expectation import (
    NODE_DIM_LIMIT,
    LinearExpectation,
    NodeExpectation,
)
from bayesmeta.gaussian import Gaussian, triangular
from bayesmeta.inner.expected_newton import State, solve
from bayesmeta.joint.problem import CovarianceRoot, Estimate, Problem
from bayesmeta.models import Model
from bayesmeta.outer import Trace, minimise
from bayesmeta.posteriors.conjugate import least_squares, orthonormal, rescaling
from bayesmeta.prior import Prior
from bayesmeta.results import Result
from bayesmeta.tasks import TaskFamily

DIM_LIMIT = 30
ZERO_SD = 3e-3
SNAP_NATS = 1e-4
TOLERANCE = 1e-8
SHAPES = ("likelihood.log_df", "likelihood.log_concentration")


def handles(model: Model, family: TaskFamily) -> bool:
    """An expectation that can be computed without draws, and few weights."""
    if model.dim > DIM_LIMIT:
        return False
    return model.dim <= NODE_DIM_LIMIT or model.is_affine(family, jointly=True)


def applies(problem: Problem) -> bool:
    """Full Q_i and full batches, for a model it handles."""
    if problem.prior.form.name == "lowrank" and not problem.model.is_affine(
        problem.family, jointly=True
    ):
        return False  # the product nodes are those of a square root with as many columns as weights
    return problem.method.solves_posteriors and handles(problem.model, problem.family)


@dataclass(frozen=True, eq=False)
class Coordinates:
    """E f in well-scaled coordinates: location = start + to_location location', θ = to_theta θ'.

    Args:
        expectation: of the loss.
        to_location: (m, m).
        to_theta: (p, p).
        start: (m,) θ₀, and for a linear predictor ψ's weights after it.
        unit: () residual sd of a real response about least squares.
    """

    expectation: LinearExpectation | NodeExpectation
    to_location: Tensor
    to_theta: Tensor
    start: Tensor
    unit: Tensor | None = None


def coordinates(model: Model, family: TaskFamily, prior: Prior) -> Coordinates:
    """The expectation that fits the model, and a scaling for the outer descent."""
    batch = family.batch()
    start = model.start
    if model.is_affine(family, jointly=True):
        with torch.no_grad():
            design, constant = model.design(batch)
        weight = 1.0 if batch.mask is None else batch.mask.unsqueeze(-1)
        pooled = (design * weight).flatten(0, 1)
        weights = [w.detach().flatten() for w in model.shared_weights.values()]
        expectation = LinearExpectation(model, batch, design[..., : model.dim], design, constant)
        to_theta = rescaling(pooled[:, : model.dim], prior.form)
        to_location, place, unit = orthonormal(pooled), torch.cat([start, *weights]), None
        if model.require_likelihood().responses == "real":
            # In units of the residual, from least squares: the search does not see y's units.
            y = model.response(batch.tensors)
            place, unit = least_squares(design, y - constant, batch.mask)
            to_location, to_theta = unit * to_location, unit * to_theta
        return Coordinates(expectation, to_location, to_theta, place, unit)
    eye = torch.eye(model.dim, dtype=start.dtype, device=start.device)
    return Coordinates(NodeExpectation.build(model, batch, start), eye, eye, start)


class _Fit:
    """The tensors descended on, and M as a function of them."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.at = coordinates(problem.model, problem.family, problem.prior)
        self.location = torch.zeros_like(self.at.start).requires_grad_()
        self.root = CovarianceRoot(problem.prior.form, problem.model.blocks, self.at.start, 0.5)
        linear = isinstance(self.at.expectation, LinearExpectation)
        free = problem.model.shared
        names = [k for k in free if not (linear and k.startswith("module."))]
        self.shared = {k: free[k].detach().clone().requires_grad_() for k in names}
        if self.at.unit is not None and "likelihood.log_scale" in self.shared:
            with torch.no_grad():
                self.shared["likelihood.log_scale"].copy_(self.at.unit.log())
        self.state = State.at_prior(len(problem.family), self.covariance_root().detach())

    def place(self) -> Tensor:
        """(θ₀, ψ's weights) in original coordinates; θ₀ held where the prior is."""
        location = self.at.start + self.at.to_location @ self.location
        if self.problem.prior.learn != "none":
            return location
        return torch.cat([self.problem.prior().mean.detach(), location[self.problem.model.dim :]])

    def covariance_root(self) -> Tensor:
        """A with Σ₀ = A Aᵀ, in original coordinates."""
        if self.problem.prior.learn == "all":
            return self.at.to_theta @ self.root()
        return self.problem.prior().root().detach()

    def parameters(self) -> list[Tensor]:
        learn, extra = self.problem.prior.learn, len(self.at.start) > self.problem.model.dim
        location = [self.location] if learn != "none" or extra else []
        return location + [*self.shared.values()] + (self.root.parameters if learn == "all" else [])

    def pooled(self) -> Tensor:
        """M with Σ₀ = 0: every task at θ₀."""
        nothing = Gaussian(
            self.at.start.new_zeros(len(self.problem.family), self.problem.model.dim)
        )
        return self.at.expectation.value(self.place(), self.shared, nothing).sum()

    def objective(self) -> Tensor:
        """M at the solved Q_i, minus the log hyper-prior; warm-started from the last call."""
        place, root = self.place(), self.covariance_root()
        state = solve(
            self.at.expectation, place, self.shared, root, self.state, tolerance=TOLERANCE
        )
        self.state = state
        return self.losses().sum() + state.divergence().sum() - self._log_hyperprior(root)

    def losses(self) -> Tensor:
        """(task,) E f_i at the present Q_i."""
        deviation = self.state.deviation(self.covariance_root())
        return self.at.expectation.value(self.place(), self.shared, deviation)

    def _log_hyperprior(self, root: Tensor) -> Tensor | float:
        if self.problem.prior.hyperprior is None or self.problem.prior.learn != "all":
            return 0.0
        return 0.5 * torch.logdet(root @ root.mT)


def estimate(problem: Problem) -> Estimate:
    """Minimise M: first with every task at θ₀, from there with all."""
    fit = _Fit(problem)
    # Shape constants (df, concentration) wait: without tasks of their own they run to a limit.
    later = [*fit.root.parameters, *(v for k, v in fit.shared.items() if k in SHAPES)]
    first = [p for p in fit.parameters() if not any(p is q for q in later)]
    minimise(fit.pooled, first, steps=problem.steps, tolerance=1e-3)
    trace = minimise(
        fit.objective,
        fit.parameters(),
        steps=problem.steps,
        tolerance=problem.method.tolerance * len(problem.family),
        callbacks=problem.callbacks,
    )
    if problem.prior.learn == "all" and problem.prior.hyperprior is None:
        fit.root.snap(ZERO_SD, fit.objective, slack=SNAP_NATS)
    value = float(fit.objective().detach())
    with torch.no_grad():
        return _assemble(fit, -value, trace)


def _assemble(fit: _Fit, evidence: float, trace: Trace) -> Estimate:
    problem, place = fit.problem, fit.place()
    model, prior = problem.model, problem.prior
    theta0 = place[: model.dim]
    fitted = prior
    if prior.learn == "all":
        fitted = prior.like(fit.root.gaussian(theta0, fit.at.to_theta), model.blocks)
        evidence -= float(prior.log_hyperprior(fitted()))
    elif prior.learn == "mean":
        held = prior()
        fitted = prior.like(Gaussian(theta0, held.diagonal, held.factor), model.blocks)
    shared = {k: v.detach() for k, v in fit.shared.items()}
    shared |= model.split_shared(place[model.dim :]) if len(place) > model.dim else {}
    return Estimate(
        prior=fitted,
        shared=shared,
        posterior=_posterior(fit.state, theta0, fit.covariance_root()),
        log_evidence=evidence,
        task_evidence=-(fit.losses() + fit.state.divergence()),
        trace=trace,
        results=fit.state.results(TOLERANCE * 100),
    )


def _posterior(state: State, theta0: Tensor, root: Tensor) -> Gaussian:
    deviation = state.deviation(root)
    assert deviation.factor is not None
    return Gaussian(theta0 + deviation.mean, None, triangular(deviation.factor))


def adapted(
    model: Model,
    prior: Gaussian,
    shared: dict[str, Tensor],
    family: TaskFamily,
    start: Gaussian | None = None,
) -> tuple[Gaussian, Tensor, list[Result]]:
    """Q_i and the evidence bound (task,) of tasks under a prior and ψ that are held.

    Args:
        model: one that `applies` accepts.
        prior: N(θ₀, Σ₀).
        shared: ψ.
        family: the tasks.
        start: Q_i to begin from; the prior by default.
    """
    batch = family.batch()
    location = prior.mean
    if model.is_affine(family, jointly=True):
        with torch.no_grad():
            design, constant = model.design(batch)
        expectation = LinearExpectation(model, batch, design[..., : model.dim], design, constant)
        weights = [shared[k].flatten() for k in model.shared_weights]
        location = torch.cat([prior.mean, *weights])
    else:
        expectation = NodeExpectation.build(model, batch, prior.mean)
    root = prior.root()
    with torch.no_grad():
        begin = State.at_prior(len(family), root)
        if start is not None:
            inverse = torch.linalg.inv(root)
            begin = State.of(start.linear(inverse, -inverse @ prior.mean))
        state = solve(expectation, location, shared, root, begin, tolerance=TOLERANCE)
        loss = expectation.value(location, shared, state.deviation(root))
        bound = -(loss + state.divergence())
    return _posterior(state, prior.mean, root), bound, state.results(TOLERANCE * 100)
