"""A method is a choice of Q_i, of how θ is adapted, and of how M is differentiated.

What cannot go together is refused here, when the method is made, with what can.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal

from bayesmeta.gradients.direct import Direct
from bayesmeta.gradients.implicit import Implicit
from bayesmeta.gradients.pathwise import FirstOrder, SeparatePaths, Truncated, Unrolled
from bayesmeta.gradients.score import Score
from bayesmeta.inner.first_order import Adam, GradientDescent, Momentum, Nesterov, RMSProp
from bayesmeta.inner.langevin import SGLD
from bayesmeta.inner.loop import Algorithm
from bayesmeta.inner.mixture import Mixture
from bayesmeta.inner.newton import Exact, Newton, NewtonCG
from bayesmeta.inner.noise import is_random
from bayesmeta.inner.quasi_newton import LBFGS
from bayesmeta.legality import refuse_illegal
from bayesmeta.objective import Evidence, Objective, Validation, Variational
from bayesmeta.posteriors.algorithmic import Algorithmic
from bayesmeta.posteriors.free import Free
from bayesmeta.posteriors.proximal import Proximal
from bayesmeta.results import InputError
from bayesmeta.typed import made

SOLVERS = ("auto", "exact", "profile", "gradient")
PRIOR_UPDATES = ("gradient", "closed_form")
EXACT_LIMIT = 100
OPTIMISERS = ("auto", "adam", "sgd", "quasi-newton")
Posterior = Free | Proximal | Algorithmic
Gradient = Direct | FirstOrder | Unrolled | Truncated | Implicit | SeparatePaths | Score
CHOICES = {
    kind.__name__: kind
    for kind in (
        *(Free, Proximal, Algorithmic),
        *(GradientDescent, Nesterov, Momentum, Adam, RMSProp, SGLD, Mixture),
        *(NewtonCG, Newton, Exact, LBFGS),
        *(Direct, FirstOrder, Unrolled, Truncated, Implicit, SeparatePaths, Score),
        *(Variational, Validation, Evidence),
    )
}


@dataclass(frozen=True)
class Method:
    """One row of the table of methods.

    Args:
        posterior: which Q_i.
        inner: how θ is adapted; None for free Q_i, which descend beside the prior.
        gradient: how M is differentiated.
        objective: which M.
        solver: for free Q_i and the evidence: exact (linear-Gaussian tasks: Q_i in closed form),
            profile (Q_i solved to the end by Newton's method at every outer step), gradient
            (everything descends together), or auto, the first of these that applies.
        optimiser: of the outer loop: "quasi-newton" (deterministic M with an exact gradient),
            "adam", "sgd", or "auto", the first of these that applies.
        steps: outer steps at most; None is 500 for deterministic and 5000 for noisy objectives.
        lr: step size of adam or sgd at the start; sgd steps along the mean gradient of the tasks.
        draws: of θ per task and step, where the expectation has no closed form: of a Gaussian Q_i,
            or runs of a stochastic algorithm.
        noise: "fresh" draws at each step (Adam), or "common": the same ones at every step, which
            makes M deterministic (quasi-Newton).
        batch: tasks per step, without replacement; None is all of them.
        warmup: fraction of the noisy steps of a free Q_i over which the KL's weight rises from near
            0 to β; Q_i that start under the full KL tend to collapse on the prior.
        tolerance: largest derivative, in nats per task, at which a deterministic fit ends.
        reset_every: restart every m_i at θ₀ after so many steps of the gradient solver.
        prior_update: "gradient", or "closed_form" after each step of the gradient solver.
        compile: compile the meta-gradient of an adapted Q_i (seconds to minutes, once), which pays
            for many outer steps of a small model.

    Raises:
        InputError: the choices cannot go together; the message names what can.
    """

    posterior: Posterior = field(default_factory=Free)
    inner: Algorithm | None = None
    gradient: Gradient = field(default_factory=Direct)
    objective: Objective = field(default_factory=Variational)
    solver: str = "auto"
    optimiser: str = "auto"
    steps: int | None = None
    lr: float = 0.01
    draws: int = 1
    noise: str = "fresh"
    batch: int | None = None
    warmup: float = 0.5
    tolerance: float = 1e-6
    reset_every: int | None = None
    prior_update: str = "gradient"
    compile: bool = False

    def __post_init__(self) -> None:
        for name, allowed in (
            ("solver", SOLVERS),
            ("prior_update", PRIOR_UPDATES),
            ("noise", ("fresh", "common")),
            ("optimiser", OPTIMISERS),
        ):
            if getattr(self, name) not in allowed:
                raise InputError(
                    f"{name} must be one of {', '.join(allowed)}, not {getattr(self, name)!r}"
                )
        for name in ("steps", "draws", "batch", "reset_every"):
            value = getattr(self, name)
            if value is not None and not (type(value) is int and value >= 1):
                raise InputError(f"{name} must be a whole number, at least 1, not {value!r}")
        if not 0 <= self.warmup < 1:
            raise InputError(f"warmup is a fraction of the steps, in [0, 1), not {self.warmup}")
        if not (0 < self.lr < math.inf and 0 < self.tolerance < math.inf):
            raise InputError("lr and tolerance must be positive and finite")
        if self.batch is not None and self.prior_update == "closed_form":
            raise InputError("the closed-form prior update needs every task: leave batch= out")
        refuse_illegal(self)

    @classmethod
    def composed(
        cls, posterior: Any, inner: Any, gradient: Any, objective: Any, options: dict[str, Any]
    ) -> Method:
        """A named method, whose outer steps, step size and tolerance go by names of their own.

        Args:
            posterior, inner, gradient, objective: the choices.
            options: of the outer loop, by the names of `Method` or with outer_ before them.

        Raises:
            InputError: an option that no method has.
        """
        plain = [name for name in ("steps", "lr", "tolerance") if name in options]
        if plain:
            raise InputError(f"{plain[0]}= of the outer loop is called outer_{plain[0]}= here")
        options = {k.removeprefix("outer_"): v for k, v in options.items()}
        known = {f.name for f in fields(cls)}
        unknown = [name for name in options if name not in known]
        if unknown:
            raise InputError(
                f"this method has no option {unknown[0]!r}: see help(bm.methods.imaml) and its "
                "like for their own, and help(bm.methods.Method) for those of the outer loop"
            )
        return cls(posterior, inner, gradient, objective, **options)

    def adapting_by(self, algorithm: Algorithm) -> Method:
        """The same Q_i by another inner algorithm, for tasks under a prior that is held.

        Raises:
            InputError: free Q_i, which no algorithm adapts, or an algorithm that does not go with
                this posterior.
        """
        if isinstance(self.posterior, Free):
            raise InputError("free Q_i are not adapted by an algorithm: leave algorithm= out")
        objective, gradient = self.objective, self.gradient
        if isinstance(self.posterior, Algorithmic) and isinstance(objective, Validation):
            objective, gradient = replace(objective, at="draws"), FirstOrder()
        return replace(
            self, inner=algorithm, gradient=gradient, objective=objective, draws=1, compile=False
        )

    @property
    def solves_posteriors(self) -> bool:
        """Whether M is to be taken at its best full Gaussian Q_i of all tasks, or integrates θ."""
        if self.batch is not None or self.reset_every is not None:
            return False
        if isinstance(self.objective, Evidence):
            return True
        best = isinstance(self.posterior, Free) and self.posterior.form.name == "full"
        return best and isinstance(self.objective, Variational) and self.objective.beta == 1

    @property
    def stochastic(self) -> bool:
        """Whether adaptation is random, so that Q_i is known by draws."""
        return is_random(self.inner)

    @property
    def anchored(self) -> bool:
        """Whether adaptation descends on f_i + ½‖θ − θ₀‖²_Λ."""
        return isinstance(self.posterior, Proximal) or getattr(self.posterior, "anchored", False)

    @property
    def lam(self) -> float | None:
        """λ of papers, where it holds Λ in the place of the prior's own."""
        return getattr(self.posterior, "lam", None)

    @property
    def at(self) -> Literal["draws", "mean"]:
        """Where M of a stochastic algorithm is taken."""
        return self.objective.at if isinstance(self.objective, Validation) else "draws"

    @property
    def kl(self) -> str:
        """What stands for the KL in M: "full", "quadratic" (point Q_i), or "none"."""
        if not isinstance(self.objective, Variational):
            return "none"
        return "quadratic" if self.posterior.form.name == "point" else "full"

    @property
    def exact_gradient(self) -> bool:
        """Whether the gradient is M's own, but for rounding, once its solves have converged.

        Of a method whose "auto" curvatures are decided: only the Hessian is the loss's curvature.
        """
        rule = self.gradient
        if isinstance(rule, SeparatePaths | Score):  # of M on average, not of these paths' M
            return False
        return self.whole_gradient and getattr(rule, "curvature", "hessian") == "hessian"

    @property
    def whole_gradient(self) -> bool:
        """Whether the rule leaves out no part of M's derivative on purpose."""
        envelope = isinstance(self.posterior, Proximal) and self.posterior.form.name == "point"
        if isinstance(self.gradient, Direct):
            return envelope and isinstance(self.objective, Variational) and self.objective.beta == 1
        if isinstance(self.gradient, Implicit):
            return self.gradient.steps > 0 and self.gradient.damping == 0
        return isinstance(self.gradient, Unrolled | Score) or (
            isinstance(self.gradient, SeparatePaths) and self.gradient.last is None
        )

    def to_json(self) -> dict[str, Any]:
        """A record of every choice; `from_json` makes the method again."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        record = {k: _choice_record(v) if k in CHOSEN else v for k, v in values.items()}
        return record | {"kl": self.kl}

    @classmethod
    def from_json(cls, record: dict[str, Any], *, inner: Algorithm | None = None) -> Method:
        """The method of a record; `inner` in the place of an algorithm of the user's own."""
        values = {k: v for k, v in record.items() if k != "kl"}
        if inner is not None:
            values["inner"] = None
        chosen: dict[str, Any] = {k: _choice(v) if k in CHOSEN else v for k, v in values.items()}
        if inner is not None:
            chosen["inner"] = inner
        return made(cls, chosen)


CHOSEN = ("posterior", "inner", "gradient", "objective")
Support = int | float | None


def _choice_record(choice: Any) -> dict[str, Any] | None:
    if choice is None:
        return None
    name = type(choice).__name__
    if isinstance(choice, Mixture):
        parts = [_choice_record(part) for part in choice.algorithms]
        return {"kind": name, "algorithms": parts, "weights": choice.weights}
    if CHOICES.get(name) is not type(choice) or not is_dataclass(choice):
        return {"kind": "custom", "is": repr(choice)}
    assert not isinstance(choice, type)
    return {"kind": name} | asdict(choice)


def _choice(record: dict[str, Any] | None) -> Any:
    if record is None:
        return None
    kind = record["kind"]
    if kind not in CHOICES:
        raise InputError(
            f"this run used an algorithm of your own ({record.get('is', kind)}), which a run "
            "folder cannot hold: pass it, bm.load(folder, inner=...)"
        )
    # JSON knows no tuples.
    plain = {k: v for k, v in record.items() if k != "kind"}
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in plain.items()}
    if "algorithms" in values:
        values["algorithms"] = tuple(_choice(part) for part in values["algorithms"])
    return made(CHOICES[kind], values)


def with_curvature(method: Method, affine: bool, dim: int) -> Method:
    """The method with "auto" curvatures decided.

    Q_i and iterative solves take the Hessian where the prediction is linear in θ, else the
    Gauss-Newton matrix. Newton's method and factorised implicit gradients of few weights take the
    Hessian always: at a minimum it is positive definite, and only with it are they exact.
    """
    kind = "hessian" if affine else "ggn"
    changes = {}
    for name in ("posterior", "inner", "gradient"):
        choice = getattr(method, name)
        dense = isinstance(choice, Newton) or getattr(choice, "solver", "") == "cholesky"
        if getattr(choice, "curvature", None) == "auto":
            exact = dense and dim <= EXACT_LIMIT
            changes[name] = replace(choice, curvature="hessian" if exact else kind)
    return replace(method, **changes)
