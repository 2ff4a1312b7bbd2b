"""A fit in numbers for other programs: the object of `bayesmeta fit --json`, part of run.json."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from bayesmeta.fitted import Fit

MOST_NAMED = 1000
"""Weights that are listed by name; of more, nobody looks one up, and their names fill megabytes."""
MOST_CORRELATED = 200


def result(fit: Fit) -> dict[str, Any]:
    """The object of `Fit.record`.

    Beyond 1000 weights `theta0` and `prior_sd` are empty, as `prior_correlation` is beyond 200:
    `weights` has their number and quartiles, and prior.safetensors every value.
    """
    prior = fit.prior
    mean, sd = prior.mean, None if prior.gaussian.is_point else prior.sd()
    few = len(prior.names) <= MOST_NAMED
    rows = list(zip(prior.names, mean.tolist(), strict=True)) if few else []
    spread = [None] * len(rows) if sd is None else sd.tolist()
    correlation = prior.correlation().tolist() if len(prior.names) <= MOST_CORRELATED else []
    return {
        "theta0": dict(rows),
        "prior_sd": {name: value for (name, _), value in zip(rows, spread, strict=False)},
        "prior_correlation": [[None if c != c else c for c in row] for row in correlation],
        "weights": {
            "number": len(prior.names),
            "theta0_quartiles": quartiles(mean),
            "prior_sd_quartiles": None if sd is None else quartiles(sd),
        },
        "shared": fit.shared,
        "noise": fit.noise,
        "log_evidence": fit.log_evidence if math.isfinite(fit.log_evidence) else None,
        "evidence_kind": fit.evidence_kind,
        "standard_errors": fit.standard_errors,
        "method": fit.method,
        "tasks": len(fit.family),
        "observations": fit.family.observations,
        "flagged": [{"task": f.task, "why": f.why} for f in fit.flagged],
        "notes": fit.notes,
        "seconds": fit.seconds,
        "stream": None if fit.stream is None else _short(fit.stream),
    }


def _short(stream: dict[str, Any]) -> dict[str, Any]:
    """What the tasks were drawn from, its classes counted."""
    return {k: len(v) if k in ("classes", "held_out") else v for k, v in stream.items()}


def shared_values(fit: Fit) -> dict[str, float | list[float]]:
    """ψ by name, as `Fit.shared` gives it."""
    values: dict[str, float | list[float]] = {}
    spec = fit.model.spec or {}
    for name, tensor in fit.model.shared_weights.items():
        flat = tensor.detach().flatten().tolist()
        if spec.get("shared_names") and name == "module.shared":
            values |= dict(zip(spec["shared_names"], flat, strict=True))
        else:
            values[name.removeprefix("module.")] = flat if len(flat) > 1 else flat[0]
    constants = {} if fit.likelihood is None else fit.likelihood.summary()
    learned = {k.rpartition("log_")[2] for k in fit.model.shared if "likelihood." in k}
    student = fit.likelihood is not None and fit.likelihood.name == "student_t"
    for name, tensor in fit.model.shared.items():
        if not name.startswith(("module.", "likelihood.")):  # learned by the inner algorithm
            values[name] = tensor.detach().tolist()
    return values | {
        k: v for k, v in constants.items() if student or (k != "scale" and k in learned)
    }


def quartiles(values: Tensor) -> list[float]:
    """The least, lower quartile, median, upper quartile and largest value, each one of them.

    Example:
        >>> import torch
        >>> quartiles(torch.tensor([4.0, 0.0, 1.0, 3.0, 2.0, 5.0]))
        [0.0, 1.0, 2.0, 3.0, 5.0]
    """
    ordered = values.flatten().sort().values
    places = [(len(ordered) - 1) * quarter // 4 for quarter in range(5)]
    return [float(ordered[place]) for place in places]


def names_record(names: Sequence[str]) -> list[str] | dict[str, Any]:
    """The names of weights, or their number and hash where they are many.

    Example:
        >>> names_record(["Intercept", "Days"]), names_record(["w"] * 2000)["number"]
        (['Intercept', 'Days'], 2000)
    """
    if len(names) <= MOST_NAMED:
        return list(names)
    return {"number": len(names), "sha256": hashlib.sha256("\0".join(names).encode()).hexdigest()}
