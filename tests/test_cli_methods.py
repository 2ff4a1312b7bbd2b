"""Every method of the field from the command line, and what `check` says of its meta-gradient."""

from __future__ import annotations

import csv
import dataclasses
import inspect
import json
import math
from pathlib import Path

import pytest
import torch
from command_line import run, succeed

import bayesmeta as bm
from bayesmeta import methods
from bayesmeta.commands import METHODS, method_options, read_options
from bayesmeta.diagnostics import check
from bayesmeta.gradients.implicit import Implicit
from bayesmeta.method import Method
from bayesmeta.results import InputError

DATA = Path(__file__).parent / "data"
CBPP = ("fit", DATA / "cbpp.csv", "--likelihood", "binomial", "--formula")
SLOPES = (0.5, -1.0, 1.5, 0.0, 2.0, 0.3)
ROWS = [
    (f"b{b}", x / 2, 1 + b + slope * x / 2 + 0.3 * math.sin(5 * b + 3 * x))
    for b, slope in enumerate(SLOPES)
    for x in range(6)
]
LINE = ("--task", "g", "--x", "x", "--y", "y")
SMALL = {
    "maml": ("--option", "lr=1", "--option", "support=3"),
    "fomaml": ("--option", "steps=2", "--option", "lr=0.1"),
    "truncated_maml": ("--option", "steps=4", "--option", "last=2", "--option", "lr=0.1"),
    "reptile": (
        "--option",
        "outer_lr=0.1",
    ),
    "imaml": ("--option", "lam=0.5", "--option", "steps=60", "--option", "lr=0.1"),
    "imaml_hf": ("--prior", "diagonal"),
    "variational_imaml": ("--covariance", "full", "--option", "steps=50", "--option", "lr=0.05"),
    "laplace": (),
    "joint": (),
}
NO_COVARIANCE = ("maml", "fomaml", "truncated_maml")


def refused(*arguments) -> str:
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    return result.stderr


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("methods") / "t.csv"
    path.write_text("\n".join(["g,x,y", *(",".join(map(str, row)) for row in ROWS)]) + "\n")
    return path


@pytest.fixture(scope="module")
def runs(table) -> dict[str, Path]:
    """A run folder of every method, after a few outer steps."""
    folders = {}
    for name, options in SMALL.items():
        folders[name] = table.parent / name
        steps = () if name in ("joint", "laplace") else ("--steps", 10)
        method = ("--method", name, *options, *steps)
        succeed("fit", table, *LINE, *method, "--out", folders[name], "--quiet")
    return folders


# Names and options


def test_the_methods_named_are_those_there_are():
    public = {
        name
        for name, value in vars(methods).items()
        if inspect.isfunction(value)
        and not name.startswith("_")
        and inspect.signature(value).return_annotation in (Method, "Method")
    }
    assert set(METHODS) == public


def test_help_names_every_method_in_a_line_of_its_own():
    out = succeed("fit", "--help")
    lines = [line.split() for line in out.splitlines()]
    for name, about in METHODS.items():
        assert [name, *about.split()] in lines
    assert METHODS["laplace"] == "what lme4's glmer does"


@pytest.mark.parametrize("name", METHODS)
def test_every_option_listed_is_one_the_method_takes(name):
    make = getattr(methods, name)
    known = method_options(name)
    for option, hint in known.items():
        if "None" in str(hint) and not (name == "joint" and option == "steps"):
            # Without minibatches only Langevin noise is left to be random.
            random = option == "rows" and "algorithm" in known
            rest = {"algorithm": "sgld"} if random else {}
            assert isinstance(make(**{option: None}, **rest), Method)
        with pytest.raises((InputError, TypeError, AttributeError)):
            make(**{option: object()}, no_such_option=1)


def test_options_are_read_by_the_type_the_method_wants():
    known = method_options("imaml")
    given = ["lam=0.5", "steps=32", "curvature=hessian", "compile=False", "support=none", "lr=1"]
    expected = {"lam": 0.5, "steps": 32, "curvature": "hessian", "compile": False}
    assert read_options(given, "imaml", known) == expected | {"support": None, "lr": 1}


