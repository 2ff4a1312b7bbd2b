"""Time of one implicit meta-gradient beside other ways to compute it, and memory by inner steps.

    worker           one contender in its own process, pinned to one core, timed on request
    bayesmeta_step   bayesmeta as it stands and compiled
    plain_loop       a loop over tasks in plain torch; also, in float64, what all must agree with
    torchopt_loop    TorchOpt's implicit differentiation, task after task
    jax_vmap         JAX with jit and vmap
    timing           the contenders in turn, so that a busy minute falls on all alike
    memory           the most that implicit and unrolled gradients hold at once

TorchOpt and JAX run in the Python that the environment variable BAYESMETA_COMPETITORS names (by
default this one); a row without a time says what it lacks.
"""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from studies._framework import Result, in_own_process
from studies.meta_gradient_speed import figures, timing

QUESTION = "How long does an implicit meta-gradient take, and how much memory?"
FASTER = {"eager": 8, "compiled": 60}
"""How many times as fast as the loop over tasks each is meant to be."""
FLAT = 1.05
"""How much of its memory at 16 inner steps the implicit gradient may need at 256."""
STEPS = (16, 64, 256, 1024)


def run(quick: bool, device: str) -> Result:
    """Time all contenders, then measure memory in one other process."""
    steps = STEPS[:2] if quick else STEPS
    times = timing.quick(device) if quick else timing.full(device)
    peaks = in_own_process("studies.meta_gradient_speed.memory", device, *steps)
    table = pd.DataFrame([*times, *peaks])
    return Result(table)


def draw(table: pd.DataFrame) -> dict[str, Figure]:
    """The study's figures, by name."""
    return {
        "meta_gradient_speed": figures.draw(table),
    }


def headline(table: pd.DataFrame) -> str:
    """Times beside the loop over tasks and the goals, memory by inner steps, from the table."""
    times = table[table["part"] == "time"].set_index("implementation")
    ms = times["ms"].dropna()
    ours = [
        f"{name} {ms[name]:.3g} ms, {times['times_loop'][name]:.3g}× (goal {goal}×)"
        for name, goal in FASTER.items()
        if name in ms
    ]
    names = {"torchopt": "TorchOpt", "jax": "JAX"}
    others = [f"{label} {ms[name]:.3g} ms" for name, label in names.items() if name in ms]
    others += [
        f"{names.get(name, name)} not measured ({times['note'][name]})"
        for name in times.index
        if name not in ms
    ]
    said = (
        f"One implicit meta-gradient is {'; '.join(ours)} as fast as a loop over tasks in plain "
        f"torch ({ms['loop']:.3g} ms){''.join(f', {other}' for other in others)}; all agree with "
        f"float64 to {times['relative_difference'].max():.0e}."
    )
    return f"{said} {_memory(table)}"


def _memory(table: pd.DataFrame) -> str:
    peak = table[table["part"] == "memory"].pivot(
        index="inner_steps", columns="implementation", values="peak_mib"
    )
    few, many = peak.index.min(), peak.index.max()
    far = 256 if 256 in peak.index else many
    ratio = peak["implicit"][far] / peak["implicit"][few]
    return (
        f"At {far} inner steps implicit needs {ratio:.3f} times its memory at {few} (goal "
        f"≤ {FLAT:g}); at {many} it holds {peak['implicit'][many]:.3g} MiB, unrolled "
        f"{peak['unrolled'][many]:.4g}."
    )
