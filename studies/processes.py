"""One fit by one process and by several, on torch.distributed: the same θ₀, and at what cost.

Three small fits: MAML on sinusoids, MAML on generated images (both by their own steps), and free
Q_i of sinusoids, whose table the processes share out. One process also takes the sums over tasks
in two halves, as two processes do: what that changes is rounding, not communication.

Processes that share no core halve a step at best; processes that share one cannot. So the same fit
is also timed in as many processes at once that know nothing of each other: what this machine takes
longer then is not the fault of the messages. `python -m studies.processes JSON` is one of the
processes.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.distributed as processes
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

import bayesmeta as bm
from bayesmeta.plots import COLOURS, DOUBLE, style
from bayesmeta.ranks import Ranks
from studies._framework import ONE_THREAD, ROOT, Result

QUESTION = "Do several processes give the same fit as one, and what do they cost?"
DTYPES = ("float32", "float64")
BOUNDS = {"float32": 1e-5, "float64": 1e-10}
STEPS, QUICK_STEPS = 100, 20
EVERY = 10  # steps between two calls of a callback
SUMS = 100
SAME_BITS = 1e-18
"""Where a difference of 0 is drawn on a logarithmic axis."""
LABELS = {
    "maml": "MAML, sinusoids",
    "images": "MAML, images, Conv4",
    "joint": "free Q$_i$, sinusoids",
}
Fitted = Callable[..., bm.Fit]


def run(quick: bool, device: str) -> Result:
    """All fits by one process, and by several apart and together."""
    several = max(torch.cuda.device_count(), 1) if device == "cuda" else 2
    fits, dtypes = (("maml", "joint"), DTYPES[:1]) if quick else (tuple(LABELS), DTYPES)
    asked = {"fits": fits, "dtypes": dtypes, "device": device}
    asked |= {"steps": QUICK_STEPS if quick else STEPS}
    rows = _answers(asked, 1, ("alone",) if quick else ("alone", "halves"))
    if several > 1:
        rows += _answers(asked, several, ("apart", "together"))
    table = _table(pd.DataFrame(rows))
    return Result(table)


def _answers(asked: dict[str, Any], size: int, hows: Sequence[str]) -> list[dict[str, Any]]:
    """What the first of so many processes found, all of them working."""
    with tempfile.TemporaryDirectory() as folder:
        asked = asked | {"size": size, "hows": hows, "meeting": str(Path(folder) / "meeting")}
        workers = [
            subprocess.Popen(
                [sys.executable, "-m", "studies.processes", json.dumps(asked | {"rank": rank})],
                stdout=subprocess.PIPE,
                text=True,
                cwd=ROOT,
                env=os.environ | ONE_THREAD,
            )
            for rank in range(size)
        ]
        said = [one.communicate()[0] for one in workers]
    if any(one.returncode for one in workers):
        raise RuntimeError(f"a process of {asked} failed; what it said is above")
    return json.loads(said[0].splitlines()[-1])


def _table(rows: pd.DataFrame) -> pd.DataFrame:
    """With max |Δθ₀| to the fit by one process in the place of θ₀."""
    wanted = {(r.fit, r.dtype): r.theta0 for r in rows.itertuples() if r.how == "alone"}
    off = [
        max(abs(a - b) for a, b in zip(r.theta0, wanted[r.fit, r.dtype], strict=True))
        for r in rows.itertuples()
    ]
    return rows.drop(columns="theta0").assign(difference=off)


# One process


def worker(asked: dict[str, Any]) -> None:
    """The fits of one process, by itself and in a group; θ₀ and times as JSON."""
    rank, size, device = asked["rank"], asked["size"], asked["device"]
    torch.set_num_threads(1)
    if device == "cuda":
        torch.cuda.set_device(rank)
    store, rows = processes.FileStore(asked["meeting"], size), []
    for how in asked["hows"]:
        store.add(how, 1)
        while store.add(how, 0) < size:  # all start at once
            time.sleep(0.01)
        if how == "together":
            kinds = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
            wait = timedelta(seconds=300)
            processes.init_process_group(
                kinds, store=store, rank=rank, world_size=size, timeout=wait
            )
        for name in asked["fits"]:
            if (name, how) != ("joint", "halves"):  # which has no parts
                rows += [measured(name, dtype, how, asked) for dtype in asked["dtypes"]]
    print(json.dumps(rows), flush=True)
    if processes.is_initialized():
        processes.destroy_process_group()


def measured(name: str, dtype: str, how: str, asked: dict[str, Any]) -> dict[str, Any]:
    """One fit: θ₀ and times."""
    theta0, ms, own = timed(FITS[name], getattr(torch, dtype), how, asked)
    backend = "nccl" if asked["device"] == "cuda" else "gloo"
    return {
        "fit": name,
        "dtype": dtype,
        "how": how,
        "processes": asked["size"],
        "weights": len(theta0),
        "steps": asked["steps"],
        "device": asked["device"],
        "backend": backend if how == "together" else "none",
        "ms_per_step": ms,
        "cpu_ms_per_step": own,
        "sum_ms": summing(theta0, asked["device"]),
        "theta0": theta0.double().tolist(),
    }


def timed(
    fit: Fitted, dtype: torch.dtype, how: str, asked: dict[str, Any]
) -> tuple[Tensor, float, float]:
    """θ₀ after the steps, milliseconds of one, and of a core's own time in it.

    Of the fastest ten steps: other work on the machine only adds.
    """
    given = dtype, asked["device"], 2 if how == "halves" else 1
    fit(*given, 1, ())  # what happens once
    clocks = time.perf_counter, time.process_time
    at = []

    def clock(step: int, steps: int, value: float) -> None:
        at.append([now() for now in clocks])

    found = fit(*given, asked["steps"], [clock])
    spans = [[1e3 * (b - a) / EVERY for a, b in zip(*two, strict=True)] for two in pairwise(at)]
    wall, own = (min(some) for some in zip(*spans, strict=True))
    return found.prior.mean.cpu(), wall, own


def summing(theta0: Tensor, device: str) -> float:
    """Milliseconds of one sum over all processes of as many doubles as there are weights."""
    ranks = Ranks.present()
    if ranks.size == 1:
        return 0.0
    message = [torch.zeros_like(theta0, dtype=torch.float64, device=device)]
    spans = []
    for _ in range(SUMS):
        ranks.summed(message)[0].cpu()  # brings the processes to one place
        started = time.perf_counter()
        ranks.summed(message)[0].cpu()
        spans.append(1e3 * (time.perf_counter() - started))
    return statistics.median(spans)


def maml(dtype: torch.dtype, device: str, parts: int, steps: int, callbacks: Sequence) -> bm.Fit:
    """25 sinusoids with 10 + 10 points, 16 a step, a 1-40-40-1 network."""
    family = _sinusoids(25, dtype)
    model = bm.models.mlp((40, 40), family, bm.likelihoods.Gaussian(scale=1.0))
    model.chunk_size = None if parts == 1 else 8
    method = bm.methods.maml(
        steps=5, lr=0.01, support=10, batch=16, optimiser="adam", outer_lr=0.001, outer_steps=steps
    )
    return bm.fit(model, family, method=method, device=device, callbacks=callbacks)


def images(dtype: torch.dtype, device: str, parts: int, steps: int, callbacks: Sequence) -> bm.Fit:
    """Five-way five-shot tasks of 28 × 28 images of patterns and noise, 8 a step."""
    generator = torch.Generator().manual_seed(0)
    patterns = torch.rand(20, 1, 28, 28, generator=generator).repeat_interleave(10, 0)
    values = patterns + 0.3 * torch.randn(patterns.shape, generator=generator)
    names = tuple(f"pattern {i}" for i in range(20))
    labels = torch.arange(20).repeat_interleave(10)
    bank = bm.images.Images((255 * values.clamp(0, 1)).byte(), labels, names, "generated")
    stream = bm.FewShot(bank, ways=5, shots=5, queries=5, dtype=dtype)
    model = bm.models.conv4(5, filters=16, chunk_size=None if parts == 1 else 4)
    method = bm.methods.maml(
        steps=1, lr=0.1, support=None, batch=8, optimiser="adam", outer_lr=0.001, outer_steps=steps
    )
    return bm.fit(model, stream, method=method, device=device, callbacks=callbacks)


def joint(dtype: torch.dtype, device: str, parts: int, steps: int, callbacks: Sequence) -> bm.Fit:
    """Free diagonal Q_i of 200 sinusoids, a 1-20-1 network, one draw a step."""
    family = _sinusoids(200, dtype)
    model = bm.models.mlp((20,), family, bm.likelihoods.Gaussian())
    method = replace(bm.methods.joint(covariance="diagonal", lr=0.001), steps=steps)
    return bm.fit(model, family, method=method, device=device, callbacks=callbacks)


def _sinusoids(tasks: int, dtype: torch.dtype) -> bm.TaskFamily:
    generator = torch.Generator().manual_seed(0)
    family, _ = bm.families.sinusoid(tasks=tasks, rows=20, noise=0.1, generator=generator)
    return family.to(dtype=dtype)


FITS: dict[str, Fitted] = {"maml": maml, "images": images, "joint": joint}


# The result


def _figure(table: pd.DataFrame) -> Figure:
    """Left, how far θ₀ is from that of one process; right, what a step takes beside one's."""
    with style():
        figure = Figure(figsize=(DOUBLE, 2.8), layout="constrained")
        left, right = figure.subplots(1, 2)
        names = list(dict.fromkeys(table["fit"]))
        _differences(left, table, names)
        _times(right, table, names)
        for ax in (left, right):
            ax.set_yticks(range(len(names)), [LABELS[name] for name in names])
            ax.set_ylim(len(names) - 0.5, -0.5)
            ax.legend(
                frameon=False,
                loc="lower center",
                bbox_to_anchor=(0.4, 1.0),
                ncols=2,
                columnspacing=1.0,
                handletextpad=0.4,
            )
        right.tick_params(labelleft=False)
    return figure


