"""`python -m studies.conv_speed.passes DEVICE SIZE`: the forms in turn, rows as JSON.

Each pass over all tasks at once (the value, its gradient, a product with the Hessian), and the
whole step of MAML with the network in that form.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bayesmeta.curvature import hessian
from bayesmeta.derivatives import slope
from bayesmeta.models import Model
from bayesmeta.tasks import TaskBatch
from studies._serving import CLOCKS
from studies.conv_speed import forms
from studies.conv_speed.bayesmeta_step import chunk_size, descent, gradient, network
from studies.conv_speed.plain_loop import plain_float32
from studies.conv_speed.problem import Task
from studies.conv_speed.timing import FULL, QUICK, SAME, Case, task

SIZES = {"full": (FULL, Case("maml", 15, 5)), "quick": (QUICK, Case("maml", 2, 2))}
Energies = Callable[[Tensor], Tensor]


def rows(device: str, size: str) -> list[dict[str, Any]]:
    """Of the support, of as many tasks' queries as fit a cache, and of the step."""
    setting, case = SIZES[size]
    plain_float32(tf32=False)
    whole = task(setting, case, device)
    some = slice(chunk_size(whole))
    query = replace(whole, x=whole.query_x[some], y=whole.query_y[some])
    found = []
    for tuned in (False, True) if device == "cuda" else (False,):
        torch.backends.cudnn.benchmark = tuned
        for sets in (whole, query):
            found += [row | {"tuned": tuned} for row in _passes(sets, case.turns)]
        found += [row | {"tuned": tuned} for row in _steps(whole, case.turns)]
    return found


def _passes(sets: Task, turns: int) -> list[dict[str, Any]]:
    """Rows of the three passes over the support of these tasks."""
    found, tasks = descent(sets, network(sets))
    model, batch = found.problem.model, tasks.support
    theta = found.prior.free["mean"].detach().repeat(len(batch), 1)
    works = {name: _works(energies, theta) for name, energies in _energies(model, batch).items()}
    size = {"tasks": len(batch), "images": sets.y.shape[1]}
    found = []
    for kind in ("value", "gradient", "hessian"):
        timed = _in_turn({name: work[kind] for name, work in works.items()}, turns, sets.device)
        found += [{"part": "form", "pass": kind, **size, **row} for row in timed]
    return found


def _energies(model: Model, batch: TaskBatch) -> dict[str, Energies]:
    """θ (task, dim) -> f (task,) in every form."""
    found: dict[str, Energies] = {}
    for name in forms.MODULES:
        other = forms.rewritten(model, name)
        found[name] = lambda theta, other=other: other.energies(theta, batch)
    layouts = {"written": torch.contiguous_format}
    if batch.index.device.type == "cuda":
        layouts["written, channels last"] = torch.channels_last
    for name, layout in layouts.items():
        found[name] = lambda theta, layout=layout: forms.written(
            model, theta, batch, memory_format=layout
        )
    return found


def _works(energies: Energies, theta: Tensor) -> dict[str, Callable[[], Tensor]]:
    """The passes, as a fit takes them: nothing is recorded that nobody differentiates."""
    v = torch.randn(theta.shape, generator=torch.Generator().manual_seed(1)).to(theta)
    with torch.no_grad():
        curvature = hessian(lambda t: slope(energies, t)[1], theta)
    works = {
        "value": lambda: energies(theta),
        "gradient": lambda: slope(energies, theta)[1],
        "hessian": lambda: curvature.product(v),
    }
    return {name: torch.no_grad()(work) for name, work in works.items()}


def _steps(whole: Task, turns: int) -> list[dict[str, Any]]:
    """Rows of the whole meta-gradient, so many tasks at a time as fit a cache."""
    steps = {}
    for name in forms.MODULES:
        model = forms.rewritten(network(whole, chunk_size(whole)), name)
        steps[name] = gradient(*descent(whole, model))
    timed = _in_turn(steps, turns, whole.device)
    size = {"tasks": len(whole.y), "images": whole.y.shape[1] + whole.query_y.shape[1]}
    return [{"part": "form", "pass": "step", **size, **row} for row in timed]


def _in_turn(
    works: dict[str, Callable[[], Tensor]], turns: int, device: str
) -> list[dict[str, Any]]:
    """Median times, round by round.

    Raises:
        RuntimeError: two forms compute different things.
    """
    clock = CLOCKS[device]
    seconds: dict[str, list[float]] = {name: [] for name in works}
    answers = {name: _timed(work, clock)[1] for name, work in works.items()}
    for _ in range(turns):
        for name, work in works.items():
            seconds[name].append(_timed(work, clock)[0])
    first = answers["grouped"]
    rows = []
    for name, answer in answers.items():
        difference = float((answer - first).norm() / first.norm())
        if not difference < SAME:
            raise RuntimeError(f"the form {name} is off by {difference:.1e}")
        low, middle, high = statistics.quantiles(seconds[name], n=4, method="inclusive")
        row = {"implementation": name, "ms": 1e3 * middle, "spread_ms": 1e3 * (high - low)}
        rows.append(row | {"turns": turns, "difference": difference})
    base = rows[0]["ms"]
    return [row | {"times_grouped": base / row["ms"]} for row in rows]


def _timed(work: Callable[[], Tensor], clock: Callable[[], float]) -> tuple[float, Tensor]:
    """Seconds until the result is on the host, and the result."""
    started = clock()
    found = work().detach().cpu()
    return clock() - started, found


if __name__ == "__main__":
    print(json.dumps(rows(sys.argv[1], sys.argv[2])))
