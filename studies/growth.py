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
from bayesmeta.plots import COLOURS, DOUBLE, MARKERS, style
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
    """The powers at large numbers, the largest size, and the fixed cost of the smallest."""
    first, before, last = table.iloc[0], table.iloc[-2], table.iloc[-1]
    large = table.iloc[-2:]
    memory = (
        ""
        if _resolved(large, "peak_mib").isna().any()
        else (f" and peak memory as its power of {slope(large, 'peak_mib'):.2f}")
    )
    return (
        f"From {before['tasks']:,} to {last['tasks']:,} tasks time grows as their number to the "
        f"power of {slope(large, 'seconds'):.2f}{memory}, where 1 is linear. "
        f"{last['tasks']:,} tasks with {last['rows']:,} rows take {last['seconds']:.2g} s and "
        f"{last['peak_mib']:.0f} MiB on one {_device(last['device'])}. "
        f"Beware that what every fit costs, however small, rules few tasks, so "
        f"{first['tasks']:,} tasks take {1e3 * first['seconds']:.0f} ms and the power over all "
        f"sizes is but {slope(table, 'seconds'):.2f}."
    )


def _device(name: str) -> str:
    return "thread of a CPU" if name == "cpu" else "GPU"


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
    few, many = table["repeats"].min(), table["repeats"].max()
    with style():
        figure = Figure(figsize=(DOUBLE, 2.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        _panel(left, table, "seconds", f"a fit (median of {few} to {many})")
        _panel(right, table, "peak_mib", "a fit: peak above the start")
        right.plot(
            table["tasks"], table["data_mib"], color=COLOURS["data"], marker="s", markersize=3,
            linestyle=":", label="its data alone",
        )  # fmt: skip
        left.set(ylabel="seconds", title="time")
        right.set(ylabel="MiB", title="memory")
        for ax in (left, right):
            ax.set(xscale="log", yscale="log", xlabel="number of tasks")
            ax.set_ylim(top=20 * ax.get_ylim()[1])  # room for the legend
            ax.legend(frameon=False, loc="upper left")
    return figure


def _panel(ax: Axes, table: pd.DataFrame, column: str, label: str) -> None:
    last, measured = table.iloc[-1], _resolved(table, column)
    ax.plot(
        table["tasks"], last[column] * table["tasks"] / last["tasks"],
        color=COLOURS["reference"], linestyle="--", label="linear, through the largest size",
    )  # fmt: skip
    if measured.isna().any():
        label += f" (over {RESOLVED[column]:g} MiB)"
    ax.plot(
        table["tasks"], measured, color=COLOURS["joint"], marker=MARKERS["joint"], markersize=4,
        label=label,
    )  # fmt: skip


def _resolved(table: pd.DataFrame, column: str) -> pd.Series:
    """Without what is too little to be measured."""
    return table[column].where(table[column] >= RESOLVED.get(column, 0.0))


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
