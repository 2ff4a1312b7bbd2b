"""Few-shot tasks over labelled images: N classes, a few images of each to adapt to, more to ask.

A task draws `ways` classes and, of each, `shots` support and `queries` query images, all without
replacement; its labels 0 … ways − 1 are new in every task. Images stay on their device: a task is
chosen by numbers, and gathered there.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bayesmeta.devices import room_for
from bayesmeta.images import Images, of_dataset
from bayesmeta.images.bank import unrotated
from bayesmeta.results import InputError, check_whole
from bayesmeta.tasks import TaskBatch, TaskFamily

QUARTERS = (0, 90, 180, 270)
TURNED = tuple(f"@{degrees}" for degrees in QUARTERS[1:])


class FewShot:
    """A stream of few-shot tasks.

    Args:
        images: `bm.images.Images`, or any labelled torch `Dataset`, read once into memory.
        ways: classes of a task.
        shots: support images of each class.
        queries: query images of each class.
        rotations: whether a class turned by 90, 180 and 270 degrees is three more classes, as is
            usual for Omniglot. A task may hold a class and its rotation (29 % of 20-way tasks of
            423 characters do), which for a symmetric one cannot be told apart.
        device: where the images stay; where they are, by default.
        dtype: of the images in tasks; 8-bit values come in [0, 1].

    Raises:
        InputError: fewer classes than ways, a class with fewer images than shots + queries, or
            values beyond the range of dtype.

    Example:
        >>> bank = Images(torch.rand(12, 1, 8, 8), torch.arange(12) // 4, ("a", "b", "c"), "random")
        >>> tasks = FewShot(bank, ways=2, shots=1, queries=3)
        >>> support, query = tasks.family(5, torch.Generator().manual_seed(0))
        >>> support.tensors["x"].shape, query.tensors["y"][0].tolist()
        (torch.Size([5, 2, 1, 8, 8]), [0, 0, 0, 1, 1, 1])
    """

    def __init__(
        self,
        images: Any,
        ways: int = 5,
        shots: int = 1,
        queries: int = 15,
        *,
        rotations: bool = False,
        device: Any = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        check_whole("ways", ways, least=2)
        check_whole("shots", shots, least=1)
        check_whole("queries", queries, least=1)
        if not isinstance(rotations, bool):
            raise InputError(f"rotations={rotations!r}: give True or False")
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise InputError(f"dtype={dtype!r}: give a floating one, such as torch.float32")
        images = images if isinstance(images, Images) else of_dataset(images)
        self.images = images if device is None else images.to(device)
        self.ways, self.shots, self.queries, self.rotations = ways, shots, queries, rotations
        self.dtype = dtype
        self._bank = self.images.rotated(QUARTERS) if rotations else self.images
        self._check()
        # (class, image) positions of each class's images in the bank; -1 beyond its last.
        counts = self._bank.counts.cpu()
        width = int(counts.max())
        order = self._bank.labels.cpu().argsort(stable=True)
        first = counts.cumsum(0) - counts
        place = torch.arange(width)
        inside = place < counts[:, None]
        self._table = torch.where(
            inside, order[(first[:, None] + place).clamp(max=len(order) - 1)], -1
        )

    def __repr__(self) -> str:
        turned = ", with rotations" if self.rotations else ""
        return (
            f"FewShot({self.ways}-way {self.shots}-shot, {self.queries} queries a class; "
            f"{len(self.images.classes)} classes{turned}, from {self.images.source})"
        )

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, rotations not counted."""
        return self.images.classes

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channel, height, width) of an image."""
        return self.images.shape

    def _check(self) -> None:
        bank, need = self._bank, self.shots + self.queries
        if len(bank.classes) < self.ways:
            raise InputError(
                f"{len(bank.classes)} classes are fewer than ways={self.ways}: lower ways=, or "
                "give more classes"
            )
        short = (self.images.counts < need).nonzero().flatten().tolist()
        if short:
            name, has = self.images.classes[short[0]], int(self.images.counts[short[0]])
            raise InputError(
                f"class {name!r} has {has} images, fewer than shots + queries = {need} "
                f"({len(short)} of {len(self.images.classes)} classes are too small): lower "
                "shots= or queries=, or leave such classes out with images.select(...)"
            )
        values, largest = self.images.values, torch.finfo(self.dtype).max
        if values.is_floating_point() and torch.finfo(values.dtype).max > largest:
            beyond = float(max(values.max(), -values.min()))
            if beyond > largest:
                raise InputError(
                    f"images have values up to {beyond:.4g}, and dtype={self.dtype} ends at "
                    f"{largest:.4g}: scale the images, or take dtype=torch.float32"
                )

    def split(self, *parts: int | Sequence[str], seed: int = 0) -> tuple[FewShot, ...]:
        """Streams over disjoint classes, rotations of a class always on its side.

        Args:
            *parts: for each stream the number of classes, drawn at random, or their names. Names
                are taken first, and numbers from the classes left.
            seed: of the draw; the global random state is left alone.

        Raises:
            InputError: parts overlap, ask for more classes than there are, have fewer than a task,
                or the images are rotations already.

        Example:
            >>> bank = Images(torch.rand(8, 1, 8, 8), torch.arange(8) // 2, tuple("abcd"), "random")
            >>> train, test = FewShot(bank, 2, 1, 1).split(2, 2)
            >>> set(train.classes) & set(test.classes)
            set()
        """
        check_whole("seed", seed)
        for part in parts:
            self._check_part(part)
        named = Counter(name for part in parts if not isinstance(part, int) for name in part)
        repeated = sorted(name for name, times in named.items() if times > 1)
        if repeated:
            raise InputError(f"class {repeated[0]!r} is in two parts of the split: take it out")
        rest = [name for name in self.classes if name not in named]
        wanted = sum(part for part in parts if isinstance(part, int))
        if wanted > len(rest):
            raise InputError(
                f"a split into {parts} needs {wanted} classes, and {len(rest)} are left"
            )
        generator = torch.Generator().manual_seed(seed)
        order = [rest[i] for i in torch.randperm(len(rest), generator=generator).tolist()]
        streams = []
        for part in parts:
            if isinstance(part, int):
                names, order = sorted(order[:part]), order[part:]
            else:
                names = list(part)
            streams.append(self.over(self.images.select(names)))
        for i, one in enumerate(streams):
            for other in streams[:i]:
                one.refuse_overlap(other)
        return tuple(streams)

    def _check_part(self, part: int | Sequence[str]) -> None:
        """Refuse what is neither a number of classes nor names, and rotations on their own."""
        if isinstance(part, str):
            raise InputError(f"a part of a split is a list of class names: write [{part!r}]")
        if not isinstance(part, Sequence) and (type(part) is not int or part < 1):
            raise InputError(
                f"{part!r} is no part of a split: give a number of classes, or their names"
            )
        turned = [name for name in self.classes if name.endswith(TURNED)]
        if turned:
            raise InputError(
                f"class {turned[0]!r} is a rotation, which a split could take from its class: "
                "give the images as they were loaded, and rotations=True"
            )

    def over(self, images: Images) -> FewShot:
        """The same kind of tasks over other images."""
        return self.like(images=images)

    def like(self, **changes: Any) -> FewShot:
        """This stream with some of its arguments changed."""
        own = {name: getattr(self, name) for name in ("images", "ways", "shots", "queries")}
        return FewShot(**own | {"rotations": self.rotations, "dtype": self.dtype} | changes)

    def to(self, device: Any) -> FewShot:
        """The same stream with its images on another device."""
        return self.like(device=device)

    def refuse_overlap(self, other: FewShot | set[str]) -> None:
        """Say no where two streams share classes.

        Raises:
            InputError: they do.
        """
        theirs = other if isinstance(other, set) else set(other.classes)
        both = {unrotated(name) for name in self.classes} & {unrotated(name) for name in theirs}
        if both:
            raise InputError(
                f"{len(both)} of {len(self.classes)} classes of these tasks were also trained on "
                f"({min(both)!r} for one), so their score says nothing of new classes: use "
                "streams that came from one tasks.split(...)"
            )

    def choose(self, tasks: int, generator: torch.Generator) -> Tensor:
        """(task, ways, shots + queries) positions of images; the seed decides them."""
        check_whole("tasks", tasks, least=1)
        classes, device = len(self._table), generator.device
        score = torch.rand(tasks, classes, generator=generator, device=device, dtype=torch.float32)
        ways = score.topk(self.ways).indices.cpu()
        candidates = self._table[ways]
        score = torch.rand(
            candidates.shape, generator=generator, device=device, dtype=torch.float32
        ).cpu()
        score = score.masked_fill(candidates < 0, -1.0)
        return candidates.gather(-1, score.topk(self.shots + self.queries).indices)

    def draw(self, tasks: int, generator: torch.Generator) -> tuple[TaskBatch, TaskBatch]:
        """Support and query sets: x (task, row, channel, height, width), y (task, row).

        Raises:
            InputError: so many images do not fit into memory.
        """
        size = "×".join(str(n) for n in self.shape)
        images = f"{tasks} tasks of {self.ways * (self.shots + self.queries)} images {size}"
        with room_for(images, "take fewer tasks at a time (batch=), queries or smaller images"):
            chosen = self.choose(tasks, generator).to(self.images.device)
            support, query = (self._sets(p) for p in chosen.split([self.shots, self.queries], -1))
        return support, query

    def _sets(self, chosen: Tensor) -> TaskBatch:
        """A batch of the images at positions (task, ways, image)."""
        tasks, ways, each = chosen.shape
        x = self._bank.values[chosen.flatten(1)]
        x = x.to(self.dtype) / 255 if x.dtype == torch.uint8 else x.to(self.dtype)
        y = torch.arange(ways, device=x.device).repeat_interleave(each).expand(tasks, -1)
        mask = torch.ones_like(y, dtype=torch.bool)
        index = torch.arange(tasks, device=x.device)
        return TaskBatch({"x": x, "y": y}, mask, index, frozenset({"x", "y"}))

    def family(self, tasks: int, generator: torch.Generator) -> tuple[TaskFamily, TaskFamily]:
        """Support and query sets of so many tasks, as families."""
        both = self.draw(tasks, generator)
        support, query = (
            TaskFamily(part.tensors, mask=part.mask, rowwise=part.rowwise) for part in both
        )
        return support, query

    @property
    def split_hash(self) -> str:
        """sha256 of the names of the classes: which side of a split this is."""
        return hashlib.sha256("\0".join(sorted(self.classes)).encode()).hexdigest()

    def record(self) -> dict[str, Any]:
        """What the tasks are drawn from, for the record of a run."""
        return {
            "kind": "few_shot",
            "ways": self.ways,
            "shots": self.shots,
            "queries": self.queries,
            "rotations": self.rotations,
            "source": self.images.source,
            "shape": list(self.shape),
            "classes": list(self.classes),
            "split": self.split_hash,
            "images": self.images.fingerprint(),
        }
