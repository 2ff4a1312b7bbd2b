"""Every task solved to the end at each outer step, and M then descended on in (θ₀, Σ₀, ψ).

Two ways to take the tasks' own unknowns out of M, behind one interface:

    Bound       the best full Gaussian Q_i. There ∂M/∂Q_i = 0, so the gradient is the partial one
                with Q_i held (the envelope theorem).
    Evidence    the mode of every task, and around it Laplace's method or quadrature. The gradient
                goes through mode and curvature (the implicit function theorem).

For few weights: the bound of likelihoods without a closed form, where the prediction is affine in
(θ, ψ), or any energy with up to three weights; the evidence of any model with up to thirty. Of
several processes every one computes the whole alike.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from bayesmeta.expectation import NODE_DIM_LIMIT, LinearExpectation, NodeExpectation
from bayesmeta.gaussian import Gaussian
from bayesmeta.inner.expected_newton import State
from bayesmeta.joint import coordinates, newton
from bayesmeta.joint.coordinates import SHAPES, Coordinates
from bayesmeta.joint.evidence import STEPS, Evidence
from bayesmeta.joint.expected import Bound
from bayesmeta.joint.losses import GeneralTasks, LinearTasks
from bayesmeta.joint.problem import CovarianceRoot, Estimate, Problem
from bayesmeta.method import Method, with_curvature
from bayesmeta.models import Model
from bayesmeta.objective import Evidence as EvidenceObjective
from bayesmeta.outer import Trace, minimise
from bayesmeta.posteriors.proximal import Proximal
from bayesmeta.results import Result
from bayesmeta.tasks import TaskFamily

DIM_LIMIT = 30
ZERO_SD = 3e-3
SNAP_NATS = 1e-4
Shared = dict[str, Tensor]


class Tasks(Protocol):
    """M as a function of (θ₀, A, ψ), the tasks' own unknowns solved for; `state` is theirs."""

    def begin(self, tasks: int, root: Tensor) -> Any: ...
    def solve(self, location: Tensor, shared: Shared, root: Tensor, state: Any) -> Any: ...
    def value(self, location: Tensor, shared: Shared, root: Tensor, state: Any) -> Tensor: ...
    def pooled(self, location: Tensor, shared: Shared) -> Tensor: ...
    def posterior(self, location: Tensor, shared: Shared, root: Tensor, state: Any) -> Gaussian: ...
    def results(
        self, location: Tensor, shared: Shared, root: Tensor, state: Any
    ) -> list[Result]: ...


def handles(model: Model, family: TaskFamily) -> bool:
    """An expectation that can be computed without draws, and few weights."""
    if model.dim > DIM_LIMIT:
        return False
    return model.dim <= NODE_DIM_LIMIT or model.is_affine(family, jointly=True)


def applies(problem: Problem) -> bool:
    """Full Q_i and full batches, or the evidence, for a model it handles."""
    method, model = problem.method, problem.model
    if not method.solves_posteriors:
        return False
    if isinstance(method.objective, EvidenceObjective):
        held = isinstance(method.posterior, Proximal) and method.posterior.lam is not None
        return model.dim <= DIM_LIMIT and not held
    if problem.prior.form.name == "lowrank" and not model.is_affine(problem.family, jointly=True):
        return False  # the product nodes are those of a square root with as many columns as weights
    return handles(model, problem.family)


def _tasks(
    model: Model, family: TaskFamily, method: Method | None, design: tuple[Tensor, Tensor] | None
) -> Tasks:
    """M by the method's objective; `design` of an affine prediction."""
    batch, p = family.batch(), model.dim
    evidence = method is not None and isinstance(method.objective, EvidenceObjective)
    if design is None:
        if not evidence:
            return Bound(NodeExpectation.build(model, batch, model.start))
        view = GeneralTasks(model, batch)
    else:
        parts = (model, batch, design[0][..., :p], *design)
        if not evidence:
            return Bound(LinearExpectation(*parts))
        view = LinearTasks(*parts)
    assert method is not None
    canonical = design is not None or model.likelihood is None or model.is_affine(family)
    posterior, objective = with_curvature(method, canonical, model.dim).posterior, method.objective
    assert isinstance(posterior, Proximal)
    assert isinstance(objective, EvidenceObjective)
    steps = getattr(method.inner, "steps", STEPS)
    return Evidence(view, objective.points, posterior.curvature, posterior.covariance, steps)


