"""What people read of the studies: `studies/README.md`, and the gallery in the project's README.

`studies/_which.py` writes the page *Which method?*.

Every sentence is computed from a committed table.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from studies._framework import Study, studies
from studies._which import fitted_coverage
from studies.calibration.fitted import AVOIDING, LIKELIHOOD

Finding = Callable[[pd.DataFrame], str]
HEAD = """# Studies

Each asks one question, and answers it from the table it writes: `python -m studies run NAME`
repeats it, `--quick` in seconds to see that it runs, `--device cuda` on a GPU. The sentences here
are computed from the tables in `figures/`; `python -m studies readme` writes this page.
"""


def _sinusoid_prior(table: pd.DataFrame) -> str:
    few = table[table["points"] == 3].set_index("method")["nll"]
    return (
        f"With three points of a new sinusoid a prior fitted to an MLP's weights predicts at "
        f"{round(few['fitted prior'], 2) + 0:.2f} nats a point; one network for all tasks at "
        f"{few['full pooling']:.2f}, a network by itself at {few['no pooling']:.0f}."
    )


def _few_shot_sinusoid(table: pd.DataFrame) -> str:
    ten = table[table["points"] == 10]
    own = ten[ten["own"]].set_index("method")
    least = ten.groupby("method")["mse"].min()
    best, maml = least.idxmin(), ten[ten["method"] == "maml"].nsmallest(1, "mse").iloc[0]
    return (
        f"After {own['seconds'].min():.0f} to {own['seconds'].max():.0f} s of training {best} has "
        f"the smallest squared error on new sinusoids with ten points, {least[best]:.3f}; MAML's "
        f"is {own.loc['maml', 'mse']:.3f} after one step and {maml['mse']:.3f} after "
        f"{maml['adaptation']}."
    )


def _quadratics(table: pd.DataFrame) -> str:
    two = table[table["panel"] == "example"].nlargest(1, "proved_minima").iloc[0]
    tried = table[table["panel"] == "search"].nlargest(1, "pairs").iloc[0]
    return (
        f"MAML on two smooth, strongly convex losses can have {two['proved_minima']:.0f} minima, "
        f"here at step size × curvature {two['alpha_L']:.2f} with {two['barrier']:.3f} nats "
        f"between them; of {tried['pairs']:,.0f} random pairs {tried['several_minima']:.0f} have."
    )


def _anchor(table: pd.DataFrame) -> str:
    factor = table[table["panel"] == "factor"]["factor"].mean()
    many = table[table["panel"] == "roughness"].groupby("tasks")["jump_share"].mean()
    return (
        f"As a mean over {many.index.max():.0f} tasks iMAML's objective looks smooth, but "
        f"{many.iloc[-1]:.0%} of its ups and downs are jumps that an implicit gradient does not "
        f"see: it gives {factor:.2f} of the slope."
    )


def _calibration(table: pd.DataFrame) -> str:
    held = fitted_coverage(table)
    fewest, most = min(n for _, n in held.index), max(n for _, n in held.index)
    return (
        f"A prior fitted to {fewest} tasks makes its 95 % intervals hold the truth in "
        f"{held[LIKELIHOOD, fewest]:.0%} of cases; the boundary-avoiding hyper-prior mends it to "
        f"{held[AVOIDING, fewest]:.0%}, {most} tasks to {held[LIKELIHOOD, most]:.0%}."
    )


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
    """The figures a reader should see first, each with one line."""
    shown = []
    for name, stem, finding in GALLERY:
        said = finding(pd.read_csv(figures / f"{name}.csv"))
        shown.append(f"![{stem}](figures/{stem}.png)\n\n*{said}* (`{name}`)")
    return "\n\n".join(shown)
