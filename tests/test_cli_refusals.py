"""Bad input on the command line: exit code 2, one sentence, no traceback, nothing half-written."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bayesmeta.cli import app

ROWS = [(task, x, t + (1 + 0.1 * t) * x) for t, task in enumerate("abcd") for x in range(3)]
COLUMNS = ("--task", "g", "--x", "x", "--y", "y")


def table(rows=ROWS, header="g,x,y") -> str:
    return "\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n"


def with_cell(row, column, value) -> str:
    rows: list[list] = [list(r) for r in ROWS]
    rows[row][column] = value
    return table(rows)


def with_column(header: str, values) -> str:
    return table([(*row, v) for row, v in zip(ROWS, values, strict=True)], f"g,x,y,{header}")


FILES = {
    "missing": (None, COLUMNS, ["t.csv", "no file"]),
    "empty": ("", COLUMNS, ["t.csv", "empty"]),
    "header only": ("g,x,y\n", COLUMNS, ["t.csv", "no rows"]),
    "binary": (bytes(range(256)), COLUMNS, ["t.csv", "binary"]),
    "mixed encodings": (
        table().encode() + "é,1,2\n".encode() + "é,2,2\n".encode("latin-1"),
        COLUMNS,
        ["t.csv", "line 15", "mixes encodings"],
    ),
    "absent column": (table(), (*COLUMNS[:3], "z", *COLUMNS[4:]), ["t.csv", "'z'", "g, x, y"]),
    "duplicate column": (table(header="g,x,x"), COLUMNS, ["t.csv", "'x'", "more than one"]),
    "text": (with_cell(1, 1, "one"), COLUMNS, ["line 3", "'x'", "'one'", "not a number"]),
    "nan": (with_cell(1, 2, "nan"), COLUMNS, ["line 3", "'y'", "missing"]),
    "infinity": (with_cell(1, 2, "inf"), COLUMNS, ["line 3", "'y'", "not finite"]),
    "1e308": (with_cell(1, 2, "1e308"), COLUMNS, ["line 3", "'y'", "too large"]),
    "one task": (table(ROWS[:3]), COLUMNS, ["one task", "'a'", "at least 2"]),
    "constant predictor": (
        table([(g, 1, y) for g, _, y in ROWS]),
        COLUMNS,
        ["'x'", "every row", "leave it out"],
    ),
    "collinear predictors": (
        with_column("z", [2 * x for _, x, _ in ROWS]),
        (*COLUMNS, "--x", "z"),
        ["'z'", "'x'", "leave one"],
    ),
    "negative count": (
        table([(g, x, x - 1) for g, x, _ in ROWS]),
        (*COLUMNS, "--likelihood", "poisson"),
        ["line 2", "'y'", "'-1'", "negative"],
    ),
    "successes above trials": (
        table([(g, x, x, 1) for g, x, _ in ROWS], "g,x,y,n"),
        ("--task", "g", "--y", "y/n", "--likelihood", "binomial"),
        ["line 4", "'2' successes", "1 trials", "'n'"],
    ),
    "categories on a line": (
        with_column("c", "pqr" * 4),
        ("--task", "g", "--x", "x", "--y", "c", "--likelihood", "categorical"),
        ["categorical", "--net"],
    ),
    "standard error of zero": (
        with_column("s", [0] * len(ROWS)),
        (*COLUMNS, "--standard-error", "s"),
        ["line 2", "'s'", "above 0"],
    ),
}
OPTIONS = {
    "no columns": ((), ["--task", "--formula"]),
    "no response": (("--task", "g"), ["--y"]),
    "both ways": ((*COLUMNS, "--formula", "y ~ x + (x | g)"), ["not both"]),
    "formula without a bar": (("--formula", "y ~ x"), ["no bar", "(x | group)"]),
    "unknown likelihood": ((*COLUMNS, "--likelihood", "gausian"), ["gausian", "gaussian"]),
    "unknown prior": ((*COLUMNS, "--prior", "diag"), ["'diag'", "diagonal"]),
    "unknown posterior": ((*COLUMNS, "--posterior", "diag"), ["'diag'", "diagonal"]),
    "unknown method": ((*COLUMNS, "--method", "magic"), ["'magic'", "joint"]),
    "unknown device": ((*COLUMNS, "--device", "toaster"), ["'toaster'", "cpu"]),
    "a device without numbers": ((*COLUMNS, "--device", "meta"), ["--device 'meta'", "cpu"]),
    "a huge chunk": ((*COLUMNS, "--chunk-size", str(10**20)), ["--chunk-size", "at most"]),
    "a huge seed": ((*COLUMNS, "--seed", str(10**23)), ["--seed", "at most"]),
    "no inner steps": (
        (*COLUMNS, "--method", "imaml", "--option", "steps=0"),
        ["steps=0", "nothing is adapted"],
    ),
    "widths that are words": ((*COLUMNS, "--net", "wide"), ["--net", "40,40"]),
    "no steps": ((*COLUMNS, "--steps", "0"), ["steps", "at least 1"]),
    "reml of a network": ((*COLUMNS, "--net", "2", "--reml"), ["reml"]),
}


def refused(*arguments) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.stderr
    return result.stderr


@pytest.mark.parametrize("case", FILES)
def test_a_bad_table_is_refused(case, tmp_path):
    content, options, words = FILES[case]
    path = tmp_path / "t.csv"
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    before = sorted(tmp_path.rglob("*"))
    sentence = refused("fit", path, *options, "--out", tmp_path / "runs" / "run", "--json")
    for word in words:
        assert word in sentence
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("case", OPTIONS)
def test_a_bad_option_is_refused(case, tmp_path):
    options, words = OPTIONS[case]
    (tmp_path / "t.csv").write_text(table())
    sentence = refused("fit", tmp_path / "t.csv", *options, "--out", tmp_path / "run")
    for word in words:
        assert word in sentence
    assert [p.name for p in tmp_path.iterdir()] == ["t.csv"]


def test_a_task_with_one_row_is_fitted_and_said(tmp_path):
    noisy = [(g, x, y + math.sin(7 * i)) for i, (g, x, y) in enumerate(ROWS)]
    (tmp_path / "t.csv").write_text(table([*noisy, ("lone", 1, 3.0)]))
    result = CliRunner().invoke(
        app, ["fit", str(tmp_path / "t.csv"), *COLUMNS, "--out", str(tmp_path / "run")]
    )
    assert result.exit_code == 0
    assert "1 task has a single row" in result.stdout
    assert "lone" in result.stdout


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    noisy = [(g, x, y + math.sin(7 * i)) for i, (g, x, y) in enumerate(ROWS)]
    (folder / "t.csv").write_text(table(noisy))
    arguments = ["fit", str(folder / "t.csv"), *COLUMNS, "--out", str(folder / "run"), "--quiet"]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    return folder / "run"


LATER = {
    "adapt without a file": (("adapt", "RUN", "no.csv"), ["no.csv", "no file"]),
    "adapt without the response": (("adapt", "RUN", "x.csv"), ["x.csv", "'y'"]),
    "predict without a predictor": (("predict", "RUN", "y.csv"), ["y.csv", "'x'"]),
    "predict beyond certainty": (("predict", "RUN", "x.csv", "--level", "1.5"), ["--level"]),
    "predict without draws": (("predict", "RUN", "x.csv", "--draws", "0"), ["--draws"]),
    "predict by a huge seed": (("predict", "RUN", "x.csv", "--seed", str(10**20)), ["--seed"]),
    "predict without an end": (("predict", "RUN", "x.csv", "--draws", str(10**20)), ["--draws"]),
    "tasks of a table": (("check", "RUN", "--tasks", "5"), ["--tasks", "folder of images"]),
    "predict over a prediction": (("predict", "RUN", "p.csv"), ["predicted_mean", "rename"]),
    "an unknown figure": (("plot", "RUN", "pie"), ["'pie'", "spread"]),
    "an unknown ending": (("plot", "RUN", "spread", "--out", "a.doc"), ["a.doc", ".svg"]),
    "an unknown weight": (("plot", "RUN", "spread", "--coordinate", "z"), ["'z'", "Intercept"]),
    "an unknown task": (("plot", "RUN", "predictive", "--task", "z"), ["'z'", "'a'"]),
    "no run": (("check", "x.csv"), ["x.csv", "not a run folder"]),
}


@pytest.mark.parametrize("case", LATER)
def test_the_other_commands_refuse_too(case, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("x.csv").write_text("g,x\nnew,1\n")
    Path("y.csv").write_text("g,y\nnew,1\n")
    Path("p.csv").write_text("g,x,predicted_mean\nnew,1,2\n")
    before = sorted(tmp_path.iterdir()), sorted(run.iterdir())
    arguments, words = LATER[case]
    sentence = refused(*(run if a == "RUN" else a for a in arguments))
    for word in words:
        assert word in sentence
    assert (sorted(tmp_path.iterdir()), sorted(run.iterdir())) == before


def test_a_place_that_cannot_be_written_is_said(run, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "new.csv").write_text("g,x,y\nnew,1,2\n")
    sentence = refused("adapt", run, tmp_path / "new.csv", "--out", tmp_path / "file" / "q.csv")
    assert "file" in sentence
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "new.csv"]


def test_a_damaged_run_is_said(run, tmp_path):
    import shutil

    shutil.copytree(run, tmp_path / "copy")
    (tmp_path / "copy" / "posterior.safetensors").write_bytes(b"\0" * 100)
    assert "damaged" in refused("plot", tmp_path / "copy", "spread")


def test_an_interrupted_save_leaves_nothing(tmp_path, monkeypatch):
    """The planted failure comes while the run folder is half written."""
    from bayesmeta.fit import Fit

    def save(self, folder):
        Path(folder).mkdir()
        (Path(folder) / "run.json").write_text("{")
        raise OSError(28, "No space left on device", str(folder))

    monkeypatch.setattr(Fit, "save", save)
    noisy = [(g, x, y + math.sin(7 * i)) for i, (g, x, y) in enumerate(ROWS)]
    (tmp_path / "t.csv").write_text(table(noisy))
    assert "no space is left for it" in refused(
        "fit", tmp_path / "t.csv", *COLUMNS, "--out", tmp_path / "run"
    )
    assert [p.name for p in tmp_path.iterdir()] == ["t.csv"]
