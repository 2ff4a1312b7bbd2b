"""`bayesmeta check`: all diagnostics of a run as one object."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bayesmeta.commands import open_run
from bayesmeta.diagnostics import check, coverage

if TYPE_CHECKING:
    from bayesmeta.fit import Fit

LEVELS = (0.5, 0.9)
DRAWS = 1000
NUMBERS = 2e7  # of θ drawn at once
SEED = 0


def check_run(run: Path) -> dict[str, Any]:
    """The object that `bayesmeta check --json` prints.

    Args:
        run: a run folder.

    Returns:
        ok, whether no check asks for anything; findings, each with check, ok, sentence and the
        tasks flagged; effective_draws by task; coverage of central predictive intervals by level,
        on the rows the fit has seen; notes; run. What does not apply is None.
    """
    fitted = open_run(run)
    findings = check(fitted)
    return {
        "ok": all(finding.ok for finding in findings),
        "findings": [
            {
                "check": finding.check,
                "ok": finding.ok,
                "sentence": finding.sentence,
                "flagged": [{"task": flag.task, "why": flag.why} for flag in finding.flags],
            }
            for finding in findings
        ],
        "effective_draws": effective_draws(fitted),
        "coverage": _coverage(fitted),
        "notes": list(fitted.notes),
        "run": str(run),
    }


def effective_draws(fitted: Fit) -> dict[str, float] | None:
    """Share of draws of Q_i that are left after reweighting them to the posterior, by task.

        (Σ_s w_s)² / (S Σ_s w_s²),    w_s = p(y_i | θ_s) p(θ_s) / q_i(θ_s)

    It says how much a large k̂ matters: a heavy tail that few draws reach leaves it near 1.

    Args:
        fitted: a fit.

    Returns:
        In [1/S, 1]; None for point posteriors, which have no weights.
    """
    if fitted.posterior.gaussian.is_point:
        return None
    tasks, dim = fitted.posterior.mean.shape
    draws = int(min(DRAWS, max(DRAWS / 10, NUMBERS / (tasks * dim))))
    with torch.no_grad():
        log_w = fitted.log_ratio(draws, torch.Generator().manual_seed(SEED))
    share = (2 * log_w.logsumexp(0) - (2 * log_w).logsumexp(0)).exp() / draws
    return dict(zip(fitted.posterior.tasks, share.nan_to_num().tolist(), strict=True))


def _coverage(fitted: Fit) -> dict[str, float] | None:
    y = fitted.family.tensors.get("y")
    if y is None or fitted.likelihood is None or fitted.likelihood.name == "categorical":
        return None
    seen = fitted.predict(draws=DRAWS, seed=SEED)
    shares = coverage(seen.draws, y.to(seen.draws), levels=LEVELS, mask=seen.mask)
    return {str(level): float(share) for level, share in zip(LEVELS, shares, strict=True)}
