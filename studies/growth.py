"""Time and peak memory of an exact fit against the number of tasks.

Linear-Gaussian tasks with 5 to 15 rows each, an intercept and a slope that vary by task, drawn from
a known prior. Each size has a process of its own, on one thread; `python -m studies.growth TASKS
REPEATS DEVICE` is that process.
"""

from __future__ import annotations

import json
import statistics
import sys
import time

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import bayesmeta as bm
from bayesmeta.plots import COLOURS, DOUBLE, style
from studies._framework import Result, in_own_process

QUESTION = "How do time and memory of a linear-Gaussian fit grow with the number of tasks?"
SIZES = {100: 15, 1_000: 15, 10_000: 7, 100_000: 3}
QUICK = {100: 1, 1_000: 1}
MIB = 2**20
RESOLVED = {"peak_mib": 1.0}  # less than the allocator keeps in hand anyway


def run(quick: bool, device: str) -> Result:
    """One process per size."""
    sizes = QUICK if quick else SIZES
    rows = [
        in_own_process("studies.growth", tasks, repeats, device) for tasks, repeats in sizes.items()
    ]
    table = pd.DataFrame(rows)
    return Result(table)


def draw(table: pd.DataFrame) -> dict[str, Figure]:
    """The study's figures, by name."""
    return {"growth": _figure(table)}


def headline(table: pd.DataFrame) -> str:
    """The largest size, and the power of the number of tasks that time grows with."""
    last, before = table.iloc[-1], table.iloc[-2]
    return (
        f"{last['tasks']:,} tasks ({last['rows']:,} rows) take {last['seconds']:.2g} s and "
        f"{last['peak_mib']:.0f} MiB ({last['device']}, one thread); time grows as "
        f"tasks^{slope(table, 'seconds'):.2f} over all sizes and as "
        f"tasks^{slope(table.iloc[-2:], 'seconds'):.2f} from {before['tasks']:,} on (1 is linear)."
    )


def slope(table: pd.DataFrame, column: str) -> float:
    """The power of the number of tasks that a column grows with: the least-squares log-log slope.

    Example:
        >>> slope(pd.DataFrame({"tasks": [1, 10, 100], "seconds": [2, 200, 20000]}), "seconds")
        2.0
    """
    fitted = np.polyfit(np.log(table["tasks"]), np.log(table[column]), 1)
    return round(float(fitted[0]), 6)


def _figure(table: pd.DataFrame) -> Figure:
    """Seconds and MiB against tasks, log-log, with linear growth through the largest size."""
    with style():
        figure = Figure(figsize=(DOUBLE, 2.5), layout="constrained")
        left, right = figure.subplots(1, 2)
        _panel(left, table, "seconds", "median seconds of a fit")
        _panel(right, table, "peak_mib", "MiB")
        right.plot(
            table["tasks"], table["data_mib"], color=COLOURS["data"], marker=".", label="the data"
        )
        for ax in (left, right):
            ax.legend(frameon=False)
    return figure


def _panel(ax: Axes, table: pd.DataFrame, column: str, label: str) -> None:
    last = table.iloc[-1]
    measured = table[column].where(table[column] >= RESOLVED.get(column, 0.0))
    ax.plot(
        table["tasks"], last[column] * table["tasks"] / last["tasks"],
        color=COLOURS["reference"], linestyle="--", label="linear",
    )  # fmt: skip
    name = "peak above the start" if column == "peak_mib" else "bm.fit"
    ax.plot(table["tasks"], measured, color=COLOURS["joint"], marker="o", markersize=4, label=name)
    ax.set(xscale="log", yscale="log", xlabel="tasks", ylabel=label)


def measure(tasks: int, repeats: int, device: str) -> dict[str, object]:
    """One row: a small fit first, so that what loads on first use is not counted."""
    fit(100, 1, device)
    start = peak_mib(device)
    family, truth, fitted, seconds = fit(tasks, repeats, device)
    errors = torch.tensor([fitted.standard_errors[name] for name in fitted.prior.names])
    z = (fitted.prior.mean.cpu() - truth.theta0) / errors
    tensors = [*family.tensors.values(), family.mask]
    return {
        "tasks": tasks,
        "rows": family.observations,
        "device": device,
        "seconds": statistics.median(seconds),
        "fastest": min(seconds),
        "slowest": max(seconds),
        "repeats": repeats,
        "data_mib": sum(t.nbytes for t in tensors if t is not None) / MIB,
        "peak_mib": peak_mib(device) - start,
        "steps": len(fitted.trace),
        "theta0_largest_z": float(z.abs().max()),
        "noise_relative_error": fitted.noise / truth.shared["scale"] - 1,
    }


def fit(tasks: int, repeats: int, device: str):
    """The family, its truth, the last fit, and the seconds of each."""
    family, truth = bm.families.linear_gaussian(
        tasks=tasks, rows=(5, 15), generator=torch.Generator().manual_seed(tasks)
    )
    family = family.to(device=device)
    model = bm.Model(torch.nn.Linear(1, 1), bm.likelihoods.Gaussian())
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        fitted = bm.fit(model, family)
        seconds.append(time.perf_counter() - started)
    return family, truth, fitted, seconds


def peak_mib(device: str) -> float:
    """The most memory this process has ever held: on the device, or of the process itself."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated(device) / MIB
    try:
        # Not getrusage: its maximum begins with that of the parent, which may be larger.
        with open("/proc/self/status", encoding="ascii") as status:
            line = next(line for line in status if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    except FileNotFoundError:
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MIB


if __name__ == "__main__":
    count, times, place = sys.argv[1:]
    print(json.dumps(measure(int(count), int(times), place)))
