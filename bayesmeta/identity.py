"""What decides a fit's numbers, as a record: two fits with equal records are one fit.

It is compared where a fit goes on from a checkpoint, and the first differences are said in words.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from bayesmeta.models import Model

NAMED = 3
"""Options that are named, of those that differ."""
LONGEST = 40
"""Characters of a value that is worth printing; a hash is longer."""
WORDS = {
    "data": "to other data",
    "query": "to other query sets",
    "values": "from other values of the prior",
    "model.start": "from another start",
    "model.frozen": "with other frozen weights",
    "model.buffers": "with other buffers",
}


def of_model(given: Model, fitted: Model) -> dict[str, Any]:
    """What a model has in common with that of a fit that goes on: how it is made, and its numbers.

    Args:
        given: as it was given to the fit: what follows from the data is rounded by each device.
        fitted: the copy that is fitted.
    """
    adapted = {f"module.{name}" for name in fitted.adapted}
    start = {n: p for n, p in given.named_parameters() if n in adapted or p.requires_grad}
    frozen = {n: p for n, p in given.named_parameters() if n not in start}
    layers = dict(given.module.named_modules())
    loose = {
        f"{name}.{key}": value
        for name, layer in layers.items()
        for key, value in vars(layer).items()
        if isinstance(value, Tensor)
    }
    # In parts of how many tasks it is gone through changes no more than rounding.
    spec = {name: value for name, value in (given.spec or {}).items() if name != "chunk_size"}
    return spec | {
        "class": type(given).__name__,
        "function": _described(getattr(given, "fn", None)),
        "batch_norm": given.batch_norm,
        "precision": given.precision,
        "dtype": str(fitted.start.dtype),
        "likelihood": None if given.likelihood is None else given.likelihood.to_json(),
        "adapted": {n: list(s) for n, s in zip(fitted.adapted, fitted.shapes, strict=True)},
        "shared": {name: list(tensor.shape) for name, tensor in fitted.shared.items()},
        "layers": {name or "whole": _attributes(layer) for name, layer in layers.items()},
        "start": digest(start),
        "frozen": digest(frozen),
        "buffers": digest(dict(given.named_buffers()) | loose),
    }


def _attributes(layer: nn.Module) -> dict[str, Any]:
    """A layer's class and options."""
    own = {name: value for name, value in vars(layer).items() if not name.startswith("_")}
    return {"class": type(layer).__name__} | {name: _described(v) for name, v in own.items()}


def _described(value: Any) -> Any:
    """Numbers, words and lists of them as they are; of anything else what it is called."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Sequence):
        return [_described(one) for one in value]
    return getattr(value, "__name__", type(value).__name__)


def digest(tensors: Mapping[str, Tensor]) -> str:
    """sha256 of tensors and their names: equal numbers, equal digest."""
    found = hashlib.sha256()
    for part in content(tensors):
        found.update(part)
    return found.hexdigest()


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """What differs between two fits, and what to do about it; "" where they are one.

    Args:
        there: the record of the one that wrote.
        here: of the one that is asked for.
    """
    differs = list(differing(dict(there), dict(here)))
    if not differs:
        return ""
    adapts = bool(here.get("method") and here["method"].get("inner"))
    named = [(_called(name, adapts), *values) for name, *values in differs]
    cosine = any(name in ("steps", "outer_steps") for name, *_ in named)
    why = (
        "the step size falls to 0 along a cosine over all steps, so a fit that has begun "
        "cannot be made longer; give as many steps as there"
        if cosine
        else "make the same call again"
    )
    return f"{_in_words(named)}: {why}"


def differing(there: Any, here: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Where two nested dictionaries differ: the names on the way there, and both values."""
    if isinstance(there, dict) and isinstance(here, dict):
        for key in here | there:
            inside = f"{name}.{key}" if name else key
            yield from differing(there.get(key), here.get(key), inside)
    elif there != here and repr(there) != repr(here):  # a NaN is like another one
        yield name, there, here


def _called(name: str, adapts: bool) -> str:
    """What a person calls an option: those of a method by themselves."""
    group, _, option = name.partition(".")
    if group != "method":
        return name
    return f"outer_{option}" if adapts and option in ("steps", "lr", "tolerance") else option


def _in_words(differs: Sequence[tuple[str, Any, Any]]) -> str:
    """What differs, for a person: options with both values, the rest in words."""
    words, options = [], []
    for name, there, here in differs:
        group = name.partition(".")[0]
        if name in WORDS:
            words.append(WORDS[name])
        elif max(len(repr(there)), len(repr(here))) <= LONGEST:
            options.append(f"{name} = {there!r} there, {here!r} here")
        else:
            words.append(WORDS.get(group, f"with another {name}"))
    more = len(options) - NAMED
    named = "; ".join(options[:NAMED]) + (f"; and {more} more" if more > 0 else "")
    words = list(dict.fromkeys(words)) + ([f"with other options ({named})"] if options else [])
    return " and ".join(words)


def content(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """The names of tensors and their bytes, in the order of the names."""
    for name in sorted(tensors):
        numbers = tensors[name].detach().cpu().contiguous().flatten()
        yield name.encode()
        yield numbers.view(torch.uint8).numpy().data
