"""The four families: training tasks, unseen tasks, the model, and what is known of the truth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import bayesmeta as bm
from bayesmeta.families import Truth
from studies._sets import frame
from studies.joint_or_amortised import oracle

F64 = torch.float64
SEEN = 20
"""Rows of an unseen task that adaptation may see; all others are predicted."""
WIDTHS = (12, 12)
LINEAR_NOISE, WAVE_NOISE = 0.5, 0.3
START = (1.0, -0.5, 0.5)
SPREAD = ((1.0, 0.3, 0.3), (0.3, 1.0, 0.3), (0.3, 0.3, 1.0))
SCHOOL_COLUMNS = ("ses", "sx", "minrty")
LEAST_PUPILS = 35


@dataclass(frozen=True)
class Count:
    """How many tasks, and rows of each.

    Args:
        train, rows: that are fitted.
        unseen, query: new tasks, and the rows of each that are predicted.
    """

    train: int
    rows: int
    unseen: int
    query: int


COUNTS = {
    "linear": Count(60, 20, 60, 30),
    "logistic": Count(80, 30, 60, 60),
    "sinusoid": Count(100, 20, 40, 40),
    "schools": Count(50, 0, 0, 0),  # rows and unseen schools are those that the data have
}


@dataclass(frozen=True, eq=False)
class Problem:
    """One draw of a family.

    Args:
        name: of the family.
        train: the tasks to fit to.
        support: SEEN rows of each unseen task, in random order.
        query: its other rows.
        model: by noise sd (None learns it) a fresh model.
        noise: the sd under which all starts are compared; None where rows have no noise sd.
        rate: step size of the gradient descent that compares them, for the mean loss of rows.
        oracle: prediction by the law that tasks are drawn from, from (support, query, draws).
    """

    name: str
    train: bm.TaskFamily
    support: bm.TaskFamily
    query: bm.TaskFamily
    model: Callable[[float | None], bm.Model]
    noise: float | None
    rate: float
    oracle: oracle.Reference | None

    @property
    def network(self) -> bool:
        """Whether the prediction is not linear in the weights."""
        return self.name == "sinusoid"

    def first(self, points: int) -> bm.TaskFamily:
        """The first so many support rows of each unseen task; more points hold fewer."""
        tensors = {name: values[:, :points] for name, values in self.support.tensors.items()}
        return bm.TaskFamily(tensors, names=self.support.names)


def problem(name: str, seed: int, count: Count, device: str) -> Problem:
    """A family's training and unseen tasks, the same for the same seed."""
    make = {"linear": _linear, "logistic": _logistic, "sinusoid": _sinusoid, "schools": _schools}
    return make[name](seed, count, device)


def merged(family: bm.TaskFamily) -> bm.TaskFamily:
    """All rows of all tasks as the rows of one."""
    mask = family.mask
    rows = torch.ones_like(family.tensors["y"], dtype=torch.bool) if mask is None else mask
    return bm.TaskFamily.from_tensors(
        **{name: values[rows][None] for name, values in family.tensors.items()}, names=["all"]
    )


def _drawn(
    draw: Callable[..., tuple[bm.TaskFamily, Truth]],
    seed: int,
    count: Count,
    device: str,
    **laws: object,
) -> tuple[bm.TaskFamily, bm.TaskFamily, bm.TaskFamily, Truth]:
    """Training tasks, unseen support and query rows of a family with known truth, and the truth."""
    generator = torch.Generator().manual_seed(seed)
    train, truth = draw(tasks=count.train, rows=count.rows, generator=generator, **laws)
    rows = SEEN + count.query
    unseen, _ = draw(tasks=count.unseen, rows=rows, generator=generator, **laws)
    names = [f"new {i}" for i in range(count.unseen)]
    unseen = bm.TaskFamily(unseen.tensors, names=names)
    support, query = unseen.split(SEEN, torch.Generator().manual_seed(seed))
    train, support, query = (family.to(device=device) for family in (train, support, query))
    return train, support, query, truth


