"""The study's figures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from scipy.stats import binomtest

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
        figure.legend(
            handles, names, loc="outside lower center", ncols=4, frameon=False, title_fontsize=7,
            title="contours of a task's loss: " + ", ".join(f"{x:g}" for x in LEVELS) + " nats",
        )  # fmt: skip
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
        ax.plot(*pair.c[i].tolist(), "*", color=colour, linestyle=dashes, linewidth=0.7,
                label=f"loss and optimum of task {i + 1}", markersize=9,
                markeredgecolor="white", markeredgewidth=0.5)  # fmt: skip
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
    ax.plot(
        at,
        np.full(len(at), 2.4e-4),
        "|",
        color="black",
        markersize=7,
        label="a of the tasks in (a)",
    )
    ax.set(xscale="log", yscale="log", xlim=(4e-3, 1.0), ylim=(2e-4, 1.0))
    ax.set(xlabel="α × eigenvalue a of A", ylabel="α × eigenvalue of W, αa (1 − αa)$^{2k}$")
    ax.set_ylim(top=5.0)  # room for the legend
    ax.legend(
        frameon=False, loc="upper left", title="MAML, after k =", title_fontsize=7,
        alignment="left", borderaxespad=0.1, labelspacing=0.3,
    )  # fmt: skip


def adaptation(table: pd.DataFrame) -> Figure:
    """What each start leaves after adaptation, and how its distance to each optimum contracts."""
    rows = select(table, panel="adaptation")
    with style():
        figure = Figure(figsize=(DOUBLE, 3.3), layout="constrained")
        losses, first, second = figure.subplots(1, 3)
        for place, (name, (colour, marker, dashes)) in enumerate(LOOK.items()):
            part = select(rows, method=name).sort_values("steps")
            look: dict[str, Any] = {
                "color": colour, "linestyle": dashes, "marker": marker, "markersize": 4,
                "markeredgecolor": "black", "markeredgewidth": 0.4, "label": NAMES[name],
                "markevery": (2 * place, 12),
            }  # fmt: skip
            losses.plot(_floats(part, "steps"), _floats(part, "loss"), **look)
            for ax, task in ((first, 1), (second, 2)):
                ax.plot(_floats(part, "steps"), _floats(part, f"norm_{task}"), **look)
        for ax, column, name in (
            (losses, "least", "least possible"),
            (first, "limit_1", "slowest: (1 − αa)$^n$, smallest a"),
            (second, "limit_2", "slowest: (1 − αa)$^n$, smallest a"),
        ):
            grey = ax.plot(_floats(part, "steps"), _floats(part, column), color="black",
                           linewidth=3, alpha=0.3, zorder=0)  # fmt: skip
            ax.legend(grey, [name], frameon=False, loc="upper right", handlelength=1.5)
            ax.set(yscale="log", xlabel="n, steps of adaptation")
        _bounded(losses, rows, "loss", (FLOOR, 20))
        losses.set_ylabel("loss of both tasks, nats")
        first.set_ylabel("‖θ$_n$ − c‖$_A$ / ‖θ$_0$ − c‖$_A$")
        for ax, task in ((first, 1), (second, 2)):
            _bounded(ax, rows, f"norm_{task}", (3e-3, 2.5))
        for ax, title in ((losses, "(a) loss"), (first, "(b) distance to c, optimum 1"),
                          (second, "(c) distance to c, optimum 2")):  # fmt: skip
            ax.set_title(title, loc="left")
        handles, names = losses.get_legend_handles_labels()
        figure.legend(
            handles, names, loc="outside upper center", ncols=6, frameon=False, title_fontsize=7,
            title="adaptation by gradient descent, from the start that each of these learns",
            handlelength=3.0, columnspacing=1.0,
        )  # fmt: skip
    return figure


def _bounded(ax: Axes, rows: pd.DataFrame, column: str, limits: tuple[float, float]) -> None:
    """Limits of an axis, and what the least goes on to below them."""
    ax.set_ylim(limits)
    last = select(rows, steps=rows.steps.max())
    least = last.loc[last[column].idxmin()]
    if least[column] < limits[0]:
        path = select(rows, method=least.method).sort_values("steps")
        leaves = float(path.steps[path[column] < limits[0]].min())
        power = f"{least[column]:.0e}".split("e")
        ax.text(
            leaves + 2, 1.2 * limits[0],
            f"↓ {power[0]} × 10$^{{{int(power[1])}}}$\n    at n = {least.steps:.0f}", fontsize=7,
        )  # fmt: skip


def convexity(table: pd.DataFrame) -> Figure:
    """The counter-example, one task and both, and the search."""
    cases = select(table, panel="example").set_index("case")
    with style():
        figure = Figure(figsize=(DOUBLE, 3.4), layout="constrained")
        one, both, search = figure.subplots(1, 3)
        theta = np.linspace(-4.4, 4.4, 881)
        alpha = float(cases.loc["example"].alpha)
        _one(one, theta, alpha)
        _both(both, theta, cases, select(table, panel="descent"))
        _search(search, select(table, panel="search"))
        for ax, title in ((one, "(a) one task"), (both, "(b) the sum of two"),
                          (search, "(c) random pairs")):  # fmt: skip
            ax.set_title(title, loc="left")
            ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(-0.12, -0.2))
    return figure


def _one(ax: Axes, theta: Array, alpha: float) -> None:
    """f and F of the first task; where F bends down it is thick and light."""
    losses = example()
    lowest = losses.value(losses.minima())[0].item()
    f = losses.value(theta)[0] - lowest
    F = losses.value(losses.adapted(theta, alpha))[0] - lowest
    bent = np.where(losses.adapted_second(theta, alpha)[0] < 0, F, np.nan)
    ax.plot(theta, bent, color=SKY, linewidth=5, solid_capstyle="butt", label="F″ < 0")
    ax.plot(theta, f, color=GREY, linestyle=(0, (5, 1.5)), label="f, before adaptation")
    ax.plot(theta, F, color=COLOURS["maml"], label="F, after one step")
    ax.set(xlabel="start θ₀", ylabel="loss above its minimum, nats", ylim=(-0.03, 1.0))


def _both(ax: Axes, theta: Array, cases: pd.DataFrame, descents: pd.DataFrame) -> None:
    losses = example()
    look = {
        "example": ("-", "v"),
        "last convex": ((0, (5, 1.5)), ""),
        "theorem": ((0, (1, 1)), "o"),
    }
    for case, (dashes, marker) in look.items():
        alpha = float(cases.loc[case].alpha)
        value = losses.value(losses.adapted(theta, alpha)).sum(0)
        base = value.min()
        ax.plot(theta, value - base, color=COLOURS["maml"], linestyle=dashes,
                label=_said(case, alpha))  # fmt: skip
        ends = _floats(select(descents, case=case), "fit")
        at = losses.value(losses.adapted(ends, alpha)).sum(0) - base
        if marker:
            ax.plot(ends, at, linestyle="none", marker=marker, color=COLOURS["maml"],
                    markersize=4.5, markeredgecolor="black", markeredgewidth=0.4,
                    label=f"where fits end, α = {alpha:.2g}")  # fmt: skip
    ax.set(xlabel="start θ₀", ylabel="F₁ + F₂ above its minimum, nats", ylim=(-0.03, 1.0))


def _said(case: str, alpha: float) -> str:
    names = {"example": "", "last convex": ", largest with F″ ≥ 0", "theorem": ", the theorem's"}
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
        ends = [binomtest(int(k), int(n)).proportion_ci(method="wilson")
                for k, n in zip(_floats(bins, column), pairs, strict=True)]  # fmt: skip
        error = np.abs([[end.low for end in ends], [end.high for end in ends]] - share)
        ax.errorbar(middle, share, yerr=error, color=colour, linestyle=dashes, marker=marker,
                    markersize=4, elinewidth=0.8, label=name)  # fmt: skip
    ax.errorbar([], [], yerr=[], color="black", elinewidth=0.8, linestyle="none",
                label="95 % interval (Wilson)")  # fmt: skip
    ax.axvline(1.0, color="black", linewidth=0.7)
    ax.text(0.85, 0.6, "convex by the theorem", rotation=90, ha="right", va="center", fontsize=7,
            transform=ax.get_xaxis_transform())  # fmt: skip
    beyond = float(bins.low.max())
    ax.plot([], [], linestyle="none", label=f"last marks: all beyond {beyond:g}")
    ax.set(xscale="log", xlim=(0.25, None), ylabel="share of random pairs of losses")
    ax.set_xlabel("α / α of the theorem")
    ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
