"""`python -m studies.meta_gradient_speed.memory DEVICE STEPS...`: peak memory, rows as JSON.

The peak is of the tensors allocated during one meta-gradient, counted one by one, over what was
there before: exact, and the same on every machine, as the size of a process is not.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

import bayesmeta as bm
from studies.meta_gradient_speed.bayesmeta_step import implicit, meta_step
from studies.meta_gradient_speed.timing import sinusoids

MIB = 2**20


def rows(device: str, steps: list[int]) -> list[dict[str, Any]]:
    """One row per gradient rule and number of inner steps."""
    found = []
    for inner_steps in steps:
        task = replace(sinusoids(device), steps=inner_steps)
        method = implicit(task)
        unrolled = replace(method, gradient=bm.methods.Unrolled())
        for name, chosen in (("implicit", method), ("unrolled", unrolled)):
            step, arguments = meta_step(task, chosen)
            size = peak(lambda step=step, arguments=arguments: step(*arguments), device)
            found.append(
                {
                    "part": "memory",
                    "implementation": name,
                    "inner_steps": inner_steps,
                    "peak_mib": size / MIB,
                }
            )
    return found


def peak(work: Callable[[], Any], device: str) -> int:
    """Most bytes of tensors alive at once during the work, less those before it."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        work()
    assert record.profiler is not None
    alive = most = 0
    for event in record.profiler.kineto_results.events():
        if event.name() == "[memory]":
            alive += event.nbytes()
            most = max(most, alive)
    return most


if __name__ == "__main__":
    print(json.dumps(rows(sys.argv[1], [int(steps) for steps in sys.argv[2:]])))
