"""A prior over the weights of a network, from 200 sinusoids, and what it is worth on new ones."""

from __future__ import annotations

import math
from collections.abc import Callable

import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from torch import Tensor

import bayesmeta as bm
from bayesmeta.plots import COLOURS, style
from studies._framework import Result

QUESTION = "What is a prior over an MLP's weights worth on a new sinusoid with 1 to 10 points?"
POINTS = (1, 3, 5, 10)
LEVEL = 0.9
WORTH = 3
"""Points after which the headline tells what the prior is worth."""
FORM = "lowrank(10)"
NOISE = 0.1
DRAWS = 300
LOOKS = {
    "fitted prior": ("joint", "o", "-"),
    "prior alone, no points": ("prior", "D", "--"),
    "no pooling": ("no_pooling", "o", "-."),
    "full pooling": ("full_pooling", "^", ":"),
}
Predict = Callable[[bm.TaskFamily, bm.TaskFamily], tuple[Tensor, Tensor, Tensor, Tensor]]


def run(quick: bool, device: str) -> Result:
    """Fit, adapt to unseen tasks, and score their other points."""
    size = {"train": 20, "test": 8, "steps": 80} if quick else {}
    return study(device=device, **size)


def study(
    *, device: str, train: int = 200, test: int = 40, steps: int = 7000, adapt_steps: int = 1500
) -> Result:
    """The whole comparison; `steps` of the fit, `adapt_steps` of every adaptation."""
    adapt_steps = min(steps, adapt_steps)
    generator = torch.Generator().manual_seed(0)
    family, unseen = (
        bm.families.sinusoid(tasks=n, rows=r, noise=NOISE, generator=generator)[0].to(
            device=device, dtype=torch.float32
        )
        for n, r in ((train, 10), (test, 60))
    )
    unseen = bm.TaskFamily(unseen.tensors, names=[f"new {i}" for i in range(test)])
    support, query = unseen.split(max(POINTS), torch.Generator().manual_seed(1))
    fitted = _fit(family, steps, adapt_steps)
    alone = _vague(family, adapt_steps)
    pooled = _pooled(family, steps)
    rows, adapted = [_row("prior alone, no points", 0, _bayes(fitted, query), query)], {}
    for points in POINTS:
        few = _first(support, points)
        adapted[points] = fitted.adapt(few)
        scored = {
            "fitted prior": _bayes(adapted[points], query),
            "no pooling": _bayes(alone.adapt(few), query),
            "full pooling": _point(pooled, query),
        }
        rows += [_row(name, points, values, query) for name, values in scored.items()]
    table = pd.DataFrame(rows).assign(fit_evidence=fitted.log_evidence, fit_noise=fitted.noise)
    return Result(table, {"sinusoid_prior_fans": _fans(adapted)})


def draw(table: pd.DataFrame) -> dict[str, Figure]:
    """The figure of the table; the fans are of the fit itself."""
    return {"sinusoid_prior_scores": _scores(table)}


def headline(table: pd.DataFrame) -> str:
    """The fitted prior against both baselines, by number of points, and its coverage."""
    ours = table[table.method == "fitted prior"].set_index("points")
    few = table[table.points == WORTH].set_index("method").nll
    gains = {name: few[name] - few["fitted prior"] for name in ("full pooling", "no pooling")}
    return (
        f"With {WORTH} points of an unseen sinusoid the fitted prior is worth "
        f"{gains['full pooling']:z.2f} nats a point over full pooling and "
        f"{gains['no pooling']:z.2f} over no pooling. "
        f"Its own negative log density is {ours.nll[POINTS[0]]:z.2f} nats a point with "
        f"{POINTS[0]} point, {ours.nll[WORTH]:z.2f} with {WORTH} and {ours.nll[POINTS[-1]]:z.2f} "
        f"with {POINTS[-1]}. "
        f"Beware of its {100 * LEVEL:g} % intervals, which hold "
        f"{100 * ours.coverage[POINTS[0]]:.0f} % of new values with {POINTS[0]} point and "
        f"{100 * ours.coverage[POINTS[-1]]:.0f} % with {POINTS[-1]}."
    ).replace(" -", " −")


