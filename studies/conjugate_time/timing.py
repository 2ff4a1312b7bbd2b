"""`python -m studies.conjugate_time.timing`: all contenders side by side, rows as JSON.

Reading the file and importing are off the clock; all from the DataFrame to the fit is on it. Every
contender runs once before it is timed, and then in turn with the others, so that a busy minute of
the machine falls on all alike.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import numpy as np
import pandas as pd
import statsmodels.formula.api as smf

from studies._sets import frame, linear_fit
from studies.conjugate_time.svi import Setting, fit

WITHIN = 0.1
METHODS = {
    "default": None,
    "lbfgs": "lbfgs",
    "bfgs": "bfgs",
    "nm then bfgs": ["nm", "bfgs"],
    "cg": "cg",
    "powell": "powell",
}
UNTUNED = Setting(lr=0.05, steps=1000, particles=10)
QUICK = Setting(lr=0.2, steps=200, particles=30)
GRID = [Setting(*s) for s in product((0.03, 0.1, 0.2), (200, 500, 1000, 2000), (1, 10, 30))]
Measure = Callable[[int], tuple[float, float]]


@dataclass(frozen=True)
class Set:
    """One family, written for each tool."""

    name: str
    formula: str
    fixed: str
    random: str
    task: str


SETS = (
    Set("sleepstudy", "Reaction ~ Days + (Days | Subject)", "Reaction ~ Days", "~Days", "Subject"),
    Set("radon", "log_radon ~ floor + (floor | county)", "log_radon ~ floor", "~floor", "county"),
)


@dataclass(frozen=True)
class Contender:
    """A tool with a setting; `measure(repeat)` gives (seconds, log-likelihood or ELBO)."""

    tool: str
    setting: str
    measure: Measure
    repeats: int


def rows(quick: bool) -> list[dict[str, object]]:
    """One row per set and contender."""
    repeats, noisy_repeats = (2, 1) if quick else (31, 7)
    found = []
    for one in SETS[:1] if quick else SETS:
        table = frame(one.name)
        best = linear_fit(one.formula, table).log_evidence
        methods = list(METHODS)[:2] if quick else METHODS
        settings = {"untuned": QUICK if quick else UNTUNED}
        if not quick:
            settings["tuned"] = _tune(one, table, best)
        contenders = [
            Contender("bayesmeta", "exact", _ours(one, table), repeats),
            *(
                Contender("statsmodels", name, _theirs(one, table, name), repeats)
                for name in methods
            ),
            *(
                Contender("Pyro SVI", f"{word}: {s}", _pyro(one, table, s, best), noisy_repeats)
                for word, s in settings.items()
            ),
        ]
        found += _side_by_side(one.name, contenders, best)
    return found


def _side_by_side(name: str, contenders: list[Contender], best: float) -> list[dict[str, object]]:
    for contender in contenders:
        contender.measure(0)
    taken: list[list[tuple[float, float]]] = [[] for _ in contenders]
    for repeat in range(max(c.repeats for c in contenders)):
        for contender, results in zip(contenders, taken, strict=True):
            if repeat < contender.repeats:
                results.append(contender.measure(repeat + 1))
    found = []
    for contender, results in zip(contenders, taken, strict=True):
        seconds, values = zip(*results, strict=True)
        found.append(
            {
                "set": name,
                "tool": contender.tool,
                "setting": contender.setting,
                "seconds": statistics.median(seconds),
                "fastest": min(seconds),
                "slowest": max(seconds),
                "repeats": len(seconds),
                "log_likelihood": statistics.median(values),
                "nats_below_best": best - statistics.median(values),
            }
        )
    return found


def _clocked(work: Callable[[], float]) -> tuple[float, float]:
    started = time.perf_counter()
    value = work()
    return time.perf_counter() - started, value


def _ours(one: Set, table: pd.DataFrame) -> Measure:
    return lambda _: _clocked(lambda: linear_fit(one.formula, table).log_evidence)


def _theirs(one: Set, table: pd.DataFrame, method: str) -> Measure:
    def work() -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                model = smf.mixedlm(one.fixed, table, groups=table[one.task], re_formula=one.random)
                return float(model.fit(reml=False, method=METHODS[method]).llf)
            except np.linalg.LinAlgError:
                return float("nan")

    return lambda _: _clocked(work)


def _pyro(one: Set, table: pd.DataFrame, setting: Setting, best: float) -> Measure:
    def measure(seed: int) -> tuple[float, float]:
        outcome = fit(one.formula, table, setting, target=best - WITHIN, seed=seed)
        return outcome.seconds, outcome.elbo

    return measure


def _tune(one: Set, table: pd.DataFrame, best: float) -> Setting:
    """The setting of the grid whose slower of two runs arrives first; seeds not used again."""
    chosen, record = UNTUNED, float("inf")
    for setting in GRID:
        slowest = 0.0
        for seed in (1001, 1002):
            outcome = fit(
                one.formula, table, setting, target=best - WITHIN, seed=seed, limit=record
            )
            slowest = max(slowest, outcome.seconds)
            if slowest >= record:
                break
        if slowest < record:
            chosen, record = setting, slowest
    return chosen


if __name__ == "__main__":
    print(json.dumps(rows(quick=sys.argv[1:] == ["quick"])))
