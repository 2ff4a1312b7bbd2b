"""Starts trained by five methods, each adapted by nine algorithms, six of them new to all starts.

    settings   what starts are trained with, and what they are tested with
    tasks      sinusoids, and the weights of chicks
    worker     one family and seed: train every start, test it with every algorithm
    findings   errors against those of shared paths, seed by seed
    drawing    the figure

    shared        E_z g(θ_z) by SGD with minibatches; a path is the same forward and backward
    shared_mean   g(mean of θ_z) with the same paths on both sides of the gradient, which is biased
    separate      g(E_z θ_z) with every path's slope taken where the other paths end, unbiased
    mixture       E_z g(θ_z), where z also draws the optimiser, its step size, steps and minibatch
    maml          gradient descent by full batches: nothing random

All have the same tasks, starting weights and outer steps, and four paths per task and outer step
(MAML's only one). A network 1-32-32-1 with tanh adapts to 6 rows of an unseen task and is scored
at the other 6, by squared error in variances of y. `error` is the mean over draws of z, `at_mean`
the error of the network with the mean of the draws' weights.

    sinusoids   y = A sin(x − φ) + noise of sd 0.3; 500 to train on and 60 unseen, new ones for
                every seed
    chicks      weight of 45 chicks at twelve times up to day 21; 30 to train on, the other 15 are
                unseen, each split three times. The seeds part the same 45 chicks, so their
                intervals are of the training and the partition, not of another brood.

Intervals are t intervals over seeds of the mean log ratio to `shared`. Finished seeds wait in the
temporary folder of the machine for the last one, so a run that was cut off goes on.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from bayesmeta.atomic import whole_file
from studies._framework import Result
from studies.any_optimiser import drawing
from studies.any_optimiser.findings import Ratio, algorithms, ratio
from studies.any_optimiser.settings import FULL, QUICK
from studies.any_optimiser.tasks import FAMILIES
from studies.any_optimiser.worker import measure

QUESTION = (
    "Does a start trained with separate paths, or under a mixture of optimisers, adapt better by "
    "optimisers and batch sizes it has never seen?"
)
MEASURED_BY = ("settings.py", "tasks.py", "worker.py")


def run(quick: bool, device: str) -> Result:
    """Every family and seed, one after the other."""
    size = QUICK if quick else FULL
    kept = _folder() if size.keep else None
    parts = [
        _kept(kept, f"{family}-{seed}", lambda f=family, s=seed: measure(f, s, size, device))
        for seed in range(size.seeds)
        for family in FAMILIES
    ]
    table = pd.concat(parts, ignore_index=True)
    if kept is not None:
        shutil.rmtree(kept, ignore_errors=True)
    return Result(table)


def draw(table: pd.DataFrame) -> dict[str, Figure]:
    """The study's figures, by name."""
    return {
        "any_optimiser": drawing.draw(table),
    }


def headline(table: pd.DataFrame) -> str:
    """Both ideas against shared paths with unseen algorithms, their range, and the loss meant."""
    unseen, seen = algorithms(table, "none"), algorithms(table, "stochastic")
    families = list(dict.fromkeys(table["family"]))
    separate, mixture = (
        {f: ratio(table, f, method, unseen) for f in families} for method in ("separate", "mixture")
    )
    at_mean = {f: ratio(table, f, "separate", seen, value="error_at_mean") for f in families}
    ranges = [_range(table, families, method, unseen) for method in ("separate", "mixture")]
    return (
        f"Starts of separate paths adapt better on {_lower(separate)}: by {len(unseen)} algorithms "
        f"new to every start their squared error is {_said(separate)} times that of shared paths "
        f"(geometric means of {table['seed'].nunique()} seeds, 95 % intervals). "
        f"Starts of mixtures of optimisers adapt better on {_lower(mixture)}, their error being "
        f"{_said(mixture)} times that of shared paths. "
        f"By single algorithms the ratio goes {ranges[0]} for separate paths and {ranges[1]} for "
        f"mixtures, and at the mean of the training algorithm's ends, which separate paths are "
        f"trained for, they are better on {_lower(at_mean)}."
    )


def _lower(found: dict[str, Ratio]) -> str:
    """The families on which the error is surely lower."""
    lower = [family for family, one in found.items() if one.verdict == "lower"]
    every = len(lower) == len(found)
    return f"{' and '.join(lower)}{'' if every else ' only'}" if lower else "no family"


def _said(found: dict[str, Ratio]) -> str:
    """Each family's ratio."""
    return " and ".join(f"{one} on {family}" for family, one in found.items())


def _range(table: pd.DataFrame, families: list[str], method: str, tests: list[str]) -> str:
    """The least and the largest ratio by any of these algorithms, on any family."""
    found = [ratio(table, f, method, [name]).middle for f in families for name in tests]
    return f"from {min(found):.2f} to {max(found):.2f}"


def _folder() -> Path:
    """Where finished seeds of this very code wait."""
    here = Path(__file__).parent
    code = hashlib.sha256(b"".join((here / name).read_bytes() for name in MEASURED_BY))
    return Path(tempfile.gettempdir()) / f"bayesmeta-any-optimiser-{code.hexdigest()[:12]}"


def _kept(
    folder: Path | None, name: str, measured: Callable[[], list[dict[str, Any]]]
) -> pd.DataFrame:
    """The rows of one family and seed: as an earlier run left them, or measured now."""
    if folder is None:
        return pd.DataFrame(measured())
    file = folder / f"{name}.csv"
    if not file.is_file():
        rows = pd.DataFrame(measured())
        folder.mkdir(exist_ok=True)
        with whole_file(file) as path:
            rows.to_csv(path, index=False)
    return pd.read_csv(file)