def _model(family: bm.TaskFamily, scale: float | None = None) -> bm.Model:
    return bm.models.mlp((40, 40), family, bm.likelihoods.Gaussian(scale=scale))


def _fit(family: bm.TaskFamily, steps: int, adapt_steps: int) -> bm.Fit:
    """The joint fit: a low-rank + diagonal prior, from diagonal Q_i of the training tasks.

    New tasks get low-rank Q_i: with a point or two their posterior is close to the prior, whose
    shape a diagonal Q_i cannot have, and it would be far too narrow.
    """
    method = bm.methods.joint(covariance="diagonal", steps=steps)
    fitted = bm.fit(_model(family), family, method=method, prior=bm.Prior(FORM))
    # Adaptation moves one Q_i under a prior that stands: fewer steps, less noise in each.
    fitted.choices = bm.methods.joint(
        covariance=FORM, steps=adapt_steps, warmup=0.0, lr=0.005, draws=4
    )
    return fitted


def _vague(family: bm.TaskFamily, steps: int) -> bm.Fit:
    """Nothing learned from other tasks: weights N(0, 1 / fan-in), and the true noise as a gift."""
    model = _model(family, scale=NOISE)
    fan_in = torch.cat([
        torch.full((p.numel(),), float(p.shape[-1] if p.ndim > 1 else 1))
        for p in model.module.parameters()
    ]).to(family.device)  # fmt: skip
    prior = bm.Prior("diagonal", learn="none").at(
        mean=torch.zeros(model.dim, device=family.device), variance=1 / fan_in
    )
    method = bm.methods.joint(covariance="diagonal", steps=1)
    fitted = bm.fit(model, family, method=method, prior=prior)
    fitted.choices = bm.methods.joint(covariance="diagonal", steps=steps)
    return fitted


def _pooled(family: bm.TaskFamily, steps: int) -> bm.Fit:
    """One network for the points of all tasks, with its noise."""
    x, y = family.tensors["x"].flatten(0, 1)[None], family.tensors["y"].flatten()[None]
    whole = bm.TaskFamily.from_tensors(x=x, y=y)
    model = _model(whole)
    prior = bm.Prior("isotropic", learn="none").at(
        mean=torch.zeros(model.dim, device=family.device), variance=1.0
    )
    method = bm.methods.joint(covariance="point", steps=min(steps, 500))
    return bm.fit(model, whole, method=method, prior=prior)


def _first(support: bm.TaskFamily, points: int) -> bm.TaskFamily:
    """The first `points` support rows, which are in random order; more points hold fewer."""
    tensors = {k: v[:, :points] for k, v in support.tensors.items()}
    return bm.TaskFamily(tensors, names=support.names)


def _bayes(fitted: bm.Fit, query: bm.TaskFamily):
    """Log density, centre and ends of the interval of each query point, by draws."""
    prediction = fitted.predict(query, draws=DRAWS)
    density = prediction.log_density.logsumexp(0) - math.log(DRAWS)
    return density, prediction.mean, *prediction.interval(LEVEL)


def _point(pooled: bm.Fit, query: bm.TaskFamily):
    """The same for one network with Gaussian noise around it."""
    theta = pooled.posterior.mean.expand(len(query), -1)
    with torch.no_grad():
        mean = pooled.model.predict(theta, query.batch())
        density = pooled.model.log_prob_rows(theta, query.batch())
    half = pooled.noise * torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor((1 + LEVEL) / 2))
    return density, mean, mean - half, mean + half