REFUSED = {
    "unknown option": (("imaml", "lambda=1"), ["no option 'lambda'", "lam", "outer_lr", "compile"]),
    "another method's": (("maml", "lam=1"), ["maml has no option 'lam'", "learn_lr"]),
    "no value": (("imaml", "lam"), ["NAME=VALUE", "'lam'"]),
    "empty value": (("imaml", "lam="), ["NAME=VALUE"]),
    "twice": (("imaml", "lam=1", "lam=2"), ["lam=", "twice"]),
    "a word for a number": (("imaml", "lam=big"), ["lam=", "a number or none", "'big'"]),
    "a fraction of a step": (("imaml", "steps=2.5"), ["steps=", "a whole number"]),
    "a number for a switch": (("maml", "learn_lr=1"), ["learn_lr=", "true or false"]),
    "none for a number": (("maml", "lr=none"), ["lr=", "a number"]),
    "lambda of zero": (("imaml", "lam=0"), ["lam=0", "maml"]),
    "a step size below zero": (("maml", "lr=-1"), ["lr=-1", "number > 0"]),
    "the outer loop by joint's name": (("joint", "outer_steps=5"), ["no option", "steps"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_bad_option_is_refused(case, table, tmp_path):
    (method, *options), words = REFUSED[case]
    given = [part for option in options for part in ("--option", option)]
    sentence = refused("fit", table, *LINE, "--method", method, *given, "--out", tmp_path / "run")
    for word in words:
        assert word in sentence
    assert not (tmp_path / "run").exists()


CLASHES = {
    "covariance of points": (("--method", "imaml", "--covariance", "full"), ["laplace", "joint"]),
    "steps twice": (
        ("--method", "maml", "--steps", 3, "--option", "outer_steps=4"),
        ["--steps", "--option outer_steps="],
    ),
    "hyper-prior without Σ₀": (
        ("--method", "maml", "--hyperprior", "boundary-avoiding"),
        ["maml", "leave --hyperprior out"],
    ),
    "hyper-prior of a held Σ₀": (
        ("--method", "imaml", "--option", "lam=1", "--hyperprior", "boundary-avoiding"),
        ["imaml", "leave --hyperprior out"],
    ),
    "a prior for MAML": (("--method", "maml", "--prior", "diagonal"), ["cannot learn one"]),
    "lam and a prior": (
        ("--method", "imaml", "--option", "lam=1", "--prior", "full"),
        ["lam=1", "leave lam= out"],
    ),
    "reml": (("--method", "laplace", "--reml"), ["reml", "joint"]),
    "a point posterior's covariance": (
        ("--method", "variational_imaml"),
        ["point posteriors", 'covariance="diagonal"'],
    ),
    "an unknown method": (("--method", "magic"), ["'magic'", "joint", "variational_imaml"]),
}


@pytest.mark.parametrize("case", CLASHES)
def test_choices_that_clash_are_refused(case, table, tmp_path):
    options, words = CLASHES[case]
    sentence = refused("fit", table, *LINE, *options, "--out", tmp_path / "run")
    for word in words:
        assert word in sentence


# Fits


def test_laplace_is_lme4s_glmer(tmp_path):
    reference = json.loads((DATA / "reference" / "reference.json").read_text())
    formula = "incidence/size ~ C(period) + (1 | herd)"
    for name, options in (
        ("Laplace", ()),
        ("AGQ25", ("--option", "points=25", "--prior", "isotropic")),
    ):
        known = reference[f"cbpp period,(1|herd) {name}"]
        command = (*CBPP, formula, "--method", "laplace", *options, "--out", tmp_path / name)
        record = json.loads(succeed(*command, "--json"))
        assert -2 * record["log_evidence"] == pytest.approx(known["m2ll"], abs=1e-3)
        assert record["prior_sd"]["Intercept"] == pytest.approx(known["sd"][0], rel=1e-3)
        assert record["evidence_kind"] == {"Laplace": "laplace", "AGQ25": "quadrature"}[name]


def test_options_are_those_of_the_run(runs):
    method = bm.load(runs["imaml"]).choices
    assert method == methods.imaml(lam=0.5, steps=60, lr=0.1, outer_steps=10)
    assert bm.load(runs["maml"]).choices == methods.maml(lr=1, support=3, outer_steps=10)
    assert bm.load(runs["imaml_hf"]).fitted_prior.form.name == "diagonal"
    assert bm.load(runs["variational_imaml"]).choices.posterior.covariance == "full"


def test_joint_is_what_it_was(runs):
    fit = bm.load(runs["joint"])
    assert fit.choices == methods.joint(covariance="full")
    assert str(fit.fitted_prior.form) == "full"
    assert fit.solver == "exact"


def test_an_adapted_task_is_the_closed_form(runs, tmp_path):
    """θ* solves 2Xᵀ(y − Xθ) = λ n (θ − θ₀) whatever σ is: Newton-CG is exact on a line."""
    table = tmp_path / "new.csv"
    table.write_text("g,x,y\nnew,0,3\nnew,1,5\nnew,3,4\n")
    succeed(
        "fit", runs["imaml"].parent / "t.csv", *LINE, "--method", "imaml_hf", "--option", "lam=0.5",
        "--steps", 20, "--out", tmp_path / "run", "--quiet",
    )  # fmt: skip
    succeed("adapt", tmp_path / "run", table, "--out", tmp_path / "q.csv")
    fit = bm.load(tmp_path / "run")
    x = torch.tensor([[1.0, 0], [1, 1], [1, 3]]).double()
    y, pull = torch.tensor([3.0, 5, 4]).double(), 0.5 * 3 / 2
    right = x.T @ y + pull * fit.prior.mean
    expected = torch.linalg.solve(x.T @ x + pull * torch.eye(2).double(), right)
    with (tmp_path / "q.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["coordinate"] for row in rows] == ["Intercept", "x"]
    assert [float(row["mean"]) for row in rows] == pytest.approx(expected.tolist(), rel=1e-6)
    assert [float(row["sd"]) for row in rows] == [0.0, 0.0]


LABELS = {
    "maml": ("Query rows", "no evidence"),
    "imaml": ("Query rows", "no evidence"),
    "reptile": ("Penalised", "no evidence"),
    "variational_imaml": ("Log evidence", "bound"),
    "laplace": ("Log evidence", "Laplace's method"),
}


@pytest.mark.parametrize("name", LABELS)
def test_the_fit_says_what_its_number_is(name, table, tmp_path):
    steps = () if name == "laplace" else ("--steps", 3)
    out = succeed(
        "fit", table, *LINE, "--method", name, *SMALL[name], *steps, "--out", tmp_path / "run"
    )
    label, word = LABELS[name]
    (line,) = [line for line in out.splitlines() if line.startswith(label)]
    assert " nats (" in line and word in line
    if label != "Log evidence":
        assert "Log evidence" not in out


def test_a_prior_without_sd_leaves_its_column_empty(table, tmp_path):
    command = ("fit", table, *LINE, "--method", "maml", "--steps", 3, "--out", tmp_path / "run")
    out = succeed(*command)
    (line,) = [line for line in out.splitlines() if line.split()[:1] == ["Intercept"]]
    assert len(line.split()) == 2
    record = json.loads(succeed(*command, "--overwrite", "--json"))
    assert record["prior_sd"] == {"Intercept": None, "x": None}


def test_tasks_of_which_the_same_is_said_share_a_line(table, tmp_path):
    out = succeed(
        "fit", table, *LINE, "--method", "imaml", "--option", "lam=0.5", "--option", "steps=1",
        "--steps", 2, "--out", tmp_path / "run",
    )  # fmt: skip
    assert out.count("was not solved") == 1
    assert "b0, b1, b2, b3, b4, b5: was not solved" in out


# check


def findings(run: Path) -> dict[str, dict]:
    found = json.loads(succeed("check", run, "--json"))["findings"]
    return {finding["check"]: finding for finding in found}


ADAPTED = [name for name in SMALL if name != "joint"]


@pytest.mark.parametrize("name", ADAPTED)
def test_check_reports_the_meta_gradient_of_every_method(name, runs):
    found = findings(runs[name])
    report = found["meta_gradient"]
    tasks = report["details"]["tasks"]
    assert [task["task"] for task in tasks] == [f"b{b}" for b in range(6)]
    for task in tasks:
        assert task["stationarity"] >= 0 and isinstance(task["negative_curvature"], bool)
        assert task["result"] in {result.name for result in bm.results.Result}
    assert [task["audit_error"] is None for task in tasks] == [False] * 3 + [True] * 3
    assert report["ok"] == (not report["flagged"])
    if name in ("maml", "laplace", "imaml_hf"):
        assert report["ok"]
        assert max(task["audit_error"] for task in tasks[:3]) < 1e-6
    if name in ("fomaml", "truncated_maml", "reptile"):
        assert "part of which this rule leaves out" in report["sentence"]
        assert report["ok"] and max(task["audit_error"] for task in tasks[:3]) > 1e-4
    assert found["boundary"]["ok"]


@pytest.mark.parametrize(
    "name",
    ADAPTED,
)
def test_predictions_are_of_the_tasks_own_posterior(name, runs, table, tmp_path):
    out = tmp_path / "p.csv"
    succeed("predict", runs[name], table, "--draws", 1000, "--out", out)
    fit = bm.load(runs[name])
    theta = dict(zip(fit.posterior.tasks, fit.posterior.mean.tolist(), strict=True))
    with out.open() as file:
        for row in csv.DictReader(file):
            intercept, slope = theta[row["g"]]
            expected = intercept + slope * float(row["x"])
            error = 5 * float(row["predicted_sd"]) / math.sqrt(1000)
            assert float(row["predicted_mean"]) == pytest.approx(expected, abs=error)


def test_joint_has_no_meta_gradient_to_check(runs):
    assert "meta_gradient" not in findings(runs["joint"])


@pytest.fixture(scope="module")
def solved(runs) -> bm.Fit:
    return bm.load(runs["imaml_hf"])


def meta(fit: bm.Fit):
    (found,) = [finding for finding in check(fit) if finding.check == "meta_gradient"]
    return found


def test_planted_shortcuts_are_found_by_the_audit(solved):
    assert meta(solved).ok
    early = methods.imaml_hf(steps=1, newton_cg_steps=1)
    found = meta(dataclasses.replace(solved, choices=early))
    assert not found.ok and "; look at b" in found.sentence
    assert any("was not solved" in flag.why for flag in found.flags)
    slow = dataclasses.replace(solved.choices, gradient=Implicit("neumann", steps=1, scale=1e-6))
    found = meta(dataclasses.replace(solved, choices=slow))
    assert not found.ok
    assert any("of the exact one: raise" in flag.why for flag in found.flags)


def test_a_singular_prior_has_no_meta_gradient(runs):
    fit = bm.load(runs["laplace"])
    zero = bm.Prior("full").at(mean=fit.prior.mean, covariance=torch.zeros(2, 2).double())
    found = meta(dataclasses.replace(fit, fitted_prior=zero))
    assert found.ok and "Σ₀ is singular" in found.sentence and found.details is None


def test_tasks_too_short_to_split_are_said(solved):
    short = solved.family.batch()
    tensors = {name: tensor[:, :1] for name, tensor in short.tensors.items()}
    family = bm.TaskFamily(tensors, names=solved.family.names, table=solved.family.table)
    found = meta(dataclasses.replace(solved, family=family))
    assert found.ok
    assert "not computed: task 'b0' has too few rows (1)" in found.sentence


def test_quadrature_is_checked_as_laplace_and_said(tmp_path):
    run_folder = tmp_path / "run"
    formula = "incidence/size ~ 1 + (1 | herd)"
    options = ("--method", "laplace", "--option", "points=9", "--out", run_folder, "--quiet")
    succeed(*CBPP, formula, *options)
    report = findings(run_folder)["meta_gradient"]
    assert report["ok"] and "for Laplace's method (points=1)" in report["sentence"]


def test_the_meta_gradient_of_a_fit_is_the_one_at_its_values(runs):
    fit = bm.load(runs["laplace"])
    found = fit.meta_gradient(audit=2)
    # At the maximum of the evidence it vanishes, though no task's own part does.
    assert found.theta0.abs().max() < 1e-4 * found.per_task.abs().max()
    assert list(found.report.audits) == ["b0", "b1"]
    again = bm.load(runs["maml"])
    first, second = again.meta_gradient(seed=3), again.meta_gradient(seed=3)
    assert torch.equal(first.theta0, second.theta0)
    assert not torch.equal(first.theta0, again.meta_gradient(seed=4).theta0)
