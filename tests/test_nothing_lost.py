"""Kills, full disks and damage in the middle of a write: what was there is still there."""

from __future__ import annotations

import errno
import json
import math
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command_line import run, succeed
from filelock import FileLock
from test_checkpoint_files import flipped
from test_resuming import small

import bayesmeta as bm
from bayesmeta.atomic import WHOLE, whole_files, whole_folder
from bayesmeta.resuming import FILE, LOCK, LOG, Checkpoint

SLEEP = Path(__file__).parent / "data" / "sleepstudy.csv"
FORMULA = ("--formula", "Reaction ~ Days + (Days | Subject)")
FULL = OSError(errno.ENOSPC, "No space left on device")


class Killed(BaseException):
    """What no code catches."""


def killed(*arguments, **options):
    raise Killed


# A run that takes the place of another


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    """An earlier run and a later one, told apart by the noise."""
    folder = tmp_path_factory.mktemp("two")
    succeed("fit", SLEEP, *FORMULA, "--out", folder / "earlier", "--quiet")
    succeed("fit", SLEEP, *FORMULA, "--reml", "--out", folder / "later", "--quiet")
    return folder


def noise(run: Path) -> float:
    found = bm.load(run).noise
    assert found is not None
    return found


def nameless(two: Path, folder: Path) -> Path:
    """A run as a kill between the two renames leaves it."""
    scratch = folder / ".run.unfinished"
    shutil.copytree(two / "earlier", scratch / "old")
    shutil.copytree(two / "later", scratch / "new")
    return folder / "run"


def test_a_run_that_lost_its_name_is_given_it_by_whoever_reads_it(two, tmp_path):
    path = nameless(two, tmp_path)
    assert noise(path) == noise(two / "later")
    for command in ("check", "plot"):
        shutil.rmtree(path)
        shutil.rmtree(tmp_path / ".run.unfinished")
        nameless(two, tmp_path)
        succeed(command, path, *(["trace"] if command == "plot" else []), "--quiet")


def test_a_run_that_lost_its_name_is_not_fitted_over(two, tmp_path):
    path = nameless(two, tmp_path)
    refused = run("fit", SLEEP, *FORMULA, "--out", path)
    assert refused.exit_code == 2 and "run exists already" in refused.stderr
    assert noise(path) == noise(two / "later")


def test_a_run_that_cannot_be_given_its_name_is_said_where(two, tmp_path, monkeypatch):
    path = nameless(two, tmp_path)
    read_only = OSError(errno.EROFS, "Read-only file system")
    monkeypatch.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(read_only))
    with pytest.raises(bm.InputError, match=r"is whole in .*\.run\.unfinished/new, .*Read-only"):
        bm.load(path)


