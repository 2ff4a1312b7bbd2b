"""`python worker.py NAME FOLDER DEVICE`: one contender, ready to be timed on FOLDER/CASE.npz."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

from plain_loop import plain_float32
from problem import Task

from studies._serving import Step, serve

MODULES = {"loop": "plain_loop", "torchopt": "torchopt_loop", "products": "products"}


def main(name: str, folder: Path, device: str) -> None:
    """Serve the contender of that name; all but bayesmeta's own have a module of their own."""

    def prepare(case: str) -> Step:
        module = import_module(MODULES.get(name, "bayesmeta_step"))
        plain_float32(tf32=name == "tf32")
        return module.prepare(Task.load(folder / f"{case}.npz", device), name)

    serve(prepare, lambda case: folder / f"{name}-{case}.npy", device)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
