"""What would make every run of an algorithm fail, or all runs the same, said before they start."""

from __future__ import annotations

import torch

from bayesmeta.inner.noise import components
from bayesmeta.method import Method
from bayesmeta.objective import Validation
from bayesmeta.prior import Prior
from bayesmeta.results import InputError
from bayesmeta.splits import support_rows
from bayesmeta.tasks import TaskFamily


def check_random(method: Method, family: TaskFamily) -> None:
    """Refuse minibatches that hold all rows of every task, where nothing else is random.

    Raises:
        InputError: with the number of rows that there are.
    """
    algorithm, *others = components(method.inner)
    if not method.stochastic or others or family.mask is None:
        return
    rows = getattr(algorithm, "rows", None)
    other = ("replacement", "dropout", "normals")
    if rows is None or any(getattr(algorithm, name, False) for name in other):
        return
    count = family.rows
    if isinstance(method.objective, Validation) and method.objective.support is not None:
        count = support_rows(count, method.objective.support)
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
