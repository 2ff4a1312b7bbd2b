"""Can a fit be trusted: convergence, Pareto k̂, calibration, and all checks in one call.

And before a fit: which estimator of a random meta-gradient is worth its cost.
"""

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
from bayesmeta.diagnostics.estimators import (
    Estimator,
    EstimatorComparison,
    compare_estimators,
)
from bayesmeta.diagnostics.evaluations import gradient_evaluations
from bayesmeta.diagnostics.few_shot import FewShotScores, Scores, few_shot_scores
from bayesmeta.diagnostics.findings import Finding
from bayesmeta.diagnostics.precision import PrecisionError, precision_error

__all__ = [
    "Estimator",
    "EstimatorComparison",
    "FewShotScores",
    "Finding",
    "Khat",
    "PrecisionError",
    "Scores",
    "TraceConvergence",
    "calibration_mean_absolute",
    "calibration_rmse",
    "check",
    "compare_estimators",
    "coverage",
    "expected_calibration_error",
    "few_shot_scores",
    "gradient_evaluations",
    "khat",
    "precision_error",
    "predictive_nll",
    "rank_uniformity",
    "sbc_ranks",
    "trace_convergence",
]
