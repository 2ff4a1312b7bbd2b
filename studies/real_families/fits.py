"""Every method's fit of a set, brought to one form and to the table's units."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

import bayesmeta as bm
from bayesmeta.judging import scored_rows
from bayesmeta.methods import Direct, Implicit, Method, Newton, Proximal, Variational
from bayesmeta.results import InputError
from studies.real_families.sets import Set, Units

MANY_TASKS = 200
SINGULAR = 1e-9


@dataclass(frozen=True)
class Size:
    """How much of everything.

    Args:
        steps: outer steps of noisy descents; those of deterministic ones end by themselves.
        draws, warmup: of NUTS, one chain.
        sets: names; None is all.
        methods: names; None is all.
    """

    steps: int = 200
    draws: int = 800
    warmup: int = 250
    sets: tuple[str, ...] | None = None
    methods: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Found:
    """What one method says of one set.

    Args:
        mean: θ₀ and then the shared weights; None: nothing, for the reason in `why`.
        sd: of the prior; None where the method has or learns none.
        task_mean, task_sd: (task, dim) of every Q_i; no sds for points.
        noise: sd.
        evidence, kind: nats, and what they are.
        seconds: taken.
        why: what is missing here, and what was done about it.
    """

    mean: np.ndarray | None = None
    sd: np.ndarray | None = None
    task_mean: np.ndarray | None = None
    task_sd: np.ndarray | None = None
    noise: float | None = None
    evidence: float | None = None
    kind: str = ""
    seconds: float | None = None
    why: str = ""


def plain(one: Set, method: Method, prior: bm.Prior | None = None) -> bm.Fit:
    """A fit to the table as it is."""
    return bm.fit(one.model(), one.family, method=method, prior=prior, standardise=False)


def base_of(one: Set, fits: dict[str, bm.Fit]) -> tuple[bm.Fit, str]:
    """The fit whose prior is held when posteriors are compared, and what it is.

    The exact one or that by quadrature, which are the reference's; with a hyper-prior that avoids
    the boundary where all prior sds are zero and there is nothing to compare.
    """
    name = "joint" if one.linear_gaussian else "quadrature"
    if float(fits[name].prior.sd().max()) > 0:
        return fits[name], name
    avoiding = bm.Prior("full", hyperprior="boundary-avoiding")
    return plain(one, fits[name].choices, avoiding), f"{name}, boundary-avoiding hyper-prior"


def held(fit: bm.Fit, base: bm.Fit) -> tuple[np.ndarray, np.ndarray]:
    """(task, dim) means and sds of a method's Q_i under the prior and ψ of another fit."""
    under = replace(fit, model=base.model, fitted_prior=base.fitted_prior).adapt(base.family)
    return under.posterior.mean.numpy(), under.posterior.sd().numpy()


def as_found(fit: bm.Fit, why: str = "") -> Found:
    """A fit to the table as it is, in the common form."""
    shared = [float(v) for v in _shared(fit)]
    return Found(
        mean=np.array([*fit.prior.mean.tolist(), *shared]),
        sd=fit.prior.sd().numpy(),
        task_mean=fit.posterior.mean.numpy(),
        task_sd=fit.posterior.sd().numpy(),
        noise=fit.noise,
        evidence=fit.log_evidence,
        kind=fit.evidence_kind,
        seconds=fit.seconds,
        why=why,
    )


def exact_methods(one: Set) -> dict[str, Method]:
    """The methods that take a table as it is."""
    found = {"joint": bm.methods.joint(), "laplace": bm.methods.laplace()}
    if not one.linear_gaussian:
        found["quadrature"] = bm.methods.laplace(points=one.points)
    return found


def descents(steps: int) -> dict[str, Callable[[float | None, int | None], Method]]:
    """The methods that descend on standardised columns, given `support` and `batch`.

    The variational ones adapt by Newton's method: gradient descent with one step size diverges
    where tasks differ in rows (radon) or Σ₀ is small (baseball). Sixteen draws are held, so that M
    is a function; with batches of tasks there is a new one at every step.
    """
    m = bm.methods
    outer = {"outer_steps": steps, "outer_lr": 0.05}

    newton = Newton(tolerance=1e-9)

    def variational(support: float | None, batch: int | None) -> Method:
        posterior, rule = Proximal("full"), Implicit("cholesky")
        noise = {"noise": "common", "draws": 16} if batch is None else {"lr": 0.05, "steps": steps}
        return Method(posterior, newton, rule, Variational(), batch=batch, **noise)

    return {
        "variational_imaml": lambda support, batch: Method(
            Proximal("point"), newton, Direct(), Variational()
        ),
        "variational_laplace": variational,
        "imaml_hf": lambda support, batch: m.imaml_hf(
            steps=3, newton_cg_steps=3, cg_steps=3, support=support, batch=batch, **outer
        ),
        "maml": lambda support, batch: m.maml(
            steps=5, lr=0.1, support=support, batch=batch, **outer
        ),
        "reptile": lambda support, batch: m.reptile(
            steps=5, lr=0.1, batch=batch, outer_steps=steps
        ),
    }


