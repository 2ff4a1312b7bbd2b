"""The images of any labelled torch Dataset, read once into memory."""

from __future__ import annotations

import operator
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bayesmeta.images.bank import Images
from bayesmeta.images.pixels import pixels
from bayesmeta.results import LARGEST_WHOLE, InputError


def of_dataset(
    dataset: Any, *, classes: Sequence[str] | None = None, source: str | None = None
) -> Images:
    """The images of a map-style torch Dataset.

    Args:
        dataset: `len(dataset)` and `dataset[i] -> (image, label)`. An image is a tensor (channel,
            height, width) or (height, width), a numpy array (height, width) or (height, width,
            channel), or a PIL image; a label is an integer or a tensor of no axes.
        classes: the name of each label, `classes[label]`; by default `dataset.classes`, and where
            there is none, the label's digits. Names of labels that never occur are left out.
        source: where the images came from; by default the dataset's type.

    Returns:
        The images in the dataset's order; uint8 as it is, booleans as 0 and 255, floats as
        float32. Classes are in the order of their labels.

    Raises:
        InputError: the dataset cannot be indexed or is empty, an item cannot be read, images differ
            in shape, channels or dtype, or a label is not an integer or has no name.

    Example:
        >>> pairs = [(torch.zeros(2, 2), 7), (torch.ones(2, 2), 3), (torch.ones(2, 2), 7)]
        >>> bank = of_dataset(pairs)
        >>> bank.classes, bank.labels.tolist(), bank.shape
        (('3', '7'), [1, 0, 1], (1, 2, 2))
    """
    kind = type(dataset).__name__
    count = _length(dataset, kind)
    values, labels = torch.empty(0), []
    for i in range(count):
        value, label = _item(dataset, i, kind)
        if i == 0:
            values = torch.empty((count, *value.shape), dtype=value.dtype)
        _check_alike(value, values[0], i)
        values[i] = value
        labels.append(label)
    known, positions = torch.tensor(labels).unique(return_inverse=True)
    if classes is None:
        classes = getattr(dataset, "classes", None)
    return Images(values, positions, _names(known.tolist(), classes), source or kind)


def _length(dataset: Any, kind: str) -> int:
    if isinstance(dataset, str | os.PathLike):
        raise InputError(
            f"images are wanted here, or a dataset of them, not the path {str(dataset)!r}: read a "
            f"folder by bm.images.folder({str(dataset)!r})"
        )
    try:
        count = len(dataset)
    except (TypeError, NotImplementedError):
        count = None
    if count is None or not hasattr(dataset, "__getitem__"):
        raise InputError(
            f"{kind} cannot be indexed: give a map-style dataset, with len(dataset) and "
            "dataset[i] -> (image, label), such as a list of the pairs that it yields"
        )
    if count == 0:
        raise InputError(f"{kind} is empty: it needs at least one labelled image")
    return count


def _item(dataset: Any, i: int, kind: str) -> tuple[Tensor, int]:
    try:
        item = dataset[i]
    except Exception as e:
        raise InputError(
            f"{kind}[{i}], image {i} of the dataset, cannot be read ({type(e).__name__}: {e}): "
            "mend it, or leave it out by torch.utils.data.Subset"
        ) from e
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise InputError(f"{kind}[{i}] is {type(item).__name__}: an item is a pair (image, label)")
    try:
        label = operator.index(item[1])
    except TypeError as e:
        raise InputError(
            f"image {i} has label {item[1]!r}: a label is an integer; where labels are names, take "
            "names = sorted({label for _, label in data}), and bm.images.of_dataset([(image, "
            "names.index(label)) for image, label in data], classes=names)"
        ) from e
    if abs(label) > LARGEST_WHOLE:
        raise InputError(f"image {i} has label {label}, of more than 64 bits: number the classes")
    return pixels(item[0], f"image {i}"), label


def _check_alike(value: Tensor, first: Tensor, i: int) -> None:
    if value.shape[0] != first.shape[0]:
        raise InputError(
            f"image {i} has {value.shape[0]} channels and image 0 has {first.shape[0]}: convert "
            "all to grey or all to colour"
        )
    if value.shape != first.shape:
        raise InputError(
            f"image {i} has shape {tuple(value.shape)} and image 0 has {tuple(first.shape)} "
            "(channel, height, width): resize them to one shape in the dataset's transform"
        )
    if value.dtype != first.dtype:
        raise InputError(
            f"image {i} has dtype {value.dtype} and image 0 has {first.dtype}: convert all to one"
        )


def _names(labels: list[int], classes: Sequence[str] | None) -> tuple[str, ...]:
    if classes is None:
        return tuple(str(label) for label in labels)
    if isinstance(classes, str | Mapping) or not isinstance(classes, Iterable):
        raise InputError(
            f"classes are {classes!r}: give the names of all labels as a list, by classes="
        )
    classes = list(classes)
    outside = [label for label in labels if not 0 <= label < len(classes)]
    if outside:
        raise InputError(
            f"label {outside[0]} has no name: {len(classes)} classes name the labels 0 to "
            f"{len(classes) - 1}"
        )
    return tuple(str(classes[label]) for label in labels)
