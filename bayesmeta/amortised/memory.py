"""Running out of memory: how many tasks at a time would have fitted."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from bayesmeta.devices import out_of_memory
from bayesmeta.results import InputError

Found = TypeVar("Found")


def within_memory(work: Callable[[Tensor], Found], tasks: Tensor) -> Found:
    """What `work` computes of some tasks at once.

    Args:
        work: of (task,) positions.
        tasks: positions.

    Raises:
        InputError: it does not fit into memory; the sentence names `chunk_size`, and the largest
            half, quarter, … of the tasks that does fit, which has been tried.

    Example:
        >>> def work(tasks):
        ...     if len(tasks) > 3:
        ...         raise torch.OutOfMemoryError
        ...     return "done"
        >>> within_memory(work, torch.arange(3))
        'done'
        >>> within_memory(work, torch.arange(8))
        Traceback (most recent call last):
        bayesmeta.results.InputError: out of memory with 8 tasks at a time; 2 fit: ...
    """
    for fits in _halves(len(tasks)):
        done, found = _tried(work, tasks[:fits])
        if done and fits == len(tasks):
            return found[0]
        if done:
            raise InputError(
                f"out of memory with {len(tasks)} tasks at a time; {fits} fit: "
                f"bm.Model(..., chunk_size={fits}), bm.models.conv4(..., chunk_size={fits}), "
                f"model.chunk_size = {fits} for a model made in another way, or --chunk-size "
                f"{fits}; the result is the same"
            )
    raise InputError(
        "out of memory with a single task, which chunk_size cannot help: take fewer shots, "
        "queries or rows, fewer inner steps, a smaller network, a gradient that keeps no path "
        "(imaml, fomaml), or a device with more memory"
    )


def _halves(count: int) -> list[int]:
    """Count, and its halves down to 1."""
    return [count >> i for i in range(max(count.bit_length(), 1))]


def _tried(work: Callable[[Tensor], Found], tasks: Tensor) -> tuple[bool, list[Found]]:
    """Whether there is memory for it, and if so the result."""
    try:
        return True, [work(tasks)]
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
    # Only here, without the error, is what its frames held free.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return False, []
