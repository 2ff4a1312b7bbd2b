"""Labelled images in memory: the classes that few-shot tasks are drawn from."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bayesmeta.devices import room_for, usable
from bayesmeta.results import InputError

ROTATED = re.compile(r"@(90|180|270)$")


@dataclass(frozen=True, eq=False)
class Images:
    """Labelled images of one shape, in memory (or on a device).

    Args:
        values: (image, channel, height, width), uint8 (0..255) or floating.
        labels: (image,) long, positions in `classes`.
        classes: unique names, such as "Greek/character03"; each has images.
        source: where they came from, for the record of a run.

    Raises:
        InputError: shapes disagree, a label has no class, a class has no image, names repeat, or
            values are not finite.

    Example:
        >>> bank = Images(torch.zeros(4, 1, 2, 2), torch.tensor([0, 1, 1, 0]), ("a", "b"), "zeros")
        >>> len(bank), bank.shape, bank.counts.tolist()
        (4, (1, 2, 2), [2, 2])
    """

    values: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    source: str

    def __post_init__(self) -> None:
        for name, value in (("values", self.values), ("labels", self.labels)):
            if not isinstance(value, Tensor):
                raise InputError(
                    f"{name} of images are a tensor, and this is a {type(value).__name__}: make it "
                    "one, by torch.from_numpy(...) or torch.tensor(...)"
                )
        object.__setattr__(self, "classes", _names(self.classes))
        _check_values(self.values)
        _check_classes(self.classes)
        _check_labels(self.labels, self.values, self.classes)

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        size = "×".join(str(n) for n in self.shape)
        return f"{len(self)} images {size}, {len(self.classes)} classes, from {self.source}"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channel, height, width) of every image."""
        channel, height, width = self.values.shape[1:]
        return channel, height, width

    @property
    def device(self) -> torch.device:
        return self.values.device

    @property
    def counts(self) -> Tensor:
        """(class,) long, how many images each class has."""
        return _counts(self.labels, len(self.classes))

    def to(self, device: Any) -> Images:
        """The same images on a device.

        Raises:
            InputError: it is not there, or too small for them.
        """
        device = usable(device)
        with room_for(f"{self} on {device}", "take fewer or smaller ones"):
            return replace(self, values=self.values.to(device), labels=self.labels.to(device))

    def select(self, classes: Sequence[str]) -> Images:
        """Only these classes, in that order; within a class the images keep theirs.

        Args:
            classes: names, each once.

        Raises:
            InputError: a name is unknown, or given twice, or there are none.

        Example:
            >>> bank = Images(torch.rand(3, 1, 2, 2), torch.tensor([0, 1, 2]), ("a", "b", "c"), "")
            >>> bank.select(["c", "a"]).classes
            ('c', 'a')
        """
        classes = _names(classes)
        place = {name: position for position, name in enumerate(self.classes)}
        for name in classes:
            if name not in place:
                near = difflib.get_close_matches(str(name), self.classes, n=1, cutoff=0.0)
                raise InputError(f"no class is named {name!r}; the nearest is {near[0]!r}")
        _check_classes(classes)
        chosen = torch.tensor([place[name] for name in classes], device=self.device)
        new = torch.full((len(self.classes),), -1, device=self.device)
        new[chosen] = torch.arange(len(chosen), device=self.device)
        labels = new[self.labels]
        order = labels.argsort(stable=True)
        order = order[labels[order] >= 0]
        return replace(self, values=self.values[order], labels=labels[order], classes=classes)

    def rotated(self, degrees: Sequence[int] = (0, 90, 180, 270)) -> Images:
        """Each rotation of a class is a class of its own, named "Greek/character03@90".

        Split the classes before rotating them: a character and its rotations then stay on the
        same side.

        Args:
            degrees: multiples of 90, counter-clockwise; at 0 a class keeps its plain name. The
                classes are those of the first rotation, then those of the second, ....

        Raises:
            InputError: images are not square, degrees are not multiples of 90 or repeat, or
                classes are rotations already.

        Example:
            >>> corner = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]])
            >>> bank = Images(corner, torch.tensor([0]), ("a",), "a corner")
            >>> turned = bank.rotated((0, 90))
            >>> turned.classes, turned.values[1].tolist()
            (('a', 'a@90'), [[[0.0, 0.0], [1.0, 0.0]]])
        """
        turns = _quarter_turns(degrees)
        if self.shape[1] != self.shape[2]:
            raise InputError(
                f"images of {self.shape[1]}×{self.shape[2]} pixels change their shape when they "
                "are rotated by 90 degrees: resize them to squares first"
            )
        again = [name for name in self.classes if ROTATED.search(name)]
        if again:
            raise InputError(
                f"class {again[0]!r} is a rotation already, and rotating it again would give "
                "other classes' images a second name: rotate the images as they were loaded"
            )
        n = len(self.classes)
        return replace(
            self,
            values=torch.cat([torch.rot90(self.values, turn, (2, 3)) for turn in turns]),
            labels=torch.cat([self.labels + i * n for i in range(len(turns))]),
            classes=tuple(
                f"{name}@{90 * turn}" if turn else name for turn in turns for name in self.classes
            ),
        )

    def fingerprint(self) -> str:
        """The sha256 of values, labels and names; the same on every device.

        Example:
            >>> bank = Images(torch.zeros(1, 1, 2, 2), torch.tensor([0]), ("a",), "zeros")
            >>> bank.fingerprint() == bank.to("cpu").fingerprint()
            True
        """
        header = [list(self.values.shape), str(self.values.dtype), list(self.classes)]
        digest = hashlib.sha256(json.dumps(header).encode())
        for tensor in (self.values, self.labels):
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()


