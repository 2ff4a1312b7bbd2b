"""The objective of an algorithm whose outcome is random: the Gibbs law, and SGLD's own.

    p(θ; θ₀) ∝ exp(−F(θ; θ₀)/τ),   dE f/dθ₀ = (λ/τ) Cov(f, θ)

is where anchored Langevin runs end after many small steps, and tends to the global minimum as τ
does to 0. At a jump two minima tie; near it, for small τ, the upper has the probability of a
logistic function of θ₀ with the scale τ / (λ (θ₊ − θ₋)), so that E f is nowhere steeper than
|f₊ − f₋| λ (θ₊ − θ₋) / 4τ, and rises from 10 to 90 % over 2 log 9 such scales.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from studies.anchor.answers import Langevin
from studies.anchor.waves import F64, Jumps, Waves
from studies.which_minimum.exact import expected, propagate
from studies.which_minimum.problem import Problem

TEN_TO_NINETY = 2 * math.log(9)
REACH = 12.0
NODES = 2401
NEAR = 0.3


def gibbs(waves: Waves, theta0: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """E f(θ) and its derivative in θ₀ under the Gibbs law, by the trapezoid rule.

    Args:
        waves: of one task.
        theta0: (point,).
        temperature: τ, large enough for the nodes: a tenth of their distance squared times F''.
    """
    theta = torch.linspace(-REACH, REACH, NODES, dtype=F64)
    weight = torch.softmax(-waves.anchored(theta, theta0[:, None]) / temperature, -1)
    f = waves.loss(theta[None])[0]
    mean, at = weight @ f, weight @ theta
    return mean, waves.lam / temperature * (weight @ (f * theta) - mean * at)


def langevin_law(waves: Waves, theta0: float, langevin: Langevin) -> float:
    """E f(θ_T) of SGLD from θ₀, exact: by the law of its steps, propagated on a grid."""
    phases = waves.phases[0].tolist()
    each = tuple(zip(waves.amplitudes, waves.frequencies, phases, strict=True))
    problem = Problem(waves.trend, each, waves.lam, langevin.lr, langevin.steps)
    return expected(problem, propagate(problem, theta0, langevin.temperature))[0]


def steepest(waves: Waves, theta0: float, temperature: float) -> float:
    """The largest |dE f/dθ₀| near a jump."""
    around = theta0 + torch.linspace(-NEAR, NEAR, 601, dtype=F64)
    return float(gibbs(waves, around, temperature)[1].abs().max())


def predicted_steepest(jumps: Jumps, lam: float, temperature: float) -> Tensor:
    """(jump,) the same for small τ."""
    return jumps.rise.abs() * lam * (jumps.above - jumps.below) / (4 * temperature)


def width(jumps: Jumps, lam: float, temperature: float) -> Tensor:
    """(jump,) over how much of θ₀ noise spreads a jump, from 10 to 90 % of it, for small τ."""
    return TEN_TO_NINETY * temperature / (lam * (jumps.above - jumps.below))


def count_minima(values: Tensor) -> int:
    """Of a curve on a grid, ends excluded."""
    steps = np.sign(np.diff(values.numpy()))
    return sum(before < 0 < after for before, after in pairwise(steps[steps != 0]))
