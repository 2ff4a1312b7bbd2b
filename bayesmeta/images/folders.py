"""Image files in one folder per class, or named by a table as mini-ImageNet's are."""

from __future__ import annotations

import csv
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path, PurePath

import torch
from PIL import Image
from torch import Tensor

from bayesmeta.images.bank import Images
from bayesmeta.images.pixels import (
    check_memory,
    check_size,
    existing,
    on_white,
    pixels,
    read_image,
    read_size,
)
from bayesmeta.results import InputError

ENDINGS = frozenset([".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm"])
_SPLITS = ("train", "val", "test")
_GREY = ("1", "L", "LA")
_CHUNK = 256  # images decoded but not yet in their place
_LONGEST = 80  # letters of a name in a sentence

Files = dict[str, list[Path]]  # class -> image files


def folder(
    root: str | Path,
    *,
    size: int | None = 84,
    colour: bool | None = None,
    split: str | None = None,
) -> Images:
    """Images of one folder per class, such as mini-ImageNet.

    mini-ImageNet is 100 classes of ImageNet with 600 images each. ImageNet itself is to be had
    from image-net.org, and the lists of the files from Ravi and Larochelle: train.csv (64
    classes), val.csv (16) and test.csv (20), with the columns filename and label. Any of these is
    read, with split="train", "val" or "test":

        miniImageNet/images/n0153282900000005.jpg    miniImageNet/train/n01532829/anything.jpg
        miniImageNet/train.csv                       miniImageNet/val/n01855672/anything.jpg
        miniImageNet/val.csv                         miniImageNet/test/n01930112/anything.jpg
        miniImageNet/test.csv

    and without split, `root/<class>/anything.png`. The 64 training classes take 813 MB at 84×84.

    Args:
        root: the folder.
        size: height and width in pixels, to which other images are resized by Pillow's LANCZOS
            filter, as MAML's were, without cropping; None: as they are, all of one size.
        colour: True converts all to colour (red, green, blue), False all to grey; None: as they
            are, all of one kind (images with a palette count as colour).
        split: the table or folder to read, "train" for train.csv or train/.

    Returns:
        (image, channel, height, width) uint8, 0 to 255; what is transparent shows white paper.
        Classes are in the order of their names, and so are the files of a class in folders; in a
        table they keep its order.

    Raises:
        InputError: a file cannot be read, is named twice by a table or has more than 8 bits, files
            differ in size or in channels, a class has no images, all of them together do not fit
            into memory, or `root` is laid out in another way.

    References:
        Ravi and Larochelle (2017), "Optimization as a model for few-shot learning".
    """
    if size is not None:
        check_size(size)
    if colour is not None and not isinstance(colour, bool):
        raise InputError(f"colour={colour!r}: give True for colour, False for grey, or None")
    where = existing(root, "give the one that holds the folders of the classes")
    files = _files(where, split)
    paths = [path for found in files.values() for path in found]
    labels = [i for i, found in enumerate(files.values()) for _ in found]
    values = _read(paths, size, colour)
    source = f"{where.resolve().name} ({split})" if split else where.resolve().name
    return Images(values, torch.tensor(labels), tuple(files), source)


def sizes(root: Path, split: str | None) -> set[tuple[int, int]]:
    """(width, height) of the images that `folder` reads, by what the files say at their start."""
    paths = [path for found in _files(root, split).values() for path in found]
    with ThreadPoolExecutor() as pool:
        return set(pool.map(read_size, paths))


def _files(root: Path, split: str | None) -> Files:
    if split is None:
        splits = [name for name in _SPLITS if _is_split(root, name)]
        if splits:
            raise InputError(
                f'{root} is split into {", ".join(splits)}: say which to read, split="{splits[0]}"'
            )
        return _of_folders(root)
    here = {path.name: path for path in root.iterdir()}  # so that ".." is none of them
    if f"{split}.csv" in here and here[f"{split}.csv"].is_file():
        return _of_table(here[f"{split}.csv"], root / "images")
    if split in here and here[split].is_dir():
        return _of_folders(here[split])
    raise InputError(
        f"{root} has no split {split!r}: neither a table {split}.csv nor a folder {split}/ is there"
    )