BLACK, GREY = COLOURS["data"], COLOURS["reference"]  # fits differ by row, so colours name no method
DTYPE_LOOKS = {"float32": (GREY, "^", ":"), "float64": (BLACK, "o", "--")}
TIME_LOOKS = (
    ("together", "ms_per_step", "{} processes, one fit", {"marker": "D", "color": BLACK}),
    (
        "together", "cpu_ms_per_step", "core time of each",
        {"marker": "D", "color": BLACK, "markerfacecolor": "none"},
    ),
    ("apart", "ms_per_step", "{} processes, a fit each", {"marker": "s", "color": GREY}),
)  # fmt: skip


def _differences(ax: Axes, table: pd.DataFrame, names: list[str]) -> None:
    size = int(table["processes"].max())
    for dtype, (colour, marker, line) in DTYPE_LOOKS.items():
        if not (table["dtype"] == dtype).any():
            continue
        for how, hollow, shift in (("together", False, -0.12), ("halves", True, 0.12)):
            rows = table[(table["dtype"] == dtype) & (table["how"] == how)]
            if rows.empty:
                continue
            said = "1 process, halved sums" if hollow else f"{size} processes"
            ax.plot(
                rows["difference"].clip(lower=SAME_BITS),
                [names.index(name) + shift for name in rows["fit"]],
                marker, color=colour, markerfacecolor="none" if hollow else colour,
                markersize=5, label=f"{dtype}, {said}",
            )  # fmt: skip
        label = f"{dtype}, allowed"
        ax.axvline(BOUNDS[dtype], color=colour, linewidth=1.0, linestyle=line, label=label)
    ticks = {SAME_BITS: "0"} | {10.0**e: f"$10^{{{e}}}$" for e in (-15, -10, -5)}
    ax.set(xscale="log", xlim=(SAME_BITS / 4, 1e-3))
    ax.set_xlabel("largest |difference| in θ$_0$ from one process")
    ax.set_xticks(list(ticks), list(ticks.values()))
    ax.minorticks_off()