def _affine(features: int, likelihood: bm.likelihoods.Likelihood) -> bm.Model:
    module = torch.nn.Linear(features, 1, dtype=F64)
    for weights in module.parameters():
        torch.nn.init.zeros_(weights)
    return bm.Model(module, likelihood)


def _linear(seed: int, count: Count, device: str) -> Problem:
    """Straight planes with correlated Gaussian weights: the exact fit has a closed form."""
    laws = {"theta0": START, "covariance": SPREAD, "noise": LINEAR_NOISE}
    train, support, query, truth = _drawn(bm.families.linear_gaussian, seed, count, device, **laws)

    def model(noise: float | None) -> bm.Model:
        return _affine(len(START) - 1, bm.likelihoods.Gaussian(scale=noise))

    known = oracle.held_prior(model(LINEAR_NOISE), truth)
    return Problem("linear", train, support, query, model, LINEAR_NOISE, 0.05, known)


def _logistic(seed: int, count: Count, device: str) -> Problem:
    """Binary rows whose log-odds are such planes."""
    laws = {"theta0": START, "covariance": SPREAD}
    train, support, query, truth = _drawn(bm.families.logistic, seed, count, device, **laws)

    def model(noise: float | None) -> bm.Model:
        return _affine(len(START) - 1, bm.likelihoods.Bernoulli())

    known = oracle.held_prior(model(None), truth)
    return Problem("logistic", train, support, query, model, None, 0.2, known)


def _sinusoid(seed: int, count: Count, device: str) -> Problem:
    """MAML's sinusoids with noise, and a tanh network 1-12-12-1 with all weights adapted."""
    laws = {"noise": WAVE_NOISE}
    train, support, query, _ = _drawn(bm.families.sinusoid, seed, count, device, **laws)

    def model(noise: float | None) -> bm.Model:
        likelihood = bm.likelihoods.Gaussian(scale=noise)
        return bm.models.mlp(WIDTHS, train, likelihood, seed=seed)

    known = oracle.Waves(WAVE_NOISE)
    return Problem("sinusoid", train, support, query, model, WAVE_NOISE, 0.01, known)


def _schools(seed: int, count: Count, device: str) -> Problem:
    """Mathematics achievement of pupils in schools, each school a plane; half of them unseen.

    x and y in sds of the training schools' pupils. Only schools with LEAST_PUPILS or more, so that
    rows are left to predict.
    """
    table = frame("hsb82").assign(
        sx=lambda t: t.sx.eq("Female"), minrty=lambda t: t.minrty.eq("Yes")
    )
    schools = [
        torch.tensor(rows[[*SCHOOL_COLUMNS, "mAch"]].to_numpy(dtype=float), dtype=F64)
        for _, rows in table.groupby("school")
        if len(rows) >= LEAST_PUPILS
    ]
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(schools), generator=generator).tolist()
    train = [schools[i] for i in order[: count.train]]
    unseen = [
        schools[i][torch.randperm(len(schools[i]), generator=generator)]
        for i in order[count.train :]
    ]
    pupils = torch.cat(train)
    centre, scale = pupils.mean(0), pupils.std(0)

    def family(parts: list[Tensor], prefix: str) -> bm.TaskFamily:
        rows = [(part - centre) / scale for part in parts]
        names = [f"{prefix} {i}" for i in range(len(parts))]
        made = bm.TaskFamily.from_tensors(
            x=[r[:, :-1] for r in rows], y=[r[:, -1] for r in rows], names=names
        )
        return made.to(device=device)

    def model(noise: float | None) -> bm.Model:
        return _affine(len(SCHOOL_COLUMNS), bm.likelihoods.Gaussian(scale=noise))

    support = family([part[:SEEN] for part in unseen], "new")
    query = family([part[SEEN:] for part in unseen], "new")
    fitted = family(train, "old")
    noise = bm.fit(model(None), fitted).noise  # of the exact fit, where none is known
    return Problem("schools", fitted, support, query, model, noise, 0.05, None)
