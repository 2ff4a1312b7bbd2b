"""What is timed against each other computes the same, and what is counted is what is there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from studies._contest import Contender
from studies._peaks import peak
from studies.compute_memory import growth
from studies.conv_speed import bayesmeta_step, forms, headline, plain_loop, products, timing
from studies.conv_speed.problem import METHODS

SMALL = replace(timing.QUICK, tasks=2)


def small(method, **changes):
    return replace(timing.task(SMALL, timing.Case(method, 2, 1)).double(2), **changes)


@pytest.mark.parametrize("method", METHODS)
def test_the_plain_loop_computes_what_a_fit_descends_along(method):
    task = small(method, steps=2)
    ours, theirs = (module.prepare(task, "")() for module in (bayesmeta_step, plain_loop))
    assert np.linalg.norm(ours - theirs) < 1e-10 * np.linalg.norm(theirs)


@pytest.mark.parametrize("method", METHODS)
def test_some_tasks_at_a_time_are_all_of_them(method, monkeypatch):
    task = small(method)
    monkeypatch.setattr(bayesmeta_step, "AT_ONCE", 1)
    assert bayesmeta_step.chunk_size(task) == 1
    whole, parts = (bayesmeta_step.prepare(task, name)() for name in ("eager", "chunked"))
    assert np.allclose(whole, parts, rtol=1e-10, atol=1e-12)


def test_the_bare_products_have_the_operations_that_torch_counts():
    task = small("maml")
    support, query = products.operations(task)
    assert query == products.gradient_operations(replace(task, x=task.query_x, y=task.query_y))
    # One gradient, and the derivative of it along the slope of the query's loss: twice as many
    # again and some, as the first layer's input is no longer a constant.
    one = products.gradient_operations(task)
    assert 2.5 * one < support < 4 * one


@pytest.mark.parametrize("side", [12, 15])
def test_every_form_of_the_convolution_is_the_same_function(side):
    setting = replace(SMALL, side=side)
    task = timing.task(setting, timing.Case("maml", 2, 1)).double(2)
    found, tasks = bayesmeta_step.descent(task, bayesmeta_step.network(task))
    model, batch = found.problem.model, tasks.support
    theta = model.start.repeat(2, 1)
    theta = theta + 0.1 * torch.randn(theta.shape, generator=torch.Generator().manual_seed(0))
    wanted = model.energies(theta, batch)
    for form in forms.MODULES:
        assert torch.allclose(forms.rewritten(model, form).energies(theta, batch), wanted)
    layout = torch.channels_last
    assert torch.allclose(forms.written(model, theta, batch, memory_format=layout), wanted)


def test_the_peak_is_of_what_is_alive_at_once():
    def work():
        gone = torch.zeros(250)
        kept = gone + 1
        del gone
        return kept, torch.zeros(500)

    assert peak(work, "cpu") == 3000


WORKER = """
import sys
import time
from pathlib import Path
import numpy as np
from studies._serving import Unable, serve

def prepare(case):
    if case == "broken":
        raise ValueError("planted")
    if case == "impossible":
        raise Unable("no such thing here")
    time.sleep(0.3)  # to get ready, which is not what is timed
    return lambda: np.array([1.0, 2.0])

