"""What starts are trained with, and what they are tested with.

Step sizes are for the mean squared error of standardised y, but for Adam and RMSProp, where they
are in units of θ. Those of momentum, Adam, Nesterov, RMSProp and SGLD are among the better ones of
three or four for a start trained by `shared` with a seed that the study does not use, and the same
for both families. The other three that are new to every start differ in one number from the SGD of
the training.

The outer step size is one with which all methods train: with 0.02, in 350 steps, one start of
separate paths was thrown far out by steep gradients early on, on one of three partitions of the
chicks, and no start of another method was.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from bayesmeta import methods
from bayesmeta.methods import Adam, GradientDescent, Method, Mixture, Momentum, Nesterov, RMSProp

SUPPORT = 6
PATHS = 4
BATCH = 10
OUTER_LR = 0.01
SGD = GradientDescent(0.05, 5, rows=2)
FULL_BATCH = GradientDescent(0.05, 5)
ADAM = Adam(0.01, 3, rows=4)
MIXTURE = Mixture((SGD, GradientDescent(0.1, 2, rows=4), Momentum(0.01, 3, rows=2), ADAM))


@dataclass(frozen=True)
class Size:
    """How much of everything.

    Args:
        seeds: of data, starting weights and all noise.
        steps: outer steps.
        train: sinusoids to train on.
        sinusoids: unseen ones per seed.
        splits: of every unseen chick into support and query.
        draws: runs of an algorithm on every unseen task.
        every: so-manieth algorithm is tested, the first to begin with.
        compile: whether to compile what can be.
        keep: whether finished seeds are kept until the last one is.
    """

    seeds: int = 10
    steps: int = 600
    train: int = 500
    sinusoids: int = 60
    splits: int = 3
    draws: int = 8
    every: int = 1
    compile: bool = True
    keep: bool = True


FULL = Size()
QUICK = Size(
    seeds=2, steps=2, train=12, sinusoids=5, splits=1, draws=2, every=3, compile=False, keep=False
)


@dataclass(frozen=True)
class Test:
    """An algorithm that starts are tested with.

    Args:
        algorithm: it, with its numbers.
        seen: by the training of "stochastic" starts (all but MAML's), of "mixture" or "maml" only,
            or of "none".
    """

    algorithm: Any
    seen: str = "none"


TESTS = {
    "SGD, as trained": Test(SGD, "stochastic"),
    "full batch": Test(FULL_BATCH, "maml"),
    "Adam": Test(ADAM, "mixture"),
    "SGD, 1 row a step": Test(GradientDescent(0.05, 5, rows=1)),
    "SGD, twice the steps": Test(GradientDescent(0.05, 10, rows=2)),
    "SGD, 1.5 × the step size": Test(GradientDescent(0.075, 5, rows=2)),
    "Nesterov": Test(Nesterov(0.025, 5, condition=10.0, rows=2)),
    "RMSProp": Test(RMSProp(0.002, 5, rows=2)),
    "preconditioned SGLD": Test(
        methods.SGLD(0.05, 5, temperature=1e-4, preconditioned=True, decay=0.9, rows=2)
    ),
}


def trained(size: Size) -> dict[str, Method]:
    """The methods, of equal outer steps and, where they are random, equal paths per task."""
    outer: dict[str, Any] = {
        "support": SUPPORT, "batch": BATCH, "outer_steps": size.steps, "outer_lr": OUTER_LR,
    }  # fmt: skip
    noisy = outer | {"samples": 2}
    quick = {"compile": size.compile}
    half = PATHS // 2
    shared = methods.stochastic(algorithm=SGD, draws=PATHS, **noisy, **quick)
    return {
        "shared": shared,
        "shared_mean": at_mean(shared),
        "separate": methods.two_path(
            algorithm=SGD, forward=half, backward=half, every_pair=True, **noisy, **quick
        ),
        "mixture": methods.stochastic(algorithm=MIXTURE, draws=PATHS, **noisy),
        "maml": methods.maml(steps=FULL_BATCH.steps, lr=FULL_BATCH.lr, **outer, **quick),
    }


def at_mean(method: Method) -> Method:
    """The same with M at the mean of the paths, each of which is on both sides of the gradient."""
    return replace(method, objective=replace(method.objective, at="mean"))
