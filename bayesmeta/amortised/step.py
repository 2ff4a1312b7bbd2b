"""One meta-step: adapt every task, form Q_i, evaluate M, and differentiate it by the gradient rule.

    dM/dp = ∂M/∂p |_{θ* held} + vᵀ dθ*/dp,    v = ∂M/∂θ*,    p = (θ₀, Σ₀, ψ)

Where adaptation is random a task has several paths, which are so many more tasks to the inner loop;
the gradient rule says at which points made of them M is taken, and what each path pulls back.

Pure functions of tensors, all tasks at once: what `torch.compile` takes as it is.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from bayesmeta.derivatives import gradients as differentiated
from bayesmeta.empirical import Empirical
from bayesmeta.gaussian import Gaussian
from bayesmeta.gradients.rule import Build, Params, Pullback, Solved, added
from bayesmeta.inner.loop import CODE, GROWTH, Adapted, Algorithm, adapt
from bayesmeta.inner.noise import Noise
from bayesmeta.inner.paths import Group, Paths, draw_paths
from bayesmeta.inner.problem import InnerProblem
from bayesmeta.method import Method, with_curvature
from bayesmeta.models import Model
from bayesmeta.objective import Evidence, Validation, Variational, per_task
from bayesmeta.posteriors.proximal import Proximal, log_volume
from bayesmeta.prior import Prior
from bayesmeta.results import InputError, Result
from bayesmeta.tasks import TaskBatch, TaskFamily

LEARNED_STEPS = "inner.lr"


@dataclass(frozen=True, eq=False)
class Outcome:
    """What one meta-step computes.

    Args:
        values: (task,) M_i in nats.
        gradients: of Σ M_i, shaped like the parameters.
        adapted: θ* and how the inner solves went; of several paths the mean, and the worst end.
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
        if prior.form.name == "point" and method.anchored and method.lam is None:
            raise InputError(
                'a prior of the form "point" has no Λ = Σ₀⁻¹ to anchor the inner problem: give '
                'lam=, or a prior of another form, such as "isotropic"'
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
        lam = self.method.lam
        if lam is None:
            free = {"mean": mean} | params["covariance"]
            return self.prior.form.constrain(free, self.prior.blocks)
        rows = 1.0 if batch.mask is None else batch.mask.sum(1, keepdim=True).to(mean)
        scale = self.model.paper_scale(batch, params["shared"])
        return Gaussian(mean, torch.ones_like(mean) * scale / (lam * rows))

    def build(self, support: TaskBatch, noise: Noise | None = None) -> Build:
        """The inner problem as a function of the parameters."""

        def problem(params: Params) -> InnerProblem:
            anchor = self.anchor(params, support) if self.method.anchored else None
            start = params["anchor"]["mean"]
            return InnerProblem(self.model, support, params["shared"], start, anchor, noise)

        return problem

    def posterior(self, problem: InnerProblem, theta: Tensor) -> Gaussian:
        """Q_i at θ*."""
        kind = self.method.posterior
        return kind.at(problem, theta) if isinstance(kind, Proximal) else Gaussian(theta)

    def loss(
        self,
        points: Tensor,
        params: Params,
        support: TaskBatch,
        query: TaskBatch,
        noise: Tensor | Paths,
    ) -> Tensor:
        """(point, task) M_i as a function of where it is taken and the parameters.

        Args:
            points: (point, task, dim); a Gaussian Q_i has one, θ*.
            params: θ₀, Σ₀, ψ.
            support, query: S_i and V_i.
            noise: (draw, task, noise_dim) standard normals, for a Gaussian Q_i.
        """
        problem, objective = self.build(support)(params), self.method.objective
        if isinstance(objective, Evidence):
            kind = getattr(self.method.posterior, "curvature", "hessian")
            return (problem.value(points[0]) + log_volume(problem, points[0], kind))[None]
        held_out = isinstance(objective, Validation)
        seen = self.model.seen(query, support) if held_out else support
        posteriors = self.posterior(problem, points[0])
        if posteriors.is_point:
            posteriors = Gaussian(points)
            expected = self.model.energies(points, seen, params["shared"])
        else:
            assert isinstance(noise, Tensor)
            theta = posteriors.transform(noise)
            expected = self.model.energies(theta, seen, params["shared"]).mean(0, keepdim=True)
        if not isinstance(objective, Variational):
            return expected
        prior = problem.anchor if problem.anchor is not None else self.anchor(params, support)
        return per_task(expected, posteriors, prior, objective.beta)

    def __call__(
        self,
        params: Params,
        support: TaskBatch,
        query: TaskBatch,
        noise: Tensor | Paths,
        start: Tensor | None = None,
    ) -> Outcome:
        """M and its gradient at the parameters (which need no autograd graph).

        Args:
            params: θ₀, Σ₀, ψ.
            support, query: S_i and V_i.
            noise: of `noise`.
            start: (task, dim) where a linear solve starts.
        """
        rule, problem = self.method.gradient, self.build(support)(params)
        if not isinstance(noise, Paths):
            adapted, pull = rule.adapt(self.build(support), params, self.algorithm)
            theta, walks = adapted.theta[None], []
        else:
            ahead, recorded = noise.parted(rule.forward_only())
            walks = [self._walk(group, params, support) for group in recorded]
            ends = [(g, self._run(g, params, support)) for g in ahead]
            ends += [(walk.group, walk.adapted) for walk in walks]
            adapted, theta = _gathered(ends, noise.draws, len(support))

        def averaged(points: Tensor, inside: Params) -> tuple[Tensor, Tensor]:
            values = self.loss(points, inside, support, query, noise)
            return values.mean(0).sum(), values

        points = rule.points(theta, self.method.at)
        (slopes, gradients), values = differentiated(averaged, points, params)
        cotangents = rule.cotangents(slopes, values, len(theta))
        if isinstance(noise, Paths):
            gradients, solved = _pulled_along(walks, cotangents, gradients)
        else:
            through, solved = pull(cotangents[0], start)
            gradients = added(gradients, through)
        force = problem.force(adapted.theta).norm(dim=-1)
        return Outcome(values.mean(0), gradients, adapted, force, solved)

    def values(self, params: Params, support: TaskBatch, query: TaskBatch, theta: Tensor) -> Tensor:
        """(task,) M_i by the ends θ (path, task, dim) of paths, without its gradient."""
        points = theta if self.method.at == "draws" else theta.mean(0, keepdim=True)
        return self.loss(points, params, support, query, points.new_zeros(0)).mean(0)

    def adapt(
        self, params: Params, batch: TaskBatch, noise: Tensor | Paths
    ) -> tuple[Gaussian | Empirical, Adapted]:
        """Q_i of tasks by the method's own algorithm, all rows support, and how it ended."""
        if isinstance(noise, Paths):
            ends = [(g, self._run(g, params, batch)) for g in noise.groups]
            ends = [(g, self._judged(g, found, params, batch)) for g, found in ends]
            adapted, theta = _gathered(ends, noise.draws, len(batch))
            return Empirical(theta), adapted
        problem = self.build(batch)(params)
        adapted = adapt(problem, self.algorithm)
        return self.posterior(problem, adapted.theta), adapted

    def _judged(
        self, group: Group, adapted: Adapted, params: Params, support: TaskBatch
    ) -> Adapted:
        """Which paths diverged, as only all rows can tell: a minibatch is no measure."""
        problem = self.build(group.support(support))(_of_paths(params, group))
        value, gradient = problem.evaluate(problem.start)
        reached, slope = problem.evaluate(adapted.theta)
        steeper = slope.norm(dim=-1) > GROWTH * gradient.norm(dim=-1)
        # A draw of a posterior lies half a nat per weight above its mode, on average.
        usual = getattr(group.algorithm, "temperature", 0.0) * problem.start.shape[-1]
        diverged = steeper & (reached - value > 1 + usual + value.abs())
        diverged = diverged & (adapted.result != CODE[Result.nonfinite])
        return replace(adapted, result=torch.where(diverged, CODE[Result.diverged], adapted.result))

    def noise(
        self,
        support: TaskBatch,
        like: Tensor,
        generator: torch.Generator,
        draws: int | None = None,
    ) -> Tensor | Paths:
        """What is random in one step: normals of a Gaussian Q_i, or z of all paths.

        Args:
            support: the tasks.
            like: (..., dim), for dtype and device.
            generator: the randomness.
            draws: per task, in the place of the method's own number.

        Returns:
            (draw, task, noise_dim) standard normals in antithetic pairs, empty for a point Q_i; or
            paths.
        """
        method, tasks, dim = self.method, len(support), like.shape[-1]
        if method.stochastic:
            wanted = method.gradient.draws(method.draws) if draws is None else draws
            like = like.reshape(-1, dim)[0]
            return draw_paths(self.algorithm, self.model, support, like, wanted, generator)
        if method.posterior.form.name == "point" or isinstance(method.objective, Evidence):
            return like.new_zeros(1, tasks, 0)
        draws = method.draws if draws is None else draws
        half = torch.randn(
            ((draws + 1) // 2, tasks, dim), generator=generator, dtype=like.dtype
        ).to(like.device)
        return torch.cat([half, -half])[:draws] if draws > 1 else half

    def _run(self, group: Group, params: Params, support: TaskBatch) -> Adapted:
        """The ends of a group's paths, which nobody differentiates."""
        build = self.build(group.support(support), group.noise)
        with torch.no_grad():
            return adapt(build(_of_paths(params, group)), group.algorithm)

    def _walk(self, group: Group, params: Params, support: TaskBatch) -> _Walk:
        """The ends of a group's paths, and their pullback."""
        build = self.build(group.support(support), group.noise)
        found = self.method.gradient.adapt(build, _of_paths(params, group), group.algorithm)
        return _Walk(group, *found)


@dataclass(frozen=True, eq=False)
class _Walk:
    """A group's paths, and how to go back along them."""

    group: Group
    adapted: Adapted
    pull: Pullback


def _of_paths(params: Params, group: Group) -> Params:
    """The parameters with θ₀ once per path."""
    return params | {"anchor": {"mean": params["anchor"]["mean"][group.tasks]}}


def _gathered(
    ends: Sequence[tuple[Group, Adapted]], draws: int, tasks: int
) -> tuple[Adapted, Tensor]:
    """How the paths of each task ended, and θ (draw, task, dim)."""
    order = torch.cat([group.paths for group, _ in ends]).argsort()

    def placed(name: str) -> Tensor:
        parts = torch.cat([getattr(adapted, name) for _, adapted in ends])
        return parts[order].reshape(draws, tasks, *parts.shape[1:])

    theta, result = placed("theta"), placed("result")
    worst = result[0]
    for failure in (Result.diverged, Result.nonfinite):
        worst = torch.where((result == CODE[failure]).any(0), CODE[failure], worst)
    residual, steps = placed("residual").mean(0), placed("steps").amax(0)
    return Adapted(theta.mean(0), residual, steps, worst), theta


def _pulled_along(
    walks: Sequence[_Walk], cotangents: Tensor, gradients: Params
) -> tuple[Params, Solved]:
    """∂M at the points held, with what every path pulls back, task by task for θ₀."""
    flat = cotangents.reshape(-1, cotangents.shape[-1])
    for walk in walks:
        found, _ = walk.pull(flat[walk.group.paths])
        # With no sound path to walk in a broken one's place, there is nothing but NaN to pull.
        sound = (walk.adapted.result != CODE[Result.nonfinite]).any()
        found = tree_map(lambda t, sound=sound: torch.where(sound, t, 0.0), found)
        by_task = torch.zeros_like(gradients["anchor"]["mean"])
        by_task = by_task.index_add(0, walk.group.tasks, found["anchor"]["mean"])
        gradients = added(gradients, found | {"anchor": {"mean": by_task}})
    return gradients, Solved.none(gradients["anchor"]["mean"])
