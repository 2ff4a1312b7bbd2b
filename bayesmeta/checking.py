"""`bayesmeta check`: all diagnostics of a run as one object."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bayesmeta.commands import open_run
from bayesmeta.diagnostics import check, coverage, few_shot_scores
from bayesmeta.options import check_numbers
from bayesmeta.results import InputError

if TYPE_CHECKING:
    from bayesmeta.fit import Fit

LEVELS = (0.5, 0.9)
DRAWS = 1000
TASKS = 200
SEED = 0


def check_run(run: Path, tasks: int | None = None, images: Path | None = None) -> dict[str, Any]:
    """The object that `bayesmeta check --json` prints.

    Args:
        run: a run folder.
        tasks: how many to score, of classes held out; 200 by default.
        images: where the images of the run are now; where they were, by default.

    Returns:
        ok, whether no check asks for anything; findings, each with check, ok, sentence, the tasks
        flagged and, for the meta-gradient, details by task; coverage of central predictive
        intervals by level, on the rows the fit has seen, None where y has no order; few_shot, the
        scores of a fit of images on classes held out, else None; notes; run.
    """
    check_numbers({"--tasks": tasks}, least=2)
    fitted = open_run(run)
    if "reading" not in (fitted.stream or {}) and (tasks or images) is not None:
        raise InputError(
            f"--tasks and --images are of runs fitted to a folder of images, and {run} is none: "
            "leave them out"
        )
    findings = check(fitted)
    scores, notes = _few_shot(fitted, tasks or TASKS, images)
    return {
        "ok": all(finding.ok for finding in findings),
        "findings": [
            {
                "check": finding.check,
                "ok": finding.ok,
                "sentence": finding.sentence,
                "flagged": [{"task": flag.task, "why": flag.why} for flag in finding.flags],
            }
            | ({} if finding.details is None else {"details": finding.details})
            for finding in findings
        ],
        "coverage": _coverage(fitted),
        "few_shot": scores,
        "notes": [*fitted.notes, *notes],
        "run": str(run),
    }


def _few_shot(
    fitted: Fit, tasks: int, images: Path | None
) -> tuple[dict[str, Any] | None, list[str]]:
    """Scores of tasks of the classes held out, both inductive and transductive; or why not."""
    if "reading" not in (fitted.stream or {}):
        return None, []
    from bayesmeta.image_tasks import held_out

    try:
        found = few_shot_scores(fitted, held_out(fitted, images), count=tasks, seed=SEED)
    except InputError as error:
        return None, [f"Classes held out were not scored: {error}"]
    scores: dict[str, Any] = {"tasks": found.tasks}
    for kind in ("inductive", "transductive"):
        of_kind = getattr(found, kind)
        mean, low, high = of_kind.interval
        scores[kind] = {
            "accuracy": mean,
            "accuracy_interval": [low, high],
            "nll": float(of_kind.nll.mean()),
            "calibration_error": of_kind.calibration,
        }
    return scores, []


def _coverage(fitted: Fit) -> dict[str, float] | None:
    y = fitted.family.tensors.get("y")
    if y is None or fitted.likelihood is None or fitted.likelihood.name == "categorical":
        return None
    seen = fitted.predict(draws=DRAWS, seed=SEED)
    shares = coverage(seen.draws, y.to(seen.draws), levels=LEVELS, mask=seen.mask)
    return {str(level): float(share) for level, share in zip(LEVELS, shares, strict=True)}
