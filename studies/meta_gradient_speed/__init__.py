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
SAID = {"eager": "as it stands", "compiled": "compiled"}
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
    """Time and memory, beside those of other ways, and which goals and rivals it misses."""
    times = table[table["part"] == "time"].set_index("implementation")
    ms = times["ms"].dropna()
    peak = table[table["part"] == "memory"].pivot(
        index="inner_steps", columns="implementation", values="peak_mib"
    )
    few, many = peak.index.min(), peak.index.max()
    far = 256 if 256 in peak.index else many
    ours = [name for name in FASTER if name in ms]
    took = " and ".join(f"{ms[name]:.3g} ms {SAID[name]}" for name in ours)
    faster = " and ".join(f"{times['times_loop'][name]:.3g}" for name in ours)
    return (
        f"One implicit meta-gradient takes {took}, and holds {peak['implicit'][many]:.3g} MiB at "
        f"{many:,} inner steps where unrolling holds {peak['unrolled'][many]:.3g}. "
        f"It is {faster} times as fast as a loop over tasks in plain torch, and its memory at "
        f"{far} inner steps is {peak['implicit'][far] / peak['implicit'][few]:.3f} times that at "
        f"{few} (goal: at most {FLAT:g}). "
        f"Beware that {_goals(times, ours)}, and that {_rival(ms)}."
    )


def _goals(times: pd.DataFrame, ours: list[str]) -> str:
    """As "the goals of 8 and 60 times are not reached"."""
    reached = [times["times_loop"][name] >= FASTER[name] for name in ours]
    goals = " and ".join(f"{FASTER[name]}" for name in ours)
    one = len(ours) == 1
    how = "reached" if all(reached) else "not both reached" if any(reached) else "not reached"
    return f"the goal{'' if one else 's'} of {goals} times {'is' if one else 'are'} {how}"


def _rival(ms: pd.Series) -> str:
    """What JAX takes, and what TorchOpt, where they are installed."""
    names = {"jax": "JAX", "torchopt": "TorchOpt"}
    took = [f"{name} takes {ms[key]:.3g} ms" for key, name in names.items() if key in ms]
    return " and ".join(took) if took else "neither JAX nor TorchOpt was measured"
