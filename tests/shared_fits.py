"""Small fits that one process does alone and several share, each a function of dtype and steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from small_images import bank
from torch import Tensor

import bayesmeta as bm
from bayesmeta import families, likelihoods, methods, models
from bayesmeta.gradients.implicit import Implicit

TASKS = 7  # so the shares of two processes are uneven, and batches of 3 leave a rest of 1
STEPS = 8
Build = Callable[[torch.dtype], tuple[bm.Model, Any]]


def sinusoids(dtype: torch.dtype, tasks: int = TASKS) -> tuple[bm.Model, bm.TaskFamily]:
    generator = torch.Generator().manual_seed(3)
    family, _ = families.sinusoid(tasks=tasks, rows=(6, 9), noise=0.3, generator=generator)
    family = family.to(dtype=dtype)
    return models.mlp((5,), family, likelihoods.Gaussian(), seed=1), family


def lines(dtype: torch.dtype) -> tuple[bm.Model, bm.TaskFamily]:
    generator = torch.Generator().manual_seed(3)
    family, _ = families.linear_gaussian(tasks=TASKS, rows=(5, 9), generator=generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = torch.nn.Linear(1, 1)
    return bm.Model(module, likelihoods.Gaussian()), family.to(dtype=dtype)


def characters(dtype: torch.dtype) -> tuple[bm.Model, bm.FewShot]:
    # Fewer shots leave the last batch normalisation three numbers, and rounding grows with steps.
    stream = bm.FewShot(bank(images=7), ways=3, shots=5, queries=2, dtype=dtype)
    return models.conv4(3, (1, 8, 8), filters=4), stream


def three(dtype: torch.dtype) -> tuple[bm.Model, bm.TaskFamily]:
    return sinusoids(dtype, tasks=3)


def one(dtype: torch.dtype) -> tuple[bm.Model, bm.TaskFamily]:
    return sinusoids(dtype, tasks=1)


ADAM = {"optimiser": "adam", "outer_lr": 0.01, "support": 4}
SGD = {"optimiser": "sgd", "outer_lr": 0.05}
JOINT = {"covariance": "diagonal", "lr": 0.01}
WARM = Implicit(steps=3, warm_start=True)
IMAML = methods.imaml(steps=3, lr=0.05, **ADAM)
CASES: dict[str, tuple[Build, Any]] = {
    # Q_i that are functions of θ₀
    "maml, batches": (sinusoids, methods.maml(lr=0.05, batch=3, **ADAM)),
    "maml, query sets": (sinusoids, methods.maml(lr=0.05, support=None, **SGD)),
    "reptile": (sinusoids, methods.reptile(steps=3, lr=0.05, outer_lr=0.1)),
    "imaml": (sinusoids, IMAML),
    "imaml, three tasks": (three, IMAML),
    "imaml, warm": (sinusoids, replace(IMAML, gradient=WARM)),
    "imaml, warm batches": (sinusoids, replace(IMAML, gradient=WARM, batch=3)),
    "maml, quasi-newton": (sinusoids, methods.maml(lr=0.05, support=None)),
    "Gaussian Q": (
        sinusoids,
        methods.variational_imaml(
            covariance="diagonal", steps=3, lr=0.05, draws=3, optimiser="adam", batch=3
        ),
    ),
    "paths in batches": (
        sinusoids,
        methods.stochastic(lr=0.05, rows=2, steps=3, draws=3, samples=5, batch=3, **SGD),
    ),
    # a stream
    "few-shot": (
        characters,
        methods.maml(lr=0.1, batch=4, support=None, optimiser="adam", outer_lr=0.001),
    ),
    # Q_i that are stored
    "joint": (sinusoids, methods.joint(**JOINT, draws=2)),
    "joint, batches": (sinusoids, methods.joint(**JOINT, batch=3, draws=3)),
    "joint, low rank": (sinusoids, methods.joint(covariance="lowrank(2)", lr=0.01)),
    "joint, closed form": (sinusoids, methods.joint(**JOINT, prior_update="closed_form")),
    "joint, reset": (sinusoids, methods.joint(**JOINT, reset_every=5)),
    "joint, lines in batches": (lines, methods.joint(solver="gradient", batch=3)),
    "joint, common noise": (sinusoids, methods.joint(**JOINT, noise="common")),
    "joint, exact": (lines, methods.joint()),
}
CASES["joint, hyper-prior"] = CASES["joint"]
PRIORS = {"joint, hyper-prior": bm.Prior("diagonal", hyperprior="boundary-avoiding")}
TOO_FEW = {
    "joint of one task": (one, methods.joint(**JOINT)),
    "batches of one task": (sinusoids, methods.maml(batch=1, **ADAM)),
}


def fitted(
    name: str,
    dtype: torch.dtype = torch.float64,
    steps: int = STEPS,
    *,
    nudge: float = 0.0,
    **options: Any,
) -> bm.Fit:
    """One of the fits, of so many outer steps, from a start that is moved by `nudge`."""
    build, method = (CASES | TOO_FEW)[name]
    model, tasks = build(dtype)
    with torch.no_grad():
        for weight in model.module.parameters():
            weight.add_(nudge)
    options = {"seed": 5, "prior": PRIORS.get(name)} | options
    return bm.fit(model, tasks, method=replace(method, steps=steps), **options)


def numbers(fit: bm.Fit) -> dict[str, Tensor]:
    """All that a fit has found."""
    found = {
        "theta0": fit.prior.mean,
        "sd": fit.prior.sd(),
        "evidence": fit.task_evidence,
        "posterior": fit.posterior.mean,
        "spread": fit.posterior.sd(),
        "trace": torch.tensor(fit.trace, dtype=torch.float64),
    }
    return {k: v.detach().clone().contiguous() for k, v in (found | dict(fit.model.shared)).items()}
