"""The most memory that a piece of work holds at once.

What counts are the tensors that torch allocates during the work, one by one, over what was there
before: exact, and the same on every machine, as the size of a process is not. On the CPU the
scratch space that kernels keep to themselves is not seen; on a device it comes from the same
allocator and is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.profiler import profile

MIB = 2**20


def peak(work: Callable[[], Any], device: str) -> int:
    """Most bytes of tensors alive at once during the work, less those before it."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before
    # torch.profiler's own class would import all of torch.compile first.
    with profile(profile_memory=True) as record:
        work()
    assert record.kineto_results is not None
    alive = most = 0
    for event in record.kineto_results.events():
        if event.name() == "[memory]":
            alive += event.nbytes()
            most = max(most, alive)
    return most
