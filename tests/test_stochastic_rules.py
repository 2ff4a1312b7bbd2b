"""Gradients along random paths: finite differences with common noise, and estimators by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from inner_problems import F64, generator
from stochastic_cases import (
    ALGORITHMS,
    STATEFUL,
    ByHand,
    Case,
    case_of,
    gradients,
    log_probability,
    prior_of,
)
from torch import nn

import bayesmeta as bm
from bayesmeta import likelihoods
from bayesmeta.gradients.pathwise import FirstOrder, Segment, SeparatePaths, Truncated, Unrolled
from bayesmeta.gradients.score import Score
from bayesmeta.inner.first_order import Adam, GradientDescent, RMSProp
from bayesmeta.inner.langevin import SGLD
from bayesmeta.inner.loop import adapt
from bayesmeta.inner.mixture import Mixture
from bayesmeta.inner.paths import draw_paths
from bayesmeta.method import Method
from bayesmeta.objective import Validation
from bayesmeta.posteriors.algorithmic import Algorithmic
from bayesmeta.results import Result


def check_differences(case: Case) -> None:
    """The slope along a random direction of each part of the parameters, to a millionth."""
    whole = gradients(case.at())
    for part, values in whole.items():
        along = {
            name: torch.randn(value.shape, generator=generator(i), dtype=F64)
            for i, (name, value) in enumerate(values.items())
        }
        # Values need no recorded path: every rule runs the same.
        ahead, behind = (case.moved(part, along, h).at(Truncated(0)).value for h in (1e-5, -1e-5))
        slope = sum((values[name] * along[name]).sum() for name in values)
        assert abs(slope) > 1e-3, part
        assert (ahead - behind) / 2e-5 == pytest.approx(float(slope), rel=1e-6), part


@pytest.mark.parametrize("at", ["draws", "mean"])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_unrolled_paths_against_finite_differences(name, at):
    form = "full" if at == "draws" else "point"
    check_differences(case_of(ALGORITHMS[name], form=form, at=at))


@pytest.mark.parametrize("form", ["isotropic", "block", "diagonal", "lowrank(1)", "full"])
def test_anchors_of_every_form_against_finite_differences(form):
    check_differences(case_of(ALGORITHMS["sgld"], Unrolled(checkpoint=2), form=form))


@pytest.mark.parametrize(
    "case",
    [
        case_of(GradientDescent(0.2, 4, dropout=True), drop=0.3),
        case_of(Adam(0.1, 4, dropout=True, rows=2), form="diagonal", at="mean", drop=0.3),
        case_of(SGLD(0.1, 4, rows=2), lam=0.7, form="isotropic"),
        case_of(ALGORITHMS["adam"], Unrolled(checkpoint=2), form="full"),
    ],
    ids=["dropout", "dropout and rows", "lam", "checkpointed"],
)
def test_dropout_and_lam_against_finite_differences(case):
    if case.method.lam is not None:  # Λ is lam's, and Σ₀ has no slope
        found = gradients(case.at()).pop("covariance")
        assert all((value == 0).all() for value in found.values())
        case = replace(case, prior=prior_of("point", case.model))
    check_differences(case)


def test_learned_step_sizes_of_minibatches_against_finite_differences():
    case = case_of(GradientDescent(0.3, 4, rows=2, learn_lr=True))
    case.model.add_shared("inner.lr", torch.tensor([0.3, 0.1, 0.2, 0.4], dtype=F64))
    assert "inner.lr" in case.at().shared
    check_differences(case)


# Checkpoints and cuts


def same(one: Any, other: Any, rtol: float = 1e-9) -> bool:
    pairs = zip(gradients(one).values(), gradients(other).values(), strict=True)
    close = [torch.allclose(a[k], b[k], rtol=rtol, atol=1e-12) for a, b in pairs for k in a]
    return all(close) and torch.allclose(one.value, other.value, rtol=1e-12)


@pytest.mark.parametrize("name", STATEFUL)
def test_checkpoints_change_nothing_but_memory(name):
    case = case_of(ALGORITHMS[name], form="diagonal")
    whole = case.at()
    assert all(same(whole, case.at(Unrolled(checkpoint=c))) for c in (1, 2, 3, 99))
    cut = case.at(Truncated(3))
    assert not same(whole, cut, rtol=1e-3)
    assert all(same(cut, case.at(Truncated(3, checkpoint=c))) for c in (1, 2))


def test_checkpoints_of_separate_paths_change_nothing_but_memory():
    case = case_of(ALGORITHMS["adam"], form="diagonal", at="mean", draws=1)
    for last in (None, 3):
        rule = SeparatePaths(1, 2, last=last)
        assert same(case.at(rule), case.at(replace(rule, checkpoint=2)))


@pytest.mark.parametrize("rule", [Unrolled(checkpoint=2), Truncated(3, checkpoint=2)])
def test_no_more_steps_than_a_checkpoint_are_recorded_at_once(rule, monkeypatch):
    recorded, run = [], Segment.run

    def counted(self, *arguments):
        recorded.append(self.steps)
        return run(self, *arguments)

    monkeypatch.setattr(Segment, "run", counted)
    case_of(ALGORITHMS["adam"]).at(rule)
    assert recorded == [1, 2, 2] if isinstance(rule, Unrolled) else [1, 2]


@pytest.mark.parametrize("name", ALGORITHMS)
def test_cuts_at_either_end_are_first_order_and_unrolled(name):
    case = case_of(ALGORITHMS[name], form="isotropic")
    first, whole = case.at(FirstOrder()), case.at()
    assert same(case.at(Truncated(0)), first, rtol=1e-12)
    assert same(case.at(Truncated(5)), whole)
    assert not same(first, whole, rtol=1e-3)


# Estimators from separate runs


@pytest.mark.parametrize("name", ["sgd", "mixture", "psgld"])
@pytest.mark.parametrize("every_pair", [False, True])
def test_separate_paths_by_hand(name, every_pair):
    """Slopes at the mean of some paths, pulled back along others, held against autograd."""
    rule = SeparatePaths(2, 3, every_pair=every_pair)
    case = case_of(ALGORITHMS[name], rule, form="full", at="mean", draws=1)
    hand, surrogate, value = ByHand(case, 5), torch.zeros((), dtype=F64), 0.0
    for task in range(3):
        ends = [hand.end(draw, task) for draw in range(5)]
        if every_pair:
            pairs = [([j for j in range(5) if j != k], [k]) for k in range(5)]
        else:
            pairs = [([0, 1], [2, 3, 4])]
        for ahead, back in pairs:
            point = torch.stack([ends[k] for k in ahead]).mean(0).detach().requires_grad_()
            loss = hand.loss(point, task) / len(pairs)
            value += loss.item()
            (slope,) = torch.autograd.grad(loss, point, retain_graph=True)
            # ∂g at the point held, and the slope times the mean of the other paths' ends
            surrogate = surrogate + hand.loss(point.detach(), task) / len(pairs)
            surrogate = surrogate + (torch.stack([ends[k] for k in back]).mean(0) * slope).sum()
    found = case.at()
    assert found.value.item() == pytest.approx(value, rel=1e-12)
    hand.assert_gradient(surrogate, found)


@pytest.mark.parametrize("form", ["point", "diagonal", "full"])
@pytest.mark.parametrize("name", ["sgld", "psgld"])
def test_score_by_hand(name, form):
    """(g − mean of the others' g) Σ ∇ log p, plus ∂g, by autograd on the paths of z."""
    case = case_of(ALGORITHMS[name], Score(), form=form, draws=4)
    hand, surrogate = ByHand(case, 4), torch.zeros((), dtype=F64)
    for task in range(3):
        pairs = [log_probability(hand.problem(k, task), ALGORITHMS[name]) for k in range(4)]
        losses = torch.stack([hand.loss(end, task) for _, end in pairs])
        for k, (density, _) in enumerate(pairs):
            others = (losses.sum() - losses[k]) / 3
            surrogate = surrogate + ((losses[k] - others).detach() * density + losses[k]) / 4
    hand.assert_gradient(surrogate, case.at())


def test_score_of_a_free_start_knows_its_first_step_only():
    """Without an anchor, ψ or a state later steps do not see θ₀: ∇ log p is Jᵀ z / sd."""
    model = bm.Model.from_energy(lambda theta, c: ((theta - c) ** 4).sum() / 4, 2)
    family = bm.TaskFamily.from_tensors(c=torch.tensor([[0.5, -1.0]], dtype=F64))
    prior = bm.Prior("point").at(mean=torch.tensor([0.2, 0.4], dtype=F64), variance=0.0)
    method = Method(Algorithmic(), SGLD(0.01, 7), Score(), Validation(None), draws=2)
    found = bm.meta_gradient(model, prior, family, method, generator=generator(4))
    paths = draw_paths(method.inner, model, family.batch(), prior.free["mean"], 2, generator(4))
    z = paths.groups[0].noise.normals
    c, theta = family.tensors["c"], prior.free["mean"].detach().expand(2, -1)
    jacobian = 1 - 0.01 * 3 * (theta - c) ** 2
    for step in range(7):
        theta = theta - 0.01 * (theta - c) ** 3 + math.sqrt(0.02) * z[:, step]
    loss = ((theta - c) ** 4).sum(1) / 4
    score = jacobian * z[:, 0] / math.sqrt(0.02)
    expected = ((loss[0] - loss[1]) * score[0] + (loss[1] - loss[0]) * score[1]) / 2
    assert torch.allclose(found.theta0, expected, rtol=1e-10)


# Broken paths


class Root(nn.Module):
    """c √(θ − x), which is no number where a row's x is above θ; c is shared."""

    def __init__(self) -> None:
        super().__init__()
        self.theta, self.c = nn.Parameter(torch.ones(1)), nn.Parameter(torch.tensor(1.5))

    def forward(self, x):
        return self.c * (self.theta - x[:, 0]).sqrt()


def broken_case(algorithm, rule, edges: list[list[float]], seed: int, draws: int) -> Case:
    """Rows whose x is `edges`; a path whose minibatch holds one above θ breaks."""
    x = torch.tensor(edges, dtype=F64)[..., None]
    y = 2 + torch.randn(x.shape[:2], generator=generator(1), dtype=F64)
    family = bm.TaskFamily.from_tensors(x=x, y=y)
    query = bm.TaskFamily.from_tensors(x=x.clamp(max=-2), y=y)
    at = "mean" if isinstance(rule, SeparatePaths) else "draws"
    objective = Validation(None, at=at)
    method = Method(Algorithmic(anchored=True), algorithm, rule, objective, draws=draws)
    model = bm.Model(Root(), likelihoods.Gaussian(), adapt="theta").double()
    prior = bm.Prior("isotropic").at(mean=torch.ones(1, dtype=F64), variance=0.7)
    return Case(method, model, prior, seed, family, query)


EDGES = [[-1.0, 50.0, -2.0, -1.5], [-1.0, -2.0, -3.0, -1.5], [-2.0, -2.0, -1.0, -1.0]]


@pytest.mark.parametrize(
    "rule",
    [Unrolled(), Unrolled(checkpoint=1), Unrolled(checkpoint=2), SeparatePaths(2, 2), Score()],
)
@pytest.mark.parametrize("seed", [0, 2])
def test_a_path_broken_by_a_minibatch_stays_and_poisons_nobody(rule, seed):
    algorithm = SGLD(0.02, 3, rows=1)
    case = broken_case(algorithm, rule, EDGES, seed, 1 if isinstance(rule, SeparatePaths) else 4)
    hand, surrogate, broken = ByHand(case, 4), torch.zeros((), dtype=F64), 0
    for task in range(3):
        ends, densities = [], []
        for k in range(4):
            problem = hand.problem(k, task)
            with torch.no_grad():
                still = adapt(problem, algorithm)
            sound = still.results()[0] is not Result.nonfinite
            broken += not sound
            assert sound or task == 0
            ends.append(hand.end(k, task) if sound else still.theta[0])
            scored = sound and isinstance(rule, Score)
            densities.append(log_probability(problem, algorithm)[0] if scored else 0.0)
        losses = torch.stack([hand.loss(end, task) for end in ends])
        if isinstance(rule, SeparatePaths):
            point = torch.stack(ends[:2]).mean(0).detach().requires_grad_()
            (slope,) = torch.autograd.grad(hand.loss(point, task), point)
            surrogate = surrogate + hand.loss(point.detach(), task)
            surrogate = surrogate + (torch.stack(ends[2:]).mean(0) * slope).sum()
            continue
        if isinstance(rule, Score):
            flat = torch.stack([hand.loss(end.detach(), task) for end in ends])
            away = (4 * flat - flat.sum()).detach() / 3
            losses = flat + torch.stack([a * d for a, d in zip(away, densities, strict=True)])
        surrogate = surrogate + losses.mean()
    found = case.at()
    assert 0 < broken < 4
    hand.assert_gradient(surrogate, found)
    assert [r is Result.nonfinite for r in found.report.result] == [True, False, False]


def test_one_minibatch_is_no_measure_of_another():
    """A first row that θ₀ happens to fit, and a last one that it does not, diverge in nothing."""
    x = torch.ones(1, 2, 1, dtype=F64)
    family = bm.TaskFamily.from_tensors(x=x, y=torch.tensor([[0.0, 9.0]], dtype=F64))
    model = bm.Model(nn.Linear(1, 1, bias=False), likelihoods.Gaussian(0.5)).double()
    prior = bm.Prior("point").at(mean=torch.zeros(1).double(), variance=0.0)
    algorithm = GradientDescent(1e-4, 2, rows=1)
    method = Method(Algorithmic(), algorithm, Unrolled(), Validation(None), draws=8)
    found = bm.meta_gradient(model, prior, family, method, generator=generator())
    assert found.report.result == [Result.converged]


def test_a_broken_path_is_broken_after_a_cut():
    case = broken_case(GradientDescent(0.2, 6, rows=1), Unrolled(), EDGES, 0, 4)
    values = [case.at(rule).value for rule in (Unrolled(), *map(Truncated, range(7)))]
    assert torch.allclose(torch.stack(values), values[0], rtol=1e-12)
    assert same(case.at(Truncated(4)), case.at(Truncated(4, checkpoint=1)))


@pytest.mark.parametrize(
    ("mixture", "rule", "draws"),
    [
        (Mixture((GradientDescent(0.1, 2), Adam(0.1, 2), RMSProp(0.1, 2))), Unrolled(), 1),
        (Mixture((GradientDescent(0.1, 2), Adam(0.1, 2))), Unrolled(checkpoint=1), 1),
        (Mixture(tuple(SGLD(0.001 * i, 2) for i in range(1, 6))), Score(), 2),
    ],
)
def test_paths_that_are_all_broken_are_nothing_to_the_others(mixture, rule, draws):
    lonely = 0
    for seed in range(6):
        case = broken_case(mixture, rule, [[50.0, 50.0], [-1.0, -2.0], [-2.0, -1.0]], seed, draws)
        groups = draw_paths(
            mixture, case.model, case.family.batch(), case.model.start, draws, generator(seed)
        ).groups
        lonely += any((group.tasks == 0).all() for group in groups)
        found = case.at()
        values = [found.per_task, *found.covariance.values(), *found.shared.values()]
        assert all(bool(value.isfinite().all()) for value in values)
        assert found.per_task[0] == 0 and (found.per_task[1:] != 0).all()
    assert lonely > 0
