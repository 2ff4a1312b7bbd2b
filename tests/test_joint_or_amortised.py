"""Joint or amortised: oracles, what is judged and how, and what the headline says."""

from __future__ import annotations

import math
from dataclasses import replace

import pandas as pd
import pytest
import torch

import bayesmeta as bm
from bayesmeta.fit import Prediction
from studies.joint_or_amortised import NETWORK, headline
from studies.joint_or_amortised.contestants import LINEAR, contestants
from studies.joint_or_amortised.figures import AT, METHODS, behind
from studies.joint_or_amortised.measure import (
    QUICK,
    SIZE,
    Judged,
    bare,
    descended,
    gained,
    judge,
    summary,
)
from studies.joint_or_amortised.oracle import Waves
from studies.joint_or_amortised.problem import COUNTS, LEAST_PUPILS, SEEN, merged, problem

F64 = torch.float64
SMALL = {name: replace(count, train=12, unseen=4) for name, count in COUNTS.items()}


def small(name):
    return problem(name, 0, COUNTS[name] if name == "schools" else SMALL[name], "cpu")


@pytest.mark.parametrize("name", COUNTS)
def test_unseen_tasks_are_other_tasks_with_other_rows_to_predict(name):
    one = small(name)
    assert not set(one.train.names) & set(one.support.names)
    assert one.support.names == one.query.names
    assert one.support.rows.eq(SEEN).all()
    two, five = (one.first(points).tensors["y"] for points in (2, 5))
    assert torch.equal(two, five[:, :2])
    for i in range(len(one.query)):
        rows = int(one.query.rows[i])
        seen, left = one.support.tensors["x"][i], one.query.tensors["x"][i][:rows]
        if name != "schools":  # pupils may be alike
            assert not (seen[:, None] == left).all(-1).any()
        else:
            assert rows >= LEAST_PUPILS - SEEN
    again = problem(name, 1, COUNTS[name] if name == "schools" else SMALL[name], "cpu")
    assert again.train.fingerprint() != one.train.fingerprint()


def test_merged_rows_are_the_real_rows():
    one = small("schools")
    whole = merged(one.train)
    assert len(whole) == 1
    assert int(whole.rows[0]) == one.train.observations
    assert float(whole.tensors["y"].mean()) == pytest.approx(0.0, abs=1e-12)


def test_the_waves_posterior_is_that_of_plain_importance_sampling():
    one = small("sinusoid")
    few = one.first(2)
    found = Waves(0.3)(few, one.query, 4000)
    generator = torch.Generator().manual_seed(1)
    a = 0.1 + 4.9 * torch.rand(200_000, generator=generator, dtype=F64)
    phase = math.pi * torch.rand(200_000, generator=generator, dtype=F64)

    def density(family, i, rows):
        x, y = family.tensors["x"][i, rows, 0], family.tensors["y"][i, rows]
        mean = a[:, None] * torch.sin(x - phase[:, None])
        return -0.5 * ((y - mean) / 0.3) ** 2 - math.log(0.3 * math.sqrt(2 * math.pi))

    for i in range(len(few)):
        weight = density(few, i, slice(None)).sum(1).log_softmax(0)
        wanted = (weight[:, None] + density(one.query, i, slice(0, 10))).logsumexp(0)
        got = found.log_density[:, i, :10].logsumexp(0) - math.log(4000)
        assert float((got - wanted).mean()) == pytest.approx(0.0, abs=0.05)


def test_the_same_point_objective_has_the_same_start_in_linear_tasks():
    one = small("linear")
    ways = contestants(one, replace(LINEAR, joint=20, points=300))
    joint, again, amortised = (
        ways[name].fit(one, 0.5, 0).prior.mean
        for name in ("joint points", "joint points, restarted", "variational iMAML")
    )
    torch.testing.assert_close(joint, amortised, atol=1e-4, rtol=0)
    torch.testing.assert_close(again, amortised, atol=0.02, rtol=0)
    assert float((amortised - ways["variational iMAML"].fit(one, 5.0, 0).prior.mean).norm()) > 1e-3


def test_one_descent_is_gradient_descent_on_the_mean_squared_error():
    one = small("linear")
    theta = torch.tensor([0.3, -0.2, 0.1], dtype=F64)
    found = descended(bare(one), one, theta, 5, 7).posterior.mean
    few = one.first(5)
    design = torch.cat([few.tensors["x"], torch.ones(4, 5, 1, dtype=F64)], -1)
    wanted = theta.expand(4, 3)
    for _ in range(7):
        miss = (design @ wanted[..., None])[..., 0] - few.tensors["y"]
        wanted = wanted - one.rate * 2 * (design.mT @ miss[..., None])[..., 0] / 5
    torch.testing.assert_close(found, wanted)
    assert bare(one).noise == pytest.approx(0.5)


