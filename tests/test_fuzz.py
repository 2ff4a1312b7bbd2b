"""Any table, any options, any fit: nothing crashes, and no number is silently none."""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from typer.main import get_command
from typer.testing import CliRunner

import bayesmeta as bm
from bayesmeta.cli import app
from bayesmeta.tables.reading import Table

SEEN = settings(
    deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.generate),
)  # fmt: skip
IMAGES = (
    *("ways", "shots", "queries", "rotations", "filters", "batch_norm", "image_size", "grey"),
    *("train_classes", "precision"),
)
OFTEN_REFUSED = ("resume", "device", "offset", "exposure", "standard_error")
GROUP: Any = get_command(app)
COMMANDS = {name: command.params for name, command in GROUP.commands.items()}


# Tables

# fmt: off
NUMBERS = ("0", "1", "2", "0.5", "3.25", "-1", "7", "1e3", "12", "4", "5", "6")
ODD = ("", "NaN", "inf", "-0", "1e-300", "1e149", "1e300", "a", "1,5", "2024-01-31", "٣", '"', "#")
# fmt: on
CELLS = st.one_of(*[st.sampled_from(NUMBERS)] * 12, st.sampled_from(ODD))
CLEAN = st.one_of(*[st.sampled_from(NUMBERS)] * 3, st.floats(-1e3, 1e3).map(lambda v: f"{v:.6g}"))


@st.composite
def tables(draw) -> str:
    """g, x, c, y, s (of n), n, e: some tasks, some rows, now and then a cell that is none."""
    cells = draw(st.sampled_from((CLEAN, CLEAN, CELLS)))
    lines = ["g,x,c,y,s,n,e"]
    for task in range(draw(st.integers(1, 5))):
        for _ in range(draw(st.integers(1, 5))):
            trials = draw(st.integers(1, 9))
            row = [
                f"t{task}", draw(cells), draw(st.sampled_from("pqr")), draw(cells),
                str(draw(st.integers(0, trials))), str(trials), draw(st.sampled_from("1234")),
            ]  # fmt: skip
            lines.append(",".join(row))
    return "\n".join(lines) + "\n"


# Options, with values that go, and some that do not

GOES = {
    "formula": ["y ~ x + (x | g)", "y ~ c + (1 | g)", "s/n ~ x + (1 | g)", "y ~ x", "y ~ ("],
    "task": ["g", "c", "no"], "x": ["x", "x,c", "c", "e", ""], "y": ["y", "s", "s/n", "c"],
    "likelihood": ["gaussian", "student_t", "poisson", "binomial", "bernoulli", "categorical",
                   "negative_binomial", "gamma"],
    "offset": ["e", "y"], "exposure": ["n", "e", "x"], "standard_error": ["e", "x"],
    "reml": [None], "hyperprior": ["boundary-avoiding", "none"],
    "ways": ["3"], "shots": ["1", "-1"], "queries": ["2"], "rotations": [None], "filters": ["4"],
    "batch_norm": ["support"], "image_size": ["8"], "grey": [None], "train_classes": ["3"],
    "net": ["2", "2,2", "0", "conv4", "99999999999"],
    "method": ["joint", "laplace", "maml", "fomaml", "reptile", "imaml", "imaml_hf",
               "variational_imaml", "stochastic", "two_path", "truncated_maml"],
    "option": ["lr=0.01", "lr=1e9", "lam=1", "lam=-1", "steps=2", "support=none", "support=1",
               "points=3", "draws=2", "samples=3", "rows=1", "tolerance=nan", "cg_steps=1",
               "optimiser=adam", "solver=gradient", "x", "lr=0", "support=1e300", "beta=0"],
    "covariance": ["full", "diagonal", "point", "lowrank(1)", "lowrank(99)"],
    "prior": ["full", "diagonal", "isotropic", "block", "lowrank(1)", "point", "x"],
    "steps": ["1", "2", "0", "-3", "1e3"], "batch": ["1", "2", "999", "0"],
    "chunk_size": ["1", "99999999999999999999"], "precision": ["tf32"],
    "checkpoint_every": ["1", "0"], "resume": ["nothing"], "seed": ["0", "7", "-1", "1.5"],
    "device": ["cpu", "toaster"], "out": ["run"], "overwrite": [None], "as_json": [None],
    "quiet": [None],
    # of the other commands
    "support": ["t.csv", "no.csv"], "level": ["0.5", "0", "nan", "2"],
    "draws": ["2", "9", "0", "1e3"], "coordinate": ["Intercept", "x", "?"], "tasks": ["5", "x"],
    "images": ["no"],
}  # fmt: skip
OWN = ("out", "as_json", "quiet")
USUAL = ("--task", "g", "--x", "x", "--y", "y")
NAMES = ("spread", "shrinkage", "predictive", "prior", "trace", "calibration", "pie")
LATER = ("adapt", "predict", "plot", "check")


