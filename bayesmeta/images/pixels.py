"""Pixels of an image, whatever holds it: (channel, height, width), uint8 or float32."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
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
_DEEP = ("I", "F")  # and "I;16", ...: more than 8 bits, which Pillow would cut off at 255
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


def check_memory(count: int, channels: int, height: int, width: int) -> None:
    """Refuse more uint8 images than this machine has memory for, before they are read.

    Raises:
        InputError: with the memory that they would take.
    """
    if not hasattr(os, "sysconf"):  # Windows allocates what it has, or says no at once
        return
    need, has = count * channels * height * width, os.sysconf("SC_PAGE_SIZE")
    has *= os.sysconf("SC_PHYS_PAGES")
    if need > has:
        raise InputError(
            f"{count} images of {width}×{height} pixels take {need / 2**30:,.0f} GiB, and this "
            f"machine has {has / 2**30:,.0f} GiB: give a smaller size="
        )


def existing(root: Any, advice: str) -> Path:
    """The folder `root`.

    Args:
        root: its path.
        advice: what to give in its place.

    Raises:
        InputError: there is none.
    """
    if not isinstance(root, str | os.PathLike):
        raise InputError(f"a folder is wanted here, not {root!r}: {advice}")
    folder = Path(root).expanduser()
    if not os.path.isdir(folder):  # which a path too long for one does not trouble
        raise InputError(f"there is no folder {folder}: {advice}")
    if str(folder.resolve()).encode(errors="ignore").decode() != str(folder.resolve()):
        raise InputError(f"{str(folder)!r} is in a folder whose name is not UTF-8: rename it")
    return folder


def read_image(file: Path | BytesIO, where: str) -> Image.Image:
    """An image file, decoded.

    Args:
        file: its path, or its bytes.
        where: its name in a message.

    Raises:
        InputError: it cannot be decoded, or has more than 8 bits for a number.
    """
    with _opened(file, where) as image:
        deep = _is_deep(image)  # which nobody knows any more when it is decoded
        image.load()
    if deep:
        raise InputError(f"{where} has more than 8 bits per pixel: convert it to 8")
    return image


def read_size(path: Path) -> tuple[int, int]:
    """(width, height) of an image file, which is not decoded."""
    with _opened(path, str(path)) as image:
        return image.size


@contextmanager
def _opened(file: Path | BytesIO, where: str) -> Iterator[Image.Image]:
    if isinstance(file, Path) and file.exists() and not file.is_file():
        raise InputError(f"{where} is no file, but a pipe or a folder: take it away")
    try:
        with Image.open(file) as image:
            yield image
    except _UNREADABLE as e:
        why = "it is no image" if isinstance(e, UnidentifiedImageError) else str(e).rstrip(".")
        raise InputError(
            f"{where} cannot be read as an image ({why}): replace it by an intact copy, or delete "
            "it to go without"
        ) from e


def _is_deep(image: Image.Image) -> bool:
    """Whether a file, opened and not yet decoded, has more than 8 bits a number."""
    if image.mode.split(";")[0] in _DEEP:
        return True
    for codec, _, _, options in getattr(image, "tile", ()):
        given = options if isinstance(options, tuple) else (options,)
        if any(";16" in part for part in given if isinstance(part, str)):
            return True
        if codec.startswith("ppm") and any(isinstance(p, int) and p > 255 for p in given):
            return True  # its largest value
    return False


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
