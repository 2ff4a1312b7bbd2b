"""What other programs say: their estimates, and the tasks' posteriors that follow from them.

Estimates are those of tests/data/reference (lme4, nlme, adaptive Gauss-Hermite quadrature). Those
of the GLMMs and curves come without standard errors there: `ERRORS` are of lme4 1.1-31 (glmer) and
nlme 3.1-162 run on the same tables, the GLMMs by quadrature where one weight varies.
"""

from __future__ import annotations

import json
import time
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

import bayesmeta as bm
from studies._sets import DATA, frame
from studies.real_families.sets import Set
from studies.reference_fits import GROUSETICKS

ERRORS = {
    "cbpp": [0.2335114, 0.3067682, 0.3267672, 0.4275957],
    "contraception": [0.1027622, 0.1682404],
    "grouseticks": [0.2364904, 0.3119268, 0.3375841],
    "baseball": [0.08245894],
    "orange": [16.15412, 35.15204, 27.14805],
    "theoph": [0.0630243, 0.19624598, 0.08059513],
}
GROUSETICKS_LAPLACE = {
    "m2ll": 2030.587544,
    "beta": [0.35144503, 1.34493088, -0.90417934],
    "sd": [1.2665],
}
BLUPS = {
    "sleepstudy": "sleepstudy",
    "radon": "radon_log_radon_floor",
    "orthodont": "orthodont",
    "oxboys": "oxboys_quad",
    "hsb82": "hsb82",
}
MIXED = {
    "sleepstudy": ("Reaction ~ Days", "~Days", "Subject"),
    "radon": ("log_radon ~ floor", "~floor", "county"),
    "dyestuff": ("Yield ~ 1", "~1", "Batch"),
    "orthodont": ("distance ~ I(age - 11)", "~I(age - 11)", "Subject"),
    "oxboys": ("height ~ age + I(age ** 2)", "~age + I(age ** 2)", "Subject"),
    "chickweight": ("weight ~ Time", "~Time", "Chick"),
    "hsb82": ("mAch ~ cses", "~cses", "school"),
}


@dataclass(frozen=True)
class Reference:
    """A maximum-likelihood fit by another program.

    Args:
        log_likelihood: in nats, all constants in it.
        mean: of the adapted weights, then the shared ones.
        error: standard errors of `mean`.
        sd: of the prior.
        covariance: of the prior; None where only the sds are known.
        noise: sd, where it is estimated.
        seconds: taken, where it was run here.
    """

    log_likelihood: float
    mean: np.ndarray
    error: np.ndarray
    sd: np.ndarray
    covariance: np.ndarray | None = None
    noise: float | None = None
    seconds: float | None = None


def recorded(one: Set, *, laplace: bool = False) -> Reference:
    """The reference of a set, by maximum likelihood or, if asked for, Laplace's method."""
    known = json.loads((DATA / "reference" / "reference.json").read_text("utf-8"))
    known["grouseticks YEAR,(1|BROOD) AGQ"] = GROUSETICKS
    known["grouseticks YEAR,(1|BROOD) Laplace"] = GROUSETICKS_LAPLACE
    name = one.laplace if laplace else one.reference
    if name is None:
        raise ValueError(f"{one.name} has no reference by Laplace's method")
    values = known[f"{name}_ML"] if one.linear_gaussian else known[name]
    mean = np.array(values.get("beta", values.get("theta0")))
    covariance = np.array(values["S"]) if "S" in values else None
    if covariance is None:
        sd = np.atleast_1d(values.get("sd", values.get("sd_Asym")))
    else:
        sd = np.sqrt(covariance.diagonal())
    noise = values.get("sigma", values["s2"] ** 0.5 if "s2" in values else None)
    ll = values["ll"] if "ll" in values else -values["m2ll"] / 2
    error = np.array(values.get("se", ERRORS.get(one.name)))
    return Reference(ll, mean, error, sd, covariance, noise)


def by_statsmodels(one: Set) -> Reference | None:
    """MixedLM's fit, run now; None for sets that are not asked of it."""
    if one.name not in MIXED:
        return None
    import statsmodels.formula.api as smf

    fixed, random, task = MIXED[one.name]
    table = frame(one.name)
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = smf.mixedlm(fixed, table, groups=table[task], re_formula=random)
        # Its default returns infinite likelihoods on some of these tables.
        fit = model.fit(reml=False, method=["nm", "bfgs"])
    seconds = time.perf_counter() - started
    covariance = np.asarray(fit.cov_re)
    count = len(fit.fe_params)
    return Reference(
        log_likelihood=float(fit.llf),
        mean=np.asarray(fit.fe_params),
        error=np.asarray(fit.bse)[:count],
        sd=np.sqrt(covariance.diagonal()),
        covariance=covariance,
        noise=float(fit.scale) ** 0.5,
        seconds=seconds,
    )


def posteriors(
    family: bm.TaskFamily, mean: np.ndarray, covariance: np.ndarray, noise: float | None
) -> tuple[np.ndarray, np.ndarray]:
    """(task, dim) exact means and sds of linear tasks with Gaussian noise.

        C = (I + S ZᵀZ/σ²)⁻¹ S,    m = θ₀ + C Zᵀ(y − Zθ₀)/σ²

    which also holds where S is singular. Rows with a known standard error have that for σ.
    """
    assert family.mask is not None
    dim = len(mean)
    means, sds = np.empty((len(family), dim)), np.empty((len(family), dim))
    tensors: dict[str, Any] = {k: v.numpy() for k, v in family.tensors.items()}
    mask = family.mask.numpy()
    for i, real in enumerate(mask):
        z, y = tensors["x"][i, real][:, :dim], tensors["y"][i, real]
        sigma = tensors["standard_error"][i, real] if noise is None else np.full(len(y), noise)
        weighted = z / sigma[:, None] ** 2
        spread = np.linalg.solve(np.eye(dim) + covariance @ (z.T @ weighted), covariance)
        means[i] = mean + spread @ (weighted.T @ (y - z @ mean))
        sds[i] = np.sqrt(spread.diagonal().clip(min=0))
    return means, sds


def blups(one: Set, tasks: tuple[str, ...]) -> np.ndarray | None:
    """(task, dim) best linear unbiased predictions as recorded; None where there are none."""
    if one.name not in BLUPS:
        return None
    table = pd.read_csv(DATA / "reference" / f"{BLUPS[one.name]}_blups_ML.csv", dtype={0: str})
    table = table.set_index(table.columns[0])
    return table.filter(like="coef_").loc[list(tasks)].to_numpy()