def options(command: str) -> dict[str, str]:
    """The options of a command, each with its flag."""
    return {p.name: p.opts[0] for p in COMMANDS[command] if p.param_type_name == "option"}


@st.composite
def chosen(draw, command: str, leave: tuple[str, ...] = ()) -> list[str]:
    flags = {name: flag for name, flag in options(command).items() if name not in leave}
    some = draw(st.lists(st.sampled_from(list(flags)), max_size=4, unique=True))
    words = []
    for name in some:
        value = draw(st.sampled_from(GOES[name]))
        words += [flags[name]] if value is None else [flags[name], value]
    return words


def test_every_option_is_tried():
    asked = {name for command in ("fit", *LATER) for name in options(command)} - {"help"}
    assert asked <= set(GOES), asked - set(GOES)


def done(*arguments: str) -> str | None:
    """What a command that succeeds prints; None for one that says no, in the way it has to."""
    result = CliRunner().invoke(app, list(arguments))
    error = result.exception
    assert error is None or isinstance(error, SystemExit), f"{arguments}: {error!r}"
    assert result.exit_code in (0, 2), arguments
    assert "Traceback" not in result.output
    if result.exit_code == 2:
        said = result.stderr.strip()
        assert result.stdout == "" and said, arguments
        assert said.startswith("Usage") or ("\n" not in said and said.startswith("error: ")), said
        return None
    return result.stdout


def finite(value: Any) -> bool:
    """Whether all numbers in an object are, and none is missing where it should be."""
    if isinstance(value, dict):
        return all(map(finite, value.values()))
    if isinstance(value, list):
        return all(map(finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def check_fit(text: str, arguments: list[str]) -> None:
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "t.csv").write_text(text, "utf-8")
        out = ["--out", str(Path(place) / "run"), "--json"]
        printed = done("fit", str(Path(place) / "t.csv"), *arguments, *out)
        left = sorted(path.name for path in Path(place).iterdir())
        if printed is None:
            assert set(left) <= {"t.csv", "run.checkpoint"}, left
            return
        record = json.loads(printed)
        fit = bm.load(Path(place) / "run")
        tensors = fit.prior.mean, fit.prior.sd(), fit.posterior.mean, fit.task_evidence
        sound = all(bool(tensor.isfinite().all()) for tensor in tensors)
        known = record["log_evidence"] is not None and finite(json.loads(printed))
        said = record["flagged"] or any("unknown" in n or "finite" in n for n in record["notes"])
        assert (sound and known) or said, record


@settings(SEEN, max_examples=28)
@given(tables(), chosen("fit", (*OWN, "formula", "task", "x", "y", *IMAGES, *OFTEN_REFUSED)))
def test_fits_by_columns_end_in_a_result_or_a_sentence(text, some):
    steps = [] if "--steps" in some else ["--steps", "2"]
    check_fit(text, [*USUAL, *steps, *some])


@settings(SEEN, max_examples=25)
@given(tables(), chosen("fit", OWN))
def test_fits_by_any_options_end_in_a_result_or_a_sentence(text, some):
    check_fit(text, [*([] if "--steps" in some else ["--steps", "2"]), *some])


@pytest.mark.parametrize("guard", ["refuse_row"])
def test_a_guard_taken_away_is_found(guard, monkeypatch):
    """The planted error: cells that are no numbers are read as if they were."""
    monkeypatch.setattr(Table, guard, lambda *_: None)

    @settings(SEEN, max_examples=60, report_multiple_bugs=False)
    @given(tables())
    def same(text):
        check_fit(text, [*USUAL])

    with pytest.raises((AssertionError, ValueError)):
        same()


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("fuzz")
    rows = [
        (t, x, "pqr"[(t + x) % 3], math.sin(5 * t + x) + t * x) for t in range(4) for x in range(5)
    ]
    text = "g,x,c,y\n" + "".join(f"t{t},{x},{c},{y:.3f}\n" for t, x, c, y in rows)
    (place / "t.csv").write_text(text)
    assert done("fit", str(place / "t.csv"), *USUAL, "--out", str(place / "run"), "--quiet") == ""
    return place / "run"


@settings(SEEN, max_examples=30)
@given(st.data())
def test_what_comes_after_a_fit_ends_in_a_result_or_a_sentence(run, data):
    command = data.draw(st.sampled_from(LATER))
    some = data.draw(chosen(command, ("out", "overwrite")))
    (run.parent / "new.csv").write_text(data.draw(tables()), "utf-8")
    names = {"plot": data.draw(st.sampled_from(NAMES)), "check": None}
    more = names.get(command, str(run.parent / "new.csv"))
    place = (
        []
        if command == "check"
        else ["--out", str(run.parent / f"out.{'svg' if more in NAMES else 'csv'}")]
    )
    (run.parent / "out.csv").unlink(missing_ok=True)
    some = [str(run.parent / word) if word.endswith(".csv") else word for word in some]
    printed = done(command, str(run), *([] if more is None else [more]), *some, *place)
    if printed is not None and command in ("adapt", "predict"):
        cells = (run.parent / "out.csv").read_text("utf-8").splitlines()[1:]
        width = 4 if command == "predict" else 2
        values = [float(cell) for line in cells for cell in line.rsplit(",", width)[1:]]
        assert all(map(math.isfinite, values))


# Fits

FITS = {
    "exact": ("gaussian", bm.methods.joint()),
    "diagonal": ("student_t", bm.methods.joint(covariance="diagonal", steps=2)),
    "laplace": ("poisson", bm.methods.laplace(steps=3)),
    "bound": ("bernoulli", bm.methods.joint(steps=2)),
    "maml": ("gaussian", bm.methods.maml(lr=0.01, steps=2, support=None, outer_steps=2)),
    "stochastic": (
        "gaussian",
        bm.methods.stochastic(lr=0.01, steps=2, rows=1, support=None, samples=4, outer_steps=2),
    ),
}  # fmt: skip


def family_of(kind: str, seed: int, tasks: int, rows: int) -> bm.TaskFamily:
    import pandas as pd

    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tasks * rows, generator=generator, dtype=torch.float64)
    y = x + torch.randn(tasks * rows, generator=generator, dtype=torch.float64)
    if kind in ("poisson", "bernoulli"):
        y = (y.abs() if kind == "poisson" else y > 0).to(torch.float64).round()
        y[:2] = torch.tensor([0.0, 1.0])
    names = [f"t{i % tasks}" for i in range(tasks * rows)]
    frame = pd.DataFrame({"g": names, "x": x.numpy(), "y": y.numpy()})
    return bm.TaskFamily.from_dataframe(frame, task="g", x=["x"], y="y", likelihood=kind)


