"""Fits of random algorithms from Python and the command line: Q_i by draws, and what is refused."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from inner_problems import F64, generator
from torch import nn
from typer.testing import CliRunner

import bayesmeta as bm
from bayesmeta import families, likelihoods
from bayesmeta.amortised import descent
from bayesmeta.cli import app
from bayesmeta.diagnostics import check, khat
from bayesmeta.empirical import Empirical
from bayesmeta.gradients.direct import Direct
from bayesmeta.gradients.implicit import Implicit
from bayesmeta.gradients.pathwise import FirstOrder, SeparatePaths, Unrolled
from bayesmeta.gradients.score import Score
from bayesmeta.inner.first_order import Adam, GradientDescent, Momentum, Nesterov, RMSProp
from bayesmeta.inner.langevin import SGLD
from bayesmeta.inner.loop import adapt
from bayesmeta.inner.mixture import Mixture
from bayesmeta.inner.newton import NewtonCG
from bayesmeta.inner.paths import draw_paths
from bayesmeta.inner.problem import InnerProblem
from bayesmeta.method import Method
from bayesmeta.methods import stochastic, two_path
from bayesmeta.objective import Validation, Variational
from bayesmeta.posteriors.algorithmic import Algorithmic
from bayesmeta.posteriors.proximal import Proximal
from bayesmeta.results import InputError

SMALL = {"rows": 2, "steps": 3, "outer_steps": 5, "outer_lr": 0.05, "samples": 30}
METHODS = {
    "stochastic": stochastic(draws=2, lr=0.1, **SMALL),
    "two_path": two_path(algorithm="sgd+adam", anchored=True, lr=0.1, **SMALL),
    "score": stochastic(algorithm="psgld", gradient="score", **SMALL),
}


def family(seed: int = 3, tasks: int = 6) -> bm.TaskFamily:
    return families.linear_gaussian(tasks=tasks, rows=(5, 9), generator=generator(seed))[0]


def line() -> bm.Model:
    module = nn.Linear(1, 1)
    nn.init.zeros_(module.weight)
    nn.init.ones_(module.bias)
    return bm.Model(module, likelihoods.Gaussian())


@pytest.fixture(scope="module")
def fits() -> dict[str, bm.Fit]:
    return {name: bm.fit(line(), family(), method=m, seed=1) for name, m in METHODS.items()}


# Fits


@pytest.mark.parametrize("name", METHODS)
def test_a_fit_is_that_of_its_seed(name, fits):
    fit, again = fits[name], bm.fit(line(), family(), method=METHODS[name], seed=1)
    other = bm.fit(line(), family(), method=METHODS[name], seed=2)
    assert isinstance(fit.posterior.gaussian, Empirical)
    assert fit.posterior.gaussian.draws.shape == (30, 6, 2)
    assert fit.evidence_kind == "validation" and np.isfinite(fit.log_evidence)
    for mine, same, differs in (
        (fit.posterior.gaussian.draws, again.posterior.gaussian.draws, other.posterior.mean),
        (fit.prior.mean, again.prior.mean, other.prior.mean),
        (fit.task_evidence, again.task_evidence, other.task_evidence),
    ):
        assert torch.equal(mine, same)
        assert not torch.equal(mine if mine.shape == differs.shape else mine.mean(0), differs)
    assert len(fit.trace) == 5 and fit.trace == again.trace != other.trace


@pytest.mark.parametrize("name", METHODS)
def test_a_saved_fit_has_the_same_draws(name, fits, tmp_path):
    fit = fits[name]
    fit.save(tmp_path / "run")
    with pytest.raises(InputError, match=r"a model of your own: pass it, bm.load"):
        bm.load(tmp_path / "run")
    found = bm.load(tmp_path / "run", model=line())
    assert found.choices == METHODS[name]
    assert torch.equal(found.posterior.gaussian.draws, fit.posterior.gaussian.draws)
    assert torch.equal(found.predict(draws=9).draws, fit.predict(draws=9).draws)
    new = family(seed=8, tasks=3)
    ours, theirs = (f.adapt(new, seed=4) for f in (fit, found))
    assert torch.equal(ours.posterior.gaussian.draws, theirs.posterior.gaussian.draws)
    assert torch.equal(ours.task_evidence, theirs.task_evidence)


def test_adaptation_is_so_many_runs_from_the_fitted_start(fits):
    fit, new = fits["stochastic"], family(seed=8, tasks=3)
    found = fit.adapt(new, seed=4)
    paths = draw_paths(fit.choices.inner, fit.model, new.batch(), fit.prior.mean, 30, generator(4))
    (group,) = paths.groups
    start = fit.prior.mean.expand(90, 2)
    shared = {k: v.detach() for k, v in fit.model.shared.items()}
    problem = InnerProblem(fit.model, group.support(new.batch()), shared, start, None, group.noise)
    expected = adapt(problem, group.algorithm).theta.reshape(30, 3, 2)
    assert torch.allclose(found.posterior.gaussian.draws, expected, rtol=1e-12)
    assert not torch.equal(fit.adapt(new, seed=5).posterior.mean, found.posterior.mean)


def test_predictions_and_arviz_are_of_the_runs(fits):
    fit = fits["two_path"]
    draws = fit.posterior.gaussian.draws
    given = fit.draws(fit.family, 30, generator())
    assert torch.equal(given.sort(0).values, draws.sort(0).values)
    predicted = fit.predict(draws=3000)
    x, sd = fit.family.tensors["x"][..., 0], fit.noise
    centre = fit.posterior.mean[:, :1] * x + fit.posterior.mean[:, 1:]
    away = (predicted.mean - centre)[fit.family.mask]
    assert away.abs().max() < 5 * sd / 3000**0.5
    spread = draws[..., :1] * x + draws[..., 1:]
    total = (sd**2 + spread.var(0, correction=0)).sqrt()
    assert (predicted.sd / total - 1)[fit.family.mask].abs().max() < 5 / 6000**0.5
    data = fit.to_arviz(draws=60)  # there are 30, and each is given once
    theta = torch.as_tensor(np.array(data["posterior"]["theta"].values))[0]
    assert torch.equal(theta.sort(0).values, draws.sort(0).values)


@pytest.mark.parametrize("name", METHODS)
def test_figures_and_checks_of_a_random_fit(name, fits):
    fit = fits[name]
    for figure in ("spread", "prior", "shrinkage"):
        bm.plots.draw(figure, fit)
        assert bm.plots.caption(figure, fit)
    findings = {finding.check: finding for finding in check(fit)}
    assert set(findings) == {"trace", "tasks", "data", "boundary", "meta_gradient"}
    assert findings["meta_gradient"].ok and findings["tasks"].ok
    assert "no exact answer to audit it by" in findings["meta_gradient"].sentence
    with pytest.raises(InputError, match=r"no density, and so no k̂: hold them against bm.nuts"):
        khat(fit)
    assert torch.equal(fit.meta_gradient(seed=3).theta0, fit.meta_gradient(seed=3).theta0)


@pytest.mark.parametrize(
    ("rule", "at", "outer"),
    [
        (Unrolled(), "draws", "minimise"),
        (Unrolled(), "mean", "minimise"),
        (SeparatePaths(1, 1), "mean", "descend"),
        (Score(), "draws", "descend"),
        (FirstOrder(), "draws", "descend"),
    ],
)
def test_common_noise_goes_to_quasi_newton_where_the_gradient_is_exact(
    rule, at, outer, monkeypatch
):
    called = []

    def spied(name, function):
        def call(*args, **options):
            called.append(name)
            return function(*args, **options)

        return call

    for name in ("minimise", "descend"):
        monkeypatch.setattr(descent, name, spied(name, getattr(descent, name)))
    draws = 1 if isinstance(rule, SeparatePaths) else 3
    method = Method(
        Algorithmic(samples=4), SGLD(0.05, 3, rows=2), rule, Validation(None, at=at),
        draws=draws, noise="common", steps=4,
    )  # fmt: skip
    fit = bm.fit(line(), family(), method=method)
    assert called == [outer]
    if outer == "minimise":
        assert fit.trace[-1] < fit.trace[0]
        with pytest.raises(InputError, match="the same M at every step"):
            bm.fit(
                line(), family(), method=replace(method, noise="fresh", optimiser="quasi-newton")
            )


def test_reptile_and_first_order_maml_take_minibatches():
    """Reptile's gradient is θ₀ minus the mean end of its runs; first-order MAML's their slopes."""
    tasks, prior = family(), bm.Prior("isotropic").at(mean=torch.ones(2).double(), variance=1.0)
    inner = GradientDescent(0.1, 4, rows=2)
    reptile = Method(Algorithmic(), inner, Direct(), Variational(), draws=3)
    fomaml = Method(Algorithmic(), inner, FirstOrder(), Validation(None), draws=3)
    paths = draw_paths(
        inner, line().double(), tasks.batch(), torch.ones(2).double(), 3, generator()
    )
    (group,) = paths.groups
    start = torch.ones(18, 2, dtype=F64)
    problem = InnerProblem(
        line().double(), group.support(tasks.batch()), {}, start, None, group.noise
    )
    problem = replace(problem, shared={k: v.detach() for k, v in problem.model.shared.items()})
    ends = adapt(problem, inner).theta
    slopes = replace(problem, noise=None).gradient(ends).reshape(3, 6, 2).mean(0)
    found = bm.meta_gradient(line(), prior, tasks, reptile, generator=generator())
    assert torch.allclose(found.per_task, 1 - ends.reshape(3, 6, 2).mean(0), rtol=1e-10)
    found = bm.meta_gradient(line(), prior, tasks, fomaml, generator=generator())
    assert torch.allclose(found.per_task, slopes, rtol=1e-10)
    for method in (reptile, fomaml):
        outer = replace(method, optimiser="sgd", lr=0.05, steps=3)
        assert isinstance(bm.fit(line(), tasks, method=outer).posterior.gaussian, Empirical)


# Refusals

QUERY, MEAN = Validation(None), Validation(None, at="mean")
RANDOM, STILL = GradientDescent(0.1, 3, rows=2), GradientDescent(0.1, 3)
TOGETHER = {
    "two paths of one run": (
        lambda: Method(Algorithmic(), STILL, SeparatePaths(), MEAN),
        ["SeparatePaths()", "every run", "rows=", "Unrolled()"],
    ),
    "the score of one run": (
        lambda: Method(Algorithmic(), STILL, Score(), QUERY, draws=2),
        ["Score()", "SGLD", "Mixture"],
    ),
    "the mean of one run": (
        lambda: Method(Algorithmic(), STILL, Unrolled(), MEAN),
        ['at="mean"', "leave at= out"],
    ),
    "a random proximal point": (
        lambda: Method(Proximal(), RANDOM, Implicit(), QUERY),
        ["never settles", "Algorithmic(anchored=True)"],
    ),
    "a random implicit gradient": (
        lambda: Method(Algorithmic(True), RANDOM, Implicit(), QUERY),
        ["stationary", "Unrolled()"],
    ),
    "two paths of the draws": (
        lambda: Method(Algorithmic(), RANDOM, SeparatePaths(), QUERY),
        ['Validation(at="mean")', "Unrolled()"],
    ),
    "draws of two paths": (
        lambda: Method(Algorithmic(), RANDOM, SeparatePaths(), MEAN, draws=4),
        ["draws=4", "forward=, backward="],
    ),
    "the score of a mean": (
        lambda: Method(Algorithmic(), SGLD(), Score(), MEAN, draws=2),
        ['Validation(at="draws")', "draws=2"],
    ),
    "the score of one draw": (lambda: Method(Algorithmic(), SGLD(), Score(), QUERY), ["draws=2"]),
    "the score of minibatches": (
        lambda: Method(Algorithmic(), RANDOM, Score(), QUERY, draws=2),
        ["not Gaussian", "SGLD", "Unrolled()"],
    ),
    "the score of a mixture": (
        lambda: Method(Algorithmic(), Mixture((SGLD(), Adam())), Score(), QUERY, draws=2),
        ["Adam", "not Gaussian"],
    ),
    "the score of no step": (
        lambda: Method(Algorithmic(), SGLD(0.1, 0), Score(), QUERY, draws=2),
        ["steps=1 or more"],
    ),
    "a compiled mixture": (
        lambda: Method(Algorithmic(), Mixture((SGLD(), Adam())), Unrolled(), QUERY, compile=True),
        ["Mixture", "leave compile= out"],
    ),
    "a mixture of searches": (
        lambda: Mixture((GradientDescent(backtracking=True), Adam())),
        ["cannot be part of a Mixture", "line search"],
    ),
    "a mixture that stops": (lambda: Mixture((Adam(tolerance=0.1),)), ["tolerance="]),
    "a mixture of restarts": (lambda: Mixture((Nesterov(),)), ["restart"]),
    "a mixture of Newton": (lambda: Mixture((NewtonCG(3),)), ["fixed number of steps"]),
    "a mixture of learned steps": (
        lambda: Mixture((GradientDescent(learn_lr=True), Adam())),
        ["learn_lr=False"],
    ),
    "a mixture of names": (lambda: Mixture(("sgd",)), ["'sgd' is no algorithm"]),
    "an empty mixture": (lambda: Mixture(()), ["one algorithm or more"]),
    "a mixture of mixtures": (lambda: Mixture((Mixture((Adam(),)),)), ["none of them a Mixture"]),
    "odd weights": (lambda: Mixture((Adam(), SGLD()), (0.5, 0.6)), ["(0.5, 0.6)", "sum to 1"]),
    "few weights": (lambda: Mixture((Adam(), SGLD()), (1.0,)), ["probability each"]),
    "no rows": (lambda: Adam(rows=0), ["Adam(rows=0)", "at least 1"]),
    "part of a row": (lambda: Momentum(rows=2.0), ["Momentum(rows=2.0)", "whole number"]),
    "rows and a search": (
        lambda: GradientDescent(rows=2, backtracking=True),
        ["another loss in every step", "backtracking="],
    ),
    "dropout and a stop": (lambda: RMSProp(dropout=True, tolerance=0.1), ["tolerance="]),
    "rows and restarts": (lambda: Nesterov(rows=2), ["condition="]),
    "no temperature": (lambda: SGLD(temperature=0.0), ["temperature=0.0", "> 0"]),
    "a step per batch": (lambda: SGLD(per="batch"), ["per='batch'", '"row"']),
    "a median": (lambda: Validation(at="median"), ["'median'", '"draws" or "mean"']),
    "an anchor's strength without one": (lambda: Algorithmic(lam=1.0), ["anchored=True"]),
    "a law by one draw": (lambda: Algorithmic(samples=1), ["at least 2 runs"]),
    "no path forward": (lambda: SeparatePaths(0, 1), ["forward=0", "at least 1 path"]),
    "no checkpoint": (lambda: Unrolled(checkpoint=0), ["checkpoint=0", "at least 1 step"]),
    "the name of no algorithm": (lambda: stochastic(algorithm="sgd+foo"), ["'foo'", "psgld"]),
    "nothing random by name": (lambda: two_path(rows=None), ["sgd", "rows=", "maml"]),
    "nothing random": (lambda: stochastic(algorithm=STILL), ["same place", "rows="]),
    "a rule by another name": (lambda: stochastic(gradient="direct"), ["'direct'", '"score"']),
}


@pytest.mark.parametrize("case", TOGETHER)
def test_what_cannot_go_together_is_refused_and_what_can_is_said(case):
    make, words = TOGETHER[case]
    with pytest.raises(InputError) as caught:
        make()
    for word in words:
        assert word in str(caught.value)


def test_noise_is_an_argument_and_has_no_audit():
    prior = bm.Prior("point").at(mean=torch.zeros(2).double(), variance=0.0)
    method = Method(Algorithmic(), RANDOM, Unrolled(), QUERY)
    with pytest.raises(InputError, match=r"give generator=, such as torch.Generator\(\)"):
        bm.meta_gradient(line(), prior, family(), method)
    with pytest.raises(InputError, match="no exact answer .*compare_estimators"):
        bm.meta_gradient(line(), prior, family(), method, generator=generator(), audit=2)


# The command line


def cli(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    return done.stdout


def command(table: Path, method: str, *options: str) -> tuple[object, ...]:
    given = [part for option in options for part in ("--option", option)]
    columns = ("--task", "g", "--x", "x", "--y", "y", "--steps", 3, "--quiet")
    return ("fit", table, *columns, "--method", method, *given, "--out", table.parent / "run")


@pytest.fixture
def table(tmp_path) -> Path:
    path = tmp_path / "t.csv"
    rows = [
        (f"b{b}", x, 1 + b + x / (b + 1) + np.sin(9 * x * b)) for b in range(4) for x in range(5)
    ]
    path.write_text("\n".join(["g,x,y", *(",".join(map(str, row)) for row in rows)]) + "\n")
    return path


def test_a_random_fit_from_the_command_line(table):
    run, options = table.parent / "run", ("rows=2", "steps=3", "samples=20")
    cli(*command(table, "stochastic", "algorithm=sgld", "gradient=score", "draws=3", *options))
    expected = stochastic(
        algorithm="sgld", gradient="score", draws=3, rows=2, steps=3, samples=20, outer_steps=3
    )
    assert bm.load(run).choices == expected
    extra = ("algorithm=sgd+adam", "anchored=true", "every_pair=true")
    cli(*command(table, "two_path", *extra, *options), "--overwrite")
    fit = bm.load(run)
    names = [type(part).__name__ for part in fit.choices.inner.algorithms]
    assert names == ["GradientDescent", "Adam"] and fit.choices.gradient.every_pair
    found = {f["check"]: f for f in json.loads(cli("check", run, "--json"))["findings"]}
    assert all(t["audit_error"] is None for t in found["meta_gradient"]["details"]["tasks"])
    for figure in ("spread", "prior", "shrinkage", "predictive"):
        cli("plot", run, figure, "--out", table.parent / f"{figure}.svg")
    cli("predict", run, table, "--draws", 40, "--out", table.parent / "p.csv")
    assert len((table.parent / "p.csv").read_text().splitlines()) == 21
    cli("adapt", run, table, "--out", table.parent / "q.csv")
    adapted = list(csv.DictReader((table.parent / "q.csv").read_text().splitlines()))
    again = fit.adapt(table).posterior
    assert [float(r["mean"]) for r in adapted] == pytest.approx(again.mean.flatten().tolist())
    assert [float(r["sd"]) for r in adapted] == pytest.approx(again.sd().flatten().tolist())


@pytest.mark.parametrize(
    ("method", "option", "words"),
    [
        ("stochastic", "algorithm=magic", ["'magic'", "sgd, momentum", "psgld"]),
        ("stochastic", "gradient=score", ["GradientDescent", "not Gaussian"]),
        ("stochastic", "rows=none", ["nothing random", "maml"]),
        ("stochastic", "rows=0", ["rows=0", "at least 1"]),
        ("stochastic", "lam=1", ["anchored=True"]),
        ("stochastic", "forward=2", ["no option 'forward'", "draws"]),
        ("two_path", "draws=3", ["draws=3", "forward="]),
        ("two_path", "backward=0", ["backward=0", "at least 1 path"]),
    ],
)
def test_a_bad_option_is_refused_in_a_sentence(method, option, words, table):
    arguments = [str(a) for a in command(table, method, option)]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 2 and done.stdout == "" and not (table.parent / "run").exists()
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    for word in words:
        assert word in done.stderr
