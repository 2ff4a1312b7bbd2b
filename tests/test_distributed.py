"""Several processes: the fit of one process, and a lost one stops the others with a sentence."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from shared_fits import CASES, STEPS, TOO_FEW, fitted, numbers
from torch import Tensor
from torch.distributed import TCPStore
from typer.testing import CliRunner

import bayesmeta as bm
from bayesmeta import launch
from bayesmeta.cli import app
from bayesmeta.ranks import Ranks
from bayesmeta.results import InputError

WORKER = Path(__file__).parent / "process_worker.py"
RADON = Path(bm.__file__).parent / "data" / "radon.csv"
ALONE = {"OMP_NUM_THREADS": "1"}


class Processes:
    """Some processes in one group, which do the fits that they are asked for together."""

    def __init__(self, folder: Path, size: int = 2) -> None:
        self.folder = folder
        self.workers = [
            subprocess.Popen(
                [sys.executable, str(WORKER), str(rank), str(size), str(folder / "meeting")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=os.environ | ALONE,
            )
            for rank in range(size)
        ]

    def ask(self, name: str, **options: Any) -> list[dict[str, Any] | None]:
        """The answer of each; None of one that died."""
        asked = {"name": name, "dtype": "float64", "steps": STEPS, "out": str(self.folder)}
        for worker in self.workers:
            assert worker.stdin is not None
            print(json.dumps(asked | options), file=worker.stdin, flush=True)
        lines = [worker.stdout.readline() for worker in self.workers if worker.stdout is not None]
        return [json.loads(line) if line else None for line in lines]

    def fit(self, name: str, **options: Any) -> list[dict[str, Tensor]]:
        """What each found."""
        answers = self.ask(name, **options)
        assert not any(one is None or "stopped" in one for one in answers), answers
        return [load_file(self.folder / f"{i}.safetensors") for i in range(len(answers))]

    def stopped(self, name: str, **options: Any) -> list[str]:
        """What each says that stopped it."""
        answers = self.ask(name, **options)
        assert all(one is not None and one["stopped"] == "InputError" for one in answers), answers
        return [one["says"] for one in answers if one is not None]

    def end(self) -> None:
        for worker in self.workers:
            assert worker.stdin is not None and worker.stdout is not None
            with suppress(BrokenPipeError):
                worker.stdin.close()
            worker.wait(30)
            worker.stdout.close()


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    two = Processes(tmp_path_factory.mktemp("pair"))
    yield two
    two.end()


@cache
def alone(name: str, dtype: str = "float64", steps: int = STEPS) -> dict[str, Tensor]:
    return numbers(fitted(name, getattr(torch, dtype), steps))


def same(found: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(
            found[name], value, rtol=tolerance, atol=tolerance, equal_nan=True, msg=name
        )


# One process and two


@pytest.mark.parametrize("name", CASES)
def test_two_processes_are_one(pair, name):
    first, second = pair.fit(name)
    wanted = alone(name)
    assert wanted["theta0"].dtype == torch.float64 and wanted["theta0"].abs().max() > 1e-3
    same(first, wanted, 1e-12)
    same(second, first, 0.0)


LONG = [
    ("maml, batches", ()),
    ("joint, batches", ()),
    ("imaml", pytest.mark.slow),
    ("Gaussian Q", pytest.mark.slow),
    ("few-shot", pytest.mark.slow),
]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-10)])
@pytest.mark.parametrize("name", [pytest.param(name, marks=marks) for name, marks in LONG])
def test_and_so_they_are_after_a_hundred_steps(pair, name, dtype, tolerance):
    first, second = pair.fit(name, dtype=dtype, steps=100)
    wanted = alone(name, dtype, 100)
    assert first["theta0"].dtype == getattr(torch, dtype)
    assert len(first["trace"]) == 100 and first["trace"].isfinite().all()
    torch.testing.assert_close(first["theta0"], wanted["theta0"], rtol=0, atol=tolerance)
    same(second, first, 0.0)


@pytest.mark.parametrize("error", ["gradients of one rank", "noise of each rank"])
@pytest.mark.parametrize("name", ["Gaussian Q", "joint, batches"])
def test_a_planted_error_is_found(pair, name, error):
    first, _ = pair.fit(name, error=error)
    assert (first["theta0"] - alone(name)["theta0"]).abs().max() > 1e-4


# What is refused


@pytest.mark.parametrize("name", TOO_FEW)
def test_more_processes_than_tasks_are_refused(pair, name):
    first, second = pair.stopped(name)
    assert first == second and "cannot be shared by 2 processes" in first and "fewer" in first
    numbers(fitted(name))  # one process may


def test_what_the_processes_were_given_has_to_be_the_same(pair):
    first, second = pair.stopped("imaml", seeds=True)
    assert first == second and "rank 1 was given another seed than rank 0" in first
    for name in ("joint", "few-shot"):
        says = pair.stopped(name, nudges={"1": 1e-3})
        assert says[0] == says[1] and "rank 1 was given another start than rank 0" in says[0]


def test_a_checkpoint_that_cannot_be_read_stops_every_process(pair, tmp_path):
    (tmp_path / "state.safetensors").write_bytes(b"nothing of the kind")
    first, second = pair.stopped("joint", checkpoint=str(tmp_path), every=5)
    assert first == second and "cannot be read" in first


def test_shares_are_in_order_and_as_even_as_can_be():
    shares = [Ranks(rank, 3).share(7).tolist() for rank in range(3)]
    assert shares == [[0, 1, 2], [3, 4], [5, 6]]
    Ranks(0, 3).refuse_idle(3)
    with pytest.raises(InputError, match="2 tasks cannot be shared by 3 processes: start fewer"):
        Ranks(0, 3).refuse_idle(2)


# A lost process


def test_a_killed_process_leaves_a_sentence_and_a_checkpoint_to_go_on_from(pair, tmp_path):
    folder = tmp_path / "state"
    kept = {"checkpoint": str(folder), "every": 15, "steps": 60}
    doomed = Processes(tmp_path)
    survivor, dead = doomed.ask("joint", killed=1, at=40, **kept)
    doomed.end()
    assert dead is None and doomed.workers[1].returncode == -signal.SIGKILL
    assert survivor is not None and survivor["stopped"] == "RankLost"
    says = survivor["says"]
    assert "another process of this fit has ended, which rank 0 of 2 noticed" in says
    assert f"after 30 steps, is whole: {folder / 'state.safetensors'}" in says
    before = (folder / "state.safetensors").read_bytes()
    wanted = alone("joint", steps=60)
    same(pair.fit("joint", **kept)[1], wanted, 1e-10)
    (folder / "state.safetensors").write_bytes(before)
    one = numbers(fitted("joint", steps=60, checkpoint=bm.Checkpoint(folder, every=15)))
    same(one, wanted, 1e-10)


def test_two_processes_go_on_from_what_one_wrote(pair, tmp_path):
    def interrupt(step: int, steps: int, value: float) -> None:
        if step == 20:
            raise KeyboardInterrupt

    name, checkpoint = "imaml, warm batches", bm.Checkpoint(tmp_path, every=7)
    with pytest.raises(KeyboardInterrupt):
        fitted(name, steps=25, checkpoint=checkpoint, callbacks=[interrupt])
    kept = {"checkpoint": str(tmp_path), "every": 7}
    same(pair.fit(name, steps=25, **kept)[0], alone(name, steps=25), 1e-12)


# The command line


BREAKS = """
import os, signal, sys, time
from bayesmeta import launch, ranks
honest, calls = ranks.Ranks.summed, []
def summed(self, tensors):
    calls.append(1)
    if len(calls) == 30 and self.rank == {rank}:
        {act}
    return honest(self, tensors)
