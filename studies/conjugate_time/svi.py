"""The same hierarchical model by Pyro's stochastic variational inference, written to be fast.

    θ_i ~ N(θ₀, L Lᵀ)     y_ij ~ N(x_ijᵀ θ_i, σ²)     Q_i = N(m_i, S_i S_iᵀ)

All tasks are in one plate, every Q_i has a full covariance, the KL is analytic
(TraceMeanField_ELBO), validation is off, the columns of x and y are standardised, and Adam's step
size falls by a factor of 100 over the schedule. M is the objective of `bm.fit`. Pyro's jit is not
used: torch 2.13 cannot trace its KL of two multivariate Gaussians.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, TraceMeanField_ELBO
from pyro.optim import ClippedAdam
from torch import Tensor
from torch.distributions import MultivariateNormal, constraints, kl_divergence

import bayesmeta as bm

DECAY = 0.01
CHECK_EVERY = 25
NEVER = float("inf")


@dataclass(frozen=True)
class Setting:
    """How one run is tuned: Adam's first step size, steps of the schedule, draws per step."""

    lr: float
    steps: int
    particles: int

    def __str__(self) -> str:
        return f"lr {self.lr:g}, {self.steps} steps, {self.particles} draws"


@dataclass(frozen=True, eq=False)
class Data:
    """Standardised tensors: x (task, row, dim) with its column of ones, y and mask (task, row)."""

    x: Tensor
    y: Tensor
    mask: Tensor
    log_units: float

    @classmethod
    def read(cls, formula: str, frame: pd.DataFrame) -> Data:
        family = bm.TaskFamily.from_formula(formula, frame)
        x, y = family.tensors["x"].clone(), family.tensors["y"]
        mask = torch.ones_like(y, dtype=torch.bool) if family.mask is None else family.mask
        column = x[..., 1:][mask]
        x[..., 1:] = (x[..., 1:] - column.mean(0)) / column.std(0)
        scale = y[mask].std()
        return cls(x, (y - y[mask].mean()) / scale, mask, float(mask.sum() * scale.log()))


@dataclass(frozen=True)
class Outcome:
    """Seconds until the target (inf if never) and of the steps taken, and the ELBO at the end."""

    seconds: float
    elbo: float
    steps: int


def fit(
    formula: str,
    frame: pd.DataFrame,
    setting: Setting,
    *,
    target: float,
    seed: int,
    limit: float = NEVER,
) -> Outcome:
    """Descend until the ELBO, computed exactly and off the clock, reaches a target.

    Args:
        formula: one task-varying bar that holds all columns.
        frame: the table.
        setting: of Adam.
        target: nats, in the units of y.
        seed: of the draws.
        limit: seconds after which to give up.
    """
    with (
        torch.random.fork_rng(devices=[]),
        pyro.get_param_store().scope(),
        pyro.validation_enabled(False),
    ):
        torch.manual_seed(seed)
        started = time.perf_counter()
        data = Data.read(formula, frame)
        svi = _svi(data, setting)
        seconds = time.perf_counter() - started
        bound = -math.inf
        for done in range(CHECK_EVERY, setting.steps + 1, CHECK_EVERY):
            started = time.perf_counter()
            for _ in range(CHECK_EVERY):
                svi.step(data)
            seconds += time.perf_counter() - started
            bound = elbo(data)
            if bound >= target:
                return Outcome(seconds, bound, done)
            if seconds > limit:
                break
        return Outcome(NEVER, bound, setting.steps)


def elbo(data: Data) -> float:
    """−M of the parameters in Pyro's store, in closed form, in nats of y in original units."""
    value = pyro.param
    with torch.no_grad():
        root, noise = value("S"), value("noise")
        residual = data.y - (data.x @ value("m").unsqueeze(-1)).squeeze(-1)
        spread = (data.x @ root).square().sum(-1)
        density = -0.5 * (math.log(2 * math.pi) + 2 * noise.log())
        density = density - 0.5 * (residual.square() + spread) / noise.square()
        posterior = MultivariateNormal(value("m"), scale_tril=root)
        prior = MultivariateNormal(value("theta0"), scale_tril=value("L"))
        total = density[data.mask].sum() - kl_divergence(posterior, prior).sum()
        return float(total) - data.log_units


def _svi(data: Data, setting: Setting) -> SVI:
    objective = TraceMeanField_ELBO(
        num_particles=setting.particles,
        vectorize_particles=setting.particles > 1,
        max_plate_nesting=1,
    )
    options = {"lr": setting.lr, "lrd": DECAY ** (1 / setting.steps), "clip_norm": math.inf}
    return SVI(_model, _guide, ClippedAdam(options), objective)


def _model(data: Data) -> None:
    tasks, _, dim = data.x.shape
    theta0 = pyro.param("theta0", lambda: data.x.new_zeros(dim))
    root = pyro.param("L", lambda: torch.eye(dim).to(data.x), constraint=constraints.lower_cholesky)
    noise = pyro.param("noise", lambda: data.x.new_ones(()), constraint=constraints.positive)
    with pyro.plate("task", tasks):
        theta = pyro.sample("theta", dist.MultivariateNormal(theta0, scale_tril=root))
        mean = (data.x @ theta.unsqueeze(-1)).squeeze(-1)
        pyro.sample("y", dist.Normal(mean, noise).mask(data.mask).to_event(1), obs=data.y)


def _guide(data: Data) -> None:
    tasks, _, dim = data.x.shape
    mean = pyro.param("m", lambda: data.x.new_zeros(tasks, dim))
    root = pyro.param(
        "S",
        lambda: 0.3 * torch.eye(dim).to(data.x).expand(tasks, dim, dim).clone(),
        constraint=constraints.lower_cholesky,
    )
    with pyro.plate("task", tasks):
        pyro.sample("theta", dist.MultivariateNormal(mean, scale_tril=root))
