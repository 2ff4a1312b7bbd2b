"""The law of SGLD's outcome, and how it moves with θ₀: exact but for rounding.

    p_{t+1}(y) = ∫ N(y; m(x), s²) p_t(x) dx,   m(x) = x − ε F'(x; θ₀),   s² = 2 ε τ,   p_0 = δ_{θ₀}

on evenly spaced nodes, where the trapezoid rule of so smooth a function leaves less than rounding
once the spacing is half of s. Beside p_t goes ∂p_t/∂θ₀, by the derivative of the same sum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from studies.which_minimum.problem import F64, Problem, Stationary

SPACING = 0.5
PANEL, NODES = 4.0, 16


@dataclass(frozen=True)
class Law:
    """The law of θ_T: a mixture of N(m_i, s²) with weights w_i, all of which move with θ₀.

    Args:
        mean, weight: (node,) m and w.
        mean_slope, weight_slope: (node,) their derivatives in θ₀.
        sd: s.
        edge: there is no mass beyond ±edge.
    """

    mean: Tensor
    mean_slope: Tensor
    weight: Tensor
    weight_slope: Tensor
    sd: float
    edge: float

    def nodes(self, spacing: float = SPACING) -> tuple[Tensor, float]:
        """Evenly spaced θ over all that has mass, and their distance."""
        return nodes_within(self.edge, spacing * self.sd)

    def density(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """p(y) and ∂p(y)/∂θ₀."""
        kernel, moved = kernels(self.mean, self.mean_slope, self.sd, y)
        return kernel @ self.weight, kernel @ self.weight_slope + moved @ self.weight


@dataclass(frozen=True)
class Split:
    """E[g] and its derivative in θ₀, basin by basin.

    Args:
        minima: (basin,) θ*_b.
        probability: (basin,) P_b.
        probability_slope: (basin,) dP_b/dθ₀.
        mean: (basin,) E[g | b].
        mean_slope: (basin,) dE[g | b]/dθ₀.
    """

    minima: Tensor
    probability: Tensor
    probability_slope: Tensor
    mean: Tensor
    mean_slope: Tensor

    @property
    def by_location(self) -> float:
        """Σ_b P_b dE[g | b]/dθ₀."""
        return float((self.probability * self.mean_slope).sum())

    @property
    def by_probability(self) -> float:
        """Σ_b E[g | b] dP_b/dθ₀."""
        return float((self.mean * self.probability_slope).sum())


def propagate(
    problem: Problem, theta0: float, temperature: float, *, spacing: float = SPACING
) -> Law:
    """The law after all steps.

    Args:
        problem: f, λ, ε and T >= 1.
        theta0: where SGLD starts, and its anchor.
        temperature: τ.
        spacing: of the nodes, in units of s.
    """
    eps, sd = problem.lr, math.sqrt(2 * problem.lr * temperature)
    edge = reach(temperature)
    x, gap = nodes_within(edge, spacing * sd)
    start = torch.tensor([theta0], dtype=F64)
    # The start moves with θ₀ and takes the anchor with it: only f pulls at the first step.
    law = Law(
        start - eps * problem.force(start, theta0),
        1 - eps * problem.curvature(start),
        torch.ones(1, dtype=F64),
        torch.zeros(1, dtype=F64),
        sd,
        edge,
    )
    mean = x - eps * problem.force(x, theta0)
    mean_slope = torch.full_like(x, eps * problem.lam)
    if problem.steps == 1:
        return law
    weight, weight_slope = (gap * part for part in law.density(x))
    kernel, moved = (gap * part for part in kernels(mean, mean_slope, sd, x))
    for _ in range(problem.steps - 2):
        weight_slope = kernel @ weight_slope + moved @ weight
        weight = kernel @ weight
    return Law(mean, mean_slope, weight, weight_slope, sd, edge)


def expected(problem: Problem, law: Law, spacing: float = SPACING) -> tuple[float, float]:
    """E[g] and dE[g]/dθ₀ over all outcomes, with no regard to basins."""
    y, gap = law.nodes(spacing)
    g = gap * problem.loss(y)
    density, moved = law.density(y)
    return float(g @ density), float(g @ moved)


def split(problem: Problem, law: Law, found: Stationary) -> Split:
    """P_b, E[g | b] and their derivatives in θ₀.

    A basin is where descent on F(·; θ₀) leads to the same minimum: between two maxima β of F, which
    move with θ₀ as its minima do, by λ/(λ + f''(β)). What a moving β sweeps over leaves one basin
    and enters the next: it is part of both derivatives, and not of their sum. Where two stationary
    points merge, basins appear, and the split (not the sum) has a jump in θ₀.
    """
    ends = torch.tensor([-law.edge, *found.maxima.tolist(), law.edge], dtype=F64)
    parts = [_integrals(problem, law, *pair) for pair in pairwise(ends.tolist())]
    mass, carried, mass_slope, carried_slope = torch.stack(parts).T
    flow = torch.zeros_like(ends)
    flow[1:-1] = problem.response(found.maxima) * law.density(found.maxima)[0]
    mass_slope = mass_slope + flow.diff()
    carried_slope = carried_slope + (flow * problem.loss(ends)).diff()
    some = mass.clamp_min(torch.finfo(F64).tiny)
    mean = carried / some
    return Split(found.minima, mass, mass_slope, mean, (carried_slope - mean * mass_slope) / some)


def _integrals(problem: Problem, law: Law, low: float, high: float) -> Tensor:
    """∫p, ∫pg, ∫∂p and ∫g∂p over an interval, by Gauss-Legendre panels of a few s each."""
    nodes, weights = (torch.as_tensor(v) for v in np.polynomial.legendre.leggauss(NODES))
    count = math.ceil((high - low) / (PANEL * law.sd))
    half = (high - low) / count / 2
    y = low + half * (torch.arange(1, 2 * count, 2)[:, None] + nodes).flatten()
    inside = half * weights.repeat(count)
    density, moved = law.density(y)
    g = problem.loss(y)
    return torch.stack([inside @ v for v in (density, density * g, moved, moved * g)])


def reach(temperature: float) -> float:
    """Beyond ± this there is no mass, for |θ₀| < 5: less than rounding."""
    return 6 + 6 * math.sqrt(temperature)


def nodes_within(edge: float, gap: float) -> tuple[Tensor, float]:
    """Evenly spaced θ from −edge to edge, at most `gap` apart, and how far."""
    count = math.ceil(2 * edge / gap) + 1
    return torch.linspace(-edge, edge, count, dtype=F64), 2 * edge / (count - 1)


def kernels(mean: Tensor, mean_slope: Tensor, sd: float, y: Tensor) -> tuple[Tensor, Tensor]:
    """(y, node) N(y; m, s²), and its derivative as m moves with θ₀."""
    away = (y[:, None] - mean) / sd
    kernel = (-0.5 * away.square()).exp_().div_(math.sqrt(2 * math.pi) * sd)
    return kernel, kernel * away * (mean_slope / sd)
