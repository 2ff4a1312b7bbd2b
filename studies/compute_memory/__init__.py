"""Memory and time of one meta-gradient of Conv4 against inner steps and steps of its solver.

The setting is 20-way 5-shot with 5 queries a class, as in Figure 2b of Rajeswaran, Finn, Kakade &
Levine (2019), for one task: what more tasks at once hold is as many times that, and `chunk_size`
says how many there are. What the peak counts is said in `studies._peaks`.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from studies._framework import Result, in_own_process
from studies.compute_memory import figures

QUESTION = "How do memory and time of a meta-gradient grow with the number of inner steps?"
FLAT = 1.05
"""How much of its memory at 16 inner steps the implicit gradient may need at 256."""


def run(quick: bool, device: str) -> Result:
    """Measure all in one other process."""
    size = "quick" if quick else "full"
    table = pd.DataFrame(in_own_process("studies.compute_memory.measure", device, size))
    return Result(table)


def draw(table: pd.DataFrame) -> dict[str, Figure]:
    """The study's figures, by name."""
    return {
        "compute_memory": figures.draw(table),
    }


def headline(table: pd.DataFrame) -> str:
    """Growth of every rule, and the goal, from the table."""
    inner = table[table["part"] == "inner"]
    memory, seconds = (
        inner.pivot(index="inner_steps", columns="rule", values=name)
        for name in ("peak_mib", "seconds")
    )
    most = memory["maml"].dropna().index.max()
    each, fit = growth(memory["maml"])
    far = memory["imaml"].dropna().index.max()
    near = 16 if 16 in memory["imaml"].dropna().index else memory["imaml"].dropna().index.min()
    flat = memory.loc[far, "imaml"] / memory.loc[near, "imaml"]
    cg = table[table["part"] == "cg"].set_index("cg_steps")
    per_step = {
        rule: 1e3 * growth(seconds[rule])[0] for rule in ("maml", "maml_checkpoint", "imaml")
    }
    return (
        f"Memory of MAML for one task grows by {each:.3g} MiB with every inner step (R² = "
        f"{fit:.4f}), to {memory.loc[most, 'maml']:,.4g} MiB at {most}, while that of iMAML at "
        f"{far} is {flat:.3f} times that at {near} (goal: at most {FLAT:g}). "
        f"An inner step takes {per_step['imaml']:.3g} ms in iMAML and {per_step['maml']:.3g} in "
        f"MAML, whose memory at {most} is {memory.loc[most, 'maml_checkpoint']:.3g} MiB with a "
        f"checkpoint at every step, which then takes {per_step['maml_checkpoint']:.3g} ms. "
        f"Beware that iMAML pays {1e3 * growth(cg['seconds'])[0]:.3g} ms for each step of "
        f"conjugate gradients besides, and holds {memory.loc[far, 'imaml']:.3g} MiB where "
        f"first-order MAML holds {memory.loc[far, 'fomaml']:.3g}."
    )


def growth(values: pd.Series) -> tuple[float, float]:
    """Slope of the line through values by their index, and R²."""
    values = values.dropna()
    steps = values.index.to_numpy(float)
    slope, start = np.polyfit(steps, values, 1)
    left = values - (slope * steps + start)
    return float(slope), float(1 - left.var(ddof=0) / values.var(ddof=0))
