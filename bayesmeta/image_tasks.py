"""`bayesmeta fit IMAGES`: few-shot tasks from a folder of images, and what is held out for a test.

A folder is Omniglot's, or has one folder of images per class, or is laid out as mini-ImageNet is,
with train, val and test; see `bm.images`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bayesmeta.commands import Choices, Progress, into_run, usable_device
from bayesmeta.options import method_options
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
EVERY = 100
NETS = ("conv4", "dense")
FLAGS = {
    "by colour=True or colour=False": "or add --grey",
    "shots= or queries=": "--shots or --queries",
    "leave such classes out with images.select(...)": "take such classes out of the folder",
    "lower ways=": "lower --ways",
    "ways=": "--ways ",
    "shots=": "--shots ",
    "queries=": "--queries ",
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
        size: height and width in pixels; None: 28 for Omniglot, 84 for others.
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
        for flag, value in (
            ("--filters", self.filters),
            ("--image-size", self.size),
            ("--train-classes", self.train),
        ):
            if value is not None and value < 1:
                raise InputError(f"{flag} {value}: give a whole number, 1 or more")
        if self.batch_norm not in ("transductive", "support"):
            raise InputError(f"--batch-norm {self.batch_norm}: give transductive or support")

    def model(self, shape: tuple[int, int, int], choices: Choices) -> Model:
        """The network, for images of (channel, height, width)."""
        from bayesmeta import models

        options: dict[str, Any] = {
            "batch_norm": self.batch_norm,
            "chunk_size": choices.chunk_size,
            "precision": choices.precision,
            "seed": choices.seed,
        }
        if self.net == "conv4":
            return models.conv4(self.ways, shape, filters=self.filters or FILTERS, **options)
        if isinstance(self.net, tuple):
            options["widths"] = self.net
        return models.dense(self.ways, shape, **options)

    def read(self, path: Path, seed: int) -> tuple[FewShot, dict[str, Any]]:
        """The tasks trained on, and what is needed to find the classes that are held out.

        Args:
            path: the folder.
            seed: of the draw of classes.
        """
        from bayesmeta.few_shot import FewShot

        reading = self._reading(path)
        images = read(reading, reading["train"])
        with in_flags():
            tasks = FewShot(images, 2, self.shots, self.queries)  # of all classes, held out too
        if reading["train"] is None:
            wanted = self._wanted(len(images.classes), reading["kind"])
            chosen, held_out = divided(images.classes, wanted, seed)
        else:
            chosen, held_out = list(images.classes), []
            if self.train is not None:
                raise InputError(
                    f"--train-classes: {path} says itself which classes are trained on, by its "
                    f"{reading['train']}: leave it out"
                )
        with in_flags():
            chosen_images = images.select(chosen)
            tasks = tasks.like(images=chosen_images, ways=self.ways, rotations=self.rotations)
        return tasks, {"held_out": held_out, "reading": reading}

    def _wanted(self, classes: int, kind: str) -> int:
        if self.train is not None and self.train > classes:
            raise InputError(f"--train-classes {self.train}: there are {classes} classes")
        usual = OMNIGLOT_TRAINS if kind == "omniglot" else round(TRAINS * classes)
        return min(classes, self.train or max(usual, min(self.ways, classes)))

    def _reading(self, path: Path) -> dict[str, Any]:
        """How the folder is read: of what kind it is, by what size, which part is which."""
        omniglot = is_omniglot(path)
        parts = [] if omniglot else split_parts(path)
        usual = OMNIGLOT_SIDE if omniglot else OTHER_SIDE
        return {
            "folder": str(path.resolve()),
            "kind": "omniglot" if omniglot else "folder",
            "size": usual if self.size is None else self.size,
            "grey": self.grey,
            "train": "train" if "train" in parts else None,
            "test": next((part for part in ("test", "val") if part in parts), None),
        }


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
        raise InputError(told) from error


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


def held_out(fit: Fit) -> FewShot:
    """The tasks of the classes that a run from the command line was not trained on.

    Raises:
        InputError: no classes are held out, or the images are no longer there or no longer those.
    """
    from bayesmeta.few_shot import FewShot

    stream = fit.stream or {}
    reading = stream.get("reading")
    if reading is None:
        raise InputError("this run was not fitted to a folder of images, so none of it is held out")
    if not (stream["held_out"] or reading["test"]):
        raise InputError("all classes were trained on: fit with fewer --train-classes")
    images = read(reading, reading["test"])
    if reading["test"] is None:
        trained = images.select(stream["classes"])
        if trained.fingerprint() != stream["images"]:
            raise InputError(
                f"the images in {reading['folder']} are not those that the run was fitted to: "
                "put them back, or fit again"
            )
        images = images.select(stream["held_out"])
    options = {name: stream[name] for name in ("ways", "shots", "queries", "rotations")}
    tasks = FewShot(images, **options)
    tasks.refuse_overlap(set(stream["classes"]))
    return tasks


def fit_images(
    path: Path,
    pictures: Pictures,
    choices: Choices,
    *,
    out: Path,
    overwrite: bool,
    progress: Progress,
) -> Fit:
    """Read, fit and save; the run folder appears complete or not at all."""
    if choices.method == "joint":
        raise InputError(
            "joint stores a posterior of every task, and of images every step draws new tasks: use "
            "a method that adapts to them, such as maml, imaml or variational_imaml"
        )
    device = usable_device(choices.device)
    method = _method(choices, known := method_options(choices.method))
    tasks, kept = pictures.read(path, choices.seed)

    def fitted(checkpoint: Checkpoint | None) -> Fit:
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
        return replace(found, stream=(found.stream or {}) | kept)

    return into_run(fitted, choices.checkpoint(out), out=out, overwrite=overwrite)


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
