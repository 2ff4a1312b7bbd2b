"""The same tables on the command line: an exit code and what is printed, nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from typer.testing import CliRunner

import bayesmeta as bm
from bayesmeta.cli import app
from studies.hostile.sheets import Sheet, finite, read_and_fitted
from studies.hostile.watching import ANOTHER, FLAGGED, SAME, NotSoundError


def fitted(sheet: Sheet, path: Path, wanted: Any) -> str:
    """Fit a table that was changed, by `bayesmeta fit --json`.

    Raises:
        InputError: the sentence of exit code 2.
        NotSoundError: another exit, more or less than a sentence, or a number that is none.
    """
    with TemporaryDirectory() as place:
        out = Path(place) / "run"
        asked = ["fit", str(path), *sheet.command, "--out", str(out), "--json"]
        done = CliRunner().invoke(app, asked)
        left = sorted(file.name for file in Path(place).iterdir())
        if done.exit_code == 2:
            lines = done.stderr.strip().splitlines()
            if len(lines) != 1 or not lines[0].startswith("error: ") or done.stdout or left:
                raise NotSoundError(f"{done.stdout}{done.stderr} and left {left}")
            raise bm.InputError(lines[0])
        if done.exit_code != 0 or done.exception is not None:
            raise NotSoundError(f"exit code {done.exit_code}: {done.exception!r}")
        json.loads(done.stdout, parse_constant=_refused)
        answer = finite(bm.load(out))
    if answer == FLAGGED:
        return answer
    return SAME if read_and_fitted(sheet, path, wanted) == SAME else ANOTHER


def _refused(constant: str) -> None:
    raise NotSoundError(f"{constant} is printed as if it were a number")
