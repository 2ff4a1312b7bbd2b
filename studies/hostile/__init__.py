"""Bad input never loses data and never yields a silent number: that promise, under attack.

Run folders are damaged file by file, and forged: changed on purpose and sealed again. Tables are
spoiled as people, spreadsheets and programs do it. Every case is loaded, or read and fitted, in
this process, under a limit of time and of memory. Each may end in one sentence, in the same
numbers, in another run or table that is sound, or in numbers that are not finite and said to be.

A damaged folder gives the same numbers where the damage is in what loading does not read (the draws
kept for other programs, posterior.nc) or where the other run's file holds the same bytes.
"""

from __future__ import annotations

import random
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import count, islice
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
from matplotlib.figure import Figure

import bayesmeta as bm
from studies._framework import Result
from studies.hostile import commands, damage, figures, folders, forged, sheets, spoiling
from studies.hostile.watching import (
    ANOTHER,
    DEFECT,
    FLAGGED,
    MEMORY,
    MIB,
    REFUSED,
    SAME,
    SECONDS,
    Seen,
    watched,
)

QUESTION = "Can damaged, forged or careless input crash, hang, or give a number in silence?"
CASES = {"damaged": 500, "forged": 500, "table": 900, "command line": 100}
Case = tuple[str, Callable[[], str]]


def run(quick: bool, device: str) -> Result:
    """Every case; in the quick run one of each kind."""
    with TemporaryDirectory() as place:
        found = [
            {"input": name, "change": change, "answer": seen.answer, "cases": 1,
             "seconds": seen.seconds, "mib": seen.mib}
            for name, change, seen in _seen(Path(place), quick)
        ]  # fmt: skip
    rows = pd.DataFrame(found)
    grouped = rows.groupby(["input", "change", "answer"], sort=False)
    largest = {"cases": "sum", "seconds": "max", "mib": "max"}
    return Result(grouped.agg(largest).reset_index())


def _seen(place: Path, quick: bool) -> Iterator[tuple[str, str, Seen]]:
    """What came of every case: the kind of input, the change, and what was seen."""
    runs = folders.saved(place)
    wanted = {name: folders.numbers(bm.load(path)) for name, path in runs.items()}
    sources = {
        "damaged": partial(_folders, runs, wanted, [*damage.CHANGES, *damage.NUMBERS]),
        "forged": partial(_folders, runs, wanted, list(forged.FORGERIES)),
        "table": partial(_tables, place, list(spoiling.SPOILS), command=False),
        "command line": partial(_tables, place, list(spoiling.SPOILS)[::3], command=True),
    }
    for name, cases in sources.items():
        some = {"damaged": 10, "forged": 13, "table": 17, "command line": 2}[name]
        for change, case in islice(cases(), some if quick else CASES[name]):
            seen = watched(case)
            if seen.answer == DEFECT:
                print(f"{name}, {change}: {seen.why[:300]}", file=sys.stderr)
            yield name, change, seen


def _folders(
    runs: dict[str, Path], wanted: dict[str, str], changes: Sequence[str]
) -> Iterator[Case]:
    """Copies of the runs, each changed in one way, without end."""
    names = list(runs)
    for i in count():
        change = changes[i % len(changes)]
        lap = i // len(changes)
        name = names[(i + lap) % len(names)]
        other = runs[names[(i + 2 * lap + 1 + lap % 4) % len(names)]]
        chance = random.Random(f"{change} {name} {lap}")
        table = runs[name].parent / "table.csv"
        with TemporaryDirectory() as place:
            copy = Path(place) / "run"
            shutil.copytree(runs[name], copy)
            sealed = change in forged.FORGERIES
            if sealed:
                forged.FORGERIES[change](copy, chance)
            else:
                files = [f for f in folders.FILES if (copy / f).exists() and (other / f).exists()]
                numbers = [file for file in files if file.endswith(".safetensors")]
                file = chance.choice(numbers if change in damage.NUMBERS else files)
                (damage.CHANGES | damage.NUMBERS)[change](copy, file, other, chance)
            yield change, partial(folders.attacked, copy, wanted[name], table, sealed=sealed)


def _tables(place: Path, changes: Sequence[str], *, command: bool) -> Iterator[Case]:
    """The tables, each changed in one way, without end."""
    every = sheets.sheets()
    names, path = list(every), place / "spoiled.csv"
    wanted = {}
    for name, sheet in every.items():
        path.write_text(sheet.text, "utf-8")
        wanted[name] = sheets.said(sheet.read(path))
    for i in count():
        change, lap = changes[i % len(changes)], i // len(changes)
        name = names[(i + lap) % len(names)]
        chance = random.Random(f"{change} {name} {lap} {command}")
        path.write_bytes(spoiling.SPOILS[change](every[name].text, chance))
        if command:
            yield change, partial(commands.fitted, every[name], path, wanted[name])
        else:
            yield change, partial(sheets.read_and_fitted, every[name], path, wanted[name])


def draw(table: pd.DataFrame) -> dict[str, Figure]:
    """The study's figures, by name."""
    return {"hostile": figures.answers(table)}


def headline(table: pd.DataFrame) -> str:
    """What came of run folders, of tables, and at what cost."""
    is_run = table["input"].isin(["damaged", "forged"])
    worst = table.loc[table["seconds"].idxmax()]
    limits = f"(limits: {SECONDS} s, {MEMORY // MIB} MiB)"
    return (
        f"{_of(table[is_run], 'run folders', 'run')} "
        f"{_of(table[~is_run], 'tables', 'table')} "
        f"The slowest case took {worst['seconds']:.1f} s ({worst['input']}, {worst['change']}), "
        f"and none grew the process by more than {table['mib'].max():.0f} MiB {limits}."
    )


def _of(table: pd.DataFrame, what: str, one: str) -> str:
    counts = table.groupby("answer")["cases"].sum()
    parts = [f"{counts.get(REFUSED, 0):,} were refused in one sentence"]
    said = {
        SAME: "gave the numbers that they had given before",
        ANOTHER: f"were another {one}, sound and told from the first",
        FLAGGED: "gave numbers that are not finite and said so",
    }
    parts += [f"{counts[name]:,} {words}" for name, words in said.items() if counts.get(name, 0)]
    kinds = ", ".join(f"{n:,} {name}" for name, n in _inputs(table))
    bad = counts.get(DEFECT, 0)
    ended = f"{bad:,} crashed, hung or gave a silent number" if bad else "none did anything else"
    return f"Of {table['cases'].sum():,} {what} ({kinds}) {', '.join(parts)}; {ended}."


def _inputs(table: pd.DataFrame) -> list[tuple[str, int]]:
    names = {"table": "read and fitted", "command line": "on the command line"}
    counts = table.groupby("input", sort=False)["cases"].sum()
    return [(names.get(str(name), str(name)), int(n)) for name, n in counts.items()]
