"""The characters of Omniglot: 1,623 of 50 alphabets, each drawn by 20 people."""

from __future__ import annotations

import csv
import re
import zipfile
from collections import defaultdict
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bayesmeta.images.archives import opened
from bayesmeta.images.bank import Images
from bayesmeta.images.pixels import check_memory, check_size, existing, inked, read_image
from bayesmeta.results import InputError

DRAWINGS = 20  # of each character
SIDE = 105  # pixels of a drawing as it was made
CHARACTERS = {"background": 964, "evaluation": 659}
COMMAND = "git clone --depth 1 https://github.com/brendenlake/omniglot"
WHERE = f"give the one that {COMMAND} makes"
PARTS = tuple(CHARACTERS)
_FOLDERS = ("", "python", "omniglot-py")

Name = tuple[str, str]  # alphabet, character
Drawings = dict[Name, NDArray[np.bool_]]  # (drawing, SIDE, SIDE), True = ink
Files = dict[Name, dict[str, Callable[[], Path | BytesIO]]]


def omniglot(root: str | Path, *, size: int = 28, part: str = "all") -> Images:
    """The characters of Omniglot.

    They are downloaded by one command, and `root` is then the folder "omniglot":

        git clone --depth 1 https://github.com/brendenlake/omniglot

    Ink is 255 and paper 0, the convention of the few-shot literature (the files have it the other
    way round), and drawings of 105×105 are resized by antialiased bilinear interpolation.

    Args:
        root: a folder with images_background.zip and images_evaluation.zip, or those unpacked, or
            omniglot_images_background_105.npz and omniglot_images_evaluation_105.npz with
            characters_background.csv and characters_evaluation.csv; also in its folder "python"
            (of the command above) or "omniglot-py" (of torchvision).
        size: height and width in pixels.
        part: "background" (30 alphabets, 964 characters), "evaluation" (20 and 659) or "all".

    Returns:
        20 images of each character, (image, 1, size, size) uint8. Classes are named
        "Alphabet/characterNN", those of the background set first, each set by name; images are
        in the order of the people who drew them. So they are the same from any of the files.

    Raises:
        InputError: the files are not there, not whole, or not Omniglot's.

    References:
        Lake, Salakhutdinov and Tenenbaum (2015), "Human-level concept learning through
        probabilistic program induction".
    """
    if part not in (*PARTS, "all"):
        raise InputError(f'part is "background", "evaluation" or "all", not {part!r}')
    check_size(size)
    folder = existing(root, WHERE)
    parts = PARTS if part == "all" else (part,)
    check_memory(DRAWINGS * sum(CHARACTERS[one] for one in parts), 1, size, size)
    values, classes = [], []
    for one in parts:
        drawings = _drawings(folder, one)
        names = sorted(drawings)
        ink = np.stack([drawings[name] for name in names]).reshape(-1, SIDE, SIDE)
        values.append(inked(torch.from_numpy(ink), size))
        classes += ["/".join(name) for name in names]
    labels = torch.arange(len(classes)).repeat_interleave(DRAWINGS)
    source = f"Omniglot ({part}), {size}×{size}"
    return Images(torch.cat(values), labels, tuple(classes), source)


def drawing(file: Path | BytesIO, where: str) -> NDArray[np.bool_]:
    """(SIDE, SIDE) True where there is ink, in a drawing of dark ink on light paper."""
    image = read_image(file, where)
    if image.size != (SIDE, SIDE):
        raise InputError(
            f"{where} has {image.width}×{image.height} pixels, and Omniglot's drawings have "
            f"{SIDE}×{SIDE}: give the files as they were published ({COMMAND}), and size= resizes "
            "them"
        )
    return np.asarray(image.convert("L")) < 128


def _drawings(root: Path, part: str) -> Drawings:
    for folder in _FOLDERS:
        stem = root / folder / f"images_{part}"
        arrays = stem.with_name(f"omniglot_images_{part}_105.npz")
        if arrays.is_file():
            return _of_arrays(arrays, arrays.with_name(f"characters_{part}.csv"))
        if stem.with_suffix(".zip").is_file():
            return _of_zip(stem.with_suffix(".zip"))
        if stem.is_dir():
            return _of_folder(stem)
    raise InputError(
        f"no Omniglot {part} set in {root}: looked there and in its folders python/ and "
        f"omniglot-py/ for images_{part}.zip, a folder images_{part}/ and "
        f"omniglot_images_{part}_105.npz; get it by `{COMMAND}` and give the folder omniglot"
    )


def _of_arrays(path: Path, table: Path) -> Drawings:
    try:
        with np.load(path) as file:
            paper = file["images"]
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile) as e:
        raise InputError(f"{path} is not a whole file of Omniglot's images ({e})") from e
    if paper.dtype != bool or paper.shape[1:] != (DRAWINGS, SIDE, SIDE):
        raise InputError(
            f"{path}: its images are {paper.dtype} {paper.shape}, and not bool (character, "
            f"{DRAWINGS}, {SIDE}, {SIDE})"
        )
    names = _names(table)
    indices = sorted(index for _, index in names)
    if indices != list(range(len(paper))) or len(dict(names)) != len(paper):
        raise InputError(
            f"{table} does not give each of the {len(paper)} characters in {path.name} one name of "
            "its own: take both files from one place"
        )
    return {name: ~paper[index] for name, index in names}


def _names(table: Path) -> list[tuple[Name, int]]:
    """Name and npz_index of every row."""
    try:
        with table.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        return [((row["alphabet"], row["character"]), int(row["npz_index"])) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise InputError(
            f"{table} cannot be read ({type(e).__name__}: {e}): it names the characters, in "
            "columns npz_index, alphabet and character"
        ) from e


def _of_zip(path: Path) -> Drawings:
    pattern = re.compile(rf"{path.stem}/([^/]+)/(character\d+)/(\d+_\d+\.png)")
    files: Files = defaultdict(dict)
    with opened(path) as archive:
        for name in archive.names:
            if match := pattern.fullmatch(name):
                files[match[1], match[2]][match[3]] = lambda name=name: archive.read(name)
        return _decoded(files, path)


def _of_folder(path: Path) -> Drawings:
    files: Files = defaultdict(dict)
    for file in path.glob("*/character*/*.png"):
        if re.fullmatch(r"\d+_\d+\.png", file.name):
            files[file.parent.parent.name, file.parent.name][file.name] = lambda file=file: file
    return _decoded(files, path)


def _decoded(files: Files, path: Path) -> Drawings:
    if not files:
        raise InputError(
            f"{path} has no drawings named {path.stem}/Alphabet/characterNN/XXXX_YY.png: get it "
            f"again by `{COMMAND}`"
        )
    for name, found in files.items():
        if len(found) != DRAWINGS:
            raise InputError(
                f"{'/'.join(name)} in {path} has {len(found)} drawings, not {DRAWINGS}: the copy "
                f"is not whole; get it again by `{COMMAND}`"
            )
    return {name: _stack(found, f"{path}: {'/'.join(name)}") for name, found in files.items()}


def _stack(found: dict[str, Any], where: str) -> NDArray[np.bool_]:
    return np.stack([drawing(read(), f"{where}/{name}") for name, read in sorted(found.items())])
