"""Tasks that would have no finite estimate alone are named: all of those, and no others."""

from __future__ import annotations

import pytest
import torch
from scipy.optimize import linprog

import bayesmeta as bm
from bayesmeta.weak import SAME, SEPARATED, SINGLE, weak_tasks

TASKS, ROWS = 30, 12


def family(likelihood: str) -> bm.TaskFamily:
    """Task 3 has one row, 5 and 8 one response, 11 and 12 separated ones, 14 is ragged."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(TASKS, ROWS, 1, generator=generator, dtype=torch.float64)
    mask = torch.ones(TASKS, ROWS, dtype=torch.bool)
    mask[3, 1:] = mask[14, 7:] = False
    if likelihood == "poisson":
        y = torch.poisson(torch.full((TASKS, ROWS), 3.0), generator=generator).double()
        y[[5, 8]] = 0.0
        y[14] = torch.where(mask[14], y[14], 0.0)
        return bm.TaskFamily.from_tensors(x=x, y=y, mask=mask)
    y = (torch.rand(TASKS, ROWS, generator=generator) < 0.5).double()
    y[:, 0], y[:, 1] = 0.0, 1.0
    x[:, 2], x[:, 3], y[:, 2], y[:, 3] = 2.0, -2.0, 0.0, 0.0  # nothing separates these and those
    x[:, 4], x[:, 5], y[:, 4], y[:, 5] = 2.0, -2.0, 1.0, 1.0
    y[5], y[8] = 0.0, 1.0
    for task, sign in ((11, 1.0), (12, -1.0)):
        y[task] = (sign * x[task, :, 0] > 0).double()
        x[task] += 3 * sign * (y[task, :, None] - 0.5)
    tensors = {"x": x, "y": y}
    if likelihood == "binomial":
        tensors = {"x": x, "y": 4 * y, "trials": torch.full_like(y, 4.0)}
        tensors["y"][20:] = 2.0  # the same everywhere, and yet with a finite estimate
    return bm.TaskFamily.from_tensors(**tensors, mask=mask)


MODELS = {
    "bernoulli": bm.likelihoods.Bernoulli,
    "binomial": bm.likelihoods.Binomial,
    "poisson": bm.likelihoods.Poisson,
}


@pytest.mark.parametrize("likelihood", MODELS)
def test_they_are_named_each_with_its_reason(likelihood):
    prior = bm.Prior("diagonal", learn="none").at(mean=[0.0, 0.0], variance=[0.04, 0.04])
    model = bm.Model(torch.nn.Linear(1, 1), MODELS[likelihood]())  # so strong a prior hides them
    fit = bm.fit(model, family(likelihood), method=bm.methods.laplace(), prior=prior)
    (found,) = [f for f in bm.diagnostics.check(fit) if f.check == "data"]
    wanted = {"3": SINGLE, "5": SAME, "8": SAME}
    if likelihood != "poisson":
        wanted |= {"11": SEPARATED, "12": SEPARATED}
    assert {flag.task: flag.why for flag in found.flags} == wanted
    assert found.ok and f"{len(wanted)} of 30 tasks lean on the prior" in found.sentence
    (note,) = [note for note in fit.notes if "no finite estimate" in note]
    assert "the same in every row in 2 (5, 8)" in note
    assert ("separate the responses in 2 (11, 12)" in note) == (likelihood != "poisson")


def test_real_responses_and_single_rows_everywhere_are_no_news():
    generator = torch.Generator().manual_seed(0)
    lines, _ = bm.families.linear_gaussian(tasks=6, rows=5, generator=generator)
    fit = bm.fit(bm.Model(torch.nn.Linear(1, 1), bm.likelihoods.Gaussian()), lines)
    (found,) = [f for f in bm.diagnostics.check(fit) if f.check == "data"]
    assert not found.flags and found.sentence.startswith("every task's own data say")


def test_separation_is_what_a_linear_programme_says():
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(300, 6, 2, generator=generator, dtype=torch.float64) * torch.tensor([1.0, 50.0])
    y = (torch.rand(300, 6, generator=generator) < 0.5).double()
    tasks = bm.TaskFamily.from_tensors(x=x, y=y)
    model = bm.Model(torch.nn.Linear(2, 1), bm.likelihoods.Bernoulli()).double()
    flags = weak_tasks(model, tasks, torch.zeros(300, 3, dtype=torch.float64))
    found = {int(flag.task) for flag in flags if flag.why == SEPARATED}
    wanted = set()
    for task in range(300):
        sides = (2 * y[task, :, None] - 1) * torch.cat([x[task], torch.ones(6, 1)], 1)
        feasible = linprog([0.0] * 3, -sides.numpy(), [-1.0] * 6, bounds=(None, None)).status == 0
        if feasible and 0 < y[task].sum() < 6:
            wanted.add(task)
    assert found <= wanted and len(found) >= 0.95 * len(wanted) > 100
