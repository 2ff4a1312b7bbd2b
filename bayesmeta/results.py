"""How a computation ended: result codes per task, and the one error for bad input.

Failure is a value with advice. A solver returns a `Result` for each task; only bad input raises.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class InputError(ValueError):
    """What the user gave cannot be used; the message says what, where, and what to do."""


LARGEST_WHOLE = 2**63 - 1


def check_whole(name: str, value: object, *, least: int = 0) -> None:
    """Refuse what is no whole number, or one that torch cannot hold.

    Raises:
        InputError: naming the argument.

    Example:
        >>> check_whole("draws", 0, least=1)
        Traceback (most recent call last):
        bayesmeta.results.InputError: draws=0: give a whole number, 1 or more
    """
    if (
        not isinstance(value, int)
        or isinstance(value, bool)
        or not (least <= value <= LARGEST_WHOLE)
    ):
        raise InputError(f"{name}={value!r}: give a whole number, {least} or more")


class Result(Enum):
    """How an iterative computation ended; each member's sentence ends in what to try."""

    converged = "converged"
    max_steps = "stopped at the step limit before converging: raise steps= or loosen tolerance="
    precision = (
        "ended where its line search found nothing lower, with derivatives above tolerance=: use "
        "float64, or loosen tolerance="
    )
    nonfinite = "met a value that is not finite: check the task's data, or lower lr="
    not_concave = (
        "the log-likelihood curves the wrong way under this posterior: raise the prior's "
        'precision, or use covariance="diagonal"'
    )
    diverged = "diverged: its steps grew out of all bounds: lower lr="
    not_stationary = (
        "was not solved: ‖∇f + Λ(θ − θ₀)‖ is above its tolerance (a hundredth of the pull, where "
        "none is given), so the meta-gradient is that of another function: raise steps= (of "
        "Newton-CG newton_cg_steps= too) or change lr=; where few steps are meant, judge by tasks "
        "held out"
    )
    unsolved = (
        "has a meta-gradient whose linear solve stopped above its tolerance: raise cg_steps=, or "
        'use solver="cholesky" for few weights'
    )
    negative_curvature = (
        "curves the wrong way (a direction of negative curvature), and its linear solve stopped "
        'there: raise the precision of the prior (lam=, where it is held), or use curvature="ggn"'
    )

    @property
    def sentence(self) -> str:
        return self.value


@dataclass(frozen=True)
class Flag:
    """A task that needs a person's eye, and why.

    Example:
        >>> Flag("county 7", "k-hat is 0.9").task
        'county 7'
    """

    task: str
    why: str
