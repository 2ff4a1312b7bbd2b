"""The run folders that are attacked, and what a run that was loaded has to be able to do."""

from __future__ import annotations

import hashlib
import io
import json
import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from rich.console import Console
from torch import Tensor

import bayesmeta as bm
from bayesmeta import report
from studies.hostile.watching import ANOTHER, SAME, NotSoundError

FILES = (
    "run.json", "prior.safetensors", "posterior.safetensors", "tasks.safetensors", "log.jsonl",
    "posterior.nc",
)  # fmt: skip


def table(tasks: int = 6, rows: int = 5) -> str:
    """A CSV as of the sleep study, with a category."""
    chance = random.Random(0)
    lines = ["subject,days,diet,reaction"]
    for task in range(tasks):
        level, slope = chance.gauss(250, 20), chance.gauss(10, 4)
        for day in range(rows):
            value = level + slope * day + chance.gauss(0, 8)
            lines.append(f"s{task},{day},{'ABC'[(task + day) % 3]},{value:.3f}")
    return "\n".join(lines) + "\n"


def linear(path: Path) -> bm.Fit:
    """An exact fit of a table by a formula with a category."""
    family = bm.TaskFamily.from_formula("reaction ~ days + diet + (days | subject)", path)
    return bm.fit(bm.models.linear(family, bm.likelihoods.Gaussian()), family)


def network(path: Path) -> bm.Fit:
    """A network's fit, standardised, by gradient descent."""
    family = bm.TaskFamily.from_csv(path, task="subject", x=["days", "diet"], y="reaction")
    model = bm.models.mlp((3,), family, bm.likelihoods.StudentT())
    return bm.fit(model, family, method=bm.methods.joint(covariance="diagonal", steps=20))


def draws(path: Path) -> bm.Fit:
    """A stochastic algorithm's, whose posteriors are draws."""
    family = bm.TaskFamily.from_csv(path, task="subject", x=["days"], y="reaction")
    model = bm.models.linear(family, bm.likelihoods.Gaussian())
    method = bm.methods.stochastic(
        algorithm=bm.methods.SGLD(1e-3, 4), support=None, samples=20, outer_steps=3
    )
    return bm.fit(model, family, method=method)


def imaml(path: Path) -> bm.Fit:
    """Points at the end of an inner descent."""
    family = bm.TaskFamily.from_csv(path, task="subject", x=["days"], y="reaction")
    model = bm.models.linear(family, bm.likelihoods.Gaussian())
    method = bm.methods.imaml(lam=1.0, steps=5, lr=0.01, support=None, outer_steps=3)
    return bm.fit(model, family, method=method)


def images(path: Path) -> bm.Fit:
    """A convolutional network, of a stream of few-shot tasks."""
    generator = torch.Generator().manual_seed(0)
    patterns = torch.randint(0, 256, (20, 1, 8, 8), generator=generator, dtype=torch.uint8)
    names = tuple(f"class {i}" for i in range(5))
    bank = bm.images.Images(patterns, torch.arange(20) // 4, names, "generated")
    stream = bm.FewShot(bank, ways=3, shots=2, queries=2)
    method = bm.methods.maml(lr=0.1, batch=2, support=None, optimiser="adam", outer_steps=2)
    return bm.fit(bm.models.conv4(3, (1, 8, 8), filters=2), stream, method=method)


KINDS: dict[str, Callable[[Path], bm.Fit]] = {
    "linear": linear, "network": network, "draws": draws, "imaml": imaml, "images": images,
}  # fmt: skip


def saved(folder: Path) -> dict[str, Path]:
    """A run folder of each kind."""
    path = folder / "table.csv"
    path.write_text(table(), "utf-8")
    return {name: fit(path).save(folder / name) for name, fit in KINDS.items()}


def numbers(fit: bm.Fit) -> str:
    """A hash of everything that a run says."""
    tensors: dict[str, Tensor | None] = {
        "theta0": fit.prior.mean, "spread": fit.prior.sd(), "mean": fit.posterior.mean,
        "sd": fit.posterior.sd(), "evidence": fit.task_evidence, "draws": fit.posterior.draws,
    }  # fmt: skip
    found = hashlib.sha256()
    for name, tensor in sorted((tensors | dict(fit.model.shared)).items()):
        if tensor is not None:
            found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            found.update(tensor.detach().contiguous().numpy().tobytes())
    said = [
        fit.record(), fit.trace, fit.seed, fit.stream, fit.posterior.tasks, fit.posterior.names,
        fit.family.fingerprint(), fit.model.spec, fit.family.table and fit.family.table.to_json(),
    ]  # fmt: skip
    found.update(json.dumps(said, sort_keys=True, default=str).encode())
    return found.hexdigest()


def attacked(folder: Path, wanted: str, new: Path, *, sealed: bool) -> str:
    """Load a run that was changed.

    Args:
        folder: the run.
        wanted: `numbers` of the run as it was.
        new: a table that the runs of tables can read.
        sealed: whether its seal was made again, so that it may be another run.

    Raises:
        NotSoundError: it is loaded, and should not be.
    """
    fit = bm.load(folder)
    try:
        same = numbers(fit) == wanted
    except bm.InputError as error:
        raise NotSoundError(f"loaded, and then: {error}") from error
    if same:
        return SAME
    if not sealed:
        raise NotSoundError("loaded with other numbers than were written")
    _used(fit, new)
    return ANOTHER


def _used(fit: bm.Fit, new: Path) -> None:
    """What one does with a run; it may say no, but not break.

    Raises:
        NotSoundError: it does not come back as it was, or has numbers that are none.
    """
    repr(fit)
    json.dumps(fit.record(), allow_nan=False)
    printed = io.StringIO()
    Console(file=printed, width=160).print(report.fit_report(fit, new))
    printed.getvalue().encode()
    parts = {"prior": fit.prior.mean, "prior sd": fit.prior.sd(), "mean": fit.posterior.mean}
    for name, tensor in (parts | {"sd": fit.posterior.sd(), "evidence": fit.task_evidence}).items():
        if not bool(tensor.isfinite().all()) and not fit.flagged:
            raise NotSoundError(f"loaded with a {name} that is not finite, and not flagged")
    with TemporaryDirectory() as place:
        fit.save(Path(place) / "again")
        if numbers(bm.load(Path(place) / "again")) != numbers(fit):
            raise NotSoundError("saved and loaded again it is another run")
    for use in (lambda: fit.predict(draws=3), lambda: fit.predict(new, draws=3)):
        with suppress(bm.InputError):  # a sentence
            use()
