"""What a module may not do under a fit: remember between calls, or draw random numbers.

A loss must be a function of θ, and a task's loss of that task alone: every solver calls it as often
as it likes, for all tasks at once.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from bayesmeta.models.model import Model
from bayesmeta.results import InputError
from bayesmeta.tasks import TaskFamily

WITH_DROPOUT = (nn.RNNBase, nn.MultiheadAttention)


def ready(model: Model, family: TaskFamily) -> Model:
    """The model bound to a family that it can be applied to.

    Raises:
        InputError: as `check_modules` and `check_task`.
    """
    check_modules(model, family)
    model = model.bind(family)
    check_task(model, family)
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


def check_modules(model: Model, family: TaskFamily) -> None:
    """Refuse running statistics, dropout, and statistics over the rows of padded tasks.

    Args:
        model: its module in the mode, training or eval, in which it is to be fitted.
        family: the tasks.

    Raises:
        InputError: what was found, by the module's name, why it cannot be, and what to do.
    """
    for path, module in model.named_modules():
        name = path.removeprefix("module.")
        if isinstance(module, _NormBase):
            _check_norm(name, module, family)
        elif module.training and _dropout(module) > 0:
            raise InputError(
                f"the module {name!r} is a {type(module).__name__} with dropout p="
                f"{_dropout(module):g} in training mode, so the loss is random and no function of "
                "the weights: set p=0, or call module.eval() before the fit"
            )


def _check_norm(name: str, module: _NormBase, family: TaskFamily) -> None:
    kind = type(module).__name__
    if module.training and module.track_running_stats:
        raise InputError(
            f"the module {name!r} is a {kind} in training mode, whose running statistics are "
            "changed by every call and shared by all tasks: use LayerNorm or GroupNorm, or "
            "track_running_stats=False (each task's own rows), or call module.eval() to freeze them"
        )
    over_rows = "Batch" in kind and (module.training or not module.track_running_stats)
    if over_rows and family.ragged:
        raise InputError(
            f"the module {name!r} is a {kind} with statistics over a task's rows, and tasks differ "
            "in their number of rows, so their padding would count as data: use LayerNorm or "
            "GroupNorm, or tasks of equal size"
        )


def _dropout(module: nn.Module) -> float:
    """The probability with which a module drops anything in training mode."""
    if isinstance(module, _DropoutNd):
        return module.p
    return float(module.dropout) if isinstance(module, WITH_DROPOUT) else 0.0


def check_task(model: Model, family: TaskFamily) -> None:
    """Say what does not fit together before vmap says it in its own words.

    Raises:
        InputError: the model cannot be applied to a task, or not to all of them at once.
    """
    likelihood = model.likelihood
    if likelihood is not None and likelihood.responses == "real":
        kind = str(model.response(family.tensors).dtype).removeprefix("torch.")
        if "float" not in kind:
            raise InputError(
                f"y is {kind}, and a {likelihood.name} likelihood takes real numbers: y.double()"
            )
    first = family.batch(torch.tensor([0]))
    tensors = {k: v[0] for k, v in first.tensors.items()}
    mask = None if first.mask is None else first.mask[0]
    shapes = ", ".join(f"{k} {tuple(v.shape)}" for k, v in tensors.items())
    columns = f"; the columns of x are {list(family.table.columns)}" if family.table else ""
    try:
        with torch.no_grad():
            energy = model.energy(model.start, model.shared, tensors, mask)
            rows = None
            if model.likelihood is not None and mask is not None:
                rows = model.log_prob_task(model.start, model.shared, tensors)
    except InputError:
        raise
    except (RuntimeError, TypeError, IndexError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"the model cannot be applied to a task with {shapes}{columns}: {reason}"
        ) from error
    if energy.shape != () or (rows is not None and mask is not None and rows.shape != mask.shape):
        got = tuple(energy.shape if rows is None else rows.shape)
        raise InputError(
            f"for a task with {shapes} the model gives {got} values where one number a "
            f"{'task' if rows is None else 'row'} is needed: sum an energy over its rows, and let "
            "a module give one output per row"
        )
    try:
        with torch.no_grad():
            model.energies(model.start.expand(1, -1), first)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            "the model works on one task but not on all tasks at once (torch.func.vmap), which "
            "allows no random numbers, no changes of buffers or inputs, no branches on values and "
            f"not every recurrent layer: {reason}"
        ) from error
