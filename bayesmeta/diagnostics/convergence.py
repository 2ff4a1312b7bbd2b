"""Did the fit end: is the tail of M flat within its own noise, and is each Q_i its posterior?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from bayesmeta.arviz_export import pareto_k
from bayesmeta.fitted import Fit
from bayesmeta.results import Flag, InputError

TOLERANCE = 0.1  # nats, over the tail
RELATIVE = 1e-4  # of the whole descent
TAIL = 0.5  # share of the steps
BLOCKS = 10
LARGEST_T = 4.0  # 8 degrees of freedom: 4 in 1000 flat traces, more where blocks are correlated
FEWEST_NOISY = 4 * BLOCKS
ROUNDING = 1e-12
LARGEST_K = 0.7
LARGEST_RATIO_BLOCK = 2e7  # numbers in one padded (draw, task, row) block

ADVICE = {
    "flat": "",
    "falling": ": raise steps=, or lr=",
    "rising": ": lower lr=, or raise draws=",
    "too short": ": raise steps= if it was not solved exactly",
    "not finite": ": check the data's scale, or lower lr=",
}


@dataclass(frozen=True)
class TraceConvergence:
    """Whether an ELBO trace has come to rest. M = −ELBO, so it should fall and then stay.

    Args:
        verdict: "flat", "falling", "rising", "too short" or "not finite".
        steps: length of the trace.
        drift: change of M over the tail in nats, by the fitted slope; negative when it falls.
        drift_error: its standard error from the noise between blocks; 0 for a smooth trace.
        t: slope over its standard error; ±inf for a smooth trace that moves.
        relative_drift: |drift| over the descent of M from its first value to the tail's mean.
    """

    verdict: str
    steps: int
    drift: float = math.nan
    drift_error: float = math.nan
    t: float = math.nan
    relative_drift: float = math.nan

    @property
    def converged(self) -> bool:
        return self.verdict == "flat"

    @property
    def sentence(self) -> str:
        """What was found, with numbers, and what to try."""
        if self.verdict in ("too short", "not finite"):
            return f"the trace of {self.steps} steps is {self.verdict}{ADVICE[self.verdict]}"
        size = f"{self.drift:+.3g}"
        if self.drift_error > 0:
            size += f" ± {self.drift_error:.2g}"
        return (
            f"the trace of {self.steps} steps is {self.verdict}: M changes by {size} nats over "
            f"its last part ({self.relative_drift:.1g} of the whole descent)"
            f"{ADVICE[self.verdict]}"
        )


def trace_convergence(trace: Sequence[float], *, tail: float = TAIL) -> TraceConvergence:
    """Is the tail of a trace flat within its own noise?

    The tail is cut into 10 blocks, and a line is fitted to their means: the slope's standard error
    then holds for steps that are correlated over less than a block. The trace is flat when
    |t| < 4, or when the drift over the tail is below 0.1 nats or 1e-4 of the whole descent.
    A tail that never rises has no noise: its last tenth (at least two steps) is then judged by
    the drift alone.

    A flat trace is necessary, not sufficient: a step size that has fallen to zero makes one too,
    and where `drift_error` is large a slow fall can hide in it.

    Args:
        trace: M in nats, one value per outer step; values that are not finite are left out.
        tail: share of the steps at the end that is judged.

    Returns:
        TraceConvergence.

    Raises:
        InputError: tail is not between 0 and 1.

    Example:
        >>> trace_convergence([100.0 * 0.5**i for i in range(60)]).verdict
        'flat'
        >>> trace_convergence([100.0 - i for i in range(60)]).sentence[:37]
        'the trace of 60 steps is falling: M c'
    """
    if not 0 < tail <= 1:
        raise InputError(f"tail must lie between 0 and 1, not {tail}")
    steps = len(trace)
    values = np.asarray(trace, dtype=float)
    values = values[np.isfinite(values)]
    if steps > 2 * len(values):
        return TraceConvergence("not finite", steps)
    if len(values) < 3:
        return TraceConvergence("too short", steps)
    end = values[-max(3, round(tail * len(values))) :]
    if _never_rises(end):
        back = max(2, len(values) // 10)
        drift, error = float(values[-1] - values[-1 - back]), 0.0
    elif len(end) < FEWEST_NOISY:
        return TraceConvergence("too short", steps)
    else:
        drift, error = _drift(end)
    descent = max(abs(float(values[0] - end.mean())), float(np.ptp(end)), 1e-300)
    t = drift / error if error > 0 else math.copysign(math.inf, drift) if drift else 0.0
    small = abs(drift) < max(TOLERANCE, RELATIVE * descent)
    flat = small or abs(t) < LARGEST_T
    verdict = "flat" if flat else "falling" if drift < 0 else "rising"
    return TraceConvergence(verdict, steps, drift, error, t, abs(drift) / descent)


def khat(fit: Fit, *, draws: int = 2000, seed: int = 0) -> np.ndarray:
    """Pareto k̂ of each task's Q_i against its posterior p(θ | S_i, θ₀, Σ₀, ψ).

    Args:
        fit: a fit with a spread in its Q_i.
        draws: from each Q_i; with fewer than some 2,000 the threshold 0.7 is a little generous.
        seed: of the draws.

    Returns:
        (task,) k̂; see `bayesmeta.arviz_export.pareto_k`.

    Raises:
        InputError: the Q_i are points, which have no density to compare.
    """
    if fit.posterior.gaussian.is_point:
        raise InputError("point posteriors have no k̂: fit with a covariance form")
    generator = torch.Generator().manual_seed(seed)
    mask: Any = fit.family.mask
    width = max(1 if mask is None else mask.shape[1], len(fit.posterior.names))
    chunk = max(1, int(LARGEST_RATIO_BLOCK / (len(fit.family) * width)))
    sizes = [min(chunk, draws - start) for start in range(0, draws, chunk)]
    return pareto_k(torch.cat([fit.log_ratio(n, generator) for n in sizes]))


def khat_flags(fit: Fit, k: np.ndarray) -> list[Flag]:
    """A flag for every task whose k̂ is above 0.7.

    Args:
        fit: the fit, for its names.
        k: (task,) from `khat`.
    """
    return [
        Flag(
            task,
            f"Pareto k̂ is {value:.2f}, above {LARGEST_K}: Q_i is narrower than the posterior or "
            'misses part of it; use covariance="full", or compare with '
            f"bm.nuts(fit, task={task!r})",
        )
        for task, value in zip(fit.posterior.tasks, k, strict=True)
        if not value <= LARGEST_K
    ]


def _never_rises(values: np.ndarray) -> bool:
    return bool((np.diff(values) <= ROUNDING * np.abs(values).max()).all())


def _drift(values: np.ndarray) -> tuple[float, float]:
    """Change over the whole of `values` along a line through block means, and its error."""
    length = len(values) // BLOCKS
    means = values[-BLOCKS * length :].reshape(BLOCKS, length).mean(1)
    place = np.arange(BLOCKS) - (BLOCKS - 1) / 2
    slope = (place * means).sum() / np.square(place).sum()
    residual = means - means.mean() - slope * place
    error = math.sqrt(np.square(residual).sum() / (BLOCKS - 2) / np.square(place).sum())
    return float(BLOCKS * slope), float(BLOCKS * error)
