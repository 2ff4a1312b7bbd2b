"""Time of one meta-gradient of Conv4 beside other ways to compute it.

    problem          what every contender is given: 16 tasks, 5-way 1-shot
    bayesmeta_step   bayesmeta's outer step, all tasks at once or some at a time
    plain_loop       a loop over tasks in plain torch, with which all must agree in float64
    torchopt_loop    TorchOpt's implicit differentiation, task after task
    products         the matrix products that no way of doing it can spare
    timing           these in turn, so that a busy minute falls on all alike
    forms, passes    convolutions whose weights differ from task to task, written in several ways

Times on a CPU are the processes' own. TorchOpt runs in the Python that the environment variable
BAYESMETA_COMPETITORS names (by default this one); a row without a time says what it lacks. On the
CPU nothing is compiled: that takes 200 s here, and is worth 10 %. With --device cuda there are also
the compiled step, a CUDA graph of the eager one, TF32 and bfloat16 with their errors, cudnn's own
search for algorithms, and peak memory.
"""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from studies._framework import Result, in_own_process
from studies.conv_speed import figures, passes, timing

QUESTION = (
    "What does a meta-gradient of a convolutional network cost, beside a loop over tasks, "
    "TorchOpt's iMAML, and the bare matrix products?"
)
FASTER = {"cpu": 3, "cuda": 15}
"""How many times as fast as the loop over tasks it is meant to be."""


def run(quick: bool, device: str) -> Result:
    """Time all contenders, then the forms of the convolution in one other process."""
    rows = timing.quick(device) if quick else timing.full(device)
    if quick:
        rows += passes.rows(device, "quick")
    else:
        rows += in_own_process("studies.conv_speed.passes", device, "full")
    table = pd.DataFrame(rows).assign(device=device)
    return Result(table)


def draw(table: pd.DataFrame) -> dict[str, Figure]:
    """The study's figures, by name."""
    return {
        "conv_speed": figures.draw(table),
    }


def headline(table: pd.DataFrame) -> str:
    """Times beside the loop and the goal, the share of bare products, and the forms."""
    steps = table[table["part"] == "step"]
    tasks = int(steps["tasks"].iloc[0])
    said = [_case(rows) for _, rows in steps.groupby(["method", "queries"], sort=False)]
    goal = FASTER[table["device"].iloc[0]]
    return (
        f"One meta-gradient of Conv4 with {tasks} tasks, 5-way 1-shot, beside a loop over tasks in "
        f"plain torch (goal {goal}×), and the share of it that bare matrix products would take: "
        f"{'; '.join(said)}. All agree in float64 to "
        f"{steps['difference_float64'].max():.0e}, as timed to {_alike(steps):.0e}. "
        f"{_forms(table[table['part'] == 'form'])}"
    )


def _alike(steps: pd.DataFrame) -> float:
    """The largest difference in float32, of those that mean to compute the same."""
    return steps.loc[~steps["implementation"].isin(timing.ROUNDED), "difference"].max()


def _case(rows: pd.DataFrame) -> str:
    """Of one method and number of queries: the fastest of ours, the loop, TorchOpt."""
    by_name = rows.set_index("implementation").dropna(subset="ms")
    ours = by_name.drop([*figures.NOT_OURS], errors="ignore")
    best = ours.sort_values("ms").iloc[0]
    label, queries = figures.METHODS[rows["method"].iloc[0]], rows["queries"].iloc[0]
    said = (
        f"{label}, {queries:.0f} queries a class: {best['ms']:,.0f} ms {best.name}, "
        f"{best['times_loop']:.2g}×, {best['of_products']:.0%} products, "
        f"{best['images_per_s']:,.0f} images/s"
    )
    for name in timing.ROUNDED:
        if name in by_name.index:
            other = by_name.loc[name]
            said += f", {name} {other['ms']:,.0f} ms with an error of {other['difference']:.1g}"
    if "torchopt" in by_name.index:
        said += f", TorchOpt {by_name.loc['torchopt', 'ms']:,.0f} ms"
    absent = rows[rows["ms"].isna()]
    return said + "".join(
        f", {name} not measured ({note})"
        for name, note in zip(absent["implementation"], absent["note"], strict=True)
    )


def _forms(rows: pd.DataFrame) -> str:
    """Which form of the convolution is fastest, in the whole step."""
    step = rows[rows["pass"] == "step"].sort_values("ms")
    first = step.iloc[0]
    others = ", ".join(
        f"{name} {rate:.2g}×"
        for name, rate in zip(step["implementation"], step["times_grouped"], strict=True)
        if name != "grouped"
    )
    return (
        f"In a whole step of MAML with {int(first['images'])} images a task the fastest form of "
        f"the convolution is {first['implementation']} (against one group per task: {others})."
    )
