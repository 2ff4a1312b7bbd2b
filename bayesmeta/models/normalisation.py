"""Batch normalisation that says whose statistics it uses.

`nn.BatchNorm` remembers between calls, and which rows its statistics come from depends on what it
was last given. A few-shot model whose query rows are normalised together sees the whole query set
at once (it is *transductive*), and scores several points more than one that sees a row at a time.
So the policy is written down:

    support         statistics of the task's support rows, for its query rows too (inductive)
    transductive    statistics of whatever rows are predicted together
    frozen          the layer's running statistics, held

Which of the first two holds is decided by what a query set brings: its *context*, the support rows
that pass through the network before its own and are counted in the statistics in their place.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bayesmeta.results import InputError
from bayesmeta.tasks import TaskBatch

POLICIES = ("support", "transductive", "frozen")
CONTEXT = "context"
COUNTED = "counted"


class TaskNorm(nn.Module):
    """Normalises every channel over the rows (and places) of one task.

        (x − mean) / √(var + ε) · weight + bias

    Args:
        layer: the batch normalisation in whose place it stands; its weights are kept.
        frozen: use the layer's running statistics.
    """

    def __init__(self, layer: _BatchNorm, *, frozen: bool) -> None:
        super().__init__()
        self.weight, self.bias, self.eps, self.frozen = layer.weight, layer.bias, layer.eps, frozen
        self.counted: Tensor
        self.running_mean: Tensor | None
        self.running_var: Tensor | None
        self.register_buffer(COUNTED, torch.ones(()), persistent=False)
        self.register_buffer("running_mean", layer.running_mean if frozen else None)
        self.register_buffer("running_var", layer.running_var if frozen else None)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised x (row, channel, ...)."""
        shape = (1, -1, *[1] * (x.ndim - 2))
        x = x.float() if x.dtype == torch.bfloat16 else x  # a mean of many has more bits than one
        centred, variance = self._moments(x, shape)
        scale = (variance + self.eps).rsqrt()
        if self.weight is None:
            return centred * scale
        scale = scale * self.weight.reshape(shape)
        return torch.addcmul(self.bias.reshape(shape), centred, scale)

    def _moments(self, x: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """x − mean, and the variance, of every channel."""
        if self.frozen:
            mean, variance = self.get_buffer("running_mean"), self.get_buffer("running_var")
            return x - mean.reshape(shape), variance.reshape(shape)
        over = (0, *range(2, x.ndim))
        if self.counted.ndim == 0:
            if x.numel() == x.shape[1]:
                raise InputError(
                    "batch normalisation of a single row has no variance to divide by: give every "
                    "task more rows, or use LayerNorm or frozen statistics"
                )
            # Sums: the derivative of a mean divides a tensor as large as x.
            each = x.shape[1] / x.numel()
            centred = x - x.sum(over, keepdim=True) * each
            return centred, (centred * centred).sum(over, keepdim=True) * each
        share = self.counted / (self.counted.sum() * x[0, 0].numel())
        share = share.reshape(-1, *[1] * (x.ndim - 1))
        centred = x - (x * share).sum(over, keepdim=True)
        return centred, (centred * centred * share).sum(over, keepdim=True)

    def freeze(self, x: Tensor) -> None:
        """Hold the statistics that these rows have, from now on."""
        over = (0, *range(2, x.ndim))
        self.running_mean, self.running_var = x.mean(over), x.var(over, correction=0)
        self.frozen = True


def with_policy(module: nn.Module, policy: str | None) -> nn.Module:
    """A copy of a module in which every batch normalisation follows the policy.

    Args:
        module: with `nn.BatchNorm1d`, `2d` or `3d` layers.
        policy: "support", "transductive" or "frozen"; None: the module itself, as it is.

    Raises:
        InputError: no such policy, no such layer, a frozen one without statistics, or no policy
            where another model's policy is still in the module.

    Example:
        >>> layer = nn.BatchNorm1d(1)
        >>> with_policy(nn.Sequential(layer), "support")(torch.tensor([[1.0], [3.0]])).round()
        tensor([[-1.],
                [ 1.]], grad_fn=<RoundBackward0>)
    """
    earlier = [name for name, _ in task_norms(module)]
    if policy is None and earlier:
        raise InputError(
            f"the layer {earlier[0]!r} comes from a model that says whose statistics it uses, and "
            'this one does not: give batch_norm="support" or "transductive"'
        )
    if policy is None:
        return module
    if policy not in POLICIES:
        raise InputError(f"batch_norm={policy!r}: give one of {', '.join(POLICIES)}")
    module = copy.deepcopy(module)
    layers = [
        (name, layer)
        for name, layer in module.named_modules(remove_duplicate=False)
        if isinstance(layer, _BatchNorm)
    ]
    if not layers and not earlier:
        raise InputError(
            f"batch_norm={policy!r}, and the module has no nn.BatchNorm layer: leave it out"
        )
    if policy == "frozen" and earlier:
        raise InputError(
            f"the layer {earlier[0]!r} takes statistics of a task's rows already, and has none of "
            "its own to freeze: use model.frozen_on(x), with rows x to take them from"
        )
    for name, layer in layers:
        if type(layer).forward is not _BatchNorm.forward:
            raise InputError(
                f"the layer {name!r} is a {type(layer).__name__} with a forward of its own, which "
                f"batch_norm={policy!r} would replace: put what it adds into a module around an "
                "nn.BatchNorm"
            )
        if policy == "frozen":
            _check_frozen(name, layer)
        if layer is module:
            return TaskNorm(layer, frozen=policy == "frozen")
        parent = module.get_submodule(name.rpartition(".")[0])
        setattr(parent, name.rpartition(".")[2], TaskNorm(layer, frozen=policy == "frozen"))
    return module


def frozen_on(module: nn.Module, x: Tensor) -> nn.Module:
    """A copy whose layers hold the statistics that x (row, ...) has at the present weights."""
    module = copy.deepcopy(module)
    layers = [layer for _, layer in task_norms(module)]
    # Before a layer runs, so that the next one sees what this one will give from now on.
    hooks = [layer.register_forward_pre_hook(_freeze) for layer in layers]
    with torch.no_grad():
        module(x)
    for hook in hooks:
        hook.remove()
    return module


def _freeze(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    assert isinstance(layer, TaskNorm)
    layer.freeze(inputs[0])


def _check_frozen(name: str, layer: _BatchNorm) -> None:
    seen = layer.num_batches_tracked
    if layer.running_mean is None or seen is None or int(seen) == 0:
        raise InputError(
            f"the layer {name!r} has no running statistics to freeze: call the module in training "
            'mode on rows of several tasks first, or use batch_norm="support"'
        )


def task_norms(module: nn.Module) -> Iterator[tuple[str, TaskNorm]]:
    """The layers whose statistics are a task's own, by name."""
    for name, layer in module.named_modules():
        if isinstance(layer, TaskNorm) and not layer.frozen:
            yield name, layer


def takes_statistics(module: nn.Module) -> bool:
    """Whether a layer has statistics of a task's own."""
    return any(True for _ in task_norms(module))


def in_context(module: nn.Module, query: TaskBatch, support: TaskBatch, x: str) -> TaskBatch:
    """Query sets that bring their task's support rows, from which alone statistics are taken.

    Args:
        module: by whose names the layers are told what counts.
        query, support: of the same tasks.
        x: name of the tensor of inputs.
    """
    inputs = support.tensors[x]
    mine = torch.ones(inputs.shape[:2]) if support.mask is None else support.mask
    rows = query.tensors[x].shape[1]
    counted = torch.cat([mine.to(inputs), inputs.new_zeros(len(query), rows)], 1)
    given = {f"{name}.{COUNTED}": counted for name, _ in task_norms(module)}
    return replace(query, tensors=query.tensors | {CONTEXT: inputs} | given)
