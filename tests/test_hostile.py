"""Runs and tables that somebody changed: each was a crash, a hang or a silent number once."""

from __future__ import annotations

import json
import random
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from seals import resealed
from torch import nn

import bayesmeta as bm
from bayesmeta import checkpoint, models, seal
from bayesmeta.outer import minimise
from bayesmeta.tables.reading import Table
from bayesmeta.typed import fits
from studies.hostile import folders, forged, sheets, spoiling
from studies.hostile.watching import DEFECT, REFUSED, SAME, watched


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> dict[str, Path]:
    return folders.saved(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def run(originals, tmp_path):
    def copied(name: str = "network") -> Path:
        return Path(shutil.copytree(originals[name], tmp_path / name))

    return copied


def refused(folder: Path, words: str) -> None:
    seen = watched(lambda: bm.load(folder) and SAME)
    assert seen.answer == REFUSED, seen
    assert words in seen.why, seen.why


def forge(folder: Path, file: str, name: str, value) -> None:
    """Change one tensor of a run, and seal it again."""
    path = folder / f"{file}.safetensors"
    save_file(load_file(path) | {name: value}, path)
    resealed(folder)


def test_a_prior_comes_back_to_the_last_bit(originals, tmp_path):
    fit = folders.network(originals["network"].parent / "table.csv")
    again = bm.load(fit.save(tmp_path / "run"))
    assert torch.equal(again.prior.sd(), fit.prior.sd())
    assert folders.numbers(again) == folders.numbers(fit)


@pytest.mark.parametrize("spec", forged.SPECS, ids=lambda spec: f"{spec}"[:50])
def test_sizes_are_counted_before_they_take_memory(spec, run):
    folder = run()
    resealed(folder, model=spec)
    refused(folder, "network")


def test_a_planted_hole_among_the_sizes_is_found(run, monkeypatch):
    folder = run()
    resealed(folder, model=forged.SPECS[1])
    monkeypatch.setattr(models, "refuse_other_size", lambda spec, weights: None)
    assert watched(lambda: bm.load(folder) and SAME).answer == DEFECT


@pytest.mark.parametrize("likelihood", forged.LIKELIHOODS, ids=lambda spec: f"{spec}"[:60])
def test_rules_of_any_size_are_counted_too(likelihood, run):
    folder = run()
    resealed(folder, likelihood=likelihood)
    refused(folder, "network")


def test_nodes_whose_weights_overflow_are_refused():
    assert bm.likelihoods.Bernoulli(nodes=300).weights.isfinite().all()
    with pytest.raises(bm.InputError, match="nodes=400: beyond 300 the weights"):
        bm.likelihoods.Bernoulli(nodes=400)
    with pytest.raises(bm.InputError, match="more than 100000000 numbers"):
        bm.likelihoods.Categorical(3, nodes=10**10)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"seed": "0"}, "seed of a Record is '0'"),
        ({"seed": 10**30}, "seed="),
        ({"solver": "magic"}, "solver of a Record is 'magic'"),
        ({"tasks": [0, 1, 2, 3, 4, 5]}, "tasks of a Record"),
        ({"evidence_kind": "exact"}, "the evidence is 'exact'"),
        ({"files": []}, "files of a Record"),
        (
            {"standardisation": {"x_mean": ["x"], "x_scale": [1], "y_mean": 0, "y_scale": 1}},
            "x_mean",
        ),
    ],
    ids=lambda value: None if isinstance(value, str) else next(iter(value)),
)
def test_fields_are_of_their_types(changed, words, run):
    folder = run()
    record = json.loads((folder / "run.json").read_text("utf-8"))
    if "files" in changed:
        record.pop("seal")
        record |= changed
        text = json.dumps(seal.sealed(record, {}) | changed)
        whole = {k: v for k, v in json.loads(text).items() if k != "seal"}
        (folder / "run.json").write_text(json.dumps(whole | {"seal": seal._of(whole)}), "utf-8")
    else:
        resealed(folder, **changed)
    refused(folder, words)


