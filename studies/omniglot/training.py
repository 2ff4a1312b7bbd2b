"""Train one cell, score it on new characters, and keep both so that they need not be done again."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

import torch

import bayesmeta as bm
from bayesmeta.atomic import whole_file
from studies._framework import ROOT
from studies.omniglot.data import streams
from studies.omniglot.settings import Cell, Size

RUNS = "BAYESMETA_RUNS"
EVERY = 50
EFFECT_TASKS = 200


def place(cell: Cell, size: Size, device: str) -> Path:
    """The folder of a cell's checkpoint and scores, named after all that decides them."""
    what = {"cell": cell.to_json(), "size": size.name, "device": torch.device(device).type}
    key = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]
    root = Path(os.environ.get(RUNS) or ROOT / "runs")
    return root / "omniglot" / f"{cell.name.replace(' ', '_')}-{key}"


def measured(cell: Cell, size: Size, device: str) -> dict[str, Any]:
    """A row of the table: from disk where this cell has been measured before."""
    kept = place(cell, size, device) / "scores.json"
    if kept.is_file() and not size.quick:
        return json.loads(kept.read_text())
    fit, seconds = trained(cell, size, device)
    row = cell.described() | scored(fit, cell, size, device) | {"seconds": seconds}
    if not size.quick:
        with whole_file(kept) as path:
            path.write_text(json.dumps(row, indent=1))
    return row


def trained(cell: Cell, size: Size, device: str) -> tuple[bm.Fit, float]:
    """The fit, and the processor's seconds it took over all runs that had a part in it."""
    folder = place(cell, size, device)
    shots = cell.train_shots or cell.shots
    train, _ = streams(cell.split, cell.ways, shots, cell.queries, device, quick=size.quick)
    policy = "support" if cell.batch_norm == "support" else "transductive"
    model = bm.models.conv4(cell.ways, train.shape, filters=size.filters, batch_norm=policy)
    if cell.adapt is not None:
        likelihood = bm.likelihoods.Categorical(cell.ways)
        model = bm.Model(model.module, likelihood, adapt=cell.adapt, batch_norm=policy)
    if cell.batch_norm == "frozen":
        sample, _ = train.draw(20, torch.Generator().manual_seed(0))
        model = model.frozen_on(sample.tensors["x"].flatten(0, 1).cpu())
    if size.quick:  # tries the code, so it must not find its work done
        return bm.fit(model, train, method=cell.method(size), seed=cell.seed), 0.0
    clock = _Clock(folder)
    fit = bm.fit(
        model, train, method=cell.method(size), seed=cell.seed, callbacks=[clock],
        checkpoint=bm.Checkpoint(folder, every=EVERY),
    )  # fmt: skip
    return fit, clock.total


class _Clock:
    """Seconds of training, kept beside the checkpoint; a callback of the fit."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "log.jsonl"
        lines = self.path.read_text().splitlines() if self.path.is_file() else []
        self.before = json.loads(lines[-1])["seconds"] if lines else 0.0
        self.started = time.process_time()

    @property
    def total(self) -> float:
        return self.before + time.process_time() - self.started

    def __call__(self, step: int, steps: int, value: float) -> None:
        if step % EVERY and step != steps:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, "M": value, "seconds": self.total}) + "\n")


def scored(fit: bm.Fit, cell: Cell, size: Size, device: str) -> dict[str, Any]:
    """Scores on tasks of new characters, the same ones for every method."""
    _, test = streams(cell.split, cell.ways, cell.shots, size.queries, device, quick=size.quick)
    count = size.tasks if cell.part == "table" else min(size.tasks, EFFECT_TASKS)
    found = bm.diagnostics.few_shot_scores(
        fit, test, count=count, seed=1, method=cell.method(size, testing=True)
    )
    row: dict[str, Any] = {
        "iterations": len(fit.trace),
        "tasks": found.tasks,
        "stationarity": float(found.stationarity.median()),
        "flagged": len(fit.flagged),
    }
    for kind in ("inductive", "transductive"):
        scores = getattr(found, kind)
        mean, low, _ = scores.interval
        row |= {
            f"{kind}_accuracy": 100 * mean,
            f"{kind}_half_width": 100 * (mean - low),
            f"{kind}_nll": float(scores.nll.mean()),
            f"{kind}_calibration": 100 * scores.calibration,
        }
    return row
