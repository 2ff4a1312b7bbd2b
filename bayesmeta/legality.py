"""What cannot go together in a method, each with what can."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bayesmeta.gradients.direct import Direct
from bayesmeta.gradients.implicit import Implicit
from bayesmeta.gradients.pathwise import SeparatePaths
from bayesmeta.gradients.score import Score
from bayesmeta.inner.mixture import Mixture
from bayesmeta.inner.noise import components, has
from bayesmeta.objective import Evidence, Validation, Variational
from bayesmeta.posteriors.algorithmic import Algorithmic
from bayesmeta.posteriors.free import Free
from bayesmeta.results import InputError

if TYPE_CHECKING:
    from bayesmeta.method import Method


def refuse_illegal(method: Method) -> None:
    """Refuse choices that cannot go together.

    Raises:
        InputError: which, and what to use in their place.
    """
    (_refuse_free if isinstance(method.posterior, Free) else _refuse_adapted)(method)


def _refuse_free(method: Method) -> None:
    """Free Q_i have no algorithm, and nothing but themselves to be differentiated through."""
    if method.inner is not None or not isinstance(method.gradient, Direct):
        raise InputError(
            "free Q_i descend beside the prior: leave inner= and gradient= out, or use Proximal or "
            "Algorithmic Q_i"
        )
    if not isinstance(method.objective, Variational):
        raise InputError(
            "free Q_i are fitted by the Variational objective: for a query set or the evidence use "
            "Proximal Q_i (bm.methods.imaml, bm.methods.laplace)"
        )
    if method.solver in ("exact", "profile") and not method.solves_posteriors:
        raise InputError(
            f'solver="{method.solver}" finds the best full Gaussian Q_i of all tasks: with '
            f'another covariance, beta, batch= or reset_every= use solver="gradient"'
        )


def _refuse_adapted(method: Method) -> None:
    """Q_i that are functions of θ₀."""
    inner, rule, objective = method.inner, method.gradient, method.objective
    if inner is None:
        raise InputError("Proximal and Algorithmic Q_i are adapted: give inner=, an algorithm")
    if isinstance(inner, type):
        raise InputError(f"inner={inner.__name__} is a class: give an object, {inner.__name__}()")
    for name in ("init", "step", "steps", "tolerance", "differentiable"):
        if not hasattr(inner, name):
            raise InputError(
                f"inner={inner!r} has no {name}: an algorithm has init(problem, theta), "
                "step(problem, theta, gradient, state), steps, tolerance and differentiable"
            )
    for part in components(inner):
        rows = getattr(part, "rows", None)
        if rows is not None and (type(rows) is not int or rows < 1):
            raise InputError(f"rows={rows!r} of {part!r}: give a whole number, at least 1")
    if method.reset_every is not None or method.prior_update != "gradient":
        raise InputError("reset_every= and prior_update= belong to free Q_i (bm.methods.joint)")
    if rule.needs_path and not inner.differentiable:
        raise InputError(
            f"{type(rule).__name__}() differentiates through the steps of {inner!r}, which has "
            "none to differentiate (a line search or restart): use gradient=Implicit(), or an "
            "algorithm with fixed steps"
        )
    _refuse_random(method)
    if isinstance(method.posterior, Algorithmic):
        if isinstance(rule, Implicit):
            raise InputError(
                "an implicit gradient needs θ* to be stationary, and without a proximal term (λ = "
                "0) nothing ties it to θ₀: use Proximal() Q_i, or gradient=Unrolled(), "
                "Truncated(k) or FirstOrder()"
            )
        if isinstance(objective, Evidence):
            raise InputError("the evidence is taken around a Proximal θ*: use Proximal() Q_i")
        if isinstance(rule, Direct) and isinstance(objective, Validation):
            raise InputError(
                "with Q_i held, a query set says nothing about θ₀: use FirstOrder(), Unrolled(), "
                "or objective=Variational() (Reptile)"
            )
    elif isinstance(rule, Direct) and not isinstance(objective, Variational):
        raise InputError("with Q_i held only the Variational objective has an exact gradient: "
                         "use gradient=Implicit()")  # fmt: skip
    if has(inner, "learn_lr") and not rule.needs_path:
        raise InputError(
            f"learned step sizes get no gradient from {type(rule).__name__}(), which does not see "
            "the steps: use gradient=Unrolled() or Truncated(k)"
        )
    if isinstance(objective, Evidence) and method.posterior.form.name == "point":
        raise InputError('the evidence integrates θ: give Proximal(covariance="full")')


def _refuse_random(method: Method) -> None:
    """What goes with a stochastic algorithm only, and what does not go with one."""
    inner, rule = method.inner, method.gradient
    if not method.stochastic:
        if isinstance(rule, SeparatePaths | Score):
            raise InputError(
                f"{type(rule).__name__}() is for a stochastic algorithm, and every run of "
                f"{inner!r} ends in the same place: give it minibatches (rows=), use SGLD or a "
                "Mixture, or gradient=Unrolled()"
            )
        if method.at == "mean":
            raise InputError(
                'at="mean" is the loss at the mean of random runs, and this algorithm has only one '
                "run: give it minibatches (rows=), use SGLD or a Mixture, or leave at= out"
            )
        return
    if not isinstance(method.posterior, Algorithmic):
        raise InputError(
            f"{inner!r} is random and never settles, so its end is no minimum for Proximal() Q_i: "
            "use Algorithmic(anchored=True), the law of its ends"
        )
    if isinstance(rule, SeparatePaths):
        if method.at != "mean":
            raise InputError(
                "SeparatePaths() differentiates g(E_z θ_z), a loss at the mean of runs: use "
                'Validation(at="mean"), or Unrolled() for the mean of the losses, E_z g(θ_z)'
            )
        if method.draws != 1:
            raise InputError(
                f"draws={method.draws}: SeparatePaths(forward=, backward=) has its own numbers"
            )
    if isinstance(rule, Score):
        if any(part.steps < 1 for part in components(inner)):
            raise InputError("Score() needs steps that are random: give steps=1 or more")
        if method.at != "draws" or method.draws < 2:
            raise InputError(
                "Score() differentiates the mean of the losses by comparing runs: use "
                'Validation(at="draws") and draws=2 or more'
            )
        plain = [a for a in components(inner) if not hasattr(a, "transition")]
        if plain:
            raise InputError(
                f"Score() needs the probability of every step, and those of {plain[0]!r} are not "
                "Gaussian: use SGLD, or gradient=Unrolled()"
            )
    if method.compile and isinstance(inner, Mixture):
        raise InputError("a Mixture's paths part anew in every step: leave compile= out")
