"""The study's figures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bayesmeta.plots import COLOURS, DOUBLE, style
from studies.anchor.measure import ONE, RANGE, SAME, select
from studies.anchor.waves import F64

SHOWN = 1.3
MOVED = (-4.0, -2.4, -1.7, -0.6, 1.5, 2.1)
TOP, BOTTOM = 4.6, -1.5
ORANGE, GREEN, BLUE, RED = "#E69F00", "#009E73", "#0072B2", "#D55E00"
STAR: dict[str, Any] = {
    "marker": "*", "color": RED, "linestyle": "none", "markeredgecolor": "white",
    "markeredgewidth": 0.5,
}  # fmt: skip
THETA = torch.linspace(-5.5, 5.5, 600, dtype=F64)


def anchored() -> Figure:
    """Left f, its penalty, their sum and its minimum; right the same as the anchor moves."""
    with style():
        figure = Figure(figsize=(DOUBLE, 3.2), layout="constrained")
        grid = figure.add_gridspec(2, 5)
        large = figure.add_subplot(grid[:, :2])
        losses(large, SHOWN)
        large.set(xlabel="θ", ylabel="nats")
        figure.legend(*large.get_legend_handles_labels(), loc="outside upper center", ncols=5,
                      frameon=False, handlelength=2.4)  # fmt: skip
        large.set_title("(a) loss, anchor and minimum", loc="left")
        for place, theta0 in enumerate(MOVED):
            row, column = divmod(place, 3)
            ax = figure.add_subplot(grid[row, 2 + column], sharex=large, sharey=large)
            losses(ax, theta0)
            name = f"θ₀ = {theta0:g}".replace("-", "−")
            ax.set_title(f"(b) {name}" if place == 0 else name, loc="left")
            ax.tick_params(labelleft=column == 0, labelbottom=row == 1)
            if row == 1:
                ax.set_xlabel("θ")
    return figure


def losses(ax: Axes, theta0: float) -> dict[str, Line2D]:
    """f, the penalty, the sum, its minimum and the anchor; `move` gives them another θ₀."""
    shown = {
        "f": {"color": "black", "linestyle": "-", "label": "f(θ)"},
        "penalty": {"color": ORANGE, "linestyle": (0, (4, 1.5)), "label": "½λ(θ − θ₀)²"},
        "sum": {"color": GREEN, "linewidth": 1.8, "label": "their sum"},
        "minimum": {**STAR, "markersize": 10, "label": "its minimum θ*", "zorder": 5},
        "anchor": {
            "color": ORANGE, "marker": "^", "linestyle": "none", "markersize": 6,
            "markeredgecolor": "black", "markeredgewidth": 0.5, "clip_on": False, "label": "θ₀",
        },
    }  # fmt: skip
    lines = {name: ax.plot([], [], **look)[0] for name, look in shown.items()}
    lines["f"].set_data(THETA.numpy(), ONE.loss(THETA)[0].numpy())
    ax.set(xlim=(-5.5, 5.5), ylim=(BOTTOM, TOP))
    ax.set_yticks([0, 2, 4])
    move(lines, theta0)
    return lines


def move(lines: dict[str, Line2D], theta0: float) -> None:
    """Draw the same lines for another anchor."""
    at = torch.tensor([theta0], dtype=F64)
    minimum = ONE.minima(at)
    total = ONE.anchored(THETA, at)[0]
    penalty = total - ONE.loss(THETA)[0]
    for name, height in (("penalty", penalty), ("sum", total)):
        lines[name].set_data(THETA.numpy(), torch.where(height < TOP, height, torch.nan).numpy())
    lines["minimum"].set_data(minimum[0].numpy(), ONE.anchored(minimum, at)[0].numpy())
    lines["anchor"].set_data(at.numpy(), np.array([BOTTOM]))


def follow(ax: Axes) -> None:
    """θ* against θ₀, broken at its jumps, over the diagonal."""
    theta0 = torch.linspace(*RANGE, 901, dtype=F64)
    jumps = ONE.jumps.within(*RANGE)
    ends = [(jumps.theta0[k], jumps.below[k], jumps.above[k]) for k in range(len(jumps.theta0))]
    curve = broken(theta0.numpy(), ONE.minima(theta0)[0].numpy(), np.array(ends))
    ax.plot(RANGE, RANGE, color=COLOURS["reference"], linewidth=0.8, linestyle=":", label="θ* = θ₀")
    ax.plot(*curve, color="black", label="θ*(θ₀), global minimum")


def broken(x: np.ndarray, y: np.ndarray, jumps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A curve that ends on both sides of every jump, rows of which are (x, before, after)."""
    for at, before, after in jumps:
        place = int(np.searchsorted(x, at))
        x = np.insert(x, place, [at, at, at])
        y = np.insert(y, place, [before, np.nan, after])
    return x, y


