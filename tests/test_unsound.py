"""Tasks whose loss is not a number: left out, named, and the others fitted as if alone."""

from __future__ import annotations

import math

import pytest
import torch

import bayesmeta as bm
from bayesmeta import methods

TASKS, ROWS, BAD = 12, 6, (3, 7)
METHODS = {
    "joint": methods.joint(),
    "joint, by gradient": methods.joint(covariance="diagonal", steps=60),
    "joint, batches": methods.joint(covariance="diagonal", steps=60, batch=5),
    "laplace": methods.laplace(),
    "maml": methods.maml(lr=0.02, outer_steps=20),
    "imaml": methods.imaml(lam=1.0, steps=5, lr=0.02, outer_steps=20),
    "reptile": methods.reptile(lr=0.02, outer_steps=20),
}


def family(kind: str = "nan") -> bm.TaskFamily:
    """Lines, with `poison` that makes the loss or only its slope no number in some tasks."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(TASKS, ROWS, generator=generator, dtype=torch.float64)
    weights = torch.randn(TASKS, 2, generator=generator, dtype=torch.float64)
    noise = torch.randn(TASKS, ROWS, generator=generator, dtype=torch.float64)
    poison = torch.zeros(TASKS, dtype=torch.float64)
    poison[list(BAD)] = {"nan": -1.0, "inf": 1.0, "none": 0.0}[kind]
    y = weights[:, :1] + weights[:, 1:] * x + 0.3 * noise
    return bm.TaskFamily.from_tensors(x=x, y=y, poison=poison)


def energy(
    theta: torch.Tensor, x: torch.Tensor, y: torch.Tensor, poison: torch.Tensor
) -> torch.Tensor:
    wrong = torch.sqrt(poison) * theta[0] - torch.log1p(-poison.clamp(min=0.0))
    return 0.5 * ((y - theta[0] - theta[1] * x) / 0.3).square().sum() + wrong


def model() -> bm.Model:
    return bm.Model.from_energy(energy, 2)


@pytest.mark.parametrize("name", METHODS)
def test_the_others_are_fitted_as_if_alone(name):
    kept = [i for i in range(TASKS) if i not in BAD]
    fit = bm.fit(model(), family(), method=METHODS[name])
    alone = bm.fit(model(), family("none").subset(kept), method=METHODS[name])
    assert torch.equal(fit.prior.mean, alone.prior.mean)
    assert fit.log_evidence == alone.log_evidence
    assert fit.posterior.tasks == alone.posterior.tasks
    assert [flag.task for flag in fit.flagged[:2]] == ["3", "7"]
    assert "was left out: check its data" in fit.flagged[0].why
    assert any("2 tasks have" in note and "goes without: 3, 7" in note for note in fit.notes)


def test_an_infinite_loss_is_as_bad():
    assert [flag.task for flag in bm.fit(model(), family("inf")).flagged[:2]] == ["3", "7"]


def test_nothing_is_said_of_a_sound_family():
    fit = bm.fit(model(), family("none"))
    assert not fit.flagged and not any("goes without" in note for note in fit.notes)


def test_a_family_without_a_sound_task_is_refused():
    bad = family().subset(BAD)
    with pytest.raises(bm.InputError, match="the loss is not finite for any task"):
        bm.fit(model(), bad)


def test_a_bad_query_set_counts_too():
    fit = bm.fit(model(), family("none"), method=METHODS["maml"], query=family())
    assert [flag.task for flag in fit.flagged[:2]] == ["3", "7"]


def test_a_run_without_some_tasks_comes_back(tmp_path):
    fit = bm.fit(model(), family())
    fit.save(tmp_path / "run")
    loaded = bm.load(tmp_path / "run", model=model())
    assert loaded.flagged == fit.flagged and loaded.notes == fit.notes


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e200])
@pytest.mark.parametrize("standardise", [False, True])
def test_data_that_are_no_numbers_do_not_reach_the_units_of_others(value, standardise):
    generator = torch.Generator().manual_seed(0)
    sound, _ = bm.families.linear_gaussian(tasks=8, rows=6, generator=generator)
    x = sound.tensors["x"].clone()
    x[5, 2] = value
    bad = bm.TaskFamily.from_tensors(x=x, y=sound.tensors["y"])
    module = bm.Model(torch.nn.Linear(1, 1), bm.likelihoods.Gaussian())
    fit = bm.fit(module, bad, standardise=standardise)
    others = [i for i in range(8) if i != 5]
    alone = bm.fit(module, sound.subset(others), standardise=standardise)
    assert fit.log_evidence == alone.log_evidence
    assert fit.flagged[0].task == "5" and "too large to square" in fit.flagged[0].why
