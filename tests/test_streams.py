"""Tasks without end: a family pass by pass, and streams that anybody can write."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_images import bank

import bayesmeta as bm
from bayesmeta import families, likelihoods, methods, models
from bayesmeta.streams import STEP_TASKS, Passes


def family(tasks: int = 7) -> bm.TaskFamily:
    generator = torch.Generator().manual_seed(3)
    return families.sinusoid(tasks=tasks, rows=6, noise=0.3, generator=generator)[0]


def passes(size: int | None, seed: int = 0, tasks: int = 7) -> Passes:
    return Passes(family(tasks), size, torch.Generator().manual_seed(seed))


def indices(some: Passes, count: int) -> list[list[int]]:
    return [next(some).index.tolist() for _ in range(count)]


# Passes


def test_each_pass_takes_every_task_once_in_an_order_of_its_own():
    drawn = indices(passes(3), 9)
    assert [len(batch) for batch in drawn] == [3, 3, 1] * 3
    laps = [[task for batch in drawn[i : i + 3] for task in batch] for i in (0, 3, 6)]
    assert all(sorted(lap) == list(range(7)) for lap in laps)
    assert laps[0] != laps[1] != laps[2] and list(range(7)) not in laps


def test_the_seed_decides_the_order():
    assert indices(passes(3), 5) == indices(passes(3), 5) != indices(passes(3, seed=1), 5)


@pytest.mark.parametrize("size", [None, 7, 20])
def test_a_batch_of_all_is_the_family_in_order_and_draws_nothing(size):
    some = passes(size)
    before = some.generator.get_state()
    assert indices(some, 2) == [list(range(7))] * 2 and some.size == 7
    assert torch.equal(some.generator.get_state(), before)


def test_a_batch_holds_the_rows_of_its_tasks():
    some = passes(3)
    batch = next(some)
    assert torch.equal(batch.tensors["y"], some.family.tensors["y"][batch.index])


@pytest.mark.parametrize("taken", range(5))
def test_a_pass_goes_on_from_the_middle(taken):
    first = passes(3)
    indices(first, taken)
    kept = {name: tensor.clone() for name, tensor in first.tensors().items()}
    wanted = indices(first, 6)
    other = passes(3, seed=9)
    indices(other, 1)
    other.restore(kept)
    assert indices(other, 6) == wanted


# Streams of one's own


class Sinusoids:
    """Sinusoids without end: what the protocol asks for, and nothing else."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def family(self, tasks: int, generator: torch.Generator) -> tuple[bm.TaskFamily, bm.TaskFamily]:
        both, _ = families.sinusoid(tasks=tasks, rows=8, noise=0.3, generator=generator)
        return both.split(4, generator)

    def draw(self, tasks: int, generator: torch.Generator) -> tuple[bm.TaskBatch, bm.TaskBatch]:
        self.asked.append(tasks)
        support, query = self.family(tasks, generator)
        return support.batch(), query.batch()

    def to(self, device: Any) -> Sinusoids:
        return self

    def record(self) -> dict[str, Any]:
        return {"kind": "sinusoids"}


def network() -> bm.Model:
    return models.mlp((4,), family(), likelihoods.Gaussian(), seed=1)


@pytest.mark.parametrize(("batch", "drawn"), [(3, 3), (None, STEP_TASKS)])
def test_a_stream_of_ones_own_is_fitted(batch, drawn):
    stream = Sinusoids()
    assert isinstance(stream, bm.TaskStream)
    method = methods.maml(lr=0.05, batch=batch, outer_steps=4)
    fit = bm.fit(network(), stream, method=method, seed=1)
    assert stream.asked == [drawn] * 4 and fit.stream == {"kind": "sinusoids"}
    assert len(fit.family) == drawn and len(fit.trace) == 4
    again = bm.fit(network(), Sinusoids(), method=method, seed=1)
    other = bm.fit(network(), Sinusoids(), method=method, seed=2)
    assert torch.equal(fit.prior.mean, again.prior.mean)
    assert not torch.equal(fit.prior.mean, other.prior.mean)


def test_few_shot_tasks_are_a_stream_and_a_family_is_none():
    few = bm.FewShot(bank(), ways=3, shots=1, queries=2)
    assert isinstance(few, bm.TaskStream) and not isinstance(family(), bm.TaskStream)
    generator = torch.Generator().manual_seed(0)
    support, query = few.draw(4, generator)
    assert torch.equal(support.index, torch.arange(4)) and len(query) == 4


def test_stored_posteriors_and_query_sets_do_not_go_with_a_stream():
    with pytest.raises(bm.InputError, match="a stream of tasks never ends"):
        bm.fit(network(), Sinusoids(), method=methods.joint(covariance="diagonal"))
    with pytest.raises(bm.InputError, match="a stream brings its own query sets"):
        bm.fit(network(), Sinusoids(), method=methods.maml(), query=family())
