"""`python -m studies.compute_memory.measure DEVICE SIZE`: peaks and times, rows as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

import bayesmeta as bm
from bayesmeta.method import Method
from studies._peaks import MIB, peak
from studies._serving import CLOCKS
from studies.conv_speed.bayesmeta_step import descent, gradient, network
from studies.conv_speed.problem import Task
from studies.omniglot.data import glyphs

LR, LAM, CG_STEPS = 0.01, 2.0, 5
AGAIN = 2.0
"""Seconds up to which a step is timed three times, and the fastest taken."""


@dataclass(frozen=True)
class Size:
    """Sizes of tasks and network, and how many steps there are."""

    ways: int
    shots: int
    queries: int
    side: int
    filters: int
    recorded: tuple[int, ...]
    unrecorded: tuple[int, ...]
    cg: tuple[int, ...]


SIZES = {
    "full": Size(20, 5, 5, 28, 64, (1, 2, 4, 8, 16, 32, 64), (1, 4, 16, 64, 256), (1, 5, 10, 20)),
    "quick": Size(5, 1, 1, 12, 4, (1, 2), (1, 4), (1, 4)),
}


def rules(steps: int) -> dict[str, Method]:
    """The methods whose gradient is compared, with so many inner steps."""
    options = {"steps": steps, "lr": LR, "support": None}
    maml = bm.methods.maml(**options)
    return {
        "maml": maml,
        "maml_checkpoint": replace(maml, gradient=bm.methods.Unrolled(checkpoint=1)),
        "truncated_maml": bm.methods.truncated_maml(last=1, **options),
        "fomaml": bm.methods.fomaml(**options),
        "imaml": bm.methods.imaml(lam=LAM, cg_steps=CG_STEPS, curvature="ggn", **options),
        "imaml_hessian": bm.methods.imaml(
            lam=LAM, cg_steps=CG_STEPS, curvature="hessian", **options
        ),
    }


RECORDED = ("maml", "maml_checkpoint")


def rows(device: str, name: str) -> list[dict[str, Any]]:
    """One row per rule and number of inner steps, and per number of solver steps."""
    size = SIZES[name]
    work = _task(size, device)
    found = []
    for rule in rules(1):
        for steps in size.recorded if rule in RECORDED else size.unrecorded:
            row = {"part": "inner", "rule": rule, "inner_steps": steps, "cg_steps": CG_STEPS}
            found.append(row | _measured(work, rules(steps)[rule], device))
    imaml = rules(16)["imaml"]
    for steps in size.cg:
        chosen = replace(imaml, gradient=replace(imaml.gradient, steps=steps))
        row = {"part": "cg", "rule": "imaml", "inner_steps": 16, "cg_steps": steps}
        found.append(row | _measured(work, chosen, device))
    return found


def _task(size: Size, device: str) -> Task:
    """One task of drawn glyphs."""
    images = glyphs(size.ways, size=size.side, each=size.shots + size.queries)
    stream = bm.FewShot(images, size.ways, size.shots, size.queries)
    support, query = stream.draw(1, torch.Generator().manual_seed(0))
    arrays = [part.tensors[key].numpy() for part in (support, query) for key in "xy"]
    start = bm.models.conv4(size.ways, stream.shape, filters=size.filters).start
    sizes = (size.filters, size.ways)
    return Task(*arrays, start.numpy(), *sizes, "maml", LR, LAM, 1, CG_STEPS, device)


def _measured(work: Task, method: Method, device: str) -> dict[str, float]:
    """Peak and time of one meta-gradient."""
    step = gradient(*descent(work, network(work), method))
    most = peak(step, device)
    clock = CLOCKS[device]
    seconds = _seconds(step, clock)
    if seconds < AGAIN:
        seconds = min(seconds, *(_seconds(step, clock) for _ in range(2)))
    return {"peak_mib": most / MIB, "seconds": seconds}


def _seconds(step: Callable[[], Tensor], clock: Callable[[], float]) -> float:
    """Until the gradient is on the host.

    Raises:
        RuntimeError: it is not finite, and nothing was measured.
    """
    started = clock()
    found = step().cpu()
    seconds = clock() - started
    if not bool(found.isfinite().all()):
        raise RuntimeError("the meta-gradient is not finite: lower the step size")
    return seconds


if __name__ == "__main__":
    print(json.dumps(rows(sys.argv[1], sys.argv[2])))