ranks.Ranks.summed = summed
launch.GRACE = {grace}
launch.main()
"""


KILL = "os.kill(os.getpid(), signal.SIGKILL)"


def started(
    arguments: list[str],
    act: str = "pass",
    rank: int = 1,
    grace: float = 0.5,
    **variables: str,
) -> list:
    """`python -m bayesmeta arguments` by two processes, in an environment as torchrun makes it.

    Args:
        arguments: of the command line.
        act: what process number `rank` does in the middle of the fit.
        grace: of `launch`.
        variables: further ones of the environment.
    """
    size, script = 2, BREAKS.format(act=act, rank=rank, grace=grace)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    place["TORCH_CPP_LOG_LEVEL"] = "ERROR"  # launch.main sets it too, after the import above
    return [
        subprocess.Popen(
            [sys.executable, "-c", script, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | ALONE | place | {"RANK": str(i)} | variables,
        )
        for i in range(size)
    ]


def ended(running: list) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of each."""
    said = [one.communicate(timeout=60) for one in running]
    return [(one.returncode, *text) for one, text in zip(running, said, strict=True)]


def network(out: Path, steps: int = 40) -> list[str]:
    columns = ["--task", "county", "--x", "floor", "--y", "log_radon", "--net", "3"]
    return ["fit", str(RADON), *columns, "--steps", str(steps), "--out", str(out), "--json"]


@pytest.mark.slow
def test_the_command_line_prints_and_writes_once(tmp_path):
    (first, out, errors), (second, silent, no_errors) = ended(started(network(tmp_path / "two")))
    assert (first, second, errors, silent, no_errors) == (0, 0, "", "", "")
    record = json.loads(out)
    assert [path.name for path in tmp_path.iterdir()] == ["two"]
    fit = bm.load(tmp_path / "two")
    assert fit.solver == "gradient" and record["log_evidence"] == fit.log_evidence
    assert "This fit was made by 2 processes." in fit.notes


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> tuple[Path, list[str], str]:
    """A fit of which the second process is killed: its place, what was asked for, what it says."""
    place = tmp_path_factory.mktemp("killed")
    asked = [*network(place / "run"), "--checkpoint-every", "5"]
    (first, out, errors), (second, _, _) = ended(started(asked, KILL))
    assert (first, second, out) == (3, -signal.SIGKILL, "")
    assert [path.name for path in place.iterdir()] == ["run.checkpoint"]
    return place, asked, errors


