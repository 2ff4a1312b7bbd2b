"""Studies: each runs quickly, says what its table says, and knows when it is out of date."""

from __future__ import annotations

import hashlib
import json

import pandas as pd
import pyro
import pytest
import torch
from matplotlib.animation import FuncAnimation
from matplotlib.figure import Figure
from PIL import Image
from typer.testing import CliRunner

import bayesmeta as bm
from bayesmeta.results import InputError
from studies import conjugate_time, growth, nuts_agreement, reference_fits
from studies.__main__ import app
from studies._framework import FIGURES, Result, Study, studies, study
from studies._sets import frame
from studies.conjugate_time import svi, timing

NAMES = ("conjugate_time", "growth", "nuts_agreement", "reference_fits")


def test_the_folder_holds_these():
    assert set(NAMES) <= set(studies())


@pytest.mark.parametrize("name", list(studies()))
def test_a_quick_run_writes_table_figures_and_record(name, tmp_path):
    one = study(name)
    record = one.run(quick=True, device="cpu", out=tmp_path)
    assert record["headline"] == one.answer(tmp_path)
    assert record == one.record(tmp_path)
    assert one.state(tmp_path) == "quick"
    for file in record["figures"]:
        assert file.startswith(name)
        assert (tmp_path / file).stat().st_size > 1000
    written = {p.name for p in tmp_path.iterdir()}
    assert written == {f"{name}.csv", f"{name}.json", *record["figures"]}


def test_an_unknown_name_is_answered_with_those_there_are():
    done = CliRunner().invoke(app, ["run", "nonsense"])
    assert done.exit_code == 2
    assert all(name in done.stderr for name in ("nonsense", *NAMES))
    with pytest.raises(InputError, match="there is no study"):
        study("_framework")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["growth", "--device", "abacus"], "'abacus' is not the name of a device"),
        (["growth", "--device", "meta"], "'meta' holds no numbers"),
        (["growth", "--out", __file__], "is not a folder"),
    ],
)
def test_bad_options_are_one_sentence_and_exit_code_2(arguments, said):
    done = CliRunner().invoke(app, ["run", *arguments, "--quick"])
    assert done.exit_code == 2
    assert said in done.stderr


def test_a_study_of_processors_is_not_run_elsewhere():
    with pytest.raises(InputError, match="on the CPU only"):
        conjugate_time.run(quick=True, device="cuda")


CODE = """import other
from studies._shared import measured, shown
QUESTION = "How much is two?"
def run(quick, device):
    return measured(1)
def draw(table):
    return shown(table)
def headline(table):
    return "two"
"""
SHARED = """def measured(x):
    return two(x)
def two(x):
    return 2
def shown(table):
    return ruler(table)
def ruler(table):
    return {}
"""


class Fake:
    """A study without a file of its own."""

    QUESTION = "How much is two?"
    value = 2.0
    drawn = ("fake",)
    of_run = ()

    def run(self, quick, device):
        table = pd.DataFrame({"answer": [self.value, None]})
        return Result(table, {name: Figure() for name in self.of_run})

    def draw(self, table):
        assert table["answer"].dtype == "Int64"  # as it would be without the file between
        return {name: Figure() for name in self.drawn}

    def headline(self, table):
        return f"two is {table['answer'][0]:g}"


@pytest.fixture
def fake(tmp_path, monkeypatch):
    module = Fake()
    monkeypatch.setattr(Study, "module", property(lambda _: module))
    monkeypatch.setattr("studies._code.HERE", tmp_path)
    (tmp_path / "fake.py").write_text(CODE)
    (tmp_path / "_shared.py").write_text(SHARED)
    return Study("fake", tmp_path / "fake.py"), module, tmp_path / "figures"


