"""Variance of split halves and of every pair, and the bias of both where ∇g is not linear."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from bayesmeta.methods import SeparatePaths, Unrolled
from tests.minibatch_paths import (
    BENT,
    DRAWS,
    F64,
    PLAIN,
    SETTINGS,
    XQ,
    Exact,
    X,
    Y,
    estimates,
    rows_of,
    worst,
)


def spread(found):
    """Each estimate's squared distance from the mean: their mean is the variance."""
    return (found - found.mean(0)).square().sum(-1, keepdim=True)


@pytest.mark.parametrize("paths", [2, 4, 8])
def test_every_pair_has_less_variance_than_split_halves_by_what_hoeffding_says(paths):
    split, pairs = Exact.of(PLAIN).variances(paths)
    half, number = paths // 2, DRAWS // (paths // 2)
    for seed, (every, wanted) in enumerate(((False, split), (True, pairs)), 1000 + paths):
        method = PLAIN.method(SeparatePaths(half, half, every_pair=every), "mean")
        found = spread(estimates(method, number, seed=seed)[:, 0])
        assert worst(found, wanted) < 3
        assert worst(1.05 * found, wanted) > 3
    assert split / pairs == pytest.approx({2: 2.07, 4: 2.50, 8: 2.60}[paths], abs=0.01)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: s.name)
def test_every_pair_never_has_more_variance(setting):
    """It is the mean of split halves over all ways to split."""
    ratios = [split / pairs for split, pairs in map(Exact.of(setting).variances, (2, 4, 64))]
    assert min(ratios) > 1


@dataclass(frozen=True)
class Curved:
    """g = Σ_r e^{x_rᵀθ} − y_r x_rᵀθ, whose slope at the mean of K paths has a known expectation.

    E e^{xᵀθ̄_K} = (E e^{xᵀθ/K})^K
    """

    exact: Exact
    y = (XQ @ torch.tensor([0.4, 0.2], dtype=F64)).exp().round()

    def back(self, eta):
        """E[J]ᵀ Σ_r x_r (η_r − y_r)."""
        return self.exact.J.mean(0).T @ XQ.T @ (eta - self.y)

    @property
    def target(self):
        return self.back((XQ @ self.exact.theta.mean(0)).exp())

    def separate(self, forward):
        return self.back((self.exact.theta @ XQ.T / forward).exp().mean(0) ** forward)

    def shared(self, paths):
        tilt = (self.exact.theta @ XQ.T / paths).exp()
        own = torch.einsum("zij,ri,zr->rj", self.exact.J, XQ, tilt) / len(tilt)
        others = tilt.mean(0) ** (paths - 1)
        return others @ own - self.exact.J.mean(0).T @ XQ.T @ self.y

    @property
    def query(self):
        return rows_of([XQ], [self.y], curved=True)

    @property
    def tangent(self):
        """The squared errors that have g's slope and curvature at E θ."""
        eta = XQ @ self.exact.theta.mean(0)
        root = (0.5 * eta).exp()
        working = eta + self.y * (-eta).exp() - 1
        return rows_of([root[:, None] * XQ], [root * working], curved=False)


def power(paths, size):
    """The power of K that the size of a bias goes with: least squares, log-log."""
    x = torch.log(torch.tensor(paths, dtype=F64))
    x, y = x - x.mean(), torch.log(torch.stack(size))
    return float(x @ y / (x @ x))


CURVED = Curved(Exact.of(replace(PLAIN, lr=0.08)))


@pytest.mark.parametrize(
    ("rule", "draws", "wanted"),
    [
        (SeparatePaths(1, 1), 1, CURVED.separate(1)),
        (SeparatePaths(2, 1), 1, CURVED.separate(2)),
        (SeparatePaths(4, 2), 1, CURVED.separate(4)),
        (SeparatePaths(2, 2, every_pair=True), 1, CURVED.separate(3)),
        (Unrolled(), 2, CURVED.shared(2)),
        (Unrolled(), 4, CURVED.shared(4)),
    ],
    ids=["1 ahead", "2 ahead", "4 ahead", "every pair of 4", "2 shared", "4 shared"],
)
def test_where_the_slope_is_not_linear_separate_paths_are_off_by_what_the_law_says(
    rule, draws, wanted
):
    method = replace(PLAIN, lr=0.08).method(rule, "mean", draws)
    seed = 1100 + 10 * draws + rule.draws(draws) + getattr(rule, "every_pair", False)
    flat = rows_of([X], [Y], curved=False)
    found = estimates(method, DRAWS, flat, CURVED.query, seed=seed, model=BENT)[:, 0]
    assert worst(found, wanted) < 3
    assert worst(1.05 * found, wanted) > 3
    assert worst(found, CURVED.target) > 3


def test_the_expected_slope_at_the_mean_of_two_paths_is_that_over_all_pairs():
    theta = CURVED.exact.theta
    pairs = 0.5 * (theta[:, None] + theta[None])
    eta = (pairs @ XQ.T).exp().mean((0, 1))
    assert torch.allclose(CURVED.back(eta), CURVED.separate(2), rtol=1e-12)


def test_the_bias_falls_as_one_over_the_number_of_paths():
    paths = [8, 16, 32, 64, 128]
    separate = [(CURVED.separate(k) - CURVED.target).norm() for k in paths]
    shared = [(CURVED.shared(k) - CURVED.target).norm() for k in paths]
    assert power(paths, separate) == pytest.approx(-1, abs=0.02)
    assert power(paths, shared) == pytest.approx(-1, abs=0.05)


def test_the_measured_bias_falls_as_one_over_the_number_of_forward_paths():
    """The same z on g and on its tangent, for which separate paths are unbiased: the rest is bias.

    Its standard deviation falls as 1/K too, so a few thousand pairs of estimates do for every K.
    """
    paths, measured, support = [4, 8, 16, 32], [], rows_of([X], [Y], curved=False)
    for forward in paths:
        method = replace(PLAIN, lr=0.08).method(SeparatePaths(forward, 1), "mean")
        curved, flat = (
            estimates(method, 4000, support, query, seed=1200 + forward, model=BENT)[:, 0]
            for query in (CURVED.query, CURVED.tangent)
        )
        assert worst(curved - flat, CURVED.separate(forward) - CURVED.target) < 3
        measured.append((curved - flat).mean(0).norm())
    assert power(paths, measured) == pytest.approx(-1, abs=0.1)
