"""`bayesmeta demo`: the bundled radon data and eight schools, from CSV to figures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bayesmeta.commands import DATA, Choices, Columns, Progress, fit_table, plot_run
from bayesmeta.fit import Fit


@dataclass(frozen=True)
class Example:
    """One fit of the demonstration.

    Args:
        name: of its run folder.
        about: what it is, for a person.
        file: of the bundled data.
        columns, choices: as for `bayesmeta fit`.
        figures: to draw.
    """

    name: str
    about: str
    file: str
    columns: Columns
    choices: Choices
    figures: tuple[str, ...]


_SCHOOLS = Columns(task="school", y="y", standard_error="sigma")
EXAMPLES = (
    Example(
        name="radon",
        about="Radon in 919 Minnesota homes: every county has its own level and its own effect of "
        "measuring on the first floor, and counties with few homes lean on the others.",
        file="radon.csv",
        columns=Columns(formula="log_radon ~ floor + (floor | county)"),
        choices=Choices(),
        figures=("spread", "shrinkage", "predictive", "prior", "calibration"),
    ),
    Example(
        name="eight_schools",
        about="Eight schools, maximum likelihood: the prior sd goes to zero.",
        file="eight_schools.csv",
        columns=_SCHOOLS,
        choices=Choices(),
        figures=("spread",),
    ),
    Example(
        name="eight_schools_off_boundary",
        about="Eight schools again, with the boundary-avoiding hyper-prior: it does not.",
        file="eight_schools.csv",
        columns=_SCHOOLS,
        choices=Choices(hyperprior="boundary-avoiding"),
        figures=("spread",),
    ),
)


def run_examples(
    out: Path, *, overwrite: bool, progress: Progress
) -> Iterator[tuple[Example, Fit, Path, list[tuple[Path, str]]]]:
    """Fit and draw each example: its fit, its run folder, and each figure with its caption."""
    for example in EXAMPLES:
        run = out / example.name
        fitted = fit_table(
            DATA / example.file,
            example.columns,
            example.choices,
            out=run,
            overwrite=overwrite,
            progress=progress,
            checkpoint=example.choices.checkpoint(run, {}),
        )
        figures = [
            plot_run(run, name, out=None, coordinates=(), tasks=()) for name in example.figures
        ]
        yield example, fitted, run, figures
