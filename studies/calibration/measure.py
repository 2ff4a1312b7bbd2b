"""Coverage, ranks and spread of every form under the true prior, held."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Normal

from bayesmeta.diagnostics import coverage, rank_uniformity, sbc_ranks
from studies.calibration import exact
from studies.calibration.exact import Exact
from studies.calibration.forms import (
    LEVELS,
    Form,
    exact_forms,
    fitted_form,
    new_moments,
    spread_out,
)
from studies.calibration.problem import CASES, EXACT, Case, Tasks

Row = dict[str, Any]
BINS = 20
FEWEST = 5 * BINS
NEW_ROW = "new row"
SURE = 0.8
SAID = "class said with ≥ 80 %"
SHOWN = {"difference", "phase"}
"""Whose ranks are drawn."""


@dataclass(frozen=True)
class Size:
    """How much is computed.

    Args:
        cases: families, by name.
        tasks: of each, for every number of rows.
        rows: per task.
        shown: number of rows whose ranks are drawn.
        draws: of every posterior; 399 make ranks from 0 to 399, which all levels divide.
    """

    cases: tuple[str, ...] = tuple(case.name for case in CASES)
    tasks: int = 1000
    rows: tuple[int, ...] = (1, 2, 5, 20)
    shown: int = 5
    draws: int = 399


def measured(size: Size, device: str) -> Iterator[Row]:
    """Rows of parts "held" and "ranks"."""
    for place, case in enumerate(CASES):
        if case.name not in size.cases:
            continue
        for rows in size.rows:
            tasks = case.tasks(round(case.share * size.tasks), rows, 100 * place + rows)
            generator = torch.Generator().manual_seed(rows)
            reference = exact.posterior(case, tasks, size.draws, generator)
            forms = exact_forms(case, tasks, reference, generator)
            for name, method in case.methods().items():
                forms[name] = fitted_form(case, tasks, method, size.draws, generator, device)
            for name, form in forms.items():
                common = {"family": case.name, "rows": rows, "form": name, "flagged": form.flagged}
                yield from _rows(case, tasks, form, forms[EXACT], reference, common)
                if rows == size.shown:
                    yield from _ranks(case, tasks, form, common)


def _rows(
    case: Case, tasks: Tasks, form: Form, right: Form, reference: Exact, common: Row
) -> Iterator[Row]:
    """One row for each quantity and level, of all tasks and of those whose responses are alike."""
    y = tasks.support.tensors["y"]
    subsets = {"all": torch.ones(len(y), dtype=torch.bool)}
    if case.likelihood in ("bernoulli", "poisson"):
        alike = (y == y[:, :1]).all(1) if case.likelihood == "bernoulli" else (y == 0).all(1)
        subsets["alike"] = alike
    for data, kept in subsets.items():
        if int(kept.sum()) < FEWEST or (data == "alike" and bool(kept.all())):
            continue
        part = common | {"part": "held", "data": data}
        if form.draws is not None:
            for row in _weights(case, tasks, form, right, reference, kept):
                yield part | row
        for row in _new_row(case, tasks, form, right, reference, kept):
            yield part | row


def _weights(
    case: Case, tasks: Tasks, form: Form, right: Form, reference: Exact, kept: Tensor
) -> Iterator[Row]:
    names, probes = case.probes(tasks.truth)
    values = tasks.truth.theta @ probes.mT
    assert form.draws is not None
    assert form.sd is not None
    assert right.sd is not None
    inside = {level: reference.inside(probes, *ends) for level, ends in form.ends.items()}
    ratio = (form.sd / right.sd)[kept].mean(0)
    for j, name in enumerate(names):
        expected = {level: float(share[kept, j].mean()) for level, share in inside.items()}
        for row in _levels(form.draws[:, kept, j], values[kept, j], expected):
            yield {"quantity": name, "sd_ratio": float(ratio[j])} | row


def _new_row(
    case: Case, tasks: Tasks, form: Form, right: Form, reference: Exact, kept: Tensor
) -> Iterator[Row]:
    if form.said is not None:
        yield from _said(form.said[kept])
        return
    assert form.new is not None
    assert right.new is not None
    # As the draws of counts are: uniform within the unit above each.
    unit = torch.Generator().manual_seed(0)
    y = spread_out(case, tasks.query.tensors["y"][:, 0], unit)
    expected = {}
    if form.new_ends:
        law = Normal(*new_moments(tasks, reference.mean, reference.covariance))
        for level, (low, high) in form.new_ends.items():
            expected[level] = float((law.cdf(high) - law.cdf(low))[kept].mean())
    ratio = (form.new.std(0) / right.new.std(0))[kept].mean()
    for row in _levels(form.new[:, kept], y[kept], expected):
        yield {"quantity": NEW_ROW, "sd_ratio": float(ratio)} | row


def _levels(draws: Tensor, truth: Tensor, expected: dict[float, float]) -> Iterator[Row]:
    """Coverage at each level, and how uniform the ranks are."""
    found = coverage(draws, truth, levels=LEVELS).tolist()
    chi2, p = uniformity(sbc_ranks(truth, draws), len(draws))
    for level, share in zip(LEVELS, found, strict=True):
        yield {
            "level": level,
            "nominal": level,
            "coverage": share,
            "coverage_se": binomial_error(share, len(truth)),
            "predicted": expected.get(level),
            "sbc_chi2": chi2,
            "sbc_p": p,
            "tasks": len(truth),
        }


def _said(said: Tensor) -> Iterator[Row]:
    """How often a class said with some confidence came, beside the mean of what was said."""
    sure = torch.maximum(said, 1 - said)
    chosen = sure >= SURE
    count = int(chosen.sum())
    if count >= FEWEST:
        share = float((said[chosen] > 0.5).double().mean())
        yield {
            "quantity": SAID,
            "level": SURE,
            "nominal": float(sure[chosen].mean()),
            "coverage": share,
            "coverage_se": binomial_error(share, count),
            "tasks": count,
        }


def binomial_error(share: float, number: int) -> float:
    """Standard error of a share, with two more of either kind: none is not certainly none."""
    safe = (share * number + 2) / (number + 4)
    return math.sqrt(safe * (1 - safe) / number)


def counted(ranks: Tensor, draws: int) -> Tensor:
    """(bin,) how many ranks among so many draws fall into each of BINS."""
    return torch.bincount(ranks * BINS // (draws + 1), minlength=BINS)


def uniformity(ranks: Tensor, draws: int) -> tuple[float, float]:
    """χ² of the ranks (simulation,), and its p-value."""
    expected = len(ranks) / BINS
    chi2 = float((counted(ranks, draws) - expected).square().sum() / expected)
    return chi2, float(rank_uniformity(ranks, draws, bins=BINS))


def _ranks(case: Case, tasks: Tasks, form: Form, common: Row) -> Iterator[Row]:
    """Counts of the ranks of one telling quantity."""
    names, probes = case.probes(tasks.truth)
    name = next(iter(SHOWN & set(names)))
    if form.draws is None:
        return
    j = names.index(name)
    ranks = sbc_ranks((tasks.truth.theta @ probes.mT)[:, j], form.draws[..., j])
    counts = counted(ranks, len(form.draws)).tolist()
    for place, count in enumerate(counts):
        shown = {"part": "ranks", "quantity": name, "bin": place, "count": count}
        yield common | shown | {"tasks": len(ranks)}
