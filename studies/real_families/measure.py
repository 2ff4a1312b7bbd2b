"""A set's rows: every method and reference, coefficient by coefficient, with its distances.

    mean_off     θ₀ or a shared weight minus the reference's, in the reference's standard errors
    sd_off       prior sd over the reference's, minus 1; noise_off likewise
    nats         log evidence minus the reference's of the same kind, where there is one
    tasks_mean   largest |difference| of the tasks' means, in posterior sds of the reference
    tasks_sd     largest |sd over the reference's sd − 1| of the tasks
    held_mean, held_sd   the same, with prior and ψ held at those that NUTS has too
    mean_error, sd_error  NUTS' largest standard errors, in the same units

The tasks' reference is the exact posterior at the reference's own estimates where tasks are linear
with Gaussian noise, NUTS elsewhere.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

import bayesmeta as bm
from studies.real_families import fits, references
from studies.real_families.fits import Found, Size
from studies.real_families.references import Reference
from studies.real_families.sets import Set

NUTS_TOO = ("sleepstudy", "eight_schools")
HELD = ("joint", "laplace")
Posterior = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Drawn:
    """What the page of spread plots needs of a set.

    Args:
        one: the set.
        fit: the base, drawn in blue and green.
        markers: (task, dim) means of the reference.
        source: what they are.
    """

    one: Set
    fit: bm.Fit
    markers: np.ndarray | None
    source: str


def compare(one: Set, size: Size) -> tuple[list[dict[str, Any]], Drawn]:
    """Rows of one set, and what is drawn of it."""
    exact = fits.exact_methods(one)
    if size.methods is not None:
        exact = {name: m for name, m in exact.items() if name in (*size.methods, "quadrature")}
    fitted = {name: fits.plain(one, method) for name, method in exact.items()}
    base, what = fits.base_of(one, fitted)
    best = references.recorded(one)
    nuts, sampled = _sampled(one, base, what, size)
    tasks = _exact_tasks(one, best) if one.linear_gaussian else nuts
    say = _Rows(one, best, tasks)
    rows = list(say.references())
    for name, fit in fitted.items():
        under = {}
        if name in HELD and nuts is not None:
            under = _apart(fits.held(fit, base), nuts, "held")
        rows += say.of(name, fits.as_found(fit), under)
    if not exact.get("quadrature"):
        rows += say.of("quadrature", Found(why="not needed: Laplace's method is exact here"), {})
    for name, method in fits.descents(size.steps).items():
        if size.methods is None or name in size.methods:
            rows += say.of(name, fits.descended(one, name, method, base), {})
    rows += say.of("nuts", *sampled)
    if base.prior.sd().max() > 0 and what.endswith("prior"):
        rows += say.of("boundary_avoiding", fits.as_found(base, "hyper-prior on Σ₀"), {})
    recorded = references.blups(one, one.family.names)
    markers = recorded if recorded is not None else tasks[0] if tasks is not None else None
    source = "recorded" if recorded is not None else "exact" if one.linear_gaussian else "NUTS"
    if what.endswith("prior"):
        markers, source = (None if nuts is None else nuts[0]), "NUTS"
    return rows, Drawn(one, base, markers, source)


def _exact_tasks(one: Set, best: Reference) -> Posterior:
    assert best.covariance is not None
    dim = len(best.sd)
    return references.posteriors(one.family, best.mean[:dim], best.covariance, best.noise)


def _sampled(
    one: Set, base: bm.Fit, what: str, size: Size
) -> tuple[Posterior | None, tuple[Found, dict[str, float]]]:
    """The tasks' means and sds by NUTS, and its own row."""
    if one.linear_gaussian and one.name not in NUTS_TOO:
        return None, (Found(why="not run: the tasks' posteriors are known in closed form"), {})
    if size.draws == 0:
        return None, (Found(why="not run"), {})
    started = time.perf_counter()
    drawn = bm.nuts(base, draws=size.draws, warmup=size.warmup)
    mean, sd = drawn.mean.numpy(), drawn.sd.numpy()
    squares = (drawn.draws - drawn.mean).square()
    sd_error = squares.std(0) / drawn.ess_of(squares).sqrt() / (2 * drawn.sd)
    errors = {
        "mean_error": float((drawn.mcse / drawn.sd).max()),
        "sd_error": float((sd_error / drawn.sd).max()),
        "divergences": drawn.divergences,
        "rhat": float(drawn.rhat.max()),
    }
    if one.linear_gaussian:
        theta0, spread = base.prior.mean.numpy(), base.prior.covariance().numpy()
        known = references.posteriors(one.family, theta0, spread, base.noise)
        errors |= _apart((mean, sd), known, "held")
    why = f"{size.draws} draws, prior and ψ held: {what}"
    found = Found(seconds=time.perf_counter() - started, why=why)
    return (mean, sd), (found, errors)


