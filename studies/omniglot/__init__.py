"""Omniglot by the papers' methods, and by the official one-shot runs, with an honest protocol.

Characters of training and test are disjoint, with all their rotations. Each query image is judged
twice: from its support set alone (inductive), and normalised together with the other query images
(transductive, as the papers do). On a CPU the 5-way 1-shot column is trained at a reduced number of
outer steps, stated in the table; on CUDA all four columns at the papers' number. Everything trained
is kept under runs/ (or BAYESMETA_RUNS) and goes on from there.
"""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from studies._framework import Result
from studies.omniglot import drawing
from studies.omniglot.official_runs import PUBLISHED, errors
from studies.omniglot.settings import Size, cells
from studies.omniglot.training import measured, trained

QUESTION = "How well are new Omniglot characters told apart, and what decides it?"
QUICK = ("maml, 5-way 1-shot, random", "imaml, 5-way 1-shot, original", "imaml: λ = 2")


def run(quick: bool, device: str) -> Result:
    """Train, score and draw; `quick` draws glyphs instead of reading Omniglot."""
    size = Size.of(quick=quick, device=device)
    chosen = [c for c in cells(device) if not quick or c.name in QUICK]
    rows = [measured(cell, size, device) for cell in chosen if cell.part != "runs"]
    for cell in chosen:
        if cell.part == "runs":
            fit, seconds = trained(cell, size, device)
            common = cell.described() | {"iterations": len(fit.trace), "seconds": seconds}
            rows += [common | row for row in errors(fit)]
    table = pd.DataFrame(rows)
    trainings = table.drop_duplicates("name")["seconds"].sum()  # in this run or before
    return Result(table, before=float(trainings))


def draw(table: pd.DataFrame) -> dict[str, Figure]:
    """The study's figures, by name."""
    return drawing.figures(table)


def headline(table: pd.DataFrame) -> str:
    """Accuracy of each method, what helps, and the official runs."""
    main = table[(table["part"] == "table") & (table["ways"] == 5) & (table["shots"] == 1)]
    sentences = []
    for split, found in main.groupby("split", sort=False):
        each = ", ".join(
            f"{row.method} {row.inductive_accuracy:.1f} / {row.transductive_accuracy:.1f}"
            for row in found.itertuples()
        )
        few, many = found["iterations"].min(), found["iterations"].max()
        sentences.append(
            f"5-way 1-shot, {split} split, accuracy in % inductive / transductive after "
            f"{few:,.0f} to {many:,.0f} outer steps: {each}."
        )
    for method, found in table[table["part"] == "effect"].groupby("method", sort=False):
        if len(found) > 1:
            sentences.append(_effects(method, found))
    runs = table[table["part"] == "runs"]
    if len(runs):
        near = min(
            PUBLISHED, key=lambda name: abs(PUBLISHED[name] - runs["inductive_error"].mean())
        )
        sentences.append(
            f"On the {len(runs)} official runs within alphabets MAML errs on "
            f"{runs['inductive_error'].mean():.1f} % (transductive "
            f"{runs['transductive_error'].mean():.1f} %); {near}: {PUBLISHED[near]} %."
        )
    return " ".join(sentences)


def _effects(method: str, found: pd.DataFrame) -> str:
    """The settings of a method from best to worst."""
    ordered = found.sort_values("transductive_accuracy", ascending=False)
    each = ", ".join(
        f"{row.changed} {row.transductive_accuracy:.1f}" for row in ordered.itertuples()
    )
    steps = found["iterations"].iloc[0]
    return f"{method} with one thing changed, transductive after {steps:.0f} steps: {each}."
