"""What a study is, how its results are written, and whether those on disk still belong to it."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import time
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any, Protocol, cast

from bayesmeta import __version__
from bayesmeta.atomic import whole_file
from bayesmeta.results import InputError

if TYPE_CHECKING:
    from matplotlib.animation import Animation
    from matplotlib.figure import Figure
    from pandas import DataFrame

FRAMEWORK = Path(__file__)
HERE = FRAMEWORK.parent
ROOT = HERE.parent
FIGURES = ROOT / "figures"
LIBRARIES = ("torch", "numpy", "scipy", "pandas", "matplotlib", "pyro-ppl", "statsmodels")
FRAMES_A_SECOND = 12
IMPORTED = re.compile(r"^\s*from studies\.([\w.]+)", re.MULTILINE)
ONE_THREAD = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS")}


@dataclass(frozen=True, eq=False)
class Result:
    """What a run of a study gives.

    Args:
        table: one row per measurement; everything the headline says is computed from it.
        figures: by the stem of their file, which begins with the study's name.
        animations: the same; written as GIF, beside figures that say as much on paper.
        before: seconds of earlier runs whose parts were kept and are in the table.
    """

    table: DataFrame
    figures: dict[str, Figure]
    animations: dict[str, Animation] = field(default_factory=dict)
    before: float = 0.0


class Module(Protocol):
    """The names a study's module has."""

    QUESTION: str

    def run(self, quick: bool, device: str) -> Result: ...

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
    def code(self) -> str:
        """sha256 of the study's files and those of other studies it uses, to know an old result."""
        digest = hashlib.sha256()
        for file in self._files():
            digest.update(f"{file.name}\0".encode() + file.read_bytes())
        return digest.hexdigest()

    def _files(self) -> list[Path]:
        """Its own, then those they import of `studies`, save the framework all have in common."""
        found = [self.path] if self.path.is_file() else sorted(self.path.rglob("*.py"))
        for file in found:  # grows on the way
            imported = sorted(set(IMPORTED.findall(file.read_text("utf-8"))))
            found += [path for path in map(_file, imported) if path not in (*found, FRAMEWORK)]
        return found

    def run(self, *, quick: bool, device: str, out: Path) -> dict[str, Any]:
        """Run it and write table, figures and record, the record last. Returns the record."""
        started = time.perf_counter()
        result = self.module.run(quick, device)
        seconds = time.perf_counter() - started + result.before
        with whole_file(out / f"{self.name}.csv") as path:
            result.table.to_csv(path, index=False, float_format="%.10g", lineterminator="\n")
        record = {
            "study": self.name,
            "question": self.module.QUESTION,
            "headline": self.answer(out),  # of the table as written, rounding included
            "seconds": round(seconds, 1),
            "quick": quick,
            "device": device,
            "code": self.code,
            "figures": self._draw(result, out),
            "versions": _versions(),
            "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        }
        with whole_file(out / f"{self.name}.json") as path:
            path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", "utf-8")
        return record

    def _draw(self, result: Result, out: Path) -> list[str]:
        """Write figures as PNG and SVG, animations as GIF, and remove those of an earlier run."""
        from matplotlib.animation import PillowWriter

        from bayesmeta.plots import save

        stems = [*result.figures, *result.animations]
        foreign = [stem for stem in stems if not stem.startswith(self.name)]
        if foreign:
            raise ValueError(f"figure {foreign[0]!r} must begin with the study's name")
        names = [f"{stem}.{kind}" for stem in result.figures for kind in ("png", "svg")]
        for name in names:
            save(result.figures[name.rpartition(".")[0]], out / name)
        for stem, animation in result.animations.items():
            names.append(f"{stem}.gif")
            with whole_file(out / names[-1]) as path:
                animation.save(path, writer=PillowWriter(FRAMES_A_SECOND))
        for old in set((self.record(out) or {}).get("figures", [])) - set(names):
            (out / Path(old).name).unlink(missing_ok=True)
        return names

    def record(self, out: Path) -> dict[str, Any] | None:
        """The record of the results in a folder; None if there are none."""
        path = out / f"{self.name}.json"
        return json.loads(path.read_text("utf-8")) if path.is_file() else None

    def answer(self, out: Path) -> str:
        """The headline, computed from the table in a folder."""
        import pandas as pd

        return self.module.headline(pd.read_csv(out / f"{self.name}.csv"))

    def state(self, out: Path) -> str:
        """Of the results in a folder: not run, incomplete, stale, quick or current."""
        record = self.record(out)
        if record is None:
            return "not run"
        if not all((out / name).is_file() for name in (f"{self.name}.csv", *record["figures"])):
            return "incomplete"
        if record["code"] != self.code:
            return "stale"
        return "quick" if record["quick"] else "current"


def studies() -> dict[str, Study]:
    """All of them, by name."""
    found = {}
    for module in iter_modules([str(HERE)]):
        if not module.name.startswith("_"):
            path = HERE / module.name
            found[module.name] = Study(module.name, path if path.is_dir() else _file(module.name))
    return found


def _file(module: str) -> Path:
    """Of a module of `studies`, named as it is imported."""
    path = HERE.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


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
