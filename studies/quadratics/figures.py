"""The study's figures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from bayesmeta.plots import COLOURS, DOUBLE, LINES, MARKERS, style
from bayesmeta.plots._style import SKY, tint
from studies.quadratics.problem import ALPHA, F64, Pair
from studies.quadratics.smooth import Array, example

GREY = COLOURS["reference"]
LOOK: dict[str, tuple[str, str, Any]] = {  # colour, marker, line
    "midpoint": (GREY, "s", (0, (1, 1))),
    "MAML, 1": (COLOURS["maml"], "^", "-"),
    "MAML, 5": (COLOURS["maml"], ">", (0, (5, 1.5))),
    "MAML, 50": (COLOURS["maml"], "v", (0, (3, 1, 1, 1))),
    "iMAML": (COLOURS["imaml"], MARKERS["imaml"], LINES["imaml"]),
    "Reptile": (COLOURS["reptile"], MARKERS["reptile"], LINES["reptile"]),
}
NAMES = {
    "midpoint": "midpoint",
    **{f"MAML, {k}": f"MAML, {k} step{'s' * (k > 1)}" for k in (1, 5, 50)},
    "iMAML": "iMAML",
    "Reptile": "Reptile (anchored), joint",
}
TASKS = (COLOURS["posterior"], COLOURS["stochastic"])
LEVELS = (0.05, 0.2, 0.45, 0.8, 1.25)
FLOOR = 1e-6


def select(table: pd.DataFrame, **values: Any) -> pd.DataFrame:
    """The rows with these values in these columns."""
    for column, value in values.items():
        table = table.loc[table[column] == value]
    return table


def _floats(rows: pd.DataFrame, column: str) -> Array:
    return rows[column].to_numpy(dtype=float)


def weighted(table: pd.DataFrame) -> Figure:
    """The two losses with every start, and the eigenvalues with which optima are averaged."""
    with style():
        figure = Figure(figsize=(DOUBLE, 3.1), layout="constrained")
        plane, eigenvalues = figure.subplots(1, 2)
        _plane(plane, select(table, panel="fixed point"))
        _eigenvalues(eigenvalues, select(table, panel="eigenvalue"))
        plane.set_title("(a) two losses, and the starts that methods learn", loc="left")
        eigenvalues.set_title("(b) what an eigenvalue of A weighs", loc="left")
        handles, names = plane.get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=4, frameon=False)
    return figure


def _plane(ax: Axes, fits: pd.DataFrame) -> None:
    pair = Pair.chosen()
    x, y = np.linspace(-2.4, 2.9, 160), np.linspace(-1.35, 2.2, 120)
    grid = torch.tensor(np.stack(np.meshgrid(x, y), -1), dtype=F64)
    for i, (colour, dashes) in enumerate(zip(TASKS, ("solid", "dashed"), strict=True)):
        away = grid - pair.c[i]
        loss = 0.5 * torch.einsum("abi,ij,abj->ab", away, pair.A[i], away)
        ax.contour(x, y, loss, LEVELS, colors=[tint(colour, 0.6)], linestyles=dashes,
                   linewidths=0.7)  # fmt: skip
        ax.plot(*pair.c[i].tolist(), "*", color=colour, label=f"optimum of task {i + 1}",
                markersize=9, markeredgecolor="white", markeredgewidth=0.5)  # fmt: skip
    for name, (colour, marker, _) in LOOK.items():
        rows = select(fits, method=name)
        at = pair.midpoint[None].numpy() if name == "midpoint" else _floats_of(rows)
        ax.plot(at[:, 0], at[:, 1], marker, color=colour, markersize=5.5, label=NAMES[name],
                markeredgecolor="black", markeredgewidth=0.4)  # fmt: skip
    ax.set(xlabel="θ, first weight", ylabel="θ, second weight")
    ax.set(xlim=(x[0], x[-1]), ylim=(y[0], y[-1]))


def _floats_of(rows: pd.DataFrame) -> Array:
    return rows[["theta_1", "theta_2"]].to_numpy(dtype=float)


def _eigenvalues(ax: Axes, rows: pd.DataFrame) -> None:
    a = _floats(select(rows, steps=rows.steps.min()), "eigenvalue") * ALPHA
    ax.plot(a, a, color=GREY, linewidth=0.9, linestyle=(0, (1, 1)), label="no steps")
    for steps, part in rows.groupby("steps"):
        colour, _, dashes = LOOK[f"MAML, {steps}"]
        ax.plot(
            a, ALPHA * _floats(part, "weight"), color=colour, linestyle=dashes,
            label=f"{steps} step{'s' * (int(str(steps)) > 1)}",
        )  # fmt: skip
    at = np.concatenate([e.numpy() for e in torch.linalg.eigvalsh(Pair.chosen().A)]) * ALPHA
    ax.plot(at, np.full(len(at), 2.4e-4), "|", color="black", markersize=7, label="those of (a)")
    ax.set(xscale="log", yscale="log", xlim=(4e-3, 1.0), ylim=(2e-4, 1.0))
    ax.set(xlabel="α × eigenvalue a of A", ylabel="α × eigenvalue of W, αa (1 − αa)$^{2k}$")
    ax.legend(frameon=False, loc="upper left")


def adaptation(table: pd.DataFrame) -> Figure:
    """What each start leaves after adaptation, and how its distance to each optimum contracts."""
    rows = select(table, panel="adaptation")
    with style():
        figure = Figure(figsize=(DOUBLE, 2.9), layout="constrained")
        losses, first, second = figure.subplots(1, 3)
        for name, (colour, _, dashes) in LOOK.items():
            part = select(rows, method=name).sort_values("steps")
            look: dict[str, Any] = {"color": colour, "linestyle": dashes, "label": NAMES[name]}
            losses.plot(_floats(part, "steps"), _floats(part, "loss"), **look)
            for ax, task in ((first, 1), (second, 2)):
                ax.plot(_floats(part, "steps"), _floats(part, f"norm_{task}"), **look)
        for ax, column, name in (
            (losses, "least", "least possible"),
            (first, "limit_1", "(1 − αa)$^n$, smallest a"),
            (second, "limit_2", "(1 − αa)$^n$, smallest a"),
        ):
            grey = ax.plot(_floats(part, "steps"), _floats(part, column), color="black",
                           linewidth=3, alpha=0.3, zorder=0)  # fmt: skip
            ax.legend(grey, [name], frameon=False, loc="upper right", handlelength=1.5)
            ax.set(yscale="log", xlabel="n, steps of adaptation")
        losses.set(ylabel="loss of both tasks, nats", ylim=(FLOOR, 20))
        first.set(ylabel="‖θ$_n$ − c‖$_A$ / ‖θ$_0$ − c‖$_A$")
        for ax in (first, second):
            ax.set_ylim(3e-3, 2.5)
        for ax, title in ((losses, "(a) loss"), (first, "(b) contraction, task 1"),
                          (second, "(c) contraction, task 2")):  # fmt: skip
            ax.set_title(title, loc="left")
        handles, names = losses.get_legend_handles_labels()
        figure.legend(handles, names, loc="outside upper center", ncols=6, frameon=False)
    return figure


def convexity(table: pd.DataFrame) -> Figure:
    """The counter-example, one task and both, and the search."""
    cases = select(table, panel="example").set_index("case")
    with style():
        figure = Figure(figsize=(DOUBLE, 2.9), layout="constrained")
        one, both, search = figure.subplots(1, 3)
        theta = np.linspace(-4.4, 4.4, 881)
        alpha = float(cases.loc["example"].alpha)
        _one(one, theta, alpha)
        _both(both, theta, cases, select(table, panel="descent"))
        _search(search, select(table, panel="search"))
        for ax, title in ((one, "(a) one task"), (both, "(b) the sum of two"),
                          (search, "(c) random pairs")):  # fmt: skip
            ax.set_title(title, loc="left")
    return figure


def _one(ax: Axes, theta: Array, alpha: float) -> None:
    """f and F of the first task; where F bends down it is thick and light."""
    losses = example()
    lowest = losses.value(losses.minima())[0].item()
    f = losses.value(theta)[0] - lowest
    F = losses.value(losses.adapted(theta, alpha))[0] - lowest
    bent = np.where(losses.adapted_second(theta, alpha)[0] < 0, F, np.nan)
    ax.plot(theta, bent, color=SKY, linewidth=5, solid_capstyle="butt", label="F″ < 0")
    low = np.where(f < 1.4, f, np.nan)
    ax.plot(theta, low, color=GREY, linestyle=(0, (5, 1.5)), label="f, before adaptation")
    ax.plot(theta, F, color=COLOURS["maml"], label="F, after one step")
    ax.set(xlabel="θ₀", ylabel="loss above its minimum, nats", ylim=(-0.05, 2.0))
    ax.legend(frameon=False, loc="upper left")


def _both(ax: Axes, theta: Array, cases: pd.DataFrame, descents: pd.DataFrame) -> None:
    losses = example()
    look = {
        "example": (COLOURS["maml"], "-", "v"),
        "last convex": (COLOURS["stochastic"], (0, (5, 1.5)), ""),
        "theorem": (COLOURS["posterior"], (0, (1, 1)), "o"),
    }
    for case, (colour, dashes, marker) in look.items():
        alpha = float(cases.loc[case].alpha)
        value = losses.value(losses.adapted(theta, alpha)).sum(0)
        base = value.min()
        low = np.where(value - base < 1, value - base, np.nan)  # room for the legend
        ax.plot(theta, low, color=colour, linestyle=dashes, label=_said(case, alpha))
        ends = _floats(select(descents, case=case), "fit")
        at = losses.value(losses.adapted(ends, alpha)).sum(0) - base
        ax.plot(ends, at, linestyle="none", marker=marker, color=colour, markersize=4.5,
                markeredgecolor="black", markeredgewidth=0.4)  # fmt: skip
    ax.set(xlabel="θ₀", ylabel="F₁ + F₂ above its minimum, nats", ylim=(-0.03, 1.45))
    ax.legend(frameon=False, loc="upper center")


def _said(case: str, alpha: float) -> str:
    names = {"example": "", "last convex": ", F″ ≥ 0 to here", "theorem": ", the theorem's"}
    return f"α = {alpha:.2g}{names[case]}"


def _search(ax: Axes, rows: pd.DataFrame) -> None:
    """By α over the bound, the share of pairs where a task bends down, the sum does, it has two."""
    bins = rows.iloc[:-1]
    high = np.where(np.isfinite(_floats(bins, "high")), _floats(bins, "high"), np.nan)
    high[np.isnan(high)] = 2 * _floats(bins, "low")[-1]
    middle, pairs = np.sqrt(_floats(bins, "low") * high), _floats(bins, "pairs")
    for column, name, colour, marker, dashes in (
        ("not_convex", "F₁ or F₂ not convex", SKY, "s", (0, (1, 1))),
        ("sum_not_convex", "F₁ + F₂ not convex", COLOURS["stochastic"], "D", (0, (5, 1.5))),
        ("several_minima", "two minima or more", COLOURS["maml"], "v", "-"),
    ):
        share = _floats(bins, column) / pairs
        error = 2 * np.sqrt(share * (1 - share) / pairs)
        ax.errorbar(middle, share, yerr=error, color=colour, linestyle=dashes, marker=marker,
                    markersize=4, elinewidth=0.8, label=name)  # fmt: skip
    ax.axvline(1.0, ymax=0.66, color="black", linewidth=0.7)
    ax.text(0.85, 0.36, "convex by the theorem", rotation=90, ha="right", va="center", fontsize=7,
            transform=ax.get_xaxis_transform())  # fmt: skip
    most = float((_floats(bins, "not_convex") / pairs).max())
    ax.set(xscale="log", xlabel="α / α of the theorem", ylabel="share of pairs")
    ax.set(xlim=(0.25, None), ylim=(-0.015, 1.6 * most + 0.01))
    ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    ax.legend(frameon=False, loc="upper left")