def fitted(kind: str, method: bm.methods.Method, family: bm.TaskFamily) -> bm.Fit:
    model = bm.models.linear(family, bm.likelihoods.by_name(kind))
    return bm.fit(model, family, method=method)


def numbers(fit: bm.Fit) -> list[torch.Tensor]:
    parts = [fit.prior.mean, fit.prior.sd(), fit.posterior.mean, fit.posterior.sd()]
    return [*parts, fit.task_evidence, *fit.model.shared.values(), torch.tensor(fit.log_evidence)]


@settings(SEEN, max_examples=12)
@given(st.sampled_from(list(FITS)), st.integers(0, 99), st.integers(2, 5), st.integers(2, 4))
def test_a_saved_fit_comes_back_to_the_last_bit(name, seed, tasks, rows):
    kind, method = FITS[name]
    fit = fitted(kind, method, family_of(kind, seed, tasks, rows))
    with tempfile.TemporaryDirectory() as place:
        again = bm.load(fit.save(Path(place) / "run"))
    for one, other in zip(numbers(fit), numbers(again), strict=True):
        assert torch.equal(one.nan_to_num(9.0), other.nan_to_num(9.0))
    assert json.dumps(again.record()) == json.dumps(fit.record())


@settings(SEEN, max_examples=10)
@given(st.sampled_from(("exact", "laplace", "maml")), st.integers(0, 99), st.randoms())
def test_the_order_of_tasks_and_rows_is_no_information(name, seed, chance):
    kind, method = FITS[name]
    family = family_of(kind, seed, 4, 4)
    order, row = list(range(4)), list(range(4))
    chance.shuffle(order)
    chance.shuffle(row)
    turned = family.subset(order)
    tensors = {k: v[:, row] for k, v in turned.tensors.items()}
    turned = bm.TaskFamily(tensors, mask=turned.mask, names=turned.names, table=family.table)
    first, second = fitted(kind, method, family), fitted(kind, method, turned)
    back = [turned.names.index(task) for task in family.names]
    close = {"rtol": 1e-6, "atol": 1e-6}
    torch.testing.assert_close(second.prior.mean, first.prior.mean, **close)
    torch.testing.assert_close(second.posterior.mean[back], first.posterior.mean, **close)
    assert second.log_evidence == pytest.approx(first.log_evidence, rel=1e-8, abs=1e-6)
