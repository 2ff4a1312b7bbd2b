"""Dropout whose dropped units are an argument, like all noise here.

`nn.Dropout` draws from a global generator, which no path can run again, and which `vmap` refuses.
In its place stands a layer that multiplies by a buffer: 1, unless a task's tensors say otherwise.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bayesmeta.models.model import KEEP, Model
from bayesmeta.results import InputError
from bayesmeta.tasks import TaskBatch, rowwise_names


class _Dropped(nn.Module):
    """x · keep / (1 − p) with keep given from outside; x itself where nothing is given."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.keep: Tensor
        self.register_buffer(KEEP, torch.ones(()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.keep


def replaceable(module: nn.Module) -> bool:
    """Whether a dropout layer's units can be given from outside."""
    return type(module) is nn.Dropout


def install(model: Model) -> None:
    """Put layers with given units in the place of the model's `nn.Dropout`.

    Raises:
        InputError: there is none with p > 0.
    """
    layers = [
        (name, layer)
        for name, layer in model.named_modules(remove_duplicate=False)  # one mask for each place
        if replaceable(layer) and getattr(layer, "p", 0.0) > 0
    ]
    for name, layer in layers:
        parent = model.get_submodule(name.rpartition(".")[0])
        setattr(parent, name.rpartition(".")[2], _Dropped(float(getattr(layer, "p", 0.0))))
    if not layers and not any(isinstance(layer, _Dropped) for layer in model.modules()):
        raise InputError(
            "dropout=True, and the module has no nn.Dropout with p > 0: give it one, or leave "
            "dropout= out"
        )


def dropped_shapes(
    model: Model, support: TaskBatch, rows: int | None
) -> dict[str, tuple[torch.Size, float]]:
    """By layer, the shape of what it sees in one task's minibatch, and its p.

    Args:
        model: with the layers installed.
        support: the first task of which is tried.
        rows: in a minibatch; None: all.

    Raises:
        InputError: one layer is called in two places, which would drop the same units.
    """
    layers = {n: layer for n, layer in model.named_modules() if isinstance(layer, _Dropped)}
    rowwise = support.rowwise
    rowwise = rowwise_names(support.tensors, support.mask) if rowwise is None else rowwise
    tensors = {
        name: tensor[0, :rows] if name in rowwise else tensor[0]
        for name, tensor in support.tensors.items()
    }
    calls: dict[str, list[torch.Size]] = {name: [] for name in layers}
    hooks = [
        layer.register_forward_hook(
            lambda _, args, out, seen=calls[name]: seen.append(args[0].shape)
        )
        for name, layer in layers.items()
    ]
    with torch.no_grad():
        model.predict_task(model.start, model.shared, tensors)
    for hook in hooks:
        hook.remove()
    for name, seen in calls.items():
        if len(seen) > 1:
            raise InputError(
                f"the dropout layer {name.removeprefix('module.')!r} is used {len(seen)} times, "
                "and would drop the same units each time: give every place a layer of its own"
            )
    return {name: (seen[0], layers[name].p) for name, seen in calls.items() if seen}


def keeping(model: Model, keep: dict[str, Tensor], like: Tensor) -> dict[str, Tensor]:
    """The tensors that hold every layer's factor, 0 or 1 / (1 − p), by their buffers' names."""
    found = {}
    for name, units in keep.items():
        layer = model.get_submodule(name)
        assert isinstance(layer, _Dropped)
        found[f"{name}.{KEEP}"] = units.to(like.dtype) / (1 - layer.p if layer.p < 1 else 1)
    return found
