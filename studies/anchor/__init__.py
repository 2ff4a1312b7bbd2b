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
    """The minimum of one task, what sums over tasks and noise make smooth, and who is misled."""
    return f"{_one(table)} {_smooth(table)} {_misled(table)}".replace(" -", " −")


def _one(table: pd.DataFrame) -> str:
    curve, sizes = select(table, panel="curve"), select(table, panel="jump").rise.abs()
    return (
        f"On one wavy task the anchored minimum moves {curve.formula.min():.2f} to "
        f"{curve.formula.max():.2f} times as fast as θ₀, and at {len(sizes)} places it leaps, "
        f"where the meta-objective jumps by {sizes.min():.2f} to {sizes.max():.2f} nats."
    )


def _smooth(table: pd.DataFrame) -> str:
    rough = select(table, panel="roughness")
    distance, every = (power(rough, name) for name in ("distance", "all_jumps"))
    counts = select(table, panel="minima").sort_values("temperature")
    return (
        f"The mean over n tasks nears a parabola as n to the power {distance[0]:z.2f} ± "
        f"{distance[1]:.2f} but all its jumps together go as {every[0]:z.2f} ± {every[1]:.2f}, "
        f"whereas noise leaves one of {int(counts.minima.iloc[0])} minima from a temperature of "
        f"{single_from(counts):g} nats on."
    )


def _misled(table: pd.DataFrame) -> str:
    mean, within = interval(select(table, panel="factor").factor)
    runs = select(table, panel="runs")
    late = select(runs, temperature=float(runs.temperature.min()))
    return (
        f"Beware that the implicit gradient does not see jumps and is {mean:.3f} ± {within:.3f} of "
        f"the parabola's slope, and that {int(runs.steps.iloc[0]):,} steps of SGLD can end "
        f"{(late.exact - late.limit).abs().max():.2g} nats from their limit at a temperature of "
        f"{late.temperature.iloc[0]:g}."
    )


def single_from(counts: pd.DataFrame) -> float:
    """The least τ from which on the objective has a single minimum."""
    more = counts[counts.minima > 1].temperature.max()
    return float(counts[counts.temperature > more].temperature.min())
