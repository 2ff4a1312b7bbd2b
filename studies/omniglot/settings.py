"""What is trained: the papers' table at a budget that the device has, and single changes to it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

import bayesmeta as bm
from bayesmeta.methods import Method

PAPER = {
    # (5-way 1-shot, 5-way 5-shot, 20-way 1-shot, 20-way 5-shot), random split, transductive
    "MAML": (98.7, 99.9, 95.8, 98.9),
    "first-order MAML": (98.3, 99.2, 89.4, 97.9),
    "Reptile": (97.68, 99.48, 89.43, 97.12),
    "iMAML, gradient descent": (99.16, 99.67, 94.46, 98.69),
    "iMAML, Hessian-free": (99.50, 99.74, 96.18, 99.14),
}
"""Accuracy in %: Rajeswaran et al. (2019), table 2, and Nichol et al. (2018) for Reptile."""
SETTINGS = ((5, 1), (5, 5), (20, 1), (20, 5))


@dataclass(frozen=True)
class Size:
    """How much of everything.

    Args:
        name: of the size.
        filters: of the network.
        tasks: to score on.
        queries: of each class, to score on.
        steps: outer steps in the place of a cell's own; None: those.
    """

    name: str
    filters: int
    tasks: int
    queries: int
    steps: int | None

    @property
    def quick(self) -> bool:
        return self.name == "quick"

    @classmethod
    def of(cls, *, quick: bool, device: str) -> Size:
        if quick:
            return cls("quick", 8, 16, 5, 2)
        return cls("full", 64, 600 if torch.device(device).type == "cpu" else 1000, 15, None)


@dataclass(frozen=True)
class Cell:
    """One start θ₀ to be trained and scored.

    Args:
        name: unique.
        part: "table", "effect" or "runs" of the study.
        method_name: as the table calls it.
        maker: of `bm.methods`.
        options: of the maker.
        steps: outer steps.
        changed: what differs from the table's row, for an effect.
        ways, shots: of the tasks.
        train_shots: support images of a class in training, where not `shots`.
        queries: query images of a class in training.
        split: of the characters: random, or original.
        batch_norm: whose statistics in training.
        adapt: the part of the network that is adapted, the rest being shared; None: all.
        tested: options in the place of the method's own when tasks are scored.
        seed: of tasks and noise.
    """

    name: str
    part: str
    method_name: str
    maker: str
    options: dict[str, Any] = field(default_factory=dict)
    steps: int = 1000
    changed: str = ""
    ways: int = 5
    shots: int = 1
    train_shots: int | None = None
    queries: int = 1
    split: str = "random"
    batch_norm: str = "transductive"
    adapt: str | None = None
    tested: dict[str, Any] = field(default_factory=dict)
    seed: int = 0

    def method(self, size: Size, *, testing: bool = False) -> Method:
        """The method, with the outer steps of a size."""
        own = {} if self.maker in ("reptile", "variational_imaml") else {"support": None}
        steps = size.steps or self.steps
        make = getattr(bm.methods, self.maker)
        changed = self.tested if testing else {}
        return make(**{"batch": 16, "outer_steps": steps} | own | self.options | changed)

    def described(self) -> dict[str, Any]:
        """Its columns of the table."""
        names = ("name", "part", "changed", "ways", "shots", "split", "batch_norm", "seed")
        paper = PAPER.get(self.method_name)
        known = paper is not None and self.part == "table" and self.split == "random"
        return {name: getattr(self, name) for name in names} | {
            "method": self.method_name,
            "options": ", ".join(f"{k} = {v}" for k, v in self.options.items()),
            "paper_accuracy": paper[SETTINGS.index((self.ways, self.shots))] if known else None,
        }

    def to_json(self) -> dict[str, Any]:
        """All that decides its training and its scores."""
        added = ("tested", "adapt")  # since the first cells were trained
        return {name: value for name, value in asdict(self).items() if name not in added or value}


OUTER = {"outer_lr": 0.003}
INNER = {"steps": 5, "lr": 0.4}
TABLE = (
    Cell("maml", "table", "MAML", "maml", {"steps": 1, "lr": 0.4} | OUTER, 3000),
    Cell("fomaml", "table", "first-order MAML", "fomaml", {"steps": 1, "lr": 0.4} | OUTER, 3000),
    Cell(
        "reptile", "table", "Reptile", "reptile",
        {"steps": 8, "lr": 0.1, "rows": 10, "outer_lr": 1.0, "batch": 5}, 800, train_shots=10,
        tested={"rows": None},
    ),
    Cell(
        "imaml", "table", "iMAML, gradient descent", "imaml",
        {"lam": 0.1, "cg_steps": 3} | INNER | OUTER, 2500,
    ),
    Cell(
        "imaml hf", "table", "iMAML, Hessian-free", "imaml_hf",
        {"lam": 0.1, "cg_steps": 3, "steps": 2, "newton_cg_steps": 3} | OUTER, 1200,
    ),
    Cell(
        "variational point", "table", "variational iMAML, point", "variational_imaml",
        {"lam": 0.1, "batch": 8} | INNER | OUTER, 1200, train_shots=5,
    ),
    Cell(
        "variational laplace", "table", "variational iMAML, Laplace", "variational_imaml",
        {"lam": 0.4, "steps": 15, "lr": 0.1, "covariance": "diagonal", "cg_steps": 3, "batch": 4}
        | OUTER, 600, train_shots=10, adapt="head",
    ),
)  # fmt: skip
EFFECT_STEPS = 120
Change = tuple[str, dict[str, Any], dict[str, Any]]
"""What is changed, in words; options of the method; fields of the cell."""
EFFECTS: tuple[Change, ...] = (
    ("as in the table", {}, {}),
    ("λ = 0.5", {"lam": 0.5}, {}),
    ("λ = 2", {"lam": 2.0}, {}),
    ("2 inner steps", {"steps": 2}, {}),
    ("16 inner steps", {"steps": 16}, {}),
    ("Hessian in the solve", {"curvature": "hessian"}, {}),
    ("no CG step (first-order)", {"cg_steps": 0}, {}),
    ("10 CG steps", {"cg_steps": 10}, {}),
    ("support statistics", {}, {"batch_norm": "support"}),
    ("frozen statistics", {}, {"batch_norm": "frozen"}),
)
OF_REPTILE: tuple[Change, ...] = (
    ("as in the table", {}, {}),
    ("all rows in every step", {"rows": None}, {}),
)
RUNS = Cell(
    "runs maml", "runs", "MAML", "maml", {"steps": 1, "lr": 0.4} | OUTER, 1000,
    ways=20, split="original",
)  # fmt: skip
"""Trained on the background alphabets, for the official runs within new ones."""
SHARE = {"random": 1, "original": 3}
"""A table row's outer steps are divided by this, where the device cannot take the full budget."""
FULL_STEPS = 60_000
"""Outer steps of the papers, for a device that can take them."""


