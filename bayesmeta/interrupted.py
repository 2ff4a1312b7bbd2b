"""`bayesmeta fit` where it is told to end, and how it goes on: `bayesmeta fit --resume RUN`."""

from __future__ import annotations

import os
import shlex
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from bayesmeta.atomic import settle, sweep
from bayesmeta.commands import checkpoint_of, held, open_run
from bayesmeta.console import warn
from bayesmeta.results import InputError

if TYPE_CHECKING:
    from bayesmeta.fit import Fit
    from bayesmeta.resuming import Checkpoint

ANYWAY = ("resume", "quiet", "as_json")
"""Options that change no number, and may differ in the command that goes on."""
FOLDER = "folder"


@contextmanager
def said(checkpoint: Checkpoint, run: Path) -> Iterator[None]:
    """Say at Ctrl-C and SIGTERM what is left of the fit, and how to go on."""
    from bayesmeta.resuming import Checkpoint as Kept
    from bayesmeta.stopping import Stopped

    try:
        yield
    except KeyboardInterrupt as stop:
        kept = Kept(checkpoint.folder, checkpoint.every)
        typer.echo(f"stopped: {kept.left()}", err=True)
        if kept.exists():
            typer.echo(f"to go on: bayesmeta fit --resume {shlex.quote(str(run))}", err=True)
        number = stop.number if isinstance(stop, Stopped) else signal.SIGINT
        raise typer.Exit(128 + number) from None


def command(params: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a command and the folder it was given in, as JSON takes them."""
    kept = {name: value for name, value in params.items() if name not in ANYWAY}
    plain = {n: str(v) if isinstance(v, Path) else v for n, v in kept.items()}
    return plain | {FOLDER: os.getcwd()}


def options(context: typer.Context, run: Path) -> dict[str, Any]:
    """The options of the fit of a run that was interrupted; it goes on in the folder it was in.

    Args:
        context: of the command that goes on.
        run: its folder, which does not exist yet.

    Raises:
        InputError: there is nothing to go on with, or more options were given.
    """
    from bayesmeta.resuming import Checkpoint

    asked = {name: context.get_parameter_source(name) for name in context.params}
    given = [
        name
        for name, source in asked.items()
        if name not in ANYWAY and source is not None and source.name != "DEFAULT"
    ]
    if given:
        flag = f"--{given[0].replace('_', '-')}"
        raise InputError(
            f"--resume goes on with the options that the fit has, and {flag} was given: leave it "
            "out, or make the fit's whole command again without --resume"
        )
    found = Checkpoint(checkpoint_of(run)).made_by()
    folder = found.pop(FOLDER)
    if not Path(folder).is_dir():
        raise InputError(f"the fit was made in the folder {folder}, and there is none now")
    os.chdir(folder)
    paths = {name: Path(found[name]) for name in ("data", "out") if found[name] is not None}
    same = {name: context.params[name] for name in ANYWAY}
    return found | paths | same | {"resume": None}


def ended(run: Path, *, quiet: bool = False) -> Fit | None:
    """The fit that an interrupted command had written already; None if it is to go on.

    What it did not come to clear away is cleared away.

    Raises:
        InputError: it is written at this moment, or damaged.
    """
    from bayesmeta.resuming import Checkpoint

    settle(run)
    checkpoint = Checkpoint(checkpoint_of(run))
    if not (run / "run.json").is_file():
        return None
    if checkpoint.exists() and checkpoint.made_by()["overwrite"]:
        return None  # the earlier run, which this fit is to replace
    with held(run):
        checkpoint.clear()
        sweep(run)
    if not quiet:
        warn(f"{run} is complete, so there is nothing to go on with")
    return open_run(run)
