"""Omniglot from the folder that BAYESMETA_OMNIGLOT names; glyphs where only the code is tried."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import torch

import bayesmeta as bm
from bayesmeta.results import InputError

VARIABLE = "BAYESMETA_OMNIGLOT"
TRAIN, VALIDATION, TEST = 1100, 100, 423
SIZE = 28
SPLIT_SEED = 0


def folder() -> Path:
    """Where the data set lies.

    Raises:
        InputError: nobody has said.
    """
    place = os.environ.get(VARIABLE)
    if not place:
        raise InputError(
            f"say where Omniglot is, {VARIABLE}=FOLDER; "
            "`git clone --depth 1 https://github.com/brendenlake/omniglot` gives it, in its "
            "folder python"
        )
    return Path(place)


@functools.cache
def characters(part: str) -> bm.images.Images:
    """The images of one part of the data set, or all."""
    return bm.images.omniglot(folder(), size=SIZE, part=part)


def streams(
    split: str, ways: int, shots: int, queries: int, device: str, *, quick: bool = False
) -> tuple[bm.FewShot, bm.FewShot]:
    """Tasks to train on, and tasks of new characters to be scored on.

    Args:
        split: "random", 1100 characters to train on and 423 to test on, of all alphabets; or
            "original", Lake's background and evaluation alphabets.
        ways, shots, queries: of the tasks.
        device: where the images stay.
        quick: drawn glyphs in the place of Omniglot.
    """
    options = {"rotations": True, "device": device}
    if quick:
        tasks = bm.FewShot(glyphs(40), ways, shots, queries, **options)
        train, test = tasks.split(28, 12)
        return train, test
    if split == "random":
        tasks = bm.FewShot(characters("all"), ways, shots, queries, **options)
        train, _, test = tasks.split(TRAIN, VALIDATION, TEST, seed=SPLIT_SEED)
        return train, test
    train = bm.FewShot(characters("background"), ways, shots, queries, **options)
    test = train.over(characters("evaluation"))
    test.refuse_overlap(train)
    return train, test


def glyphs(classes: int, *, size: int = 16, each: int = 20) -> bm.images.Images:
    """Classes of a few straight strokes each, drawn every time a little differently."""
    generator = torch.Generator().manual_seed(0)
    ends = torch.rand(classes, 1, 3, 2, 2, generator=generator) * 0.8 + 0.1
    ends = ends + 0.04 * torch.randn(classes, each, 3, 2, 2, generator=generator)
    along = torch.linspace(0, 1, 2 * size)[:, None]
    points = ends[..., :1, :] + (ends[..., 1:, :] - ends[..., :1, :]) * along
    points = points.reshape(classes * each, -1, 2)
    grid = (torch.arange(size) + 0.5) / size
    down = (grid[:, None] - points[:, None, :, 0]).square()
    right = (grid[:, None] - points[:, None, :, 1]).square()
    near = (down[:, :, None] + right[:, None, :]).amin(-1)
    ink = (255 * torch.exp(-near * (1.2 * size) ** 2)).to(torch.uint8)
    labels = torch.arange(classes).repeat_interleave(each)
    names = tuple(f"glyph{i:03d}" for i in range(classes))
    return bm.images.Images(ink[:, None], labels, names, "drawn glyphs")
