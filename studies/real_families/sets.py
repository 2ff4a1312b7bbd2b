"""The fifteen real families: what varies between tasks in each, and units that suit descent.

Gradient descent needs weights of one order of magnitude, which raw tables do not have (251 ms and
10 ms a day). The columns of a linear predictor are centred and scaled, but for the constant one,
and curves get a larger unit; `Units` is the way back, so that every number of the study is in the
units of the table.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

import bayesmeta as bm
from studies._sets import frame
from studies.reference_fits import BOUNDS, EXACT

CASES = {case.reference: case for case in (*EXACT, *BOUNDS)}
UNIT = {"orange": 100.0, "theoph": 3.0}
"""Of the response of a curve, in a descent."""


class Compartment(nn.Module):
    """Concentration of a drug after one oral dose, in one compartment with elimination."""

    def __init__(self) -> None:
        super().__init__()
        self.lKe, self.lKa, self.lCl = _weight(-2.5), _weight(0.5), _weight(-3.0)

    def forward(self, x: Tensor) -> Tensor:
        dose, hours = x[..., 0], x[..., 1]
        out, absorbed, clearance = self.lKe.exp(), self.lKa.exp(), self.lCl.exp()
        falling = torch.exp(-out * hours) - torch.exp(-absorbed * hours)
        return dose * out * absorbed / clearance * falling / (absorbed - out)


class Logistic(nn.Module):
    """A tree's circumference: its limit over 1 + exp((xmid − age)/scal)."""

    def __init__(self, unit: float) -> None:
        super().__init__()
        self.Asym, self.xmid = _weight(200.0 / unit), _weight(700.0 / unit)
        self.scal = _weight(350.0 / unit)

    def forward(self, x: Tensor) -> Tensor:
        return self.Asym / (1 + torch.exp((self.xmid - x[..., 0]) / self.scal))


def _weight(start: float) -> nn.Parameter:
    return nn.Parameter(torch.tensor(start, dtype=torch.float64))


@dataclass(frozen=True)
class Units:
    """Weights (θ, ψ) = scale w + shift of the weights w of a descent.

    Args:
        scale: (dim, dim), of the adapted weights first.
        shift: (dim,).
        y: one unit of the descent's response.
    """

    scale: np.ndarray
    shift: np.ndarray
    y: float = 1.0


@dataclass(frozen=True)
class Set:
    """One family.

    Args:
        name: of its file.
        reference: in reference.json: for GLMMs and curves that by quadrature.
        shown: the coordinate whose spread between tasks is drawn.
        label: of that coordinate, with its unit.
        laplace: the reference by Laplace's method, where there is one.
        points: quadrature nodes per weight of the reference; 0: linear with Gaussian noise.
        curve: a module in the place of the linear predictor.
    """

    name: str
    reference: str
    shown: int
    label: str
    laplace: str | None = None
    points: int = 0
    curve: str | None = None

    @property
    def likelihood(self) -> str:
        return "gaussian" if self.curve else CASES[self.reference].likelihood

    @property
    def linear_gaussian(self) -> bool:
        return self.points == 0

    @cached_property
    def family(self) -> bm.TaskFamily:
        """The tasks as the table has them."""
        return self._family(1.0)

    def _family(self, unit: float) -> bm.TaskFamily:
        table = frame(self.name)
        if self.curve == "orange":
            columns = {"task": "Tree", "x": ["age"], "y": "circumference"}
            scaled = table[["age", "circumference"]] / unit
            return bm.TaskFamily.from_dataframe(scaled.assign(Tree=table["Tree"]), **columns)
        if self.curve == "theoph":
            columns = {"task": "Subject", "x": ["Dose", "Time"], "y": "conc"}
            scaled = table.assign(Dose=table["Dose"] / unit, conc=table["conc"] / unit)
            return bm.TaskFamily.from_dataframe(scaled, **columns)
        case = CASES[self.reference]
        if self.name == "orthodont":
            table = table.assign(age11=table["age"] - 11.0)
        options = {"likelihood": case.likelihood, "standard_error": case.known_error}
        return bm.TaskFamily.from_formula(case.formula, table, **options)

    def model(self, unit: float = 1.0) -> bm.Model:
        """The prediction and its likelihood; `unit` is that of the response."""
        likelihood = bm.likelihoods.by_name(self.likelihood)
        if self.curve == "orange":
            return bm.Model(Logistic(unit), likelihood, adapt=["Asym"], names=["Asym"])
        if self.curve == "theoph":
            return bm.Model(Compartment(), likelihood, names=["lKe", "lKa", "lCl"])
        return bm.models.linear(self.family, likelihood)

    def scaled(self) -> tuple[bm.Model, bm.TaskFamily, Units]:
        """Model and tasks in units that suit descent, and the way back."""
        if self.curve:
            unit = UNIT[self.curve]
            back = unit if self.curve == "orange" else 1.0
            return self.model(unit), self._family(unit), Units(back * np.eye(3), np.zeros(3), unit)
        family, units = standardised(self.family, real=self.likelihood == "gaussian")
        return self.model(), family, units


