"""The models the library builds by itself: a linear predictor with named columns, and a network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bayesmeta.likelihoods import Likelihood
from bayesmeta.models import images
from bayesmeta.models.model import Model
from bayesmeta.results import InputError
from bayesmeta.tasks import TaskFamily


class LinearPredictor(nn.Module):
    """Z θ + X ψ: the columns of x inside the bar are adapted, the others shared."""

    def __init__(self, adapted: int, shared: int, *, intercept: bool) -> None:
        super().__init__()
        self.intercept = intercept
        self.adapted = nn.Parameter(torch.zeros(adapted + intercept, dtype=torch.float64))
        self.shared = nn.Parameter(torch.zeros(shared, dtype=torch.float64)) if shared else None

    def forward(self, x: Tensor) -> Tensor:
        if self.intercept:
            x = torch.cat([x.new_ones(*x.shape[:-1], 1), x], -1)
        adapted = len(self.adapted)
        prediction = x[..., :adapted] @ self.adapted
        return prediction if self.shared is None else prediction + x[..., adapted:] @ self.shared


def linear(family: TaskFamily, likelihood: Likelihood) -> Model:
    """The linear predictor of a family read from a table, its weights named after the columns.

    Args:
        family: from `TaskFamily.from_formula` (columns inside the bar are adapted, the others
            shared) or from `from_csv`/`from_dataframe` (intercept and every x adapted).
        likelihood: of the response.
    """
    table = family.table
    if table is None:
        raise InputError("models.linear needs a family read from a table; use bm.Model(...)")
    spec = {
        "kind": "linear",
        "adapted": len(table.adapted if table.formula else table.columns),
        "shared": len(table.columns) - len(table.adapted) if table.formula else 0,
        "intercept": table.formula is None,
        "names": list(table.adapted if table.formula else ("Intercept", *table.columns)),
        "shared_names": list(table.columns[len(table.adapted) :]) if table.formula else [],
    }
    return from_spec(spec, likelihood)


def mlp(
    widths: Sequence[int], family: TaskFamily, likelihood: Likelihood, *, seed: int = 0
) -> Model:
    """A tanh network with hidden `widths`, all its weights adapted.

    Args:
        widths: hidden units per layer.
        family: gives the number of features.
        likelihood: of the response.
        seed: of the initial weights; the global random state is left alone.
    """
    features = Model.inputs(family.tensors).shape[-1]
    outputs = getattr(likelihood, "classes", 1)
    spec = {"kind": "mlp", "widths": [features, *map(int, widths), outputs], "seed": seed}
    return from_spec(spec, likelihood)


def from_spec(spec: dict[str, Any], likelihood: Likelihood) -> Model:
    """Rebuild a model that the library itself made, from its record."""
    if spec["kind"] in images.KINDS:
        return images.build(spec)
    names = {"adapt": ["adapted"], "names": spec["names"]} if spec["kind"] == "linear" else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.get("seed", 0))
        module = _module(spec)
    return Model(module.double(), likelihood, spec=spec, **names)


def refuse_other_size(spec: dict[str, Any], weights: int) -> None:
    """Say no to the record of a model of another size than a run's, before it takes any memory.

    Args:
        spec: of the record.
        weights: that the files of the run hold.

    Raises:
        InputError: the model would have more or fewer.
    """
    # More layers than weights: nobody has to count them.
    long = any(isinstance(value, list) and len(value) > weights + 2 for value in spec.values())
    if not long:
        with torch.device("meta"):  # sizes without numbers
            number = sum(parameter.numel() for parameter in _module(spec).parameters())
    if long or number != weights:
        raise InputError(
            f"the run's files hold {weights} weights, and its record describes a model with "
            f"{'more' if long else number}: it was changed, or the model is your own, which "
            "bm.load(folder, model=...) takes; or fit again"
        )


def _module(spec: dict[str, Any]) -> nn.Module:
    if spec["kind"] == "linear":
        return LinearPredictor(spec["adapted"], spec["shared"], intercept=spec["intercept"])
    if spec["kind"] == "mlp":
        layers: list[nn.Module] = []
        for fan_in, fan_out in zip(spec["widths"], spec["widths"][1:], strict=False):
            layers += [nn.Linear(fan_in, fan_out), nn.Tanh()]
        return nn.Sequential(*layers[:-1])
    if spec["kind"] in images.KINDS:
        return images.module_of(spec)
    raise InputError(f"a model of kind {spec['kind']!r} is not one this version can rebuild")
