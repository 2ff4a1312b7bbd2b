"""Every real family of tests/data, fitted and set beside other programs' fits.

Linear-Gaussian families, by maximum likelihood and by REML: lme4, nlme and statsmodels maximise the
same function, so differences are of rounding and of where the optimisers stop. The references'
numbers have 6 to 16 digits. Binomial, Bernoulli and Poisson families: the fit maximises a lower
bound (the ELBO), the reference the marginal likelihood itself by adaptive Gauss-Hermite quadrature,
so the bound must lie below, and the estimates differ by what the Gaussian Q_i cost.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import bayesmeta as bm
from bayesmeta.plots import COLOURS, DOUBLE, style
from studies._framework import Result
from studies._sets import DATA, frame, linear_fit

QUESTION = "Do the fits agree with lme4, nlme, statsmodels and adaptive quadrature?"
TOLERANCES = {"nats": 1e-3, "theta0": 1e-4, "prior_sd": 1e-3, "noise": 1e-3}
SMALLEST_DRAWN = 1e-10


@dataclass(frozen=True)
class Case:
    """One family and its reference.

    Args:
        reference: its name in reference.json, without _ML or _REML.
        formula: for lme4 and here; coefficients inside the bar come first in a fit.
        order: of the fit's coefficients in the reference's list, where they differ.
    """

    reference: str
    formula: str
    likelihood: str = "gaussian"
    known_error: str | None = None
    order: tuple[int, ...] | None = None

    @property
    def file(self) -> str:
        return next(p.stem for p in DATA.glob("*.csv") if self.reference.startswith(p.stem))


def _radon(y: str) -> list[Case]:
    return [
        Case(f"radon {y}~floor 1|county", f"{y} ~ floor + (1 | county)"),
        Case(f"radon {y}~floor floor|county", f"{y} ~ floor + (floor | county)"),
        Case(f"radon {y}~floor+log_uranium 1|county", f"{y} ~ floor + log_uranium + (1 | county)"),
    ]


_SQUARE = "height ~ age + I(age ** 2)"
EXACT = [
    Case("sleepstudy Days|Subject", "Reaction ~ Days + (Days | Subject)"),
    Case("sleepstudy 1|Subject", "Reaction ~ Days + (1 | Subject)"),
    *_radon("log_radon"),
    *_radon("log_radon_gh"),
    Case("eight_schools known-variance", "y ~ 1 + (1 | school)", known_error="sigma"),
    Case("dyestuff 1|Batch", "Yield ~ 1 + (1 | Batch)"),
    Case("orthodont age11|Subject", "distance ~ age11 + (age11 | Subject)"),
    Case("orthodont age|Subject", "distance ~ age + (age | Subject)"),
    Case(
        "orthodont Sex*age11 age11|Subject",
        "distance ~ age11 + female + female:age11 + (age11 | Subject)",
        order=(0, 2, 1, 3),
    ),
    Case("orthodont Female age, 1|Subject", "distance ~ age + (1 | Subject)"),
    Case("orthodont Female age|Subject", "distance ~ age + (age | Subject)"),
    Case("oxboys age|Subject", "height ~ age + (age | Subject)"),
    Case("oxboys quad|Subject", f"{_SQUARE} + (age + I(age ** 2) | Subject)"),
    Case(
        "oxboys quartic, quad|Subject",
        f"{_SQUARE} + I(age ** 3) + I(age ** 4) + (age + I(age ** 2) | Subject)",
    ),
    Case("chickweight Time|Chick", "weight ~ Time + (Time | Chick)"),
    Case("hsb82 cses|school", "mAch ~ cses + (cses | school)"),
    Case("insteval y~service 1|d", "y ~ service + (1 | d)"),
    Case("insteval y~service service|d", "y ~ service + (service | d)"),
]
BOUNDS = [
    Case("cbpp 1,(1|herd) AGQ25", "incidence/size ~ 1 + (1 | herd)", "binomial"),
    Case("cbpp period,(1|herd) AGQ25", "incidence/size ~ C(period) + (1 | herd)", "binomial"),
    Case("baseball 1,(1|player) AGQ25", "Hits/At-Bats ~ 1 + (1 | LastName)", "binomial"),
    Case("contraception 1,(1|district) AGQ25", "use ~ 1 + (1 | district)", "bernoulli"),
    Case(
        "contraception urban,(urban|district) AGQ15x15",
        "use ~ urban + (urban | district)",
        "bernoulli",
    ),
    Case(
        "contraception covars,(1|urban:dist) AGQ25",
        "use ~ age + I(age ** 2) + urban + livch + (1 | urban:district)",
        "bernoulli",
    ),
    Case("grouseticks YEAR,(1|BROOD) AGQ", "TICKS ~ C(YEAR) + (1 | BROOD)", "poisson"),
]
QUICK = ("sleepstudy Days|Subject", "eight_schools known-variance", "dyestuff 1|Batch")
# By adaptive quadrature, agreeing with lme4's glmer; reference.json does not have it.
GROUSETICKS = {
    "m2ll": 2029.7821,
    "beta": [0.352087, 1.343291, -0.901493],
    "sd": [1.27535],
}


def run(quick: bool, device: str) -> Result:
    """Fit everything; `device` is where."""
    references = json.loads((DATA / "reference" / "reference.json").read_text("utf-8"))
    references["grouseticks YEAR,(1|BROOD) AGQ"] = GROUSETICKS
    exact = [case for case in EXACT if not quick or case.reference in QUICK]
    jobs = [(case, f"{case.reference}_{name}", name) for case in exact for name in ("ML", "REML")]
    jobs += [(case, case.reference, "ELBO") for case in (BOUNDS[1:2] if quick else BOUNDS)]
    rows = [_compare(case, name, references[key], device) for case, key, name in jobs]
    return Result(pd.DataFrame(rows))


def draw(table: pd.DataFrame) -> dict[str, Figure]:
    """The study's figures, by name."""
    return {"reference_fits": draw_exact(table), "reference_fits_bounds": draw_bounds(table)}


