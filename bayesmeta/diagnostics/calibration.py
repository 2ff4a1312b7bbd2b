"""Do probabilities come true: coverage, calibration errors by their definitions, predictive NLL.

Two numbers go by the name "calibration error" in the field. Here each is called what it is:
`calibration_rmse` (PACOH) and `calibration_mean_absolute` (PACOH-NN).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from bayesmeta.results import InputError

LEVELS = tuple(round(0.05 * i, 2) for i in range(1, 20))


def coverage(
    draws: Tensor, y: Tensor, *, levels: Sequence[float] = LEVELS, mask: Tensor | None = None
) -> Tensor:
    """Share of the observed y inside the central predictive interval of each level.

        c(p) = mean over rows of 1[(1−p)/2 ≤ F(y) ≤ (1+p)/2],    F the draws' distribution function

    A y that equals some draws (counts, classes) is inside when any value of F at its step is.

    Args:
        draws: (draw, ...) predictive draws.
        y: (...) what was observed.
        levels: probabilities of the intervals.
        mask: (...) True on real rows; all by default.

    Returns:
        (level,) in [0, 1].

    Raises:
        InputError: shapes disagree, a level is not in (0, 1), no row is real, or a draw is NaN.

    Example:
        >>> draws = torch.linspace(-1, 1, 1001)[:, None].expand(-1, 3)
        >>> coverage(draws, torch.tensor([0.0, 0.4, 0.9]), levels=[0.5, 0.95]).tolist()
        [0.6666666865348816, 1.0]
    """
    if draws.shape[1:] != y.shape:
        raise InputError(f"draws are {tuple(draws.shape)}, not (draw, ...) over y {tuple(y.shape)}")
    if not all(0 < level < 1 for level in levels):
        raise InputError(f"levels must lie between 0 and 1, not {list(levels)}")
    mask = torch.ones_like(y, dtype=torch.bool) if mask is None else mask
    if not bool(mask.any()):
        raise InputError("no row is real: there is nothing to cover")
    draws, y = draws[:, mask], y[mask]
    if bool(torch.isnan(draws).any() | torch.isnan(y).any()):
        raise InputError("a predictive draw or an observed y is not a number")
    below, up_to = (draws < y).double().mean(0), (draws <= y).double().mean(0)
    inside = [((1 - p) / 2 <= up_to) & (below <= (1 + p) / 2) for p in levels]
    return torch.stack(inside).to(torch.get_default_dtype()).mean(1)


def calibration_rmse(observed: Tensor, levels: Sequence[float] = LEVELS) -> float:
    """√ mean_p (c(p) − p)²: the root mean square over levels of coverage minus level.

    Args:
        observed: (level,) from `coverage`.
        levels: those that it was computed at.

    Example:
        >>> round(calibration_rmse(torch.tensor([0.5, 0.5]), [0.5, 0.9]), 4)
        0.2828
    """
    return _misses(observed, levels).square().mean().sqrt().item()


def calibration_mean_absolute(observed: Tensor, levels: Sequence[float] = LEVELS) -> float:
    """The mean over levels of |c(p) − p|.

    Args:
        observed: (level,) from `coverage`.
        levels: those that it was computed at.

    Example:
        >>> round(calibration_mean_absolute(torch.tensor([0.5, 0.5]), [0.5, 0.9]), 4)
        0.2
    """
    return _misses(observed, levels).abs().mean().item()


def expected_calibration_error(probabilities: Tensor, labels: Tensor, *, bins: int = 15) -> float:
    """ECE = Σ_b (n_b / n) |accuracy_b − confidence_b| over equal-width bins of the confidence.

    The confidence is the largest class probability (Guo et al. 2017, eq. 3). It should be the
    predictive probability, the mean over draws, and not that of one draw.

    Args:
        probabilities: (row, class), rows summing to 1.
        labels: (row,) class numbers.
        bins: number of bins in [0, 1].

    Raises:
        InputError: shapes disagree, or rows do not sum to 1.

    Example:
        >>> sure = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
        >>> expected_calibration_error(sure, torch.tensor([0, 1]))
        0.5
    """
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1]:
        raise InputError(
            f"probabilities must be (row, class) and labels (row,), not "
            f"{tuple(probabilities.shape)} and {tuple(labels.shape)}"
        )
    # Written so that NaN, which compares as False, is refused.
    if not bool(((probabilities.sum(1) - 1).abs() < 1e-4).all()):
        raise InputError("class probabilities do not sum to 1 in every row")
    confidence, predicted = probabilities.double().max(1)
    hit = (predicted == labels).double()
    place = (confidence * bins).long().clamp(max=bins - 1)
    gaps = torch.zeros(bins, dtype=torch.double, device=place.device)
    return gaps.index_add(0, place, hit - confidence).abs().sum().item() / len(labels)


def predictive_nll(log_density: Tensor, *, mask: Tensor | None = None) -> float:
    """−Σ_rows log mean_draws p(y_row | θ_draw): the negative log predictive density, in nats.

    The mean over draws is inside the logarithm. The mean of −log p over draws, often printed under
    the same name, is larger by Jensen's inequality and rewards a Q_i that is too narrow.

    Args:
        log_density: (draw, ...) log p(y | θ_draw) in nats.
        mask: (...) True on real rows; all by default.

    Returns:
        Nats, summed over rows; divide by their number to print a mean.

    Example:
        >>> halves = torch.tensor([[0.2], [0.4]]).log()  # the predictive density is 0.3
        >>> round(predictive_nll(halves), 4) == round(-math.log(0.3), 4)
        True
    """
    mixed = log_density.logsumexp(0) - math.log(len(log_density))
    return -(mixed if mask is None else torch.where(mask, mixed, 0.0)).sum().item()


def sbc_ranks(truth: Tensor, draws: Tensor) -> Tensor:
    """Ranks for simulation-based calibration: how many posterior draws lie below the truth.

    Over many simulations (θ from the prior, data from θ, draws from the posterior given the
    data) the ranks are uniform on 0, …, L when the posterior is right (Talts et al. 2018).

    Args:
        truth: (simulation, ...) the θ that made each data set.
        draws: (L, simulation, ...) independent posterior draws.

    Returns:
        (simulation, ...) integers from 0 to L.

    Example:
        >>> sbc_ranks(torch.tensor([0.0]), torch.tensor([[-1.0], [-2.0], [3.0]])).tolist()
        [2]
    """
    if draws.shape[1:] != truth.shape:
        raise InputError(
            f"draws are {tuple(draws.shape)}, not (draw, ...) over the truth {tuple(truth.shape)}"
        )
    return (draws < truth).sum(0)


def rank_uniformity(ranks: Tensor, draws: int, *, bins: int = 20) -> Tensor:
    """p-value of the χ² test that ranks are uniform on 0, …, draws.

    A posterior that is too narrow puts ranks at both ends, one too wide in the middle, one that
    is shifted at one end.

    Args:
        ranks: (simulation, ...) from `sbc_ranks`.
        draws: L, the number of draws that each rank was among.
        bins: of (nearly) equal numbers of ranks; at least 5 simulations should fall into each.

    Returns:
        (...) p-values.

    Raises:
        InputError: fewer than 5 simulations per bin, or more bins than ranks.
    """
    if len(ranks) < 5 * bins or bins > draws + 1:
        raise InputError(
            f"{len(ranks)} simulations with ranks among {draws} draws are too few for {bins} bins"
        )
    values = torch.arange(draws + 1, device=ranks.device)
    share = torch.bincount(values * bins // (draws + 1), minlength=bins).double() / (draws + 1)
    counts = torch.nn.functional.one_hot(ranks * bins // (draws + 1), bins).double().sum(0)
    expected = len(ranks) * share
    statistic = ((counts - expected).square() / expected).sum(-1)
    freedom = torch.full_like(statistic, (bins - 1) / 2)
    return torch.special.gammaincc(freedom, statistic / 2)


def _misses(observed: Tensor, levels: Sequence[float]) -> Tensor:
    if len(observed) != len(levels):
        raise InputError(f"{len(observed)} coverages for {len(levels)} levels")
    return observed.double() - torch.tensor(levels, dtype=torch.double, device=observed.device)
