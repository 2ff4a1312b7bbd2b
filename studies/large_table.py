"""Time and memory of a fit from a large CSV file, beside pandas' own reading of it.

Ragged tasks, of 1 to 136 rows, with an intercept, two slopes that vary by task and one that does
not. Reading by pandas, reading into tasks, and the whole command `bayesmeta fit`, which also
writes the run, have a process of their own each, on one thread, and what counts is all memory that
the process ever held, torch and the interpreter included. `python -m studies.large_table STAGE
FILE` is that process.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bayesmeta.plots import COLOURS, DOUBLE, style
from studies._framework import Result, in_own_process
from studies.growth import peak_mib

QUESTION = "How large a table can be fitted, in what time and memory beside pandas' reading of it?"
SIZES = (1_000, 10_000, 100_000)
QUICK = (100,)
MOST_ROWS = 136
PART = 10_000
"""Tasks that are drawn and written together."""
LIMIT_GIB = 4.0
MIB = 2**20
TRUTH = {"Intercept": 2.0, "x1": -1.0, "x2": 0.5}
FORMULA = "y ~ x1 + x2 + x3 + (x1 + x2 | clinic)"
STAGES = {
    "pandas": ("pandas.read_csv", COLOURS["reference"], "s", "--"),
    "read": ("read into tasks", COLOURS["data"], "^", "-."),
    "fit": ("bayesmeta fit: read, fit, save", COLOURS["joint"], "o", "-"),
}


def run(quick: bool, device: str) -> Result:
    """Every stage at every size; reading three times, of which the median counts."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for tasks in QUICK if quick else SIZES:
            file = Path(folder) / f"{tasks}.csv"
            count = write(file, tasks)
            size = {"tasks": tasks, "rows": count, "file_mib": file.stat().st_size / MIB}
            for stage in STAGES:
                repeats = 1 if quick or stage == "fit" else 3
                found = [
                    in_own_process("studies.large_table", stage, file, device)
                    for _ in range(repeats)
                ]
                middle = sorted(found, key=lambda row: row["seconds"])[repeats // 2]
                most = max(row["peak_mib"] for row in found)
                rows.append(size | {"stage": stage} | middle | {"peak_mib": most})
            file.unlink()
    return Result(pd.DataFrame(rows))


def write(file: Path, tasks: int) -> int:
    """A table of so many tasks; the number of its rows."""
    generator = np.random.default_rng(tasks)
    total = 0
    for first in range(0, tasks, PART):
        count = generator.integers(1, MOST_ROWS + 1, size=min(PART, tasks - first))
        task = np.repeat(np.arange(len(count)), count)
        x = generator.normal(size=(3, len(task)))
        weights = generator.normal(size=(3, len(count))) * [[1.0], [0.5], [0.3]]
        weights += np.array(list(TRUTH.values()))[:, None]
        y = weights[0, task] + weights[1, task] * x[0] + weights[2, task] * x[1] + 0.7 * x[2]
        y += 0.5 * generator.normal(size=len(task))
        columns = {"clinic": np.char.add("c", (task + first).astype(str)), "y": y.round(6)}
        columns |= {f"x{i + 1}": x[i].round(6) for i in range(3)}
        mode = "w" if first == 0 else "a"
        pd.DataFrame(columns).to_csv(file, index=False, mode=mode, header=first == 0)
        total += len(task)
    return total


def measure(stage: str, file: Path, device: str) -> dict[str, object]:
    """Seconds, the most memory, and what tells whether the fit is right."""
    started = time.perf_counter()
    found = WORK[stage](file, device)
    seconds = time.perf_counter() - started
    return {"device": device, "seconds": seconds, "peak_mib": peak_mib("cpu")} | found


def _pandas(file: Path, device: str) -> dict[str, float]:
    pd.read_csv(file)
    return {}


def _read(file: Path, device: str) -> dict[str, float]:
    import bayesmeta as bm

    bm.TaskFamily.from_formula(FORMULA, file)
    return {}


def _fit(file: Path, device: str) -> dict[str, float]:
    from bayesmeta.cli import app

    folder = file.parent / "run"
    command = ["fit", str(file), "--formula", FORMULA, "--out", str(folder), "--overwrite"]
    shown = sys.stdout
    with open(os.devnull, "w", encoding="utf-8") as sys.stdout:
        app([*command, "--device", device], standalone_mode=False)
    sys.stdout = shown
    fitted = json.loads((folder / "run.json").read_text("utf-8"))["result"]
    errors = fitted["standard_errors"]
    z = [(fitted["theta0"][name] - true) / errors[name] for name, true in TRUTH.items()]
    return {"largest_z": max(map(abs, z)), "flagged": len(fitted["flagged"])}


WORK: dict[str, Callable[[Path, str], dict[str, float]]] = {
    "pandas": _pandas,
    "read": _read,
    "fit": _fit,
}


def draw(table: pd.DataFrame) -> dict[str, Figure]:
    """Seconds and memory against the size of the file."""
    with style():
        figure = Figure(figsize=(DOUBLE, 2.7), layout="constrained")
        left, right = figure.subplots(1, 2)
        _panel(left, table, table["seconds"], "seconds")
        _panel(right, table, table["peak_mib"] / 1024, "most memory of the process (GiB)")
        right.axhline(LIMIT_GIB, color="black", linewidth=0.8, linestyle=":")
        right.text(
            table["file_mib"].min(), LIMIT_GIB * 0.96, f"{LIMIT_GIB:g} GiB", va="top", ha="left"
        )
        right.set_ylim(0, LIMIT_GIB * 1.1)
        left.set_yscale("log")
        left.legend(frameon=False, loc="upper left")
    return {"large_table": figure}


def _panel(ax: Axes, table: pd.DataFrame, values: pd.Series, label: str) -> None:
    for stage, (name, colour, marker, dashes) in STAGES.items():
        rows = table["stage"] == stage
        ax.plot(
            table["file_mib"][rows], values[rows],
            color=colour, marker=marker, linestyle=dashes, markersize=4, label=name,
        )  # fmt: skip
    tasks = table.drop_duplicates("tasks")
    ax.set(xscale="log", xlabel="file (MiB), tasks", ylabel=label)
    names = [
        f"{size:.3g}\n{count:,}" for size, count in zip(tasks.file_mib, tasks.tasks, strict=True)
    ]
    ax.set_xticks(tasks["file_mib"], names)
    ax.minorticks_off()


def headline(table: pd.DataFrame) -> str:
    """The largest file: what pandas, reading and fitting take, and whether the fit is right."""
    largest = table[table["tasks"] == table["tasks"].max()].set_index("stage")
    fit, read, pandas = (largest.loc[stage] for stage in ("fit", "read", "pandas"))
    size = f"{fit['rows']:,} rows, {fit['file_mib']:.0f} MiB"
    return (
        f"{fit['tasks']:,} ragged tasks ({size}) are read, fitted and saved in "
        f"{fit['seconds']:.0f} s and {_gib(fit)} on one thread. Reading them into tasks takes "
        f"{read['seconds']:.1f} s and {_gib(read)}, where pandas alone reads the file in "
        f"{pandas['seconds']:.1f} s and {_gib(pandas)}. The prior means lie within "
        f"{fit['largest_z']:.1f} of their standard errors of the truth, and "
        f"{fit['flagged']:.0f} tasks are flagged."
    )


def _gib(row: pd.Series) -> str:
    return f"{row['peak_mib'] / 1024:.1f} GiB"


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], Path(sys.argv[2]), sys.argv[3])))
