"""How well the meta-gradient of an adapted fit was computed: its two solves, and an audit."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from bayesmeta.amortised.estimate import FEW_WEIGHTS
from bayesmeta.amortised.report import Report
from bayesmeta.diagnostics.findings import Finding, named
from bayesmeta.fitted import Fit
from bayesmeta.gradients.implicit import Implicit
from bayesmeta.objective import Evidence
from bayesmeta.posteriors.proximal import Proximal
from bayesmeta.results import Flag, InputError

AUDITED = 3
LARGEST_ERROR = 0.1  # of the exact gradient's length


def meta_gradients(fit: Fit, *, seed: int = 0) -> Finding:
    """The gradient by θ₀ at the fitted values, task by task, and against the exact answer.

    A rule that leaves out part of the derivative on purpose (first order, truncated, Reptile) is
    compared too, but its difference asks for nothing. Beyond some 10,000 weights there is no audit.

    Args:
        fit: whose Q_i are functions of θ₀.
        seed: of splits and draws.
    """
    if _without_precision(fit):
        said = (
            "not computed: Σ₀ is singular, and adaptation under it has no Λ = Σ₀⁻¹ to be written "
            "with; see the boundary"
        )
        return Finding("meta_gradient", True, said)
    large = fit.model.dim > FEW_WEIGHTS
    try:
        report = fit.meta_gradient(audit=0 if large else AUDITED, seed=seed).report
    except InputError as error:
        return Finding("meta_gradient", True, f"not computed: {error}")
    own = fit.choices.whole_gradient
    far = [task for task, audit in report.audits.items() if not audit.error <= LARGEST_ERROR]
    flags = report.flagged()
    if own:
        flags += [Flag(task, _why(report.audits[task].error, report)) for task in far]
    said = _solves(report, fit) + _audit(report, own)
    if large:
        said += (
            f"; not audited: the exact answer is dear with {fit.model.dim:,} weights, ask for "
            "fit.meta_gradient(audit=1)"
        )
    if flags:
        said += f"; look at {named(_once(flags))}"
    return Finding("meta_gradient", not flags, said, tuple(flags), details(report))


def details(report: Report) -> dict[str, Any]:
    """A report as numbers by task, for JSON.

    Args:
        report: of a meta-gradient.
    """
    columns = {
        "stationarity": report.stationarity,
        "relative_stationarity": report.relative_stationarity,
        "solve_residual": report.solve_residual,
        "steps": report.steps,
        "solve_steps": report.solve_steps,
        "negative_curvature": report.negative_curvature,
    }
    values = {name: column.tolist() for name, column in columns.items()}
    tasks = []
    for i, task in enumerate(report.names):
        audit = report.audits.get(task)
        row = {name: _plain(column[i]) for name, column in values.items()}
        error = None if audit is None else _plain(audit.error)
        tasks.append({"task": task, **row, "result": report.result[i].name, "audit_error": error})
    return {"curvature": report.curvature, "tasks": tasks}


def _without_precision(fit: Fit) -> bool:
    """Whether adaptation is anchored by a Σ₀ that cannot be inverted."""
    posterior, prior = fit.choices.posterior, fit.prior.gaussian
    if not isinstance(posterior, Proximal) or posterior.lam is not None:
        return False
    return not bool((prior.log_det() > -torch.inf) & prior.sd().min().gt(0))


def _solves(report: Report, fit: Fit) -> str:
    """Inner steps, stationarity and, where there is one, the linear solve, over all tasks."""
    if fit.choices.stochastic:
        runs = fit.choices.gradient.draws(fit.choices.draws)
        return (
            f"{type(fit.choices.gradient).__name__} over {runs} runs a task: inner steps "
            f"{_range(report.steps)}; random, so there is no exact answer to audit it by: see its "
            "bias and variance with bm.diagnostics.compare_estimators"
        )
    said = (
        f"{type(fit.choices.gradient).__name__}: inner steps {_range(report.steps)}, ‖∇F‖ "
        f"{_range(report.stationarity)} nats per unit of θ"
    )
    if isinstance(fit.choices.gradient, Implicit):
        said += (
            f", relative residual of the linear solves ({report.curvature}) "
            f"{_range(report.solve_residual)}, negative curvature in "
            f"{int(report.negative_curvature.sum())} of {len(report.names)} tasks"
        )
    objective = fit.choices.objective
    if isinstance(objective, Evidence) and objective.points > 1:
        said += ", all for Laplace's method (points=1)"
    return said


def _audit(report: Report, own: bool) -> str:
    errors = [audit.error for audit in report.audits.values()]
    if not errors:
        return ""
    worst = math.nan if any(error != error for error in errors) else max(errors)
    said = f"; audit of {len(errors)} tasks: off by at most {worst:.2g} of the exact gradient"
    return said if own else f"{said}, part of which this rule leaves out"


def _why(error: float, report: Report) -> str:
    other = ', or curvature="hessian"' if report.curvature == "ggn" else ""
    return (
        f"its meta-gradient is off by {error:.2g} of the exact one: raise steps=, lr= or "
        f"cg_steps={other}"
    )


def _once(flags: list[Flag]) -> list[Flag]:
    """The first flag of every task."""
    return list({flag.task: flag for flag in reversed(flags)}.values())[::-1]


def _plain(value: float) -> float | None:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _range(values: Tensor) -> str:
    low, high = float(values.min()), float(values.max())
    return f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"
