"""Has a Markov chain mixed: split-R̂, and the effective sample size of its mean.

Both follow Vehtari, Gelman, Simpson, Carpenter & Bürkner (2021), without rank normalisation: they
speak of means and variances, which is what a fit is compared in.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

STILL = 1e-12  # range over magnitude below which a number did not move


def split_rhat(draws: Tensor) -> Tensor:
    """Split-R̂ = √(((n−1)/n W + B/n) / W) over the halves of each chain.

    Args:
        draws: (chain, draw, ...), at least 4 draws.

    Returns:
        (...) near 1 when all halves agree; 1 where nothing moves.
    """
    halves = _halves(draws)
    within, total = _variances(halves)
    return torch.where(_still(draws), 1.0, (total / within).sqrt())


def effective_size(draws: Tensor) -> Tensor:
    """Effective sample size N / (1 + 2 Σ ρ_t), the sum cut by Geyer's initial monotone sequence.

    Args:
        draws: (chain, draw, ...), at least 4 draws.

    Returns:
        (...) at most N log₁₀ N, as antithetic chains can exceed N; N where nothing moves.
    """
    halves = _halves(draws)
    within, total = _variances(halves)
    length = halves.shape[1]
    rho = 1 - (within - _autocovariance(halves).mean(0)) / total
    rho[0] = 1.0
    pairs = rho[: length - length % 2].unflatten(0, (-1, 2)).sum(1)
    positive = (pairs > 0).cumprod(0)
    monotone = torch.cummin(torch.where(positive.bool(), pairs, 0.0), 0).values
    count = halves.shape[0] * length
    size = count / (2 * monotone.sum(0) - 1).clamp(min=1 / math.log10(count))
    size = torch.where(total.isnan(), torch.nan, size)
    return torch.where(_still(draws), float(count), size)


def _halves(draws: Tensor) -> Tensor:
    half = draws.shape[1] // 2
    return torch.cat([draws[:, :half], draws[:, -half:]])


def _variances(chains: Tensor) -> tuple[Tensor, Tensor]:
    """W, and the estimate of the posterior variance from within and between chains."""
    length = chains.shape[1]
    within = chains.var(1).mean(0)
    return within, (length - 1) / length * within + chains.mean(1).var(0)


def _autocovariance(chains: Tensor) -> Tensor:
    """(chain, lag, ...) by the fast Fourier transform, biased (divided by the length)."""
    length = chains.shape[1]
    centred = chains - chains.mean(1, keepdim=True)
    spectrum = torch.fft.rfft(centred, n=2 * length, dim=1)
    power = spectrum.real.square() + spectrum.imag.square()
    return torch.fft.irfft(power, n=2 * length, dim=1)[:, :length] / length


def _still(draws: Tensor) -> Tensor:
    flat = draws.flatten(0, 1)
    return flat.amax(0) - flat.amin(0) <= STILL * flat.abs().amax(0)
