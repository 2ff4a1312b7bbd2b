"""Algorithmic Q_i: the law of what an algorithm started at θ₀ returns.

A point for a deterministic algorithm. For a stochastic one it is known by draws: independent runs,
each with noise of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from bayesmeta.forms import Form
from bayesmeta.inner.loop import check_switch
from bayesmeta.results import InputError


@dataclass(frozen=True)
class Algorithmic:
    """Q_i = the law of Alg(f_i, θ₀; z).

    Args:
        anchored: whether the algorithm descends on f_i + ½‖θ − θ₀‖²_Λ, or on f_i alone, where the
            prior enters through the start only.
        lam: λ of papers for an anchored one, as in `Proximal`; None: the prior's own Λ.
        samples: how many runs stand for Q_i in a fit, where the algorithm is stochastic, and for M
            at the end: g at their mean is above g(E_z θ_z) by ½ tr(∇²g Cov θ_z)/samples.
    """

    anchored: bool = False
    lam: float | None = None
    samples: int = field(default=200, kw_only=True)

    def __post_init__(self) -> None:
        check_switch(self, "anchored")
        if self.lam is not None and not (self.anchored and self.lam > 0):
            raise InputError(
                f"Algorithmic(anchored={self.anchored}, lam={self.lam}): lam is the strength of an "
                "anchor, positive, with anchored=True"
            )
        if type(self.samples) is not int or self.samples < 2:
            raise InputError(f"Algorithmic(samples={self.samples!r}): keep at least 2 runs")

    @property
    def form(self) -> Form:
        return Form("point")