def test_a_result_is_stale_when_the_code_has_changed_since(fake):
    one, _, out = fake
    assert one.state(out) == "not run"
    one.run(quick=False, device="cpu", out=out)
    assert one.state(out) == "current"
    one.path.write_text(CODE.replace("measured(1)", "measured(2)"))
    assert one.state(out) == "stale"
    with pytest.raises(InputError, match="of older code: python -m studies run fake"):
        one.draw(out)
    one.path.write_text(CODE)
    assert one.state(out) == "current"
    (out / "fake.svg").unlink()
    assert one.state(out) == "incomplete"


@pytest.mark.parametrize(
    ("file", "before", "after", "state"),
    [
        ("fake.py", "return shown", "return  shown", "drawn by older code"),
        ("fake.py", '"two"', '"two!"', "drawn by older code"),
        ("fake.py", "much is two", "much is 2", "drawn by older code"),
        ("_shared.py", "ruler(table)", "ruler(table )", "drawn by older code"),
        ("_shared.py", "return 2", "return 3", "stale"),
        ("fake.py", "def run", "HOW = 1\ndef run", "stale"),  # who knows who reads it
        ("fake.py", "def run", "if HOW:\n    pass\ndef run", "stale"),
        ("_shared.py", "def shown", "HOW = 1\ndef shown", "current"),  # what is used does not
    ],
)
def test_what_measures_is_told_from_what_draws(file, before, after, state, fake):
    one, _, out = fake
    one.run(quick=False, device="cpu", out=out)
    path = one.path.parent / file
    path.write_text(path.read_text().replace(before, after))
    assert one.state(out) == state


def test_drawing_anew_takes_the_table_as_it_is_and_keeps_what_only_a_run_draws(fake):
    one, module, out = fake
    with pytest.raises(InputError, match="not there: python -m studies run fake"):
        one.draw(out)
    module.of_run = ("fake_fit",)
    ran = one.run(quick=False, device="cpu", out=out)
    fitted = (out / "fake_fit.png").read_bytes()
    module.drawn, module.QUESTION, module.value = ("fake_more",), "What is two?", 3.0
    record = one.draw(out)
    assert record["question"] == "What is two?" and record["headline"] == "two is 2"
    files = ["fake_more.png", "fake_more.svg", "fake_fit.png", "fake_fit.svg"]
    assert record["figures"] == files == one.draw(out)["figures"]
    assert {p.name for p in out.iterdir()} == {*files, "fake.csv", "fake.json"}
    assert (out / "fake_fit.png").read_bytes() == fitted
    assert [record[name] for name in ("seconds", "versions")] == [ran["seconds"], ran["versions"]]
    assert one.state(out) == "current"


def test_a_figure_of_another_name_is_refused_before_it_is_written(fake):
    one, module, out = fake
    module.drawn = ("growth",)
    with pytest.raises(ValueError, match="must begin with the study's name"):
        one.run(quick=False, device="cpu", out=out)


def test_an_animation_is_a_file_of_many_frames(fake):
    one, module, out = fake
    figure = Figure(figsize=(1, 1))
    line = figure.subplots().plot([0, 1])[0]
    moving = FuncAnimation(figure, lambda i: line.set_ydata([0, i]) or [line], frames=3)
    module.draw = lambda table: {"fake": Figure(), "fake_moving": moving}
    record = one.run(quick=False, device="cpu", out=out)
    assert "fake_moving.gif" in record["figures"]
    with Image.open(out / "fake_moving.gif") as found:
        assert getattr(found, "n_frames", 1) == 3
    assert one.state(out) == "current"


def test_the_code_of_a_folder_is_all_of_it(tmp_path):
    folder = Study("folder", tmp_path)
    (tmp_path / "__init__.py").write_text("")
    before = folder.code
    (tmp_path / "worker.py").write_text("from problem import y\ny = 1\n")  # run by its path
    assert folder.code["measuring"] != before["measuring"]
    assert folder.code["drawing"] == before["drawing"]


