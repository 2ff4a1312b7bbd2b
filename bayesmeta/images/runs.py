"""The 20 official one-shot runs of Omniglot: 20 characters of one alphabet, one drawing of each."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bayesmeta.images.archives import Archive, opened
from bayesmeta.images.characters import COMMAND, WHERE, drawing
from bayesmeta.images.pixels import check_memory, check_size, existing, inked
from bayesmeta.results import InputError

RUNS = tuple(f"run{i:02d}" for i in range(1, 21))
WAYS = 20
_FOLDERS = ("", "python/one-shot-classification", "one-shot-classification", "python")
_MEMBER = re.compile(r"(?:all_runs/)?(run\d+)/(training|test)/((?:class|item)\d+\.png)")


@dataclass(frozen=True, eq=False)
class Run:
    """One run: which of 20 characters is each of 20 drawings by another person?

    Args:
        name: "run01" to "run20".
        support: (20, 1, size, size) uint8, ink = 255 on paper = 0, one drawing of each class.
        query: the same, the drawings to be classified.
        labels: (20,) long, for each of `query` the position of its class in `support`.
    """

    name: str
    support: Tensor
    query: Tensor
    labels: Tensor


def omniglot_runs(root: str | Path, *, size: int = 28) -> list[Run]:
    """The official 20 within-alphabet 20-way 1-shot runs, from all_runs.zip.

    Their characters are of the evaluation set: learn from `omniglot(root, part="background")`.

    Args:
        root: a folder with all_runs.zip, or the one that
            `git clone --depth 1 https://github.com/brendenlake/omniglot` makes.
        size: height and width in pixels; resized as `omniglot` does.

    Raises:
        InputError: the file is not there, or lacks runs, drawings or labels.

    References:
        Lake, Salakhutdinov and Tenenbaum (2015), the one-shot classification task.
    """
    check_size(size)
    check_memory(2 * WAYS * len(RUNS), 1, size, size)
    folder = existing(root, WHERE)
    paths = [folder / place / "all_runs.zip" for place in _FOLDERS]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise InputError(
            f"no all_runs.zip in {folder} or its folders {', '.join(_FOLDERS[1:])}: get it by "
            f"`{COMMAND}` and give the folder omniglot"
        )
    with opened(path) as archive:
        files = _files(archive)
        _check_whole(files, path)
        return [_run(archive, run, files[run], size) for run in RUNS]


def _files(archive: Archive) -> dict[str, dict[str, dict[str, str]]]:
    """run -> "training" or "test" -> file -> member."""
    files = {run: {"training": {}, "test": {}} for run in RUNS}
    for name in archive.names:
        match = _MEMBER.fullmatch(name)
        if match and match[1] in files:
            files[match[1]][match[2]][match[3]] = name
    return files


def _check_whole(files: dict[str, dict[str, dict[str, str]]], path: Path) -> None:
    lacking = [run for run in RUNS if not any(files[run].values())]
    if lacking:
        raise InputError(
            f"{path} lacks {len(lacking)} of the {len(RUNS)} official runs ({lacking[0]} is the "
            f"first): get it again by `{COMMAND}`"
        )
    for run in RUNS:
        for kind, found in files[run].items():
            if len(found) != WAYS:
                raise InputError(
                    f"{run}/{kind} in {path} has {len(found)} drawings, not {WAYS}: get the file "
                    f"again by `{COMMAND}`"
                )


def _run(archive: Archive, run: str, files: dict[str, dict[str, str]], size: int) -> Run:
    support, query = (_drawings(archive, files[kind], size) for kind in ("training", "test"))
    classes = sorted(files["training"])
    class_of = _class_of(archive, files["test"])
    for item in sorted(files["test"]):
        if class_of.get(item) not in classes:
            raise InputError(
                f"{run}/class_labels.txt in {archive.path} does not say which class image is of "
                f"the character of {item}: get the file again by `{COMMAND}`"
            )
    labels = torch.tensor([classes.index(class_of[item]) for item in sorted(files["test"])])
    return Run(run, support, query, labels)


def _drawings(archive: Archive, files: dict[str, str], size: int) -> Tensor:
    found = [
        drawing(archive.read(member), f"{archive.path}: {member}")
        for _, member in sorted(files.items())
    ]
    return inked(torch.from_numpy(np.stack(found)), size)


def _class_of(archive: Archive, items: dict[str, str]) -> dict[str, str]:
    """Test image -> its class image, by the run's class_labels.txt."""
    member = next(iter(items.values())).rsplit("/", 2)[0] + "/class_labels.txt"
    if member not in archive.names:
        raise InputError(f"{archive.path} lacks {member}: get the file again by `{COMMAND}`")
    lines = archive.read(member).read().decode("utf-8", "replace").split("\n")
    pairs = [line.split() for line in lines if line.strip()]
    return {_last(pair[0]): _last(pair[1]) for pair in pairs if len(pair) == 2}


def _last(path: str) -> str:
    return path.rsplit("/", 1)[-1]
