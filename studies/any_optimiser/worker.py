"""Train every start of one family and seed, and test it with every algorithm."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

import bayesmeta as bm
from bayesmeta.empirical import Empirical
from bayesmeta.methods import Algorithmic, FirstOrder, Method, Validation
from studies.any_optimiser.settings import TESTS, Size, trained
from studies.any_optimiser.tasks import FAMILIES

WIDTH = 32
SCALE = 0.5**0.5
"""The noise sd under which nats are squared errors."""


def measure(family: str, seed: int, size: Size, device: str) -> list[dict[str, Any]]:
    """A row per method and algorithm."""
    train, support, query = (part.to(device=device) for part in FAMILIES[family](seed, size))
    rows = []
    for name, method in trained(size).items():
        started = time.perf_counter()
        fitted = bm.fit(
            _model(seed), train, method=method, prior=bm.Prior("point"), seed=seed,
            standardise=False,
        )  # fmt: skip
        common = {"family": family, "method": name, "seed": seed, "outer_steps": size.steps}
        common["seconds"] = time.perf_counter() - started
        before = _errors(fitted, fitted.prior.mean[None, None], query)
        rows += [
            common | _test(fitted, test, support, query, size) | {"before": before}
            for test in list(TESTS)[:: size.every]
        ]
    return rows


def _model(seed: int) -> bm.Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = (
            nn.Linear(1, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 1)
        )  # fmt: skip
        return bm.Model(nn.Sequential(*layers), bm.likelihoods.Gaussian(scale=SCALE))


def _test(
    fitted: bm.Fit, name: str, support: bm.TaskFamily, query: bm.TaskFamily, size: Size
) -> dict[str, Any]:
    """Errors of one algorithm, whose noise is the same for every start."""
    test = TESTS[name]
    method = Method(Algorithmic(samples=size.draws), test.algorithm, FirstOrder(), Validation(None))
    adapted = replace(fitted, choices=method).adapt(support)
    posterior = adapted.posterior.gaussian
    draws = posterior.draws if isinstance(posterior, Empirical) else None
    theta = posterior.mean[None] if draws is None else draws
    return {
        "algorithm": name,
        "seen": test.seen,
        "error": _errors(fitted, theta, query),
        "error_at_mean": _errors(fitted, theta.mean(0, keepdim=True), query),
        "tasks": len(query),
        "draws": len(theta),
    }


def _errors(fitted: bm.Fit, theta: Tensor, query: bm.TaskFamily) -> float:
    """Mean squared error over draws, tasks and rows, in variances of y; θ (draw, task, dim)."""
    y = query.tensors["y"]
    theta = theta.expand(-1, len(y), -1)
    with torch.no_grad():
        predicted = fitted.model.predict(theta, query.batch())
    return float((predicted - y).double().square().mean())