def cells(device: str) -> list[Cell]:
    """What is trained on a device, the table first."""
    rich = torch.device(device).type == "cuda"
    settings = SETTINGS if rich else SETTINGS[:1]
    found = [
        replace(_in_setting(cell, ways, shots, split), steps=cell.steps // SHARE[split])
        for split in ("random", "original")
        for ways, shots in settings
        for cell in TABLE
    ]
    for place, changes in ((3, EFFECTS), (2, OF_REPTILE)):
        found += _effects(TABLE[place], changes)
    found.append(RUNS)
    full = [c if c.part == "effect" else replace(c, steps=FULL_STEPS) for c in found]
    return full if rich else found


def _in_setting(cell: Cell, ways: int, shots: int, split: str) -> Cell:
    name = f"{cell.name}, {ways}-way {shots}-shot, {split}"
    more = None if cell.train_shots is None else max(cell.train_shots, shots)
    return replace(cell, name=name, ways=ways, shots=shots, train_shots=more, split=split)


def _effects(base: Cell, changes: tuple[Change, ...]) -> list[Cell]:
    """One thing of a cell changed at a time."""
    common = {"part": "effect", "steps": EFFECT_STEPS}
    return [
        replace(
            base,
            name=f"{base.name}: {changed}",
            changed=changed,
            options=base.options | options,
            **fields | common,
        )
        for changed, options, fields in changes
    ]
