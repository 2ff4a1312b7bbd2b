"""The fits that are killed: five commands and a program, each some tenths of a second long."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import torch

import bayesmeta as bm
from bayesmeta.cli import app

STEPS, EVERY = 60, 6
SEED = 0
DATA, RUN, KEPT = "data.csv", "run", "run.checkpoint"
USUAL = ("--task", "task", "--x", "x", "--y", "y", "--net", "4", "--batch", "4")
ADAM = ("--option", "optimiser=adam", "--option", "outer_lr=0.01")
COMMANDS: dict[str, tuple[str, ...]] = {
    "joint": (),
    "imaml": ("--method", "imaml", "--option", "steps=5", "--option", "lr=0.05", *ADAM),
    "reptile": ("--method", "reptile", "--option", "steps=3", "--option", "lr=0.05", *ADAM),
    "maml": (
        "--method", "maml", "--option", "learn_lr=true", "--option", "steps=1",
        "--option", "lr=0.05", *ADAM,
    ),
    "overwrite": ("--overwrite",),
}  # fmt: skip
PROGRAM = "stochastic"
KINDS = (*COMMANDS, PROGRAM)


def sinusoids() -> bm.TaskFamily:
    """Six sinusoids with six points each."""
    generator = torch.Generator().manual_seed(SEED)
    return bm.families.sinusoid(tasks=6, rows=6, noise=0.1, generator=generator)[0]


def prepare(kind: str, folder: Path) -> None:
    """What lies in the folder before the fit begins."""
    family = sinusoids()
    x, y = (family.tensors[name].flatten().tolist() for name in ("x", "y"))
    tasks = [task for task in family.names for _ in range(len(x) // len(family))]
    table = pd.DataFrame({"task": tasks, "x": x, "y": y})
    table.to_csv(folder / DATA, index=False)
    if kind == "overwrite":
        earlier = ("fit", DATA, *USUAL[:6], "--out", RUN, "--quiet")
        app(list(earlier), standalone_mode=False)


def attempt(kind: str, steps: int, *, begun: bool = False) -> int:
    """Do the fit in this folder, as a person would; the exit code.

    Args:
        kind, steps: which.
        begun: whether it has written anything: one that has not is no fit to go on with, and its
            command is given again.
    """
    if kind == PROGRAM:
        return program(steps)
    first = ("fit", DATA, *USUAL, *COMMANDS[kind], "--steps", str(steps), "--out", RUN)
    again = ("fit", "--resume", RUN)
    every = ("--checkpoint-every", str(EVERY), "--quiet")
    return app(list((*again, "--quiet") if begun else (*first, *every)), standalone_mode=False) or 0


def program(steps: int) -> int:
    """A few lines of Python, run again from their first line."""
    family = sinusoids()
    model = bm.models.mlp((4,), family, bm.likelihoods.Gaussian(), seed=SEED)
    method = bm.methods.stochastic(
        algorithm=bm.methods.GradientDescent(0.05, 1, rows=2, learn_lr=True),
        draws=2, support=4, batch=4, optimiser="adam", outer_lr=0.01, outer_steps=steps,
    )  # fmt: skip
    kept = bm.Checkpoint(KEPT, every=EVERY)
    bm.fit(model, family, method=method, checkpoint=kept).save(RUN)
    return 0
