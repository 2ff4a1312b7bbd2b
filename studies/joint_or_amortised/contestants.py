"""The methods, each with one setting for linear predictors and one for the network.

All learn from the same tasks and learn the noise too. Points cannot teach Σ₀, so those that are
fitted by the variational M hold Λ at 1 / the mean variance of the prior that `joint` has found.
Where θ* is the minimum of an anchored loss it is found by Newton-CG, which has no step size. MAML
learns its step sizes, one per weight (Meta-SGD), so that how far it moves is not our choice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import bayesmeta as bm
from bayesmeta.methods import Method
from studies.joint_or_amortised.problem import SEEN, Problem

RESTART = 0.51
"""Of the steps before the restart: one, with about as many steps after it to settle."""
BATCH = 25


@dataclass(frozen=True)
class Contestant:
    """One way to fit θ₀.

    Args:
        method: of the fit.
        adaptation: of unseen tasks, where it is not the fit's own.
        held: whether Λ is held, and only θ₀ and the noise are learned.
    """

    method: Method
    adaptation: Method | None = None
    held: bool = False

    def fit(self, problem: Problem, variance: float | None, seed: int) -> bm.Fit:
        """The fit, which from then on adapts as unseen tasks are to be adapted.

        Args:
            problem: whose training tasks are fitted.
            variance: of the prior that is held.
            seed: of the noise.
        """
        model, prior = problem.model(None), None
        if self.held:
            assert variance is not None
            held = bm.Prior("isotropic", learn="mean")
            prior = held.at(mean=model.start, variance=variance)
        fit = bm.fit(model, problem.train, method=self.method, prior=prior, seed=seed)
        return fit if self.adaptation is None else replace(fit, choices=self.adaptation)


@dataclass(frozen=True)
class Steps:
    """Outer steps of every method: for the network so many that each has about as long.

    Args:
        solved, joint, points, variational, laplace, imaml, maml: outer steps at most.
        adaptation: steps of free Q_i under a prior that stands.
        moves: gradient steps by which all starts are compared.
        newton: steps, and CG steps in each, that find θ* of unseen tasks.
    """

    solved: int
    joint: int
    points: int
    variational: int
    laplace: int
    imaml: int
    maml: int
    adaptation: int
    newton: tuple[int, int]
    moves: int


LINEAR = Steps(
    solved=500, joint=400, points=400, variational=500, laplace=500, imaml=200, maml=300,
    adaptation=500, newton=(6, 4), moves=20,
)  # fmt: skip
NETWORK = Steps(
    solved=0, joint=1050, points=1350, variational=250, laplace=200, imaml=240, maml=380,
    adaptation=150, newton=(15, 10), moves=50,
)  # fmt: skip


def contestants(problem: Problem, steps: Steps) -> dict[str, Contestant]:
    """All that are fitted to a problem, by name."""
    return _network(problem, steps) if problem.network else _linear(problem, steps)


def _pair(
    name: str, make: Callable[..., Method], steps: int, adaptation: Method, *, held: bool
) -> dict[str, Contestant]:
    """A joint descent, and the same with every m_i restarted at θ₀ now and then."""
    ways = {name: None, f"{name}, restarted": max(1, round(RESTART * steps))}
    return {
        way: Contestant(make(steps=steps, reset_every=every), adaptation, held)
        for way, every in ways.items()
    }


def _linear(problem: Problem, steps: Steps) -> dict[str, Contestant]:
    # A batch of all tasks asks for Adam, beside which a restart is judged by like steps.
    descent = {"lr": 0.1, "batch": len(problem.train)}
    joint, points = _joint("full", **descent), _joint("point", **descent)
    few = {"steps": steps.adaptation}
    return {
        "joint, solved": Contestant(bm.methods.joint(steps=steps.solved)),
        **_pair("joint", joint, steps.joint, _joint("full")(**few), held=False),
        **_pair("joint points", points, steps.points, _joint("point")(**few), held=True),
        "variational iMAML": _variational(3, steps, {}),
        "Laplace": Contestant(bm.methods.laplace(outer_steps=steps.laplace)),
        **_validated(steps, batch=None),
    }


def _network(problem: Problem, steps: Steps) -> dict[str, Contestant]:
    joint = _joint("diagonal", lr=0.02)
    points = _joint("point", lr=0.02, batch=len(problem.train))
    # One Q_i under a prior that stands needs no warm-up, and fewer steps with more draws in each.
    settled = _joint("diagonal", lr=0.03, warmup=0.0, draws=2)
    few, newton = (
        {"steps": steps.adaptation},
        {"covariance": f"lowrank({SEEN})", "curvature": "ggn"},
    )
    outer = {"outer_lr": 0.02, "batch": BATCH}
    laplace = Contestant(
        bm.methods.laplace(**newton, steps=1, **outer, outer_steps=steps.laplace),
        bm.methods.laplace(**newton),
    )
    return {
        **_pair("joint", joint, steps.joint, settled(**few), held=False),
        **_pair("joint points", points, steps.points, _joint("point")(**few), held=True),
        "variational iMAML": _variational(2, steps, outer),
        "Laplace": laplace,
        **_validated(steps, batch=BATCH),
    }


def _joint(covariance: str, **fixed: Any) -> Callable[..., Method]:
    """Joint descent by the gradient solver, whose steps can be restarted."""

    def make(**options: Any) -> Method:
        return bm.methods.joint(covariance=covariance, solver="gradient", **fixed, **options)

    return make


def _variational(inner: int, steps: Steps, outer: dict[str, Any]) -> Contestant:
    """θ* is a function of θ₀, and M is differentiated by the envelope: points under a held Λ."""
    m = bm.methods
    choices = (m.Proximal(), m.NewtonCG(inner, 5), m.Direct(), m.Variational())
    method = Method.composed(*choices, outer | {"outer_steps": steps.variational})
    return Contestant(method, _to_the_end(method, steps), held=True)


def _to_the_end(method: Method, steps: Steps) -> Method:
    return replace(method, inner=bm.methods.NewtonCG(*steps.newton), batch=None)


def _validated(steps: Steps, batch: int | None) -> dict[str, Contestant]:
    """Fitted to query rows, half of each task's, drawn anew at every step."""
    imaml = bm.methods.imaml_hf(
        steps=2, newton_cg_steps=3, batch=batch, outer_lr=0.02, outer_steps=steps.imaml
    )
    maml = bm.methods.maml(
        steps=3, lr=0.02, learn_lr=True, batch=batch, outer_lr=0.01, outer_steps=steps.maml
    )
    return {"iMAML": Contestant(imaml, _to_the_end(imaml, steps)), "MAML": Contestant(maml)}
