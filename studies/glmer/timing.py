"""`python -m studies.glmer.timing`: both tools in turn, rows as JSON."""

from __future__ import annotations

import contextlib
import json
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import bayesmeta as bm
from studies._sets import frame, linear_fit
from studies.glmer.lme4 import Lme4

AGQ = 9
Measure = Callable[[], tuple[float, float]]


@dataclass(frozen=True)
class Set:
    """One fit, written for each tool; `varying` weights of a task."""

    name: str
    file: str
    formula: str
    likelihood: str
    theirs: str
    data: str
    family: str
    varying: int = 1


_COVARIATES = "use ~ age + I({}) + urban + livch + (1 | urban:district)"
SETS = (
    Set(
        "cbpp ~ period, (1 | herd)", "cbpp",
        "incidence/size ~ C(period) + (1 | herd)", "binomial",
        "cbind(incidence, size - incidence) ~ period + (1 | herd)", "cbpp", "binomial",
    ),
    Set(
        "contraception, 6 covariates, (1 | urban:district)", "contraception",
        _COVARIATES.format("age ** 2"), "bernoulli",
        _COVARIATES.format("age^2"), "births", "binomial",
    ),
    Set(
        "contraception ~ urban, (urban | district)", "contraception",
        "use ~ urban + (urban | district)", "bernoulli",
        "use ~ urban + (urban | district)", "births", "binomial", varying=2,
    ),
    Set(
        "grouseticks ~ YEAR, (1 | BROOD)", "grouseticks",
        "TICKS ~ C(YEAR) + (1 | BROOD)", "poisson",
        "TICKS ~ YEAR + (1 | BROOD)", "ticks", "poisson",
    ),
)  # fmt: skip


def rows(quick: bool) -> list[dict[str, object]]:
    """One row per fit and tool."""
    found = []
    with contextlib.ExitStack() as stack:
        r = stack.enter_context(Lme4()) if shutil.which("Rscript") else None
        r = r if r is not None and r.ready else None
        for one in SETS[:1] if quick else SETS:
            for points in (1, AGQ) if one.varying == 1 and not quick else (1,):
                contenders = {"bayesmeta": _ours(one, points)}
                if r is not None:
                    contenders["glmer"] = _theirs(r, one, points, derivs=True)
                    name = "glmer, calc.derivs = FALSE"
                    contenders[name] = _theirs(r, one, points, derivs=False)
                taken = _in_turn(contenders, repeats=2 if quick else 15)
                found += [{"fit": one.name, "points": points} | row for row in taken]
    return found


def _in_turn(contenders: dict[str, Measure], *, repeats: int) -> list[dict[str, object]]:
    """Everyone once off the clock, then in turn: a busy minute falls on all alike."""
    for measure in contenders.values():
        measure()
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, measure in contenders.items():
            taken[name].append(measure())
    found = []
    for name, results in taken.items():
        seconds, values = zip(*results, strict=True)
        found.append(
            {
                "tool": name,
                "seconds": statistics.median(seconds),
                "fastest": min(seconds),
                "slowest": max(seconds),
                "repeats": repeats,
                "log_likelihood": statistics.median(values),
            }
        )
    return found


def _ours(one: Set, points: int) -> Measure:
    table = frame(one.file)
    method = bm.methods.laplace(points=points)

    def measure() -> tuple[float, float]:
        started = time.perf_counter()
        fit = linear_fit(one.formula, table, likelihood=one.likelihood, method=method)
        return time.perf_counter() - started, fit.log_evidence

    return measure


def _theirs(r: Lme4, one: Set, points: int, *, derivs: bool) -> Measure:
    return lambda: r.fit(one.theirs, one.data, one.family, points=points, derivs=derivs)


if __name__ == "__main__":
    print(json.dumps(rows(quick=sys.argv[1:] == ["quick"])))
