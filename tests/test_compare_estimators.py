"""The estimator bench against gradients enumerated over every path of SGD on quadratic rows."""

from __future__ import annotations

import itertools
import math
import warnings
from dataclasses import replace

import pytest
import torch

import bayesmeta as bm
from bayesmeta.diagnostics import compare_estimators, gradient_evaluations
from bayesmeta.diagnostics.noisy_means import Sample, length
from bayesmeta.methods import (
    SGLD,
    Algorithmic,
    FirstOrder,
    GradientDescent,
    Method,
    Mixture,
    Momentum,
    Score,
    SeparatePaths,
    Truncated,
    Unrolled,
    Validation,
    imaml,
    joint,
    maml,
)

ROWS, STEPS, LR = 3, 2, 0.1
START = torch.tensor([0.3, -0.2]).double()
SGD = GradientDescent(LR, STEPS, per="task", rows=1, replacement=True)


def method(rule, draws=1, at="draws", inner=SGD, support=None, **posterior):
    return Method(Algorithmic(**posterior), inner, rule, Validation(support, at=at), draws=draws)


def energy(theta, x, y, mask):
    return 0.5 * ((x @ theta - y).square() * mask).sum()


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def quadratic_rows(tasks, rows, seed):
    noise = seeded(seed)
    x = torch.randn(tasks, rows, 2, generator=noise).double()
    return bm.TaskFamily.from_tensors(x=x, y=torch.randn(tasks, rows, generator=noise).double())


FAMILY, QUERY = quadratic_rows(2, ROWS, 0), quadratic_rows(2, 4, 1)
MODEL = bm.Model.from_energy(energy, 2)
PRIOR = bm.Prior("point").at(mean=START, variance=0.0)


def exact():
    """∂/∂θ₀ of Σ_i E_z g_i(θ_z) and of Σ_i g_i(E_z θ_z), over every sequence of minibatches."""
    start = START.clone().requires_grad_()
    draws, mean = 0.0, 0.0
    for task in range(len(FAMILY)):
        x, y = (FAMILY.tensors[name][task] for name in "xy")
        ends = []
        for path in itertools.product(range(ROWS), repeat=STEPS):
            theta = start
            for row in path:
                theta = theta - LR * ROWS * (x[row] @ theta - y[row]) * x[row]
            ends.append(theta)

        def g(theta, task=task):
            c, d = (QUERY.tensors[name][task] for name in "xy")
            return 0.5 * (c @ theta - d).square().sum()

        draws = draws + torch.stack([g(end) for end in ends]).mean()
        mean = mean + g(torch.stack(ends).mean(0))
    return {
        name: torch.autograd.grad(value, start, retain_graph=True)[0]
        for name, value in (("draws", draws), ("mean", mean))
    }


EXACT = exact()
METHODS = {
    "unrolled": method(Unrolled()),
    "unrolled 4": method(Unrolled(), 4),
    "checkpointed": method(Unrolled(checkpoint=1)),
    "first order": method(FirstOrder()),
    "shared": method(Unrolled(), 2, "mean"),
    "separate": method(SeparatePaths(2, 2), 1, "mean"),
    "pairs": method(SeparatePaths(2, 2, every_pair=True), 1, "mean"),
    "all rows": method(Unrolled(), inner=replace(SGD, rows=None)),
}
UNBIASED = ("unrolled", "unrolled 4", "checkpointed", "separate", "pairs")


