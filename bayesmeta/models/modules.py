"""What a module may not do under a fit: remember between calls, or draw random numbers.

A loss must be a function of θ, and a task's loss of that task alone: every solver calls it as often
as it likes, for all tasks at once.
"""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.dropout import _DropoutNd

from bayesmeta.models.model import Model
from bayesmeta.models.normalisation import TaskNorm
from bayesmeta.results import InputError
from bayesmeta.tasks import TaskFamily

WITH_DROPOUT = (nn.RNNBase, nn.MultiheadAttention)


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
        if isinstance(module, TaskNorm):
            _check_ragged(name, module, family)
        elif isinstance(module, _NormBase):
            _check_norm(name, module)
        elif module.training and _dropout(module) > 0:
            raise InputError(
                f"the module {name!r} is a {type(module).__name__} with dropout p="
                f"{_dropout(module):g} in training mode, so the loss is random and no function of "
                "the weights: set p=0, call module.eval() before the fit, or, for a nn.Dropout as "
                "the noise of an inner algorithm, give that algorithm dropout=True"
            )


def _check_norm(name: str, module: _NormBase) -> None:
    kind = type(module).__name__
    advice = "use LayerNorm or GroupNorm, "
    if isinstance(module, _BatchNorm):
        advice += 'or say whose statistics it is to use, bm.Model(..., batch_norm="support")'
    else:
        advice += "or track_running_stats=False, or call module.eval() to freeze them"
    if module.training and module.track_running_stats:
        raise InputError(
            f"the module {name!r} is a {kind} in training mode, whose running statistics are "
            f"changed by every call and shared by all tasks: {advice}"
        )
    if isinstance(module, _BatchNorm) and (module.training or not module.track_running_stats):
        raise InputError(
            f"the module {name!r} is a {kind} without running statistics, which takes those of "
            "whatever rows it is given: say whose they are to be, bm.Model(..., "
            'batch_norm="support"), or "transductive", which is what it does'
        )


def _check_ragged(name: str, module: TaskNorm, family: TaskFamily) -> None:
    if family.ragged and not module.frozen:
        raise InputError(
            f"the module {name!r} is a batch normalisation with statistics over a task's rows, "
            "and tasks differ in their number of rows, so their padding would count as data: use "
            "LayerNorm or GroupNorm, or tasks of equal size"
        )


def _dropout(module: nn.Module) -> float:
    """The probability with which a module drops anything in training mode."""
    if isinstance(module, _DropoutNd):
        return module.p
    return float(module.dropout) if isinstance(module, WITH_DROPOUT) else 0.0
