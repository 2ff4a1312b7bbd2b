"""Quadratic energies without rows, for fixed points and meta-gradients in closed form."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from bayesmeta.families.draws import F64, Draw, Normal, Truth, Uniform
from bayesmeta.results import InputError
from bayesmeta.tasks import TaskFamily


def quadratics(
    *,
    tasks: int,
    dim: int,
    generator: torch.Generator,
    curvature: tuple[float, float] = (0.5, 5.0),
    spread: float = 1.0,
    device: Any = None,
) -> tuple[TaskFamily, Truth]:
    """Quadratic energies, where every meta-gradient and fixed point has a closed form.

        f_i(θ) = ½ (θ − c_i)ᵀ A_i (θ − c_i),    c_i ~ N(0, spread² I)

    A_i has eigenvalues drawn log-uniformly from `curvature`, and uniformly random eigenvectors.
    The energy is `quadratic_energy`; there is no row axis.

    Args:
        tasks: how many.
        dim: of θ.
        generator: the randomness.
        curvature: (low, high) of the eigenvalues of A_i, in nats per unit of θ squared.
        spread: sd of each coordinate of the minima c_i.
        device: of the family; by default the generator's.

    Returns:
        The family, with A (task, dim, dim) and c (task, dim); its truth, θ = c.

    Example:
        >>> family, truth = quadratics(tasks=3, dim=2, generator=torch.Generator())
        >>> A, c = family.tensors.values()
        >>> quadratic_energy(truth.theta[0], A[0], c[0]).item()
        0.0
    """
    low, high = curvature
    if not 0 < low <= high < math.inf or not 0 <= spread < math.inf:
        raise InputError("give curvature=(low, high) with 0 < low ≤ high, and spread ≥ 0")
    draw = Draw(tasks, 1, generator)
    eigenvalues = draw.per_task(Uniform(math.log(low), math.log(high)), dim).exp()
    eigenvectors, triangle = torch.linalg.qr(draw.per_task(Normal(0.0, 1.0), dim, dim))
    # Signs that make the factorisation unique make its first factor uniform on the rotations.
    eigenvectors = eigenvectors * triangle.diagonal(dim1=-2, dim2=-1).sign()[:, None, :]
    A = eigenvectors @ (eigenvalues[..., None] * eigenvectors.mT)
    c = draw.per_task(Normal(0.0, spread), dim)
    names = tuple(f"theta[{i}]" for i in range(dim))
    theta0, covariance = torch.zeros(dim, dtype=F64), spread**2 * torch.eye(dim, dtype=F64)
    family = TaskFamily.from_tensors(A=0.5 * (A + A.mT), c=c).to(device=device)
    return family, Truth(c, names, theta0, covariance, gaussian=True).to(device)


def quadratic_energy(theta: Tensor, A: Tensor, c: Tensor) -> Tensor:
    """½ (θ − c)ᵀ A (θ − c) in nats, for `Model.from_energy`.

    Args:
        theta: (dim,).
        A: (dim, dim), symmetric.
        c: (dim,) the minimum.
    """
    return 0.5 * (theta - c) @ A @ (theta - c)