def _apart(found: Posterior, known: Posterior, name: str) -> dict[str, float]:
    """Largest differences of means and sds over all tasks and weights, in sds of the known."""
    mean, sd = (part.max(initial=0.0) for part in _differences(found, known))
    return {f"{name}_mean": float(mean), f"{name}_sd": float(sd)}


def _differences(found: Posterior, known: Posterior) -> tuple[np.ndarray, np.ndarray]:
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.abs(found[0] - known[0]) / known[1]
        return mean, np.abs(found[1] / known[1] - 1)


class _Rows:
    """Rows of a set, all measured from one reference.

    Args:
        one: the set.
        best: the reference by maximum likelihood.
        tasks: the tasks' posteriors to compare with.
    """

    def __init__(self, one: Set, best: Reference, tasks: Posterior | None) -> None:
        self.one, self.best, self.tasks = one, best, tasks
        self.laplace = references.recorded(one, laplace=True) if one.laplace else None
        model = one.model()
        shared = (model.spec or {}).get("shared_names", [])
        if not shared and model.shared_weights:
            shared = [name.rpartition(".")[2] for name in model.shared_weights]
        self.names = (*model.names, *shared)

    def of(self, method: str, found: Found, more: dict[str, float]) -> Iterator[dict[str, Any]]:
        """One row per coefficient."""
        for j, name in enumerate(self.names):
            varying = j < len(self.best.sd)
            row: dict[str, Any] = {
                "set": self.one.name,
                "method": method,
                "coefficient": name,
                "role": "adapted" if varying else "shared",
                "noise": found.noise,
                "noise_off": self._noise(found),
                "log_evidence": found.evidence,
                "evidence_kind": found.kind,
                "nats": self._nats(found),
                "seconds": found.seconds,
                "tasks": len(self.one.family),
                "rows": int(self.one.family.rows.sum()),
                "why": found.why,
            }
            if found.mean is not None:
                row["prior_mean"] = found.mean[j]
                row["mean_off"] = (found.mean[j] - self.best.mean[j]) / self.best.error[j]
            if varying and found.sd is not None:
                row["prior_sd"] = found.sd[j]
                known = self.best.sd[j]
                row["sd_off"] = found.sd[j] / known - 1 if known > 0 else None
            yield row | self._tasks(found) | more

    def references(self) -> Iterator[dict[str, Any]]:
        """Rows of the other programs."""
        kind = "exact" if self.one.linear_gaussian else "quadrature"
        yield from self.of("reference", _as_found(self.best, kind, "recorded"), {})
        if self.laplace is not None:
            found = _as_found(self.laplace, "laplace", "recorded, by Laplace's method")
            yield from self.of("reference_laplace", found, {})
        if self.one.linear_gaussian:
            ours = references.by_statsmodels(self.one)
            found = Found(why="MixedLM takes no known standard errors")
            if self.one.name == "insteval":
                found = Found(why="not run: it takes minutes")
            if ours is not None:
                found = _as_found(ours, "exact", 'MixedLM, method=["nm", "bfgs"]')
            yield from self.of("statsmodels", found, {})

    def _nats(self, found: Found) -> float | None:
        """From the reference of the same kind; a bound is measured from the evidence itself."""
        if found.evidence is None or found.kind in ("validation", "penalised", ""):
            return None
        if found.kind == "laplace" and not self.one.linear_gaussian:
            return None if self.laplace is None else found.evidence - self.laplace.log_likelihood
        return found.evidence - self.best.log_likelihood

    def _noise(self, found: Found) -> float | None:
        if found.noise is None or self.best.noise is None:
            return None
        return found.noise / self.best.noise - 1

    def _tasks(self, found: Found) -> dict[str, float]:
        """Largest differences of the tasks' posteriors; nothing where the reference has no sd."""
        if self.tasks is None or found.task_mean is None or not self.tasks[1].min() > 0:
            return {}
        sd = found.task_sd
        apart = _apart((found.task_mean, self.tasks[1] if sd is None else sd), self.tasks, "tasks")
        return apart if sd is not None else {"tasks_mean": apart["tasks_mean"]}


def _as_found(known: Reference, kind: str, why: str) -> Found:
    return Found(
        mean=known.mean,
        sd=known.sd,
        noise=known.noise,
        evidence=known.log_likelihood,
        kind=kind,
        seconds=known.seconds,
        why=why,
    )
