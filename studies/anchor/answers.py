"""The library's own answers: dθ*/dθ₀, implicit gradients at known minima, and ends of SGLD.

Many anchors at once: a task's loss is moved by its `place`, f_i(place + θ) with the anchor at 0, so
that one family holds every task at every θ₀, and one call answers for them all.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

import bayesmeta as bm
from bayesmeta.methods import (
    SGLD,
    Algorithmic,
    FirstOrder,
    Implicit,
    Method,
    Newton,
    Proximal,
    Validation,
)
from studies.anchor.waves import F64, Waves
from studies.meta_gradient_accuracy.problem import Reached, Watched

STEPS = 40  # of Newton's method


@dataclass(frozen=True)
class Runs:
    """E f(θ_T) at every anchor: the mean over runs of SGLD, and its standard error."""

    mean: Tensor
    error: Tensor


@dataclass(frozen=True)
class Langevin:
    """SGLD: ε, T, τ and how many runs."""

    lr: float
    steps: int
    temperature: float
    runs: int


def response(waves: Waves, theta0: Tensor, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """The minimum that Newton's method finds from each θ₀, and the implicit dθ*/dθ₀ there.

    The meta-gradient of the query loss g(θ) = θ is the derivative of θ* itself.

    Args:
        waves: of one task.
        theta0: (point,).
        device: where.
    """
    seen: list[Tensor] = []
    method = Method(Proximal(), Watched(Newton(STEPS), seen), Implicit(), Validation(None))
    support, query = (family(waves, theta0, loss, device) for loss in (True, False))
    found = bm.meta_gradient(model(waves), prior(waves, device), support, method, query=query)
    return seen[-1][:, 0].cpu() + theta0, found.per_task[:, 0].cpu()


def implicit(waves: Waves, theta0: Tensor, minima: Tensor, device: str = "cpu") -> Tensor:
    """(task, point) the implicit gradient of f_i(θ*_i(θ₀)) where θ*_i is the global minimum.

    Args:
        waves: of all tasks.
        theta0: (point,).
        minima: (task, point) θ*.
        device: where.
    """
    reached = (minima - theta0).reshape(-1, 1).to(device)
    method = Method(Proximal(), Reached(reached), Implicit(), Validation(None))
    found = bm.meta_gradient(
        model(waves), prior(waves, device), family(waves, theta0, True, device), method
    )
    return found.per_task.view_as(minima).cpu()


def ends(
    waves: Waves, theta0: Tensor, langevin: Langevin, seed: int = 0, device: str = "cpu"
) -> Runs:
    """f where anchored runs of SGLD from each θ₀ end.

    Args:
        waves: of one task.
        theta0: (point,).
        langevin: the runs.
        seed: of their noise.
        device: where.
    """
    sgld = SGLD(langevin.lr, langevin.steps, temperature=langevin.temperature, per="task")
    posterior = Algorithmic(anchored=True, samples=langevin.runs)
    fit = bm.fit(
        model(waves),
        family(waves, theta0, True, device),
        method=Method(posterior, sgld, FirstOrder(), Validation(None)),
        prior=prior(waves, device),
        seed=seed,
    )
    assert fit.posterior.draws is not None
    g = waves.loss(fit.posterior.draws[..., 0].cpu().T + theta0[:, None])
    return Runs(g.mean(-1), g.std(-1) / langevin.runs**0.5)


def model(waves: Waves) -> bm.Model:
    """f_i moved to its place where `loss` is 1, and θ itself where it is 0."""

    def energy(theta: Tensor, place: Tensor, phases: Tensor, loss: Tensor) -> Tensor:
        moved = place + theta
        f = replace(waves, phases=phases[None]).loss(moved[None])
        return (loss * f + (1 - loss) * moved).sum()

    return bm.Model.from_energy(energy, 1)


def prior(waves: Waves, device: str) -> bm.Prior:
    """N(0, 1/λ): the anchor, seen from a task's place."""
    mean = torch.zeros(1, dtype=F64, device=device)
    return bm.Prior("isotropic", learn="none").at(mean=mean, variance=1 / waves.lam)


def family(waves: Waves, theta0: Tensor, loss: bool, device: str) -> bm.TaskFamily:
    """Every task at every anchor, tasks first."""
    count = len(waves) * len(theta0)
    return bm.TaskFamily.from_tensors(
        place=theta0.repeat(len(waves))[:, None],
        phases=waves.phases.repeat_interleave(len(theta0), 0),
        loss=torch.full((count, 1), float(loss), dtype=F64),
    ).to(device=device)
