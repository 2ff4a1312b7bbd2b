"""The study's figures."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from bayesmeta.plots import COLOURS, DOUBLE, style
from studies.which_minimum.exact import propagate, split
from studies.which_minimum.measure import JUMP, NEAR, PROBLEM, WIDE, select
from studies.which_minimum.problem import F64

ANCHORS = ((0.65, "-"), (JUMP, (0, (5, 1.5))), (0.95, (0, (1, 1))))
SHADES = ("#0072B2", "#7F7F7F", "#D55E00")
WARM = ("#0072B2", "#56B4E9", "#E69F00", "#D55E00")  # cold to hot; they also differ by line
DASHES = ("-", (0, (5, 1.5)), (0, (3, 1, 1, 1)), (0, (1, 1)))
PARTS = {
    "total": ("black", "-", 1.3),
    "location": (COLOURS["imaml"], (0, (5, 1.5)), 1.2),
    "probability": (COLOURS["reptile"], (0, (1, 1)), 1.2),
}
MARKS = {
    "implicit": (COLOURS["imaml"], "D"),
    "pathwise": (COLOURS["maml"], "^"),
    "score": (COLOURS["stochastic"], "o"),
}
NUDGES = {"pathwise": 0.985, "score": 1.015}  # so that two bars at one place are both seen


def law(table: pd.DataFrame) -> Figure:
    """Left the losses, right where SGLD ends, for three anchors."""
    temperature, _, steps = _shown(table)
    with style():
        figure = Figure(figsize=(DOUBLE, 2.9), layout="constrained")
        left, right = figure.subplots(1, 2)
        theta = torch.linspace(-4.6, 5.2, 700, dtype=F64)
        left.plot(theta, PROBLEM.loss(theta), color="black", linewidth=1.3, label="f = g")
        for (theta0, dashes), colour in zip(ANCHORS, SHADES, strict=True):
            look: dict[str, Any] = {"color": colour, "linestyle": dashes, "linewidth": 1.1}
            left.plot(theta, _anchored(theta, theta0), **look, label=f"F, θ₀ = {theta0:.2f}")
            found = PROBLEM.stationary(theta0)
            left.plot(found.minima, _anchored(found.minima, theta0), "o", color=colour, ms=3.5)
            outcome = propagate(replace(PROBLEM, steps=steps), theta0, temperature)
            shares = split(PROBLEM, outcome, found).probability.tolist()
            name = f"θ₀ = {theta0:.2f}:  " + " | ".join(f"{p:.2f}" for p in shares)
            y = torch.linspace(-1.8, 3.2, 700, dtype=F64)
            right.plot(y, outcome.density(y)[0], **look, label=name)
        left.plot([], [], "o", color="black", ms=3.5, label="minima of F")
        left.set(xlabel="θ", ylabel="loss, nats", ylim=(-1.4, 6.5), xlim=(-4.6, 5.2))
        left.set_title("(a) the loss f, and F = f + ½ λ (θ − θ₀)²", loc="left")
        right.set(xlabel="θ", ylabel="density per unit of θ", ylim=(0, 3.6), xlim=(-1.8, 3.2))
        right.set_title(f"(b) where {steps} steps end, τ = {temperature:g} nats", loc="left")
        left.legend(frameon=False, loc="upper center", handlelength=2.4)
        right.legend(
            frameon=False, loc="upper center", handlelength=2.4, title_fontsize=7,
            title="probability of the left | right minimum",
        )  # fmt: skip
    return figure


def _anchored(theta: torch.Tensor, theta0: float) -> torch.Tensor:
    return PROBLEM.loss(theta) + 0.5 * PROBLEM.lam * (theta - theta0).square()


def objective(table: pd.DataFrame, off: float) -> Figure:
    """E[g] against θ₀ for several temperatures, over g of the deterministic outcome.

    Args:
        table: of the study.
        off: how far the width of the smoothed jump is from the one predicted, relative.
    """
    rows = select(table, panel="wide")
    with style():
        figure = Figure(figsize=(DOUBLE, 2.9), layout="constrained")
        ax = figure.subplots()
        x, y = _jagged()
        ax.plot(x, y, color="black", linewidth=1.6, label="no noise: g(θ*(θ₀))")
        levels = sorted(rows.temperature.unique())
        for tau, colour, dashes in zip(levels, WARM, DASHES, strict=False):
            part = select(rows, temperature=tau)
            ax.plot(
                part.theta0.to_numpy(), part.value.to_numpy(),
                color=colour, linestyle=dashes, label=f"E[g], τ = {tau:g}",
            )  # fmt: skip
        ax.set(xlabel="start θ₀", ylabel="meta-objective, nats", xlim=WIDE)
        ax.set_title(
            f"after {_shown(table)[2]} steps of temperature τ; the jump at θ₀ = {JUMP:.2f} is as "
            f"wide as predicted within {off:.1%}",
            loc="left",
        )
        ax.legend(frameon=False, loc="upper center", handlelength=2.6)
    return figure


def gradient(table: pd.DataFrame) -> Figure:
    """dE[g]/dθ₀ and its parts around the jump, early and late, and against T."""
    tau, first, last = _shown(table)
    with style():
        figure = Figure(figsize=(DOUBLE, 3.1), layout="constrained")
        early, late, against = figure.subplots(1, 3)
        for ax, steps in ((early, first), (late, last)):
            rows = select(table, temperature=tau, steps=steps)
            near = select(rows, panel="near")
            _parts(ax, near, "theta0")
            _marks(ax, _within(select(rows, panel="point"), NEAR), "theta0")
            ax.set(xlabel="start θ₀", xlim=NEAR)
        early.set_title(f"(a) τ = {tau:g}, T = {first} steps", loc="left")
        late.set_title(f"(b) τ = {tau:g}, T = {last} steps", loc="left")
        early.set(ylabel="d/dθ₀ E[g], nats per unit of θ₀")
        rows = _sweep(table)
        _parts(against, rows, "steps")
        _marks(against, rows, "steps")
        against.set(xscale="log", xlabel="T, steps", ylim=(-9, 9))
        against.set_title(f"(c) τ = {tau:g}, θ₀ = {JUMP:.2f}", loc="left")
        against.set_ylabel("the same, linear within ± 2")
        against.set_yscale("symlog", linthresh=2.0, linscale=2.0)
        against.set_yticks([-5, -2, -1, 0, 1, 2, 5], ["−5", "−2", "−1", "0", "1", "2", "5"])
        against.yaxis.set_minor_locator(NullLocator())
        _whole_ticks(against, rows)
        handles, names = late.get_legend_handles_labels()
        figure.legend(
            handles, names, loc="outside upper center", ncols=6, frameon=False, title_fontsize=7,
            title="lines: exact; marks: the library's estimates, bars: ± 2 standard errors",
        )  # fmt: skip
    return figure


def spread(table: pd.DataFrame) -> Figure:
    """The sd of one path's estimate, against θ₀ and against T: exact, and as it was found."""
    tau, first, _ = _shown(table)
    with style():
        figure = Figure(figsize=(DOUBLE, 2.8), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        rows = select(table, panel="point", steps=first, temperature=tau)
        _spreads(left, _within(rows, NEAR), "theta0")
        left.set(xlabel="start θ₀", ylabel="sd of one path's estimate, nats per unit of θ₀")
        left.set_yscale("log")
        left.set_title(f"(a) τ = {tau:g}, T = {first} steps", loc="left")
        rows = _sweep(table)
        _spreads(right, rows, "steps")
        right.set(xscale="log", xlabel="T, steps")
        right.set_title(f"(b) τ = {tau:g}, θ₀ = {JUMP:.2f}", loc="left")
        _whole_ticks(right, rows)
        right.legend(frameon=False, loc="upper left", handlelength=2.6)
    return figure


def _spreads(ax: Axes, rows: pd.DataFrame, x: str) -> None:
    """Lines are exact; marks are what the paths of an estimate showed."""
    at = rows[x].to_numpy(dtype=float)
    for rule, dashes in (("pathwise", "-"), ("score", (0, (5, 1.5)))):
        colour, marker = MARKS[rule]
        exact = rows[f"{rule}_sd"].to_numpy()
        found = rows[f"{rule}_se"].to_numpy() * np.sqrt(rows.paths.to_numpy(dtype=float))
        ax.plot(at, exact, color=colour, linestyle=dashes, label=f"{rule}, exact")
        ax.plot(
            at, found, marker, color=colour, markerfacecolor="white",
            markersize=4, label=f"{rule}, sd seen among its paths",
        )  # fmt: skip


def _jagged() -> tuple[np.ndarray, np.ndarray]:
    """g(θ*(θ₀)) along θ₀, broken where it jumps."""
    ends = (WIDE[0], *PROBLEM.jumps(*WIDE), WIDE[1])
    x, y = [], []
    for low, high in pairwise(ends):
        inside = np.linspace(low + 1e-4, high - 1e-4, 80)
        x += [*inside, high]
        y += [float(PROBLEM.loss(PROBLEM.descended(t))) for t in inside.tolist()] + [np.nan]
    return np.array(x), np.array(y)


def _sweep(table: pd.DataFrame) -> pd.DataFrame:
    """The rows at the jump at one temperature, by T."""
    rows = select(table[table.panel.isin(("point", "steps"))], temperature=_shown(table)[0])
    return select(rows, theta0=JUMP).sort_values("steps")


def _shown(table: pd.DataFrame) -> tuple[float, int, int]:
    """The temperature and the two numbers of steps that the figures are about."""
    steps = select(table, panel="point").steps
    return select(table, panel="steps").temperature.iloc[0], int(steps.min()), int(steps.max())


def _within(rows: pd.DataFrame, ends: tuple[float, float]) -> pd.DataFrame:
    return rows[rows.theta0.between(*ends)].sort_values("theta0")


def _parts(ax: Axes, rows: pd.DataFrame, x: str) -> None:
    """Exact: the total and its parts."""
    ax.axhline(0, color=COLOURS["reference"], linewidth=0.5, zorder=0)
    for name, (colour, dashes, width) in PARTS.items():
        label = name if name == "total" else f"{name} part"
        ax.plot(
            rows[x].to_numpy(dtype=float), rows[name].to_numpy(),
            color=colour, linestyle=dashes, linewidth=width, label=label,
        )  # fmt: skip


def _marks(ax: Axes, rows: pd.DataFrame, x: str) -> None:
    """The library's, with 2 standard errors where it has any."""
    at = rows[x].to_numpy(dtype=float)
    for name, (colour, marker) in MARKS.items():
        error = None if name == "implicit" else 2 * rows[f"{name}_se"].to_numpy()
        ax.errorbar(
            at * NUDGES.get(name, 1.0), rows[name].to_numpy(), yerr=error,
            fmt=marker, color=colour, markersize=4, markerfacecolor="white",
            elinewidth=0.9, capsize=1.5, label=name,
        )  # fmt: skip


def _whole_ticks(ax: Axes, rows: pd.DataFrame) -> None:
    ticks = [t for t in (10, 20, 40, 80, 160) if t <= rows.steps.max()]
    ax.set_xticks(ticks, [str(t) for t in ticks])
    ax.minorticks_off()
