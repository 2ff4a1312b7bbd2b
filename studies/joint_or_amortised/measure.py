"""Every method on every family: fitted, judged on unseen tasks, and asked what it can reach."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

import bayesmeta as bm
from bayesmeta.diagnostics import (
    calibration_rmse,
    coverage,
    expected_calibration_error,
    trace_convergence,
)
from bayesmeta.diagnostics.calibration import LEVELS
from bayesmeta.fit import Prediction
from studies.joint_or_amortised.contestants import LINEAR, NETWORK, Steps, contestants
from studies.joint_or_amortised.problem import COUNTS, Count, Problem, merged, problem

Row = dict[str, Any]
OWN, DESCENT = "own", "descent"
"""Rules of adaptation: the method's own, and the same few gradient steps from every θ₀."""
ORACLE, POOLED, SOLVED, JOINT = "oracle", "pooled", "joint, solved", "joint"
RESTARTED = ", restarted"
VAGUE = 100.0
"""Variance of the prior under which all rows are pooled."""


@dataclass(frozen=True)
class Size:
    """How much is computed.

    Args:
        seeds: by family; each has tasks, a first network and noise of its own.
        counts: by family, of tasks and rows.
        linear, network: outer steps.
        descent: gradient steps that are to find the Q_i of the fit again.
        pooled: steps of the fit to all rows.
        points: of an unseen task that adaptation sees.
        draws: of every predictive.
    """

    seeds: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTS, 2))
    counts: dict[str, Count] = field(default_factory=lambda: COUNTS)
    linear: Steps = LINEAR
    network: Steps = NETWORK
    pooled: int = 200
    descent: int = 500
    points: tuple[int, ...] = (1, 2, 5, 10, 20)
    draws: int = 200


SIZE = Size()
TINY = Steps(
    solved=3,
    joint=3,
    points=3,
    variational=1,
    laplace=1,
    imaml=1,
    maml=1,
    adaptation=2,
    newton=(1, 2),
    moves=2,
)
QUICK = Size(
    seeds={"linear": 1, "sinusoid": 1},
    counts={name: Count(6 if name != "schools" else 80, 4, 3, 3) for name in COUNTS},
    linear=TINY,
    network=TINY,
    pooled=5,
    descent=3,
    points=(5,),
    draws=20,
)


@dataclass(frozen=True, eq=False)
class Judged:
    """A predictive, held against the query rows of unseen tasks.

    Args:
        nll: (task,) −log predictive density in nats per row.
        held: (2,) share of rows in the 50 and 90 % intervals; NaN where y is 0 or 1.
        calibration: RMSE of coverage over levels; where y is 0 or 1, expected calibration error.
    """

    nll: Tensor
    held: Tensor
    calibration: float


def measured(size: Size, device: str) -> Iterator[Row]:
    """Rows of panel "fit", one per fit, and of panel "curve", one per method, rule and points."""
    for name, seeds in size.seeds.items():
        judged: dict[tuple[str, str, int], list[Judged]] = defaultdict(list)
        for seed in range(seeds):
            one = problem(name, seed, size.counts[name], device)
            for row in _one(one, seed, size, judged):
                yield {"panel": "fit", "family": name, "seed": seed} | row
        for (method, rule, points), values in judged.items():
            baseline = judged[JOINT, rule, points]
            plain = judged.get((method.removesuffix(RESTARTED), rule, points))
            found = summary(values, baseline)
            if method.endswith(RESTARTED) and plain is not None:
                found |= {f"restart_{k}": v for k, v in gained(values, plain).items()}
            yield {
                "panel": "curve", "family": name, "method": method, "rule": rule,
                "points": points, "seeds": seeds, **found,
            }  # fmt: skip


def _one(
    one: Problem, seed: int, size: Size, judged: dict[tuple[str, str, int], list[Judged]]
) -> Iterator[Row]:
    """Fit all methods to one problem; what they predict goes into `judged`."""
    steps, variance = (size.network if one.network else size.linear), None
    carrier = bare(one)
    for name, contestant in contestants(one, steps).items():
        started = time.process_time()
        fit = contestant.fit(one, variance, seed)
        seconds = time.process_time() - started
        if name in (SOLVED, JOINT) and variance is None:
            variance = float(fit.prior.sd().square().mean())
        yield {"method": name, "seconds": seconds, **_reached(one, fit, size)}
        for points in size.points:
            own = fit.adapt(one.first(points))
            moved = descended(carrier, one, fit.prior.mean, points, steps.moves)
            for rule, source in ((OWN, own), (DESCENT, moved)):
                prediction = source.predict(one.query, draws=size.draws)
                judged[name, rule, points].append(judge(prediction, one.query))
    for name, rule, points, prediction in _references(one, carrier, size, steps.moves):
        judged[name, rule, points].append(judge(prediction, one.query))


