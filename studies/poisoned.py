"""A family of which one task in twenty is poisoned, fitted beside the same family before that.

1,000 logistic tasks with an intercept and a slope; 50 of them are spoilt in one of four ways:

    not a number     x divided by an sd of 0, as who standardises task by task does
    separated        every response is on the side of zero that the predictor says
    one row          all other rows are lost
    one response     every response is the same

What counts: the fit converges, the poisoned tasks are named, and θ₀ moves by less than its own
standard error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

import bayesmeta as bm
from bayesmeta.plots import COLOURS, MARKERS, SINGLE, style
from studies._framework import Result

QUESTION = "What do poisoned tasks, one in twenty, do to the prior that all tasks share?"
TASKS, ROWS = 1000, 20
POISONED = 50
WEIGHTS = {"weight[0,0]": "slope", "bias[0]": "intercept"}
Spoil = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, int], None]


def _not_a_number(x: torch.Tensor, y: torch.Tensor, mask: torch.Tensor, task: int) -> None:
    x[task] = (x[task] - x[task]) / (x[task] - x[task]).std(0)


def _separated(x: torch.Tensor, y: torch.Tensor, mask: torch.Tensor, task: int) -> None:
    sign = 1.0 if task % 2 else -1.0
    y[task] = (sign * x[task, :, 0] > 0).double()


def _one_row(x: torch.Tensor, y: torch.Tensor, mask: torch.Tensor, task: int) -> None:
    mask[task, 1:] = False


def _one_response(x: torch.Tensor, y: torch.Tensor, mask: torch.Tensor, task: int) -> None:
    y[task] = float(task % 2)


KINDS: dict[str, Spoil] = {
    "not a number": _not_a_number,
    "separated": _separated,
    "one row": _one_row,
    "one response": _one_response,
}
METHODS: dict[str, tuple[str, Callable[[], bm.methods.Method]]] = {
    "laplace": ("Laplace", bm.methods.laplace),
    "joint": ("joint, full Q", bm.methods.joint),
    "stochastic": (
        "joint, minibatches",
        lambda: bm.methods.joint(covariance="diagonal", batch=100),
    ),
}
"""By the name of their look: what to call them, and how they are made."""


def run(quick: bool, device: str) -> Result:
    """Every method on the family before and after it was poisoned."""
    tasks, poisoned = (60, 4) if quick else (TASKS, POISONED)
    sound = family(tasks, device)
    spoilt, kinds = poison(sound, poisoned)
    chosen = ("laplace",) if quick else METHODS
    rows = [row for name in chosen for row in compared(name, sound, spoilt, kinds)]
    return Result(pd.DataFrame(rows).assign(tasks=tasks, device=device))


def family(tasks: int, device: str) -> bm.TaskFamily:
    """Before: N((−0.5, 1), I) over slope and intercept."""
    drawn, _ = bm.families.logistic(
        tasks=tasks,
        rows=ROWS,
        generator=torch.Generator().manual_seed(0),
        theta0=torch.tensor([-0.5, 1.0]),
        covariance=torch.eye(2),
        intercept=True,
        device=device,
    )
    return drawn


def poison(sound: bm.TaskFamily, count: int) -> tuple[bm.TaskFamily, dict[str, str]]:
    """The family after, and the kind of poison of every poisoned task."""
    x, y = sound.tensors["x"].clone(), sound.tensors["y"].clone()
    mask = torch.ones(y.shape, dtype=torch.bool, device=y.device)
    which = torch.randperm(len(sound), generator=torch.Generator().manual_seed(1))[:count].tolist()
    kinds = {task: list(KINDS)[i % len(KINDS)] for i, task in enumerate(which)}
    for task, kind in kinds.items():
        KINDS[kind](x, y, mask, task)
    spoilt = bm.TaskFamily.from_tensors(x=x, y=y, mask=mask, names=sound.names)
    return spoilt, {sound.names[task]: kind for task, kind in kinds.items()}


def compared(
    name: str, sound: bm.TaskFamily, spoilt: bm.TaskFamily, kinds: dict[str, str]
) -> list[dict[str, object]]:
    """A row per weight, by one method: θ₀ before and after, its error, and who was named."""
    model = bm.Model(torch.nn.Linear(1, 1), bm.likelihoods.Bernoulli())
    prior = bm.Prior("diagonal")
    before, after = (
        bm.fit(model, f, method=METHODS[name][1](), prior=prior) for f in (sound, spoilt)
    )
    named, usual = who_is_named(after), who_is_named(before)
    common = {
        "method": name,
        "poisoned": len(kinds),
        "named": len(named & set(kinds)),
        "others_named": len(named - set(kinds)),
        "others_named_before": len(usual - set(kinds)),
        "left_out": len(sound) - len(after.family),
        "finite": bool(after.prior.mean.isfinite().all() and after.prior.sd().isfinite().all()),
        "ended_alike": set(_endings(before.notes)) == set(_endings(after.notes)),
    }
    error = standard_error(before)
    means = torch.stack([before.prior.mean, after.prior.mean]).tolist()
    return [
        common | {"weight": WEIGHTS[weight], "before": a, "after": b, "standard_error": e}
        for weight, a, b, e in zip(before.prior.names, *means, error.tolist(), strict=True)
    ]


def who_is_named(fit: bm.Fit) -> set[str]:
    """The tasks that are flagged, or said to lean on the prior."""
    checks = bm.diagnostics.check(fit, draws=100)  # k̂, which is asked for draws, is not looked at
    data = [flag for found in checks if found.check == "data" for flag in found.flags]
    return {flag.task for flag in (*fit.flagged, *data)}


def _endings(notes: Sequence[str]) -> list[str]:
    return [note for note in notes if note.startswith("The outer loop")]


def standard_error(fit: bm.Fit) -> torch.Tensor:
    """Of θ₀: that of the fit, or the sd over tasks of their Q_i's means over √tasks."""
    if fit.standard_errors:
        return torch.tensor([fit.standard_errors[name] for name in fit.prior.names])
    return fit.posterior.mean.std(0).cpu() / len(fit.family) ** 0.5


