"""Run folders of fits to streams, and of models with more weights than anyone reads."""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path

import pytest
import torch
from rich.console import Console
from seals import resealed
from small_images import bank
from torch import nn

import bayesmeta as bm
from bayesmeta import arviz_export, likelihoods, methods, predictions, report
from bayesmeta.ranks import Ranks
from bayesmeta.records import MOST_NAMED

SHORT = {"outer_steps": 3, "outer_lr": 0.01, "batch": 4}
MAML = methods.maml(steps=1, lr=0.4, support=None, **SHORT)
FILTERS = 12  # 4,143 weights


def tasks() -> bm.FewShot:
    return bm.FewShot(bank(12), ways=3, shots=1, queries=2, rotations=True)


@cache
def conv() -> bm.Fit:
    train, _ = tasks().split(7, 5)
    return bm.fit(bm.models.conv4(3, (1, 8, 8), filters=FILTERS), train, method=MAML, seed=2)


@cache
def gaussian() -> bm.Fit:
    method = methods.variational_imaml(covariance="diagonal", steps=2, lr=0.1, lam=2.0, **SHORT)
    return bm.fit(bm.models.dense(3, (1, 8, 8), widths=(2,)), tasks(), method=method)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return conv().save(tmp_path_factory.mktemp("runs") / "conv")


def record(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text(encoding="utf-8"))


def test_a_run_knows_what_it_was_drawn_from(folder):
    train, test = tasks().split(7, 5)
    loaded = bm.load(folder)
    assert record(folder)["stream"] == loaded.stream == train.record() == conv().stream
    assert loaded.stream["split"] == train.split_hash
    # The classes left are those that a test may use, and no others.
    test.refuse_overlap(set(loaded.stream["classes"]))
    with pytest.raises(bm.InputError, match="also trained on"):
        train.refuse_overlap(set(loaded.stream["classes"]))


def test_a_run_comes_back_as_it_was(folder):
    fit, loaded = conv(), bm.load(folder)
    assert repr(loaded) == repr(fit) and loaded.record() == fit.record()
    assert loaded.posterior.names == fit.posterior.names
    assert torch.equal(loaded.prior.mean, fit.prior.mean)
    support, query = tasks().split(7, 5)[1].family(2, torch.Generator().manual_seed(1))
    mine, theirs = (f.adapt(support) for f in (fit, loaded))
    assert torch.equal(mine.posterior.mean, theirs.posterior.mean)
    scores = [f.predict(query, draws=3).log_score() for f in (mine, theirs)]
    assert torch.equal(*scores) and bool(scores[0].isfinite().all())


def test_names_of_other_weights_are_refused(folder, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    for name, content in files.items():
        (other / name).write_bytes(content)
    resealed(other, names=list(conv().model.names))  # more than are listed: their digest is
    with pytest.raises(bm.InputError, match="other names"):
        bm.load(other)


# Many weights


def test_many_weights_are_counted_and_not_listed(folder):
    fit = conv()
    found, small = fit.record(), gaussian().record()
    assert fit.model.dim > MOST_NAMED > gaussian().model.dim
    assert found.keys() == small.keys()
    assert found["theta0"] == found["prior_sd"] == {}
    assert len(small["theta0"]) == len(small["prior_sd"]) == gaussian().model.dim
    values = fit.prior.mean.sort().values
    quartiles = found["weights"]["theta0_quartiles"]
    assert found["weights"]["number"] == fit.model.dim
    assert quartiles[0] == float(values[0]) and quartiles[4] == float(values[-1])
    assert quartiles[2] == float(values.median())
    assert found["weights"]["prior_sd_quartiles"] is None  # a point
    held = small["weights"]["prior_sd_quartiles"]
    assert held == pytest.approx([math.sqrt(1 / (2.0 * 3))] * 5)  # Λ = n λ, three rows
    assert len(json.dumps(found)) < 3000
    assert found["stream"] == fit.stream | {"classes": 7}
    assert (folder / "run.json").stat().st_size < 10_000


def test_the_report_is_short(folder, capsys):
    console = Console(width=120)
    console.print(report.fit_report(conv(), folder))
    told = capsys.readouterr().out
    assert "3-way 1-shot, 2 queries a class · generated: 7 classes, with rotations" in told
    assert f"Prior of {conv().model.dim} weights" in told and len(told.splitlines()) < 20
    assert len(repr(conv())) < 200


def test_many_names_are_compared_by_their_hash(tmp_path):
    def own(rows: int) -> bm.Model:
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, rows), nn.Tanh(), nn.Linear(rows, 3))
        return bm.Model(net, likelihoods.Categorical(3))

    fit = bm.fit(own(20), tasks(), method=MAML)
    run = fit.save(tmp_path / "run")
    assert record(run)["names"]["number"] == fit.model.dim > MOST_NAMED
    assert bm.load(run, model=own(20)).posterior.names == fit.model.names
    with pytest.raises(bm.InputError, match="other names"):
        bm.load(run, model=own(21))
    swapped = nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.Tanh(), nn.Linear(20, 3))
    renamed = bm.Model(swapped, likelihoods.Categorical(3), names=fit.model.names[::-1])
    with pytest.raises(bm.InputError, match="other names"):
        bm.load(run, model=renamed)


