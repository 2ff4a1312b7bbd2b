"""The command line from CSV to figure, against closed forms."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from command_line import run, succeed

import bayesmeta as bm

BATCHES, ROWS = 6, 5


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def balanced() -> np.ndarray:
    """(batch, row) yields with a clear difference between batches."""
    generator = np.random.default_rng(3)
    return np.round(50 + 4 * generator.normal(size=(BATCHES, 1)) + generator.normal(size=(6, 5)), 3)


def by_hand(y: np.ndarray) -> dict[str, float]:
    """Maximum likelihood of the balanced one-way layout, in closed form."""
    tasks, rows = y.shape
    means = y.mean(1)
    within = ((y - means[:, None]) ** 2).sum() / (tasks * (rows - 1))
    between = rows * ((means - y.mean()) ** 2).sum() / tasks
    variance = (between - within) / rows
    log_det = tasks * (math.log(between) + (rows - 1) * math.log(within))
    evidence = -0.5 * (y.size * (math.log(2 * math.pi) + 1) + log_det)
    return {
        "mean": y.mean(),
        "sd": math.sqrt(variance),
        "noise": math.sqrt(within),
        "evidence": evidence,
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with yield.csv, and the run `fitted` of it."""
    path = tmp_path_factory.mktemp("cli")
    rows = [f"B{i},{value}" for i, batch in enumerate(balanced()) for value in batch]
    (path / "yield.csv").write_text("Batch,Yield\n" + "\n".join(rows) + "\n")
    succeed(
        "fit", path / "yield.csv", "--task", "Batch", "--y", "Yield", "--out", path / "fitted",
        "--quiet",
    )  # fmt: skip
    return path


def fit_json(*arguments) -> dict:
    out = succeed("fit", *arguments, "--json")
    assert out.count("\n") == 1
    return json.loads(out)


def test_json_is_one_object_with_the_closed_form(folder, tmp_path):
    record = fit_json(
        folder / "yield.csv", "--formula", "Yield ~ 1 + (1 | Batch)", "--out", tmp_path / "run"
    )
    expected = by_hand(balanced())
    assert list(record["theta0"]) == list(record["prior_sd"]) == ["Intercept"]
    assert record["theta0"]["Intercept"] == pytest.approx(expected["mean"], rel=1e-6)
    assert record["prior_sd"]["Intercept"] == pytest.approx(expected["sd"], rel=1e-4)
    assert record["noise"] == pytest.approx(expected["noise"], rel=1e-4)
    assert record["log_evidence"] == pytest.approx(expected["evidence"], abs=1e-5)
    assert record["prior_correlation"] == [[pytest.approx(1.0)]]
    assert record["evidence_kind"] == "exact"
    assert record["shared"] == {}
    assert record["flagged"] == []
    assert (record["tasks"], record["observations"]) == (BATCHES, BATCHES * ROWS)
    assert isinstance(record["seconds"], float)
    assert record["run"] == str(tmp_path / "run")


def test_both_ways_of_naming_columns_agree(folder, tmp_path):
    by_formula = fit_json(
        folder / "yield.csv", "--formula", "Yield ~ 1 + (1 | Batch)", "--out", tmp_path / "a"
    )
    by_columns = fit_json(
        folder / "yield.csv", "--task", "Batch", "--y", "Yield", "--out", tmp_path / "b"
    )
    for key in ("log_evidence", "noise"):
        assert by_formula[key] == pytest.approx(by_columns[key], rel=1e-8)


def test_predictors_are_repeated_or_listed(tmp_path):
    lines = [f"{t},{i},{i * i},{t + i + (i * t) % 3}" for t in range(4) for i in range(6)]
    table = tmp_path / "t.csv"
    table.write_text("task,a,b,y\n" + "\n".join(lines) + "\n")
    options = ["--task", "task", "--y", "y", "--prior", "diagonal"]
    listed = fit_json(table, *options, "--x", "a,b", "--out", tmp_path / "1")
    repeated = fit_json(table, *options, "--x", "a", "--x", "b", "--out", tmp_path / "2")
    assert list(listed["theta0"]) == ["Intercept", "a", "b"]
    assert listed["theta0"] == repeated["theta0"]


