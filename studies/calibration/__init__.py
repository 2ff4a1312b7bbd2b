"""Which form of posterior can be believed: simulation-based calibration and coverage of each.

Tasks are drawn from a known prior, and the same prior is held: the exact posterior's intervals
then hold the truth as often as they say, and its ranks are uniform (Talts et al. 2018). Where an
interval does not, its form misleads. Afterwards the prior is fitted as well, to few tasks.
"""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from studies._framework import Result
from studies.calibration import figures, fitted, measure, power
from studies.calibration.figures import select
from studies.calibration.measure import NEW_ROW, SAID
from studies.calibration.problem import EXACT, PLANTED, POINT, RANK_ONE

QUESTION = "Which form of posterior can be believed, and by how much do the others mislead?"
HIGH = 0.95
QUICK = (
    measure.Size(cases=("linear, ρ = 0.9", "logistic, rare"), tasks=100, rows=(2,), shown=2,
                 draws=99),
    fitted.Size(fits={5: (2, 2)}, new=5, draws=99),
    power.Size(tasks=(100,), sets=50, draws=99),
)  # fmt: skip


def run(quick: bool, device: str) -> Result:
    """Under the true prior, under fitted ones, and what the test of ranks can find."""
    sizes = QUICK if quick else (measure.Size(), fitted.Size(), power.Size())
    rows = [
        *measure.measured(sizes[0], device),
        *fitted.fitted(sizes[1], device),
        *power.power(sizes[2]),
    ]
    table = pd.DataFrame(rows)
    whole = ["rows", "tasks", "flagged", "bin", "count", "fits", "judged", "sets"]
    table = table.astype(dict.fromkeys(whole, "Int64"))
    return Result(table)


def draw(table: pd.DataFrame) -> dict[str, Figure]:
    """The study's figures, by name."""
    return {
        "calibration": figures.coverage(table),
        "calibration_ranks": figures.ranks(table),
        "calibration_functionals": figures.functionals(table),
        "calibration_fitted": figures.fitted(table),
    }


def headline(table: pd.DataFrame) -> str:
    """Whether the check works, how far each form is off, and what fitting the prior costs."""
    return f"{_machinery(table)} {_forms(table)} {_priors(table)}"


def _machinery(table: pd.DataFrame) -> str:
    """The exact posterior passes, and a planted error is found."""
    passed, planted = (failures(table, form) for form in (EXACT, PLANTED))
    sets = select(table, part="power", form=PLANTED).sort_values("tasks").tail(2)
    found = [f"{row.detected:.0%} of sets of {int(row.tasks):,}" for row in sets.itertuples()]
    return (
        f"Under the true prior ranks in the exact posterior are not uniform (p < {power.STRICT:g}) "
        f"in {passed[0]} of {passed[1]} cases ({power.STRICT * passed[1]:.1f} expected), and with "
        f"an sd planted 10 % too small in {planted[0]} of {planted[1]} (it "
        f"is found in {_listed(found)} tasks)."
    )


def _forms(table: pd.DataFrame) -> str:
    """Each form's worst 95 % interval."""
    held = select(table, part="held", level=HIGH)
    weights = held[~held.quantity.isin([NEW_ROW, SAID])]
    worst = {
        form: said(worst_of(select(weights, form=form, data="all")))
        for form in ("best Gaussian", "best diagonal", "Laplace", "Laplace, diagonal")
    }
    alike = select(weights, form="Laplace", data="alike")
    one_sided = ""
    if len(alike):
        one_sided = f" ({said(worst_of(alike))} where a task's responses are all alike)"
    wide = select(weights, form=RANK_ONE)
    wide = wide.loc[wide.sd_ratio.idxmax()]
    points = select(held, form=POINT, quantity=NEW_ROW)
    point = worst_of(points)
    more = select(points, family=point.family, rows=points.rows.max()).iloc[0]
    return (
        f"At worst a 95 % interval (± one standard error) holds the truth in "
        f"{worst['best Gaussian']} as the best Gaussian, {worst['Laplace']} by Laplace{one_sided}, "
        f"{worst['Laplace, diagonal']} by Laplace without correlations, {worst['best diagonal']} "
        f"as the best diagonal Gaussian, and in {said(wide)} with one direction of the curvature, "
        f"whose sd is {wide.sd_ratio:.1f} times the right one; a point's interval for a new row "
        f"in {said(point)}, {share(more)} with {int(more.rows)}."
    )


def _priors(table: pd.DataFrame) -> str:
    """What is lost by fitting the prior, by number of tasks."""
    rows = select(table, part="fitted", level=HIGH, data=fitted.OWN)
    numbers = sorted(int(n) for n in rows.tasks.unique())
    return (
        f"With a prior fitted to {_listed([str(n) for n in numbers])} tasks they hold it in "
        f"{_by_tasks(rows, 'linear', fitted.LIKELIHOOD)} (linear, maximum likelihood; "
        f"{_by_tasks(rows, 'linear', fitted.AVOIDING)} with the boundary-avoiding hyper-prior) and "
        f"{_by_tasks(rows, 'logistic', fitted.LAPLACE)} (logistic, Laplace; "
        f"{_by_tasks(rows, 'logistic', fitted.QUADRATURE)} by quadrature, "
        f"{_by_tasks(rows, 'logistic', fitted.AVOIDING)} with that hyper-prior)."
    )


def failures(table: pd.DataFrame, form: str) -> tuple[int, int]:
    """How many cells of a form have ranks that are not uniform, and of how many."""
    cells = select(table, part="held", form=form)
    p = cells.drop_duplicates(["family", "rows", "data", "quantity"]).sbc_p.dropna()
    return int((p < power.STRICT).sum()), len(p)


def worst_of(rows: pd.DataFrame) -> pd.Series:
    """The row with the least coverage.

    Chosen by what the exact posterior predicts, where that is known: by what was measured, chance
    would have a part in the choice.
    """
    return rows.loc[rows.predicted.fillna(rows.coverage).idxmin()]


def said(row: pd.Series) -> str:
    """As "52.0 ± 1.6 % (linear, 5 rows)", the uncertainty of one standard error."""
    return f"{share(row)} ({row.family}, {int(row.rows)} row{'' if row.rows == 1 else 's'})"


def share(row: pd.Series) -> str:
    """As "52.0 ± 1.6 %"."""
    return f"{100 * row.coverage:.1f} ± {100 * row.coverage_se:.1f} %"


def _by_tasks(rows: pd.DataFrame, family: str, form: str) -> str:
    """As "70, 85 and 95 %", in the order of the number of tasks."""
    part = select(rows, family=family, form=form).sort_values("tasks")
    shares = [f"{100 * value:.0f}" for value in part.coverage]
    largest = 100 * part.coverage_se.max()
    return f"{_listed(shares)} % (± {largest:.0f} at most)"


def _listed(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if words[1:] else words)
