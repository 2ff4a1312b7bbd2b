"""Contenders side by side: each in a process of its own, timed in turn on the same cases.

A busy minute of the machine falls on all alike. See `_serving` for the other side.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from studies._framework import ONE_THREAD, ROOT

ENVIRONMENT = ONE_THREAD | {"PYTHONPATH": str(ROOT), "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}


def competitors() -> str:
    """The Python that has other people's packages: BAYESMETA_COMPETITORS, or this one."""
    return os.environ.get("BAYESMETA_COMPETITORS", sys.executable)


class Contender:
    """A worker, and the times it has reported.

    Args:
        name: its first argument.
        worker: the file that is run.
        folder: its second, with the cases; answers land there, as NAME-CASE.npy.
        device: its third.
        python: which runs it.
    """

    def __init__(
        self, name: str, worker: Path, folder: Path, device: str, python: str = sys.executable
    ) -> None:
        self.name, self.folder = name, folder
        self.errors = folder / f"{name}.err"
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                [python, str(worker), name, str(folder), device],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=os.environ | ENVIRONMENT,
            )
        self.first: dict[str, dict[str, Any]] = {}
        self.seconds: dict[str, list[float]] = {}

    def begin(self, case: str) -> None:
        """Prepare a case and call it once; others wait, as compiling would slow them."""
        if case not in self.first:
            self.first[case] = self._asked(case)
        self.seconds[case] = []

    def absent(self, case: str) -> str:
        """What it lacks; "" where it can be timed."""
        return self.first[case].get("absent", "")

    def take_turn(self, case: str) -> None:
        """One more time."""
        if not self.absent(case):
            self.seconds[case].append(self._asked(case)["seconds"])

    def _asked(self, case: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(f"{case}\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # what it died of is told below
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            raise RuntimeError(f"{self.name} failed:\n{self.errors.read_text()}")
        return json.loads(line)

    def answer(self, case: str) -> np.ndarray:
        """What its first call gave."""
        return np.load(self.folder / answer_file(self.name, case))

    def difference(self, case: str, wanted: np.ndarray) -> float:
        """‖answer − wanted‖ / ‖wanted‖."""
        return float(np.linalg.norm(self.answer(case) - wanted) / np.linalg.norm(wanted))

    def times(self, case: str) -> dict[str, Any]:
        """Median over two turns or more, how far quartiles are apart, and the smallest, in ms."""
        if self.absent(case):
            return {"ms": float("nan"), "note": self.absent(case)}
        seconds = self.seconds[case]
        low, _, high = statistics.quantiles(seconds, n=4, method="inclusive")
        found = {
            "ms": 1e3 * statistics.median(seconds),
            "spread_ms": 1e3 * (high - low),
            "fastest_ms": 1e3 * min(seconds),
            "turns": len(seconds),
            "first_call_s": self.first[case]["seconds"],
            "note": "",
        }
        peak = self.first[case]["peak_mib"]
        return found if peak is None else found | {"peak_mib": peak}

    def close(self) -> None:
        """It may go."""
        self.process.communicate()


def answer_file(name: str, case: str) -> str:
    """Where a contender's answer lies in the folder of cases."""
    return f"{name}-{case}.npy"
