"""Devices that a person may ask for, and this machine may not have, or not with enough memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from bayesmeta.results import InputError

# What allocators say that have no error of their own: Linux and macOS, Windows, Apple's GPUs.
SAYINGS = ("can't allocate memory", "not enough memory", "out of memory", "Storage size calculat")


def usable(device: Any) -> torch.device:
    """The device, if there is one and a number can be put there.

    Args:
        device: such as "cpu", "cuda" or "cuda:1".

    Raises:
        InputError: no such device on this machine; the sentence says which there are.

    Example:
        >>> usable("cpu")
        device(type='cpu')
    """
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise InputError(
            f"device={device!r} is not the name of a device: use cpu or cuda"
        ) from error
    if found.type == "cuda":
        _check_cuda(found)
    if found.type == "meta":
        raise InputError("device='meta' holds no numbers to compute with: use cpu or cuda")
    try:
        torch.zeros(1, device=found)
    except (RuntimeError, AssertionError, AttributeError, ImportError) as error:
        why = str(error).split("\n")[0].split(". ")[0][:80]
        raise InputError(
            f"device={str(found)!r} cannot be used on this machine ({why}): leave device= out to "
            "compute on the CPU"
        ) from error
    return found


def _check_cuda(found: torch.device) -> None:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        raise InputError(
            f"device={str(found)!r}: this machine has no CUDA device that torch can use; leave "
            "device= out to compute on the CPU"
        )
    if found.index is not None and found.index >= count:
        raise InputError(f"device={str(found)!r}: this machine has {count} CUDA devices, from 0")


@contextmanager
def room_for(what: str, advice: str) -> Iterator[None]:
    """Say what did not fit into memory, and what to do.

    Raises:
        InputError: it did not.

    Example:
        >>> with room_for("4 tasks", "draw fewer"):
        ...     raise MemoryError
        Traceback (most recent call last):
        bayesmeta.results.InputError: there is no memory for 4 tasks: draw fewer
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise InputError(f"there is no memory for {what}: {advice}") from error


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is no memory left.

    Example:
        >>> out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ..."))
        True
        >>> out_of_memory(RuntimeError("size mismatch"))
        False
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(saying in str(error) for saying in SAYINGS)