serve(prepare, lambda case: Path(sys.argv[2]) / f"{sys.argv[1]}-{case}.npy", sys.argv[3])
"""


@pytest.fixture
def contender(tmp_path):
    worker = tmp_path / "worker.py"
    worker.write_text(WORKER)
    found = Contender("one", worker, tmp_path, "cpu")
    yield found
    found.close()


def test_a_contender_reports_times_and_leaves_its_answer(contender):
    contender.begin("case")
    for _ in range(3):
        contender.take_turn("case")
    times = contender.times("case")
    assert times["turns"] == 3
    assert 0 < times["fastest_ms"] <= times["ms"] < 100
    assert contender.difference("case", np.array([1.0, 1.0])) == pytest.approx(0.5**0.5)
    contender.begin("case")  # again: the same step, timed anew
    for _ in range(2):
        contender.take_turn("case")
    assert contender.times("case")["turns"] == 2


def test_a_contender_says_what_it_cannot_do_and_dies_aloud(contender):
    contender.begin("impossible")
    contender.take_turn("impossible")
    assert contender.times("impossible")["note"] == "no such thing here"
    with pytest.raises(RuntimeError, match="planted"):
        contender.begin("broken")


class Answers:
    """A contender that answers what it is told."""

    def __init__(self, name, **answers):
        self.name, self.answers = name, {key: np.array(value) for key, value in answers.items()}

    def answer(self, case):
        return self.answers[case]

    def difference(self, case, wanted):
        return float(np.abs(self.answers[case] - wanted).max())


@pytest.mark.parametrize(
    ("off", "double", "agrees"), [(5e-3, 0.0, True), (0.05, 0.0, False), (0.0, 1e-6, False)]
)
def test_contenders_that_compute_something_else_are_not_timed(off, double, agrees):
    case = timing.Case("maml", 1, 1)
    loop = Answers("loop", **{case.name: [1.0], case.check: [1.0]})
    other = Answers("eager", **{case.name: [1.0 + off], case.check: [1.0 + double]})
    if agrees:
        assert timing._agreement(other, loop, case)["difference"] == pytest.approx(off)
        return
    with pytest.raises(RuntimeError, match="eager is off"):
        timing._agreement(other, loop, case)


def test_the_headline_names_the_fastest_that_computes_the_same():
    row = {"part": "step", "method": "maml", "queries": 1, "tasks": 16, "device": "cuda"}
    row |= {"of_products": 0.5, "difference_float64": 1e-15, "difference": 0.05, "note": ""}
    times = {"loop": 30.0, "eager": 10.0, "graph": 5.0, "tf32": 2.0}
    rows = [
        row | {"implementation": name, "ms": ms, "times_loop": 30.0 / ms}
        for name, ms in times.items()
    ]
    rows.append(row | {"implementation": "torchopt", "ms": np.nan, "note": "not installed"})
    form = {"part": "form", "pass": "step", "images": 80, "device": "cuda"}
    rows += [
        form | {"implementation": name, "ms": ms, "times_grouped": 2.0 / ms}
        for name, ms in (("grouped", 2.0), ("slices", 1.0), ("unfold", 4.0))
    ]
    said = headline(pd.DataFrame(rows))
    assert "takes bayesmeta 5 ms (MAML, 1 query a class)" in said
    assert "products would take 50 % of that" in said
    assert "6 times as fast as a loop" in said and "15 times was the goal and is not" in said
    assert "TorchOpt was not measured (not installed)" in said
    assert "(TF32 and bfloat16: 0.05)" in said
    assert (
        "another form of the convolution is faster in a whole step (patches by slices: 2 times"
        in said
    )


def test_the_headline_says_how_far_torchopt_is_and_when_the_goal_is_reached():
    row = {"part": "step", "method": "imaml_hessian", "tasks": 16, "device": "cpu"}
    row |= {"of_products": 0.5, "difference_float64": 1e-15, "difference": 1e-6, "note": ""}
    rows = [
        row | {"implementation": name, "queries": queries, "ms": ms, "times_loop": 40.0 / ms}
        for queries in (1, 15)
        for name, ms in (("loop", 40.0), ("chunked", 8.0 + queries))
    ]
    rows.append(row | {"implementation": "torchopt", "queries": 15, "ms": 46.0})
    form = {"part": "form", "pass": "step", "device": "cpu"}
    rows += [
        form | {"implementation": name, "ms": ms, "times_grouped": 2.0 / ms}
        for name, ms in (("grouped", 2.0), ("unfold", 4.0))
    ]
    said = headline(pd.DataFrame(rows))
    assert "9 ms (iMAML, Hessian, 1 query a class) to 23 ms (iMAML, Hessian, 15 queries" in said
    assert "1.7 to 4.4 times as fast" in said and "where 3 times was the goal;" in said
    assert "TorchOpt's iMAML takes 2 times as long" in said
    assert (
        "no other form of the convolution is faster in a whole step (patches by unfold: 0.5 times"
        in said
    )
    assert "TF32" not in said


def test_growth_is_the_slope_of_a_line():
    slope, fit = growth(pd.Series([3.0, 5.0, 9.0, np.nan], index=[1, 2, 4, 8]))
    assert (slope, fit) == (pytest.approx(2.0), pytest.approx(1.0))
