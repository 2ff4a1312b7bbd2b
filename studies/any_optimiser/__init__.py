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
from studies.any_optimiser.findings import algorithms, ends, ratio
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
    """Both ideas against shared paths, with unseen and with seen algorithms, from the table."""
    unseen, seen = algorithms(table, "none"), algorithms(table, "stochastic")
    families = list(dict.fromkeys(table["family"]))

    def each(method: str, tests: list[str], **options: str) -> str:
        return ", ".join(f"{ratio(table, f, method, tests, **options)} on {f}" for f in families)

    def judged(method: str) -> str:
        found = {f: ratio(table, f, method, unseen) for f in families}
        return ", ".join(f"{r} on {f} ({r.verdict})" for f, r in found.items())

    def spread(method: str) -> str:
        return ", ".join(_spread(table, f, method, unseen) for f in families)

    return (
        f"Squared error on unseen tasks over that of starts trained with shared paths, geometric "
        f"mean of {len(unseen)} algorithms new to every start ({table['seed'].nunique()} seeds, "
        f"95 % intervals): separate paths {judged('separate')}; a mixture of optimisers "
        f"{judged('mixture')}; MAML {judged('maml')}. Among the {len(unseen)}, separate paths go "
        f"from {spread('separate')}; the mixture from {spread('mixture')}. By the SGD of the "
        f"training: separate paths {each('separate', seen)}; the mixture {each('mixture', seen)}. "
        f"At the mean of that SGD's ends, whose loss separate paths are trained for: "
        f"{each('separate', seen, value='error_at_mean')}; by the biased gradient of this loss "
        f"{each('shared_mean', seen, value='error_at_mean')}."
    )


def _spread(table: pd.DataFrame, family: str, method: str, tests: list[str]) -> str:
    """The ratios of the algorithms at both ends."""
    best, worst = (
        f"{ratio(table, family, method, [name]).middle:.2f} ({name})"
        for name in ends(table, family, method, tests)
    )
    return f"{best} to {worst} on {family}"


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
