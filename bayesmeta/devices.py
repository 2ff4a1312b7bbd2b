"""Devices that a person may ask for, and this machine may not have."""

from __future__ import annotations

from typing import Any

import torch

from bayesmeta.results import InputError


def usable(device: Any) -> torch.device:
    """The device, if there is one.

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
    if found.type != "cuda":
        return found
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        raise InputError(
            f"device={str(found)!r}: this machine has no CUDA device that torch can use; leave "
            "device= out to compute on the CPU"
        )
    if found.index is not None and found.index >= count:
        raise InputError(f"device={str(found)!r}: this machine has {count} CUDA devices, from 0")
    return found
