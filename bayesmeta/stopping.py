"""Ctrl-C and SIGTERM in a long fit: it finishes its step and writes where it stands.

The second signal does at once what the first would have done without this.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

ASKED = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """A fit was told to end, and has written where it stood.

    Args:
        sentence: what is left of it.
        number: of the signal.
    """

    def __init__(self, sentence: str, number: int) -> None:
        super().__init__(sentence)
        self.number = number


@contextmanager
def asked_to_stop(*, wanted: bool = True) -> Iterator[Callable[[], int | None]]:
    """A function that gives the number of the signal that came, or None.

    Args:
        wanted: False leaves signals alone; those of a thread that is not the main one are anyway.

    Yields:
        The function.
    """
    got: list[int] = []
    before = {}

    def note(number: int, frame: FrameType | None) -> None:
        got.append(number)
        _put_back(before)
        sys.stderr.write("stopping after this step; once more leaves at once\n")
        sys.stderr.flush()

    if wanted and threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, note) for number in ASKED}
    try:
        yield lambda: got[0] if got else None
    finally:
        if not got:
            _put_back(before)


def _put_back(handlers: Mapping[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)