def test_the_code_of_a_study_is_also_what_it_imports_of_others(tmp_path, monkeypatch):
    monkeypatch.setattr("studies._code.HERE", tmp_path)
    (tmp_path / "asked.py").write_text("from studies._shared import f\ndef run():\n    f()\n")
    inside = "def f():\n    from studies.far.part import x\n    return x\n"
    (tmp_path / "_shared.py").write_text(inside)
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "part.py").write_text("x = 1\n")
    (tmp_path / "far" / "other.py").write_text("x = 1\n")
    asked = Study("asked", tmp_path / "asked.py")
    before = asked.code
    (tmp_path / "far" / "other.py").write_text("x = 2\n")
    assert asked.code == before
    (tmp_path / "far" / "part.py").write_text("x = 2\n")
    assert asked.code != before


def test_every_study_has_code_of_both_kinds():
    for one in studies().values():
        measuring, drawing = one.code["measuring"], one.code["drawing"]
        assert measuring != drawing
        assert hashlib.sha256(b"").hexdigest() not in (measuring, drawing)


@pytest.mark.parametrize("name", list(studies()))
def test_committed_results_are_of_a_full_run_of_the_code_as_it_is(name):
    state = study(name).state(FIGURES)
    again = "draw" if state == "drawn by older code" else "run"
    assert state == "current", f"figures/{name} is {state}: python -m studies {again} {name}"


def test_figures_an_earlier_run_made_are_removed_and_others_are_left(fake):
    one, module, out = fake
    module.drawn = ("fake", "fake_second")
    one.run(quick=False, device="cpu", out=out)
    (out / "other.png").write_text("")
    module.drawn = ("fake",)
    one.run(quick=False, device="cpu", out=out)
    assert {p.name for p in out.iterdir()} == {
        "fake.csv", "fake.json", "fake.png", "fake.svg", "other.png"
    }  # fmt: skip


def test_list_computes_the_answer_from_the_table_and_reports_a_stale_one(tmp_path):
    exact = {"criterion": "ML", "nats": 1e-9, "theta0": 1e-9, "prior_sd": 1e-9, "noise": 1e-9}
    bound = {"criterion": "ELBO", "nats": -0.5, "theta0": 1e-2, "prior_sd": 0.1}
    pd.DataFrame([exact, bound]).to_csv(tmp_path / "reference_fits.csv", index=False)
    code = {"measuring": "of another day", "drawing": "of another day"}
    record = {"code": code, "quick": False, "seconds": 7.0, "figures": []}
    (tmp_path / "reference_fits.json").write_text(json.dumps(record))
    done = CliRunner().invoke(app, ["list", "--figures", str(tmp_path)])
    assert done.exit_code == 0, done.output
    text = " ".join(done.stdout.split())
    assert "stale" in text
    assert "7 s" in text
    assert "1 linear-Gaussian fits" in text
    assert text.count("not run") == len(studies()) - 1


def test_reference_headline_says_when_a_fit_is_beyond_tolerance():
    row = {"criterion": "ML", "nats": 1e-9, "theta0": 1e-9, "prior_sd": 1e-9, "noise": 1e-9}
    bound = {"criterion": "ELBO", "nats": -0.5, "theta0": 1e-2, "prior_sd": 0.1}
    good = pd.DataFrame([row, bound])
    assert ", all within tolerance" in reference_fits.headline(good)
    bad = pd.DataFrame([row, row | {"theta0": 2e-4}, bound])
    assert ", not all within tolerance" in reference_fits.headline(bad)


def test_reference_cases_name_files_and_references_that_exist():
    references = json.loads((reference_fits.DATA / "reference" / "reference.json").read_text())
    for case in reference_fits.EXACT:
        assert f"{case.reference}_ML" in references
        assert len(frame(case.file))
    known = [c for c in reference_fits.BOUNDS if c.reference in references]
    assert len(known) == len(reference_fits.BOUNDS) - 1


def test_a_relative_difference_from_zero_is_the_value_itself():
    assert reference_fits._relative([1.1, 0.2], [1.0, 0.0]) == pytest.approx(0.2)
    with pytest.raises(ValueError, match="1 values against 2"):
        reference_fits._relative([1.0], [1.0, 2.0])


