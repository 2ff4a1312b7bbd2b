"""Pixels of one image, whatever holds it: (channel, height, width), uint8 or float32."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bayesmeta.results import InputError

CHANNELS = (1, 2, 3, 4)  # grey, grey and alpha, colour, colour and alpha


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
