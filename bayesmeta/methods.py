"""A method is a choice of Q_i, of how θ is adapted, and of how M is differentiated.

The papers of the field are compositions of a few lines here.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from bayesmeta.gradients.direct import Direct
from bayesmeta.objective import Variational
from bayesmeta.posteriors.free import Free
from bayesmeta.results import InputError

SOLVERS = ("auto", "exact", "profile", "gradient")
FULL_LIMIT = 50
PRIOR_UPDATES = ("gradient", "closed_form")


@dataclass(frozen=True)
class Method:
    """One row of the table of methods.

    Args:
        posterior: which Q_i.
        gradient: how M is differentiated.
        objective: which M.
        solver: exact (linear-Gaussian tasks: Q_i in closed form), profile (Q_i solved to the end
            by Newton's method at every outer step), gradient (everything descends together), or
            auto, the first of these that applies.
        steps: outer steps at most; None is 500 for deterministic and 5000 for noisy objectives.
        lr: Adam's step size at the start, for noisy objectives.
        draws: of θ per task and step, where the expectation has no closed form.
        noise: "fresh" draws at each step (Adam), or "common": the same ones at every step, which
            makes M deterministic (quasi-Newton).
        batch: tasks per step, without replacement; None is all of them.
        warmup: fraction of the noisy steps over which the KL's weight rises from near 0 to β; Q_i
            that start under the full KL tend to collapse on the prior. The end is at β.
        tolerance: largest derivative, in nats per task, at which a deterministic fit ends.
        reset_every: restart every m_i at θ₀ after so many steps of the gradient solver.
        prior_update: "gradient", or "closed_form" after each step of the gradient solver.

    Raises:
        InputError: the choices cannot go together; the message names what can.
    """

    posterior: Free = field(default_factory=Free)
    gradient: Direct = field(default_factory=Direct)
    objective: Variational = field(default_factory=Variational)
    solver: str = "auto"
    steps: int | None = None
    lr: float = 0.01
    draws: int = 1
    noise: str = "fresh"
    batch: int | None = None
    warmup: float = 0.5
    tolerance: float = 1e-6
    reset_every: int | None = None
    prior_update: str = "gradient"

    def __post_init__(self) -> None:
        if self.solver not in SOLVERS:
            raise InputError(f"solver must be one of {', '.join(SOLVERS)}, not {self.solver!r}")
        if self.prior_update not in PRIOR_UPDATES:
            raise InputError(f"prior_update must be one of {', '.join(PRIOR_UPDATES)}")
        if self.noise not in ("fresh", "common"):
            raise InputError(f'noise must be "fresh" or "common", not {self.noise!r}')
        for name in ("steps", "draws", "batch", "reset_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, not {value}")
        if not 0 <= self.warmup < 1:
            raise InputError(f"warmup is a fraction of the steps, in [0, 1), not {self.warmup}")
        if not (self.lr > 0 and self.tolerance > 0):
            raise InputError("lr and tolerance must be positive")
        if self.solver in ("exact", "profile") and not self.solves_posteriors:
            raise InputError(
                f'solver="{self.solver}" finds the best full Gaussian Q_i of all tasks: with '
                f'another covariance, beta, batch= or reset_every= use solver="gradient"'
            )
        if self.batch is not None and self.prior_update == "closed_form":
            raise InputError("the closed-form prior update needs every task: leave batch= out")

    @property
    def solves_posteriors(self) -> bool:
        """Whether what is asked for is M's minimum over full Gaussian Q_i of all tasks."""
        plain = self.batch is None and self.reset_every is None and self.objective.beta == 1
        return plain and self.posterior.form.name == "full"

    @property
    def kl(self) -> str:
        """What stands for the KL in M: "full", or "quadratic" for a point Q_i."""
        return "quadratic" if self.posterior.form.name == "point" else "full"

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"kl": self.kl}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Method:
        values = {k: v for k, v in record.items() if k not in ("kl", "gradient")}
        values["posterior"] = Free(**values["posterior"])
        values["objective"] = Variational(**values["objective"])
        return cls(**values)


def default_form(dim: int) -> str:
    """Covariance of prior and Q_i where none is asked for: full up to 50 weights, then diagonal."""
    return "full" if dim <= FULL_LIMIT else "diagonal"


def joint(*, covariance: str = "full", beta: float = 1.0, **options: Any) -> Method:
    """Joint variational fit: M minimised over (θ₀, Σ₀, ψ) and all Q_i.

        min_{θ₀, Σ₀, ψ, Q} Σ_i [ E_{Q_i} f_i + β KL(Q_i ‖ N(θ₀, Σ₀)) ]

    With covariance="point" and Σ₀ = I/2 held this is Σ_i ‖θ_i − θ₀‖² + f_i(θ_i), the joint
    objective of the notes on iMAML (F. Huszár, inference.vc, 2019).

    Args:
        covariance: of every Q_i: point, diagonal, lowrank(r), full.
        beta: weight of the KL.
        **options: solver, steps, lr, draws, noise, batch, warmup, tolerance, reset_every,
            prior_update; see `Method`.

    Example:
        >>> joint(covariance="diagonal").posterior
        Free(covariance='diagonal')
    """
    return Method(posterior=Free(covariance), objective=Variational(beta), **options)
