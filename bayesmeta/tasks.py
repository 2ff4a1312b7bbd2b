"""The data of M: a family of tasks i with tensors S_i, padded to one shape and masked.

Every tensor has the task axis first. *Row* tensors are (task, row, ...); tasks with fewer rows are
padded, and `mask` (task, row) is True on real rows. Padding repeats a real row, so a log-density
is finite there before the mask removes it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bayesmeta.devices import usable
from bayesmeta.results import InputError
from bayesmeta.typed import made

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class TableInfo:
    """What the table behind a family knew, so that a new table is read the same way.

    Args:
        source: file name, or "DataFrame".
        task: the group column, "a:b" for an interaction of two.
        response: the response as written, e.g. "Reaction" or "incidence/size".
        columns: names of the features in x, in order.
        adapted: those of `columns` inside the bar of a formula; x has them first.
        formula: the formula, or None for the x=[...] route (then x has no intercept column).
        x: raw columns given as x=.
        coding: levels of each categorical column; the first is the reference.
        offset, exposure, standard_error: column names.
        notes: what was done that a person should know, in sentences.
        terms: whatever the reader needs to rebuild the same design from new data.
    """

    source: str
    task: str
    response: str
    columns: tuple[str, ...]
    adapted: tuple[str, ...] = ()
    formula: str | None = None
    x: tuple[str, ...] = ()
    coding: dict[str, tuple[str, ...]] | None = None
    offset: str | None = None
    exposure: str | None = None
    standard_error: str | None = None
    notes: tuple[str, ...] = ()
    terms: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> TableInfo:
        known = {f.name for f in fields(cls)}
        values: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in record.items()
        }
        if set(values) != known:
            raise InputError(f"a table record has fields {sorted(values)}, not {sorted(known)}")
        if values["coding"] is not None:
            values["coding"] = {k: tuple(v) for k, v in values["coding"].items()}
        return made(cls, values)


@dataclass(frozen=True, eq=False)
class TaskBatch:
    """Some tasks of a family.

    Args:
        tensors: name -> tensor, task axis first.
        mask: (task, row) bool, True on real rows; None when there is no row axis.
        index: (task,) positions in the family.
        rowwise: names of the tensors with a row axis; None: those whose second axis has the
            length of the mask's.
    """

    tensors: dict[str, Tensor]
    mask: Tensor | None
    index: Tensor
    rowwise: frozenset[str] | None = None

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, which: Tensor | slice) -> TaskBatch:
        """The batch with task which[i] at place i."""
        mask = None if self.mask is None else self.mask[which]
        tensors = {name: tensor[which] for name, tensor in self.tensors.items()}
        return TaskBatch(tensors, mask, self.index[which], self.rowwise)


class TaskFamily:
    """A family of related tasks.

    Args:
        tensors: name -> tensor with the task axis first. Names with a meaning: x (task, row,
            features), y, trials, offset, standard_error (task, row).
        mask: (task, row) bool; None means that all rows are real.
        names: one name per task; "0", "1", ... by default.
        table: what the table behind the family knew.
        rowwise: names of the tensors with a row axis, where it is not to be told by their shape.

    Raises:
        InputError: shapes disagree, names repeat, or a task has no rows.

    Example:
        >>> family = TaskFamily.from_tensors(x=torch.zeros(3, 5, 1), y=torch.zeros(3, 5))
        >>> len(family), family.observations
        (3, 15)
    """

    def __init__(
        self,
        tensors: dict[str, Tensor],
        *,
        mask: Tensor | None = None,
        names: Sequence[str] | None = None,
        table: TableInfo | None = None,
        rowwise: frozenset[str] | None = None,
    ) -> None:
        if not tensors:
            raise InputError("a family needs at least one tensor, task axis first")
        sizes = {name: tensor.shape[0] if tensor.ndim else 0 for name, tensor in tensors.items()}
        if len(set(sizes.values())) != 1 or 0 in sizes.values():
            raise InputError(f"all tensors need the same, non-zero number of tasks first: {sizes}")
        tasks = next(iter(sizes.values()))
        if mask is None and "y" in tensors and tensors["y"].ndim >= 2:
            mask = torch.ones(tensors["y"].shape[:2], dtype=torch.bool, device=tensors["y"].device)
        self.mask = _checked_mask(mask, tensors)
        # Decided once: a part of the rows may be as many as some other tensor has numbers.
        self.rowwise = rowwise_names(tensors, self.mask) if rowwise is None else rowwise
        self.tensors = {
            k: _filled(v, self.mask) if k in self.rowwise else v for k, v in tensors.items()
        }
        self.names = tuple(map(str, names if names is not None else range(tasks)))
        self.table = table
        if len(self.names) != tasks:
            raise InputError(f"{len(self.names)} names for {tasks} tasks")
        if len(set(self.names)) != tasks:
            raise InputError("task names repeat: give each task one name")

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        shapes = ", ".join(f"{k} {tuple(v.shape)}" for k, v in self.tensors.items())
        return f"TaskFamily({len(self)} tasks: {shapes})"

    @property
    def rows(self) -> Tensor:
        """(task,) number of real rows; 1 for a family without a row axis."""
        if self.mask is None:
            return torch.ones(len(self), dtype=torch.long)
        return self.mask.sum(1)

    @property
    def observations(self) -> int:
        return int(self.rows.sum())

    @property
    def ragged(self) -> bool:
        return self.mask is not None and not bool(self.mask.all())

    @property
    def device(self) -> torch.device:
        return next(iter(self.tensors.values())).device

    def to(self, *, device: Any = None, dtype: torch.dtype | None = None) -> TaskFamily:
        """The same family on another device, floating tensors in another dtype."""
        device = None if device is None else usable(device)
        tensors = {
            k: v.to(device=device, dtype=dtype if v.is_floating_point() else None)
            for k, v in self.tensors.items()
        }
        mask = None if self.mask is None else self.mask.to(device=device)
        return self._like(tensors, mask)

    def subset(self, which: Sequence[int] | Sequence[str] | Tensor) -> TaskFamily:
        """Some of the tasks, by position or by name, in the order given."""
        wanted: list[Any] = which.tolist() if isinstance(which, Tensor) else list(which)
        place = {name: i for i, name in enumerate(self.names)}
        unknown = [w for w in wanted if isinstance(w, str) and w not in place]
        if unknown:
            raise InputError(f"no task is named {unknown[0]!r}; names look like {self.names[0]!r}")
        index = torch.tensor([place[w] if isinstance(w, str) else int(w) for w in wanted])
        batch = self.batch(index)
        names = [self.names[i] for i in index.tolist()]
        return self._like(batch.tensors, batch.mask, names)

    def _like(
        self, tensors: dict[str, Tensor], mask: Tensor | None, names: Sequence[str] | None = None
    ) -> TaskFamily:
        """A family of other tensors of the same kinds."""
        names = self.names if names is None else names
        return TaskFamily(tensors, mask=mask, names=names, table=self.table, rowwise=self.rowwise)

    def batch(self, index: Tensor | None = None) -> TaskBatch:
        """The tasks at `index`, or all of them."""
        everyone = torch.arange(len(self), device=self.device)
        batch = TaskBatch(self.tensors, self.mask, everyone, self.rowwise)
        return batch if index is None else batch[index.to(self.device)]

    def batches(self, size: int, generator: torch.Generator) -> Iterator[TaskBatch]:
        """One pass over the tasks in random order, each task once."""
        order = torch.randperm(len(self), generator=generator, device=generator.device)
        for start in range(0, len(self), size):
            yield self.batch(order[start : start + size])

    def split(
        self, support: int | float, generator: torch.Generator
    ) -> tuple[TaskFamily, TaskFamily]:
        """Split the rows inside each task at random into support and query rows.

        Args:
            support: rows per task (int), or the fraction of them (float in (0, 1)), at least 1.
            generator: the randomness.

        Raises:
            InputError: a task would be left without query rows.
        """
        from bayesmeta.splits import Split

        both = Split(self, support).draw(self.batch(), generator)
        first, second = (self._like(part.tensors, part.mask) for part in both)
        return first, second

    def with_table(self, **changes: Any) -> TaskFamily:
        """The same data with fields of its table record changed."""
        if self.table is None:
            raise InputError("this family does not come from a table")
        table = replace(self.table, **changes)
        return TaskFamily(
            self.tensors, mask=self.mask, names=self.names, table=table, rowwise=self.rowwise
        )

    def fingerprint(self) -> str:
        """A hash of all values, masks and names: equal data, equal fingerprint."""
        digest = hashlib.sha256()
        for name, tensor in sorted((self.tensors | {"mask": self.mask}).items()):
            if tensor is not None:
                digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
                digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        digest.update("\0".join(self.names).encode())
        return digest.hexdigest()

    @classmethod
    def from_tensors(
        cls,
        *,
        mask: Tensor | None = None,
        names: Sequence[str] | None = None,
        **tensors: Any,
    ) -> TaskFamily:
        """A family from tensors, task axis first, handed to the model in the order given.

        Args:
            mask: (task, row) bool, True on real rows.
            names: one per task.
            **tensors: tensors or arrays with the task axis first; or lists with one (row, ...)
                array per task, of different lengths, which are padded and masked here.

        Example:
            >>> short, long = torch.zeros(2), torch.ones(5)
            >>> TaskFamily.from_tensors(y=[short, long]).rows.tolist()
            [2, 5]
        """
        converted, mask = _as_tensors(tensors, mask)
        return cls(converted, mask=mask, names=names)

    @classmethod
    def from_sampler(
        cls,
        sampler: Callable[[torch.Generator], dict[str, Tensor]],
        *,
        tasks: int,
        generator: torch.Generator,
    ) -> TaskFamily:
        """A family of `tasks` draws of `sampler(generator)`, each the tensors of one task.

        Row tensors may differ in length from draw to draw; they are padded and masked. A tensor
        is a row tensor when its first axis is as long as y's.

        Example:
            >>> def sampler(generator):
            ...     x = torch.randn(4, 1, generator=generator)
            ...     return {"x": x, "y": x[:, 0]}
            >>> len(TaskFamily.from_sampler(sampler, tasks=3, generator=torch.Generator()))
            3
        """
        draws = [sampler(generator) for _ in range(tasks)]
        if not draws:
            raise InputError("tasks= must be at least 1")
        if "y" not in draws[0]:
            return cls({k: torch.stack([d[k] for d in draws]) for k in draws[0]})
        lengths = torch.tensor([len(d["y"]) for d in draws])
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        tensors = {
            name: torch.stack([_pad(d[name], len(d["y"]), mask.shape[1]) for d in draws])
            for name in draws[0]
        }
        return cls(tensors, mask=mask.to(tensors["y"].device))

    @classmethod
    def from_csv(cls, path: Any, **options: Any) -> TaskFamily:
        """A family from a CSV with a group column; see `bayesmeta.tables.family_from_csv`."""
        from bayesmeta.tables import family_from_csv

        return family_from_csv(path, **options)

    @classmethod
    def from_dataframe(cls, frame: DataFrame, **options: Any) -> TaskFamily:
        """A family from a DataFrame; see `bayesmeta.tables.family_from_dataframe`."""
        from bayesmeta.tables import family_from_dataframe

        return family_from_dataframe(frame, **options)

    @classmethod
    def from_formula(cls, formula: str, data: Any, **options: Any) -> TaskFamily:
        """A family from an lme4-style formula; see `bayesmeta.tables.family_from_formula`."""
        from bayesmeta.tables import family_from_formula

        return family_from_formula(formula, data, **options)


def _checked_mask(mask: Tensor | None, tensors: dict[str, Tensor]) -> Tensor | None:
    if mask is None:
        return None
    mask = mask.bool()
    tasks = next(iter(tensors.values())).shape[0]
    if mask.ndim != 2 or mask.shape[0] != tasks:
        raise InputError(f"mask must be (task, row) with {tasks} tasks, not {tuple(mask.shape)}")
    y = tensors.get("y")
    if y is not None and y.shape[:2] != mask.shape:
        raise InputError(f"y is {tuple(y.shape)} but mask is {tuple(mask.shape)}")
    empty = (~mask.any(1)).nonzero().flatten().tolist()
    if empty:
        raise InputError(f"the task at position {empty[0]} has no rows: drop it")
    return mask


def rowwise_names(tensors: dict[str, Tensor], mask: Tensor | None) -> frozenset[str]:
    """The tensors whose second axis is as long as the mask's."""
    if mask is None:
        return frozenset()
    return frozenset(k for k, tensor in tensors.items() if tensor.shape[:2] == mask.shape)


