"""A random search among pairs of smooth, strongly convex losses, on both sides of the theorem."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np

from studies.quadratics.smooth import Array, Constants, Losses

TERMS = 3
AT_ONCE = 250
EDGES = (1 / 3, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, np.inf)
"""Of α over the theorem's bound."""
BELOW = 0.999
"""Of 1/L, which α stays below."""


def drawn(pairs: int, generator: np.random.Generator) -> Losses:
    """Random losses, (pair, task, 1), each of one to three rows or log cosh beside a quadratic."""
    shape = (pairs, 2, 1, TERMS)
    mu = 10 ** generator.uniform(-1.5, 0.0, shape[:-1])
    tilt = -mu * generator.normal(0.0, 3.0, shape[:-1])
    present = np.arange(TERMS) < generator.integers(1, TERMS + 1, (pairs, 2, 1, 1))
    weight = 10 ** generator.uniform(-1.0, 0.5, shape) * present
    slope = 10 ** generator.uniform(-0.3, 0.5, shape) * generator.choice([-1.0, 1.0], shape)
    place = generator.normal(0.0, 3.0, shape)
    # log cosh z = log(1 + e^{2z}) − z − log 2
    even = generator.random(shape) < 0.5
    tilt = tilt - (weight * slope * even).sum(-1)
    return Losses(mu, tilt, weight, np.where(even, 2 * slope, slope), place)


def tried(pairs: int, points: int, seed: int) -> dict[str, Array]:
    """Of each pair, α over the bound, αL, the least F'' over μ/8, and the minima of F_1 + F_2.

    Everything is taken on a grid between the two optima, outside of which there is no minimum.
    """
    generator = np.random.default_rng(seed)
    parts = [
        _tried(min(AT_ONCE, pairs - begin), points, generator)
        for begin in range(0, pairs, AT_ONCE)
    ]  # fmt: skip
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _tried(pairs: int, points: int, generator: np.random.Generator) -> dict[str, Array]:
    losses = drawn(pairs, generator)
    optima = losses.minima()[..., 0]
    low, high = optima.min(-1), optima.max(-1)
    theta = low[:, None, None] + (high - low)[:, None, None] * np.linspace(0.0, 1.0, points)
    constants = Constants.on(losses, theta)
    bound, limit = constants.bound, BELOW / constants.smooth
    share = generator.random(pairs)
    by_factor = (bound / 3) * (3 * limit / bound) ** share
    evenly = bound / 3 + (limit - bound / 3) * share
    alpha = np.where(generator.random(pairs) < 0.5, by_factor, evenly)
    step = alpha[:, None, None]
    bend = losses.adapted_second(theta, step)
    slope = losses.adapted_first(theta, step).sum(-2)
    return {
        "ratio": alpha / bound,
        "alpha_L": alpha * constants.smooth,
        "least": bend.min((-2, -1)) / (constants.mu / 8),
        "sum_least": bend.sum(-2).min(-1),
        "minima": minima(slope),
    }


def minima(slope: Array) -> Array:
    """(...) how often a slope on a grid turns from down to up; at the ends it is 0, or outward."""
    rising = slope > 0
    rising[..., 0], rising[..., -1] = False, True
    return (rising[..., 1:] & ~rising[..., :-1]).sum(-1)


def summary(found: dict[str, Array]) -> Iterator[dict[str, Any]]:
    """A row for each range of α over the bound, and one for all."""
    ranges = [*pairwise(EDGES), (EDGES[0], EDGES[-1])]
    for low, high in ranges:
        inside = (found["ratio"] >= low * (1 - 1e-12)) & (found["ratio"] < high)
        if not inside.any():
            continue
        part = {name: values[inside] for name, values in found.items()}
        bent, several = part["least"] < 0, part["minima"] > 1
        yield {
            "panel": "search",
            "low": low,
            "high": high,
            "pairs": int(inside.sum()),
            "not_convex": int(bent.sum()),
            "sum_not_convex": int((part["sum_least"] < 0).sum()),
            "several_minima": int(several.sum()),
            "most_minima": int(part["minima"].max()),
            "least_bend": float(part["least"].min()),
            "first_not_convex": float(part["ratio"][bent].min()) if bent.any() else np.nan,
            "first_several": float(part["ratio"][several].min()) if several.any() else np.nan,
            "first_several_alpha_L": (
                float(part["alpha_L"][several].min()) if several.any() else np.nan
            ),
        }
