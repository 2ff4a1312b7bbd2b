"""One of several processes that do the fits a test asks for: `process_worker.py RANK SIZE FILE`.

A line of JSON on stdin asks for one, a line of JSON on stdout answers. FILE is where they meet.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as processes
from safetensors.torch import save_file
from shared_fits import fitted, numbers
from torch import Tensor

import bayesmeta as bm
from bayesmeta.joint.problem import Problem
from bayesmeta.ranks import RankLost, Ranks
from bayesmeta.results import InputError


@contextmanager
def planted(error: str | None) -> Iterator[None]:
    """The library with an error in it, which a comparison of processes has to find."""
    honest = Ranks.summed

    def summed(self: Ranks, tensors: Sequence[Tensor]) -> list[Tensor]:
        gathers = len(tensors) == 1
        return honest(self, tensors) if gathers else [self.size * tensor for tensor in tensors]

    with pytest.MonkeyPatch.context() as patch:
        if error == "gradients of one rank":
            patch.setattr(Ranks, "summed", summed)
        if error == "noise of each rank":
            patch.setattr(Problem, "refuse_unlike", lambda self, ranks: None)
        yield


def answer(asked: dict[str, Any], rank: int) -> dict[str, Any]:
    """Do a fit, and write what it found; or what stopped it."""
    options: dict[str, Any] = {"nudge": asked.get("nudges", {}).get(str(rank), 0.0)}
    if "checkpoint" in asked:
        options["checkpoint"] = bm.Checkpoint(asked["checkpoint"], every=asked["every"])
    if asked.get("killed") == rank:

        def kill(step: int, steps: int, value: float) -> None:
            if step >= asked["at"]:
                os.kill(os.getpid(), signal.SIGKILL)

        options["callbacks"] = [kill]
    if asked.get("error") == "noise of each rank" or "seeds" in asked:
        options["seed"] = 5 + rank
    try:
        with planted(asked.get("error")):
            fit = fitted(asked["name"], getattr(torch, asked["dtype"]), asked["steps"], **options)
    except (InputError, RankLost) as error:
        return {"stopped": type(error).__name__, "says": str(error)}
    save_file(numbers(fit), Path(asked["out"]) / f"{rank}.safetensors")
    return {"solver": fit.solver}


def main() -> None:
    rank, size = int(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    store = processes.FileStore(sys.argv[3], size)
    processes.init_process_group(
        "gloo", store=store, rank=rank, world_size=size, timeout=timedelta(seconds=60)
    )
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line), rank)), flush=True)
    sys.stdout.flush()
    os._exit(0)  # a group that has lost a process cannot be taken down in order


if __name__ == "__main__":
    main()
