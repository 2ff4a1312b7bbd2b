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
from studies.omniglot.official_runs import errors
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
    """Who tells characters apart best, what decides it, and how budgets differ."""
    main = table[(table["part"] == "table") & (table["ways"] == 5) & (table["shots"] == 1)]
    first = main[main["split"] == main["split"].iloc[0]]
    return f"{_best(first)} {_decides(table)} {_beware(main, table)}"


def _named(method: str) -> str:
    """As "iMAML (gradient descent)", which a sentence does not take for two methods."""
    name, _, kind = method.partition(", ")
    return f"{name} ({kind})" if kind else name


def _best(rows: pd.DataFrame) -> str:
    """The best method by what the support set alone tells, and how far the others are behind."""
    first, *others = rows.sort_values("inductive_accuracy", ascending=False).itertuples()
    behind = ""
    if others:
        behind = f", before {_named(others[0].method)} with {others[0].inductive_accuracy:.1f} %"
    return (
        f"Of {len(rows)} method{'s' if others else ''} {_named(first.method)} tells new "
        f"characters apart best, naming {first.inductive_accuracy:.1f} % of images rightly from "
        f"one example of each of 5 after {first.iterations:,.0f} outer steps{behind}."
    )


def _decides(table: pd.DataFrame) -> str:
    """The settings of one method that matter most and least well."""
    effects = table[table["part"] == "effect"]
    method = effects["method"].iloc[0]
    ordered = effects[effects["method"] == method].sort_values("inductive_accuracy")
    worst, best = ordered.iloc[0], ordered.iloc[-1]
    return (
        f"One setting changed in {_named(method)} leaves {worst['inductive_accuracy']:.1f} % "
        f"({worst['changed']}) to {best['inductive_accuracy']:.1f} % ({best['changed']}) after "
        f"{best['iterations']:,.0f} outer steps."
    )


def _beware(main: pd.DataFrame, table: pd.DataFrame) -> str:
    """Unlike budgets, what looking at all query images adds, and the harder official runs."""
    added = (main["transductive_accuracy"] - main["inductive_accuracy"]).max()
    runs = table[table["part"] == "runs"]
    harder = ""
    if len(runs):
        harder = (
            f", and that within one alphabet, in {len(runs)} official runs, "
            f"{runs['method'].iloc[0]} errs on {runs['inductive_error'].mean():.1f} %"
        )
    return (
        f"Beware that methods had {main['iterations'].min():,.0f} to "
        f"{main['iterations'].max():,.0f} outer steps{',' if harder else ' and'} that normalising "
        f"all query images together, as the papers do, adds up to {added:.1f} points{harder}."
    )
