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
from studies.calibration.problem import EXACT, PLANTED

QUESTION = "Which form of posterior can be believed, and by how much do the others mislead?"
HIGH = 0.95
APPROXIMATIONS = {
    "best Gaussian": "the best Gaussian",
    "Laplace": "the Laplace approximation",
    "best diagonal": "the best diagonal Gaussian",
}
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
    """How far each form is off, what fitting the prior costs, and what the check can find."""
    return f"{_forms(table)} {_priors(table)} {_machinery(table)}"


def _forms(table: pd.DataFrame) -> str:
    """Each approximation's worst 95 % interval, the best of them first."""
    held = select(table, part="held", level=HIGH, data="all")
    weights = held[~held.quantity.isin([NEW_ROW, SAID])]
    worst = pd.DataFrame({name: worst_of(select(weights, form=name)) for name in APPROXIMATIONS}).T
    worst = worst.sort_values("coverage", ascending=False)
    least, *others = ((APPROXIMATIONS[str(name)], row) for name, row in worst.iterrows())
    told = _listed([f"of {name} in {share(row)}" for name, row in others])
    return (
        f"Of {len(worst)} approximations {least[0]} misleads least: at worst its 95 % intervals "
        f"hold a weight in {said(least[1])}, those {told} (± one standard error)."
    )


def _priors(table: pd.DataFrame) -> str:
    """What is lost by fitting the prior to few tasks, and how many mend it."""
    rows = select(table, part="fitted", level=HIGH, data=fitted.OWN, family="linear")
    ends = (rows.tasks.min(), rows.tasks.max())
    few, many = (select(rows, tasks=n).set_index("form") for n in ends)
    return (
        f"With a prior fitted to {int(few.tasks.iloc[0])} linear tasks by maximum likelihood they "
        f"hold it in {share(few.loc[fitted.LIKELIHOOD])}, with a boundary-avoiding hyper-prior in "
        f"{share(few.loc[fitted.AVOIDING])}, and with {int(many.tasks.iloc[0])} tasks in "
        f"{share(many.loc[fitted.LIKELIHOOD])} even without it."
    )


def _machinery(table: pd.DataFrame) -> str:
    """The exact posterior passes, and how often a planted error is found."""
    failed, cases = failures(table, EXACT)
    found = select(table, part="power", form=PLANTED).sort_values("tasks").tail(2).iloc[0]
    return (
        f"Beware that the check is blunt: ranks in the exact posterior are not uniform (p < "
        f"{power.STRICT:g}) in {failed} of {cases} cases, as chance has it in "
        f"{power.STRICT * cases:.1f}, but an sd 10 % too small is found in "
        f"{100 * found.detected:.0f} % of sets of {int(found.tasks):,} tasks."
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


def _listed(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if words[1:] else words)
