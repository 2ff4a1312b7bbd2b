"""Ctrl-C, SIGTERM and two runs in one folder, from the command line and from Python."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from test_resuming import small

import bayesmeta as bm
from bayesmeta.atomic import alone
from bayesmeta.resuming import FILE, LOG, Checkpoint
from bayesmeta.stopping import Stopped, asked_to_stop

SLEEP = Path(__file__).parent / "data" / "sleepstudy.csv"
OPTIONS = ("--formula", "Reaction ~ Days + (Days | Subject)", "--net", "4", "--batch", "6")
STEPS = 120


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "bayesmeta", "fit", *map(str, arguments)]


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


def started(folder: Path, *more: object) -> subprocess.Popen[str]:
    """A fit that has written a checkpoint and is not done."""
    options = ("--steps", STEPS, "--checkpoint-every", 10, "--out", "run")
    running = subprocess.Popen(
        command(SLEEP, *OPTIONS, *options, *more),
        cwd=folder, env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    until = time.monotonic() + 120
    while not (folder / "run.checkpoint" / FILE).is_file():
        assert running.poll() is None and time.monotonic() < until, running.communicate()
        time.sleep(0.02)
    return running


def prior(run: Path) -> torch.Tensor:
    return bm.load(run).prior.mean


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> torch.Tensor:
    """θ₀ of the fit that nobody interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    done = subprocess.run(
        command(SLEEP, *OPTIONS, "--steps", STEPS, "--out", "run"),
        cwd=folder, env=environment(), text=True, capture_output=True, check=True,
    )  # fmt: skip
    assert "interrupted" not in done.stderr
    assert [path.name for path in folder.iterdir()] == ["run"]
    return prior(folder / "run")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_step_and_resume_goes_on(number, whole, tmp_path):
    running = started(tmp_path)
    running.send_signal(number)
    _, said = running.communicate(timeout=120)
    assert running.returncode == 128 + number, said
    assert "is whole" in said and "to go on: bayesmeta fit --resume run\n" in said
    assert "Traceback" not in said
    assert not (tmp_path / "run").exists()
    lines = (tmp_path / "run.checkpoint" / LOG).read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert steps == sorted(steps) and len(set(steps)) == len(steps)
    # From another folder: the file and the run are where they were.
    done = subprocess.run(
        command("--resume", tmp_path / "run"),
        cwd=tmp_path.parent, env=environment(), text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert torch.equal(prior(tmp_path / "run"), whole)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_the_second_signal_leaves_at_once(tmp_path):
    running = started(tmp_path)
    running.send_signal(signal.SIGTERM)
    running.send_signal(signal.SIGTERM)
    time.sleep(0.05)
    running.send_signal(signal.SIGTERM)
    running.communicate(timeout=120)
    assert running.returncode in (-signal.SIGTERM, 128 + signal.SIGTERM)
    assert Checkpoint(tmp_path / "run.checkpoint")._last() is not None


def test_another_fit_of_the_same_folder_is_refused_while_one_runs(tmp_path):
    running = started(tmp_path, "--steps", 50000)
    second = subprocess.run(
        command(SLEEP, *OPTIONS, "--steps", STEPS, "--out", "run"),
        cwd=tmp_path, env=environment(), text=True, capture_output=True, check=False,
    )  # fmt: skip
    running.kill()
    running.communicate()
    assert second.returncode == 2
    assert "another fit is writing to run at this moment" in second.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--resume", "nothing"), "there is no checkpoint in nothing.checkpoint"),
        (("--resume", "nothing", "--seed", "3"), "and --seed was given: leave it out"),
        ((), "say what to fit: DATA.csv or IMAGES, or --resume RUN"),
    ],
)
def test_what_cannot_be_gone_on_with_is_said(arguments, sentence, tmp_path):
    done = subprocess.run(
        command(*arguments),
        cwd=tmp_path, env=environment(), text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert sentence in " ".join(done.stderr.split())


def test_data_that_changed_are_named(tmp_path):
    table = tmp_path / "table.csv"
    table.write_text(SLEEP.read_text())
    options = ("--steps", STEPS, "--checkpoint-every", 10, "--out", tmp_path / "run")
    running = subprocess.Popen(command(table, *OPTIONS, *options), env=environment(), cwd=tmp_path)
    while not (tmp_path / "run.checkpoint" / FILE).is_file():
        assert running.poll() is None
        time.sleep(0.02)
    running.kill()
    running.wait()
    table.write_text(SLEEP.read_text().replace("249.56", "250.56"))
    done = subprocess.run(
        command("--resume", tmp_path / "run"),
        env=environment(), text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "is of a fit to other data" in " ".join(done.stderr.split())


# In Python


@pytest.fixture
def heard():
    """Ctrl-C as a terminal has it: who is started in the background is deaf to it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heard")
def test_a_fit_in_python_raises_what_says_how_to_go_on(tmp_path):
    checkpoint = Checkpoint(tmp_path, every=50)

    def interrupt(step: int, steps: int, value: float) -> None:
        if step == 10:
            signal.raise_signal(signal.SIGINT)

    many = {"method": {"outer_steps": 30}}
    with pytest.raises(Stopped, match=r"after 11 steps, is whole.*the same call goes on"):
        small(checkpoint=checkpoint, callbacks=(interrupt,), **many)
    resumed = small(checkpoint=checkpoint, **many)
    assert torch.equal(resumed.prior.mean, small(**many).prior.mean)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("heard")
def test_a_fit_without_a_checkpoint_is_interrupted_as_ever():
    def interrupt(step: int, steps: int, value: float) -> None:
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as raised:
        small(method={"outer_steps": 30}, callbacks=(interrupt,))
    assert not isinstance(raised.value, Stopped)


@pytest.mark.usefixtures("heard")
def test_the_second_signal_does_what_it_did_before():
    with asked_to_stop() as told:
        assert told() is None
        signal.raise_signal(signal.SIGINT)
        assert told() == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_place_is_held_by_one(tmp_path):
    lock = tmp_path / "lock"
    with (
        alone(lock, "here"),
        pytest.raises(bm.InputError, match="another fit is writing to here"),
        alone(lock, "here"),
    ):
        pass
    assert not lock.exists()
    with alone(lock, "here"):
        assert lock.exists()