def _row(name: str, points: int, values, query: bm.TaskFamily) -> dict[str, object]:
    """Means over tasks, with standard errors over tasks."""
    density, mean, low, high = (v.cpu() for v in values)
    y = query.tensors["y"].cpu()
    nll = -density.mean(1)
    inside = ((y >= low) & (y <= high)).double().mean(1)
    error = 1 / math.sqrt(len(y))
    return {
        "method": name,
        "points": points,
        "nll": float(nll.mean()),
        "nll_se": float(nll.std()) * error,
        "coverage": float(inside.mean()),
        "coverage_se": float(inside.std()) * error,
        "rmse": float((mean - y).square().mean().sqrt()),
        "tasks": len(y),
    }


def _scores(table: pd.DataFrame) -> Figure:
    """NLL and coverage against the number of points, one line per method."""
    with style():
        figure = Figure(figsize=(7.0, 2.9), layout="constrained")
        left, right = figure.subplots(1, 2)
        for place, (name, (role, marker, line)) in enumerate(LOOKS.items()):
            part = table[table.method == name]
            for ax, value, error in ((left, "nll", "nll_se"), (right, "coverage", "coverage_se")):
                scale = 100 if value == "coverage" else 1
                ax.errorbar(
                    part.points + 0.14 * (place - 1), scale * part[value], 2 * scale * part[error],
                    color=COLOURS[role], marker=marker, linestyle=line, markersize=4, label=name,
                    markerfacecolor="white" if name.endswith("pooling") else COLOURS[role],
                    linewidth=1.0,
                )  # fmt: skip
        right.axhline(100 * LEVEL, color=COLOURS["reference"], linewidth=0.8)
        left.set(ylabel="−log p of new values, nats per point", title="(a) prediction")
        if table.nll.max() > 20 * max(table.nll.min(), 0.1):
            left.set_yscale("symlog", linthresh=1.0)
            left.set_title("(a) prediction, axis linear below 1")
            left.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        right.set(ylabel=f"held by {100 * LEVEL:g} % intervals, %", ylim=(None, 101))
        right.set_title(f"(b) coverage, grey line: {100 * LEVEL:g} %")
        tasks = table.tasks.iloc[0]
        figure.supxlabel(f"bars: ± 2 standard errors over {tasks} new tasks", fontsize=7)
        for ax in (left, right):
            ax.set_xticks([0, *POINTS])
            ax.set_xlabel("points of the new task")
        figure.legend(
            *left.get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False
        )
    return figure


def _fans(adapted: dict[int, bm.Fit]) -> Figure:
    """One unseen task as its points arrive."""
    with style():
        figure = Figure(figsize=(7.0, 2.2), layout="constrained")
        axes = figure.subplots(1, len(adapted), sharex=True, sharey=True)
        for ax, (points, fit) in zip(axes, adapted.items(), strict=True):
            _fan(ax, fit)
            ax.set_title(f"{points} point{'s' if points > 1 else ''}")
            ax.set_xlabel("x")
        axes[0].set_ylabel("y")
        handles, names = axes[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside upper center", ncols=3, frameon=False)
    return figure


def _fan(ax, fit: bm.Fit, task: int = 0) -> None:
    grid = torch.linspace(-5, 5, 101)
    one = bm.TaskFamily.from_tensors(
        x=grid[None, :, None].to(fit.family.device),
        y=torch.zeros(1, 101, device=fit.family.device),
        names=[fit.family.names[task]],
    )
    prediction = fit.predict(one, draws=DRAWS)
    low, high = (v[0].cpu() for v in prediction.interval(LEVEL))
    colour = COLOURS["predictive"]
    ax.fill_between(grid, low, high, color=colour, alpha=0.25, linewidth=0, label="90 % interval")
    ax.plot(grid, prediction.mean[0].cpu(), color=colour, label="mean")
    x, y = (fit.family.tensors[k][task].cpu() for k in ("x", "y"))
    ax.plot(x[:, 0], y, "o", color=COLOURS["data"], markersize=3.5, label="points of the task")
