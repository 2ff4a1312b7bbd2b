"""Meta-gradients along random paths as functions of (θ₀, Σ₀, ψ), and every path run by itself."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from inner_problems import F64, generator
from torch import nn

import bayesmeta as bm
from bayesmeta import likelihoods
from bayesmeta.gradients.pathwise import Unrolled
from bayesmeta.inner.first_order import Adam, GradientDescent, Momentum, Nesterov, RMSProp
from bayesmeta.inner.langevin import SGLD
from bayesmeta.inner.loop import adapt
from bayesmeta.inner.mixture import Mixture
from bayesmeta.inner.paths import draw_paths
from bayesmeta.inner.problem import InnerProblem
from bayesmeta.method import Method
from bayesmeta.objective import Validation
from bayesmeta.posteriors.algorithmic import Algorithmic

ALGORITHMS = {
    "sgd": GradientDescent(0.3, 5, rows=2),
    "replacement": GradientDescent(0.1, 5, rows=3, replacement=True, per="task"),
    "momentum": Momentum(0.2, 5, momentum=0.6, rows=2),
    "nesterov": Nesterov(0.2, 5, condition=4.0, rows=2),
    "adam": Adam(0.1, 5, betas=(0.8, 0.9), rows=2),
    "rmsprop": RMSProp(0.05, 5, decay=0.8, rows=2),
    "sgld": SGLD(0.1, 5, temperature=0.5, rows=3),
    "psgld": SGLD(0.05, 5, preconditioned=True, decay=0.8, damping=0.3, rows=3),
    "mixture": Mixture(
        (GradientDescent(0.3, 4, rows=1), SGLD(0.1, 5), Adam(0.1, 3, rows=2)),
        weights=(0.3, 0.4, 0.3),
    ),
}
STATEFUL = ("momentum", "nesterov", "adam", "rmsprop", "psgld", "mixture")


def tasks(seed: int = 0, rows: tuple[int, ...] = (4, 6, 3)) -> bm.TaskFamily:
    x = [torch.randn(n, 1, generator=generator(seed + i), dtype=F64) for i, n in enumerate(rows)]
    y = [torch.sin(2 * v[:, 0]) + i for i, v in enumerate(x)]
    return bm.TaskFamily.from_tensors(x=x, y=y)


def network(*, drop: float = 0.0, seed: int = 3) -> bm.Model:
    """Two tanh units; θ is the first layer, ψ the second and the noise."""
    layers = [nn.Linear(1, 2), nn.Tanh(), *[nn.Dropout(drop)] * (drop > 0), nn.Linear(2, 1)]
    module = nn.Sequential(*layers).double()
    with torch.no_grad():
        for i, p in enumerate(module.parameters()):
            p.copy_(torch.randn(p.shape, generator=generator(seed + i), dtype=F64))
    return bm.Model(module, likelihoods.Gaussian(), adapt="0").double()


def prior_of(form: str, model: bm.Model) -> bm.Prior:
    mean = model.start + 0.1
    root = torch.randn(4, 4, generator=generator(11), dtype=F64)
    covariance = 0.5 * torch.eye(4, dtype=F64) + 0.3 * root @ root.T
    if form in ("full", "lowrank(1)"):
        return bm.Prior(form).at(mean=mean, covariance=covariance)
    if form == "point":
        return bm.Prior(form).at(mean=mean, variance=0.0)
    return bm.Prior(form).at(mean=mean, variance=covariance.diagonal(), blocks=model.blocks)


@dataclass
class Case:
    """A meta-gradient by common noise, as a function of (θ₀, Σ₀, ψ)."""

    method: Method
    model: bm.Model
    prior: bm.Prior
    seed: int = 5
    family: bm.TaskFamily = field(default_factory=tasks)
    query: bm.TaskFamily = field(default_factory=lambda: tasks(seed=20))

    def at(self, rule: Any = None) -> Any:
        method = self.method if rule is None else replace(self.method, gradient=rule)
        options = {"generator": generator(self.seed), "query": self.query}
        return bm.meta_gradient(self.model, self.prior, self.family, method, **options)

    def moved(self, part: str, along: dict[str, torch.Tensor], by: float) -> Case:
        """Some of the parameters, moved along a direction."""
        other = copy.deepcopy(self)
        where = other.model.shared if part == "shared" else other.prior.free
        with torch.no_grad():
            for name, direction in along.items():
                where[name] += by * direction
        return other


def gradients(found: Any) -> dict[str, dict[str, torch.Tensor]]:
    parts = {"mean": {"mean": found.theta0}, "covariance": found.covariance, "shared": found.shared}
    return {part: values for part, values in parts.items() if values}


def case_of(
    algorithm, rule=None, *, form="point", at="draws", draws=3, lam=None, **options
) -> Case:
    model = network(**options)
    posterior = Algorithmic(form != "point" or lam is not None, lam)
    objective = Validation(None, at=at)
    method = Method(posterior, algorithm, rule or Unrolled(), objective, draws=draws)
    return Case(method, model, prior_of(form, model))


class ByHand:
    """Every path of a case run alone, recorded by autograd."""

    def __init__(self, case: Case, draws: int) -> None:
        self.case, self.model = case, case.model
        self.support, self.query = case.family.batch(), case.query.batch()
        self.shared = {k: v.detach().requires_grad_() for k, v in case.model.shared.items()}
        self.covariance = {
            k: v.detach().requires_grad_() for k, v in case.prior.free.items() if k != "mean"
        }
        self.start = case.prior.free["mean"].detach().expand(3, -1).clone().requires_grad_()
        algorithm, like = case.method.inner, self.start[0].detach()
        paths = draw_paths(algorithm, self.model, self.support, like, draws, generator(case.seed))
        self.paths = {}
        for group in paths.groups:
            for place, path in enumerate(group.paths.tolist()):
                some = group.where(torch.tensor([place]))
                assert some.tasks.item() == path % 3
                self.paths[path // 3, path % 3] = some

    def problem(self, draw: int, task: int) -> InnerProblem:
        group, start = self.paths[draw, task], self.start[task][None]
        anchor = None
        if self.case.method.anchored:
            form, blocks = self.case.prior.form, self.case.prior.blocks
            anchor = form.constrain({"mean": start, **self.covariance}, blocks)
        batch = group.support(self.support)
        return InnerProblem(self.model, batch, self.shared, start, anchor, group.noise)

    def end(self, draw: int, task: int) -> torch.Tensor:
        return adapt(self.problem(draw, task), self.paths[draw, task].algorithm).theta[0]

    def loss(self, theta: torch.Tensor, task: int) -> torch.Tensor:
        mask = self.query.mask[[task]]
        tensors = {k: v[[task]] for k, v in self.query.tensors.items()}
        batch = replace(self.query, tensors=tensors, mask=mask, index=self.query.index[[task]])
        return self.model.energies(theta[None], batch, self.shared)[0]

    def assert_gradient(self, surrogate: torch.Tensor, found: Any) -> None:
        leaves = [self.start, *self.covariance.values(), *self.shared.values()]
        by = torch.autograd.grad(surrogate, leaves, allow_unused=True, materialize_grads=True)
        parts = [found.per_task, *found.covariance.values(), *found.shared.values()]
        for mine, theirs in zip(parts, by, strict=True):
            assert torch.allclose(mine, theirs, rtol=1e-9, atol=1e-11)


def log_probability(problem: InnerProblem, algorithm: SGLD) -> tuple[torch.Tensor, torch.Tensor]:
    """Σ_t log p(θ_{t+1} | θ_t …) of the path that z takes, and its end, both written out."""
    rows = problem.rows[0, 0]
    scale = 2 * problem.shared["likelihood.log_scale"].exp() ** 2
    theta, total, v = problem.start, torch.zeros((), dtype=F64), None
    for step in range(algorithm.steps):
        slope = problem.during(step).gradient(theta)
        size = algorithm.lr * scale / rows
        if algorithm.preconditioned:
            v = slope**2 if v is None else algorithm.decay * v + (1 - algorithm.decay) * slope**2
            size = size / (v.sqrt() + algorithm.damping)
        law = torch.distributions.Normal(
            theta - size * slope, (2 * algorithm.temperature * size).sqrt().expand_as(theta)
        )
        z = problem.noise.normals[:, step]
        theta = (law.loc + law.scale * z).detach()
        total = total + law.log_prob(theta).sum()
    return total, theta[0]
