"""Families with known truth: tasks i whose weights θ_i, prior N(θ₀, Σ₀) and ψ are on record.

Each function draws a family and returns it with its `Truth`. All noise comes from the generator
given, drawn on the generator's device in float64, so that a seed means the same family on every
device. `rows` is a number, or (low, high) for tasks that differ: each then has a uniform number of
rows from low to high, and the family is padded.
"""

from __future__ import annotations

from bayesmeta.families.draws import Truth
from bayesmeta.families.quadratic import quadratic_energy, quadratics
from bayesmeta.families.regressions import linear_gaussian, logistic, poisson
from bayesmeta.families.sinusoids import pacoh_nn_sinusoid, pacoh_sinusoid, sinusoid

__all__ = [
    "Truth",
    "linear_gaussian",
    "logistic",
    "pacoh_nn_sinusoid",
    "pacoh_sinusoid",
    "poisson",
    "quadratic_energy",
    "quadratics",
    "sinusoid",
]
