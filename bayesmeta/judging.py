"""What −M of a fit is called, and which of its tasks need a person's eye."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from bayesmeta.empirical import Empirical
from bayesmeta.gaussian import Gaussian
from bayesmeta.method import Method
from bayesmeta.objective import Evidence, Validation
from bayesmeta.results import Flag, Result
from bayesmeta.splits import support_rows
from bayesmeta.tasks import TaskFamily

# What is not called an evidence, or not by the name of its kind.
EVIDENCE = {
    "laplace": ("Log evidence", "Laplace's method"),
    "validation": ("Query rows", "their log-likelihood, no evidence"),
    "penalised": ("Penalised", "log-likelihood under the prior's pull, no evidence"),
}


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


def evidence_name(kind: str) -> tuple[str, str]:
    """What to call −M of a kind, and what it is."""
    return EVIDENCE.get(kind, ("Log evidence", kind))


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


def scored_rows(method: Method, family: TaskFamily, query: TaskFamily | None = None) -> Tensor:
    """(task,) rows whose density −M is: of the query set, where M has one."""
    objective = method.objective
    if not isinstance(objective, Validation):
        return family.rows
    if query is not None:
        return query.rows
    if objective.support is None:
        return family.rows
    return family.rows - support_rows(family.rows, objective.support)


def certain_notes(posterior: Gaussian | Empirical, method: Method) -> list[str]:
    """Tasks all of whose random runs ended in one place."""
    if not isinstance(posterior, Empirical):
        return []
    same = int((posterior.draws == posterior.draws[0]).all(0).all(-1).sum())
    if same == 0:
        return []
    note = (
        f"All runs of {same} of {posterior.draws.shape[1]} tasks ended in the same place: a "
        "minibatch holds all their rows, or every run failed. Their posterior sd of 0 is no "
        "certainty; lower rows=, or draw them with replacement=True."
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
