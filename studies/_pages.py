"""What people read of the studies: `studies/README.md`, and the gallery in the project's README.

`studies/_which.py` writes the page *Which method?*.

Every sentence is computed from a committed table.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from bayesmeta.results import InputError
from studies._framework import Study, studies
from studies._said import (
    adapted,
    at,
    count,
    finite,
    fitted_coverage,
    listed,
    nats,
    percent,
    tied,
    whole,
)
from studies.calibration.figures import HIGH
from studies.calibration.fitted import AVOIDING, LIKELIHOOD
from studies.few_shot_sinusoid.drawing import NAMES

Finding = Callable[[pd.DataFrame], str]
HEAD = """# Studies

Each asks one question, and answers it from the table it writes: `python -m studies run NAME`
repeats it, `--quick` in seconds to see that it runs, `--device cuda` on a GPU. The sentences here
are computed from the tables in `figures/`; `python -m studies readme` writes this page.
"""


def _sinusoid_prior(table: pd.DataFrame) -> str:
    nll = table[table["points"] == 3].set_index("method")["nll"]
    return (
        "With three points of a new sinusoid a prior fitted to an MLP's weights predicts at "
        f"{nats(at(nll, 'fitted prior'))} nats a point, one network for all tasks at "
        f"{nats(at(nll, 'full pooling'))}, and a network by itself at "
        f"{at(nll, 'no pooling'):.0f} (lower is better)."
    )


def _few_shot_sinusoid(table: pd.DataFrame) -> str:
    seconds, best = adapted(table, 10)
    first = tied(best, "mse_low", "mse_high")
    least = f"{listed([NAMES[name] for name in first])} {'has' if len(first) == 1 else 'have'}"
    values = listed([f"{best['mse'][name]:.3f}" for name in first])
    said = f"After {seconds} s of training {least} the smallest squared error on new sinusoids "
    said += f"with ten points, {values}"
    if len(first) > 1:
        said += " (95 % intervals overlap)"
    steps = table[(table["points"] == 10) & (table["method"] == "maml")]
    once = at(steps.set_index(steps["adaptation"].astype(str))["mse"], "1")
    most = best["adaptation"].astype(str).get("maml")
    later = "" if most == "1" else f" and {best['mse']['maml']:.3f} after {most}"
    return f"{said}; MAML's is {once:.3f} after one step{later}."


def _quadratics(table: pd.DataFrame) -> str:
    rows = table[table["panel"] == "example"]
    found = rows.loc[whole(rows["proved_minima"]).idxmax()]
    search = table[table["panel"] == "search"]
    tried = search.loc[whole(search["pairs"]).idxmax()]
    several = finite(tried["several_minima"], "several_minima")
    share = f"{several:,.0f} of {count(tried['pairs'], 'random pair')}"
    if found["proved_minima"] < 2:
        return (
            "MAML on two smooth, strongly convex losses has one minimum wherever it was proved, "
            f"and several in {share}."
        )
    curved, barrier = (finite(found[name], name) for name in ("alpha_L", "barrier"))
    return (
        "MAML on two smooth, strongly convex losses can have "
        f"{count(found['proved_minima'], 'minimum').replace('minimums', 'minima')}, here at step "
        f"size × curvature {curved:.3f} with {barrier:.3f} nats between them; there are several in "
        f"{share}."
    )


def _anchor(table: pd.DataFrame) -> str:
    factor = whole(table.loc[table["panel"] == "factor", "factor"]).mean()
    rough = table[table["panel"] == "roughness"]
    most = whole(rough["tasks"]).max()
    share = whole(rough.loc[rough["tasks"] == most, "jump_share"]).mean()
    return (
        f"In the mean over {count(most, 'task')} {percent(share)} of the ups and downs of iMAML's "
        "objective are jumps, which an implicit gradient does not see: it gives "
        f"{nats(factor)} of the slope."
    )


def _calibration(table: pd.DataFrame) -> str:
    held = fitted_coverage(table)["coverage"]
    tasks = sorted({n for _, n in held.index})
    plain, mended = (percent(at(held, (form, tasks[0]))) for form in (LIKELIHOOD, AVOIDING))
    said = (
        f"With a prior fitted to {count(tasks[0], 'task')} {percent(HIGH)} intervals hold the "
        f"truth in {plain} of cases, and in {mended} with the boundary-avoiding hyper-prior"
    )
    if len(tasks) > 1:
        said += f"; fitted to {tasks[-1]} they do in {percent(at(held, (LIKELIHOOD, tasks[-1])))}"
    return f"{said}."


GALLERY: tuple[tuple[str, str, Finding], ...] = (
    ("sinusoid_prior", "sinusoid_prior_scores", _sinusoid_prior),
    ("anchor", "anchor_sum", _anchor),
    ("quadratics", "quadratics_convexity", _quadratics),
    ("calibration", "calibration_fitted", _calibration),
    ("few_shot_sinusoid", "few_shot_sinusoid", _few_shot_sinusoid),
)
"""Study, figure, and what to see there in one line."""


def page(figures: Path) -> str:
    """All studies that have a result: question, answer, figures, and how long it took."""
    parts = [HEAD]
    for name, study in studies().items():
        if study.record(figures) is not None:
            parts.append(_section(name, study, figures))
    return "\n".join(parts)


def _section(name: str, study: Study, figures: Path) -> str:
    record = study.record(figures)
    assert record is not None
    drawn = [file for file in record["figures"] if file.endswith((".png", ".gif"))]
    pictures = "\n\n".join(f"![{Path(file).stem}](../figures/{file})" for file in drawn)
    took = f"{record['seconds']:,.0f} s on {record['machine']}, {record['device']}"
    return (
        f"## {name}\n\n**{study.module.QUESTION}** {record['headline']}\n\n{pictures}\n\n"
        f"*`python -m studies run {name}`: {took}. [Table](../figures/{name}.csv).*\n"
    )


def gallery(figures: Path) -> str:
    """The figures a reader should see first, each with one line.

    Raises:
        InputError: a table lacks what is said of it.
    """
    shown = []
    for name, stem, finding in GALLERY:
        try:
            said = finding(pd.read_csv(figures / f"{name}.csv"))
        except InputError as error:
            raise InputError(f"figures/{name}.csv: {error}") from error
        shown.append(f"![{stem}](figures/{stem}.png)\n\n*{said}* (`{name}`)")
    return "\n\n".join(shown)
