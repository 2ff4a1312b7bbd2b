"""What −M of a fit is called, and which of its tasks need a person's eye."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from bayesmeta.method import Method
from bayesmeta.objective import Evidence, Validation
from bayesmeta.results import Flag, Result


def evidence_kind(solver: str, method: Method) -> str:
    """What −M is: the evidence, its approximation, a bound on it, or something else by its name.

    "penalised": the penalised log-likelihood of point Q_i; "validation": the log-likelihood of
    query rows.
    """
    if isinstance(method.objective, Validation):
        return "validation"
    if isinstance(method.objective, Evidence):
        return "laplace" if method.objective.points == 1 else "quadrature"
    if method.posterior.form.name == "point":
        return "penalised"
    return "exact" if solver == "exact" else "bound"


def unknown_notes(evidence: Tensor, method: Method) -> list[str]:
    """Tasks whose −M is unknown for want of rows."""
    unknown = int(evidence.isnan().sum())
    if unknown == 0 or not isinstance(method.objective, Validation):
        return []
    note = (
        f"{unknown} of {len(evidence)} tasks have no rows left for a query set (support="
        f"{method.objective.support}), so log_evidence is unknown; their posteriors are not "
        "affected."
    )
    return [note]


def flags(
    names: Sequence[str], results: Sequence[Result], evidence: Tensor, method: Method
) -> list[Flag]:
    """A flag for every task whose own solve did not converge, or whose evidence is not finite."""
    # A task too short to have query rows has no −M, and nothing wrong with it.
    unknown = isinstance(method.objective, Validation)
    finite = (evidence.isfinite() | unknown).tolist()
    ended = [r if ok else Result.nonfinite for r, ok in zip(results, finite, strict=True)]
    return [
        Flag(name, result.sentence)
        for name, result in zip(names, ended, strict=True)
        if result is not Result.converged
    ]
