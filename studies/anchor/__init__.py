"""The notes' pictures of one parameter: a wavy loss, its anchor, and what sums and noise smooth.

After F. Huszár's notes on iMAML (inference.vc, 2019): the anchored minimum θ*(θ₀) with its jumps
and plateaus, its derivative, and the meta-objective f(θ*(θ₀)); then its mean over random tasks, and
its expectation where the outcome is random, both of which the notes hope are smooth.
"""

from __future__ import annotations

import pandas as pd
from matplotlib.animation import Animation
from matplotlib.figure import Figure

from studies._framework import Result
from studies.anchor import figure_sum, figures, measure, moving
from studies.anchor.measure import interval, power, select

QUESTION = (
    "How does the anchored minimum of a wavy loss move with θ₀, and do many tasks or noise make "
    "the meta-objective smooth?"
)


def run(quick: bool, device: str) -> Result:
    """One task in detail, sums over random tasks, and noise."""
    size = measure.QUICK if quick else measure.Size()
    parts = (measure.single, measure.sums, measure.noisy)
    table = pd.DataFrame([row for part in parts for row in part(size, device)])
    table = table.astype({"tasks": "Int64", "family": "Int64", "minima": "Int64"})
    return Result(table)


def draw(table: pd.DataFrame) -> dict[str, Figure | Animation]:
    """The study's figures, by name."""
    return {
        "anchor": figures.anchored(),
        "anchor_minimum": figures.minimum(table),
        "anchor_sum": figure_sum.smoothing(table),
        "anchor_moving": moving.animation(),
    }


def headline(table: pd.DataFrame) -> str:
    """The derivative and jumps of one task, what sums over tasks keep, and what noise removes."""
    return f"{_one(table)} {_many(table)} {_noise(table)}"


def _one(table: pd.DataFrame) -> str:
    curve, newton = select(table, panel="curve"), select(table, panel="library")
    jumps = select(table, panel="jump")
    numeric, library = curve.numeric_error.abs().max(), newton.response_error.abs().max()
    reached = ((newton.found - newton.minimum).abs() < measure.SAME).mean()
    sizes = jumps.rise.abs()
    return (
        f"On one wavy task λ/(λ + f″(θ*)) is dθ*/dθ₀ within {numeric:.0e} (central differences) "
        f"and {library:.0e} (the library's implicit gradient, at the minimum that Newton's method "
        f"finds from θ₀, the global one for {100 * reached:.0f} % of anchors): "
        f"{curve.formula.min():.2f} to {curve.formula.max():.2f} between {len(jumps)} jumps, where "
        f"f(θ*(θ₀)) has no kinks but jumps of {sizes.min():.2f} to {sizes.max():.2f} nats."
    )


def _many(table: pd.DataFrame) -> str:
    rough, factor = select(table, panel="roughness"), select(table, panel="factor")
    most = select(rough, tasks=int(rough.tasks.max()))
    distance, largest, every = (
        power(rough, name) for name in ("distance", "largest_jump", "all_jumps")
    )
    mean, within = interval(factor.factor)
    return (
        f"The mean over n random tasks nears a parabola as n to the power {distance[0]:.2f} ± "
        f"{distance[1]:.2f} (−1/2 by theory) and its largest jump shrinks as {largest[0]:.2f} ± "
        f"{largest[1]:.2f}, but jumps grow so many that together they do not shrink "
        f"({every[0]:.2f} ± {every[1]:.2f}; {100 * most.jump_share.mean():.0f} % "
        f"of all ups and downs at n = "
        f"{int(rough.tasks.max())}), and the implicit gradient, blind to them, is "
        f"{mean:.4f} ± {within:.4f} of the parabola's slope (predicted "
        f"{factor.predicted.iloc[0]:.4f}; {rough.family.nunique()} draws, 95 % intervals)."
    )


def _noise(table: pd.DataFrame) -> str:
    runs, steep = select(table, panel="runs"), select(table, panel="steepness")
    cold = select(steep, temperature=float(steep.temperature.min()))
    spread = (cold.width / cold.temperature).agg(["min", "max"])
    away = (cold.steepest / cold.predicted - 1).abs().max()
    counts = select(table, panel="minima").sort_values("temperature")
    barrier = select(table, panel="jump").barrier.max()
    late = select(runs, temperature=float(runs.temperature.min()))
    z = (runs.value - runs.exact).abs() / runs.error
    return (
        f"Noise spreads a jump over {spread['min']:.1f} to {spread['max']:.1f} units of θ₀ per nat "
        f"of temperature τ (10 to 90 %; steepness as predicted within {100 * away:.1g} % at τ = "
        f"{cold.temperature.iloc[0]:g}), and of the {int(counts.minima.iloc[0])} minima of the "
        f"objective one is left from τ = {single_from(counts):g} nats on, where F has barriers of "
        f"up to {barrier:.2f} between minima that tie; the library's SGLD is within {z.max():.1f} "
        f"standard errors of its exact law in {len(runs)} cases, but after "
        f"{int(runs.steps.iloc[0]):,} steps up to {(late.exact - late.limit).abs().max():.2g} nats "
        f"from the law it tends to at τ = {late.temperature.iloc[0]:g}."
    )


def single_from(counts: pd.DataFrame) -> float:
    """The least τ from which on the objective has a single minimum."""
    more = counts[counts.minima > 1].temperature.max()
    return float(counts[counts.temperature > more].temperature.min())
