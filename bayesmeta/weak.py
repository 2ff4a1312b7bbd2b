"""Tasks whose own data say little or too much: alone they would have no finite estimate.

Nothing is wrong with them, and a prior is made for them; but their posteriors lean on it, so a
person should know which they are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bayesmeta.models import Model
from bayesmeta.results import Flag
from bayesmeta.tasks import TaskFamily

SINGLE = "has a single row, so its posterior is mostly the prior"
SAME = "has the same response in every row, so alone it has no finite estimate"
SEPARATED = (
    "has responses that its predictors separate without error, so alone it has no finite estimate"
)
BINARY = ("bernoulli", "binomial")
ROUNDS = 500


def weak_tasks(model: Model, family: TaskFamily, mean: Tensor) -> list[Flag]:
    """A flag for every task with one row, one response in all rows, or separated ones.

    A task is called separated where weights were found that predict every response: none is called
    so wrongly, and one that is separated by a hair, or by a network, may be missed.

    Args:
        model: that was fitted, with its ψ.
        family: its tasks, in the units of the fit.
        mean: (task, dim) of Q_i.
    """
    if model.likelihood is None or family.mask is None:
        return []
    rows = family.rows.cpu()
    found = {SINGLE: rows == 1} if not bool((rows == 1).all()) else {}
    if model.likelihood.responses != "real":
        extreme = _extreme(model, family)
        same = torch.stack([_every(family, part) for part in extreme]).any(0) & (rows > 1)
        found[SAME] = same
        if model.likelihood.name in BINARY:
            found[SEPARATED] = _separated(model, family, mean, extreme) & ~same & (rows > 1)
    why: dict[int, str] = {}
    for sentence, which in found.items():
        why |= dict.fromkeys(which.nonzero().flatten().tolist(), sentence)
    return [Flag(family.names[i], why[i]) for i in sorted(why)]


def weak_note(flags: list[Flag], tasks: int) -> list[str]:
    """How many there are of each kind but the single rows, which a table tells by itself.

    Args:
        flags: of `weak_tasks`.
        tasks: in the family.
    """
    same = [flag.task for flag in flags if flag.why == SAME]
    apart = [flag.task for flag in flags if flag.why == SEPARATED]
    parts = [
        f"{what} in {len(names)} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for what, names in (
            ("the response is the same in every row", same),
            ("the predictors separate the responses", apart),
        )
        if names
    ]
    if not parts:
        return []
    sentence = (
        f"Of {tasks} tasks, {' and '.join(parts)}: alone they have no finite estimate, and how far "
        "their posteriors go is decided by the prior. bm.diagnostics.check(fit) names them all."
    )
    return [sentence]


def _extreme(model: Model, family: TaskFamily) -> tuple[Tensor, ...]:
    """(task, row) of each kind, where a row's response is as far to one side as it can be."""
    y, options = model.response(family.tensors), model.options(family.tensors)
    kind = model.likelihood
    if kind is not None and kind.responses == "class":
        return (y == y[:, :1],)
    if kind is not None and kind.name in BINARY:
        return y == 0, y == options.get("trials", torch.ones_like(y))
    return (y == 0,)


def _every(family: TaskFamily, rows: Tensor) -> Tensor:
    """(task,) whether it is so in all real rows."""
    assert family.mask is not None
    return (rows | ~family.mask).flatten(1).all(1).cpu()


def _separated(
    model: Model, family: TaskFamily, mean: Tensor, extreme: tuple[Tensor, ...]
) -> Tensor:
    """(task,) whether some weights predict every response, each on its own side of zero.

    Searched for from Q_i's mean on, which the prior holds back, by the perceptron's rule: F.
    Rosenblatt (1958), Psychological Review 65; here all wrong rows of a task count at once.
    """
    none, all_ = extreme
    assert family.mask is not None
    side = torch.where(family.mask, all_.to(mean) - none.to(mean), 0.0)
    with torch.no_grad():
        value = side * model.predict(mean, family.batch()).reshape(none.shape)
        if model.is_affine(family):
            design = model.design(family.batch())[0][..., : model.dim]
            # In coordinates in which all directions that the rows have are alike.
            rows, sizes, _ = torch.linalg.svd(side.unsqueeze(-1) * design, full_matrices=False)
            rows = rows * (sizes > 1e-10 * sizes[..., :1]).to(rows).unsqueeze(-2)
            for _ in range(ROUNDS):
                step = ((value <= 0) & family.mask).to(mean).unsqueeze(1) @ rows
                value = value + (rows @ step.mT).squeeze(-1)
    return _every(family, value > 0)
