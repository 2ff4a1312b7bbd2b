"""`torchrun --nproc-per-node N -m bayesmeta fit …`: one fit by several processes.

All of them compute; the first prints and writes. One that ends before the others stops them all,
with one message: what happened, what is left of the fit, and how to go on.
"""

from __future__ import annotations

import io
import os
import shlex
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from bayesmeta import cli
from bayesmeta.console import BAD_INPUT
from bayesmeta.results import InputError

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

LOST = 3
"""The exit code where another process was lost."""
PLACE = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
TIMEOUT = "BAYESMETA_TIMEOUT"
SECONDS = 600.0
"""A process that has not answered for so long is lost, unless BAYESMETA_TIMEOUT says otherwise."""
PATIENCE = 3.0
"""Seconds in which the first process says what happened, before another one does."""
GRACE = 5.0
"""Seconds in which a process that was told to end comes back from a message."""


def main() -> None:
    """`python -m bayesmeta`: alone, or one of several processes that torchrun has started."""
    if not all(name in os.environ for name in PLACE) or os.environ["WORLD_SIZE"] == "1":
        cli.main()
        return
    # The first process may hold the store; of its loss there is a sentence, and no C++ stack.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    code = _Process(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])).run()
    sys.stdout.flush()
    sys.stderr.flush()
    if code == LOST:
        os._exit(code)  # a group that has lost a process cannot be taken down in order
    raise SystemExit(code)


class _Process:
    """This process among those of the run.

    Args:
        rank, size: its number, and how many there are.
    """

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self.store: Store | None = None
        self.ending = threading.Event()

    def run(self) -> int:
        """The command line; its exit code."""
        if "fit" not in sys.argv[1:2]:  # nothing to share
            return _code() if self.rank == 0 else 0
        with self._told_to_end():  # until it was said: torchrun's SIGTERM comes at once
            return self._shared()

    def _shared(self) -> int:
        """This process's part in a fit; its exit code, once what stopped it was said."""
        from bayesmeta.ranks import RankLost

        try:
            with self._joined():
                return self._first() if self.rank == 0 else self._other()
        except RankLost as lost:
            self.ending.set()
            self._say(f"error: {lost}{_resumed(lost.checkpoint)}")
            return LOST
        except InputError as error:
            self.ending.set()
            self._say(f"error: {error}")
            return BAD_INPUT

    def _first(self) -> int:
        """The rank that prints and writes."""
        code = _code()
        if code:
            self.ending.set()
            self._mark()
            self._wait()
        return code

    def _wait(self) -> None:
        """Let the others notice, and hear that it was said, while the store is still there."""
        import torch.distributed as processes

        processes.destroy_process_group()
        started = time.monotonic()
        with _unreachable():
            while self.store is not None and time.monotonic() - started < PATIENCE:
                if self.store.add(_key("heard"), 0) == self.size - 1:
                    return
                time.sleep(0.05)

    def _other(self) -> int:
        """A rank that only computes: what it has to say is heard if it fails alone."""
        said = io.StringIO()
        with (
            open(os.devnull, "w", encoding="utf-8") as nothing,
            redirect_stdout(nothing),
            redirect_stderr(said),
        ):
            code = _code()
        if code:
            self.ending.set()
            self._say(f"rank {self.rank} of {self.size}: {said.getvalue().strip()}")
        return code

    @contextmanager
    def _joined(self) -> Iterator[None]:
        """The process group of torchrun's environment."""
        import torch.distributed as processes
        from torch.distributed.rendezvous import rendezvous

        from bayesmeta.ranks import RankLost

        patience = timedelta(seconds=_seconds())
        try:
            self.store, rank, size = next(rendezvous("env://", timeout=patience))
            processes.init_process_group(
                _backend(), store=self.store, rank=rank, world_size=size, timeout=patience
            )
        except RuntimeError as error:
            place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
            raise RankLost(
                f"the {self.size} processes did not all meet at {place}, so rank {self.rank} stops"
            ) from error
        yield
        if processes.is_initialized():
            processes.destroy_process_group()

    @contextmanager
    def _told_to_end(self) -> Iterator[None]:
        """SIGTERM, which torchrun sends where a process has died, as the loss of that process."""
        from bayesmeta.ranks import RankLost

        def stop(number: int, frame: FrameType | None) -> None:
            # A process that has noticed the loss by itself knows more of it.
            if not (self.ending.is_set() or isinstance(sys.exc_info()[1], RankLost)):
                self.ending.set()
                raise RankLost(
                    f"rank {self.rank} of {self.size} was told to end, as torchrun does when "
                    "another process has ended, so the fit stops"
                )

        read, write = os.pipe()
        os.set_blocking(write, False)
        before = signal.signal(signal.SIGTERM, stop)
        waker = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        threading.Thread(target=self._outlast, args=(read,), daemon=True).start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(waker)
            signal.signal(signal.SIGTERM, before)
            os.close(write)

    def _outlast(self, pipe: int) -> None:
        """End a process that is told to, and hangs in a message that nobody will answer.

        A signal's handler waits until the interpreter is back from there; this thread does not.
        """
        while signal.SIGTERM not in (got := os.read(pipe, 1)):
            if not got:
                return
        time.sleep(GRACE)
        if not self.ending.is_set():
            self.ending.set()
            self._say(
                f"error: rank {self.rank} of {self.size} was told to end while it waited for "
                "another process; the last checkpoint of the fit, if it has one, is whole"
            )
        time.sleep(GRACE)
        sys.stderr.flush()
        os._exit(LOST)

    def _say(self, sentence: str) -> None:
        """Print, once for all processes: by the first if it is there."""
        if self.rank == 0 or (self.store is not None and self._alone(self.store)):
            print(sentence, file=sys.__stderr__, flush=True)
            self._mark()

    def _mark(self) -> None:
        """Let the others know that it was said."""
        if self.store is not None:
            with _unreachable():
                self.store.set(_key("said"), "1")

    def _alone(self, store: Store) -> bool:
        """Whether the first process says nothing, and no other one has begun to."""
        started = time.monotonic()
        with _unreachable():
            while time.monotonic() - started < PATIENCE:
                if store.check([_key("said")]):
                    store.add(_key("heard"), 1)
                    return False
                time.sleep(0.1)
            return store.add(_key("speakers"), 1) == 1
        return True


