"""Pixels of an image, whatever holds it: (channel, height, width), uint8 or float32."""

from __future__ import annotations

import struct
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.nn.functional import interpolate

from bayesmeta.results import InputError

CHANNELS = (1, 2, 3, 4)  # grey, grey and alpha, colour, colour and alpha
_CHUNK = 1000  # images that are float32 at a time
# What Pillow raises for files that are damaged, cut short or of no known format.
_UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    Image.DecompressionBombError,
)


def pixels(image: Any, where: str) -> Tensor:
    """An image as a tensor (channel, height, width).

    Args:
        image: a tensor (channel, height, width) or (height, width), a numpy array (height, width)
            or (height, width, channel), or a PIL image.
        where: the image's name in a message.

    Returns:
        uint8 as it is, booleans as 0 and 255, floats as float32.

    Raises:
        InputError: it is none of these, or has other values.

    Example:
        >>> pixels(np.zeros((5, 4, 3), np.uint8), "image 0").shape
        torch.Size([3, 5, 4])
    """
    if isinstance(image, Tensor):
        value = _channel_first(image.detach(), where)
    elif isinstance(image, np.ndarray):
        value = _channel_last(image, where)
    elif isinstance(image, Image.Image):
        paletted = image.mode.startswith("P")
        value = _channel_last(np.array(image.convert("RGB") if paletted else image), where)
    else:
        raise InputError(
            f"{where} is {type(image).__name__}: an image is a tensor (channel, height, width), a "
            "numpy array (height, width, channel) or a PIL image"
        )
    if value.dtype == torch.bool:
        return value.to(torch.uint8) * 255
    if value.is_floating_point():
        return value.float()
    if value.dtype != torch.uint8:
        raise InputError(
            f"{where} has dtype {value.dtype}: convert it to uint8 (0..255) or to a floating type"
        )
    return value


def _channel_first(image: Tensor, where: str) -> Tensor:
    if image.ndim == 2:
        return image[None]
    if image.ndim != 3:
        raise InputError(
            f"{where} has shape {tuple(image.shape)}: a tensor is (channel, height, width) or "
            "(height, width)"
        )
    if image.shape[0] not in CHANNELS and image.shape[2] in CHANNELS:
        raise InputError(
            f"{where} has shape {tuple(image.shape)}, its channels last: a tensor is (channel, "
            "height, width), so give it .permute(2, 0, 1)"
        )
    return image


def _channel_last(image: np.ndarray, where: str) -> Tensor:
    if image.dtype.kind not in "buif":
        raise InputError(f"{where} has dtype {image.dtype}: convert it to uint8 (0..255) or float")
    if image.ndim == 2:
        image = image[:, :, None]
    if image.ndim != 3:
        raise InputError(
            f"{where} has shape {image.shape}: an array is (height, width, channel) or (height, "
            "width)"
        )
    if image.shape[2] not in CHANNELS and image.shape[0] in CHANNELS:
        raise InputError(
            f"{where} has shape {image.shape}, its channels first: an array is (height, width, "
            "channel); torch.from_numpy makes it a tensor, which has its channels first"
        )
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)


def check_size(size: int) -> None:
    """Refuse what is no number of pixels."""
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise InputError(f"size is a number of pixels, 1 or more, not {size!r}")


def read_image(file: Path | BytesIO, where: str) -> Image.Image:
    """An image file, decoded.

    Args:
        file: its path, or its bytes.
        where: its name in a message.

    Raises:
        InputError: it cannot be decoded.
    """
    try:
        with Image.open(file) as image:
            image.load()
            return image
    except _UNREADABLE as e:
        why = "it is no image" if isinstance(e, UnidentifiedImageError) else str(e).rstrip(".")
        raise InputError(
            f"{where} cannot be read as an image ({why}): replace it by an intact copy, or delete "
            "it to go without"
        ) from e


def on_white(image: Image.Image, mode: str) -> Image.Image:
    """The image in mode "L" (grey) or "RGB", what is transparent showing white paper."""
    if image.has_transparency_data:
        image = image.convert("RGBA")
        paper = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(paper, image)
    return image.convert(mode)


def inked(ink: Tensor, size: int) -> Tensor:
    """Binary drawings as grey images, resized by antialiased bilinear interpolation.

    Args:
        ink: (image, height, width) bool, True = ink.
        size: height and width of the result, in pixels.

    Returns:
        (image, 1, size, size) uint8, ink = 255 on paper = 0.

    Example:
        >>> inked(torch.eye(4, dtype=torch.bool)[None], 2).flatten().tolist()
        [99, 31, 31, 99]
    """
    values = torch.empty((len(ink), 1, size, size), dtype=torch.uint8)
    for start in range(0, len(ink), _CHUNK):
        grey = ink[start : start + _CHUNK, None].float() * 255
        if grey.shape[2:] != (size, size):
            grey = interpolate(grey, (size, size), mode="bilinear", antialias=True)
        values[start : start + _CHUNK] = grey.round().clamp(0, 255).to(torch.uint8)
    return values