def test_ctrl_c_between_the_two_renames_leaves_a_run(two, tmp_path, monkeypatch):
    path = tmp_path / "run"
    shutil.copytree(two / "earlier", path)
    honest, done = Path.rename, []

    def rename(self, target):
        done.append(target)
        if len(done) == 2:
            raise KeyboardInterrupt
        return honest(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(KeyboardInterrupt), whole_folder(path, overwrite=True) as new:
        shutil.copytree(two / "later", new)
    assert noise(path) == noise(two / "later")
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_what_a_killed_writer_left_is_swept_by_the_next(two, tmp_path):
    path = tmp_path / "run"
    (tmp_path / ".run.unfinished" / "new").mkdir(parents=True)
    (tmp_path / ".run.lock").touch()
    succeed("fit", SLEEP, *FORMULA, "--out", path, "--quiet")
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


# Fit.save, file by file


def test_a_save_over_an_earlier_run_leaves_that_or_this(two, tmp_path, monkeypatch):
    path = tmp_path / "run"
    shutil.copytree(two / "earlier", path)
    (path / "mine.txt").write_text("kept")
    later = bm.load(two / "later")
    honest, renamed = os.replace, []
    with monkeypatch.context() as patch:
        patch.setattr("bayesmeta.checkpoint.write", killed)
        with pytest.raises(Killed):
            later.save(path)
    assert noise(path) == noise(two / "earlier")

    def third(source, target):
        if Path(source).parent.name == WHOLE:
            renamed.append(target)
            if len(renamed) == 3:
                raise Killed
        honest(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", third)
        with pytest.raises(Killed):
            later.save(path)
    assert noise(path) == noise(two / "later")
    assert {p.name for p in path.iterdir()} - {p.name for p in (two / "later").iterdir()} == {
        "mine.txt"
    }


def test_what_a_killed_save_left_is_swept_by_the_next(two, tmp_path):
    (tmp_path / ".unfinished").mkdir()
    (tmp_path / ".unfinished" / "half").write_text("")
    (tmp_path / ".lock").touch()
    bm.load(two / "later").save(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {p.name for p in (two / "later").iterdir()}


def test_two_saves_into_one_folder_take_turns(two, tmp_path):
    with (
        whole_files(tmp_path, last="run.json"),
        pytest.raises(bm.InputError, match="another fit is writing to"),
    ):
        bm.load(two / "later").save(tmp_path)


# Checkpoints


def test_a_damaged_file_never_takes_the_place_of_the_good_one(tmp_path, monkeypatch):
    """Else a kill in the next writing would find nothing to go on from."""
    checkpoint = Checkpoint(tmp_path, every=1)
    wanted = small(checkpoint=checkpoint)
    flipped(checkpoint.path)
    honest, done = Path.replace, []

    def second(self, target):
        done.append(target)
        if done.count(checkpoint.path) == 2:
            raise Killed
        return honest(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", second)
        with pytest.raises(Killed):
            small(checkpoint=checkpoint)
    assert "after 2 steps, is whole: " + str(checkpoint.before) in checkpoint.left()
    assert torch.equal(small(checkpoint=checkpoint).prior.mean, wanted.prior.mean)


def test_a_bit_that_flips_anywhere_is_found(tmp_path):
    """In the record, too: a checkpoint with another step or another option is a lie."""
    checkpoint = Checkpoint(tmp_path, every=1)
    small(checkpoint=checkpoint)
    written, chance = checkpoint.path.read_bytes(), random.Random(0)
    for position in range(0, len(written), 5):
        spoilt = bytearray(written)
        spoilt[position] ^= 1 << chance.randrange(8)
        checkpoint.path.write_bytes(spoilt)
        found = checkpoint._last()
        assert found is not None and found[0]["step"] == 2, position


def test_the_log_has_no_gap_where_a_kill_followed_the_checkpoint(tmp_path, monkeypatch):
    checkpoint = Checkpoint(tmp_path, every=10)
    many = {"method": {"outer_steps": 20}}
    honest = Checkpoint.save

    def save(self, step, tensors):
        honest(self, step, tensors)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save", save)
        with pytest.raises(Killed):
            small(checkpoint=checkpoint, **many)
    small(checkpoint=checkpoint, **many)
    lines = (tmp_path / LOG).read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [10, 20]


@pytest.mark.parametrize("end", [b'{"step": 2', b"\0\0\0\n", b"\xff}\n", b"[]\n"])
def test_a_log_that_ends_in_anything_is_gone_on_with(end, tmp_path):
    checkpoint = Checkpoint(tmp_path, every=10)
    many = {"method": {"outer_steps": 20}}
    small(checkpoint=checkpoint, **many)
    with (tmp_path / LOG).open("ab") as file:
        file.write(end)
    small(checkpoint=checkpoint, **many)
    lines = (tmp_path / LOG).read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [10, 20]


def test_a_callback_that_raises_loses_no_step(tmp_path):
    checkpoint = Checkpoint(tmp_path, every=10)
    many = {"method": {"outer_steps": 20}}

    def fail(step: int, steps: int, value: float) -> None:
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        small(checkpoint=checkpoint, callbacks=(fail,), **many)
    assert "after 10 steps, is whole" in checkpoint.left()
    assert not (tmp_path / LOCK).exists()
    resumed = small(checkpoint=checkpoint, **many)
    assert torch.equal(resumed.prior.mean, small(**many).prior.mean)


# The command line

NET = (*FORMULA, "--net", "2", "--batch", "6", "--steps", "12", "--checkpoint-every", "5")


def test_resume_of_a_complete_run_says_so(tmp_path, monkeypatch):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "clear", killed)
        with pytest.raises(Killed):
            run("fit", SLEEP, *NET, "--out", out, "--quiet")
    (tmp_path / ".run.lock").touch()
    assert (tmp_path / "run.checkpoint" / FILE).is_file()
    before = (out / "run.json").read_bytes()
    for _ in range(2):
        again = run("fit", "--resume", out)
        assert again.exit_code == 0
        assert f"{out} is complete, so there is nothing to go on with" in again.stderr
        assert [p.name for p in tmp_path.iterdir()] == ["run"]
    assert (out / "run.json").read_bytes() == before
    assert json.loads(succeed("fit", "--resume", out, "--json"))["run"] == str(out)


def test_an_earlier_run_that_is_to_be_replaced_is_not_taken_for_the_end(two, tmp_path, monkeypatch):
    out = tmp_path / "run"
    shutil.copytree(two / "earlier", out)
    with monkeypatch.context() as patch:
        patch.setattr("bayesmeta.commands.whole_folder", killed)
        with pytest.raises(Killed):
            run("fit", SLEEP, *NET, "--out", out, "--overwrite", "--quiet")
    succeed("fit", "--resume", out, "--quiet")
    assert bm.load(out).model.dim > 2


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        (NET, "its last checkpoint, after 12 steps, is whole"),
        (FORMULA, "nothing else is kept of it"),
    ],
)
def test_a_disk_that_is_full_at_the_end_leaves_the_fit(options, kept, tmp_path, monkeypatch):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", lambda *_: (_ for _ in ()).throw(FULL))
        done = run("fit", SLEEP, *options, "--out", out)
    says = " ".join(done.stderr.split())
    assert done.exit_code == 2 and "Traceback" not in says
    assert f"the fit has ended, and {out} could not be written (no space is left for it)" in says
    assert kept in says
    assert not out.exists() and not (tmp_path / ".run.unfinished").exists()
    if options == NET:
        succeed("fit", "--resume", out, "--quiet")
        assert [p.name for p in tmp_path.iterdir()] == ["run"]


SMALL_DISK = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
from bayesmeta.cli import main
main()
"""


def test_a_disk_on_which_the_draws_do_not_fit_ends_in_a_sentence(tmp_path):
    """HDF5 ended the process with a segmentation fault."""
    done = subprocess.run(
        [sys.executable, "-c", SMALL_DISK, "fit", SLEEP, *FORMULA, "--out", tmp_path / "run"],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "could not be written (no space is left for it)" in " ".join(done.stderr.split())
    assert not list(tmp_path.iterdir())


def test_a_place_that_only_can_be_read_is_said_before_the_first_step(tmp_path, monkeypatch):
    read_only = OSError(errno.EROFS, "Read-only file system")
    monkeypatch.setattr(FileLock, "acquire", lambda *_: (_ for _ in ()).throw(read_only))
    done = run("fit", SLEEP, *NET, "--out", tmp_path / "run")
    assert done.exit_code == 2
    says = f"{tmp_path} cannot be written to (Read-only file system): choose another folder"
    assert says in " ".join(done.stderr.split())


class Lowest:
    """A callback with a memory: the least M so far, and how often it was told."""

    def __init__(self):
        self.state = torch.tensor([math.inf, 0.0])

    def __call__(self, step, steps, value):
        self.state = torch.stack([self.state[0].clamp(max=value), self.state[1] + 1])

    def tensors(self):
        return {"state": self.state}

    def restore(self, tensors):
        self.state = tensors["state"]


@pytest.mark.parametrize("stopped_at", [20, 50])
def test_what_a_callback_remembers_goes_on_with_the_fit(stopped_at, tmp_path):
    def interrupt(step, steps, value):
        if step == stopped_at:
            raise RuntimeError

    whole, before, after = Lowest(), Lowest(), Lowest()
    many = {"method": {"outer_steps": 60}}
    small(callbacks=(whole,), **many)
    checkpoint = Checkpoint(tmp_path, every=10)
    with pytest.raises(RuntimeError):
        small(checkpoint=checkpoint, callbacks=(before, interrupt), **many)
    small(checkpoint=checkpoint, callbacks=(after,), **many)
    assert torch.equal(after.state, whole.state) and int(whole.state[1]) == 6