@contextmanager
def _unreachable() -> Iterator[None]:
    """A store that ended with its process says nothing."""
    with suppress(RuntimeError):
        yield


def _key(name: str) -> str:
    """In the store, which outlives a restart by torchrun."""
    return f"bayesmeta/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{name}"


def _code() -> int:
    """The exit code of the command line."""
    try:
        cli.main()
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else int(done.code is not None)
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        return BAD_INPUT
    except Exception as error:
        from bayesmeta.ranks import RankLost

        if isinstance(error, RankLost):
            raise
        traceback.print_exc()
        return 1
    return 0


def _seconds() -> float:
    """How long to wait for another process."""
    given = os.environ.get(TIMEOUT, str(SECONDS))
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise InputError(f"{TIMEOUT}={given!r}: give a number of seconds above 0")
    return seconds


def _backend() -> str:
    """The backend for the device that is asked for, which becomes this process's own GPU.

    Raises:
        InputError: fewer GPUs than processes, or one by number.
    """
    import torch

    device = _option("--device")
    if device is None or not device.startswith("cuda"):
        return "gloo"
    if device != "cuda":
        raise InputError(
            f"--device {device} would be the same for every process: give --device cuda, and each "
            "takes one of its own"
        )
    local, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if here > count:
        raise InputError(
            f"{here} processes want a CUDA device each, and this machine has {count}: start "
            f"torchrun with --nproc-per-node {count}"
            if count
            else "--device cuda: this machine has no CUDA device that torch can use"
        )
    torch.cuda.set_device(local)
    return "cpu:gloo,cuda:nccl"


def _option(name: str) -> str | None:
    """The last value that the command line gives an option, or None."""
    found = None
    for i, argument in enumerate(sys.argv):
        if argument.startswith(f"{name}="):
            found = argument.partition("=")[2]
        elif argument == name and i + 1 < len(sys.argv):
            found = sys.argv[i + 1]
    return found


def _resumed(checkpoint: Path | None) -> str:
    """The command that goes on from a checkpoint."""
    if checkpoint is None:
        return ""
    command = shlex.join(["python", "-m", "bayesmeta", *sys.argv[1:]])
    return f"\nto go on: the same torchrun command, or, as one process, {command}"