POINTS = {
    "variational_imaml": "point: no posterior sd; Σ₀ held at the exact or quadrature fit's",
    "imaml_hf": "point: no posterior sd; one variance for all standardised weights",
    "maml": "point, no Σ₀: neither sd",
    "reptile": "point, Σ₀ = I held: neither sd",
}


def descended(one: Set, name: str, method: Callable[..., Method], base: bm.Fit) -> Found:
    """A descent in standardised units; what the library refuses becomes its sentence."""
    model, family, units = one.scaled()
    why = [POINTS[name]] if name in POINTS else []
    rows = family.rows
    batch = 64 if len(family) > MANY_TASKS else None
    support, trained = 0.5, family
    if name in ("maml", "imaml_hf") and int(rows.min()) == 1:
        if int(rows.max()) == 1:
            support = None
            why.append("one row a task, which cannot be split: support=None, the same row twice")
        else:
            several = [i for i, n in enumerate(rows.tolist()) if n > 1]
            trained = family.subset(several)
            why.append(f"{len(rows) - len(several)} one-row tasks adapted only, not trained on")
    prior = None
    if name == "variational_imaml":
        batch = None
        prior = _held_prior(base, units)
        if prior is None:
            return Found(why="refused: Σ₀ is singular, so its pull on a point is infinite")
    if batch is not None:
        why.append(f"{batch} tasks a step")
    made = method(support, batch)
    started = time.perf_counter()
    try:
        fit = bm.fit(model, trained, method=made, prior=prior, standardise=False)
        adapted = fit if trained is family else fit.adapt(family)
    except InputError as error:
        return Found(why=f"refused: {error}")
    why += [note for note in fit.notes if note.startswith("The outer loop")]
    if fit.flagged:
        why.append(f"{len(fit.flagged)} tasks flagged: {fit.flagged[0].why.partition(':')[0]}")
    return _in_table_units(
        one, fit, adapted, units, name, time.perf_counter() - started, "; ".join(why)
    )


def _held_prior(base: bm.Fit, units: Units) -> bm.Prior | None:
    """The base's Σ₀ in the units of the descent, held; None where it is singular."""
    back = torch.linalg.inv(torch.as_tensor(_adapted_scale(base, units)))
    law = base.prior.gaussian.linear(back)
    if float(torch.linalg.eigvalsh(law.correlation())[0]) < SINGULAR:
        return None
    start = law.mean if base.model.spec is None else torch.zeros_like(law.mean)
    covariance = law.covariance()
    return bm.Prior("full", learn="mean").at(mean=start, covariance=covariance)


def _in_table_units(
    one: Set,
    fit: bm.Fit,
    adapted: bm.Fit,
    units: Units,
    name: str,
    seconds: float,
    why: str,
) -> Found:
    scale = _adapted_scale(fit, units)
    dim = len(scale)
    shared = np.array([float(v) for v in _shared(fit)])
    mean = units.scale @ np.concatenate([fit.prior.mean.numpy(), shared]) + units.shift
    shift = units.shift[:dim] + units.scale[:dim, dim:] @ shared
    tasks = adapted.posterior
    spread = scale @ tasks.covariance().numpy() @ scale.T
    task_sd = np.sqrt(np.diagonal(spread, axis1=-2, axis2=-1))
    covariance = scale @ fit.prior.covariance().numpy() @ scale.T
    scored = int(scored_rows(fit.choices, fit.family).sum())
    return Found(
        mean=mean,
        sd=None if name in ("maml", "reptile", "variational_imaml") else _sds(covariance),
        task_mean=tasks.mean.numpy() @ scale.T + shift,
        task_sd=None if name in POINTS else task_sd,
        noise=None if fit.noise is None else fit.noise * units.y,
        evidence=fit.log_evidence - scored * np.log(units.y),
        kind=fit.evidence_kind,
        seconds=seconds,
        why=why,
    )


def _adapted_scale(fit: bm.Fit, units: Units) -> np.ndarray:
    dim = fit.model.dim
    return units.scale[:dim, :dim]


def _sds(covariance: np.ndarray) -> np.ndarray:
    return np.sqrt(covariance.diagonal())


def _shared(fit: bm.Fit) -> torch.Tensor:
    """The module's shared weights, in one vector."""
    weights = [v.detach().flatten() for v in fit.model.shared_weights.values()]
    return torch.cat(weights) if weights else torch.zeros(0)
