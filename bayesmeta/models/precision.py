"""Fewer bits for the products of a network: TF32, or bfloat16 in its forward pass.

    float32     nothing is rounded below float32, where torch by itself takes TF32 for convolutions
    tf32        products of float32 numbers with 10 bits of mantissa in place of 23, on CUDA
    bfloat16    the module's forward pass under `torch.autocast`, with 7 bits; so its derivatives

Parameters, batch normalisation, likelihoods, linear solves and sums stay in full precision.
`bm.diagnostics.precision_error` says what it costs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bayesmeta.results import InputError

CONVOLUTIONS = frozenset(
    getattr(torch, f"conv{kind}{axes}d") for kind in ("", "_transpose") for axes in (1, 2, 3)
)
PRECISIONS = ("float32", "tf32", "bfloat16")


def checked(precision: str | None) -> str | None:
    """The precision, if it is one; None leaves everything as the data and torch have it.

    Raises:
        InputError: it is none.
    """
    if precision is not None and precision not in PRECISIONS:
        raise InputError(f"precision={precision!r}: give one of {', '.join(PRECISIONS)}, or None")
    return precision


def forward(module: nn.Module, x: Tensor, precision: str | None) -> Tensor:
    """module(x), in x's own type.

    Raises:
        InputError: x has 64 bits, which a precision of fewer would throw away.
    """
    if precision is None:
        return module(x)
    if x.dtype == torch.float64:
        raise InputError(
            f"precision={precision!r} is for data in float32, and these are float64: convert them "
            "with family.to(dtype=torch.float32) or dtype=, or leave precision= out"
        )
    if precision != "bfloat16":
        return module(x)
    # The cache holds what one transform of torch.func has cast, of no use and no right to others.
    with torch.autocast(x.device.type, torch.bfloat16, cache_enabled=False), _Convolutions():
        return module(x).to(x.dtype)


class _Convolutions(TorchFunctionMode):
    """Casts what is convolved: under vmap, CPUs' autocast does not see a convolution."""

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func not in CONVOLUTIONS:
            return func(*args, **(kwargs or {}))
        named = {name: _halved(value) for name, value in (kwargs or {}).items()}
        return func(*map(_halved, args), **named)


def _halved(given: Any) -> Any:
    single = isinstance(given, Tensor) and given.dtype == torch.float32
    return given.to(torch.bfloat16) if single else given


@contextmanager
def multiplying(precision: str | None) -> Iterator[None]:
    """TF32 allowed or not, in the way of "tf32" or "float32", until the block ends.

    On the CPU it makes no difference: products of float32 numbers are exact to float32 there.

    Example:
        >>> with multiplying("tf32"):
        ...     torch.get_float32_matmul_precision()
        'high'
        >>> torch.get_float32_matmul_precision()
        'highest'
    """
    if precision not in ("float32", "tf32"):
        yield
        return
    matrices, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(matrices)
        torch.backends.cudnn.allow_tf32 = convolutions