def headline(table: pd.DataFrame) -> str:
    """The largest differences, and the largest gap between bound and marginal likelihood."""
    exact, bounds = _kinds(table)
    worst = {name: exact[name].abs().max() for name in TOLERANCES}
    inside = all(worst[name] <= limit for name, limit in TOLERANCES.items())
    return (
        f"{len(exact)} linear-Gaussian fits, by maximum likelihood and REML, agree with the "
        f"references to {worst['nats']:.0e} nats of log-likelihood, "
        f"{'all' if inside else 'not all'} within tolerance. "
        f"They differ by at most {worst['theta0']:.0e} in θ₀, {worst['prior_sd']:.0e} in the prior "
        f"sds and {worst['noise']:.0e} in the noise sd, relative to the references. "
        f"Beware that of the other likelihoods only a bound is fitted, which in {len(bounds)} "
        f"fit{'s' if len(bounds) > 1 else ''} lies up to {-bounds['nats'].min():.2g} nats below "
        f"the marginal log-likelihood, with coefficients off by up to "
        f"{100 * bounds['theta0'].max():.1g} %."
    )


def _kinds(table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    bound = table["criterion"] == "ELBO"
    return table[~bound], table[bound]


def _compare(case: Case, criterion: str, reference: dict, device: str) -> dict[str, object]:
    started = time.perf_counter()
    fit = linear_fit(
        case.formula,
        _frame(case),
        likelihood=case.likelihood,
        known_error=case.known_error,
        reml=criterion == "REML",
        device=device,
    )
    seconds = time.perf_counter() - started
    coefficients = [*fit.prior.mean.tolist(), *_shared(fit)]
    if case.order:
        coefficients = [coefficients[i] for i in case.order]
    sd, correlation = _spread(reference)
    expected = reference["ll"] if "ll" in reference else -reference["m2ll"] / 2
    found = {
        "fit": case.reference.partition(" AGQ")[0],
        "criterion": criterion,
        "kind": fit.evidence_kind,
        "log_evidence": fit.log_evidence,
        "reference": expected,
        "nats": fit.log_evidence - expected,
        "theta0": _relative(coefficients, reference["beta"]),
        "prior_sd": _relative(fit.prior.sd().tolist(), sd),
        "correlation": float("nan"),
        "noise": float("nan"),
        "seconds": seconds,
    }
    if len(sd) > 1:
        ours = fit.prior.correlation().cpu().numpy()
        found["correlation"] = float(np.abs(ours - correlation).max())
    if "s2" in reference and fit.noise is not None:
        found["noise"] = _relative([fit.noise], [reference["s2"] ** 0.5])
    return found


def _frame(case: Case) -> pd.DataFrame:
    table = frame(case.file)
    if case.file != "orthodont":
        return table
    if "Female" in case.reference:
        table = table[table["Sex"] == "Female"].reset_index(drop=True)
    # As nlme codes the first of its levels, Male, -1 and Female +1.
    female = np.where(table["Sex"] == "Female", 1.0, -1.0)
    return table.assign(age11=table["age"] - 11.0, female=female)


def _shared(fit: bm.Fit) -> list[float]:
    names = (fit.model.spec or {}).get("shared_names", [])
    return [float(fit.shared[name]) for name in names]


def _spread(reference: dict) -> tuple[np.ndarray, np.ndarray]:
    """Prior sds and correlations of a reference."""
    if "sd" in reference:
        return np.array(reference["sd"]), np.eye(len(reference["sd"]))
    covariance = np.array(reference["S"])
    sd = np.sqrt(covariance.diagonal())
    with np.errstate(invalid="ignore"):
        return sd, covariance / np.outer(sd, sd)


def _relative(ours: list[float], reference: list[float] | np.ndarray) -> float:
    """The largest relative difference; where the reference is 0, the largest value."""
    a, b = np.array(ours), np.array(reference)
    if a.shape != b.shape:
        raise ValueError(f"{len(a)} values against {len(b)} of the reference")
    return float((np.abs(a - b) / np.where(b == 0, 1.0, np.abs(b))).max())


def draw_exact(table: pd.DataFrame) -> Figure:
    """|difference| from the reference for each linear-Gaussian fit, with its tolerance."""
    exact, _ = _kinds(table)
    fits = list(exact["fit"].unique())[::-1]
    titles = {
        "nats": "log-likelihood\n(nats)",
        "theta0": "θ₀, shared\n(relative)",
        "prior_sd": "prior sd\n(relative)",
        "noise": "noise sd\n(relative)",
    }
    with style():
        figure = Figure(figsize=(DOUBLE, 1.1 + 0.155 * len(fits)), layout="constrained")
        panels = figure.subplots(1, len(titles), sharey=True)
        for ax, (column, title) in zip(panels, titles.items(), strict=True):
            for criterion, size, face in (("ML", 3, COLOURS["joint"]), ("REML", 6, "none")):
                rows = exact[exact["criterion"] == criterion]
                ax.plot(
                    rows[column].abs().clip(lower=SMALLEST_DRAWN),
                    [fits.index(f) for f in rows["fit"]],
                    linestyle="", marker="o", markersize=size, label=criterion,
                    color=COLOURS["joint"], markerfacecolor=face,
                )  # fmt: skip
            ax.axvline(
                TOLERANCES[column], color=COLOURS["reference"], linestyle="--", label="tolerance"
            )
            ax.grid(axis="y", linewidth=0.3)
            ax.set(xscale="log", title=title, xlabel="|difference|", xlim=(SMALLEST_DRAWN / 3, 0.1))
            ax.set_xticks([SMALLEST_DRAWN, 1e-6, 1e-2], ["≤ $10^{-10}$", "$10^{-6}$", "$10^{-2}$"])
        panels[0].set_yticks(range(len(fits)), fits)
        handles, names = panels[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=3, frameon=False)
    return figure


def draw_bounds(table: pd.DataFrame) -> Figure:
    """How far each ELBO lies below the marginal log-likelihood, and what it costs the estimates."""
    _, bounds = _kinds(table)
    bounds = bounds[::-1]
    titles = {
        "nats": "bound below\nlog-likelihood, nats",
        "theta0": "difference of\ncoefficients, relative",
        "prior_sd": "difference of\nprior sd, relative",
    }
    with style():
        figure = Figure(figsize=(DOUBLE, 1.0 + 0.18 * len(bounds)), layout="constrained")
        panels = figure.subplots(1, len(titles), sharey=True)
        for ax, (column, title) in zip(panels, titles.items(), strict=True):
            values = -bounds[column] if column == "nats" else bounds[column]
            ax.plot(
                values, range(len(bounds)), linestyle="", marker="o", markersize=4,
                color=COLOURS["joint"],
            )  # fmt: skip
            ax.set(xscale="log", xlabel=title)
            ax.grid(axis="y", linewidth=0.3)
        panels[0].set_yticks(range(len(bounds)), bounds["fit"])
    return figure
