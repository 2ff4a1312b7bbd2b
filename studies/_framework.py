"""What a study is, how its results are written, and whether those on disk still belong to it."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any, Protocol, cast

from bayesmeta import __version__
from bayesmeta.atomic import whole_file
from bayesmeta.results import InputError
from studies._code import HERE, halves

if TYPE_CHECKING:
    from matplotlib.animation import Animation
    from matplotlib.figure import Figure
    from pandas import DataFrame, Series

ROOT = HERE.parent
FIGURES = ROOT / "figures"
LIBRARIES = ("torch", "numpy", "scipy", "pandas", "matplotlib", "pyro-ppl", "statsmodels")
FRAMES_A_SECOND = 12
ONE_THREAD = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS")}


@dataclass(frozen=True, eq=False)
class Result:
    """What a run of a study gives.

    Args:
        table: one row per measurement; headline and figures are computed from it, as written.
        figures: those that show more than the table holds, by the stem of their file.
        before: seconds of earlier runs whose parts were kept and are in the table.
    """

    table: DataFrame
    figures: dict[str, Figure] = field(default_factory=dict)
    before: float = 0.0


class Module(Protocol):
    """The names a study's module has.

    `draw` gives figures by the stem of their file, which begins with the study's name; an animation
    becomes a GIF, beside figures that say as much on paper.
    """

    QUESTION: str

    def run(self, quick: bool, device: str) -> Result: ...

    def draw(self, table: DataFrame) -> Mapping[str, Figure | Animation]: ...

    def headline(self, table: DataFrame) -> str: ...


@dataclass(frozen=True)
class Study:
    """One study and where its code lies.

    Args:
        name: of its module.
        path: its file, or the folder of a study with several.
    """

    name: str
    path: Path

    @property
    def module(self) -> Module:
        return cast("Module", import_module(f"studies.{self.name}"))

    @property
    def code(self) -> dict[str, str]:
        """sha256 of what measures and of what draws, to know an old table and an old figure."""
        if self.path.is_file():
            return halves(self.path)
        module = self.path / "__init__.py"
        return halves(module, sorted({*self.path.rglob("*.py")} - {module}))

    def run(self, *, quick: bool, device: str, out: Path) -> dict[str, Any]:
        """Run it and write table, figures and record, the record last. Returns the record."""
        started = time.perf_counter()
        result = self.module.run(quick, device)
        seconds = time.perf_counter() - started + result.before
        with whole_file(out / f"{self.name}.csv") as path:
            result.table.to_csv(path, index=False, float_format="%.10g", lineterminator="\n")
        measured = {
            "study": self.name,
            "seconds": round(seconds, 1),
            "quick": quick,
            "device": device,
            "versions": _versions(),
            "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        }
        return self._tell(measured, result.figures, out)

    def draw(self, out: Path) -> dict[str, Any]:
        """Figures and sentences anew, from the table in a folder; those only a run draws stay.

        Raises:
            InputError: there is no table, or it is not of the code that measures as it is.
        """
        record, again = self.record(out), f"python -m studies run {self.name}"
        if record is None or not self._table(out).is_file():
            raise InputError(f"{self._table(out)} is not there: {again}")
        if record["code"]["measuring"] != self.code["measuring"]:
            raise InputError(f"{self._table(out)} is of older code: {again}")
        return self._tell(record, {}, out)

    def _tell(
        self, measured: dict[str, Any], of_run: Mapping[str, Figure], out: Path
    ) -> dict[str, Any]:
        """Write what is drawn and said of the table as it was written, and the record, last."""
        drawn = self.module.draw(self.read(out))
        kept = [] if of_run else measured.get("figures_of_run", [])
        figures = _write({**drawn, **of_run}, self.name, out)
        for old in {*(self.record(out) or {}).get("figures", [])} - {*figures, *kept}:
            (out / Path(old).name).unlink(missing_ok=True)
        record = measured | {
            "question": self.module.QUESTION,
            "headline": self.answer(out),
            "figures": [*figures, *kept],
            "figures_of_run": kept or [f for f in figures if Path(f).stem in of_run],
            "code": self.code,
        }
        with whole_file(out / f"{self.name}.json") as path:
            path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", "utf-8")
        return record

    def record(self, out: Path) -> dict[str, Any] | None:
        """The record of the results in a folder; None if there are none."""
        path = out / f"{self.name}.json"
        return json.loads(path.read_text("utf-8")) if path.is_file() else None

    def read(self, out: Path) -> DataFrame:
        """The table in a folder; numbers that are whole or missing are whole again."""
        import pandas as pd

        table = pd.read_csv(self._table(out))
        gaps = table.select_dtypes("float").columns
        counts = [name for name in gaps if _counts(table[name])]
        return table.astype(dict.fromkeys(counts, "Int64"))

    def answer(self, out: Path) -> str:
        """The headline, computed from the table in a folder."""
        return self.module.headline(self.read(out))

    def _table(self, out: Path) -> Path:
        return out / f"{self.name}.csv"

    def state(self, out: Path) -> str:
        """Of the results in a folder: not run, incomplete, stale, drawn by older code, ..."""
        record = self.record(out)
        if record is None:
            return "not run"
        if not all((out / name).is_file() for name in (f"{self.name}.csv", *record["figures"])):
            return "incomplete"
        code = self.code
        if record["code"]["measuring"] != code["measuring"]:
            return "stale"
        if record["code"]["drawing"] != code["drawing"]:
            return "drawn by older code"
        return "quick" if record["quick"] else "current"


def _counts(column: Series) -> bool:
    known = column.dropna()
    return 0 < len(known) < len(column) and bool((known % 1 == 0).all())


def _write(figures: Mapping[str, Figure | Animation], name: str, out: Path) -> list[str]:
    """Figures as PNG and SVG, animations as GIF; the names of the files."""
    from matplotlib.animation import Animation, PillowWriter

    from bayesmeta.plots import save

    written = []
    for stem, figure in figures.items():
        if not stem.startswith(name):
            raise ValueError(f"figure {stem!r} must begin with the study's name")
        if isinstance(figure, Animation):
            written.append(f"{stem}.gif")
            with whole_file(out / written[-1]) as path:
                figure.save(path, writer=PillowWriter(FRAMES_A_SECOND))
        else:
            written += [f"{stem}.png", f"{stem}.svg"]
            save(figure, out / written[-2])
            save(figure, out / written[-1])
    return written


def studies() -> dict[str, Study]:
    """All of them, by name."""
    found = {}
    for module in iter_modules([str(HERE)]):
        if not module.name.startswith("_"):
            folder = HERE / module.name
            path = folder if folder.is_dir() else folder.with_suffix(".py")
            found[module.name] = Study(module.name, path)
    return found


def study(name: str) -> Study:
    """The study of that name.

    Raises:
        InputError: there is none; the sentence lists those there are.
    """
    every = studies()
    if name not in every:
        raise InputError(f"there is no study {name!r}; choose one of {', '.join(every)}")
    return every[name]


def in_own_process(module: str, *arguments: object) -> Any:
    """What `python -m module arguments` prints as JSON, on one thread, in a process of its own.

    For times and peak memory: neither what ran before nor idle threads of another library count.
    """
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | ONE_THREAD,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{module} {' '.join(map(str, arguments))} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def _versions() -> dict[str, str]:
    found = {name: version(name) for name in LIBRARIES}
    return {"bayesmeta": __version__, "python": platform.python_version()} | found
