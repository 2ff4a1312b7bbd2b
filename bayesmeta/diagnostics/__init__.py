"""Can a fit be trusted: convergence, Pareto k̂, calibration, and all checks in one call."""

from __future__ import annotations

from bayesmeta.diagnostics.calibration import (
    calibration_mean_absolute,
    calibration_rmse,
    coverage,
    expected_calibration_error,
    predictive_nll,
    rank_uniformity,
    sbc_ranks,
)
from bayesmeta.diagnostics.checks import check
from bayesmeta.diagnostics.convergence import (
    Khat,
    TraceConvergence,
    khat,
    trace_convergence,
)
from bayesmeta.diagnostics.findings import Finding

__all__ = [
    "Finding",
    "Khat",
    "TraceConvergence",
    "calibration_mean_absolute",
    "calibration_rmse",
    "check",
    "coverage",
    "expected_calibration_error",
    "khat",
    "predictive_nll",
    "rank_uniformity",
    "sbc_ranks",
    "trace_convergence",
]
