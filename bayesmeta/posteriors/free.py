"""Free Q_i: stored per task, optimised beside the prior; the solvers are in `joint/`."""

from __future__ import annotations

from dataclasses import dataclass

from bayesmeta.forms import Form

FREE_FORMS = ("point", "diagonal", "lowrank", "full")


@dataclass(frozen=True)
class Free:
    """Q_i stored per task: a point, or a Gaussian with a covariance of the given form."""

    covariance: str = "full"

    def __post_init__(self) -> None:
        Form.parse(self.covariance, allowed=FREE_FORMS)

    @property
    def form(self) -> Form:
        return Form.parse(self.covariance)