def draw(table: pd.DataFrame) -> dict[str, Figure]:
    """θ₀ after less θ₀ before, in standard errors, by method and weight."""
    methods = list(dict.fromkeys(table["method"]))
    with style():
        figure = Figure(figsize=(SINGLE, 1.1 + 0.4 * len(methods)), layout="constrained")
        ax = figure.subplots()
        ax.axvspan(-1, 1, color=COLOURS["reference"], alpha=0.15, linewidth=0)
        ax.axvline(0, color=COLOURS["reference"], linewidth=0.6)
        for weight, shift, filled in (("intercept", -0.14, True), ("slope", 0.14, False)):
            for place, method in enumerate(methods):
                row = table[(table["method"] == method) & (table["weight"] == weight)]
                ax.plot(
                    moves(row), [place + shift], MARKERS[method], color=COLOURS[method],
                    markersize=5, markerfacecolor=COLOURS[method] if filled else "white",
                )  # fmt: skip
        ax.set_yticks(range(len(methods)), [METHODS[method][0] for method in methods])
        ax.set(ylim=(len(methods) - 0.5, -0.5), xlim=(-1.5, 1.5))
        ax.set_xlabel(
            "shift of θ₀, in its standard errors\nfilled: intercept, hollow: slope; band: ± 1"
        )
    return {"poisoned": figure}


def moves(table: pd.DataFrame) -> pd.Series:
    """θ₀ after less θ₀ before, in its standard errors."""
    return (table["after"] - table["before"]) / table["standard_error"]


def headline(table: pd.DataFrame) -> str:
    """How far θ₀ moves, who is named, and who is named besides."""
    first, least = table.iloc[0], table.groupby("method")["named"].first().min()
    moved = moves(table).abs()
    worst = table.loc[moved.idxmax()]
    share = 100 * np.ceil(1000 * moved.max()) / 1000
    ended = table.groupby("method")["ended_alike"].all()
    who = f"{METHODS[worst['method']][0]}, {worst['weight']}"
    return (
        f"With {first['poisoned']} of {first['tasks']:,} logistic tasks poisoned θ₀ moves by at "
        f"most {share:.0f} % of its standard error ({who}), over {len(ended)} "
        f"method{'s' * (len(ended) > 1)}. Each names at least {least} of the {first['poisoned']} "
        f"and goes without the {first['left_out']} whose data are no numbers; in {ended.sum()} of "
        f"{len(ended)} cases it ends as on sound data. Up to {table['others_named'].max()} further "
        f"tasks are named, against {table['others_named_before'].max()} before the poison: by "
        "chance their responses too are all alike or separated."
    )
