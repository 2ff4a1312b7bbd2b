"""The study any_optimiser: what counts as unseen, whose tasks are whose, and its intervals."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest
import torch
from scipy import stats

import bayesmeta as bm
from studies.any_optimiser import _kept, headline
from studies.any_optimiser.findings import algorithms, ratio
from studies.any_optimiser.settings import FULL_BATCH, MIXTURE, QUICK, SGD, TESTS, trained
from studies.any_optimiser.tasks import ROWS, chicks

MADE_OF = {"stochastic": [SGD], "maml": [FULL_BATCH], "mixture": list(MIXTURE.algorithms)}


@pytest.mark.parametrize("name", list(TESTS))
def test_what_is_said_to_be_seen_is_what_a_start_was_trained_with(name):
    test = TESTS[name]
    if test.seen == "none":
        assert all(test.algorithm not in seen for seen in MADE_OF.values())
    else:
        assert test.algorithm in MADE_OF[test.seen]


def test_methods_are_trained_with_these_and_with_equal_paths_and_steps():
    methods = trained(QUICK)
    assert [methods[n].inner for n in ("shared", "shared_mean", "separate")] == [SGD] * 3
    assert methods["mixture"].inner == MIXTURE
    assert methods["maml"].inner == FULL_BATCH
    noisy = [m for name, m in methods.items() if name != "maml"]
    assert {m.gradient.draws(m.draws) for m in noisy} == {4}
    assert {(m.steps, m.batch, m.lr, m.objective.support) for m in methods.values()} == {
        (QUICK.steps, 10, noisy[0].lr, 6)
    }
    assert [m.at for m in noisy] == ["draws", "mean", "mean", "draws"]


def test_no_chick_is_both_trained_on_and_unseen():
    train, support, query = chicks(3, replace(QUICK, splits=2))
    y = torch.cat([support.tensors["y"], query.tensors["y"]], 1).sort(1).values
    known = {tuple(row) for row in train.tensors["y"].sort(1).values.tolist()}
    unseen = [tuple(row) for row in y.tolist()]
    assert (len(known), len(unseen), len(set(unseen)), y.shape[1]) == (30, 30, 15, ROWS)
    assert not known & set(unseen)


def test_standardised_by_the_training_tasks():
    train, support, _ = chicks(0, QUICK)
    for name in ("x", "y"):
        assert train.tensors[name].mean().abs() < 1e-5
        assert train.tensors[name].std() == pytest.approx(1, abs=1e-5)
    assert isinstance(support, bm.TaskFamily)
    assert support.tensors["y"].mean().abs() > 1e-3


def _table(errors: dict[str, list[list[float]]]) -> pd.DataFrame:
    """Errors by method: a list per seed, with one number per algorithm."""
    return pd.DataFrame(
        {"family": "f", "method": m, "seed": s, "algorithm": f"a{i}", "seen": "none", "error": e}
        for m, seeds in errors.items()
        for s, row in enumerate(seeds)
        for i, e in enumerate(row)
    )


def test_a_ratio_is_paired_by_seed_and_a_geometric_mean():
    table = _table({"shared": [[1, 1], [100, 10]], "other": [[8, 2], [800, 20]]})
    found = ratio(table, "f", "other", ["a0", "a1"])
    assert (found.low, found.middle, found.high) == pytest.approx((4, 4, 4))
    assert found.verdict == "higher"
    assert ratio(table, "f", "other", ["a1"]).middle == pytest.approx(2)
    assert ratio(table, "f", "shared", ["a0"], to="other").middle == pytest.approx(1 / 8)
    assert algorithms(table, "none") == ["a0", "a1"]


def test_the_interval_is_students():
    logs = torch.tensor([-0.3, 0.1, 0.4], dtype=torch.double)
    table = _table({"shared": [[1.0]] * 3, "other": [[v] for v in logs.exp().tolist()]})
    found = ratio(table, "f", "other", ["a0"])
    low, high = stats.ttest_1samp(logs.numpy(), 0).confidence_interval(0.95)
    ends = torch.tensor([found.low, found.high]).log().tolist()
    assert ends == pytest.approx([low, high], abs=1e-5)
    assert found.verdict == "undecided"


def test_the_headline_tells_better_from_worse_and_from_neither():
    noise = [0.9, 1.0, 1.1]
    errors = {"separate": 2.0, "mixture": 0.5, "shared": 1.0}
    made = {m: [[e, e * n] for n in noise] for m, e in errors.items()}
    table = pd.concat(
        [
            _table(made).assign(family="g"),
            _table(made | {"mixture": [[n, 1.0] for n in noise]}),
            _table(made).assign(family="f", seen="stochastic", algorithm="known"),
        ]
    ).drop_duplicates(["family", "method", "seed", "algorithm"])
    known = table[table["seen"] == "stochastic"].assign(family="g")
    table = pd.concat([table, known]).assign(error_at_mean=lambda t: t["error"])
    said = headline(table)
    assert "separate paths adapt better on no family: by 2 algorithms new to every start" in said
    assert "mixtures of optimisers adapt better on g only, their error being 0.50" in said
    assert "trained for, they are better on no family." in said
    assert said.count(". ") == 2


def test_a_finished_seed_is_not_measured_again(tmp_path):
    folder, calls = tmp_path / "kept", []

    def measured():
        calls.append(1)
        return [{"seed": 3, "error": 0.5}]

    first, second = (_kept(folder, "f-3", measured) for _ in range(2))
    assert len(calls) == 1
    pd.testing.assert_frame_equal(first, second)
    _kept(None, "f-3", measured)
    assert len(calls) == 2