def test_a_binary_predictive_is_judged_by_its_probabilities():
    y = torch.tensor([[1.0, 0.0, 1.0, 1.0]], dtype=F64)
    query = bm.TaskFamily.from_tensors(x=torch.zeros(1, 4, 1), y=y, names=["a"])
    success = torch.full_like(y, 0.75)
    density = torch.where(y == 1, success, 1 - success).log()[None]
    found = judge(Prediction(y[None], y == y, density, ("a",)), query)
    assert float(found.nll[0]) == pytest.approx(-(3 * math.log(0.75) + math.log(0.25)) / 4)
    assert found.calibration == pytest.approx(0.0)
    assert bool(found.held.isnan().all())
    assert judge(Prediction(y[None], y == y, density - 0.3, ("a",)), query).calibration > 0.1


def test_a_real_predictive_is_judged_by_coverage():
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(3, 400, generator=generator, dtype=F64)
    query = bm.TaskFamily.from_tensors(x=y[..., None], y=y, names=["a", "b", "c"])
    draws = torch.randn(2000, 3, 400, generator=generator, dtype=F64)
    density = torch.distributions.Normal(0.0, 1.0).log_prob(y).expand(2000, 3, 400)
    found = judge(Prediction(draws, y == y, density, query.names), query)
    assert found.held.tolist() == pytest.approx([0.5, 0.9], abs=0.04)
    assert found.calibration < 0.03
    torch.testing.assert_close(found.nll, -density[0].mean(1))
    narrow = judge(Prediction(0.5 * draws, y == y, density, query.names), query)
    assert narrow.calibration > 0.1


def test_summaries_are_over_tasks_and_gains_are_paired():
    nan = torch.full((2,), math.nan)
    ours = [Judged(torch.tensor([1.0, 3.0]), nan, 0.1), Judged(torch.tensor([5.0]), nan, 0.3)]
    theirs = [Judged(one.nll + 0.5, nan, 0.0) for one in ours]
    found = summary(ours, theirs)
    assert (found["nll"], found["nll_median"], found["tasks"]) == (3.0, 3.0, 3)
    assert found["nll_high"] - 3.0 == pytest.approx(1.96 * 2 / math.sqrt(3))
    assert found["gain"] == pytest.approx(0.5)
    assert found["gain_se"] == pytest.approx(0.0)
    assert found["calibration"] == pytest.approx(0.2)
    assert gained(theirs, ours)["gain"] == pytest.approx(-0.5)


def made_up():
    rows = []
    for family in COUNTS:
        for rank, method in enumerate(METHODS):
            if family == NETWORK and method == "joint, solved":
                continue
            fit = {"panel": "fit", "family": family, "method": method, "seed": 0}
            lost = {"joint points": 9.0, "joint points, restarted": 4.0, "variational iMAML": 7.0}
            missed = lost.get(method) if family == NETWORK else 0.001
            found = {"seconds": 1.0 + rank, "missed": -0.25, "missed_by_descent": missed}
            trace = "falling" if method == "MAML" else "flat"
            rows.append(fit | found | {"noise": 0.1 * rank, "trace": trace})
            for points in (1, AT):
                nll = 2.0 + rank / 10 - points / 10
                if (family, method, points) == (NETWORK, "MAML", AT):
                    nll = 0.25
                row = fit | {"panel": "curve", "rule": "own", "points": points, "nll": nll}
                row |= {"nll_median": 0.5 * nll, "nll_low": nll - 0.1, "nll_high": nll + 0.1}
                rows.append(row | {"restart_gain": -0.3, "restart_gain_se": 0.1})
    return pd.DataFrame(rows)


def test_the_headline_says_what_the_table_says():
    said = headline(made_up())
    assert "within 0.3 nats a point of the joint fit that is solved." in said
    assert "a network MAML serves best after 5 points" in said
    assert "with 0.25 [0.15, 0.35] nats a point (95 % interval), before joint with 1.60" in said
    assert "while iMAML have 2.20." in said
    assert "have 1 seed only, that M still falls in 1 of 8 methods" in said
    assert said.endswith("gains −0.30 ± 0.20 nats for points but −0.30 ± 0.20 for posteriors.")


def test_the_least_nll_of_a_family_is_behind_nothing():
    rows = made_up()
    found = behind(rows[(rows.panel == "curve") & (rows.points == AT)])
    assert found.min().eq(0).all()
    assert found.loc["MAML", NETWORK] == 0
    assert math.isnan(found.loc["joint, solved", NETWORK])


def test_both_sizes_know_every_family():
    assert set(SIZE.seeds) == set(SIZE.counts) == set(QUICK.counts) == set(COUNTS)
    assert set(QUICK.seeds) <= set(COUNTS)
