"""Parts of an outer step: the same fit in any number of them, and what is said when one is too big.

A model that cannot do more than k tasks at a time stands for a small memory.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from small_images import bank
from torch import nn

import bayesmeta as bm
from bayesmeta import families, likelihoods, methods
from bayesmeta.amortised import descent
from bayesmeta.amortised.memory import within_memory
from bayesmeta.devices import out_of_memory
from bayesmeta.gradients.implicit import Implicit
from bayesmeta.inner.mixture import Mixture

F64 = torch.float64
SHORT = {"outer_steps": 4, "outer_lr": 0.05}


def line(chunk_size: int | None = None) -> bm.Model:
    module = nn.Linear(1, 1)
    nn.init.zeros_(module.weight)
    nn.init.ones_(module.bias)
    return bm.Model(module, likelihoods.Gaussian(), chunk_size=chunk_size)


def lines(tasks: int = 7) -> bm.TaskFamily:
    generator = torch.Generator().manual_seed(3)
    return families.linear_gaussian(tasks=tasks, rows=(5, 9), generator=generator)[0]


def characters(**options) -> bm.FewShot:
    return bm.FewShot(bank(), ways=3, shots=1, queries=2, dtype=F64, **options)


def dense(chunk_size: int | None = None) -> bm.Model:
    return bm.models.dense(3, (1, 8, 8), widths=(6,), chunk_size=chunk_size)


MIXTURE = Mixture((methods.SGLD(0.05, 2, rows=3), methods.GradientDescent(0.1, 2)), (0.5, 0.5))
# One product of a solve, so that where it starts shows.
WARM = replace(
    methods.imaml(steps=3, lr=0.1, batch=5, **SHORT), gradient=Implicit(steps=1, warm_start=True)
)
ADAPTED = {
    "one family": methods.imaml(steps=3, lr=0.1, optimiser="adam", **SHORT),
    "batches": methods.maml(steps=2, lr=0.1, batch=5, **SHORT),
    "warm solves": WARM,
    "Gaussian Q": methods.variational_imaml(
        covariance="diagonal", steps=3, lr=0.1, draws=4, batch=5, **SHORT
    ),
    "common noise": methods.variational_imaml(
        covariance="diagonal", steps=3, lr=0.1, draws=4, noise="common", **SHORT
    ),
    "paths": methods.stochastic(draws=3, lr=0.1, rows=2, steps=3, samples=5, batch=5, **SHORT),
    "separate paths": methods.two_path(lr=0.1, rows=2, steps=3, samples=5, batch=5, **SHORT),
    "score": methods.stochastic(
        algorithm="psgld", gradient="score", draws=4, lr=0.1, rows=2, steps=3, samples=5,
        batch=5, **SHORT,
    ),
    "a mixture": methods.stochastic(algorithm=MIXTURE, draws=4, samples=5, batch=5, **SHORT),
    "a learned step": methods.maml(steps=2, lr=0.1, learn_lr=True, batch=5, **SHORT),
}  # fmt: skip


def same(one: bm.Fit, other: bm.Fit) -> None:
    """What the outer steps gave; Q_i of a random algorithm draws its noise part by part."""
    close = {"rtol": 1e-12, "atol": 1e-12}
    assert len(one.trace) == len(other.trace) > 3
    torch.testing.assert_close(torch.tensor(one.trace), torch.tensor(other.trace), **close)
    torch.testing.assert_close(one.prior.mean, other.prior.mean, **close)
    torch.testing.assert_close(one.prior.sd(), other.prior.sd(), **close)
    assert one.model.shared.keys() == other.model.shared.keys()
    for name, value in one.model.shared.items():
        torch.testing.assert_close(value, other.model.shared[name], **close)


@cache
def fitted(name: str, chunk_size: int | None) -> bm.Fit:
    return bm.fit(line(chunk_size), lines(), method=ADAPTED[name], seed=1)


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("name", ADAPTED)
def test_parts_of_a_family_are_its_whole(name, size):
    whole = fitted(name, None)
    assert whole.prior.mean.dtype == F64
    same(whole, fitted(name, size))


# A bias before batch normalisation has gradient 0 but for rounding, which Adam, dividing by its
# size, would turn into steps.
PLAIN = {"outer_steps": 4, "outer_lr": 0.05, "optimiser": "sgd", "batch": 5}
STREAMED = {
    "maml": methods.maml(steps=2, lr=0.1, support=None, **PLAIN),
    "imaml": methods.imaml(steps=3, lr=0.1, lam=2.0, support=None, **PLAIN),
    "variational": methods.variational_imaml(
        covariance="diagonal", steps=3, lr=0.1, lam=2.0, draws=2, **PLAIN
    ),
    "paths": methods.stochastic(lr=0.1, rows=2, steps=2, draws=2, samples=3, support=None, **PLAIN),
}


@pytest.mark.parametrize("name", STREAMED)
def test_parts_of_a_stream_are_its_whole(name):
    whole, parts = (
        bm.fit(dense(size), characters(), method=STREAMED[name], seed=1) for size in (None, 2)
    )
    assert whole.prior.mean.dtype == F64 and not torch.equal(whole.prior.mean, dense().start)
    same(whole, parts)


def test_a_stream_has_no_last_solve_to_start_from():
    method = replace(STREAMED["imaml"], gradient=Implicit(warm_start=True))
    with pytest.raises(bm.InputError, match="warm_start=True.*never come again.*leave it out"):
        bm.fit(dense(), characters(), method=method)


def test_a_fit_inside_no_grad_is_a_fit():
    with torch.no_grad():
        inside = bm.fit(line(), lines(), method=ADAPTED["batches"], seed=1)
        assert not torch.is_grad_enabled()
    same(fitted("batches", None), inside)


# Too little memory


@pytest.fixture
def narrow(monkeypatch):
    """Sets how many tasks at a time fit, and how an allocator says that they do not."""
    tried = []

    def install(most: int, error: BaseException) -> list[int]:
        honest = descent.Descent._sums

        def sums(self, tasks):
            tried.append(len(tasks))
            if len(tasks) > most:
                raise error
            return honest(self, tasks)

        monkeypatch.setattr(descent.Descent, "_sums", sums)
        return tried

    return install


ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
    RuntimeError("MPS backend out of memory (MPS allocated: 8 GB)"),
    MemoryError(),
]


@pytest.mark.parametrize("error", ERRORS)
def test_the_size_that_fits_is_named(narrow, error):
    tried = narrow(5, error)
    method = methods.maml(steps=1, support=None, batch=16, **SHORT)
    with pytest.raises(bm.InputError, match="with 16 tasks at a time; 4 fit.*chunk_size=4"):
        bm.fit(dense(), characters(), method=method)
    assert tried == [16, 8, 4]
    # What the sentence says is so.
    fit = bm.fit(dense(4), characters(), method=method)
    assert len(fit.trace) == 4


def test_a_given_chunk_size_is_halved_in_turn(narrow):
    tried = narrow(2, ERRORS[0])
    method = methods.maml(steps=1, support=None, batch=16, **SHORT)
    with pytest.raises(bm.InputError, match=r"with 6 tasks at a time; 1 fit.*--chunk-size 1"):
        bm.fit(dense(6), characters(), method=method)
    assert tried == [6, 3, 1]


def test_a_single_task_that_does_not_fit_is_another_matter(narrow):
    tried = narrow(0, ERRORS[1])
    method = methods.maml(steps=1, support=None, batch=5, **SHORT)
    with pytest.raises(bm.InputError, match="single task.*fewer shots.*smaller network") as raised:
        bm.fit(dense(), characters(), method=method)
    assert tried == [5, 2, 1] and "--chunk-size" not in str(raised.value)


def test_a_search_by_full_batches_says_so_too(narrow):
    narrow(3, ERRORS[0])
    with pytest.raises(bm.InputError, match="with 7 tasks at a time; 3 fit"):
        bm.fit(line(), lines(), method=methods.imaml(steps=3, lr=0.1))


def test_other_errors_are_left_as_they_are(narrow):
    narrow(0, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        bm.fit(dense(), characters(), method=methods.maml(steps=1, support=None, **SHORT))
    assert not out_of_memory(ValueError("memory of a task"))


def test_the_allocators_own_error_is_known():
    """The error of this machine's torch, not one made up here."""

    def work(tasks):
        return torch.empty(len(tasks) << 50, dtype=torch.uint8) if len(tasks) > 1 else "done"

    with pytest.raises(bm.InputError, match="with 3 tasks at a time; 1 fit"):
        within_memory(work, torch.arange(3))


def test_what_did_not_fit_is_let_go_before_a_smaller_part_is_tried():
    alive = []

    class Large:
        def __init__(self):
            alive.append(self)

        def __del__(self):
            counted.append("gone")

    counted: list[str] = []

    def work(tasks):
        large = Large()
        alive.clear()
        assert len(counted) == (0 if len(tasks) == 4 else 1)
        if len(tasks) == 4:
            raise torch.OutOfMemoryError(str(large))
        return large

    with pytest.raises(bm.InputError, match="2 fit"):
        within_memory(work, torch.arange(4))


def test_an_exact_gradient_is_known_as_one_after_curvatures_are_decided():
    """An "auto" curvature is the Hessian here, with which a quasi-Newton search goes."""
    family, _ = bm.families.quadratics(tasks=2, dim=2, generator=torch.Generator().manual_seed(0))
    model = bm.Model.from_energy(bm.families.quadratic_energy, 2)
    method = bm.methods.imaml(support=None, steps=20, lr=0.1, lam=1.0)
    assert len(bm.fit(model, family, method=method).trace) < 100  # Adam would take 5000 steps
