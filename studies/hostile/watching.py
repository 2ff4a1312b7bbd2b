"""One attack under watch: what came of it, in how long, and with how much memory."""

from __future__ import annotations

import resource
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bayesmeta as bm

SECONDS = 10
"""A case that takes longer hangs."""
MEMORY = 1 << 30
"""Bytes beyond those in use that a case may ask for."""
PAGE = resource.getpagesize()
MIB = 1 << 20
REFUSED, SAME, ANOTHER, FLAGGED, DEFECT = (
    "refused", "the same numbers", "another, sound", "not finite, and said", "defect",
)  # fmt: skip
ANSWERS = (REFUSED, SAME, ANOTHER, FLAGGED, DEFECT)


@dataclass(frozen=True)
class Seen:
    """What came of a case.

    Args:
        answer: one of `ANSWERS`.
        why: of a defect, or the sentence of a refusal.
        seconds: taken.
        mib: that the process grew by at most.
    """

    answer: str
    why: str
    seconds: float
    mib: float


class TookTooLongError(BaseException):
    """Not an Exception, or the code under attack could catch it."""


class NotSoundError(Exception):
    """A case ended in what must not be: a silent number that is none, or that of something else."""


def watched(case: Callable[[], str]) -> Seen:
    """Run a case, which gives one of `ANSWERS` or raises, under limits of time and memory."""
    _forget_peak()
    before, started = _status("VmHWM"), time.perf_counter()
    try:
        with _limits(), warnings.catch_warnings():
            warnings.simplefilter("error")
            answer, why = case(), ""
    except bm.InputError as error:
        answer, why = REFUSED, str(error)
        if _asked_for_too_much(error):
            answer, why = DEFECT, f"asked for more than {MEMORY // MIB} MiB: {error}"
        elif not why.strip() or "\n" in why.strip():
            answer, why = DEFECT, f"not one sentence: {error!r}"
    except TookTooLongError:
        answer, why = DEFECT, f"took longer than {SECONDS} s"
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what is looked for
        answer, why = DEFECT, f"{type(error).__name__}: {error}"
    seconds = time.perf_counter() - started
    return Seen(answer, why, seconds, max(0.0, _status("VmHWM") - before) / 1024)


def _asked_for_too_much(error: BaseException | None) -> bool:
    while error is not None:
        said = str(error).lower()
        if isinstance(error, MemoryError) or "alloc" in said or "not enough memory" in said:
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def _limits() -> Iterator[None]:
    def ring(number: int, frame: Any) -> None:
        raise TookTooLongError

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        if size := _status("VmSize"):
            resource.setrlimit(resource.RLIMIT_AS, (size * 1024 + MEMORY, hard))
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGALRM, before)


def _forget_peak() -> None:
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", "ascii")


def _status(name: str) -> int:
    """KiB by the kernel's count; 0 where it does not say."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text("ascii").splitlines():
            if line.startswith(name):
                return int(line.split()[1])
    return 0
