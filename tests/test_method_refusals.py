"""What cannot go together, and what went wrong in a task: each in a sentence with what to try."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import bayesmeta as bm
from bayesmeta import likelihoods, methods
from bayesmeta.gradients.direct import Direct
from bayesmeta.gradients.implicit import Implicit
from bayesmeta.gradients.pathwise import FirstOrder, Truncated, Unrolled
from bayesmeta.inner.first_order import GradientDescent, Nesterov
from bayesmeta.inner.newton import NewtonCG
from bayesmeta.method import Method
from bayesmeta.objective import Evidence, Validation, Variational
from bayesmeta.posteriors.algorithmic import Algorithmic
from bayesmeta.posteriors.free import Free
from bayesmeta.posteriors.proximal import Proximal
from bayesmeta.results import InputError, Result

DESCENT = GradientDescent(0.1, 3)
SEARCHED = GradientDescent(0.1, 3, backtracking=True)
TOGETHER = {
    "implicit without a proximal term": (
        lambda: Method(Algorithmic(), DESCENT, Implicit(), Validation(None)),
        ["λ = 0", "Proximal()", "Unrolled()"],
    ),
    "lam of zero": (lambda: methods.imaml(lam=0.0), ["lam=0.0", "proximal term", "methods.maml"]),
    "lam below zero": (lambda: methods.variational_imaml(lam=-1.0), ["lam=-1.0", "positive"]),
    "unrolled line search": (
        lambda: Method(Proximal(), SEARCHED, Unrolled(), Validation(None)),
        ["Unrolled()", "line search", "Implicit()", "fixed steps"],
    ),
    "truncated Newton-CG": (
        lambda: Method(Proximal(), NewtonCG(3, 2), Truncated(1), Validation(None)),
        ["Truncated()", "NewtonCG", "Implicit()"],
    ),
    "unrolled restarts": (
        lambda: Method(Algorithmic(), Nesterov(0.1, 3), Unrolled(), Validation(None)),
        ["Nesterov", "restart"],
    ),
    "evidence of a point": (
        lambda: methods.laplace(covariance="point"),
        ["integrates", 'Proximal(covariance="full")'],
    ),
    "evidence of a path": (
        lambda: Method(Algorithmic(), DESCENT, Unrolled(), Evidence()),
        ["Proximal θ*"],
    ),
    "query set with Q held": (
        lambda: Method(Algorithmic(), DESCENT, Direct(), Validation(None)),
        ["says nothing about θ₀", "FirstOrder()", "Reptile"],
    ),
    "query set with a held proximal Q": (
        lambda: Method(Proximal(), DESCENT, Direct(), Validation(None)),
        ["only the Variational", "Implicit()"],
    ),
    "no algorithm": (lambda: Method(Proximal(), None, Implicit()), ["give inner="]),
    "an algorithm that is none": (
        lambda: Method(Proximal(), "adam", Implicit(), Validation(None)),  # type: ignore[arg-type]
        ["'adam'", "has no init", "step(problem, theta, gradient, state)"],
    ),
    "free Q with an algorithm": (
        lambda: Method(Free(), DESCENT),
        ["leave inner= and gradient= out", "Proximal"],
    ),
    "free Q with a query set": (
        lambda: Method(Free(), objective=Validation(None)),
        ["Variational", "methods.imaml", "methods.laplace"],
    ),
    "resets of an adapted Q": (lambda: methods.maml(reset_every=5), ["reset_every=", "joint"]),
    "a fraction of everything": (lambda: methods.maml(support=1.0), ["support=1.0", "(0, 1)"]),
    "no support rows": (lambda: methods.fomaml(support=0), ["support=0", "rows per task"]),
    "no points": (lambda: methods.laplace(points=0), ["points must be at least 1"]),
    "recording backwards": (
        lambda: methods.truncated_maml(last=-1),
        ["last=-1", "0 steps or more"],
    ),
    "an unknown curvature": (lambda: methods.imaml(curvature="fisher"), ["curvature", "hessian"]),
    "an unknown solver": (
        lambda: Method(Proximal(), DESCENT, Implicit("lu"), Validation(None)),
        ["cg, neumann, cholesky", "'lu'"],
    ),
    "searched and learned steps": (
        lambda: GradientDescent(0.1, 3, backtracking=True, learn_lr=True),
        ["searched or learned", "choose one"],
    ),
}


def refused(call) -> str:
    with pytest.raises(InputError) as caught:
        call()
    return str(caught.value)


@pytest.mark.parametrize("case", TOGETHER)
def test_what_cannot_go_together_is_refused_when_the_method_is_made(case):
    make, words = TOGETHER[case]
    sentence = refused(make)
    for word in words:
        assert word in sentence


def test_every_refusal_has_a_sentence_of_its_own():
    sentences = [refused(make) for make, _ in TOGETHER.values()]
    assert len(set(sentences)) == len(sentences)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Method(Algorithmic(), DESCENT, Unrolled(), Validation(None)),
        lambda: Method(Proximal(), SEARCHED, Implicit(), Validation(None)),
        lambda: Method(Proximal(), Nesterov(0.1, 3, condition=4.0), Unrolled(), Validation(None)),
        lambda: Method(Algorithmic(), SEARCHED, FirstOrder(), Validation(None)),
        lambda: Method(Proximal(), DESCENT, Direct(), Variational()),
        lambda: Method(Proximal("full"), DESCENT, Implicit(), Evidence()),
    ],
)
def test_their_neighbours_that_go_together_are_not(make):
    assert isinstance(make(), Method)


# The model, the prior and the tasks


def lines(rows: tuple[int, ...] = (4, 4, 4, 4, 4, 4)) -> bm.TaskFamily:
    generator = torch.Generator().manual_seed(0)
    x = [torch.randn(n, 1, generator=generator).double() for n in rows]
    names = [f"task {chr(ord('a') + i)}" for i in range(len(rows))]
    y = [2 * v[:, 0] + i for i, v in enumerate(x)]
    return bm.TaskFamily.from_tensors(x=x, y=y, names=names)


def line() -> bm.Model:
    return bm.Model(nn.Linear(1, 1), likelihoods.Gaussian())


def held(form: str = "isotropic", **options) -> bm.Prior:
    return bm.Prior(form, **options).at(mean=torch.zeros(2).double(), variance=1.0)


FITS = {
    "a point prior with a proximal Q": (
        {"method": methods.imaml(), "prior": bm.Prior("point")},
        ['"point"', "maml", '"isotropic"'],
    ),
    "a point prior with the evidence": (
        {"method": methods.laplace(), "prior": bm.Prior("point")},
        ['"point"', "maml"],
    ),
    "a prior to be learned by MAML": (
        {"method": methods.maml(), "prior": bm.Prior("diagonal")},
        ["cannot learn one", 'bm.Prior("point")', 'learn="mean"'],
    ),
    "a prior to be learned from points": (
        {"method": methods.variational_imaml(), "prior": bm.Prior("diagonal")},
        ["point posteriors cannot teach", 'learn="mean"', 'covariance="diagonal"'],
    ),
    "lam and a prior": (
        {"method": methods.imaml(lam=1.0), "prior": held()},
        ["lam=1.0", "leave prior= out", "leave lam= out"],
    ),
    "a query set for the evidence": (
        {"method": methods.laplace(), "query": lines()},
        ["query=", "Validation", "leave it out"],
    ),
    "too few query sets": (
        {"method": methods.maml(), "query": lines((3, 3))},
        ["2 query tasks for 6 tasks", "one for each"],
    ),
    "reml of an adapted Q": ({"method": methods.imaml(), "reml": True}, ["reml", "joint"]),
    "quasi-Newton over random splits": (
        {"method": methods.maml(optimiser="quasi-newton")},
        ["the same M at every step", "fresh=False"],
    ),
    "a solver of free Q": (
        {"method": methods.imaml(solver="exact")},
        ['solver="exact"', "free Q_i", "leave solver= out"],
    ),
}


@pytest.mark.parametrize("case", FITS)
def test_a_fit_that_cannot_be_is_refused(case):
    options, words = FITS[case]
    sentence = refused(lambda: bm.fit(line(), lines(), **options))
    for word in words:
        assert word in sentence


def test_a_query_set_is_refused_by_the_default_method_too():
    assert "leave it out" in refused(
        lambda: bm.fit(line(), lines(), method=methods.joint(), query=lines())
    )


def test_a_task_with_too_few_rows_to_split_is_named():
    sentence = refused(
        lambda: bm.fit(line(), lines((4, 4, 1, 4, 4)), method=methods.maml(support=2))
    )
    assert "'task c' has too few rows (1)" in sentence and "for 2 in its support" in sentence
    assert "support=" in sentence


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: bm.meta_gradient(line(), held(), lines(), methods.joint()), ["free Q_i", "imaml"]),
        (
            lambda: bm.meta_gradient(line(), bm.Prior("isotropic"), lines(), methods.maml()),
            ["no values", ".at(mean=, variance=)"],
        ),
        (
            lambda: bm.meta_gradient(line(), held(), lines(), methods.maml()),
            ["generator=", "query=", "support=None"],
        ),
        (
            lambda: bm.meta_gradient(line(), held(), lines(), methods.laplace(points=5)),
            ["points=5", "points=1"],
        ),
        (
            lambda: bm.meta_gradient(line(), held(), lines(), methods.maml(), query=lines((3, 3))),
            ["2 query tasks for 6 tasks"],
        ),
        (lambda: bm.fit(line(), lines(), method=methods.joint()).meta_gradient(), ["free Q_i"]),
    ],
)
def test_a_meta_gradient_that_cannot_be_is_refused(call, words):
    sentence = refused(call)
    for word in words:
        assert word in sentence


# What happens in a task is a value: flagged there, and the others are as without it


def quadratics(curvature: tuple[float, ...]) -> tuple[bm.Model, bm.TaskFamily, bm.Prior]:
    """f = ½ k (θ − 1)² for each k."""
    model = bm.Model.from_energy(lambda t, k: 0.5 * (k * (t - 1) ** 2).sum(), 1)
    family = bm.TaskFamily.from_tensors(k=torch.tensor(curvature).double()[:, None])
    prior = bm.Prior("isotropic").at(mean=torch.zeros(1).double(), variance=1.0)
    return model, family, prior


@pytest.mark.parametrize(
    ("method", "result"),
    [
        (methods.maml(support=None, steps=9, lr=0.1), Result.diverged),
        (methods.imaml(support=None, steps=80, lr=0.1, curvature="hessian"), Result.diverged),
        (methods.maml(support=None, steps=600, lr=0.1), Result.nonfinite),
    ],
)
def test_a_step_size_that_diverges_in_one_task_is_flagged_there_alone(method, result):
    model, family, prior = quadratics((1.0, 100.0, 2.0))
    found = bm.meta_gradient(model, prior, family, method)
    assert found.report.result[1] is result
    (flag,) = found.report.flagged()
    assert (flag.task, flag.why) == ("1", result.sentence)
    assert "lower lr=" in flag.why
    sound = bm.meta_gradient(model, prior, family.subset([0, 2]), method)
    torch.testing.assert_close(found.per_task[[0, 2]], sound.per_task, rtol=0, atol=0)


def test_a_diverged_task_is_flagged_in_the_fit():
    model, family, _ = quadratics((1.0, 100.0, 2.0))
    fit = bm.fit(
        model,
        family,
        method=methods.maml(support=None, steps=9, lr=0.1, optimiser="adam", outer_steps=3),
    )
    assert [(f.task, f.why) for f in fit.flagged] == [("1", Result.diverged.sentence)]
    tame = bm.fit(
        model,
        family,
        method=methods.maml(support=None, steps=9, lr=0.01, optimiser="adam", outer_steps=3),
    )
    assert tame.flagged == []


def test_an_inner_solve_that_has_not_converged_is_flagged():
    model, family, prior = quadratics((1.0, 0.01, 3.0))
    short, long = (methods.imaml(support=None, steps=n, lr=0.3) for n in (3, 400))
    found = bm.meta_gradient(model, prior, family, short)
    assert found.report.result == [Result.not_stationary] * 3
    assert "raise steps=" in found.report.flagged()[0].why
    fit = bm.fit(model, family, method=methods.imaml(
        support=None, steps=3, lr=0.3, lam=1.0, outer_steps=2, optimiser="adam"
    ))  # fmt: skip
    assert {f.task for f in fit.flagged} == set(family.names)
    assert fit.flagged[0].why == Result.not_stationary.sentence
    # In the limit of many steps the same three tasks are solved, and g = Λ A⁻¹ ∇f(θ*).
    solved = bm.meta_gradient(model, prior, family, long)
    assert solved.report.result == [Result.converged] * 3
    k = family.tensors["k"]
    theta = k / (k + 1)
    torch.testing.assert_close(solved.per_task, k * (theta - 1) / (k + 1), rtol=1e-6, atol=1e-9)


def test_a_tolerance_not_reached_is_flagged_as_well():
    model, family, prior = quadratics((1.0, 2.0))
    method = methods.imaml(support=None, steps=4, lr=0.3, tolerance=1e-9)
    assert (
        bm.meta_gradient(model, prior, family, method).report.result == [Result.not_stationary] * 2
    )


def test_negative_curvature_is_flagged_where_it_is():
    # (θ² − c)²/4 curves by 3θ² − c: at θ₀ = 0 (no steps) by −c, against Λ = 1.
    model = bm.Model.from_energy(lambda t, c: 0.25 * (t.square() - c).square().sum(), 1)
    family = bm.TaskFamily.from_tensors(c=torch.tensor([[0.5], [5.0], [-1.0]]).double())
    prior = bm.Prior("isotropic").at(mean=torch.full((1,), 0.1).double(), variance=1.0)
    wells = methods.imaml(support=None, steps=0, curvature="hessian")
    report = bm.meta_gradient(model, prior, family, wells).report
    assert report.negative_curvature.tolist() == [False, True, False]
    assert report.result[1] is Result.negative_curvature
    assert 'curvature="ggn"' in report.flagged()[1].why
    # In a well of the second task, ±√5, the curvature is positive again.
    solved = methods.imaml(support=None, steps=500, lr=0.05, curvature="hessian")
    report = bm.meta_gradient(model, prior, family, solved).report
    assert report.result == [Result.converged] * 3
    assert not report.negative_curvature.any()


def test_an_energy_has_no_gauss_newton_matrix():
    model, family, prior = quadratics((1.0, 2.0))
    method = methods.imaml(support=None, curvature="ggn")
    assert 'curvature="hessian"' in refused(lambda: bm.meta_gradient(model, prior, family, method))