def test_a_killed_process_ends_the_command_line_with_a_sentence(killed):
    place, asked, errors = killed
    assert errors.startswith("error: another process of this fit has ended, which rank 0 of 2")
    kept = place / "run.checkpoint" / "state.safetensors"
    assert f"after 5 steps, is whole: {kept}; the same call goes on from there" in errors
    _, _, command = errors.strip().partition("as one process, python -m bayesmeta ")
    assert shlex.split(command) == asked and errors.count("\n") == 2


@pytest.mark.slow
def test_the_command_that_is_named_goes_on(killed):
    place, _, errors = killed
    command = errors.strip().partition("as one process, python -m bayesmeta ")[2]
    for arguments in (shlex.split(command), network(place / "whole")):
        assert CliRunner().invoke(app, arguments).exit_code == 0
    theta0 = [bm.load(place / name).prior.mean for name in ("run", "whole")]
    torch.testing.assert_close(*theta0, rtol=0, atol=1e-12)
    assert "The fit went on from a checkpoint, after 5 steps." in bm.load(place / "run").notes


@pytest.mark.slow
def test_another_process_speaks_where_the_first_is_killed(tmp_path):
    (first, _, _), (second, _, errors) = ended(started(network(tmp_path / "run"), KILL, rank=0))
    assert (first, second) == (-signal.SIGKILL, 3)
    assert errors.count("error:") == 1 and "rank 1 of 2 noticed" in errors


def test_it_speaks_although_torchrun_tells_it_to_end_at_once(tmp_path):
    """As torchrun does: the store outlives the first process, and SIGTERM comes within a moment."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    agent = {"TORCHELASTIC_USE_AGENT_STORE": "True", "MASTER_PORT": str(store.port)}
    asked = [*network(tmp_path / "run"), "--checkpoint-every", "5"]
    running = started(asked, KILL, rank=0, grace=5.0, **agent)
    assert running[0].wait(60) == -signal.SIGKILL
    time.sleep(0.5)  # rank 1 has noticed, and waits whether rank 0 has something to say
    running[1].send_signal(signal.SIGTERM)
    _, (second, _, errors) = ended(running)
    assert second == 3 and errors.count("error:") == 1 and "Traceback" not in errors
    assert "rank 1 of 2" in errors and "after 5 steps, is whole" in errors
    assert "to go on: the same torchrun command, or, as one process, python -m" in errors


@pytest.mark.slow
def test_a_process_that_is_told_to_end_in_the_middle_of_a_message_says_so(tmp_path):
    stall = "print('here', flush=True, file=sys.__stderr__); time.sleep(60)"
    running = started(network(tmp_path / "run"), stall)
    assert running[1].stderr.readline() == "here\n"
    running[0].send_signal(signal.SIGTERM)
    out, errors = running[0].communicate(timeout=30)
    assert (running[0].returncode, out) == (3, "")
    assert "rank 0 of 2 was told to end" in errors and "Traceback" not in errors
    running[1].kill()
    running[1].communicate()


@pytest.mark.slow
def test_a_process_that_does_not_answer_is_lost(tmp_path):
    late = {"BAYESMETA_TIMEOUT": "2"}
    running = started(network(tmp_path / "run"), "time.sleep(60)", **late)
    _, errors = running[0].communicate(timeout=40)
    assert running[0].returncode == 3
    assert "another process of this fit did not answer in time" in errors
    running[1].kill()
    running[1].communicate()


@pytest.mark.slow
def test_bad_input_is_said_once(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    both = ended(started(network(tmp_path / "run")))
    assert both[0][0] == 2 and both[0][2].count("exists already") == 1
    assert both[1][2] == "" and (tmp_path / "run" / "run.json").read_text() == "{}"
    both = ended(started(["fit", str(tmp_path / "none.csv"), "--task", "a", "--y", "b"]))
    assert [code for code, _, _ in both] == [2, 2]
    assert both[0][2].startswith("error: there is no file") and both[1][2] == ""


def test_a_wrong_timeout_is_said_before_the_processes_meet(monkeypatch, capfd):
    monkeypatch.setenv("BAYESMETA_TIMEOUT", "soon")
    monkeypatch.setattr(sys, "argv", ["bayesmeta", "fit"])
    assert launch._Process(0, 2).run() == 2
    assert capfd.readouterr().err == (
        "error: BAYESMETA_TIMEOUT='soon': give a number of seconds above 0\n"
    )


@pytest.mark.slow
def test_torchrun_starts_it(tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, "--standalone", "-m", "bayesmeta", *network(tmp_path / "run")],
        capture_output=True,
        text=True,
        env=os.environ | ALONE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["run"] == str(tmp_path / "run")
    assert bm.load(tmp_path / "run").solver == "gradient"
