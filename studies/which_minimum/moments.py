"""What pathwise and score estimates must give: their exact mean and spread, by the same grid.

    pathwise   g'(θ_T) J_T,          J_{t+1} = (1 − ε F''(θ_t)) J_t + ε λ
    score      (g(θ_T) − E[g]) S_T,  S_{t+1} = S_t + ∂ log N(θ_{t+1}; m(θ_t), s²)/∂θ₀

E[J | θ_t], E[J² | θ_t] and E[S² | θ_t], each times the density, are propagated beside it. All terms
are positive (ε F'' < 1), so that rare paths with huge J are counted to the last.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from studies.which_minimum.exact import SPACING, kernels, nodes_within, reach
from studies.which_minimum.problem import F64, Problem


@dataclass(frozen=True)
class Moments:
    """Of one path's estimate: its mean, which is d/dθ₀ E[g], and its sd."""

    mean: float
    sd: float


def moments(problem: Problem, theta0: float, temperature: float) -> dict[str, Moments]:
    """Of both estimators; the score's baseline is E[g] itself, the limit of many draws."""
    eps, sd = problem.lr, math.sqrt(2 * problem.lr * temperature)
    pull = eps * problem.lam
    x, gap = nodes_within(reach(temperature), SPACING * sd)
    start = torch.tensor([theta0], dtype=F64)
    first = 1 - eps * problem.curvature(start)
    kernel, moved = kernels(start - eps * problem.force(start, theta0), first, sd, x)
    density, scored, squared = kernel[:, 0], moved[:, 0], (moved.square() / kernel)[:, 0]
    squared = torch.where(density > 0, squared, 0.0)
    jacobian, jacobian2 = first * density, first.square() * density
    kernel, moved = kernels(x - eps * problem.force(x, theta0), torch.full_like(x, pull), sd, x)
    twice = torch.where(kernel > 0, moved.square() / kernel, 0.0)
    kernel, moved, twice = (gap * part for part in (kernel, moved, twice))
    growth = 1 - eps * (problem.curvature(x) + problem.lam)
    for _ in range(problem.steps - 1):
        squared = kernel @ squared + 2 * (moved @ scored) + twice @ density
        scored = kernel @ scored + moved @ density
        jacobian2 = kernel @ (
            growth.square() * jacobian2 + 2 * pull * growth * jacobian + pull**2 * density
        )
        jacobian = kernel @ (growth * jacobian + pull * density)
        density = kernel @ density
    g, slope = problem.loss(x), problem.slope(x)
    away = g - gap * (g @ density)
    return {
        "pathwise": _of(gap * (slope @ jacobian), gap * (slope.square() @ jacobian2)),
        "score": _of(gap * (away @ scored), gap * (away.square() @ squared)),
    }


def _of(mean: Tensor, square: Tensor) -> Moments:
    return Moments(float(mean), math.sqrt(float(square - mean.square())))