def compared(methods=None, *, seed=0, repeats=10_000, query=QUERY, **options):
    methods = METHODS if methods is None else methods
    return compare_estimators(
        MODEL, PRIOR, FAMILY, methods, generator=seeded(seed), repeats=repeats, query=query,
        **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def against_exact():
    return compared(reference=EXACT)


@pytest.fixture(scope="module")
def table(against_exact):
    return against_exact.frame()


@pytest.mark.parametrize("name", UNBIASED)
def test_unbiased_estimators_show_no_bias(table, name):
    assert table.p[name] > 0.001
    assert table.bias_high[name] < 0.1 * EXACT["mean"].norm()


def test_shared_paths_are_off_by_the_predicted_difference(table, against_exact):
    # Of K paths a share 1/K of the slopes met their own path, which adds Cov(J, ∇g)/K.
    predicted = (EXACT["draws"] - EXACT["mean"]) / 2
    assert table.p["shared"] < 1e-6
    assert table.bias_low["shared"] < predicted.norm() < table.bias_high["shared"]
    found = against_exact.means["shared"] - EXACT["mean"]
    assert float((found - predicted).norm()) < 4 * table.sd["shared"] / math.sqrt(10_000)


def test_what_is_biased_on_purpose_is_told(table):
    assert table.p["first order"] < 1e-6
    assert table.bias_low["first order"] > 0.2 * EXACT["draws"].norm()


@pytest.mark.parametrize("name", ["unrolled 4", "separate", "pairs"])
def test_an_error_of_5_percent_in_the_reference_is_found(table, name):
    at = METHODS[name].at
    error = 0.05 * float(EXACT[at].norm())
    # It is then 7 standard errors of the mean estimate.
    repeats = int(50 * (table.sd[name] / error) ** 2)
    wrong = {at: 1.05 * EXACT[at]}
    found = compared({name: METHODS[name]}, reference=wrong, repeats=repeats).estimators[0]
    assert found.p < 0.001
    assert found.bias_low < error < found.bias_high


def test_a_deterministic_method_has_no_variance_and_its_own_distance(table, against_exact):
    row = table.loc["all rows"]
    step = bm.meta_gradient(MODEL, PRIOR, FAMILY, METHODS["all rows"], query=QUERY).theta0
    assert row.sd == 0
    assert row.bias == pytest.approx(float((step - EXACT["draws"]).norm()), rel=1e-9)
    assert math.isnan(row.p)
    assert row.rmse == row.bias == row.bias_low == row.bias_high


def test_more_paths_have_the_variance_that_they_should(table):
    assert table.sd["unrolled 4"] == pytest.approx(table.sd["unrolled"] / 2, rel=0.05)
    assert table.sd["pairs"] < table.sd["separate"]


def test_methods_alike_see_the_same_noise(table):
    assert table.sd["checkpointed"] == pytest.approx(table.sd["unrolled"], rel=1e-9)
    assert table.bias["checkpointed"] == pytest.approx(table.bias["unrolled"], abs=1e-9)


def test_rmse_and_precision_follow_from_the_other_columns(table):
    assert (table.rmse**2 / (table.bias**2 + table.sd**2) - 1).abs().max() < 1e-9
    expected = 1 / (table.rmse**2 * table.seconds)
    assert (table.precision_per_second / expected - 1).abs().max() < 1e-9
    assert (table.seconds > 0).all() and (table.broken == 0).all()


def test_computed_references_are_the_exact_ones_within_their_errors():
    found = compared(repeats=1000)
    for at, target in (("draws", "E_z g(θ_z)"), ("mean", "g(E_z θ_z)")):
        error = found.reference_errors[target]
        assert 0 < error < 0.05 * EXACT[at].norm()
        assert float((found.references[target] - EXACT[at]).norm()) < 4 * error
    table = found.frame()
    assert (table.p[list(UNBIASED)] > 0.001).all()
    assert (table.p[["shared", "first order", "all rows"]] < 1e-3).all()
    # The reference's own noise is in the deterministic method's error.
    assert table.bias_error["all rows"] > 0 and table.sd["all rows"] == 0


def test_score_agrees_with_unrolled_and_more_draws_cost_what_they_say():
    inner = SGLD(0.05, 2, temperature=0.2, per="task")
    rules = {"unrolled": Unrolled(), "score": Score()}
    table = compared({n: method(r, 4, inner=inner) for n, r in rules.items()}, repeats=2000).frame()
    assert (table.p > 0.001).all()
    assert table.sd["score"] > table.sd["unrolled"]


def test_all_methods_see_one_random_split():
    methods = {"a": method(Unrolled(), support=2), "all rows": METHODS["all rows"]}
    methods["all rows"] = replace(methods["all rows"], objective=Validation(2))
    found = compared(methods, query=None, repeats=50)
    support, query = FAMILY.split(2, seeded())
    step = bm.meta_gradient(MODEL, PRIOR, support, METHODS["all rows"], query=query).theta0
    assert torch.allclose(found.means["all rows"], step)


def test_methods_with_other_laws_have_references_of_their_own():
    slow = replace(SGD, lr=0.01)
    methods = {"a": METHODS["unrolled"], "b": method(Unrolled(), inner=slow)}
    found = compared(methods, repeats=500)
    assert set(found.references) == {"E_z g(θ_z) of a", "E_z g(θ_z) of b"}
    assert (found.frame().p > 0.001).all()
    with pytest.raises(bm.InputError, match="'c' is not random.*give reference="):
        compared(methods | {"c": METHODS["all rows"]})


def test_batches_do_not_change_what_is_found():
    found = compared({"a": METHODS["unrolled"]}, repeats=997, reference=EXACT["draws"], batch=100)
    assert found.repeats == 997
    assert found.estimators[0].p > 0.001


def test_a_broken_path_is_said():
    wild = GradientDescent(1e200, 3, per="task", rows=1)
    found = compared({"wild": method(Unrolled(), inner=wild)}, repeats=5, reference=EXACT["draws"])
    assert found.estimators[0].broken == 1
    assert "wild: a path was not finite in 100.0% of its estimates" in str(found)


def test_the_table_names_its_columns_and_units(against_exact, table):
    assert list(table.index) == list(METHODS)
    assert list(table.columns) == [
        *("target", "bias", "bias_error", "bias_low", "bias_high", "p", "relative_bias", "sd"),
        *("rmse", "gradients", "seconds", "precision_per_second", "broken"),
    ]
    said = str(against_exact).splitlines()
    assert said[0] == (
        "10000 estimates of ∂M/∂θ₀ by each method (2 weights, 2 tasks); lengths in nats per unit "
        "of θ"
    )
    assert sum(line.startswith(tuple(METHODS)) for line in said) == len(METHODS)


TEN = bm.TaskFamily.from_tensors(y=torch.zeros(1, 10))
UNEVEN = bm.TaskFamily.from_tensors(y=[torch.zeros(4), torch.zeros(2)])


@pytest.mark.parametrize(
    ("chosen", "family", "expected"),
    [
        (maml(steps=5), TEN, 1 + 5 + 10),
        (method(FirstOrder(), 3, inner=GradientDescent(0.1, 5, rows=10)), TEN, 3 * (1 + 5)),
        (method(Truncated(2), inner=GradientDescent(0.1, 5, rows=5)), TEN, 1 + 0.5 * (5 + 4)),
        (method(Unrolled(checkpoint=2), inner=Momentum(0.1, 5, rows=10)), TEN, 1 + 5 + 10 + 5),
        (method(Unrolled(checkpoint=5), inner=Momentum(0.1, 5, rows=10)), TEN, 1 + 5 + 10),
        (method(SeparatePaths(3, 2), 1, "mean", Momentum(0.1, 5, rows=10)), TEN, 1 + 25 + 20),
        (
            method(SeparatePaths(3, 2, every_pair=True), 1, "mean", Momentum(0.1, 5, rows=10)),
            TEN,
            5 + 25 + 50,
        ),
        (method(Unrolled(), 3, "mean", Momentum(0.1, 5, rows=10)), TEN, 1 + 15 + 30),
        (method(Score(), 2, inner=SGLD(0.1, 5)), TEN, 2 * (1 + 5 + 3)),
        (method(Score(), 2, inner=SGLD(0.1, 5), anchored=True), TEN, 2 * (1 + 5 + 15)),
        (method(Score(), 2, inner=SGLD(0.1, 5, preconditioned=True)), TEN, 2 * (1 + 5 + 15)),
        # Of tasks with 4 and 2 rows, 3 rows are 3/4 and all.
        (method(FirstOrder(), inner=GradientDescent(0.1, 4, rows=3)), UNEVEN, 2 + 4 * 1.75),
        (
            method(FirstOrder(), inner=GradientDescent(0.1, 4, rows=3, replacement=True)),
            UNEVEN,
            2 + 4 * 2.25,
        ),
        (
            method(Unrolled(), inner=Mixture((Momentum(0.1, 2), Momentum(0.1, 6)), (0.25, 0.75))),
            TEN,
            1 + 3 * 5,
        ),
        (imaml(steps=7, cg_steps=3), TEN, 1 + 7 + 6),
    ],
)
def test_gradient_evaluations_are_counted(chosen, family, expected):
    assert gradient_evaluations(chosen, family) == pytest.approx(expected)


def test_evaluations_that_are_not_known_ahead_are_not_counted():
    assert math.isnan(gradient_evaluations(bm.methods.imaml_hf(), TEN))
    shared = gradient_evaluations(method(Score(), 2, inner=SGLD(0.1, 5)), TEN, shared=True)
    assert shared == 2 * (1 + 5 + 15)


@pytest.mark.parametrize("dim", [1, 2, 40])
def test_p_values_are_uniform_without_a_bias_and_intervals_cover_it(dim):
    noise, scale = seeded(dim), torch.logspace(0, -1, dim).double()
    bias = 0.3 * scale / scale.norm()
    p, covered = [], 0
    for _ in range(400):
        draws = scale * torch.randn(30, dim, generator=noise).double()
        other = Sample.of(scale * torch.randn(60, dim, generator=noise).double())
        p.append(length(Sample.of(draws), other).p)
        found = length(Sample.of(draws + bias), other)
        covered += found.low <= 0.3 <= found.high
    # Four standard errors of a share of 400, and a little for the approximation.
    assert 0.005 < sum(v < 0.05 for v in p) / 400 < 0.1
    assert 0.4 < sum(v < 0.5 for v in p) / 400 < 0.6
    assert covered / 400 > 0.9


def test_the_noise_is_taken_out_of_a_bias():
    noise, truth = seeded(1), torch.full((50,), 0.1).double()
    draws = [Sample.of(truth + torch.randn(20, 50, generator=noise).double()) for _ in range(300)]
    squares = [length(d, Sample.exact(0 * truth)).value ** 2 for d in draws]
    raw = [float(d.mean.square().sum()) for d in draws]
    assert sum(squares) / 300 == pytest.approx(0.5, abs=0.2)
    assert sum(raw) / 300 == pytest.approx(0.5 + 50 / 20, abs=0.2)


def test_the_two_ways_to_a_trace_agree():
    tall = torch.randn(50, 30, generator=seeded())
    padded = torch.cat([tall, torch.zeros(50, 170)], 1)  # more columns than rows, the same traces
    a = length(Sample.of(tall), Sample.exact(torch.zeros(30)))
    b = length(Sample.of(padded), Sample.exact(torch.zeros(200)))
    assert (a.p, a.low, a.high) == pytest.approx((b.p, b.low, b.high))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"methods": {}}, "methods must name one or more"),
        ({"methods": [METHODS["unrolled"]]}, "methods must name one or more"),
        ({"methods": {"a": "maml"}}, r"methods\['a'\] is str, not a Method"),
        ({"methods": {"a": joint()}}, "'a' has free Q_i"),
        ({"repeats": 1}, "repeats=1: give a whole number, at least 2"),
        ({"generator": None}, "give generator="),
        ({"batch": 0}, "batch=0"),
        ({"reference": torch.zeros(3)}, r"shape \(2,\), not \(3,\)"),
        ({"reference": torch.full((2,), math.nan)}, "finite"),
        ({"reference": {"mean": EXACT["mean"]}}, 'no "draws"'),
        (
            {"methods": METHODS, "reference": EXACT["draws"]},
            "two losses.*give reference=",
        ),
        ({"methods": {"a": METHODS["all rows"]}}, "no E_z g.*give reference="),
        (
            {"methods": {"a": method(Unrolled(), support=2), "b": method(Unrolled())}},
            "split tasks differently",
        ),
        ({"prior": bm.Prior("point")}, "no values"),
        ({"prior": bm.Prior("point").at(mean=torch.zeros(3), variance=0.0)}, "3 weights"),
    ],
)
def test_what_cannot_be_compared_is_refused(changed, said):
    given = {
        "prior": PRIOR,
        "methods": {"a": METHODS["unrolled"]},
        "generator": seeded(),
        "repeats": 4,
    }
    given |= changed
    with pytest.raises(bm.InputError, match=said):
        compare_estimators(MODEL, family=FAMILY, **given)


def test_the_figure_is_drawn(against_exact, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = bm.plots.estimators(against_exact)
        bm.plots.save(figure, tmp_path / "estimators.png", dpi=50)
    bias, precision = figure.axes
    assert [label.get_text() for label in bias.get_yticklabels()] == list(METHODS)
    assert bias.get_xlabel() == "relative bias"
    assert precision.get_xlabel().startswith("precision per second")
    marks = [
        line for line in bias.lines if line.get_marker() in ("o", "s") and len(line.get_xdata())
    ]
    hollow = [line.get_markerfacecolor() == "white" for line in marks]
    seen = [e.bias_low > 0 for e in against_exact.estimators]
    assert [not h for h in hollow] == seen


def test_the_figure_takes_two_axes(against_exact):
    figure = bm.plots.estimators(against_exact, width=bm.plots.DOUBLE)
    assert figure.get_figwidth() == bm.plots.DOUBLE
    assert bm.plots.estimators(against_exact, axes=figure.axes) is figure
    with pytest.raises(bm.InputError, match="takes two"):
        bm.plots.estimators(against_exact, axes=figure.axes[:1])
