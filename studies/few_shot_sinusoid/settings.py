"""What every method was given to choose from, and what it chose.

Two settings a method, tried by `python -m studies.few_shot_sinusoid.tuning` with 20 s of outer
steps each on tasks of their own. MAML and first-order MAML keep the paper's one step of 0.01 and
try the outer step size. iMAML's paper has no sinusoid, so two step sizes, or two λ, are tried;
Reptile takes the paper's 0.02 and tries Adam or the paper's own outer step. Laplace and joint
choose between the noise sd that the others have, √½ (so that a row's nats are its squared error),
and one they learn. First-order MAML and variational iMAML take what MAML and iMAML chose.
"""

from __future__ import annotations

from dataclasses import dataclass

import bayesmeta as bm
from bayesmeta.methods import Method

BATCH = 25
SUPPORT = 10
PLAIN = 0.5**0.5
"""The noise sd under which nats are squared errors."""


@dataclass(frozen=True)
class Setting:
    """One trial of one method.

    Args:
        label: what differs from the method's other trials.
        method: with everything but the number of outer steps.
        noise: held noise sd; None learns it.
        tasks: to fit to; None is all there are.
        adaptation: in place of the method's own, for new tasks; free Q_i have none.
    """

    label: str
    method: Method
    noise: float | None = PLAIN
    tasks: int | None = None
    adaptation: Method | None = None


def _maml(name: str) -> tuple[Setting, ...]:
    make = getattr(bm.methods, name)
    return tuple(
        Setting(
            f"outer lr {outer:g}",
            make(steps=1, lr=0.01, support=SUPPORT, batch=BATCH, compile=True, outer_lr=outer),
        )
        for outer in (2e-3, 4e-3)
    )


def _reptile() -> tuple[Setting, ...]:
    choices = ((10, 0.02, "adam", 3e-3), (10, 0.02, "sgd", 1.0))
    return tuple(
        Setting(
            f"{steps} steps of {lr:g}, {optimiser} {outer:g}",
            bm.methods.reptile(
                steps=steps, lr=lr, optimiser=optimiser, outer_lr=outer, batch=BATCH, compile=True
            ),
        )
        for steps, lr, optimiser, outer in choices
    )


def _imaml(name: str) -> tuple[Setting, ...]:
    split = {} if name == "variational_imaml" else {"support": SUPPORT}
    return tuple(
        Setting(
            f"λ {lam:g}, {steps} steps of {lr:g}, {curvature}, outer lr {outer:g}",
            getattr(bm.methods, name)(
                steps=steps, lr=lr, lam=lam, curvature=curvature, batch=BATCH, outer_lr=outer,
                compile=True, **split,
            ),
        )
        for lam, steps, lr, curvature, outer in (
            (0.1, 16, 0.01, "ggn", 4e-3),
            (0.1, 16, 0.005, "ggn", 4e-3),
        )
    )  # fmt: skip


def _imaml_hf() -> tuple[Setting, ...]:
    return tuple(
        Setting(
            f"λ {lam:g}, {steps} Newton steps, outer lr {outer:g}",
            bm.methods.imaml_hf(
                steps=steps, newton_cg_steps=5, lam=lam, support=SUPPORT, batch=BATCH,
                outer_lr=outer, compile=True,
            ),
        )
        for lam, steps, outer in ((0.1, 3, 4e-3), (1.0, 3, 4e-3))
    )  # fmt: skip


def _laplace() -> tuple[Setting, ...]:
    """Few Newton steps while fitting, all 50 for new tasks. Compiling it would take minutes."""
    settled = bm.methods.laplace(covariance="diagonal")
    return tuple(
        Setting(
            f"{'learned' if noise is None else 'held'} noise, outer lr {outer:g}",
            bm.methods.laplace(covariance="diagonal", steps=5, batch=BATCH, outer_lr=outer),
            noise=noise,
            adaptation=settled,
        )
        for noise, outer in ((PLAIN, 1e-2), (None, 1e-2))
    )


def _joint() -> tuple[Setting, ...]:
    """Every step moves every Q_i, so few tasks mean many steps."""
    settled = bm.methods.joint(covariance="diagonal", steps=400, warmup=0.0, lr=0.01, draws=2)
    return tuple(
        Setting(
            f"{tasks} tasks, {'learned' if noise is None else 'held'} noise, lr {outer:g}",
            bm.methods.joint(covariance="diagonal", lr=outer),
            noise=noise,
            tasks=tasks,
            adaptation=settled,
        )
        for tasks, noise, outer in ((100, None, 0.01), (100, PLAIN, 0.01))
    )


GRID: dict[str, tuple[Setting, ...]] = {
    "maml": _maml("maml"),
    "fomaml": _maml("fomaml"),
    "reptile": _reptile(),
    "imaml": _imaml("imaml"),
    "imaml_hf": _imaml_hf(),
    "variational_imaml": _imaml("variational_imaml"),
    "laplace": _laplace(),
    "joint": _joint(),
}
CHOSEN = {
    "maml": 1,
    "fomaml": 1,
    "reptile": 0,
    "imaml": 1,
    "imaml_hf": 0,
    "variational_imaml": 1,
    "laplace": 0,
    "joint": 0,
}