@pytest.mark.parametrize("field", ["noise", "theta0", "prior_sd", "tasks", "shared"])
def test_a_record_says_what_its_files_say(field, run):
    folder = run()
    result = json.loads((folder / "run.json").read_text("utf-8"))["result"]
    value = dict.fromkeys(result[field], 3.0) if isinstance(result[field], dict) else 77
    resealed(folder, result=result | {field: value or {"more": 1.0}})
    refused(folder, f"the record says {field}")


def test_a_changed_note_is_a_legitimate_other_run(run):
    folder = run()
    result = json.loads((folder / "run.json").read_text("utf-8"))["result"]
    resealed(folder, result=result | {"notes": ["Somebody wrote this."]})
    assert bm.load(folder).notes == ["Somebody wrote this."]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (lambda text: '{"seed": 1, ' + text[1:], "a name comes twice"),
        (lambda text: text.replace('"table.csv"', '"\\ud800"'), "surrogates not allowed"),
        (lambda text: "[" * 10**5 + text, "recursion"),
    ],
    ids=["twice", "surrogate", "deep"],
)
def test_json_that_has_no_one_meaning(text, words, run):
    path = run() / "run.json"
    path.write_text(text(path.read_text("utf-8")), "utf-8")
    refused(path.parent, words)


def test_a_log_of_another_kind(run):
    folder = run()
    for line in ("[" * 10**5, '{"M": "x"}', "[]"):
        (folder / "log.jsonl").write_text(line)
        resealed(folder)
        refused(folder, "log.jsonl")


def test_numbers_of_the_prior_are_numbers(run):
    folder = run()
    mean = load_file(folder / "prior.safetensors")["prior.mean"]
    forge(folder, "prior", "prior.mean", torch.full_like(mean, torch.nan))
    refused(folder, "not finite")


def test_a_posterior_that_is_no_number_is_flagged(run):
    for name, tensor in (("network", "mean"), ("draws", "draws")):
        folder = run(name)
        values = load_file(folder / "posterior.safetensors")[tensor]
        values[..., 1, 0] = torch.inf
        forge(folder, "posterior", tensor, values)
        assert [flag.task for flag in bm.load(folder).flagged] == ["s1"]


@pytest.mark.parametrize(
    ("file", "name", "value", "words"),
    [
        ("prior", "prior.log_scale", torch.zeros(1).double(), "a prior of the form diagonal has"),
        ("prior", "prior.factor", torch.zeros(16, 2).double(), "a prior of the form diagonal has"),
        ("prior", "blocks", torch.full((16,), 99), "blocks"),
        ("prior", "shared.likelihood.log_scale", torch.zeros(3).double(), "likelihood.log_scale"),
        ("prior", "shared.forward.x", torch.zeros(3).double(), "forward.x"),
        ("posterior", "diagonal", torch.ones(6, 2).double(), "the diagonal of the run's"),
        ("posterior", "factor", torch.ones(2, 2, 2).double(), "the factor of the run's"),
        ("posterior", "draws", torch.ones(0, 6, 16).double(), "damaged"),
    ],
)  # fmt: skip
def test_tensors_are_of_their_shapes(file, name, value, words, run):
    folder = run()
    forge(folder, file, name, value)
    refused(folder, words)


def test_a_file_that_is_mostly_a_hole_is_not_read(run):
    folder = run()
    for content in (b"", (folder / "prior.safetensors").read_bytes()):
        with (folder / "prior.safetensors").open("wb") as file:
            file.write(content)
            file.truncate(1 << 40)
        refused(folder, "larger than any that is written")


def test_a_table_record_that_says_nothing_is_a_sentence(run, originals):
    folder = run("linear")
    table = json.loads((folder / "run.json").read_text("utf-8"))["table"]
    resealed(folder, table=table | {"terms": {"response": ["reaction"]}})
    with pytest.raises(bm.InputError, match="cannot be read as the record of table.csv says"):
        bm.load(folder).predict(originals["linear"].parent / "table.csv")