def test_draws_for_arviz_are_left_out_where_they_would_be_few(tmp_path, folder, monkeypatch):
    assert not (folder / "posterior.nc").exists()  # nobody asks for tasks drawn from a stream
    family, _ = tasks().family(4, torch.Generator().manual_seed(0))
    model = bm.models.dense(3, (1, 8, 8), widths=(2,))
    fit = bm.fit(model, family, method=methods.maml(support=None, outer_steps=2, optimiser="adam"))
    assert (fit.save(tmp_path / "small") / "posterior.nc").is_file()
    for fits, limit in ((True, 8 * 10 * 5 * model.dim), (False, 8 * 10 * 5 * model.dim - 1)):
        monkeypatch.setattr(arviz_export, "LARGEST_FILE", limit)
        path = fit.save(tmp_path / str(fits))
        assert (path / "posterior.nc").is_file() is fits
        assert bm.load(path).record() == fit.record()


def test_of_several_processes_one_writes(tmp_path, monkeypatch):
    fit = conv()  # by this process alone
    monkeypatch.setattr(Ranks, "present", classmethod(lambda cls: cls(1, 2)))
    assert fit.save(tmp_path / "run") == tmp_path / "run"
    assert not (tmp_path / "run").exists()


# Predictions of many weights


def test_all_draws_of_a_point_are_one(monkeypatch):
    sizes = []
    honest = bm.Fit.draws
    monkeypatch.setattr(
        bm.Fit, "draws", lambda fit, f, n, g: (sizes.append(n), honest(fit, f, n, g))[1]
    )
    seen = conv().predict(draws=500)
    assert sizes == [1]
    assert seen.draws.shape == seen.log_density.shape == (500, 4, 3)
    assert bool((seen.log_density == seen.log_density[:1]).all())
    # y is random all the same, as often each class as its probability says.
    with torch.no_grad():
        logits = conv().model.predict(conv().posterior.mean, conv().seen(conv().family))
    wanted = logits.softmax(-1)
    torch.testing.assert_close(seen.probabilities, wanted)
    with pytest.raises(bm.InputError, match="probabilities"):
        _ = seen.mean
    shares = torch.stack([(seen.draws == c).float().mean(0) for c in range(3)], -1)
    assert float((shares - wanted).abs().max()) < 5 * math.sqrt(0.25 / 500)


def test_many_draws_are_predicted_in_parts(monkeypatch):
    fit = gaussian()
    whole = fit.predict(draws=400, seed=3)
    monkeypatch.setattr(predictions, "LARGEST_DRAWS", 150 * len(fit.family) * fit.model.dim)
    sizes = []
    honest = bm.Fit.draws
    monkeypatch.setattr(
        bm.Fit, "draws", lambda fit, f, n, g: (sizes.append(n), honest(fit, f, n, g))[1]
    )
    parts = fit.predict(draws=400, seed=3)
    assert sizes == [150, 150, 100]
    assert parts.draws.shape == whole.draws.shape and parts.log_density.shape == (400, 4, 3)
    density = parts.log_density
    assert not torch.equal(density[:100], density[150:250])
    error = whole.log_density.std(0) * math.sqrt(2 / 400)
    away = (density.mean(0) - whole.log_density.mean(0)).abs()
    assert bool((away < 5 * error).all()) and bool((error > 0).all())


def test_tasks_without_a_posterior_are_predicted_by_all_draws_of_the_prior():
    """Points with a prior that is none: one draw does for the fit's tasks, and not for others."""
    method = methods.imaml(steps=2, lr=0.1, lam=2.0, support=None, **SHORT)
    fit = bm.fit(bm.models.dense(3, (1, 8, 8), widths=(2,)), tasks(), method=method)
    x, y = fit.family.tensors.values()
    other = bm.TaskFamily({"x": x, "y": y}, names=["0", "1", "2", "new"])
    density = fit.predict(other, draws=50).log_density
    spread = density.std(0).amax(-1)
    assert bool((spread[:3] < 1e-4).all()) and float(spread[3]) > 0.01
