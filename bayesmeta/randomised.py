"""Methods of random algorithms by name: the mean loss of their runs, or the loss of their mean."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from bayesmeta.gradients.pathwise import SeparatePaths, Unrolled
from bayesmeta.gradients.score import Score
from bayesmeta.inner.first_order import Adam, GradientDescent, Momentum, RMSProp
from bayesmeta.inner.langevin import SGLD
from bayesmeta.inner.loop import Algorithm
from bayesmeta.inner.mixture import Mixture
from bayesmeta.inner.noise import is_random
from bayesmeta.method import Method, Support
from bayesmeta.objective import Validation
from bayesmeta.posteriors.algorithmic import Algorithmic
from bayesmeta.results import InputError

STOCHASTIC = {
    "sgd": GradientDescent(),
    "momentum": Momentum(),
    "adam": Adam(),
    "rmsprop": RMSProp(),
    "sgld": SGLD(),
    "psgld": SGLD(preconditioned=True),
}

NUMBERS = {"steps": 5, "lr": 0.01, "rows": 2, "replacement": False}


def stochastic(
    *,
    algorithm: str | Algorithm = "sgd",
    steps: int = 5,
    lr: float = 0.01,
    rows: int | None = 2,
    replacement: bool = False,
    draws: int = 4,
    gradient: str = "unrolled",
    checkpoint: int | None = None,
    anchored: bool = False,
    lam: float | None = None,
    support: Support = 0.5,
    samples: int = 200,
    **options: Any,
) -> Method:
    """The stochastic meta-objective: the mean loss over everything a random algorithm may find.

        min_{θ₀} Σ_i E_z g_i(θ_z),    θ_z = Alg(f_i, θ₀; z)

    (F. Huszár, inference.vc, 2019, "What is missing? Stochasticity".) θ₀ moves the solutions and
    the probability of each; a path z is the same forward and backward.

    Args:
        algorithm: sgd, momentum, adam, rmsprop, sgld, psgld; several joined by "+" are a mixture,
            one drawn per path; or an algorithm object, which has its own numbers: leave steps, lr,
            rows and replacement out then.
        steps: inner steps.
        lr: of the inner steps: for the loss per row, for adam and rmsprop in units of θ.
        rows: support rows in each step; None: all.
        replacement: rows drawn independently, not one after another in random order.
        draws: paths per task and outer step.
        gradient: "unrolled"; or "score", for sgld and psgld whose runs end in different minima, or
            whose loss has no useful slope: elsewhere its sd is tens of times larger.
        checkpoint: inner steps recorded at a time, as in `Unrolled`.
        anchored: whether the algorithm descends on f_i + ½‖θ − θ₀‖²_Λ; sgld then samples a
            posterior under the prior.
        lam: of the anchor, as in `imaml`.
        support: as in `maml`.
        samples: paths per task that stand for Q_i once the prior is fitted.
        **options: as in `maml`.
    """
    if gradient not in ("unrolled", "score"):
        raise InputError(f'gradient={gradient!r}: use "unrolled" or "score"')
    inner = _stochastic(algorithm, steps=steps, lr=lr, rows=rows, replacement=replacement)
    rule = Unrolled(checkpoint) if gradient == "unrolled" else Score()
    posterior = Algorithmic(anchored, lam, samples=samples)
    return Method.composed(posterior, inner, rule, Validation(support), {"draws": draws} | options)


def two_path(
    *,
    algorithm: str | Algorithm = "sgd",
    steps: int = 5,
    lr: float = 0.01,
    rows: int | None = 2,
    replacement: bool = False,
    forward: int = 2,
    backward: int = 2,
    every_pair: bool = False,
    checkpoint: int | None = None,
    anchored: bool = False,
    lam: float | None = None,
    support: Support = 0.5,
    samples: int = 200,
    **options: Any,
) -> Method:
    """The two-path meta-objective: the loss of the mean solution, by separate minibatch paths.

        min_{θ₀} Σ_i g_i(E_z θ_z),    gradient (E_z J_z)ᵀ ∇g_i(E_z θ_z)

    (K. Cho, a blog note of 2019: one path forward, another one backward.) See `SeparatePaths`. The
    posterior and predictions of the fit are those of the runs, not of their mean; a θ₀ trained so
    pays nothing for the spread of the runs (`python -m studies run two_paths`).

    Args:
        forward, backward: paths per task and outer step whose mean is evaluated, and that are
            differentiated.
        every_pair: use all of them both ways.
        algorithm, steps, lr, rows, replacement, checkpoint, anchored, lam, support, samples: as in
            `stochastic`.
        **options: as in `maml`.
    """
    inner = _stochastic(algorithm, steps=steps, lr=lr, rows=rows, replacement=replacement)
    rule = SeparatePaths(forward, backward, every_pair=every_pair, checkpoint=checkpoint)
    posterior = Algorithmic(anchored, lam, samples=samples)
    return Method.composed(posterior, inner, rule, Validation(support, at="mean"), options)


def _stochastic(algorithm: str | Algorithm, **numbers: Any) -> Algorithm:
    """The algorithm by name, or the mixture of several, with these numbers; or the one given."""
    if not isinstance(algorithm, str):
        given = [name for name, usual in NUMBERS.items() if numbers[name] != usual]
        if given:
            raise InputError(
                f"{given[0]}= is for an algorithm by name, and {algorithm!r} has its own: set it "
                "there"
            )
        if not is_random(algorithm):
            raise InputError(
                f"every run of {algorithm!r} ends in the same place: give it rows=, use SGLD or a "
                "Mixture, or bm.methods.maml for a deterministic algorithm"
            )
        return algorithm
    names = [name.strip() for name in algorithm.split("+")]
    unknown = [name for name in names if name not in STOCHASTIC]
    if unknown:
        raise InputError(
            f"there is no algorithm {unknown[0]!r}: use {', '.join(STOCHASTIC)}, several joined by "
            '"+", or an object such as bm.methods.SGLD()'
        )
    if len(set(names)) < len(names):
        raise InputError(f"algorithm={algorithm!r} names one twice: name each once")
    chosen = [replace(STOCHASTIC[name], **numbers) for name in names]
    if len(chosen) > 1:
        return Mixture(tuple(chosen))
    if not is_random(chosen[0]):
        raise InputError(
            f"rows=None leaves nothing random in {names[0]}: give rows=, or use sgld, or bm.methods"
            ".maml for a deterministic algorithm"
        )
    return chosen[0]