# Tables and fits


@pytest.mark.parametrize(("column", "value"), [("y", "1e15"), ("y", "1e150")])
def test_a_value_out_of_all_proportion_is_no_traceback(column, value, tmp_path):
    """Of one column the matrix has no inverse; of the other scipy's own numbers overflow."""
    rows = sheets.errors().splitlines()
    rows[-3] = f"site 4,{value},7.67"
    (tmp_path / "t.csv").write_text("\n".join(rows))
    sheet = sheets.sheets()["known errors"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sheet.fit(sheet.read(tmp_path / "t.csv")).notes


def test_a_matrix_without_an_inverse_is_a_step_not_taken():
    x = torch.tensor([3.0], dtype=torch.float64, requires_grad=True)

    def objective() -> torch.Tensor:
        matrix = torch.eye(2, dtype=x.dtype) * (0.0 if float(x.detach()) < -0.5 else 1.0)
        return torch.linalg.solve(matrix, x.expand(2)).square().sum() + 50 * x

    trace = minimise(objective, [x], steps=20, tolerance=1e-9)
    assert trace.skipped > 0


def test_a_fit_that_meets_one_everywhere_says_so(monkeypatch):
    def fails(problem):
        raise torch.linalg.LinAlgError("singular")

    generator = torch.Generator().manual_seed(0)
    family, _ = bm.families.linear_gaussian(tasks=4, rows=4, generator=generator)
    monkeypatch.setattr("bayesmeta.joint.exact.estimate", fails)
    with pytest.raises(bm.InputError, match="no inverse in its precision"):
        bm.fit(bm.Model(nn.Linear(1, 1), bm.likelihoods.Gaussian()), family)


# The attack itself finds what is planted


def test_silent_numbers_are_found_where_a_guard_is_taken_away(tmp_path, monkeypatch):
    sheet, path = sheets.sheets()["trials"], tmp_path / "t.csv"
    path.write_text(sheet.text)
    wanted = sheets.said(sheet.read(path))

    def answers() -> set[str]:
        found = set()
        for i in range(12):
            spoil = spoiling.SPOILS["cell: no number"]
            path.write_bytes(spoil(sheet.text, random.Random(i)))
            found.add(watched(lambda: sheets.read_and_fitted(sheet, path, wanted)).answer)
        return found

    assert DEFECT not in answers()
    monkeypatch.setattr(Table, "refuse_row", lambda *_: None)
    assert DEFECT in answers()


def test_other_numbers_are_found_where_the_seal_is_not_looked_at(run, monkeypatch):
    folder = run("linear")
    wanted = folders.numbers(bm.load(folder))
    path = folder / "prior.safetensors"
    content = bytearray(path.read_bytes())
    content[-8] ^= 1  # in the last bits of a number
    path.write_bytes(bytes(content))

    def attack():
        return folders.attacked(folder, wanted, folder, sealed=False)

    assert watched(attack).answer == REFUSED
    monkeypatch.setattr(seal, "belonging", lambda place, name, _: (place / name).read_bytes())
    assert watched(attack).answer == DEFECT


def test_hangs_and_memory_are_found(monkeypatch):
    monkeypatch.setattr("studies.hostile.watching.SECONDS", 0.2)

    def hangs():
        while True:
            pass

    assert "took longer" in watched(hangs).why
    assert "asked for more" in watched(refuses_for_memory).why


def refuses_for_memory() -> str:
    try:
        torch.zeros(1 << 33)
    except RuntimeError as error:
        raise bm.InputError("damaged") from error
    return SAME


def test_types():
    assert fits({"a": [1.0]}, dict[str, list[float]]) and not fits(
        {1: [1.0]}, dict[str, list[float]]
    )
    assert fits("x", str | None) and fits(None, str | None) and not fits(1, str | None)
    assert not fits(1.0, int) and not fits(True, float) and not fits(1, bool)
    assert fits(1, "x".__class__ | int) and not fits({}, checkpoint.Record)