def test_timing_counts_only_a_statsmodels_fit_that_arrived():
    def row(tool, setting, times, below):
        return {
            "set": "s", "tool": tool, "setting": setting, "seconds": 0.01 * times,
            "times_ours": times, "nats_below_best": below,
        }  # fmt: skip

    table = pd.DataFrame(
        [
            row("bayesmeta", "exact", 1.0, 0.0),
            row("statsmodels", "powell", 2.0, 0.5),
            row("statsmodels", "lbfgs", 3.0, 1e-9),
            row("statsmodels", "nm", 1.0, float("-inf")),
            row("Pyro SVI", "untuned: lr", 90.0, 0.09),
        ]
    )
    said = conjugate_time.headline(table)
    assert "10 ms" in said
    assert "statsmodels 3×" in said
    assert "untuned 90×" in said


def test_the_elbo_of_the_exact_fit_is_the_log_likelihood():
    one = timing.SETS[0]
    data = svi.Data.read(one.formula, frame(one.name))
    family = bm.TaskFamily.from_tensors(x=data.x, y=data.y, mask=data.mask)
    linear = torch.nn.Linear(2, 1, bias=False)
    fit = bm.fit(bm.Model(linear, bm.likelihoods.Gaussian()), family)
    values = {
        "theta0": fit.prior.mean,
        "L": torch.linalg.cholesky(fit.prior.covariance()),
        "noise": torch.tensor(fit.noise, dtype=torch.float64),
        "m": fit.posterior.mean,
        "S": torch.linalg.cholesky(fit.posterior.covariance()),
    }
    with pyro.get_param_store().scope():
        for name, value in values.items():
            pyro.param(name, value)
        exact = fit.log_evidence - data.log_units
        assert exact == pytest.approx(-875.96967223, abs=1e-4)
        assert svi.elbo(data) == pytest.approx(exact, abs=1e-8)
        pyro.get_param_store()["m"] = fit.posterior.mean + 0.1
        assert svi.elbo(data) < -876.5


def test_a_run_of_svi_that_gives_up_says_so():
    one = timing.SETS[0]
    setting = svi.Setting(lr=0.01, steps=25, particles=1)
    outcome = svi.fit(one.formula, frame(one.name), setting, target=-876.0, seed=0)
    assert outcome.seconds == svi.NEVER
    assert outcome.elbo < -876.0


def test_growth_recovers_a_power_law():
    table = pd.DataFrame({"tasks": [100, 1000, 10000], "seconds": [0.3, 3.0, 30.0]})
    assert growth.slope(table, "seconds") == pytest.approx(1.0)
    assert growth.slope(table.assign(seconds=table["tasks"] ** 2.0), "seconds") == pytest.approx(2)


def test_quadrature_gives_the_moments_of_a_conjugate_task():
    fit = nuts_agreement.FITS["eight_schools"]("cpu")
    mean, sd = nuts_agreement._quadrature(fit)
    precision = 1 / 25 + 1 / frame("eight_schools")["sigma"].to_numpy() ** 2.0
    assert sd.flatten().tolist() == pytest.approx(precision**-0.5)
    assert mean[0].item() == pytest.approx((8 / 25 + 28 / 225) / precision[0])


def test_nuts_headline_counts_the_tasks_beyond_five_per_cent():
    rows = pd.DataFrame(
        {
            "set": "s", "mean_difference": [0.01, -0.2], "sd_difference": [0.0, 0.01],
            "mean_mcse": 0.01, "sd_mcse": 0.02, "mean_quadrature_difference": 0.001,
            "sd_quadrature_difference": -0.03, "flagged": [False, True],
            "efficiency": [1.0, 0.9],
        }
    )  # fmt: skip
    said = nuts_agreement.headline(rows)
    assert "In 1 of 2 tasks of 1 set" in said
    assert "means off by more than 20.0 % or sds by more than 1.0 %" in said
    assert "means are off by at most 0.1 % and sds by 3.0 %" in said
    assert "unreliable in 1 task, though 90 % or more" in said
