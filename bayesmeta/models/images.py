"""The networks of the few-shot literature, every batch normalisation with a stated policy."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from bayesmeta.likelihoods import Categorical
from bayesmeta.models.model import Model
from bayesmeta.results import InputError, check_whole

KERNEL = 3
HALVINGS = 4
AXES = 3


def conv4(
    ways: int,
    shape: tuple[int, int, int] = (1, 28, 28),
    *,
    filters: int = 64,
    pool: bool = False,
    batch_norm: str = "transductive",
    chunk_size: int | None = None,
    precision: str | None = None,
    seed: int = 0,
) -> Model:
    """The convolutional network of the few-shot papers, all its weights adapted.

        4 × [3 × 3 convolution, batch normalisation, ReLU, half the size], then one linear layer

    The convolutions have no biases, which the normalisation would take away again: their gradient
    is rounding, and Adam would make steps of full length of it.

    Args:
        ways: classes of a task.
        shape: (channel, height, width) of an image.
        filters: of every convolution; the papers take 64 for Omniglot, 32 for mini-ImageNet.
        pool: halve by 2 × 2 maxima, as for mini-ImageNet, instead of by strides of 2.
        batch_norm: whose statistics: "support" or "transductive" (the papers'); see
            `models.normalisation`. `frozen_on` of the model makes one with frozen statistics.
        chunk_size: tasks at a time, which bounds memory; None: all.
        precision: "float32", "tf32" or "bfloat16"; see `models.precision`.
        seed: of the initial weights; the global random state is left alone.

    References:
        Vinyals et al. (2016), "Matching networks", section 4; strides as in Finn et al. (2017).

    Example:
        >>> model = conv4(5)
        >>> model.dim, model.adapted[0]
        (112965, 'conv1.weight')
    """
    spec = {"kind": "conv4", "ways": ways, "shape": list(shape), "filters": filters, "pool": pool}
    return _model(spec, batch_norm, seed, chunk_size, precision)


def dense(
    ways: int,
    shape: tuple[int, int, int] = (1, 28, 28),
    *,
    widths: tuple[int, ...] = (256, 128, 64, 64),
    batch_norm: str = "transductive",
    chunk_size: int | None = None,
    precision: str | None = None,
    seed: int = 0,
) -> Model:
    """The fully connected network of Finn et al. (2017) for Omniglot, all its weights adapted.

        len(widths) × [linear, batch normalisation, ReLU], then one linear layer

    Args:
        ways, shape, batch_norm, chunk_size, precision, seed: as in `conv4`.
        widths: hidden units per layer.
    """
    spec = {"kind": "dense", "ways": ways, "shape": list(shape), "widths": list(widths)}
    return _model(spec, batch_norm, seed, chunk_size, precision)


def build(spec: dict[str, Any]) -> Model:
    """Rebuild one of these models from its record."""
    options = spec.get("chunk_size"), spec.get("precision")
    return _model(spec, spec["batch_norm"], spec["seed"], *options)


def _model(
    spec: dict[str, Any],
    batch_norm: str,
    seed: int,
    chunk_size: int | None,
    precision: str | None,
) -> Model:
    check_whole("seed", seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = module_of(spec)
    options = {"batch_norm": batch_norm, "chunk_size": chunk_size, "precision": precision}
    record = spec | {"seed": seed} | options
    return Model(module, Categorical(spec["ways"]), spec=record, **options)


def module_of(spec: dict[str, Any]) -> nn.Sequential:
    """The layers of a record, before anybody says whose statistics they normalise with."""
    _check_sizes(spec)
    return KINDS[spec["kind"]](spec)


def _check_sizes(spec: dict[str, Any]) -> None:
    check_whole("ways", spec["ways"], least=2)
    if len(spec["shape"]) != AXES:
        raise InputError(f"shape={tuple(spec['shape'])}: give (channel, height, width)")
    sizes = {"shape": spec["shape"], "filters": [spec.get("filters", 1)]}
    for name, values in (sizes | {"widths": spec.get("widths", [])}).items():
        for value in values:
            check_whole(name, value, least=1)


def _convolutions(spec: dict[str, Any]) -> nn.Sequential:
    channels, height, width = spec["shape"]
    filters, pool = spec["filters"], spec["pool"]
    module = nn.Sequential()
    for i in range(HALVINGS):
        convolution = nn.Conv2d(
            channels, filters, KERNEL, padding=1, stride=1 if pool else 2, bias=False
        )
        module.add_module(f"conv{i + 1}", convolution)
        module.add_module(f"norm{i + 1}", nn.BatchNorm2d(filters))
        module.add_module(f"relu{i + 1}", nn.ReLU())
        if pool:
            module.add_module(f"pool{i + 1}", nn.MaxPool2d(2))
        channels = filters
        height, width = ((side // 2 if pool else math.ceil(side / 2)) for side in (height, width))
    if min(height, width) < 1:
        raise InputError(
            f"images of {spec['shape'][1:]} are too small to be halved {HALVINGS} times"
        )
    module.add_module("flatten", nn.Flatten())
    module.add_module("head", nn.Linear(filters * height * width, spec["ways"]))
    return module


def _linears(spec: dict[str, Any]) -> nn.Sequential:
    module = nn.Sequential()
    module.add_module("flatten", nn.Flatten())
    inputs = math.prod(spec["shape"])
    for i, width in enumerate(spec["widths"]):
        module.add_module(f"linear{i + 1}", nn.Linear(inputs, width, bias=False))
        module.add_module(f"norm{i + 1}", nn.BatchNorm1d(width))
        module.add_module(f"relu{i + 1}", nn.ReLU())
        inputs = width
    module.add_module("head", nn.Linear(inputs, spec["ways"]))
    return module


KINDS = {"conv4": _convolutions, "dense": _linears}