def _references(
    one: Problem, carrier: bm.Fit, size: Size, moves: int
) -> Iterator[tuple[str, str, int, Prediction]]:
    """The law that tasks come from, and one model for all rows of all training tasks."""
    model = one.model(None)
    wide = bm.Prior("isotropic", learn="none").at(mean=model.start, variance=VAGUE)
    points = bm.methods.joint(covariance="point", steps=size.pooled)
    pooled = bm.fit(model, merged(one.train), method=points, prior=wide)
    theta, stay = pooled.posterior.mean[0], bm.methods.fomaml(steps=0, support=None)
    still = replace(pooled, fitted_prior=at(theta)).adapt(one.first(1), method=stay)
    for points in size.points:
        few = one.first(points)
        moved = descended(carrier, one, theta, points, moves)
        if one.oracle is not None:
            yield ORACLE, OWN, points, one.oracle(few, one.query, size.draws)
        yield POOLED, OWN, points, still.predict(one.query, draws=size.draws)
        yield POOLED, DESCENT, points, moved.predict(one.query, draws=size.draws)


def bare(one: Problem) -> bm.Fit:
    """A fit of nothing: it carries the model, with the noise under which starts are compared."""
    stay, model = bm.methods.fomaml(steps=0, support=None), one.model(one.noise)
    return bm.fit(model, one.first(1), method=stay, prior=at(model.start))


def at(theta: Tensor) -> bm.Prior:
    """Nothing but a θ₀: unanchored descent does not see the variance."""
    return bm.Prior("isotropic", learn="none").at(mean=theta, variance=1.0)


def descended(carrier: bm.Fit, one: Problem, theta: Tensor, points: int, steps: int) -> bm.Fit:
    """Unseen tasks at the end of so many gradient steps from θ₀, without an anchor."""
    method = bm.methods.fomaml(steps=steps, lr=one.rate, support=None)
    return replace(carrier, fitted_prior=at(theta)).adapt(one.first(points), method=method)


def _reached(one: Problem, fit: bm.Fit, size: Size) -> Row:
    """How the descent ended, and in joint fits M that adaptation from θ₀ does not reach."""
    ended = trace_convergence(fit.trace)
    found = {
        "outer_steps": len(fit.trace),
        "trace": ended.verdict,
        "drift": ended.drift / len(one.train),
        "noise": fit.noise,
        "prior_sd": float(fit.prior.sd().square().mean().sqrt()),
        "evidence": fit.log_evidence / len(one.train),
    }
    if isinstance(fit.choices.posterior, bm.methods.Free):
        missed = -fit.reachability_gap()
        found |= {"missed": float(missed.mean()), "missed_worst": float(missed.max())}
    if fit.choices.kl == "quadratic":
        m = bm.methods
        plain = m.GradientDescent(one.rate, size.descent)
        method = m.Method(m.Proximal(), plain, m.Direct(), m.Variational())
        missed = fit.task_evidence - fit.adapt(one.train, method=method).task_evidence
        found |= {"missed_by_descent": float(missed.mean())}
    return found


def judge(prediction: Prediction, query: bm.TaskFamily) -> Judged:
    """The predictive against what was observed."""
    y, rows = query.tensors["y"], query.rows
    assert prediction.log_density is not None
    nll = -prediction.log_score() / rows
    binary = bool(((y == 0) | (y == 1)).all())
    if binary:
        seen = prediction.log_density.exp().mean(0)
        success = torch.where(y == 1, seen, 1 - seen)
        classes = torch.stack([1 - success, success], -1)[prediction.mask]
        error = expected_calibration_error(classes, y[prediction.mask].long())
        return Judged(nll, torch.full((2,), math.nan), error)
    inside = coverage(prediction.draws, y, levels=LEVELS, mask=prediction.mask)
    held = inside[[LEVELS.index(0.5), LEVELS.index(0.9)]]
    return Judged(nll, held, calibration_rmse(inside, LEVELS))


def summary(values: list[Judged], baseline: list[Judged]) -> Row:
    """Over the unseen tasks of all seeds: mean, its 95 % interval, median, and gain on `baseline`.

    Args:
        values: of each seed.
        baseline: the same tasks by another method.
    """
    nll = torch.cat([one.nll for one in values]).cpu()
    root = math.sqrt(len(nll))
    half, mean = 1.96 * float(nll.std()) / root, float(nll.mean())
    held = torch.stack([one.held.cpu() for one in values]).mean(0).tolist()
    return {
        "tasks": len(nll),
        "nll": mean,
        "nll_low": mean - half,
        "nll_high": mean + half,
        "nll_median": float(nll.median()),
        "nll_seed_sd": float(torch.stack([one.nll.mean() for one in values]).std(correction=0)),
        **gained(values, baseline),
        "held_50": held[0],
        "held_90": held[1],
        "calibration": sum(one.calibration for one in values) / len(values),
    }


def gained(values: list[Judged], baseline: list[Judged]) -> Row:
    """Nats per row by which NLL is below the baseline's on the same tasks, with standard error."""
    ours, theirs = (torch.cat([one.nll for one in some]).cpu() for some in (values, baseline))
    gain = theirs - ours
    return {"gain": float(gain.mean()), "gain_se": float(gain.std()) / math.sqrt(len(gain))}
