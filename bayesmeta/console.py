"""The terminal: results on stdout, progress and errors on stderr, bad input as one sentence."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

import typer
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bayesmeta.results import InputError

P = ParamSpec("P")
R = TypeVar("R")
BAD_INPUT = 2


def plainly(command: Callable[P, R]) -> Callable[P, R]:
    """End a command that got bad input with one sentence on stderr and exit code 2.

    Args:
        command: any error of its own, not of its user's, still shows its traceback.
    """

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except InputError as error:
            sentence = str(error)
        except OSError as error:
            sentence = f"{error.filename or 'a file'}: {error.strerror or error}; check the path"
        typer.echo(f"error: {' '.join(sentence.split())}", err=True)
        raise typer.Exit(BAD_INPUT)

    return run


def show(body: RenderableType) -> None:
    """Print a report to stdout; in a pipe or a file it is plain text, as wide as it needs."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=160)
    console.print(body)


def warn(note: str) -> None:
    """Say on stderr, before long work, what a person may want to change first."""
    typer.echo(f"note: {note}", err=True)


def show_json(record: dict[str, Any]) -> None:
    """Print exactly one JSON object, valid for every reader: no NaN, no infinity."""
    typer.echo(json.dumps(record, ensure_ascii=False, allow_nan=False))


class ProgressBar:
    """A fit's callback: a bar on stderr with the step and the value of M.

    Args:
        title: what is being computed.
        hidden: draw nothing; nothing is drawn either where stderr is not a terminal.
    """

    def __init__(self, title: str, *, hidden: bool = False) -> None:
        stderr = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}  {task.fields[value]}"),
            TimeElapsedColumn(),
            TextColumn("left:"),
            TimeRemainingColumn(),
            console=stderr,
            transient=True,
            disable=hidden or not stderr.is_terminal,
        )
        self._task = self._bar.add_task(title, total=None, value="")

    def __call__(self, step: int, total: int, value: float) -> None:
        self._bar.update(self._task, completed=step, total=total, value=f"{value:.4f} nats")

    def __enter__(self) -> ProgressBar:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()
