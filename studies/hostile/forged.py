"""What a hostile person writes into a run and then seals: every field, and the numbers."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from studies.hostile.damage import NUMBERS, sealed_again

Forge = Callable[[Path, random.Random], None]
DEEP: Any = 0
for _ in range(400):
    DEEP = [DEEP]
WRONG_TYPES = (None, True, 0.5, "x", [], {}, ["x"], {"x": 1}, DEEP)
WRONG_VALUES = (
    -1, 0, 1, 3, 10**12, 10**30, -(10**12), 1e308, 1e-308, float("nan"), float("inf"), "",
    "../../../etc/passwd", "/etc/passwd", "a\0b", "\ud800", "gamma", "x" * 10**5,
)  # fmt: skip
SPECS = (
    {"kind": "mlp", "widths": [1, 10**12, 1], "seed": 0},
    {"kind": "mlp", "widths": [1, 30000, 30000, 1], "seed": 0},
    {"kind": "mlp", "widths": [1, -3, 1], "seed": 0},
    {"kind": "mlp", "widths": [1] * 10**6, "seed": 0},
    {"kind": "mlp", "widths": [1, 2.5, 1], "seed": 0},
    {"kind": "mlp", "widths": [], "seed": 0},
    {"kind": "linear", "adapted": 10**12, "shared": 0, "intercept": True, "names": []},
    {"kind": "linear", "adapted": 2, "shared": 10**12, "intercept": True, "names": []},
    {"kind": "linear", "adapted": 3 * 10**8, "shared": 0, "intercept": True, "names": []},
    {"kind": "conv4", "ways": 10**12, "shape": [1, 8, 8], "filters": 4, "pool": False},
    {"kind": "conv4", "ways": 3, "shape": [1, 8, 8], "filters": 10**6, "pool": False},
    {"kind": "conv4", "ways": 3, "shape": [1, 10**9, 10**9], "filters": 4, "pool": False},
    {"kind": "dense", "ways": 3, "shape": [1, 8, 8], "widths": [10**12]},
    {"kind": "os.system"},
)  # fmt: skip
LIKELIHOODS = (
    {"name": "unknown"},
    {"name": "gaussian", "scale": -1.0},
    {"name": "gaussian", "scale": "x"},
    {"name": "student_t", "scale": None, "df": 4.0, "nodes": 10**12},
    {"name": "student_t", "scale": None, "df": 4.0, "nodes": 20000},
    {"name": "categorical", "classes": 10**12, "nodes": 128},
    {"name": "categorical", "classes": 3, "nodes": 10**10},
    {"name": "negative_binomial", "concentration": -3},
    {"name": "bernoulli", "nodes": 0},
)


def _field(values: tuple[Any, ...]) -> Forge:
    def forged(run: Path, chance: random.Random) -> None:
        record = _record(run)
        path = chance.choice(list(_paths(record)))
        sealed_again(run, _with(record, path, chance.choice(values)))

    return forged


def _removed(run: Path, chance: random.Random) -> None:
    record = _record(run)
    path = chance.choice([p for p in _paths(record) if isinstance(p[-1], str)])
    place = record
    for key in path[:-1]:
        place = place[key]
    del place[path[-1]]
    sealed_again(run, record if "files" in record else record | {"files": {}})


def _added(run: Path, chance: random.Random) -> None:
    record = _record(run)
    path = chance.choice([(), *(p for p in _paths(record) if isinstance(_at(record, p), dict))])
    name = chance.choice(("unknown", "../../x", "__class__", "forward", ""))
    sealed_again(run, _with(record, (*path, name), chance.choice(WRONG_TYPES)))


def _note(run: Path, chance: random.Random) -> None:
    """What is no damage: the words of a note, the seconds a fit took."""
    record = _record(run)
    record["result"]["notes"] = ["Somebody wrote this."]
    record["result"]["seconds"] = chance.random()
    sealed_again(run, record)


def _spec(run: Path, chance: random.Random) -> None:
    record = _record(run)
    record["model"] = (record["model"] or {}) | chance.choice(SPECS)
    sealed_again(run, record)


def _likelihood(run: Path, chance: random.Random) -> None:
    sealed_again(run, _record(run) | {"likelihood": chance.choice(LIKELIHOODS)})


def _text(run: Path, chance: random.Random) -> None:
    """JSON that means more than one thing, or nothing; the seal of what Python reads is right."""
    sealed_again(run)
    path = run / "run.json"
    text = path.read_text("utf-8")
    path.write_text(
        chance.choice(
            (
                '{"seed": 12345, ' + text[1:],
                '{"result": {"noise": 1e9}, ' + text[1:],
                "[" * 10**5 + text,
                text + "{}",
                text.replace('"seed": 0', '"seed": 0e0'),
                text.replace('"schema": 3', '"schema": 3.0'),
                "\ufeff" + text,
                "[1, 2]",
                "null",
                '"run"',
            )
        ),
        "utf-8",
    )


def _schema(run: Path, chance: random.Random) -> None:
    schema = chance.choice((0, 1, 2, 4, 99, -1, "3", None, 3.5, 10**30))
    sealed_again(run, _record(run) | {"schema": schema})


def _values(run: Path, chance: random.Random) -> None:
    """NaN, infinity and huge numbers among the numbers themselves."""
    path, tensors = _tensors(run, chance)
    name = chance.choice(list(tensors))
    flat = tensors[name].flatten().clone()
    if flat.numel():
        values = (torch.nan, torch.inf, -torch.inf, 1e30) if flat.is_floating_point() else (9, -9)
        wanted = chance.choice(values)
        flat[chance.randrange(flat.numel())] = bool(wanted) if flat.dtype == torch.bool else wanted
    tensors[name] = flat.reshape(tensors[name].shape)
    save_file(tensors, path)
    sealed_again(run)


def _shapes(run: Path, chance: random.Random) -> None:
    """Tensors of another shape or kind, missing, or too many."""
    path, tensors = _tensors(run, chance)
    name = chance.choice(list(tensors))
    tensor, what = tensors[name], chance.randrange(6)
    if what == 0:
        tensors[name] = tensor[..., None].contiguous()
    elif what == 1:
        tensors[name] = torch.cat([tensor, tensor], -1).contiguous() if tensor.ndim else tensor
    elif what == 2:
        tensors[name] = tensor[:0].contiguous() if tensor.ndim else tensor[None]
    elif what == 3:
        tensors[name] = tensor.to(torch.int8 if tensor.is_floating_point() else torch.float64)
    elif what == 4:
        del tensors[name]
    else:
        tensors[chance.choice(("shared.x.y", "prior.factor", "draws", "x"))] = torch.zeros(3, 3)
    save_file(tensors, path)
    sealed_again(run)


def _header(run: Path, chance: random.Random) -> None:
    name = chance.choice(("prior.safetensors", "posterior.safetensors", "tasks.safetensors"))
    NUMBERS["sizes declared"](run, name, run, chance)
    sealed_again(run)


def _log(run: Path, chance: random.Random) -> None:
    lines = ('{"step": 0, "M": "x"}', '{"M": null}', "[]", "{", "[" * 10**5, '{"M": 1e999}', "\0")
    (run / "log.jsonl").write_text(chance.choice(lines) + "\n", "utf-8")
    sealed_again(run)


FORGERIES: dict[str, Forge] = {
    "field of another type": _field(WRONG_TYPES),
    "field of another value": _field(WRONG_VALUES),
    "field removed": _removed,
    "field added": _added,
    "model": _spec,
    "likelihood": _likelihood,
    "JSON": _text,
    "schema": _schema,
    "values": _values,
    "shapes": _shapes,
    "sizes declared, sealed": _header,
    "log": _log,
    "a note": _note,
}


def _record(run: Path) -> dict[str, Any]:
    return json.loads((run / "run.json").read_text("utf-8"))


def _tensors(run: Path, chance: random.Random) -> tuple[Path, dict[str, torch.Tensor]]:
    names = ("prior.safetensors", "posterior.safetensors", "tasks.safetensors")
    path = run / chance.choice(names)
    return path, load_file(path)


def _paths(value: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every field, the fields of fields included."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inside in items:
        if before or key not in ("seal", "files"):
            yield (*before, key)
            if isinstance(inside, dict | list):
                yield from _paths(inside, (*before, key))


def _at(record: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        record = record[key]
    return record


def _with(record: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(record)
    _at(changed, path[:-1])[path[-1]] = value
    return changed
