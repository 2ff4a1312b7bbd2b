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
    """Times and the share of bare products, the loop, the goal and TorchOpt, and what to mind."""
    steps = table[table["part"] == "step"]
    best = steps.groupby(["method", "queries"], sort=False)[steps.columns].apply(_fastest)
    ours = best.sort_values("ms")
    tasks, goal = int(steps["tasks"].iloc[0]), FASTER[table["device"].iloc[0]]
    verdict = _verdict(best["times_loop"], goal)
    return (
        f"A meta-gradient of Conv4 with {tasks} tasks takes bayesmeta {_range(ours)}, "
        f"and bare matrix products would take "
        f"{_span(100 * best['of_products'], '.0f')} % of that. "
        f"It is {_span(best['times_loop'], '.2g')} times as fast as a loop over tasks in plain "
        f"torch, where {goal} times {verdict}; {_torchopt(steps, best)}. "
        f"Beware that rounding parts results as timed by up to {_alike(steps):.1g}, where float64 "
        f"agrees to {steps['difference_float64'].max():.0e}{_rounded(steps)}, and "
        f"{_forms(table[table['part'] == 'form'])}."
    )


def _fastest(rows: pd.DataFrame) -> pd.Series:
    """Of one method and number of queries: the fastest of ours that computes the same."""
    ours = rows[~rows["implementation"].isin(figures.NOT_OURS)].dropna(subset="ms")
    return ours.loc[ours["ms"].idxmin()]


def _said(row: pd.Series) -> str:
    """A time and what was computed in it."""
    return (
        f"{row['ms']:,.0f} ms ({figures.METHODS[row['method']]}, {figures.asked(row['queries'])})"
    )


def _range(ours: pd.DataFrame) -> str:
    """The shortest and the longest, of a table in that order."""
    shortest, longest = _said(ours.iloc[0]), _said(ours.iloc[-1])
    return shortest if len(ours) == 1 else f"{shortest} to {longest}"


def _span(values: pd.Series, form: str) -> str:
    """From the least to the largest, as one number where they read the same."""
    low, high = f"{values.min():{form}}", f"{values.max():{form}}"
    return low if low == high else f"{low} to {high}"


def _verdict(speeds: pd.Series, goal: float) -> str:
    """Whether the goal is reached anywhere."""
    return "was the goal" if speeds.max() >= goal else "was the goal and is not reached"


def _torchopt(steps: pd.DataFrame, best: pd.DataFrame) -> str:
    """How much longer TorchOpt takes for what it can do, if it is there."""
    theirs = steps[steps["implementation"] == "torchopt"]
    if theirs.empty:
        return "TorchOpt was not asked"
    row = theirs.iloc[0]
    if pd.isna(row["ms"]):
        return f"TorchOpt was not measured ({row['note']})"
    ours = best.loc[(row["method"], row["queries"]), "ms"]
    return f"TorchOpt's iMAML takes {row['ms'] / ours:.2g} times as long as bayesmeta's"


def _alike(steps: pd.DataFrame) -> float:
    """The largest difference in float32, of those that mean to compute the same."""
    return steps.loc[~steps["implementation"].isin(timing.ROUNDED), "difference"].max()


def _rounded(steps: pd.DataFrame) -> str:
    """The largest difference of those that round more on purpose, if any were timed."""
    rough = steps.loc[steps["implementation"].isin(timing.ROUNDED), "difference"].dropna()
    return f" (TF32 and bfloat16: {rough.max():.1g})" if len(rough) else ""


def _forms(rows: pd.DataFrame) -> str:
    """Whether another form of the convolution is faster in the whole step."""
    step = rows[rows["pass"] == "step"].sort_values("ms")
    others = step[step["implementation"] != "grouped"]
    rate = f"{others['times_grouped'].iloc[0]:.2g} times the speed of one group per task"
    name = figures.FORMS[others["implementation"].iloc[0]][0]
    if step["implementation"].iloc[0] == "grouped":
        return f"that no other form of the convolution is faster in a whole step ({name}: {rate})"
    return f"that another form of the convolution is faster in a whole step ({name}: {rate})"
