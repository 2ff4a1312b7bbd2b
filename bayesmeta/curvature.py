"""Second derivatives of f_i at a point, all tasks at once: the Hessian, and its Gauss-Newton part.

Reverse mode over reverse mode throughout: some operations a user writes have no forward rule.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import vmap

from bayesmeta.derivatives import Map, pullback, slope


@dataclass(frozen=True, eq=False)
class Curvature:
    """A symmetric matrix per task, known by its products; differentiable in the point it is at.

    Args:
        product: (task, dim) -> (task, dim); all products share one graph.
        root: () -> (task, dim, k) R with R Rᵀ the matrix, k = rows · classes; None for a Hessian,
            which may have none.
    """

    product: Map
    root: Callable[[], Tensor] | None = None

    def dense(self, like: Tensor) -> Tensor:
        """(task, dim, dim), exactly symmetric, for `like` (task, dim)."""
        if self.root is not None:
            root = self.root()
            matrix = root @ root.mT
        else:
            matrix = vmap(self.product)(_basis(like)).movedim(0, -1)
        return 0.5 * (matrix + matrix.mT)

    def diagonal(self, like: Tensor) -> Tensor:
        """(task, dim), for `like` (task, dim)."""
        if self.root is not None:
            return self.root().square().sum(-1)
        return self.dense(like).diagonal(dim1=-2, dim2=-1)


def hessian(gradient: Map, theta: Tensor) -> Curvature:
    """H_i = ∇²f_i(θ_i).

    Args:
        gradient: (task, dim) θ -> (task, dim) ∇f_i(θ_i), each task's of its own θ only.
        theta: (task, dim).

    Example:
        >>> cubic = hessian(lambda t: t.square(), torch.tensor([[3.0]]))  # f = θ³ / 3
        >>> cubic.dense(torch.zeros(1, 1)).tolist()
        [[[6.0]]]
    """
    return Curvature(pullback(gradient, theta)[1])


def gauss_newton(predict: Map, loss: Map, theta: Tensor) -> Curvature:
    """G_i = JᵀW J, J the Jacobian of the predictions η, W ≥ 0 the Hessian of −log p in η.

    Where a row's −log p curves down (Student-t far from y), W is 0. A row of several classes must
    have a convex −log p; a direction in which it is not is left out.

    Args:
        predict: (task, dim) θ -> η (task, row) or (task, row, class), tasks independent.
        loss: η -> (task, row) −log p of every row in nats, 0 at padding.
        theta: (task, dim).

    Example:
        >>> poisson = gauss_newton(lambda t: 2 * t, torch.exp, torch.zeros(1, 1))  # y = 0, x = 2
        >>> poisson.dense(torch.zeros(1, 1)).tolist()  # x² exp η
        [[[4.0]]]
    """
    eta, pull = pullback(predict, theta)
    # Jᵀu is linear in u, so its own pullback is v -> J v, and no forward mode is needed.
    _, push = pullback(pull, torch.zeros_like(eta))
    half = _positive_root(_row_hessians(loss, eta))

    def product(v: Tensor) -> Tensor:
        change = push(v).reshape(half.shape[:-1]).unsqueeze(-1)
        return pull((half @ (half.mT @ change)).reshape(eta.shape))

    def root() -> Tensor:
        jacobian = _jacobian(pull, push, theta, eta)
        rows = jacobian.reshape(*half.shape[:-1], theta.shape[-1])
        return (half.mT @ rows).flatten(1, 2).mT

    return Curvature(product, root)


def _jacobian(pull: Map, push: Map, theta: Tensor, eta: Tensor) -> Tensor:
    """(task, row[, class], dim) ∂η/∂θ, by columns (two passes each) or by rows, whichever is less.

    Tasks are independent, so one unit vector serves all of them.
    """
    flat = eta.flatten(1)
    if 2 * theta.shape[-1] < flat.shape[-1]:
        return vmap(push)(_basis(theta)).movedim(0, -1)
    rows = vmap(lambda u: pull(u.reshape(eta.shape)))(_basis(flat))
    return rows.movedim(0, 1).reshape(*eta.shape, theta.shape[-1])


def _basis(like: Tensor) -> Tensor:
    """(dim, task, dim) every unit vector, the same for all tasks, for `like` (task, dim)."""
    dim = like.shape[-1]
    eye = torch.eye(dim, dtype=like.dtype, device=like.device)
    return eye.unsqueeze(1).expand(dim, len(like), dim)


def _row_hessians(loss: Map, eta: Tensor) -> Tensor:
    """(task, row, class, class) second derivatives of each row; one class where η has none."""
    single = eta.ndim == 2
    classes = 1 if single else eta.shape[-1]
    _, pull = pullback(lambda e: slope(loss, e)[1], eta)
    eye = torch.eye(classes, dtype=eta.dtype, device=eta.device)
    units = eye[:, 0] if single else eye
    columns = vmap(lambda unit: pull(unit.expand(eta.shape)))(units)
    return columns.movedim(0, -1).reshape(*eta.shape[:2], classes, classes)


def _positive_root(weight: Tensor) -> Tensor:
    """L lower triangular with L Lᵀ = W ≥ 0, columns of pivots that are not positive being 0.

    Unlike an eigendecomposition it is differentiable at equal eigenvalues (a softmax with equal
    probabilities), and unlike a plain Cholesky factor at the zero pivots that a softmax (whose W is
    singular) and padding always have.
    """
    classes = torch.arange(weight.shape[-1], device=weight.device)
    columns = []
    for j in range(weight.shape[-1]):
        pivot = weight[..., j, j]
        positive = pivot > 0
        scale = torch.where(positive, pivot, 1.0).sqrt()
        column = torch.where(positive.unsqueeze(-1), weight[..., j] / scale.unsqueeze(-1), 0.0)
        column = torch.where(classes >= j, column, 0.0)
        columns.append(column)
        weight = weight - column.unsqueeze(-1) * column.unsqueeze(-2)
    return torch.stack(columns, -1)
