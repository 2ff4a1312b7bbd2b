"""One contender's side of a contest: in its own process, ready to be timed on request.

Each line that it reads names a case. A case that is new is prepared and called once, which leaves
its answer beside it, and one line of JSON says how long that took, compiling included; from then on
each line is answered by the seconds per call. A contender runs by its path in whatever Python has
its packages, so this needs numpy alone.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Step = Callable[[], np.ndarray]
TURN = 0.1
"""Seconds of one turn: a fast contender is called as often as that takes."""
CLOCKS = {"cpu": time.process_time, "cuda": time.perf_counter}
"""On one core of a quiet machine a process's own time is the wall's; others' work is not in it."""
LONG = 1.0
"""Seconds of a call that fills the caches by itself, so that none goes before it."""


class Unable(Exception):
    """A case that a contender cannot do, and why."""


def serve(prepare: Callable[[str], Step], answer: Callable[[str], Path], device: str) -> None:
    """Answer lines until there are no more.

    Args:
        prepare: a case to the step that is timed, which ends with its result on the host (on a
            device, that waits for it).
        answer: a case to the file its result is left in.
        device: "cpu" or "cuda"; on the CPU the process keeps to one core.
    """
    if device == "cpu" and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    steps: dict[str, Step] = {}
    for line in sys.stdin:
        case = line.strip()
        if case in steps:
            _say(seconds=_seconds(steps[case], CLOCKS[device]))
            continue
        started = time.perf_counter()
        try:
            step = prepare(case)
            found = step()
        except (ImportError, Unable) as error:
            _say(absent=str(error))
            continue
        seconds = time.perf_counter() - started
        np.save(answer(case), found)
        _say(seconds=seconds, peak_mib=_peak(step, device))
        steps[case] = step


def _seconds(step: Step, clock: Callable[[], float]) -> float:
    """Per call."""
    # Whoever had the core last has left its own data in the caches.
    once = _timed(step, 1, clock)
    return once if once > LONG else _timed(step, max(1, math.ceil(TURN / once)), clock)


def _timed(step: Step, calls: int, clock: Callable[[], float]) -> float:
    started = clock()
    for _ in range(calls):
        step()
    return (clock() - started) / calls


def _peak(step: Step, device: str) -> float | None:
    """MiB that one call allocates at most on a device; nothing is known of the CPU."""
    if device != "cuda" or "torch" not in sys.modules:
        return None
    import torch

    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def _say(**values: Any) -> None:
    print(json.dumps(values), flush=True)
