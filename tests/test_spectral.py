"""Functions of leading eigenvalues: values, derivatives, and what eigenvalues of equal size do."""

from __future__ import annotations

import pytest
import torch
from torch.func import grad, vmap

from bayesmeta.gaussian import Gaussian
from bayesmeta.spectral import leading


def root(matrix: torch.Tensor, rank: int) -> torch.Tensor:
    return leading(matrix, rank, lambda s: (1 + s).rsqrt(), lambda s: -0.5 * (1 + s) ** -1.5, 0.0)


def symmetric(seed: int, k: int, zeros: int = 0) -> torch.Tensor:
    half = torch.randn(k, k, generator=torch.Generator().manual_seed(seed)).double()
    half[:, :zeros] = 0
    return half.mT @ half


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_the_derivative_is_that_of_finite_differences(rank):
    a, weights = symmetric(0, 5), torch.randn(5, 5, generator=torch.Generator().manual_seed(1))
    weights = weights.double() + weights.double().mT

    def scalar(matrix):
        return (weights * root(matrix, rank)).sum()

    found = grad(scalar)(a)
    direction = symmetric(2, 5)
    step = 1e-5
    expected = (scalar(a + step * direction) - scalar(a - step * direction)) / (2 * step)
    assert float((found * direction).sum()) == pytest.approx(float(expected), rel=1e-6)


def test_equal_eigenvalues_give_finite_derivatives_alone_and_batched():
    a = torch.stack([symmetric(3, 5, zeros=2), torch.eye(5).double()])
    single = torch.stack([grad(lambda m: root(m, 5).square().sum())(m) for m in a])
    batched = vmap(grad(lambda m: root(m, 5).square().sum()))(a)
    assert single.isfinite().all()
    torch.testing.assert_close(single, batched)
    # tr (I + A)⁻¹ has the derivative −(I + A)⁻².
    expected = -torch.linalg.inv(torch.eye(5).double() + a).matrix_power(2)
    torch.testing.assert_close(single, expected, rtol=1e-6, atol=1e-9)


def test_a_precision_of_few_directions_is_the_curvature_cut_to_them():
    generator = torch.Generator().manual_seed(4)
    u = torch.randn(6, 4, generator=generator).double()
    precision = torch.rand(6, generator=generator).double() + 0.5
    spread = precision.rsqrt()
    values, vectors = torch.linalg.eigh(spread[:, None] * (u @ u.mT) * spread)
    cut = vectors[:, -2:] @ torch.diag(values[-2:]) @ vectors[:, -2:].mT
    expected = torch.linalg.inv(torch.diag(precision) + cut / spread[:, None] / spread)
    found = Gaussian.from_precision_root(torch.zeros(6).double(), precision, u, rank=2)
    torch.testing.assert_close(found.covariance(), expected)
    exact = Gaussian.from_precision_root(torch.zeros(6).double(), precision, u, rank=4)
    torch.testing.assert_close(
        exact.covariance(), torch.linalg.inv(torch.diag(precision) + u @ u.mT)
    )
    assert (found.variance() > exact.variance() - 1e-12).all()
