"""Did the fit end: is the tail of M flat within its own noise, and is each Q_i its posterior?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from bayesmeta.arviz_export import pareto_k
from bayesmeta.empirical import Empirical
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
EVEN = 0.98  # efficiency; a mean that is off by 0.14 sd, or an sd by 8 %, leaves no more
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
    |t| < 4, or when the drift over the tail is below 0.1 nats or 1e-4 of the whole descent; it is
    rising when its tail lies far above its first value.
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
    # Noise that grows with a divergence would hide it: M must not end far above its start.
    worse = float(np.median(end) - values[0]) > max(TOLERANCE, 2 * abs(float(values[0])))
    flat = (small or abs(t) < LARGEST_T) and not worse
    verdict = "flat" if flat else "falling" if drift < 0 and not worse else "rising"
    return TraceConvergence(verdict, steps, drift, error, t, abs(drift) / descent)


@dataclass(frozen=True, eq=False)
class Khat:
    """Importance ratios of each task's Q_i against its posterior, summed up.

    k̂ speaks of the far tail of the ratios, and only of its shape: where Q_i is right but for a
    tail that holds little, the few draws in that tail are large beside nearly equal others, and
    k̂ is large though nothing depends on them. The efficiency tells the two apart.

    Args:
        tasks: their names.
        k: (task,) Pareto k̂.
        efficiency: (task,) (Σ r)² / (n Σ r²), the share of draws that importance sampling keeps.
    """

    tasks: tuple[str, ...]
    k: np.ndarray
    efficiency: np.ndarray

    @property
    def large(self) -> np.ndarray:
        """(task,) whether k̂ is above 0.7, or not a number."""
        return ~(self.k <= LARGEST_K)

    @property
    def wrong(self) -> np.ndarray:
        """(task,) whether k̂ is above 0.7 and the ratios are uneven too: means and sds are off."""
        return self.large & ~(self.efficiency >= EVEN)

    @property
    def flags(self) -> list[Flag]:
        """One per task whose k̂ is above 0.7."""
        return [
            Flag(self.tasks[i], self._why(i, wrong=bool(self.wrong[i])))
            for i in self.large.nonzero()[0].tolist()
        ]

    def _why(self, i: int, *, wrong: bool) -> str:
        said = f"Pareto k̂ is {self.k[i]:.2f}, above {LARGEST_K}"
        if wrong:
            return (
                f"{said}: Q_i is narrower than the posterior or misses part of it; use "
                f'covariance="full", or compare with bm.nuts(fit, task={self.tasks[i]!r})'
            )
        return (
            f"{said}, with an efficiency of {self.efficiency[i]:.1%}: the mean and sd of Q_i are "
            "right to about 10 % of an sd, its far tail is not; for tail probabilities use "
            f"bm.nuts(fit, task={self.tasks[i]!r})"
        )


def khat(fit: Fit, *, draws: int = 2000, seed: int = 0) -> Khat:
    """Pareto k̂ of each task's Q_i against its posterior p(θ | S_i, θ₀, Σ₀, ψ).

    Args:
        fit: a fit with a spread in its Q_i.
        draws: from each Q_i; with fewer than some 2,000 the threshold 0.7 is a little generous.
        seed: of the draws.

    Returns:
        k̂ (see `bayesmeta.arviz_export.pareto_k`) and efficiency by task.

    Raises:
        InputError: the Q_i are points or draws, which have no density to compare.
    """
    if isinstance(fit.posterior.gaussian, Empirical):
        raise InputError(
            "the draws of a stochastic algorithm have no density, and so no k̂: hold them against "
            "bm.nuts(fit)"
        )
    if fit.posterior.gaussian.is_point:
        raise InputError("point posteriors have no k̂: fit with a covariance form")
    generator = torch.Generator().manual_seed(seed)
    mask: Any = fit.family.mask
    width = max(1 if mask is None else mask.shape[1], len(fit.posterior.names))
    chunk = max(1, int(LARGEST_RATIO_BLOCK / (len(fit.family) * width)))
    sizes = [min(chunk, draws - start) for start in range(0, draws, chunk)]
    ratios = torch.cat([fit.log_ratio(n, generator).cpu() for n in sizes]).double()
    size = (2 * ratios.logsumexp(0) - (2 * ratios).logsumexp(0)).exp()
    return Khat(fit.posterior.tasks, pareto_k(ratios), (size / draws).numpy())


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
