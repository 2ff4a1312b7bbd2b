"""What a meta-gradient costs, in evaluations of ∇f_i: the unit is one task's, over all its rows."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from bayesmeta.gradients.direct import Direct
from bayesmeta.gradients.implicit import Implicit
from bayesmeta.gradients.pathwise import FirstOrder
from bayesmeta.gradients.score import Score
from bayesmeta.inner.first_order import Adam, GradientDescent, Momentum, Nesterov, RMSProp
from bayesmeta.inner.langevin import SGLD
from bayesmeta.inner.noise import components
from bayesmeta.method import Method
from bayesmeta.objective import Evidence
from bayesmeta.tasks import TaskFamily

FIRST_ORDER = (GradientDescent, Nesterov, Momentum, Adam, RMSProp, SGLD)  # one ∇f per step
PRODUCT = 2  # a product with the Hessian: back through ∇f


def gradient_evaluations(method: Method, family: TaskFamily, *, shared: bool = False) -> float:
    """Gradients of f_i per estimate of ∂M/∂θ₀, summed over tasks; each one's over all rows is 1.

        step                1, or b/n_i with minibatches of b of n_i rows
        step recorded       3: going back through it is a product with the Hessian, which is 2
        step checkpointed   4: it is run once more
        step of Score       4: run, then its density's gradient, 3; at the first step only, where
                            later ones move with θ₀ by where they start alone
        point of M          1 gradient of the query set
        Implicit            2 for each product of its solver

    A `Mixture` costs its mean. What the program does besides is not in it: ∇F once more at a
    recorded step, to keep a path that breaks out of the others' gradients.

    Args:
        method: with first-order steps.
        family: the support sets.
        shared: whether the model has parameters ψ, which move every step.

    Returns:
        The count; at most so many where a tolerance ends paths early, and NaN where it depends on
        what is not known ahead: Newton's steps, a Gaussian Q_i, a dense solve.

    Example:
        >>> from bayesmeta.method import Algorithmic, Unrolled, Validation
        >>> ten = TaskFamily.from_tensors(y=torch.zeros(1, 10))
        >>> sgd = GradientDescent(0.1, steps=5, rows=2)  # five steps are one pass over the rows
        >>> gradient_evaluations(Method(Algorithmic(), sgd, Unrolled(), Validation(None)), ten)
        4.0
    """
    rule, parts = method.gradient, components(method.inner)
    gaussian = method.posterior.form.name != "point"
    known = all(isinstance(part, FIRST_ORDER) for part in parts)
    if gaussian or not known or isinstance(method.objective, Evidence):
        return math.nan
    paths = rule.draws(method.draws) if method.stochastic else 1
    recorded = paths - (rule.forward_only() if method.stochastic else 0)
    points = len(rule.points(torch.zeros(paths, 1, 1), method.at))
    weights = getattr(method.inner, "weights", None) or (1 / len(parts),) * len(parts)
    cost = float(points * len(family))
    for part, weight in zip(parts, weights, strict=True):
        back = _backward(method, part, shared)
        used = float(_share_of_rows(part, family).sum())
        cost += weight * used * (paths * part.steps + recorded * back)
    return cost


def _backward(method: Method, algorithm: Any, shared: bool) -> float:
    """Evaluations of the pullback along one path."""
    rule, steps = method.gradient, algorithm.steps
    if isinstance(rule, FirstOrder | Direct):
        return 0
    if isinstance(rule, Implicit):
        return math.nan if rule.solver == "cholesky" else PRODUCT * rule.steps
    if isinstance(rule, Score):
        moved = method.anchored or shared or getattr(algorithm, "preconditioned", False)
        return (1 + PRODUCT) * (steps if moved else min(steps, 1))
    last = getattr(rule, "last", None)
    back = steps if last is None else min(last, steps)
    checkpoint = getattr(rule, "checkpoint", None)
    again = back if checkpoint is not None and checkpoint < back else 0
    return PRODUCT * back + again


def _share_of_rows(algorithm: Any, family: TaskFamily) -> Tensor:
    """(task,) of the support rows that one step sees; drawn twice, a row counts twice."""
    rows = getattr(algorithm, "rows", None)
    if rows is None or family.mask is None:
        return torch.ones(len(family), dtype=torch.double)
    share = rows / family.rows.double()
    return share if algorithm.replacement else share.clamp(max=1.0)
