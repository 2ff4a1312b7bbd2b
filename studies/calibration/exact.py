"""Exact posteriors, apart from the library: in closed form, or from a grid over two weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal
from torch.nn.functional import softplus

from bayesmeta.families.draws import Truth
from studies.calibration.problem import F64, NOISE, Case, Tasks

REACH = 6.0
"""Prior sds from the prior's mean to the edge of the first grid."""
FIRST, SECOND = 49, 81
FAINT = 12.0
"""So many nats below the peak a node of the first grid counts for nothing."""
AT_ONCE = 4_000_000


@dataclass(frozen=True, eq=False)
class Exact:
    """Posteriors of all tasks, known by draws and by their first two moments.

    Args:
        draws: (draw, task, dim).
        mean: (task, dim).
        covariance: (task, dim, dim).
        gaussian: whether the moments are all there is to know.
    """

    draws: Tensor
    mean: Tensor
    covariance: Tensor
    gaussian: bool

    def sd(self, probes: Tensor) -> Tensor:
        """(task, probe) of linear functionals (probe, dim)."""
        return ((probes @ self.covariance) * probes).sum(-1).sqrt()

    def inside(self, probes: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """(task, probe) probability that each functional lies between these ends."""
        if self.gaussian:
            law = Normal(self.mean @ probes.mT, self.sd(probes))
            return law.cdf(high) - law.cdf(low)
        values = self.draws @ probes.mT
        return ((low <= values) & (values <= high)).to(low).mean(0)


def posterior(case: Case, tasks: Tasks, draws: int, generator: torch.Generator) -> Exact:
    """In closed form for linear regressions with Gaussian noise, else from a grid.

    Args:
        case: whose likelihood.
        tasks: whose support rows are conditioned on.
        draws: of each.
        generator: of the draws.
    """
    if case.linear:
        return closed_form(tasks, draws, generator)
    return _from_grid(tasks, case.likelihood, draws, generator)


def closed_form(tasks: Tasks, draws: int, generator: torch.Generator) -> Exact:
    """N((Λ + XᵀX/σ²)⁻¹ (Λθ₀ + Xᵀy/σ²), (Λ + XᵀX/σ²)⁻¹)."""
    truth, rows = tasks.truth, tasks.support.tensors
    x, y = rows["x"], rows["y"]
    if "bias[0]" in truth.names:
        x = torch.cat([x, torch.ones_like(x[..., :1])], -1)
    precision = torch.linalg.inv(truth.covariance)
    covariance = torch.linalg.inv(precision + x.mT @ x / NOISE**2)
    pull = precision @ truth.theta0 + (x.mT @ y[..., None])[..., 0] / NOISE**2
    mean = (covariance @ pull[..., None])[..., 0]
    root = torch.linalg.cholesky(covariance)
    noise = torch.randn(draws, *mean.shape, generator=generator, dtype=F64)
    return Exact(mean + (root @ noise[..., None])[..., 0], mean, covariance, True)


def _from_grid(tasks: Tasks, likelihood: str, draws: int, generator: torch.Generator) -> Exact:
    """A wide grid finds where each posterior is, and a fine one over that place is drawn from."""
    x, y = tasks.support.tensors["x"], tasks.support.tensors["y"]
    size = max(1, AT_ONCE // (SECOND**2 * y.shape[1]))
    parts = [
        _grid_of(tasks.truth, likelihood, x[i : i + size], y[i : i + size], draws, generator)
        for i in range(0, len(y), size)
    ]
    drawn, mean, covariance = zip(*parts, strict=True)
    return Exact(torch.cat(drawn, 1), torch.cat(mean), torch.cat(covariance), False)


def _grid_of(
    truth: Truth, likelihood: str, x: Tensor, y: Tensor, draws: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Draws, means and covariances of some tasks."""
    reach = REACH * truth.covariance.diagonal().sqrt()
    edges = torch.stack([truth.theta0 - reach, truth.theta0 + reach]).expand(len(y), 2, 2)
    nodes, _ = _nodes(edges, FIRST)
    seen = _log_density(truth, likelihood, nodes, x, y)
    kept = (seen > seen.amax(0) - FAINT)[..., None]
    margin = 2 * reach / (FIRST - 1)
    low = torch.where(kept, nodes, torch.inf).amin(0) - margin
    high = torch.where(kept, nodes, -torch.inf).amax(0) + margin
    nodes, step = _nodes(torch.stack([low, high], 1), SECOND)
    weight = _log_density(truth, likelihood, nodes, x, y).softmax(0)
    mean = (weight[..., None] * nodes).sum(0)
    away = nodes - mean
    covariance = torch.einsum("gt,gti,gtj->tij", weight, away, away)
    chosen = torch.multinomial(weight.mT, draws, replacement=True, generator=generator).mT
    places = nodes.gather(0, chosen[..., None].expand(-1, -1, 2))
    # Uniform within each cell, so that ranks have no ties.
    jitter = torch.rand(places.shape, generator=generator, dtype=F64) - 0.5
    return places + step * jitter, mean, covariance


def _nodes(edges: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """(node, task, 2) places of a grid from edges (task, 2, 2), and its steps (task, 2)."""
    unit = torch.linspace(0, 1, number, dtype=F64)
    places = torch.cartesian_prod(unit, unit)[:, None]
    span = edges[:, 1] - edges[:, 0]
    return edges[:, 0] + places * span, span / (number - 1)


def _log_density(truth: Truth, likelihood: str, nodes: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """(node, task) log p(θ) + log p(y | θ), up to a constant."""
    assert truth.curve is not None
    prior = MultivariateNormal(truth.theta0, truth.covariance)
    return prior.log_prob(nodes) + _log_likelihood(likelihood, truth.curve(nodes, x), y).sum(-1)


def _log_likelihood(likelihood: str, eta: Tensor, y: Tensor) -> Tensor:
    """(..., row) log p(y | η) up to a constant of y."""
    if likelihood == "gaussian":
        return -0.5 * ((y - eta) / NOISE).square()
    if likelihood == "bernoulli":
        return -softplus((1 - 2 * y) * eta)
    return y * eta - eta.exp()