def _filled(tensor: Tensor, mask: Tensor | None) -> Tensor:
    """Padding repeats the task's first real row: a mask does not stop a NaN or a zero divisor."""
    if mask is None or bool(mask.all()):
        return tensor
    first = mask.to(torch.int8).argmax(1, keepdim=True)
    shape = first.shape + (1,) * (tensor.ndim - 2)
    real = tensor.gather(1, first.reshape(shape).expand(first.shape + tensor.shape[2:]))
    return torch.where(mask.reshape(mask.shape + (1,) * (tensor.ndim - 2)), tensor, real)


def _as_tensors(values: dict[str, Any], mask: Tensor | None) -> tuple[dict[str, Tensor], Any]:
    """Arrays as tensors; lists with one array per task padded to one shape, with their mask."""
    lists = {k: [torch.as_tensor(v) for v in vs] for k, vs in values.items() if _is_list(vs)}
    if not lists:
        return {k: torch.as_tensor(v) for k, v in values.items()}, mask
    if mask is not None:
        raise InputError("mask= goes with padded tensors; lists of tasks are padded by themselves")
    lengths = torch.tensor([len(task) for task in next(iter(lists.values()))])
    for name, tasks in lists.items():
        if [len(task) for task in tasks] != lengths.tolist():
            raise InputError(f"the tasks of {name!r} have other numbers of rows than the others")
    width = int(lengths.max())
    padded = {k: torch.stack([_pad(t, len(t), width) for t in ts]) for k, ts in lists.items()}
    rest = {k: torch.as_tensor(v) for k, v in values.items() if k not in lists}
    tensors = {k: padded[k] if k in padded else rest[k] for k in values}
    return tensors, torch.arange(width) < lengths[:, None]


def _is_list(values: Any) -> bool:
    return isinstance(values, (list, tuple)) and len(values) > 0 and hasattr(values[0], "shape")


def _pad(tensor: Tensor, length: int, width: int) -> Tensor:
    """Repeat the first row up to `width` rows; tensors without a row axis stay as they are."""
    if tensor.ndim == 0 or len(tensor) != length or length == width:
        return tensor
    return torch.cat([tensor, tensor[:1].expand(width - length, *tensor.shape[1:])])