def unrotated(name: str) -> str:
    """The class that a rotated one was made of.

    Example:
        >>> unrotated("Greek/character03@90"), unrotated("Greek/character03")
        ('Greek/character03', 'Greek/character03')
    """
    return ROTATED.sub("", name)


def _counts(labels: Tensor, classes: int) -> Tensor:
    # Not bincount: where torch is asked for deterministic algorithms, CUDA may have none of it.
    edges = torch.arange(classes + 1, device=labels.device)
    return torch.searchsorted(labels.sort().values, edges).diff()


def _check_values(values: Tensor) -> None:
    shape = tuple(values.shape)
    if values.ndim != 4:
        raise InputError(f"images have shape (image, channel, height, width), not {shape}")
    if 0 in shape:
        raise InputError(f"there are no images, or they have no pixels: their shape is {shape}")
    if values.dtype != torch.uint8 and not values.is_floating_point():
        raise InputError(
            f"images are uint8 (0..255) or floating, not {values.dtype}: convert them, for "
            "example by .float()"
        )
    if values.is_floating_point():
        broken = (~values.isfinite().flatten(1).all(1)).nonzero().flatten().tolist()
        if broken:
            raise InputError(
                f"image {broken[0]} has a value that is not finite ({len(broken)} of {len(values)} "
                "images have): mend or leave out such images"
            )


def _names(classes: Any) -> tuple[str, ...]:
    if isinstance(classes, str):
        raise InputError(f"a list of class names is wanted here: write [{classes!r}]")
    if not isinstance(classes, Iterable):
        raise InputError(f"classes are a list of names, not {classes!r}")
    return tuple(classes)


def _check_classes(classes: tuple[str, ...]) -> None:
    if not classes:
        raise InputError("there are no classes: give the name of at least one")
    seen: set[str] = set()
    for name in classes:
        if not isinstance(name, str):
            raise InputError(f"class names are strings; {name!r} is {type(name).__name__}")
        if name in seen:
            raise InputError(f"class {name!r} is named twice: every class needs its own name")
        if name.encode(errors="ignore").decode() != name:
            raise InputError(
                f"class {name!r} has a name that is not UTF-8, and no record could hold it: rename "
                "its folder"
            )
        seen.add(name)


def _check_labels(labels: Tensor, values: Tensor, classes: tuple[str, ...]) -> None:
    if labels.dtype != torch.long or labels.shape != values.shape[:1]:
        raise InputError(
            f"labels are (image,) long, one for each of {len(values)} images; these have shape "
            f"{tuple(labels.shape)} and dtype {labels.dtype}"
        )
    if labels.device != values.device:
        raise InputError(f"labels are on {labels.device} and images on {values.device}: move one")
    low, high = labels.aminmax()
    if low < 0 or high >= len(classes):
        outside = ((labels < 0) | (labels >= len(classes))).nonzero()[0, 0].tolist()
        raise InputError(
            f"image {outside} has label {int(labels[outside])}, and labels are positions in "
            f"{len(classes)} classes: 0 to {len(classes) - 1}"
        )
    empty = (_counts(labels, len(classes)) == 0).nonzero().flatten().tolist()
    if empty:
        raise InputError(
            f"class {classes[empty[0]]!r} has no images ({len(empty)} of {len(classes)} classes "
            "have none): leave such classes out"
        )


def _quarter_turns(degrees: Sequence[int]) -> list[int]:
    if not isinstance(degrees, Iterable) or isinstance(degrees, str):
        raise InputError(f"degrees are a list of rotations, such as (0, 90), not {degrees!r}")
    wrong = [degree for degree in degrees if not isinstance(degree, int | float) or degree % 90]
    if wrong:
        raise InputError(f"images are rotated by multiples of 90 degrees, not by {wrong[0]}")
    turns = [int(degree // 90) % 4 for degree in degrees]
    if not turns or len(set(turns)) < len(turns):
        raise InputError(
            f"degrees are different rotations, at least one; these are {list(degrees)}"
        )
    return turns
