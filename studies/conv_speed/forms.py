"""Ways of writing a convolution whose weights differ from task to task.

    grouped     nn.Conv2d, which vmap turns into one convolution with a group per task
    unfold      patches by torch's unfold, then a batched product
    slices      nine strided slices beside each other, channels last, then a batched product
    written     the grouped convolution written out for all tasks, without vmap

The first three are networks that a model is made of; the last is no function of one task.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

from bayesmeta.models import Model
from bayesmeta.models.normalisation import TaskNorm
from bayesmeta.tasks import TaskBatch

MODULES = ("grouped", "unfold", "slices")


class Unfold(nn.Module):
    """A 3 × 3 convolution by strides of 2: the product of its weights and the input's patches."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.weight = layer.weight

    def forward(self, x: Tensor) -> Tensor:
        sides = [(side + 1) // 2 for side in x.shape[2:]]
        patches = functional.unfold(x, 3, padding=1, stride=2)
        return (self.weight.flatten(1) @ patches).unflatten(2, sides)


class Slices(nn.Module):
    """The same of x (image, height, width, channel), whose patches are nine slices."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.weight = layer.weight

    def forward(self, x: Tensor) -> Tensor:
        down, across = (2 * ((side + 1) // 2) - 1 for side in x.shape[1:3])
        x = functional.pad(x, (0, 0, 1, 1, 1, 1))
        patches = torch.cat(
            [x[:, i : i + down : 2, j : j + across : 2] for i in range(3) for j in range(3)], -1
        )
        return patches @ self.weight.permute(2, 3, 1, 0).flatten(0, 2)


class NormLast(nn.Module):
    """`TaskNorm` of x (image, height, width, channel)."""

    def __init__(self, layer: TaskNorm) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = layer.weight, layer.bias, layer.eps

    def forward(self, x: Tensor) -> Tensor:
        over = (0, 1, 2)
        centred = x - x.mean(over, keepdim=True)
        variance = centred.square().mean(over, keepdim=True)
        return centred * ((variance + self.eps).rsqrt() * self.weight) + self.bias


class Last(nn.Module):
    """Channels to the last place."""

    def forward(self, x: Tensor) -> Tensor:
        return x.movedim(1, -1)


class First(nn.Module):
    """Channels back to their place, and all of an image in one row."""

    def forward(self, x: Tensor) -> Tensor:
        return x.movedim(-1, 1).flatten(1)


REPLACED = {
    "grouped": {},
    "unfold": {nn.Conv2d: Unfold},
    "slices": {nn.Conv2d: Slices, TaskNorm: NormLast, nn.Flatten: lambda _: First()},
}


def rewritten(model: Model, form: str) -> Model:
    """Conv4 with its convolutions in another form, and the same weights."""
    layers = copy.deepcopy(model.module)
    assert isinstance(layers, nn.Sequential)
    module = nn.Sequential()
    if form == "slices":
        module.add_module("last", Last())
    for name, layer in layers.named_children():
        module.add_module(name, REPLACED[form].get(type(layer), lambda same: same)(layer))
    policy = None if TaskNorm in REPLACED[form] else model.batch_norm
    return Model(module, model.likelihood, chunk_size=model.chunk_size, batch_norm=policy)


def written(
    model: Model, theta: Tensor, batch: TaskBatch, *, memory_format: torch.memory_format
) -> Tensor:
    """(task,) f_i(θ_i) of Conv4, all tasks' channels beside each other in one network."""
    tasks, rows = batch.tensors["x"].shape[:2]
    layout = zip(model.adapted, theta.split(model.sizes, 1), model.shapes, strict=True)
    weights = {name: part.reshape(tasks, *shape) for name, part, shape in layout}
    x = batch.tensors["x"].movedim(0, 1).flatten(1, 2)
    kernels = [name.removesuffix(".weight") for name in weights if name.startswith("conv")]
    for place, name in enumerate(kernels, 1):
        kernel = weights[f"{name}.weight"].flatten(0, 1).contiguous(memory_format=memory_format)
        x = x.contiguous(memory_format=memory_format)
        x = functional.conv2d(x, kernel, stride=2, padding=1, groups=tasks)
        scale, shift = (
            weights[f"norm{place}.{key}"].reshape(-1, 1, 1) for key in ("weight", "bias")
        )
        centred = x - x.mean((0, 2, 3), keepdim=True)
        size = (centred.square().mean((0, 2, 3), keepdim=True) + 1e-5).rsqrt()
        x = functional.relu(centred * (size * scale) + shift)
    features = x.unflatten(1, (tasks, -1)).flatten(2).movedim(1, 0)
    eta = torch.baddbmm(weights["head.bias"][:, None], features, weights["head.weight"].mT)
    y = batch.tensors["y"]
    losses = functional.cross_entropy(eta.flatten(0, 1), y.flatten(), reduction="none")
    return losses.reshape(tasks, rows).sum(1)
