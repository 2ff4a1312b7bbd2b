"""Descents that cannot go on, or go the wrong way, stop where they were well and say so."""

from __future__ import annotations

import math

import pytest
import torch

import bayesmeta as bm
from bayesmeta import methods
from bayesmeta.outer import PATIENCE, descend
from bayesmeta.remarks import _rise_notes
from bayesmeta.results import Result


def walk(limit: float, steps: int = 400) -> tuple[list[float], torch.Tensor, object]:
    """Adam towards 1, where everything beyond the limit is no number."""
    place = torch.zeros(1, dtype=torch.float64, requires_grad=True)

    def objective(step: int) -> torch.Tensor:
        value = (place - 1).square().sum()
        return value * math.nan if float(place.detach()) > limit else value

    trace = descend(objective, [(torch.optim.Adam, [place], 0.05)], steps=steps)
    return trace.values, place.detach(), trace


def test_a_descent_that_takes_no_step_gives_up():
    values, place, trace = walk(0.5)
    taken = sum(map(math.isfinite, values))
    assert trace.gave_up and trace.result is Result.converged
    assert len(values) % PATIENCE == 0 and len(values) < taken + 2 * PATIENCE < 400
    assert 0.44 < float(place) <= 0.5  # where the value was last a number


def test_one_that_arrives_does_not():
    values, place, trace = walk(math.inf)
    assert not trace.gave_up and len(values) == 400
    assert float(place) == pytest.approx(1.0, abs=1e-3)


def test_a_few_bad_steps_are_only_counted():
    place = torch.zeros(1, requires_grad=True)

    def objective(step: int) -> torch.Tensor:
        return (place - 1).square().sum() * (math.nan if step % 5 == 0 else 1.0)

    trace = descend(objective, [(torch.optim.Adam, [place], 0.05)], steps=200)
    assert trace.skipped == 40 and not trace.gave_up and len(trace.values) == 200


def test_a_fit_that_gave_up_says_so():
    def energy(theta: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        near = 0.0 * torch.sqrt(0.25 - theta.square().sum())  # no number beyond 1/2
        return near + (y - theta[0]).square().sum()

    generator = torch.Generator().manual_seed(0)
    y = 2 + 0.1 * torch.randn(6, 4, generator=generator, dtype=torch.float64)
    method = methods.reptile(steps=1, lr=0.001, optimiser="adam", outer_lr=0.05, outer_steps=400)
    fit = bm.fit(bm.Model.from_energy(energy, 1), bm.TaskFamily.from_tensors(y=y), method=method)
    assert len(fit.trace) < 400
    assert any("The outer loop gave up after" in note for note in fit.notes)
    assert math.isfinite(fit.log_evidence) and 0.4 < float(fit.prior.mean) <= 0.5


def rising(to: float, noise: float = 1.0) -> list[float]:
    """From 100 down to 0 and then up."""
    generator = torch.Generator().manual_seed(1)
    down, up = torch.linspace(100, 0, 100), torch.linspace(0, to, 100)
    return (torch.cat([down, up]) + noise * torch.randn(200, generator=generator)).tolist()


@pytest.mark.parametrize(("to", "said"), [(0.0, False), (8.0, False), (60.0, True), (1e9, True)])
def test_an_m_that_rises_is_told_from_noise(to, said):
    assert bool(_rise_notes(rising(to))) == said
    assert bool(_rise_notes([*rising(to), math.nan])) == said


def test_a_short_trace_says_nothing():
    assert not _rise_notes([0.0, 1e9])
