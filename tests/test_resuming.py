"""A fit that was interrupted ends with the numbers of one that was not, bit for bit."""

from __future__ import annotations

import random
import shutil
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from shared_fits import CASES, fitted, numbers
from torch import Tensor

import bayesmeta as bm
from bayesmeta import families, likelihoods, methods, outer
from bayesmeta.ranks import RankLost
from bayesmeta.resuming import Checkpoint, telling_what_is_left

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
        honest(*arguments)

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
    identical(numbers(fitted(name, steps=STEPS, checkpoint=checkpoint)), whole(name))


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
    checkpoint.of(identity, writes=True).save(step, tensors)
    found = numbers(fitted(name, steps=STEPS, checkpoint=checkpoint))
    assert not torch.equal(found["theta0"], whole(name)["theta0"])


def identity_of(checkpoint: Checkpoint) -> dict:
    return checkpoint._read()[0]["identity"]


# What is refused


def small(**changes) -> bm.Fit:
    """Three steps on a line, with anything changed."""
    generator = torch.Generator().manual_seed(changes.pop("data", 3))
    family, _ = families.linear_gaussian(tasks=4, rows=5, generator=generator)
    model = bm.models.mlp(changes.pop("widths", (2,)), family, likelihoods.Gaussian())
    method = methods.imaml(steps=2, optimiser="adam", outer_steps=3, **changes.pop("method", {}))
    return bm.fit(model, family, method=method, **changes)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 1}, "seed"),
        ({"data": 4}, "data"),
        ({"method": {"lr": 0.02}}, "method"),
        ({"method": {"batch": 2}}, "method"),
        ({"prior": bm.Prior("diagonal")}, "prior"),
        ({"widths": (3,)}, "weights"),
        ({"seed": 1, "data": 4}, "data and seed"),
    ],
)
def test_a_checkpoint_of_another_fit_is_refused_by_name(changes, named, tmp_path):
    checkpoint = Checkpoint(tmp_path, every=2)
    small(checkpoint=checkpoint)
    before = checkpoint.path.read_bytes()
    with pytest.raises(bm.InputError, match=f"a fit with another {named}: choose another folder"):
        small(checkpoint=checkpoint, **changes)
    assert checkpoint.path.read_bytes() == before


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def another(path: Path) -> None:
    save_file({"weights": torch.zeros(3)}, path)


def flipped(path: Path) -> None:
    """One bit of the last number."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("damage", [truncated, empty, another, flipped])
def test_a_damaged_file_is_refused(damage, tmp_path):
    checkpoint = Checkpoint(tmp_path, every=2)
    small(checkpoint=checkpoint)
    damage(checkpoint.path)
    with pytest.raises(bm.InputError, match=r"state\.safetensors cannot be read .*: remove it"):
        small(checkpoint=checkpoint)


def test_a_file_of_another_version_is_refused(tmp_path, monkeypatch):
    checkpoint = Checkpoint(tmp_path, every=2)
    small(checkpoint=checkpoint)
    monkeypatch.setattr("bayesmeta.resuming.SCHEMA", 2)
    with pytest.raises(bm.InputError, match="of another version of bayesmeta: remove it"):
        small(checkpoint=checkpoint)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_a_deterministic_search_has_no_checkpoint(name, tmp_path):
    with pytest.raises(bm.InputError, match="for fits by adam or sgd"):
        fitted(name, checkpoint=Checkpoint(tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("every", [0, -1, 2.5, True, None])
def test_steps_between_two_writings_are_a_whole_number(every, tmp_path):
    with pytest.raises(bm.InputError, match="give a whole number of steps, at least 1"):
        Checkpoint(tmp_path, every=every)


# Writing


def test_a_file_that_could_not_be_written_leaves_the_last_one(tmp_path, monkeypatch):
    checkpoint = Checkpoint(tmp_path / "deep" / "er", every=2)
    small(checkpoint=checkpoint)
    before = checkpoint.path.read_bytes()

    def full(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr("bayesmeta.resuming.save_file", full)
    with pytest.raises(OSError, match="no space"):
        checkpoint.save(3, {"a": torch.zeros(2)})
    assert checkpoint.path.read_bytes() == before
    assert [path.name for path in checkpoint.path.parent.iterdir()] == [STATE]


def test_only_the_first_process_writes(tmp_path):
    checkpoint = Checkpoint(tmp_path).of({}, writes=False)
    checkpoint.save(1, {"a": torch.zeros(2)})
    assert checkpoint.due(100, 150) and checkpoint.due(150, 150) and not checkpoint.due(101, 150)
    assert not list(tmp_path.iterdir())


def test_a_lost_process_is_told_what_is_left(tmp_path):
    def said(checkpoint: Checkpoint | None) -> tuple[str, Path | None]:
        with pytest.raises(RankLost) as raised, telling_what_is_left(checkpoint):
            raise RankLost("it ended")
        return str(raised.value), raised.value.checkpoint

    assert said(None) == ("it ended; nothing was kept, as it has no checkpoint", None)
    checkpoint = Checkpoint(tmp_path / "state", every=2)
    says, path = said(checkpoint)
    assert "no checkpoint was written yet: the first one comes after 2 steps" in says
    assert path is None
    small(checkpoint=checkpoint)
    says, path = said(checkpoint)
    assert f"after 3 steps, is whole: {checkpoint.path}" in says and path == checkpoint.path
    shutil.rmtree(checkpoint.path.parent)