def _design(model: Model, family: TaskFamily) -> tuple[Tensor, Tensor] | None:
    """W and c of a prediction affine in (θ, ψ); None for any other."""
    if not model.is_affine(family, jointly=True):
        return None
    with torch.no_grad():
        return model.design(family.batch())


class _Fit:
    """The tensors descended on, and M as a function of them."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        model, family, prior = problem.model, problem.family, problem.prior
        design = _design(model, family)
        self.tasks = _tasks(model, family, problem.method, design)
        self.at: Coordinates = (
            coordinates.general(model, family, prior)
            if design is None
            else coordinates.linear(model, family, prior.form, *design)
        )
        self.location = torch.zeros_like(self.at.start).requires_grad_()
        self.root = CovarianceRoot(prior.form, model.blocks, self.at.start, 0.5)
        constants = {k: v for k, v in model.shared.items() if not k.startswith("module.")}
        constants = {k: self.at.constants.get(k, v) for k, v in constants.items()}
        self.shared = {k: v.detach().clone().requires_grad_() for k, v in constants.items()}
        self.moving = self._moving()
        self.state = self.tasks.begin(len(family), self.covariance_root().detach())

    def _moving(self) -> list[Tensor]:
        """The constants that M depends on: a noise sd does not enter where the rows have theirs."""
        constants = [*self.shared.values()]
        if not constants:
            return []
        slopes = torch.autograd.grad(self.pooled(), constants, allow_unused=True)
        return [c for c, slope in zip(constants, slopes, strict=True) if slope is not None]

    def place(self) -> Tensor:
        """(θ₀, the module's ψ) in original coordinates; θ₀ held where the prior is."""
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
        return location + self.moving + (self.root.parameters if learn == "all" else [])

    def pooled(self) -> Tensor:
        """M with Σ₀ = 0: every task at θ₀."""
        return self.tasks.pooled(self.place(), self.shared)

    def objective(self) -> Tensor:
        """M at the solved tasks, minus the log hyper-prior; warm-started from the last call."""
        place, root = self.place(), self.covariance_root()
        held = {k: v.detach() for k, v in self.shared.items()}
        self.state = self.tasks.solve(place.detach(), held, root.detach(), self.state)
        value = self.tasks.value(place, self.shared, root, self.state).sum()
        return value - self._log_hyperprior(root)

    def _log_hyperprior(self, root: Tensor) -> Tensor | float:
        if self.problem.prior.hyperprior is None or self.problem.prior.learn != "all":
            return 0.0
        return 0.5 * torch.logdet(root @ root.mT)


def estimate(problem: Problem) -> Estimate:
    """Minimise M: first with every task at θ₀, from there with all."""
    problem.refuse_checkpoint()
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
    at = (place, shared, fit.covariance_root(), fit.state)
    return Estimate(
        prior=fitted,
        shared=shared | model.split_shared(place[model.dim :]),
        posterior=fit.tasks.posterior(*at),
        log_evidence=evidence,
        task_evidence=-fit.tasks.value(*at),
        trace=trace,
        results=fit.tasks.results(*at),
    )


def adapted(
    model: Model,
    prior: Gaussian,
    shared: dict[str, Tensor],
    family: TaskFamily,
    start: Gaussian | None = None,
    method: Method | None = None,
) -> tuple[Gaussian, Tensor, list[Result]]:
    """Q_i and the evidence or its bound (task,) of tasks under a prior and ψ that are held.

    Args:
        model: one that `applies` accepts.
        prior: N(θ₀, Σ₀).
        shared: ψ.
        family: the tasks.
        start: Q_i to begin from, under a nonsingular prior; the prior by default.
        method: whose objective; the bound by default.
    """
    tasks = _tasks(model, family, method, _design(model, family))
    weights = [shared[k].flatten() for k in model.shared_weights]
    place, root = torch.cat([prior.mean, *weights]), prior.root()
    with torch.no_grad():
        state = tasks.begin(len(family), root)
        if start is not None:
            inverse = torch.linalg.pinv(root)
            state = _started(state, start.linear(inverse, -inverse @ prior.mean))
        state = tasks.solve(place, shared, root, state)
        at = (place, shared, root, state)
        return tasks.posterior(*at), -tasks.value(*at), tasks.results(*at)


def _started(state: State | newton.Minimum, start: Gaussian) -> State | newton.Minimum:
    """A state at given Q_i in u coordinates."""
    if isinstance(state, State):
        return State.of(start)
    return newton.Minimum(start.mean, state.second, state.residual)
