"""Whether a model, its tasks and their query sets go together, said before a solver finds out."""

from __future__ import annotations

import torch
from torch import Tensor

from bayesmeta.models.model import Model
from bayesmeta.models.modules import check_modules
from bayesmeta.results import InputError
from bayesmeta.tasks import TaskFamily


def ready(model: Model, family: TaskFamily) -> Model:
    """The model bound to a family that it can be applied to.

    Raises:
        InputError: it cannot, and why: a module that remembers or is random, whole numbers for a
            real response, shapes that do not fit, operations that `torch.func.vmap` cannot take.
    """
    check_modules(model, family)
    model = model.bind(family)
    _check_response(model, family)
    _check_one_task(model, family)
    _check_vmap(model, family)
    return model


def paired(query: TaskFamily, family: TaskFamily, model: Model) -> TaskFamily:
    """Query sets in the order, dtype and place of their tasks, by name where both have names.

    Raises:
        InputError: they are not those of the tasks, or the model cannot be applied to them.
    """
    if len(query) != len(family):
        raise InputError(f"{len(query)} query tasks for {len(family)} tasks: give one for each")
    floating = [t for t in family.tensors.values() if t.is_floating_point()]
    query = query.to(device=family.device, dtype=floating[0].dtype if floating else None)
    unnamed = tuple(map(str, range(len(family))))
    if set(query.names) == set(family.names):
        query = query if query.names == family.names else query.subset(list(family.names))
    elif unnamed not in (query.names, family.names):
        stray = next(name for name in query.names if name not in family.names)
        raise InputError(f"query task {stray!r} is not among the tasks: give both the same names")
    ready(model, query)
    return query


def check_ways(model: Model, stream: object) -> None:
    """Refuse a model that tells more or fewer classes apart than the tasks of a stream have.

    Raises:
        InputError: both numbers.
    """
    classes, ways = getattr(model.likelihood, "classes", None), getattr(stream, "ways", None)
    if ways != classes and ways is not None:
        raise InputError(f"the model tells {classes} classes apart, the tasks have {ways} ways")


def _check_response(model: Model, family: TaskFamily) -> None:
    likelihood = model.likelihood
    if likelihood is None or likelihood.responses != "real":
        return
    y = model.response(family.tensors)
    if not y.is_floating_point():
        kind = str(y.dtype).removeprefix("torch.")
        raise InputError(
            f"y is {kind}, and a {likelihood.name} likelihood takes real numbers: use y.double()"
        )


def _check_one_task(model: Model, family: TaskFamily) -> None:
    first = family.batch(torch.tensor([0]))
    tensors = {k: v[0] for k, v in first.tensors.items()}
    mask = None if first.mask is None else first.mask[0]
    shapes = ", ".join(f"{k} {tuple(v.shape)}" for k, v in tensors.items())
    columns = f"; the columns of x are {list(family.table.columns)}" if family.table else ""
    rows: Tensor | None = None
    try:
        with torch.no_grad():
            energy = model.energy(model.start, model.shared, tensors, mask)
            if model.likelihood is not None and mask is not None:
                rows = model.log_prob_task(model.start, model.shared, tensors)
    except InputError:
        raise
    except (RuntimeError, TypeError, IndexError, ValueError) as error:
        raise InputError(
            f"the model cannot be applied to a task with {shapes}{columns}: {_reason(error)}"
        ) from error
    if energy.shape != () or (rows is not None and mask is not None and rows.shape != mask.shape):
        got = tuple(energy.shape if rows is None else rows.shape)
        raise InputError(
            f"for a task with {shapes} the model gives {got} values where one number a "
            f"{'task' if rows is None else 'row'} is needed: sum an energy over its rows, and let "
            "a module give one output per row"
        )


def _check_vmap(model: Model, family: TaskFamily) -> None:
    try:
        with torch.no_grad():
            model.energies(model.start.expand(1, -1), family.batch(torch.tensor([0])))
    except (RuntimeError, ValueError) as error:
        raise InputError(
            "the model works on one task but not on all tasks at once (torch.func.vmap), which "
            "allows no random numbers, no changes of buffers or inputs, no branches on values and "
            f"not every recurrent layer: {_reason(error)}"
        ) from error


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0]
