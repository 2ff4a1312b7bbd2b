"""`bayesmeta fit IMAGES`: few-shot tasks from a folder of images, and what is held out for a test.

A folder is Omniglot's, or has one folder of images per class, or is laid out as mini-ImageNet is,
with train, val and test; see `bm.images`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bayesmeta.commands import Choices, Progress, into_run, usable_device
from bayesmeta.options import check_numbers, method_options
from bayesmeta.results import InputError

if TYPE_CHECKING:
    from bayesmeta.few_shot import FewShot
    from bayesmeta.fit import Fit
    from bayesmeta.images import Images
    from bayesmeta.models import Model
    from bayesmeta.resuming import Checkpoint

OMNIGLOT_SIDE, OTHER_SIDE = 28, 84
OMNIGLOT_TRAINS = 1200
TRAINS = 0.75
NETS = ("conv4", "dense")
FLAGS = {
    "by colour=True or colour=False": "or add --grey",
    "shots= or queries=": "--shots or --queries",
    "leave such classes out with images.select(...)": "take such classes out of the folder",
    "lower ways=": "lower --ways",
    "ways=": "--ways ",
    "shots=": "--shots ",
    "queries=": "--queries ",
    "resize them to squares first": "give an --image-size",
    "size=": "--image-size ",
}
FILTERS = 64


@dataclass(frozen=True)
class Pictures:
    """What the tasks are, and the network that tells their classes apart.

    Args:
        ways, shots, queries, rotations: as in `bm.FewShot`.
        net: "conv4", "dense", or the hidden widths of a dense network.
        filters: of conv4; None: 64.
        batch_norm: "transductive" or "support".
        size: height and width in pixels; None: 28 for Omniglot, for others their own where all
            have the same, else 84.
        train: how many classes are trained on, drawn by the seed; None: 1200 of Omniglot, three
            quarters of others, those in train of a folder that is split.
        grey: turn all images grey.
    """

    ways: int = 5
    shots: int = 1
    queries: int = 15
    rotations: bool = False
    net: str | tuple[int, ...] = "conv4"
    filters: int | None = None
    batch_norm: str = "transductive"
    size: int | None = None
    train: int | None = None
    grey: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.net, str) and self.net not in NETS:
            raise InputError(
                f"--net {self.net}: for images give conv4, dense, or the widths of dense layers, "
                "such as 256,64"
            )
        if self.filters is not None and self.net != "conv4":
            raise InputError("--filters are those of --net conv4: leave one of the two out")
        check_numbers(
            {"--filters": self.filters, "--image-size": self.size, "--train-classes": self.train}
        )
        if self.batch_norm == "frozen":
            raise InputError(
                "--batch-norm frozen: whose statistics it holds no option can say; give "
                "transductive or support, or fit bm.models.conv4(...).frozen_on(images) in Python"
            )
        if self.batch_norm not in ("transductive", "support"):
            raise InputError(f"--batch-norm {self.batch_norm}: give transductive or support")

    def model(self, shape: tuple[int, int, int], choices: Choices) -> Model:
        """The network, for images of (channel, height, width)."""
        from bayesmeta import models
        from bayesmeta.devices import room_for

        options: dict[str, Any] = {
            "batch_norm": self.batch_norm,
            "chunk_size": choices.chunk_size,
            "precision": choices.precision,
            "seed": choices.seed,
        }
        if isinstance(self.net, tuple):
            options["widths"] = self.net
        with room_for("so large a network", "lower --filters, or the widths of --net"):
            if self.net == "conv4":
                return models.conv4(self.ways, shape, filters=self.filters or FILTERS, **options)
            return models.dense(self.ways, shape, **options)

    def read(self, path: Path, seed: int) -> tuple[FewShot, dict[str, Any], list[str]]:
        """The tasks trained on, what finds the classes held out again, and what is to be said.

        Args:
            path: the folder.
            seed: of the draw of classes.
        """
        from bayesmeta.few_shot import FewShot

        reading, notes = self._reading(path)
        images = read(reading, reading["train"])
        with in_flags():
            tasks = FewShot(images, 2, self.shots, self.queries)  # of all classes, held out too
        if reading["train"] is None:
            wanted = self._wanted(len(images.classes), reading["kind"])
            chosen, others = divided(images.classes, wanted, seed)
            held_out = images.select(others) if others else None
        else:
            chosen, held_out = list(images.classes), self._test_part(reading, images)
        with in_flags():
            chosen_images = images.select(chosen)
            tasks = tasks.like(images=chosen_images, ways=self.ways, rotations=self.rotations)
        kept = {
            "held_out": [] if held_out is None else list(held_out.classes),
            "images_held_out": None if held_out is None else held_out.fingerprint(),
            "reading": reading,
        }
        return tasks, kept, notes + self._unscored(tasks, held_out, reading)

    def _test_part(self, reading: Mapping[str, Any], images: Images) -> Images | None:
        """The classes for a test, of a folder that says itself which these are."""
        folder, train, test = (reading[key] for key in ("folder", "train", "test"))
        if self.train is not None:
            raise InputError(
                f"--train-classes: {folder} says itself which classes are trained on, by its "
                f"{train}: leave it out"
            )
        if test is None:
            return None
        held_out = read(reading, test)
        both = set(held_out.classes) & set(images.classes)
        if both:
            raise InputError(
                f"class {min(both)!r} is both in {train} and in {test} of {folder} ({len(both)} of "
                f"{len(held_out.classes)} classes of {test} are), and a test is of new classes: "
                "take it out of one"
            )
        return held_out

    def _unscored(
        self, tasks: FewShot, held_out: Images | None, reading: Mapping[str, Any]
    ) -> list[str]:
        """Why `bayesmeta check` will not be able to score the classes held out, in a sentence."""
        number = 0 if held_out is None else len(held_out.classes)
        enough = math.ceil(self.ways / (4 if self.rotations else 1))
        if held_out is not None and number >= enough:
            try:
                with in_flags():
                    tasks.over(held_out)
            except InputError as error:
                return [f"`bayesmeta check` cannot score the classes held out: {error}."]
            return []
        most = number + len(tasks.classes) - enough
        if reading["train"] is not None:
            advice = f"put more into {reading['test'] or 'test/'} beside {reading['train']}"
        elif most >= enough:
            advice = f"give --train-classes {most} or fewer"
        else:
            advice = f"give at least {2 * enough} classes, or lower --ways"
        fewer = f"{number} classes are held out, fewer than the {enough} that a task needs"
        return [f"{fewer}, so `bayesmeta check` cannot score new classes: {advice}."]

    def _wanted(self, classes: int, kind: str) -> int:
        if self.train is not None and self.train > classes:
            raise InputError(f"--train-classes {self.train}: there are {classes} classes")
        usual = OMNIGLOT_TRAINS if kind == "omniglot" else round(TRAINS * classes)
        return min(classes, self.train or max(usual, min(self.ways, classes)))

    def _reading(self, path: Path) -> tuple[dict[str, Any], list[str]]:
        """How the folder is read: of what kind it is, by what size, which part is which."""
        omniglot = is_omniglot(path)
        parts = [] if omniglot else split_parts(path)
        reading: dict[str, Any] = {
            "folder": str(path.resolve()),
            "kind": "omniglot" if omniglot else "folder",
            "size": OMNIGLOT_SIDE if omniglot and self.size is None else self.size,
            "grey": self.grey,
            "train": "train" if "train" in parts else None,
            "test": next((part for part in ("test", "val") if part in parts), None),
        }
        if omniglot or self.size is not None:
            return reading, []
        own, usual = own_sizes(reading), f"{OTHER_SIDE}×{OTHER_SIDE} pixels"
        if len(own) > 1:
            note = f"The images have different sizes, and are resized to {usual}: --image-size"
            return reading | {"size": OTHER_SIDE}, [f"{note} chooses another size."]
        width, height = own.pop()
        note = f"The images keep their size of {width}×{height} pixels: {usual}, --image-size"
        large = max(width, height) > OTHER_SIDE
        return reading, [f"{note} {OTHER_SIDE}, are usual and take less time."] * large


def own_sizes(reading: Mapping[str, Any]) -> set[tuple[int, int]]:
    """(width, height) of the images of a folder, by what their files say at the start."""
    from bayesmeta.images.folders import sizes

    train, folder = reading["train"], Path(reading["folder"])
    parts = {train, reading["test"] or train} if train else {None}
    with in_flags():
        return {size for part in parts for size in sizes(folder, part)}


def is_omniglot(path: Path) -> bool:
    """Whether a folder has Omniglot's background set, in any form that `bm.images.omniglot` reads.

    Args:
        path: the folder that `git clone` made, torchvision's, or one with the files themselves.
    """
    names = ("images_background", "images_background.zip", "omniglot_images_background_105.npz")
    return any(
        (path / inside / name).exists()
        for inside in ("", "python", "omniglot-py")
        for name in names
    )


def split_parts(path: Path) -> list[str]:
    """Which of train, val and test a folder is split into: tables, or folders of folders."""
    found = []
    for name in ("train", "val", "test"):
        inside = path / name
        # Folders of images called so are classes.
        folders = inside.is_dir() and any(child.is_dir() for child in inside.iterdir())
        if (path / f"{name}.csv").is_file() or folders:
            found.append(name)
    return found


def read(reading: Mapping[str, Any], part: str | None) -> Images:
    """The images of a folder, or of a part that it is split into."""
    from bayesmeta import images

    if reading["kind"] == "omniglot":
        return images.omniglot(reading["folder"], size=reading["size"])
    colour = False if reading["grey"] else None
    with in_flags():
        return images.folder(reading["folder"], size=reading["size"], colour=colour, split=part)


@contextmanager
def in_flags() -> Iterator[None]:
    """Sentences about bad input, with the names that its options have on the command line."""
    try:
        yield
    except InputError as error:
        told = str(error)
        for name, flag in FLAGS.items():
            told = told.replace(name, flag)
        raise InputError(" ".join(told.split())) from error


def divided(classes: tuple[str, ...], train: int, seed: int) -> tuple[list[str], list[str]]:
    """Names of so many classes, drawn at random, and of the others: as `FewShot.split` draws them.

    Example:
        >>> divided(("a", "b", "c"), 3, 0)
        (['a', 'b', 'c'], [])
    """
    import torch

    order = torch.randperm(len(classes), generator=torch.Generator().manual_seed(seed)).tolist()
    names = [classes[i] for i in order]
    return sorted(names[:train]), sorted(names[train:])


def held_out(fit: Fit, folder: str | Path | None = None) -> FewShot:
    """The tasks of the classes that a run from the command line was not trained on.

        fit = bm.load("runs/shapes")
        bm.diagnostics.few_shot_scores(fit, bayesmeta.image_tasks.held_out(fit), count=600)

    Args:
        fit: the run, as `bm.load` gives it.
        folder: where its images are now; where they were, by default.

    Raises:
        InputError: no classes are held out, or the images are no longer there or no longer those.
    """
    from bayesmeta.few_shot import FewShot

    stream = fit.stream or {}
    reading = stream.get("reading")
    if reading is None:
        raise InputError("this run was not fitted to a folder of images, so none of it is held out")
    if not stream["held_out"]:
        raise InputError(
            "all classes were trained on: fit with fewer --train-classes, or with a test/ beside "
            "train/"
        )
    reading = reading if folder is None else reading | {"folder": str(folder)}
    where = reading["folder"]
    if not Path(where).is_dir():
        raise InputError(
            f"there is no {where} any more: say where its images are now, by --images or folder="
        )
    images = read(reading, reading["test"])
    if reading["test"] is None:
        same_images(images, stream["classes"], stream["images"], f"{where} trained on")
    names, known = stream["held_out"], stream.get("images_held_out")
    images = same_images(images, names, known, f"{where} held out")
    options = {name: stream[name] for name in ("ways", "shots", "queries", "rotations")}
    with in_flags():
        return FewShot(images, **options)


def same_images(images: Images, classes: list[str], fingerprint: str | None, where: str) -> Images:
    """The images of some classes, refused where their fingerprint is no longer that of the fit."""
    if set(classes) <= set(images.classes):
        chosen = images.select(classes)
        if chosen.fingerprint() == fingerprint:
            return chosen
    raise InputError(
        f"the images in {where} are not those of the fit, so a score would be of others: put them "
        "back, or fit again"
    )


def fit_images(
    path: Path,
    pictures: Pictures,
    choices: Choices,
    *,
    out: Path,
    overwrite: bool,
    progress: Progress,
    warn: Callable[[str], None],
    checkpoint: Checkpoint,
) -> Fit:
    """Read, fit and save; the run folder appears complete or not at all.

    Args:
        warn: told before the fit what a person may want to change first.
    """
    if choices.method == "joint":
        raise InputError(
            "joint stores a posterior of every task, and of images every step draws new tasks: use "
            "a method that adapts to them, such as maml, imaml or variational_imaml"
        )
    device = usable_device(choices.device)
    if choices.precision == "tf32" and not (device or "cpu").startswith("cuda"):
        raise InputError(
            "--precision tf32 is of CUDA devices, and on the CPU it changes nothing: leave it out, "
            "or give --device cuda"
        )
    method = _method(choices, known := method_options(choices.method))
    tasks, kept, notes = pictures.read(path, choices.seed)
    for note in notes:
        warn(note)

    def fitted() -> Fit:
        from bayesmeta.fit import fit
        from bayesmeta.prior import Prior

        model = pictures.model(tasks.shape, choices)
        found = fit(
            model,
            tasks,
            method=method.made(known, model.dim),
            prior=None if choices.prior is None else Prior(choices.prior),
            seed=choices.seed,
            device=device,
            callbacks=(progress,),
            checkpoint=checkpoint,
        )
        stream = (found.stream or {}) | kept
        return replace(found, stream=stream, notes=[*notes, *found.notes])

    return into_run(fitted, checkpoint, out=out, overwrite=overwrite)


def _method(choices: Choices, known: Mapping[str, Any]) -> Choices:
    """The choices, with no rows split off a support set: a task brings its query images."""
    if "support" not in known:
        return choices
    if any(option.partition("=")[0].strip() == "support" for option in choices.options):
        raise InputError(
            "--option support= is of tables, whose rows it splits: for images --shots and "
            "--queries say how many"
        )
    return replace(choices, options=(*choices.options, "support=none"))