def standardised(family: bm.TaskFamily, *, real: bool) -> tuple[bm.TaskFamily, Units]:
    """Columns but the first, which is constant, with mean 0 and sd 1; so y too where it is real."""
    assert family.mask is not None
    x, y = family.tensors["x"], family.tensors["y"]
    rows, values = x[family.mask], y[family.mask]
    centre, spread = rows.mean(0), rows.std(0, correction=0)
    if not bool((rows[:, 0] == 1).all()):
        raise ValueError("the first column is not the constant one")
    centre[0], spread[0] = 0.0, 1.0
    middle, unit = (float(values.mean()), float(values.std(correction=0))) if real else (0.0, 1.0)
    tensors = family.tensors | {"x": (x - centre) / spread, "y": (y - middle) / unit}
    if "standard_error" in tensors:
        tensors["standard_error"] = tensors["standard_error"] / unit
    scale = np.diag(unit / spread.numpy())
    scale[0, 1:] = -unit * (centre / spread)[1:].numpy()
    shift = np.zeros(len(centre))
    shift[0] = middle
    new = bm.TaskFamily(tensors, mask=family.mask, names=family.names, table=family.table)
    return new, Units(scale, shift, unit)


SETS = (
    Set("sleepstudy", "sleepstudy Days|Subject", 1, "Days (ms per day)"),
    Set("radon", "radon log_radon~floor floor|county", 0, "level (log radon)"),
    Set("eight_schools", "eight_schools known-variance", 0, "effect (points)"),
    Set("dyestuff", "dyestuff 1|Batch", 0, "yield (g)"),
    Set("orthodont", "orthodont age11|Subject", 1, "growth (mm per year)"),
    Set("oxboys", "oxboys quad|Subject", 1, "growth (cm per unit of age)"),
    Set("chickweight", "chickweight Time|Chick", 1, "growth (g per day)"),
    Set("hsb82", "hsb82 cses|school", 0, "level (points)"),
    Set("insteval", "insteval y~service service|d", 0, "rating (points)"),
    Set("theoph", "theoph full AGQ9", 1, "lKa (log 1/h)", "theoph full Laplace(GN)", 9, "theoph"),
    Set("orange", "orange Asym|Tree exact", 0, "limit (mm)", None, 9, "orange"),
    Set("cbpp", "cbpp period,(1|herd) AGQ25", 0, "log odds", "cbpp period,(1|herd) Laplace", 25),
    Set(
        "contraception", "contraception urban,(urban|district) AGQ15x15", 1, "urban (log odds)",
        "contraception urban,(urban|district) Laplace", 15,
    ),
    Set(
        "grouseticks", "grouseticks YEAR,(1|BROOD) AGQ", 0, "log mean",
        "grouseticks YEAR,(1|BROOD) Laplace", 25,
    ),
    Set("baseball", "baseball 1,(1|player) AGQ25", 0, "log odds",
        "baseball 1,(1|player) Laplace", 25),
)  # fmt: skip