def test_a_run_folder_is_complete_and_alone(folder):
    names = {path.name for path in (folder / "fitted").iterdir()}
    assert names >= {"run.json", "prior.safetensors", "posterior.nc", "log.jsonl"}
    assert sorted(path.name for path in folder.iterdir()) == ["fitted", "yield.csv"]


def test_the_run_folder_is_named_after_the_data(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = succeed("fit", folder / "yield.csv", "--formula", "Yield ~ 1 + (1 | Batch)")
    assert (tmp_path / "runs" / "yield" / "run.json").is_file()
    for words in ("Intercept", "Noise sd", "Log evidence", "exact", "0 of 6 tasks", "runs/yield"):
        assert words in out


def test_quiet_prints_nothing(folder, tmp_path):
    result = run(
        "fit", folder / "yield.csv", "--task", "Batch", "--y", "Yield", "--quiet",
        "--out", tmp_path / "run",
    )  # fmt: skip
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")


def test_an_earlier_run_is_replaced_only_when_asked(folder, tmp_path):
    fit = ["fit", folder / "yield.csv", "--task", "Batch", "--y", "Yield", "--out"]
    succeed(*fit, tmp_path / "run")
    marker = tmp_path / "run" / "mine.txt"
    marker.write_text("kept")
    assert "--overwrite" in one_sentence(run(*fit, tmp_path / "run"))
    assert marker.exists()
    succeed(*fit, tmp_path / "run", "--overwrite")
    assert not marker.exists()


def test_a_folder_that_is_no_run_is_never_replaced(folder, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    fit = ["fit", folder / "yield.csv", "--task", "Batch", "--y", "Yield"]
    result = run(*fit, "--out", tmp_path / "thesis", "--overwrite")
    assert "not a run folder" in one_sentence(result)
    assert [p.name for p in tmp_path.rglob("*")] == ["thesis", "chapter.tex"]


def test_adapt_gives_the_conjugate_posterior(folder, tmp_path):
    (tmp_path / "new.csv").write_text("Batch,Yield\nnew,55\nnew,56\n")
    succeed("adapt", folder / "fitted", tmp_path / "new.csv", "--out", tmp_path / "q.csv")
    expected = by_hand(balanced())
    prior, noise = expected["sd"] ** -2, expected["noise"] ** -2
    precision = prior + 2 * noise
    (row,) = read(tmp_path / "q.csv")
    assert (row["task"], row["coordinate"]) == ("new", "Intercept")
    mean = (prior * expected["mean"] + noise * 111) / precision
    assert float(row["mean"]) == pytest.approx(mean, rel=1e-5)
    assert float(row["sd"]) == pytest.approx(precision**-0.5, rel=1e-4)


def test_predictions_stand_beside_their_rows_in_file_order(folder, tmp_path):
    """Rows of two tasks interleaved; one task is new, and predicted from the prior."""
    (tmp_path / "new.csv").write_text("note,Batch\nfirst,other\nsecond,B0\nthird,other\n")
    run_folder, table, out = folder / "fitted", tmp_path / "new.csv", tmp_path / "p.csv"
    report = succeed("predict", run_folder, table, "--draws", 4000, "--out", out)
    assert "1 of 2 tasks" in report
    rows = read(out)
    expected = by_hand(balanced())
    assert [row["note"] for row in rows] == ["first", "second", "third"]
    assert [row["predicted_from"] for row in rows] == ["prior", "posterior", "prior"]
    sd = math.hypot(expected["sd"], expected["noise"])
    assert float(rows[0]["predicted_mean"]) == pytest.approx(expected["mean"], abs=5 * sd / 60)
    assert float(rows[0]["predicted_sd"]) == pytest.approx(sd, rel=0.06)
    width = float(rows[0]["predicted_high"]) - float(rows[0]["predicted_low"])
    assert width == pytest.approx(2 * 1.6449 * sd, rel=0.1)
    assert abs(float(rows[1]["predicted_mean"]) - balanced()[0].mean()) < 0.5


def test_support_rows_teach_a_new_task(folder, tmp_path):
    (tmp_path / "new.csv").write_text("Batch,Yield\nnew,70\nB0,50\n")
    (tmp_path / "support.csv").write_text("Batch,Yield\n" + "new,70\n" * 20)
    out = tmp_path / "p.csv"
    report = succeed(
        "predict", folder / "fitted", tmp_path / "new.csv",
        "--support", tmp_path / "support.csv", "--out", out,
    )  # fmt: skip
    new, known = read(out)
    assert float(new["predicted_mean"]) == pytest.approx(70, abs=0.5)
    assert float(known["predicted_mean"]) == pytest.approx(balanced()[0].mean(), abs=0.5)
    assert "log predictive density" in report


def test_a_result_file_is_replaced_only_when_asked(folder, tmp_path):
    table = tmp_path / "new.csv"
    table.write_text("Batch,Yield\nnew,55\n")
    for command in ("adapt", "predict"):
        result = run(command, folder / "fitted", table, "--out", table)
        assert "--overwrite" in one_sentence(result)
    assert table.read_text() == "Batch,Yield\nnew,55\n"


@pytest.mark.parametrize("name", ["spread", "predictive", "prior", "trace", "calibration"])
def test_every_figure_by_name(folder, tmp_path, name):
    for kind, opening in (("svg", b"<?xml"), ("png", b"\x89PNG")):
        out = tmp_path / f"figure.{kind}"
        assert str(out) in succeed("plot", folder / "fitted", name, "--out", out).replace("\n", "")
        assert out.read_bytes().startswith(opening)


def test_a_figure_goes_into_its_run(folder, tmp_path):
    succeed(
        "fit", folder / "yield.csv", "--task", "Batch", "--y", "Yield", "--out", tmp_path / "run"
    )
    succeed("plot", tmp_path / "run", "spread", "--coordinate", "Intercept", "--quiet")
    assert (tmp_path / "run" / "spread.svg").is_file()


def test_check_finds_nothing_wrong_with_an_exact_fit(folder):
    checks = json.loads(succeed("check", folder / "fitted", "--json"))
    assert checks["ok"] is True
    names = [finding["check"] for finding in checks["findings"]]
    assert names == ["trace", "pareto_k", "tasks", "data", "boundary"]
    assert all(finding["flagged"] == [] for finding in checks["findings"])
    assert 0.8 < checks["coverage"]["0.9"] <= 1
    assert checks["notes"] == []
    assert "Pareto" in succeed("check", folder / "fitted")
    assert succeed("check", folder / "fitted", "--quiet") == ""


def test_check_flags_a_planted_wrong_posterior(folder, tmp_path):
    """Posteriors 2 sd off and a third as wide as they should be."""
    fitted = bm.load(folder / "fitted")
    q = fitted.posterior.gaussian
    wrong = bm.Gaussian(q.mean + 2 * q.sd(), q.variance() / 9)
    fitted.posterior = dataclasses.replace(fitted.posterior, gaussian=wrong)
    fitted.save(tmp_path / "wrong")
    checks = json.loads(succeed("check", tmp_path / "wrong", "--json"))
    assert checks["ok"] is False
    (k,) = [finding for finding in checks["findings"] if finding["check"] == "pareto_k"]
    named = {flag["task"] for flag in k["flagged"]}
    assert named
    assert named <= {f"B{i}" for i in range(BATCHES)}
    assert f"{min(named)}: Pareto" in succeed("check", tmp_path / "wrong")


def test_eight_schools_says_in_words_that_the_prior_sd_is_zero(tmp_path):
    data = Path(bm.__file__).parent / "data" / "eight_schools.csv"
    fit = ["fit", data, "--task", "school", "--y", "y", "--standard-error", "sigma", "--out"]
    out = " ".join(succeed(*fit, tmp_path / "a").split())
    assert "estimated as 0 (the boundary)" in out
    off = fit_json(*fit[1:], tmp_path / "b", "--hyperprior", "boundary-avoiding")
    assert off["prior_sd"]["Intercept"] > 1
    assert off["noise"] is None


def test_version_is_printed():
    assert succeed("--version").strip().count(".") == 2


def one_sentence(result) -> str:
    """What a person reads on bad input: one line on stderr, nothing on stdout."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr
