"""A fit that was interrupted ends with the numbers of one that was not, bit for bit."""

from __future__ import annotations

import json
import random
import time
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from shared_fits import CASES, fitted, numbers
from small_images import bank
from torch import Tensor

import bayesmeta as bm
from bayesmeta import families, likelihoods, methods, outer
from bayesmeta.identity import of_model
from bayesmeta.resuming import Checkpoint, _plain

STEPS = 21
DETERMINISTIC = ("maml, quasi-newton", "joint, common noise", "joint, exact")
NOISY = [name for name in CASES if name not in DETERMINISTIC]
STATE = "state.safetensors"


class Interrupted(Exception):
    """What stops a fit."""


@cache
def whole(name: str, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    return numbers(fitted(name, dtype, STEPS))


def interrupted(name: str, checkpoint: Checkpoint, after: int, **options) -> None:
    """A fit that is stopped in the middle of the step after so many."""
    honest, taken = outer._take, []

    def take(*arguments):
        if len(taken) == after:
            raise Interrupted
        taken.append(1)
        return honest(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outer, "_take", take)
        with pytest.raises(Interrupted):
            fitted(name, steps=STEPS, checkpoint=checkpoint, **options)


def identical(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(found[name].nan_to_num(7.0), value.nan_to_num(7.0)), name


@pytest.mark.parametrize("name", NOISY)
def test_an_interrupted_fit_goes_on_bit_for_bit(name, tmp_path):
    chance = random.Random(name)
    checkpoint = Checkpoint(tmp_path, every=chance.randint(2, 6))
    interrupted(name, checkpoint, after=chance.randint(checkpoint.every, STEPS - 1))
    found = checkpoint.load()
    assert found is not None and found[0] % checkpoint.every == 0 and 0 < found[0] < STEPS
    resumed = fitted(name, steps=STEPS, checkpoint=checkpoint)
    identical(numbers(resumed), whole(name))
    assert f"The fit went on from a checkpoint, after {found[0]} steps." in resumed.notes


def test_it_may_be_interrupted_more_than_once(tmp_path):
    checkpoint = Checkpoint(tmp_path, every=4)
    for steps in (6, 5, 3):  # further steps each time
        interrupted("joint, batches", checkpoint, after=steps)
    identical(numbers(fitted("joint, batches", steps=STEPS, checkpoint=checkpoint)),
              whole("joint, batches"))  # fmt: skip


@pytest.mark.parametrize("name", ["imaml, warm batches", "joint, batches"])
def test_in_single_precision_too(name, tmp_path):
    checkpoint = Checkpoint(tmp_path, every=5)
    interrupted(name, checkpoint, after=12, dtype=torch.float32)
    found = numbers(fitted(name, torch.float32, STEPS, checkpoint=checkpoint))
    assert found["theta0"].dtype == torch.float32
    identical(found, whole(name, torch.float32))


def test_a_finished_fit_takes_no_further_step(tmp_path):
    checkpoint = Checkpoint(tmp_path, every=50)
    identical(numbers(fitted("imaml", steps=STEPS, checkpoint=checkpoint)), whole("imaml"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outer, "_take", None)
        identical(numbers(fitted("imaml", steps=STEPS, checkpoint=checkpoint)), whole("imaml"))


@pytest.mark.parametrize("forgotten", ["left", "generator", "solutions", "optimiser.0.0.exp_avg"])
def test_what_a_checkpoint_holds_is_needed(forgotten, tmp_path):
    """A part of the state put back as it was at the start is found, or the test finds nothing."""
    name = "imaml, warm batches"
    start, checkpoint = Checkpoint(tmp_path / "start", every=1), Checkpoint(tmp_path, every=4)
    interrupted(name, start, after=1)
    interrupted(name, checkpoint, after=10)
    first, (step, tensors) = start.load()[1], checkpoint.load()
    tensors[forgotten] = first[forgotten]
    with safe_open(checkpoint.path, "pt") as file:
        assert forgotten in file.keys()  # noqa: SIM118
    identity = identity_of(checkpoint)
    checkpoint.of(identity, writes=True, notes=[]).save(step, tensors)
    found = numbers(fitted(name, steps=STEPS, checkpoint=checkpoint))
    assert not torch.equal(found["theta0"], whole(name)["theta0"])


def identity_of(checkpoint: Checkpoint) -> dict:
    return checkpoint._read(checkpoint.path)[0]["identity"]


def small(**changes) -> bm.Fit:
    """Three steps on a line, with anything changed."""
    generator = torch.Generator().manual_seed(changes.pop("data", 3))
    family, _ = families.linear_gaussian(tasks=4, rows=5, generator=generator)
    model = bm.models.mlp(changes.pop("widths", (2,)), family, likelihoods.Gaussian())
    options = {"steps": 2, "optimiser": "adam", "outer_steps": 3} | changes.pop("method", {})
    method = methods.imaml(**options)
    return bm.fit(model, family, method=method, **changes)


# What a file is of


REMOVE = "make the same call again, choose another folder, or remove the file to start from the"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 1}, "with other options (seed = 0 there, 1 here)"),
        ({"data": 4}, "to other data"),
        ({"method": {"lr": 0.02}}, "with other options (inner.lr = 0.01 there, 0.02 here)"),
        ({"method": {"batch": 2}}, "with other options (batch = None there, 2 here)"),
        (
            {"method": {"outer_lr": 0.1}},
            "with other options (outer_lr = 0.01 there, 0.1 here)",
        ),
        ({"prior": bm.Prior("diagonal")}, "(prior.form = 'isotropic' there, 'diagonal' here)"),
        (
            {"widths": (3,)},
            "from another start and with other options (model.widths = [1, 2, 1] there",
        ),
        ({"seed": 1, "data": 4}, "to other data and with other options (seed = 0 there, 1 here)"),
        ({"standardise": True}, "(standardise = False there, True here)"),
    ],
)
def test_a_checkpoint_of_another_fit_is_refused_by_name(changes, named, tmp_path):
    checkpoint = Checkpoint(tmp_path, every=2)
    small(checkpoint=checkpoint)
    before = checkpoint.path.read_bytes()
    with pytest.raises(bm.InputError) as raised:
        small(checkpoint=checkpoint, **changes)
    assert str(raised.value).startswith(f"{checkpoint.path} is of a fit ")
    assert named in str(raised.value) and REMOVE in str(raised.value)
    assert checkpoint.path.read_bytes() == before


def test_a_fit_cannot_be_made_longer_and_is_told_why(tmp_path):
    small(checkpoint=Checkpoint(tmp_path))
    with pytest.raises(bm.InputError) as raised:
        small(checkpoint=Checkpoint(tmp_path), method={"outer_steps": 5})
    assert "(outer_steps = 3 there, 5 here): the step size falls to 0 along a" in str(raised.value)
    assert "give as many steps as there, choose another folder" in str(raised.value)


def lines_fit(folder: Path, module: torch.nn.Module, likelihood=None, **options) -> bm.Fit:
    """Two steps on lines, of anybody's module."""
    kind, query = options.pop("dtype", torch.float64), options.pop("query", None)
    generator = torch.Generator().manual_seed(3)
    family, _ = families.linear_gaussian(tasks=4, rows=5, generator=generator)
    if query is not None:
        query = bm.TaskFamily(family.tensors | {"y": query * family.tensors["y"]}, mask=family.mask)
    model = bm.Model(module, likelihood or likelihoods.Gaussian(), **options)
    method = methods.imaml(steps=2, optimiser="adam", outer_steps=2)
    return bm.fit(model, family.to(dtype=kind), method=method, query=query, checkpoint=folder)


class Bent(torch.nn.Module):
    """A network with a part that is not learned, and options of its own."""

    def __init__(self, shared: int = 3, slope: float = 1.0, held: float = 1.0, act=torch.tanh):
        super().__init__()
        self.slope, self.act, self.loose = slope, act, torch.tensor(held)
        self.inside, self.out = torch.nn.Linear(1, shared), torch.nn.Linear(shared, 1)
        self.register_buffer("shift", torch.tensor(held))
        for weight in self.parameters():
            torch.nn.init.constant_(weight, 0.3)

    def forward(self, x):
        return self.out(self.slope * self.act(self.inside(x)) + self.shift) * self.loose


def with_weight(value: float, layer: str, *, frozen: bool = False) -> Bent:
    module = Bent()
    torch.nn.init.constant_(module.get_submodule(layer).weight, value)
    module.inside.requires_grad_(not frozen)
    return module


OUT = {"adapt": ["out"]}