def minimum(table: pd.DataFrame) -> Figure:
    """θ*(θ₀), its derivative and f(θ*(θ₀)), one above the other."""
    curve, jumps = select(table, panel="curve"), select(table, panel="jump")
    newton = select(table, panel="library")
    newton = newton.iloc[:: max(1, len(newton) // 60)]
    same = (newton.found - newton.minimum).abs() < SAME
    with style():
        figure = Figure(figsize=(DOUBLE, 5.6), layout="constrained")
        place, slope, value = figure.subplots(3, 1, sharex=True)
        follow(place)
        hollow = {"color": COLOURS["imaml"], "linestyle": "none", "markersize": 3.5,
                  "markerfacecolor": "white"}  # fmt: skip
        place.plot(newton.theta0[~same], newton.found[~same], marker="D", **hollow,
                   label="Newton's method, if elsewhere")  # fmt: skip
        _derivative(slope, curve, newton[same], jumps.theta0.to_numpy(), hollow)
        _values(value, curve, jumps)
        place.set(ylabel="θ*", title="(a) the minimum")
        slope.set(ylabel="dθ*/dθ₀", title="(b) its derivative", ylim=(0.06, 0.21))
        value.set(ylabel="nats", title="(c) the meta-objective", xlabel="anchor θ₀", xlim=RANGE)
        for ax in (place, slope, value):
            ax.title.set_horizontalalignment("left")
            ax.title.set_x(0.0)
            for number, at in enumerate(jumps.theta0):
                label = "jumps" if ax is place and number == 0 else None
                ax.axvline(at, color=COLOURS["reference"], linewidth=0.5, zorder=0, label=label)
            ax.legend(frameon=False, loc="lower right", bbox_to_anchor=(1.0, 0.98), ncols=4,
                      columnspacing=1.4)  # fmt: skip
    return figure


def _derivative(
    ax: Axes, curve: pd.DataFrame, newton: pd.DataFrame, jumps: np.ndarray, hollow: dict[str, Any]
) -> None:
    edges = np.stack([jumps, *[np.full(len(jumps), np.nan)] * 2], 1)
    formula = broken(curve.theta0.to_numpy(), curve.formula.to_numpy(), edges)
    ax.plot(*formula, color="black", label="λ / (λ + f″(θ*))")
    some = curve.iloc[5 :: max(1, len(curve) // 60)]
    ax.plot(some.theta0, some.numeric, "x", color=RED, markersize=4, label="central differences")
    ax.plot(newton.theta0, newton.response, marker="D", **hollow, label="library, implicit")


def _values(ax: Axes, curve: pd.DataFrame, jumps: pd.DataFrame) -> None:
    """f(θ*) with its jumps, and the minimum of the sum, which has none."""
    below = ONE.loss(torch.tensor(jumps.below.to_numpy()))[0].numpy()
    ends = np.stack([jumps.theta0, below, below + jumps.rise], 1)
    ax.plot(*broken(curve.theta0.to_numpy(), curve.value.to_numpy(), ends), color="black",
            label="f(θ*(θ₀)): jumps")  # fmt: skip
    ax.plot(curve.theta0, curve.envelope, color=GREEN, linestyle=(0, (5, 1.5)),
            label="with its penalty, min F: kinks")  # fmt: skip
    ax.set_ylim(-1.15, 1.0)
