"""A task that fails in the middle of a descent is left out of the step: the others go on."""

from __future__ import annotations

import pytest
import torch

import bayesmeta as bm
from bayesmeta import methods
from bayesmeta.amortised.descent import Descent
from bayesmeta.failures import Failures
from bayesmeta.joint import descent as joint
from bayesmeta.joint.problem import Problem
from bayesmeta.ranks import Ranks

TASKS, ROWS, BAD = 12, 6, (3, 7)
STEPS = 300
METHODS = {
    "joint": methods.joint(covariance="diagonal", steps=STEPS, lr=0.03, noise="fresh", batch=6),
    "maml": methods.maml(lr=0.05, outer_steps=STEPS, outer_lr=0.03, support=None, optimiser="adam"),
    "imaml": methods.imaml(
        lam=1.0, steps=20, lr=0.05, outer_steps=STEPS, outer_lr=0.03, support=None, optimiser="adam"
    ),
    "reptile": methods.reptile(
        lr=0.05, outer_steps=STEPS, outer_lr=0.03, optimiser="adam", batch=6
    ),
    "stochastic": methods.stochastic(
        outer_steps=STEPS, outer_lr=0.03, support=None, samples=8, draws=4
    ),
}


def family(limits: bool = True) -> bm.TaskFamily:
    """Means near 2; two tasks are no number once θ is beyond 1, and pull nowhere before."""
    generator = torch.Generator().manual_seed(0)
    y = 2 + 0.1 * torch.randn(TASKS, ROWS, 1, generator=generator, dtype=torch.float64)
    limit = torch.full((TASKS,), 1e6, dtype=torch.float64)
    if limits:
        limit[list(BAD)] = 1.0
    return bm.TaskFamily.from_tensors(y=y, limit=limit)


def energy(theta: torch.Tensor, y: torch.Tensor, limit: torch.Tensor) -> torch.Tensor:
    inside = torch.sqrt(limit - theta.square().sum())
    pull = torch.where(limit > 10, 0.5 * (y - theta[0]).square().sum(), 0.0)
    return pull + 0.0 * inside


def model() -> bm.Model:
    return bm.Model.from_energy(energy, 1)


@pytest.mark.parametrize("name", METHODS)
def test_the_fit_goes_on_without_them_and_names_them(name):
    fit = bm.fit(model(), family(), method=METHODS[name])
    sound = [i for i in range(TASKS) if i not in BAD]
    alone = bm.fit(model(), family(limits=False).subset(sound), method=METHODS[name])
    assert float(fit.prior.mean) > 1.5  # the others have gone where these two are no number
    assert float(fit.prior.mean) == pytest.approx(float(alone.prior.mean), abs=0.12)
    failed = [flag for flag in fit.flagged if "outer steps, which were taken without" in flag.why]
    assert [flag.task for flag in failed] == ["3", "7"]
    assert any("2 tasks had a loss or slope that is not finite" in note for note in fit.notes)
    assert not any("were not taken" in note for note in fit.notes)
    assert torch.isfinite(torch.tensor(fit.trace)).all()
    kept = [i for i, task in enumerate(fit.posterior.tasks) if int(task) in sound]
    assert bool(fit.posterior.mean[kept].isfinite().all())


def test_a_line_search_turns_back_and_says_from_whom():
    fit = bm.fit(model(), family(), method=methods.maml(lr=0.05, support=None))
    assert 0.9 < float(fit.prior.mean) < 1.0
    assert [flag.task for flag in fit.flagged if "line search turned back" in flag.why] == [
        "3",
        "7",
    ]
    assert any(note.startswith("2 tasks had a loss") for note in fit.notes)


def problem(method: bm.methods.Method) -> Problem:
    prior = bm.Prior("diagonal").at(mean=1.2, variance=0.5)
    seeded = torch.Generator().manual_seed(0)
    return Problem(model(), family(), prior, method, False, seeded, (), None, None, None)


def test_value_and_slope_are_those_of_the_others():
    descent = Descent(problem(METHODS["imaml"]))
    tasks = descent.draw()
    sound = torch.tensor([i for i in range(TASKS) if i not in BAD])
    found, wanted = descent.evaluate(tasks), descent.evaluate(tasks[sound])
    assert torch.equal(found, wanted)
    pairs = zip(
        torch.autograd.grad(found, descent.parameters()),
        torch.autograd.grad(wanted, descent.parameters()),
        strict=True,
    )
    assert all(torch.equal(mine, theirs) for mine, theirs in pairs)
    assert descent.failures.counts.nonzero().flatten().tolist() == list(BAD)
    descent.failures.contained = False
    assert not bool(descent.evaluate(tasks).isfinite())  # as a line search sees it


def test_a_free_posterior_that_failed_has_no_slope():
    descent = joint.Descent(problem(METHODS["joint"]), None)
    whole = descent.everyone
    found = descent.value(whole, descent.common)
    slopes = dict(
        zip(descent.table, torch.autograd.grad(found, list(descent.table.values())), strict=True)
    )
    assert bool(found.isfinite())
    assert not bool(slopes["mean"][list(BAD)].any()) and bool(slopes["mean"][0].any())
    descent.failures.contained = False
    assert not bool(descent.value(whole, descent.common).isfinite())


def test_a_step_that_fails_for_most_of_its_tasks_is_not_taken():
    failures = Failures(5)
    index = torch.arange(5)
    assert failures.others(torch.tensor([True, False, False, False, True]), index) is None
    assert not bool(failures.counts.any())
    kept = failures.others(torch.tensor([True, False, True, False, True]), index)
    assert kept is not None and kept.tolist() == [0, 2, 4]
    assert failures.others(torch.ones(5, dtype=torch.bool), index) is None
    assert failures.counts.tolist() == [0, 1, 0, 1, 0]


def test_the_tasks_of_a_stream_are_counted_together():
    failures = Failures(None)
    failures.others(torch.tensor([True, False, True]), torch.arange(3))
    failures.others(torch.tensor([False, True, True]), torch.arange(3))
    assert failures.counts.tolist() == [2]


def test_the_counts_go_through_a_checkpoint(tmp_path):
    seen = []

    def interrupted(step: int, steps: int, value: float) -> None:
        seen.append(step)
        if step == 200 and len(seen) <= 20:
            raise KeyboardInterrupt

    method = METHODS["reptile"]
    whole = bm.fit(model(), family(), method=method)
    saved = bm.Checkpoint(tmp_path / "run", every=50)
    with pytest.raises(KeyboardInterrupt):
        bm.fit(model(), family(), method=method, checkpoint=saved, callbacks=[interrupted])
    again = bm.fit(model(), family(), method=method, checkpoint=saved, callbacks=[interrupted])
    assert again.flagged == whole.flagged and again.notes[1:] == whole.notes
    assert torch.equal(again.prior.mean, whole.prior.mean)


@pytest.mark.parametrize("rank", [0, 1])
def test_ranks_that_go_on_count_what_was_before_once(rank):
    class Two(Ranks):
        def summed(self, tensors):
            return [tensor + torch.tensor([0, 5, 0]) for tensor in tensors]  # and the other rank's

    failures = Failures(3, ranks=Two(rank, 2))
    failures.others(torch.tensor([True, True, False]), torch.arange(3))
    kept = failures.tensors()
    assert kept["failures"].tolist() == [0, 5, 1]
    again = Failures(3, ranks=Two(rank, 2))
    again.restore(kept)
    assert again.counts.tolist() == ([0, 5, 1] if rank == 0 else [0, 0, 0])
