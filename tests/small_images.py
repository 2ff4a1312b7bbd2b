"""Small generated images with classes that can be told apart: a pattern each, and noise."""

from __future__ import annotations

import torch

from bayesmeta.images import Images


def bank(
    classes: int = 8,
    images: int | list[int] = 6,
    side: int = 8,
    *,
    channels: int = 1,
    noise: float = 0.2,
    seed: int = 0,
    kind: str = "class",
) -> Images:
    """uint8 images of `classes` random patterns; `images` of each, or a number per class."""
    generator = torch.Generator().manual_seed(seed)
    counts = [images] * classes if isinstance(images, int) else images
    patterns = torch.rand(len(counts), channels, side, side, generator=generator)
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    values = patterns[labels]
    values = values + noise * torch.randn(values.shape, generator=generator)
    names = tuple(f"{kind}{i:02d}" for i in range(len(counts)))
    return Images((255 * values.clamp(0, 1)).to(torch.uint8), labels, names, "generated")
