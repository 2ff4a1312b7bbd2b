"""The measurements, as rows of the table.

Relative numbers are divided by the length of ∇g(E_z θ_z) at the start.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from studies.two_paths.law import Quadratic, Walked, moved
from studies.two_paths.problem import DIM, F64, RULES, poisson_task, quadratic_family

Row = dict[str, Any]
FAR = 5.0
"""Where some path of a Poisson task goes beyond, it diverges, and its means mean nothing."""
AHEAD: dict[str, Callable[[int], int]] = {
    "shared": lambda paths: paths,
    "split halves": lambda paths: paths // 2,
    "every pair": lambda paths: paths - 1,
}
"""Of how many paths the slope is taken at the mean."""
ENDS = (("mean loss", 1), ("shared", 2), ("shared", 4), ("split halves", 2), ("every pair", 4))


@dataclass(frozen=True)
class Size:
    """How large a run is.

    Args:
        paths: K, per task and estimate.
        draws: paths per task, rule and K of the squared-error tasks.
        repeats: estimates per rule and K of the Poisson task.
        starts: other θ₀ at which the predictions are compared.
        runs: descents per rule.
        copies: estimates averaged in each of their steps.
        steps, settled: of a descent, and of these how many at the end are averaged.
    """

    paths: tuple[int, ...] = (2, 4, 8, 16, 32, 64)
    draws: int = 100_000
    repeats: int = 6000
    starts: int = 200
    runs: int = 6
    copies: int = 100
    steps: int = 140
    settled: int = 100


def quadratic(size: Size, device: str) -> Iterator[Row]:
    """Bias and spread on squared errors, measured and predicted."""
    problem = quadratic_family()
    law = Quadratic.of(problem)
    target = law.gradient(problem.theta0)
    off = law.gradient(problem.theta0, 1.0) - target
    along, unit = off / off.norm(), float(target.norm())
    for paths in size.paths:
        split, pairs = law.variances(problem.theta0, paths)
        known = {"split halves": split, "every pair": pairs}
        number = size.draws // paths
        for seed, rule in enumerate(RULES):
            found = problem.estimates(rule, paths, number, 10 * paths + seed, device)
            error, wanted = (found - target) @ along, off.norm() / paths * (rule == "shared")
            squares = (found - found.mean(0)).square().sum(1)
            variance = float(found.var(0).sum())
            yield {
                "panel": "quadratic",
                "rule": rule,
                "paths": paths,
                "estimates": number,
                "bias": float(error.mean()) / unit,
                "bias_error": _standard_error(error) / unit,
                "bias_predicted": float(wanted) / unit,
                "largest_z": _largest_z(found, target + off / paths * (rule == "shared")),
                "variance": variance / unit**2,
                "variance_error": _standard_error(squares) / unit**2,
                "variance_predicted": known.get(rule, math.nan) / unit**2,
                "rmse": math.sqrt(variance + float((found.mean(0) - target).square().sum())) / unit,
            }


def poisson(size: Size, device: str) -> Iterator[Row]:
    """Bias where ∇g is not linear.

    Each estimate less that of the loss's tangent parabola along the same paths, for which separate
    paths are unbiased: what is left is bias, and its spread falls with K as fast as it does.
    """
    problem = poisson_task()
    law = Walked.of(problem)
    unit = float(law.target.norm())
    for paths in size.paths:
        for rule in RULES:
            wanted = law.expected(rule, paths) - law.target
            found = problem.estimates(rule, paths, size.repeats, paths, device)
            control = "every pair" if rule == "shared" else rule
            flat = problem.estimates(control, paths, size.repeats, paths, device, law.tangent)
            left = found - flat
            bias = left.mean(0)
            yield {
                "panel": "poisson",
                "rule": rule,
                "paths": paths,
                "ahead": AHEAD[rule](paths),
                "estimates": size.repeats,
                "bias": float(bias.norm()) / unit,
                "bias_error": _standard_error(left @ bias / bias.norm()) / unit,
                "bias_predicted": float(wanted.norm()) / unit,
                "largest_z": _largest_z(left, wanted),
                "variance": float(found.var(0).sum()) / unit**2,
                "rmse": float(
                    (found.var(0).sum() + (found.mean(0) - law.target).square().sum()).sqrt()
                )
                / unit,
            }


def starts(size: Size, device: str) -> Iterator[Row]:
    """Predictions from other θ₀, by closed forms only: whether the one start above is typical."""
    squared, curved = quadratic_family(), poisson_task()
    law = Quadratic.of(squared)
    generator = torch.Generator().manual_seed(2)
    for number in range(size.starts):
        away = torch.randn(DIM, generator=generator, dtype=F64)
        split, pairs = law.variances(2.0 * away, 8)
        walked = Walked.of(moved(curved, 0.3 * away))
        bias = {rule: float((walked.expected(rule, 8) - walked.target).norm()) for rule in RULES}
        settled = bool((walked.theta.abs() < FAR).all())
        yield {
            "panel": "starts",
            "paths": 8,
            "start": number,
            "variance_ratio": split / pairs,
            "bias_ratio": bias["shared"] / bias["split halves"] if settled else math.nan,
        }


def descents(size: Size, device: str) -> Iterator[Row]:
    """Where descent on θ₀ by each rule ends, and the two objectives there."""
    problem = quadratic_family()
    law = Quadratic.of(problem)
    rate = 0.5 / float(torch.linalg.eigvalsh(law.curvature())[-1])
    for rule, paths in ENDS:
        mixed = {"mean loss": 1.0, "shared": 1 / paths}.get(rule, 0.0)
        fixed = law.fixed_point(mixed)
        ends = torch.stack(
            [_descend(problem, rule, paths, rate, run, size, device) for run in range(size.runs)]
        )
        for run, end in enumerate(ends):
            at_mean, spread = law.values(end)
            yield {
                "panel": "descent",
                "rule": rule,
                "paths": paths,
                "run": run,
                "mixed": mixed,
                "theta0_1": float(end[0]),
                "theta0_2": float(end[1]),
                "fixed_1": float(fixed[0]),
                "fixed_2": float(fixed[1]),
                "largest_z": _largest_z(ends, fixed),
                "loss_at_mean": at_mean,
                "spread": spread,
            }


def minima(size: Size, device: str) -> Iterator[Row]:
    """What K shared paths minimise, from K = 1, the mean loss, to the loss at the mean."""
    law = Quadratic.of(quadratic_family())
    for mixed in [k / 32 for k in range(33)]:
        fixed = law.fixed_point(mixed)
        at_mean, spread = law.values(fixed)
        yield {
            "panel": "minima",
            "mixed": mixed,
            "fixed_1": float(fixed[0]),
            "fixed_2": float(fixed[1]),
            "loss_at_mean": at_mean,
            "spread": spread,
        }


def _descend(
    problem: Any, rule: str, paths: int, rate: float, run: int, size: Size, device: str
) -> Tensor:
    """(dim,) the mean of the last θ₀ of one descent, whose fluctuations thereby average out."""
    theta0, seen = problem.theta0, []
    for step in range(size.steps):
        here = moved(problem, theta0)
        seed = 100_000 * run + 10 * step + paths
        gradient = here.estimates(rule, paths, size.copies, seed, device).mean(0)
        theta0 = theta0 - rate * gradient
        seen.append(theta0)
    return torch.stack(seen[-size.settled :]).mean(0)


def _standard_error(values: Tensor) -> float:
    return float(values.std() / len(values) ** 0.5)


def _largest_z(found: Tensor, wanted: Tensor) -> float:
    """The largest distance of a component's mean from what it should be, in standard errors."""
    error = found.std(0) / len(found) ** 0.5
    return float(((found.mean(0) - wanted) / error).abs().max())
