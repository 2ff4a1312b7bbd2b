"""The library's own answers: implicit at each minimum, pathwise and score along SGLD's paths."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

import bayesmeta as bm
from bayesmeta.gradients.score import Score
from bayesmeta.methods import SGLD, Algorithmic, Implicit, Method, Proximal, Unrolled, Validation
from studies.meta_gradient_accuracy.problem import Reached
from studies.which_minimum.problem import F64, Problem

RULES = {"pathwise": Unrolled(), "score": Score()}
DRAWS = 50
AT_ONCE = 400  # tasks in one batch: with their draws, 20,000 paths


@dataclass(frozen=True)
class Estimate:
    """A mean over independent estimates, its standard error, and the sd of one path's worth."""

    mean: float
    se: float
    paths: int

    @property
    def sd(self) -> float:
        return self.se * math.sqrt(self.paths)


def family(tasks: int, device: str = "cpu") -> bm.TaskFamily:
    """The same task so many times; its one tensor moves f sideways, here not at all."""
    return bm.TaskFamily.from_tensors(shift=torch.zeros(tasks, 1, dtype=F64, device=device))


def implicit(problem: Problem, theta0: float, minima: Tensor) -> Tensor:
    """(basin,) the implicit gradient where adaptation ended in each minimum."""
    method = Method(Proximal(), Reached(minima[:, None]), Implicit(), Validation(None))
    return bm.meta_gradient(
        _model(problem), _prior(problem, theta0), family(len(minima)), method
    ).per_task[:, 0]


def estimate(
    problem: Problem,
    theta0: float,
    temperature: float,
    rule: str,
    *,
    paths: int,
    seed: int = 0,
    device: str = "cpu",
) -> Estimate:
    """dE[g]/dθ₀ by one of the rules, from many estimates of a few paths each.

    Args:
        problem, theta0, temperature: of the paths.
        rule: "pathwise" or "score".
        paths: in all, a multiple of the draws in one estimate.
        seed: of the noise.
        device: where.
    """
    inner = SGLD(problem.lr, problem.steps, temperature=temperature, per="task")
    method = Method(Algorithmic(anchored=True), inner, RULES[rule], Validation(None), draws=DRAWS)
    model, prior = _model(problem), _prior(problem, theta0)
    generator = torch.Generator().manual_seed(seed)
    found = []
    for start in range(0, paths // DRAWS, AT_ONCE):
        tasks = min(AT_ONCE, paths // DRAWS - start)
        same = family(tasks, device)
        found.append(bm.meta_gradient(model, prior, same, method, generator=generator).per_task)
    each = torch.cat(found)[:, 0].cpu()
    return Estimate(float(each.mean()), float(each.std()) / math.sqrt(len(each)), len(each) * DRAWS)


def _model(problem: Problem) -> bm.Model:
    return bm.Model.from_energy(lambda theta, shift: problem.loss(theta - shift).sum(), 1)


def _prior(problem: Problem, theta0: float) -> bm.Prior:
    mean = torch.tensor([theta0], dtype=F64)
    return bm.Prior("isotropic").at(mean=mean, variance=1 / problem.lam)
