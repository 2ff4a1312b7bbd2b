"""What is to be said of a fit, in the words that a statistician expects."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from bayesmeta.gaussian import Gaussian
from bayesmeta.joint.problem import Estimate
from bayesmeta.models import Model
from bayesmeta.outer import PATIENCE
from bayesmeta.prior import Prior
from bayesmeta.results import Result
from bayesmeta.standardise import Standardisation
from bayesmeta.tasks import TaskFamily
from bayesmeta.weak import weak_note, weak_tasks

NO_NOISE = 1e-3
SEPARATED = 1e-3
WINDOWS = 10
"""Parts of a trace whose medians are compared, to tell a rise from noise."""
LARGE_RISE = 10.0


def fit_notes(estimate: Estimate, model: Model, prior: Prior, family: TaskFamily) -> list[str]:
    """Of the prior, the noise, the responses and the outer loop."""
    notes = []
    if prior.form.name == "point":
        notes.append(
            "This method learns a start θ₀ and no Σ₀: the prior has no sd, and draws for tasks "
            "without data are all at θ₀."
        )
    elif prior.learn == "all":
        notes += boundary_notes(estimate.prior().map(Tensor.detach), model.names)
    if prior.hyperprior is not None and prior.learn == "all":
        notes.append(
            "Σ₀ has the weak boundary-avoiding hyper-prior, so it is not a maximum-likelihood "
            "estimate; log_evidence leaves the hyper-prior out."
        )
    notes += _noise_notes(estimate, model, family) + _separation_notes(estimate, model, family)
    weak = weak_tasks(model, family, estimate.posterior.mean)
    notes += weak_note(weak, len(family))
    if estimate.trace.result is not Result.converged:
        notes.append(f"The outer loop {estimate.trace.result.sentence}.")
    if estimate.trace.skipped:
        notes.append(f"{estimate.trace.skipped} outer steps were not finite and were not taken.")
    if estimate.failures is not None:
        notes += estimate.failures.notes(len(estimate.trace.values))
    if estimate.trace.gave_up:
        notes.append(
            f"The outer loop gave up after {len(estimate.trace.values)} steps, as none of the last "
            f"{PATIENCE} could be taken: everything is as after the last good one. Lower lr=, or "
            "check the data of the flagged tasks."
        )
    return notes + _rise_notes(estimate.trace.values)


def _rise_notes(values: Sequence[float]) -> list[str]:
    """An M that ends far above where it has been."""
    known = np.array([value for value in values if np.isfinite(value)])
    if len(known) < 3 * WINDOWS:
        return []
    # The first third has its own rise where the KL's weight grows.
    medians = [float(np.median(part)) for part in np.array_split(known[len(known) // 3 :], WINDOWS)]
    rise = medians[-1] - min(medians)
    if rise <= max(LARGE_RISE, 0.5 * abs(min(medians))):
        return []
    sentence = (
        f"M ended {rise:.3g} nats above its least: the descent diverged, and what it found is not "
        "a minimum. Lower lr= (outer_lr=, where a method has both)."
    )
    return [sentence]


def _separation_notes(estimate: Estimate, model: Model, family: TaskFamily) -> list[str]:
    """Binary responses that the predictors tell apart without error."""
    kind = getattr(model.likelihood, "name", "")
    sure = estimate.log_evidence > -SEPARATED * family.observations
    if kind not in ("bernoulli", "binomial") or not sure:
        return []
    sentence = (
        "The predictors separate the responses (nearly) without error, so their weights have no "
        "finite maximum-likelihood value and the ones given are only large: leave a predictor out, "
        "or hold the prior."
    )
    return [sentence]


def _noise_notes(estimate: Estimate, model: Model, family: TaskFamily) -> list[str]:
    """A noise that has gone to zero, which no data of so few rows a task can rule out."""
    log_noise = estimate.shared.get("likelihood.log_scale")
    if log_noise is None or family.mask is None:
        return []
    if log_noise.exp() > NO_NOISE * model.response(family.tensors)[family.mask].std():
        return []
    sentence = (
        "The noise sd is estimated as practically 0: the tasks' weights fit their rows exactly, so "
        "intervals for new rows are too narrow. Give more rows per task, adapt fewer weights, or "
        "give the noise (a known scale, or standard errors)."
    )
    return [sentence]


def boundary_notes(prior: Gaussian, names: Sequence[str]) -> list[str]:
    """Sentences for a singular Σ₀, as a statistician expects them."""
    sd = prior.sd()
    zero = [name for name, value in zip(names, sd.tolist(), strict=True) if value == 0]
    notes = [
        f"The prior sd of {name} is estimated as 0 (the boundary): the tasks differ no more in it "
        "than noise alone explains, and every task has the same value. With few tasks, consider "
        "the boundary-avoiding hyper-prior."
        for name in zero
    ]
    rest = sd > 0
    count = int(rest.sum())
    if 2 <= count <= 50 and prior.factor is not None:
        values = torch.linalg.eigvalsh(prior.correlation()[rest][:, rest])
        if float(values[0]) < 1e-8:
            notes.append(
                "Σ₀ is singular (the boundary): a combination of "
                f"{', '.join(n for n, keep in zip(names, rest.tolist(), strict=True) if keep)} "
                "does not vary between tasks (a correlation of ±1 when there are two). Simplify "
                'the prior (form "diagonal"), or use the boundary-avoiding hyper-prior.'
            )
    return notes


def standardisation_notes(standardisation: Standardisation | None, model: Model) -> list[str]:
    """Which numbers are in which units."""
    if standardisation is None:
        return []
    return [
        "x" + (" and y were" if standardisation.y_scale != 1 else " was")
        + " standardised on the training tasks; predictions, noise and evidence are in original "
        f"units, the {model.dim} network weights in standardised ones."
    ]  # fmt: skip