def _times(ax: Axes, table: pd.DataFrame, names: list[str]) -> None:
    at = table[table["dtype"] == DTYPES[0]].set_index(["how", "fit"])
    size = int(table["processes"].max())
    for i, (how, column, label, look) in enumerate(TIME_LOOKS):
        if how not in at.index:
            continue  # one device, one process
        ratio = [at.loc[(how, name), column] / at.loc[("alone", name), column] for name in names]
        places = [place + 0.2 * (i - 1) for place in range(len(names))]
        ax.plot(ratio, places, linestyle="", markersize=5, label=label.format(size), **look)
    ax.axvline(1, color=BLACK, linewidth=0.8, linestyle=":", label="one process")
    ax.set(xlabel=f"time of a step, {size} processes ÷ one (float32)")
    ax.set_xlim(0, max(1.3, ax.get_xlim()[1]))


def draw(table: pd.DataFrame) -> dict[str, Figure]:
    """The study's figures, by name."""
    return {"processes": _figure(table)}


def headline(table: pd.DataFrame) -> str:
    """How far apart θ₀ is, and what a step costs, beside what the machine allows."""
    shared = table[table["how"] == "together"]
    if not len(shared):
        return f"One device, so one process: nothing to compare ({table['device'].iloc[0]})."
    size, first = int(shared["processes"].iloc[0]), shared["dtype"].iloc[0]
    steps, fits = table["steps"].iloc[0], shared["fit"].nunique()
    at = table[table["dtype"] == first].set_index(["how", "fit"])
    ms = at["ms_per_step"]
    ratio = (ms["together"] / ms["alone"]).sort_values()
    busy = ms["apart"] / ms["alone"]
    small = ratio.index[-1]
    return (
        f"After {steps} steps of each of {fits} fits, {size} processes are at the same θ₀ as one: "
        f"{_apart(shared)}. "
        f"A step takes them {ratio.iloc[0]:.2f} times as long as one process for "
        f"{_plain(ratio.index[0])} and {ratio.iloc[-1]:.2f} times for {_plain(small)}, whose step "
        f"is {ms['alone', small]:.3g} ms ({first}). "
        f"Beware that this machine sets the limit: busy with a fit each, {size} processes take "
        f"{busy.min():.2f} to {busy.max():.2f} times as long as one alone, so sharing cannot go "
        f"below {busy.min() / size:.2f} times."
    )


def _apart(shared: pd.DataFrame) -> str:
    """The largest difference in each precision."""
    worst = shared.groupby("dtype", sort=False)["difference"].max()
    said = (f"{f'within {off:.0e}' if off else 'to the bit'} in {d}" for d, off in worst.items())
    return " and ".join(said)


def _plain(fit: str) -> str:
    """A fit's name in a sentence."""
    return " on ".join(LABELS[fit].replace("$_i$", "_i").split(", ")[:2])


if __name__ == "__main__":
    worker(json.loads(sys.argv[1]))
