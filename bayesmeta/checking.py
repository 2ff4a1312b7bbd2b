"""`bayesmeta check`: whether the outer loop ended, and whether each Q_i fits its posterior."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import fmean, variance
from typing import TYPE_CHECKING, Any

import torch

from bayesmeta.arviz_export import pareto_k
from bayesmeta.commands import open_run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bayesmeta.fit import Fit

LARGEST_K = 0.7
STILL = 0.1  # nats: what M may still fall by, over a quarter of the steps
LARGEST_GAP = 1.0  # nats
LEVELS = (0.5, 0.9)
DRAWS = 1000
NUMBERS = 5e7  # of θ drawn at once
SEED = 0


def check_run(run: Path) -> dict[str, Any]:
    """The object that `bayesmeta check --json` prints.

    Args:
        run: a run folder.

    Returns:
        solver, evidence_kind, converged, drop (nats M fell by at the end); by task pareto_k,
        effective_draws (share of draws of Q_i left after reweighting them to the posterior) and
        reachability_gap (nats); coverage of predictive intervals by level on the rows the fit has
        seen; flagged, notes, run. What does not apply is None.
    """
    fitted = open_run(run)
    drop, noise = last_drop(fitted.trace, noisy=fitted.solver == "gradient")
    k, effective = _importance(fitted)
    gap = _reachability_gap(fitted)
    flagged = [{"task": flag.task, "why": flag.why} for flag in fitted.flagged]
    flagged += [
        {"task": task, "why": _heavy_tail(value, effective[task])}
        for task, value in k.items()
        if value is None or value > LARGEST_K
    ]
    flagged += [
        {
            "task": task,
            "why": f"adaptation from θ₀ ends {value:.2f} nats from the fitted posterior: "
            "use reset_every=, or more steps",
        }
        for task, value in gap.items()
        if abs(value) > LARGEST_GAP
    ]
    return {
        "solver": fitted.solver,
        "evidence_kind": fitted.evidence_kind,
        "converged": drop is None or drop <= STILL + 3 * noise,
        "drop": drop,
        "pareto_k": k or None,
        "effective_draws": effective or None,
        "reachability_gap": gap or None,
        "coverage": _coverage(fitted),
        "flagged": flagged,
        "notes": list(fitted.notes),
        "run": str(run),
    }


def last_drop(trace: Sequence[float], *, noisy: bool) -> tuple[float | None, float]:
    """How far M still fell at the end of its trace, and the standard error of that, in nats.

    Of a deterministic objective: the last step. Of a noisy one: the mean of the third quarter of
    the steps minus that of the last.

    Args:
        trace: M per outer step; values that are not finite are left out.
        noisy: whether M is an estimate at each step.

    Returns:
        The drop, None for a trace too short to tell, and its standard error.

    Example:
        >>> last_drop([9.0, 4.0, 3.5], noisy=False)
        (0.5, 0.0)
        >>> last_drop([8.0, 6.0, 5.0, 4.0, 3.0, 3.0, 2.0, 2.0], noisy=True)
        (1.0, 0.0)
    """
    values = [value for value in trace if math.isfinite(value)]
    if not noisy:
        return (values[-2] - values[-1], 0.0) if len(values) > 1 else (None, 0.0)
    quarter = len(values) // 4
    if quarter < 2:
        return None, 0.0
    before, after = values[-2 * quarter : -quarter], values[-quarter:]
    noise = math.sqrt((variance(before) + variance(after)) / quarter)
    return fmean(before) - fmean(after), noise


def _importance(fitted: Fit) -> tuple[dict[str, float | None], dict[str, float]]:
    """Pareto k̂, None where it is infinite, and share of effective draws by task.

    With weights w_s = p(y, θ_s) / q(θ_s) the share is (Σ w)² / (S Σ w²). Both dictionaries are
    empty for point posteriors, which have no weights.
    """
    if fitted.posterior.gaussian.is_point:
        return {}, {}
    tasks, dim = fitted.posterior.mean.shape
    draws = int(min(DRAWS, max(DRAWS / 5, NUMBERS / (tasks * dim))))
    ratios = fitted.log_ratio(draws, torch.Generator().manual_seed(SEED)).detach()
    share = (2 * ratios.logsumexp(0) - (2 * ratios).logsumexp(0)).exp() / draws
    k = [value if math.isfinite(value) else None for value in pareto_k(ratios).tolist()]
    names = fitted.posterior.tasks
    return dict(zip(names, k, strict=True)), dict(
        zip(names, share.nan_to_num().tolist(), strict=True)
    )


def _heavy_tail(k: float | None, effective: float) -> str:
    said = "infinite" if k is None else f"{k:.2f}"
    return (
        f"Pareto k̂ is {said} with {effective:.1%} of the draws effective: the posterior's tails "
        "are heavier than its Gaussian's; use covariance full, or compare with bm.nuts"
    )


def _reachability_gap(fitted: Fit) -> dict[str, float]:
    """By task; empty where there is none, as only joint descent can leave adaptation's reach."""
    if fitted.solver != "gradient":
        return {}
    return dict(zip(fitted.family.names, fitted.reachability_gap().tolist(), strict=True))


def _coverage(fitted: Fit) -> dict[str, float] | None:
    """Share of the observed responses inside their central predictive interval, by level."""
    y = fitted.family.tensors.get("y")
    if y is None or fitted.likelihood is None or fitted.likelihood.name == "categorical":
        return None
    prediction = fitted.predict(draws=DRAWS, seed=SEED)
    shares = {}
    for level in LEVELS:
        low, high = prediction.interval(level)
        inside = (low <= y) & (y <= high)
        shares[str(level)] = float(inside[prediction.mask].double().mean())
    return shares