@pytest.mark.parametrize(
    ("first", "then", "named"),
    [
        ((Bent(), {}), (with_weight(0.2, "out"), {}), "from another start:"),
        ((Bent(), OUT), (with_weight(0.2, "inside"), OUT), "from another start:"),
        (
            (with_weight(0.3, "inside", frozen=True), OUT),
            (with_weight(0.2, "inside", frozen=True), OUT),
            "with other frozen weights:",
        ),
        (
            (Bent(), OUT),
            (with_weight(0.3, "inside", frozen=True), OUT),
            "model.shared.module.inside.weight = [3, 1] there, None here",
        ),
        ((Bent(), OUT), (Bent(held=2.0), OUT), "with other buffers:"),
        (
            (Bent(), OUT),
            (Bent(shared=6), OUT),
            "model.adapted.out.weight = [1, 3] there, [1, 6] here",
        ),
        ((Bent(), {}), (Bent(slope=2.0), {}), "model.layers.whole.slope = 1.0 there, 2.0 here"),
        (
            (Bent(), {}),
            (Bent(act=torch.relu), {}),
            "model.layers.whole.act = 'tanh' there, 'relu' here",
        ),
        (
            (torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.ReLU()), {}),
            (torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.Tanh()), {}),
            "model.layers.1.class = 'ReLU' there, 'Tanh' here",
        ),
        (
            (Bent(), {}),
            (Bent(), {"dtype": torch.float32}),
            "model.dtype = 'torch.float64' there, 'torch.float32' here",
        ),
        (
            (Bent(), {"likelihood": likelihoods.Gaussian(scale=1.0)}),
            (Bent(), {"likelihood": likelihoods.Gaussian(scale=2.0)}),
            "model.likelihood.scale = 1.0 there, 2.0 here",
        ),
        ((Bent(), {"query": 1.0}), (Bent(), {"query": 2.0}), "to other query sets:"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_checkpoint_of_another_model_is_refused(first, then, named, tmp_path):
    lines_fit(tmp_path, first[0], **first[1])
    lines_fit(tmp_path, first[0], **first[1])
    with pytest.raises(bm.InputError) as raised:
        lines_fit(tmp_path, then[0], **then[1])
    assert named in str(raised.value)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"batch_norm": "support"}, "model.batch_norm = 'transductive' there, 'support' here"),
        ({"pool": True}, "model.pool = False there, True here"),
        ({"seed": 1}, "from another start and with other options (model.seed = 0 there, 1 here)"),
        ({"dtype": torch.float32}, "model.dtype = 'torch.float64' there, 'torch.float32' here"),
        ({"chunk_size": 1}, None),
    ],
)
def test_a_checkpoint_of_another_network_of_images_is_refused(change, named, tmp_path):
    def fit(dtype=torch.float64, **options) -> bm.Fit:
        model = bm.models.conv4(3, (1, 16, 16), filters=2, **options)
        stream = bm.FewShot(bank(images=4, side=16), ways=3, shots=1, queries=1, dtype=dtype)
        method = methods.maml(lr=0.1, steps=1, support=None, batch=2, outer_steps=1)
        return bm.fit(model, stream, method=method, checkpoint=tmp_path)

    fit()
    if named is None:
        assert "The fit went on from a checkpoint, after 1 steps." in fit(**change).notes
        return
    with pytest.raises(bm.InputError) as raised:
        fit(**change)
    assert named in str(raised.value)


class Odd:
    """An inner algorithm of somebody's own, whose name has its place in memory."""


def test_what_is_compared_is_small_and_has_no_addresses():
    assert _plain({"is": repr(Odd()), "lr": (0.1, 2)}) == {
        "is": "<test_resuming.Odd object>",
        "lr": [0.1, 2],
    }
    model = bm.models.conv4(5)
    started = time.perf_counter()
    record = json.dumps(of_model(model, model))
    assert len(record) < 10_000 and time.perf_counter() - started < 1


def test_a_file_that_says_less_of_its_fit_is_gone_on_from(tmp_path):
    """Versions add to what a file says; those of an earlier one hold hours of somebody's work."""
    checkpoint = Checkpoint(tmp_path)
    small(checkpoint=checkpoint)
    less = {k: v for k, v in identity_of(checkpoint).items() if k != "model"}
    checkpoint.of(less, writes=True, notes=[]).save(*checkpoint.load())
    small(checkpoint=checkpoint)
    with pytest.raises(bm.InputError, match="seed = 0 there, 1 here"):
        small(checkpoint=checkpoint, seed=1)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_a_deterministic_search_has_no_checkpoint(name, tmp_path):
    with pytest.raises(bm.InputError, match="for fits by adam or sgd"):
        fitted(name, checkpoint=Checkpoint(tmp_path))
    assert not list(tmp_path.iterdir())
