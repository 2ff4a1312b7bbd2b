"""One meta-step: adapt every task, form Q_i, evaluate M, and differentiate it by the gradient rule.

    dM/dp = ∂M/∂p |_{θ* held} + vᵀ dθ*/dp,    v = ∂M/∂θ*,    p = (θ₀, Σ₀, ψ)

Pure functions of tensors, all tasks at once: what `torch.compile` takes as it is.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad

from bayesmeta.gaussian import Gaussian
from bayesmeta.gradients.rule import Build, Params, Solved
from bayesmeta.inner.loop import Adapted, Algorithm, adapt
from bayesmeta.inner.problem import InnerProblem
from bayesmeta.method import Method, with_curvature
from bayesmeta.models import Model
from bayesmeta.objective import Evidence, Validation, Variational, per_task
from bayesmeta.posteriors.proximal import Proximal, log_volume
from bayesmeta.prior import Prior
from bayesmeta.results import InputError
from bayesmeta.tasks import TaskBatch, TaskFamily

LEARNED_STEPS = "inner.lr"


@dataclass(frozen=True, eq=False)
class Outcome:
    """What one meta-step computes.

    Args:
        values: (task,) M_i in nats.
        gradients: of Σ M_i, shaped like the parameters.
        adapted: θ* and how the inner solves went.
        pull: (task,) ‖Λ(θ* − θ₀)‖, which ‖∇f‖ equals where θ* is stationary; 0 without an anchor.
        solved: how the linear solves went.
    """

    values: Tensor
    gradients: Params
    adapted: Adapted
    pull: Tensor
    solved: Solved


class MetaStep:
    """The meta-step of a method, for a model and a form of prior.

    Args:
        model: bound to the family.
        prior: its form and blocks; the values come with each call.
        method: with Proximal or Algorithmic Q_i.
        family: decides what "auto" curvature means.
    """

    def __init__(self, model: Model, prior: Prior, method: Method, family: TaskFamily) -> None:
        linear = model.likelihood is None or model.is_affine(family)
        self.model, self.prior = model, prior
        lam = getattr(method.posterior, "lam", 1.0)
        if prior.form.name == "point" and lam is None:
            raise InputError(
                'a prior of the form "point" has no Λ = Σ₀⁻¹ to anchor Proximal Q_i: give lam=, or '
                'a prior of another form, such as "isotropic"'
            )
        self.method = with_curvature(method, linear, model.dim)
        points = getattr(method.objective, "points", 1)
        if points > 1:
            raise InputError(
                f"points={points} is for fits of up to three weights by full batches; here use "
                "points=1, Laplace's method"
            )

    def using(self, method: Method) -> MetaStep:
        """The same step by another method."""
        other = copy.copy(self)
        other.method = method
        return other

    @property
    def algorithm(self) -> Algorithm:
        assert self.method.inner is not None
        return self.method.inner

    def params(self, free: dict[str, Tensor], shared: dict[str, Tensor], tasks: int) -> Params:
        """θ₀ once per task, Σ₀'s free entries, ψ."""
        anchor = free["mean"].expand(tasks, -1)
        covariance = {k: v for k, v in free.items() if k != "mean"}
        return {"anchor": {"mean": anchor}, "covariance": covariance, "shared": shared}

    def anchor(self, params: Params, batch: TaskBatch) -> Gaussian:
        """N(θ₀, Σ₀) with a task axis on its mean; Λ_i = n_i λ I, over 2σ², where λ is given."""
        mean = params["anchor"]["mean"]
        lam = getattr(self.method.posterior, "lam", None)
        if lam is None:
            free = {"mean": mean} | params["covariance"]
            return self.prior.form.constrain(free, self.prior.blocks)
        rows = 1.0 if batch.mask is None else batch.mask.sum(1, keepdim=True).to(mean)
        scale = self.model.paper_scale(batch, params["shared"])
        return Gaussian(mean, torch.ones_like(mean) * scale / (lam * rows))

    def build(self, support: TaskBatch) -> Build:
        """The inner problem as a function of the parameters."""
        anchored = isinstance(self.method.posterior, Proximal)

        def problem(params: Params) -> InnerProblem:
            anchor = self.anchor(params, support) if anchored else None
            start = params["anchor"]["mean"]
            return InnerProblem(self.model, support, params["shared"], start, anchor)

        return problem

    def posterior(self, problem: InnerProblem, theta: Tensor) -> Gaussian:
        """Q_i at θ*."""
        kind = self.method.posterior
        return kind.at(problem, theta) if isinstance(kind, Proximal) else Gaussian(theta)

    def loss(
        self, theta: Tensor, params: Params, support: TaskBatch, query: TaskBatch, noise: Tensor
    ) -> Tensor:
        """(task,) M_i as a function of θ* and the parameters.

        Args:
            theta: (task, dim) θ*.
            params: θ₀, Σ₀, ψ.
            support, query: S_i and V_i.
            noise: (draw, task, noise_dim) standard normals, for a Gaussian Q_i.
        """
        problem, objective = self.build(support)(params), self.method.objective
        if isinstance(objective, Evidence):
            kind = getattr(self.method.posterior, "curvature", "hessian")
            return problem.value(theta) + log_volume(problem, theta, kind)
        seen = query if isinstance(objective, Validation) else support
        posteriors = self.posterior(problem, theta)
        points = theta[None] if posteriors.is_point else posteriors.transform(noise)
        expected = self.model.energies(points, seen, params["shared"]).mean(0)
        if not isinstance(objective, Variational):
            return expected
        prior = problem.anchor if problem.anchor is not None else self.anchor(params, support)
        return per_task(expected, posteriors, prior, objective.beta)

    def __call__(
        self,
        params: Params,
        support: TaskBatch,
        query: TaskBatch,
        noise: Tensor,
        start: Tensor | None = None,
    ) -> Outcome:
        """M and its gradient at the parameters (which need no autograd graph).

        Args:
            params: θ₀, Σ₀, ψ.
            support, query: S_i and V_i.
            noise: as in `loss`.
            start: (task, dim) where a linear solve starts.
        """
        rule, build = self.method.gradient, self.build(support)
        adapted, pull = rule.adapt(build, params, self.algorithm)

        def summed(theta: Tensor, inside: Params) -> tuple[Tensor, Tensor]:
            values = self.loss(theta, inside, support, query, noise)
            return values.sum(), values

        derivative = grad(summed, argnums=(0, 1), has_aux=True)
        (cotangent, partial), values = derivative(adapted.theta, params)
        through, solved = pull(cotangent, start)
        gradients = {
            part: {k: partial[part][k] + through[part][k] for k in partial[part]}
            for part in partial
        }
        problem = build(params)
        force = problem.force(adapted.theta).norm(dim=-1)
        return Outcome(values, gradients, adapted, force, solved)

    def adapt(self, params: Params, batch: TaskBatch) -> tuple[Gaussian, Adapted]:
        """Q_i of tasks by the method's own algorithm, all rows support."""
        problem = self.build(batch)(params)
        adapted = adapt(problem, self.algorithm)
        return self.posterior(problem, adapted.theta), adapted

    def noise(self, tasks: int, dim: int, like: Tensor, generator: torch.Generator) -> Tensor:
        """(draw, task, noise_dim) standard normals in antithetic pairs; empty for a point Q_i."""
        if self.method.posterior.form.name == "point" or isinstance(
            self.method.objective, Evidence
        ):
            return like.new_zeros(1, tasks, 0)
        draws = self.method.draws
        half = torch.randn(
            ((draws + 1) // 2, tasks, dim), generator=generator, dtype=like.dtype
        ).to(like.device)
        return torch.cat([half, -half])[:draws] if draws > 1 else half
