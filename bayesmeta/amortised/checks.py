"""What would make every run of an algorithm fail, or all runs the same, said before they start."""

from __future__ import annotations

import torch
from torch import Tensor

from bayesmeta.inner.noise import components, has
from bayesmeta.method import Method
from bayesmeta.models import Model
from bayesmeta.objective import Validation
from bayesmeta.prior import Prior
from bayesmeta.results import InputError
from bayesmeta.splits import support_rows, taken
from bayesmeta.tasks import TaskFamily


def check_minibatches(model: Model, method: Method, family: TaskFamily) -> None:
    """Refuse minibatches of what is no sum over rows, or cannot be applied to so few.

    Raises:
        InputError: the energy of all rows is not the sum of those of single rows, or the model
            fails on a minibatch.
    """
    sizes = [getattr(part, "rows", None) for part in components(method.inner)]
    sizes = [size for size in sizes if size is not None]
    if not sizes or family.mask is None:
        return
    one = family.batch(torch.tensor([0]))
    count = int(family.rows[0])
    place = family.mask[0].nonzero().flatten()
    theta = model.start[None] + 0.1
    shared = {name: value.detach() for name, value in model.shared.items()}

    def energy(rows: Tensor) -> Tensor:
        batch = taken(one, rows[None], torch.ones_like(rows[None], dtype=torch.bool))
        return model.energies(theta, batch, shared)[0]

    try:
        with torch.no_grad():
            energy(place[: min(sizes)])
            if model.likelihood is not None:
                return
            single = torch.stack([energy(row[None]) for row in place]).sum()
            whole = energy(place)
    except (RuntimeError, ValueError, IndexError) as error:
        raise InputError(
            f"the model cannot be applied to a minibatch of {min(sizes)} rows: "
            f"{str(error).splitlines()[0]}: leave rows= out"
        ) from error
    if not torch.isclose(single, whole, rtol=1e-4) and bool(single.isfinite() & whole.isfinite()):
        raise InputError(
            f"the energy is no sum over rows (its {count} rows have {float(single):.6g} nats one "
            f"by one, {float(whole):.6g} together), so a minibatch does not stand for all of them: "
            "leave rows= out, or put what belongs to no row into the prior"
        )


def check_random(method: Method, family: TaskFamily, *, query: bool) -> None:
    """Refuse minibatches that hold all rows of every task, where nothing else is random.

    Args:
        method, family: of the fit.
        query: whether query sets are given, so that all rows are support.

    Raises:
        InputError: with the number of rows that there are.
    """
    algorithm, *others = components(method.inner)
    if not method.stochastic or others or family.mask is None:
        return
    rows = getattr(algorithm, "rows", None)
    if rows is None or has(algorithm, "replacement", "dropout", "normals"):
        return
    count = family.rows
    objective = method.objective
    if isinstance(objective, Validation) and objective.support is not None and not query:
        count = support_rows(count, objective.support)
    if int(count.max()) <= rows:
        raise InputError(
            f"rows={rows} takes in every row that a task adapts to (at most {int(count.max())}), "
            "so all runs end in the same place: lower rows=, or use a method for deterministic "
            "algorithms (bm.methods.maml)"
        )


def check_anchor(method: Method, prior: Prior) -> None:
    """Refuse a prior whose pull is infinite in some direction.

    Raises:
        InputError: adaptation is anchored by a Σ₀ that is singular.
    """
    held = prior.has_values and prior.form.name != "point" and method.anchored
    if not held or method.lam is not None:
        return
    with torch.no_grad():
        gaussian = prior()
        singular = not bool((gaussian.log_det() > -torch.inf) & gaussian.sd().min().gt(0))
    if singular:
        raise InputError(
            "Σ₀ is singular (on its boundary), so its pull Λ = Σ₀⁻¹ on adaptation is infinite: add "
            'to its variances, or fit it with hyperprior="boundary-avoiding"'
        )
