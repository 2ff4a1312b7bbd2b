"""The tables that are attacked, how each is fitted, and what its cells say by another reader."""

from __future__ import annotations

import csv
import io
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import bayesmeta as bm
from studies.hostile.folders import table
from studies.hostile.watching import ANOTHER, FLAGGED, SAME, NotSoundError


@dataclass(frozen=True)
class Sheet:
    """A table and how it is read and fitted.

    Args:
        text: as it was.
        read: from a path to its tasks.
        used: the columns that decide the numbers.
        method: that is quick.
        likelihood: by name.
        command: the options of the same fit on the command line.
    """

    text: str
    read: Callable[[Path], bm.TaskFamily]
    used: Sequence[str]
    command: Sequence[str]
    likelihood: str = "gaussian"
    method: Any = field(default_factory=bm.methods.joint)

    def fit(self, family: bm.TaskFamily) -> bm.Fit:
        model = bm.models.linear(family, bm.likelihoods.by_name(self.likelihood))
        return bm.fit(model, family, method=self.method)


def sheets() -> dict[str, Sheet]:
    """All of them, by name."""
    quick = bm.methods.laplace(steps=8)
    formula = "reaction ~ days + diet + (days | subject)"
    return {
        "formula": Sheet(
            table(),
            lambda path: bm.TaskFamily.from_formula(formula, path),
            ("subject", "days", "diet", "reaction"),
            ("--formula", formula),
        ),
        "trials": Sheet(
            trials(),
            lambda path: bm.TaskFamily.from_csv(
                path, task="herd", x=["age"], y="ill/animals", likelihood="binomial"
            ),
            ("herd", "age", "ill", "animals"),
            ("--task", "herd", "--x", "age", "--y", "ill/animals", "--likelihood", "binomial",
             "--method", "laplace", "--steps", "8"),
            "binomial",
            quick,
        ),
        "counts": Sheet(
            counts(),
            lambda path: bm.TaskFamily.from_csv(
                path, task="ward", x=["dose"], y="events", exposure="hours", likelihood="poisson"
            ),
            ("ward", "dose", "events", "hours"),
            ("--task", "ward", "--x", "dose", "--y", "events", "--exposure", "hours",
             "--likelihood", "poisson", "--method", "laplace", "--steps", "8"),
            "poisson",
            quick,
        ),
        "known errors": Sheet(
            errors(),
            lambda path: bm.TaskFamily.from_csv(path, task="site", y="y", standard_error="se"),
            ("site", "y", "se"),
            ("--task", "site", "--y", "y", "--standard-error", "se"),
        ),
    }  # fmt: skip


def trials() -> str:
    """Ill animals out of all, by age."""
    chance = random.Random(1)
    lines = ["herd,age,ill,animals"]
    for herd in range(5):
        for age in range(4):
            animals = chance.randrange(5, 20)
            lines.append(f"h{herd},{age}.5,{chance.randrange(animals)},{animals}")
    return "\n".join(lines) + "\n"


def counts() -> str:
    """Events in so many hours, by dose."""
    chance = random.Random(2)
    lines = ["ward,dose,events,hours"]
    for ward in range(5):
        for dose in range(4):
            row = (ward, 0.25 * dose, chance.randrange(9), chance.choice((8, 12.5, 24)))
            lines.append("w{},{},{},{}".format(*row))
    return "\n".join(lines) + "\n"


def errors() -> str:
    """Values with standard errors of their own."""
    chance = random.Random(3)
    rows = [(i // 2, chance.gauss(0, 8), 1 + 9 * chance.random()) for i in range(12)]
    return "site,y,se\n" + "".join(f"site {i},{y:.2f},{se:.2f}\n" for i, y, se in rows)


def meaning(content: bytes, used: Sequence[str]) -> Any:
    """The used cells by Python's own reader of CSV; None: unreadable.

    Names of tasks are as they are written, of other cells numbers by value and texts stripped.
    """
    for sign in ",;\t|":
        try:
            text = content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
            lines = csv.reader(io.StringIO(text, newline=""), delimiter=sign)
            rows = [row for row in lines if row]
            place = [[name.strip() for name in rows[0]].index(name) for name in used]
            return [[row[place[0]], *(_value(row[i]) for i in place[1:])] for row in rows[1:]]
        except (ValueError, IndexError, csv.Error):
            continue
    return None


def _value(cell: str) -> Any:
    try:
        return float(cell)
    except ValueError:
        return cell.strip()


def read_and_fitted(sheet: Sheet, path: Path, wanted: Any) -> str:
    """Read a table that was changed, and fit it where it can be read.

    Args:
        sheet: which.
        path: of the changed one.
        wanted: `said` of the table as it was.

    Raises:
        NotSoundError: cells were changed in silence, or the fit has numbers that are none.
    """
    family = sheet.read(path)
    alike = meaning(path.read_bytes(), sheet.used) == meaning(sheet.text.encode(), sheet.used)
    if said(family) == wanted:
        if not alike:
            raise NotSoundError("cells were changed, and neither the fingerprint nor the coding")
        return SAME
    if alike:
        raise NotSoundError("the same cells are read as other numbers")
    return finite(sheet.fit(family))


def said(family: bm.TaskFamily) -> Any:
    """What was read: the numbers, and what they are called."""
    assert family.table is not None
    return family.fingerprint(), family.table.columns, family.table.coding


def finite(fit: bm.Fit) -> str:
    """`ANOTHER`, or that it says of its numbers that they are none.

    Raises:
        NotSoundError: it does not say so.
    """
    tensors = [fit.prior.mean, fit.prior.sd(), fit.posterior.mean, fit.posterior.sd()]
    numbers = [*fit.model.shared.values(), fit.task_evidence, torch.tensor(fit.log_evidence)]
    sound = all(bool(tensor.isfinite().all()) for tensor in [*tensors, *numbers])
    values = [fit.noise, *fit.standard_errors.values()]
    if sound and all(math.isfinite(value) for value in values if value is not None):
        return ANOTHER
    if fit.flagged or any("finite" in note or "unknown" in note for note in fit.notes):
        return FLAGGED
    raise NotSoundError("a fit with numbers that are not finite, which nothing says")