def _is_split(root: Path, name: str) -> bool:
    """Whether it is a table, or a folder of classes; images right inside make it a class."""
    holds = root / name
    return (root / f"{name}.csv").is_file() or (holds.is_dir() and not _images(holds))


def _images(where: Path) -> list[Path]:
    return sorted(
        path
        for path in where.iterdir()
        if path.suffix.lower() in ENDINGS and not path.name.startswith(".")
    )


def _of_folders(root: Path) -> Files:
    folders = sorted(
        path for path in root.iterdir() if path.is_dir() and not path.name.startswith((".", "__"))
    )
    if not folders:
        raise InputError(f"{root} has no folders: each class has its images in a folder of its own")
    files = {path.name: _images(path) for path in folders}
    empty = [name for name, found in files.items() if not found]
    if empty:
        raise InputError(
            f"class {empty[0]!r} has no images ({len(empty)} of {len(files)} classes have none): "
            f"put files such as {root / empty[0]}/01.png there, or delete the folder"
        )
    return files


def _of_table(table: Path, images: Path) -> Files:
    files: Files = defaultdict(list)
    named: dict[str, int] = {}
    for row, (name, label) in enumerate(_rows(table), start=2):
        path = images / name
        if PurePath(name).name != name or not os.path.isfile(path):
            short = name if len(name) < _LONGEST else f"{name[:_LONGEST]}..."
            raise InputError(
                f"row {row} of {table} names {short!r}, and there is no such file in {images}: put "
                "it there, or delete the row"
            )
        if not label:
            raise InputError(f"row {row} of {table} has no label: give {name} one, or delete it")
        if name in named:
            raise InputError(
                f"row {row} of {table} names {name!r}, as row {named[name]} does: a task could "
                "hold that image twice, so delete one of the two"
            )
        named[name] = row
        files[label].append(path)
    if not files:
        raise InputError(f"{table} names no images: it has a row filename,label for each")
    return dict(sorted(files.items()))


def _rows(table: Path) -> list[tuple[str, str]]:
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            repeated = [name for name, times in Counter(rows.fieldnames).items() if times > 1]
            if repeated:
                raise InputError(
                    f"row 1 of {table} has more than one column {repeated[0]!r}: delete or rename "
                    "the others"
                )
            return [(row["filename"] or "", row["label"] or "") for row in rows]
    except (KeyError, UnicodeDecodeError, csv.Error) as e:
        raise InputError(
            f"{table} cannot be read ({type(e).__name__}: {e}): it is comma-separated text with "
            "the columns filename and label"
        ) from e


def _read(paths: Sequence[Path], size: int | None, colour: bool | None) -> Tensor:
    if size is not None:
        check_memory(len(paths), 1, size, size)  # one of which could take for ever to be resized
    values = torch.empty(0)
    read = partial(_pixels, size=size, colour=colour)
    with ThreadPoolExecutor() as pool:  # Pillow decodes and resizes without Python's lock
        for start in range(0, len(paths), _CHUNK):
            decoded = pool.map(read, paths[start : start + _CHUNK])
            for i, image in enumerate(decoded, start):
                if i == 0:
                    check_memory(len(paths), *image.shape)
                    values = torch.empty((len(paths), *image.shape), dtype=torch.uint8)
                _check_alike(image, values[0], paths[i], paths[0])
                values[i] = image
    return values


def _pixels(path: Path, size: int | None, colour: bool | None) -> Tensor:
    image = read_image(path, str(path))
    grey = image.mode in _GREY if colour is None else not colour
    image = on_white(image, "L" if grey else "RGB")
    if size is not None and image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.LANCZOS)
    return pixels(image, str(path))


def _check_alike(image: Tensor, first: Tensor, path: Path, first_path: Path) -> None:
    if len(image) != len(first):
        kind = {1: "grey", 3: "in colour"}
        raise InputError(
            f"{path} is {kind[len(image)]} and {first_path} is {kind[len(first)]}: convert all, by "
            "colour=True or colour=False"
        )
    if image.shape != first.shape:
        (height, width), (first_height, first_width) = image.shape[1:], first.shape[1:]
        raise InputError(
            f"{path} has {width}×{height} pixels and {first_path} has {first_width}×"
            f"{first_height}: give a size= to resize all"
        )
