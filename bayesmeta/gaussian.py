"""N(m, S) with S = diag(d) ± F Fᵀ: the one Gaussian of priors and posteriors, batched.

Four shapes are used: d alone (isotropic, per block, diagonal), F alone and lower triangular
(full), both (low rank + diagonal), and d minus F Fᵀ: what data of few rows leave of a diagonal
prior. Neither d nor F is a point. Leading axes are batch axes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bayesmeta.results import InputError
from bayesmeta.spectral import leading

LOG_2PI = math.log(2 * math.pi)


@dataclass(frozen=True, eq=False)
class Gaussian:
    """N(mean, diag(diagonal) + sign · factor factorᵀ), immutable, batched over leading axes.

    Args:
        mean: (..., dim).
        diagonal: (..., dim) variances, or None.
        factor: (..., dim, rank), or None; without `diagonal` it is square, lower triangular.
        sign: 1; or -1 for the diagonal minus the low rank, which needs `diagonal`.

    Raises:
        InputError: another sign, or -1 without a diagonal.

    Example:
        >>> g = Gaussian(torch.zeros(2), torch.ones(2))
        >>> float(g.kl(g)), g.covariance().tolist()
        (0.0, [[1.0, 0.0], [0.0, 1.0]])
    """

    mean: Tensor
    diagonal: Tensor | None = None
    factor: Tensor | None = None
    sign: int = 1

    def __post_init__(self) -> None:
        if self.sign not in (1, -1) or (self.sign == -1 and self.diagonal is None):
            raise InputError(
                f"a Gaussian with sign={self.sign} and diagonal={self.diagonal}: the sign is 1, or "
                "-1 together with a diagonal to subtract from"
            )

    @classmethod
    def from_covariance(cls, mean: Tensor, covariance: Tensor) -> Gaussian:
        """A full Gaussian; a singular covariance keeps a factor with zero columns."""
        factor, info = torch.linalg.cholesky_ex(covariance)
        if bool((info > 0).any()):
            values, vectors = torch.linalg.eigh(covariance)
            factor = triangular(vectors * values.clamp(min=0).sqrt().unsqueeze(-2))
        return cls(mean, None, factor)

    @classmethod
    def from_precision_root(
        cls, mean: Tensor, diagonal_precision: Tensor, root: Tensor, rank: int | None = None
    ) -> Gaussian:
        """N(m, (Λ + U Uᵀ)⁻¹), what a diagonal prior and a low-rank curvature leave, exactly.

            (Λ + U Uᵀ)⁻¹ = D − F Fᵀ,   D = Λ⁻¹,   F = D U C⁻ᵀ,   C Cᵀ = I + Uᵀ D U

        Differences of nearly equal numbers: of n digits, log₁₀(1 + the largest eigenvalue of
        Uᵀ D U) are lost, and a task with none left is NaN.

        Args:
            mean: (..., dim) m.
            diagonal_precision: (..., dim) or (dim,) diagonal of Λ, positive.
            root: (..., dim, k) U.
            rank: keep only so many directions of U Uᵀ, the largest relative to Λ; in the others
                the Gaussian is as wide as Λ alone leaves it.

        Example:
            >>> one = torch.ones(1)
            >>> Gaussian.from_precision_root(one, one, one[:, None]).variance().item()
            0.5
        """
        diagonal = (1 / diagonal_precision).expand_as(mean)
        scaled = diagonal.unsqueeze(-1) * root
        if rank is not None and rank < root.shape[-1]:
            kept = leading(root.mT @ scaled, rank, _inverse_root, _inverse_root_slope, 0.0)
            return cls(mean, diagonal, scaled @ kept, sign=-1)
        half = torch.linalg.solve_triangular(
            _cholesky_of_one_plus(root.mT @ scaled), scaled.mT, upper=False
        )
        return cls(mean, diagonal, half.mT, sign=-1)

    @property
    def dim(self) -> int:
        return self.mean.shape[-1]

    @property
    def is_point(self) -> bool:
        return self.diagonal is None and self.factor is None

    def variance(self) -> Tensor:
        """(..., dim) marginal variances."""
        total = torch.zeros_like(self.mean)
        if self.diagonal is not None:
            total = total + self.diagonal
        if self.factor is not None:
            total = total + self.sign * self.factor.square().sum(-1)
        # Rounding may leave less than nothing of a diagonal that is all but used up.
        return total if self.sign == 1 else total.clamp(min=0)

    def sd(self) -> Tensor:
        """(..., dim) marginal standard deviations."""
        return self.variance().sqrt()

    def covariance(self) -> Tensor:
        """(..., dim, dim)."""
        total = torch.zeros(
            (*self.mean.shape, self.dim), dtype=self.mean.dtype, device=self.mean.device
        )
        if self.diagonal is not None:
            total = total + torch.diag_embed(self.diagonal)
        if self.factor is not None:
            total = total + self.sign * (self.factor @ self.factor.mT)
        return total

    def covariance_product(self, v: Tensor) -> Tensor:
        """S v for v (..., dim)."""
        total = torch.zeros_like(v)
        if self.diagonal is not None:
            total = total + self.diagonal * v
        if self.factor is not None:
            inner = self.factor.mT @ v.unsqueeze(-1)
            total = total + self.sign * (self.factor @ inner).squeeze(-1)
        return total

    def correlation(self) -> Tensor:
        """(..., dim, dim); NaN where a variance is zero."""
        sd = self.sd()
        return self.covariance() / (sd.unsqueeze(-1) * sd.unsqueeze(-2))

    def root(self) -> Tensor:
        """(..., dim, k) with root rootᵀ = covariance."""
        if self.diagonal is None:
            return self.mean.new_zeros((*self.mean.shape, 0)) if self.is_point else self._factor
        spread = torch.diag_embed(self.diagonal.sqrt())
        if self.factor is None:
            return spread
        if self.sign == -1:
            left, right = self._removed()
            return spread - left @ right
        return torch.cat([self.factor, spread], -1)

    @property
    def _factor(self) -> Tensor:
        assert self.factor is not None
        return self.factor

    def _capacity(self) -> Tensor:
        """Cholesky factor of I ± Fᵀ diag(d)⁻¹ F, for the low-rank ± diagonal shapes."""
        assert self.diagonal is not None
        scaled = self._factor / self.diagonal.unsqueeze(-1)
        return _cholesky_of_one_plus(self.sign * (self._factor.mT @ scaled))

    def _removed(self) -> tuple[Tensor, Tensor]:
        """P (..., dim, k) and R (..., k, dim) with diag(d)^½ − P R a square root of diag(d) − F Fᵀ.

        With B = diag(d)^-½ F and L the Cholesky factor of I − BᵀB, I − B (I + L)⁻¹ Bᵀ is a root of
        I − B Bᵀ. An eigendecomposition's would have no derivative where a row's factor is zero.
        """
        assert self.diagonal is not None
        whitened = self._factor / self.diagonal.sqrt().unsqueeze(-1)
        lower = self._capacity()
        eye = torch.eye(lower.shape[-1], dtype=lower.dtype, device=lower.device)
        return self._factor, torch.linalg.solve_triangular(eye + lower, whitened.mT, upper=False)

    def precision_product(self, v: Tensor) -> Tensor:
        """Λ v for v (..., dim)."""
        return self.precision_columns(v.unsqueeze(-1)).squeeze(-1)

    def precision_columns(self, columns: Tensor) -> Tensor:
        """Λ V for V (..., dim, k)."""
        if self.diagonal is None:
            return torch.cholesky_solve(columns, self._factor)
        scaled = columns / self.diagonal.unsqueeze(-1)
        if self.factor is None:
            return scaled
        inner = torch.cholesky_solve(self._factor.mT @ scaled, self._capacity())
        return scaled - self.sign * (self._factor @ inner) / self.diagonal.unsqueeze(-1)

    def precision_diagonal(self) -> Tensor:
        """(..., dim) diagonal of Λ."""
        if self.diagonal is None:
            eye = torch.eye(self.dim, dtype=self.mean.dtype, device=self.mean.device)
            whitened = torch.linalg.solve_triangular(self._factor, eye, upper=False)
            return whitened.square().sum(-2)
        if self.factor is None:
            return 1 / self.diagonal
        scaled = (self._factor / self.diagonal.unsqueeze(-1)).mT
        half = torch.linalg.solve_triangular(self._capacity(), scaled, upper=False)
        return 1 / self.diagonal - self.sign * half.square().sum(-2)

    def log_det(self) -> Tensor:
        """(...) log |S|."""
        if self.diagonal is None:
            return 2 * self._factor.diagonal(dim1=-2, dim2=-1).abs().log().sum(-1)
        total = self.diagonal.log().sum(-1)
        if self.factor is not None:
            total = total + 2 * self._capacity().diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return total

    def quadratic(self, theta: Tensor) -> Tensor:
        """½‖θ − m‖²_Λ in nats, for θ (..., dim)."""
        difference = theta - self.mean
        return 0.5 * (difference * self.precision_product(difference)).sum(-1)

    def log_prob(self, theta: Tensor) -> Tensor:
        """log N(θ; m, S) in nats, for θ (..., dim)."""
        return -self.quadratic(theta) - 0.5 * (self.log_det() + self.dim * LOG_2PI)

    def kl(self, other: Gaussian) -> Tensor:
        """KL(self ‖ other) = ½[tr(Λ_p S_q) + ‖m_q − m_p‖²_Λp − dim + log|S_p| − log|S_q|].

        Args:
            other: the Gaussian p, broadcast over this one's batch axes.

        Returns:
            (...) nats, one number per batch member.
        """
        trace = torch.zeros_like(self.mean[..., 0])
        if self.diagonal is not None:
            trace = trace + (other.precision_diagonal() * self.diagonal).sum(-1)
        if self.factor is not None:
            product = other.precision_columns(self.factor)
            trace = trace + self.sign * (self.factor * product).sum((-2, -1))
        log_ratio = other.log_det() - self.log_det()
        return other.quadratic(self.mean) + 0.5 * (trace - self.dim + log_ratio)

    def transform(self, noise: Tensor) -> Tensor:
        """m + S^{1/2} ε for standard normal ε (draw, ..., k), k = `noise_dim`."""
        if self.is_point:
            return self.mean.expand(noise.shape[:1] + self.mean.shape)
        if self.diagonal is None:
            return self.mean + (self._factor @ noise.unsqueeze(-1)).squeeze(-1)
        theta = self.mean + self.diagonal.sqrt() * noise[..., : self.dim]
        if self.factor is None:
            return theta
        if self.sign == -1:
            left, right = self._removed()
            inner = torch.einsum("...kd,...d->...k", right, noise)
            return theta - torch.einsum("...dk,...k->...d", left, inner)
        return theta + (self._factor @ noise[..., self.dim :].unsqueeze(-1)).squeeze(-1)

    @property
    def noise_dim(self) -> int:
        """How many standard normals one draw takes."""
        if self.diagonal is None or self.factor is None or self.sign == -1:
            return self.dim
        return self.dim + self.factor.shape[-1]

    def noise(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """(n, ..., noise_dim) standard normals, to be handed to `transform`."""
        shape = (n, *self.mean.shape[:-1], self.noise_dim)
        device = generator.device if generator is not None else self.mean.device
        drawn = torch.randn(shape, generator=generator, dtype=self.mean.dtype, device=device)
        return drawn.to(self.mean.device)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """(n, ..., dim) draws."""
        return self.transform(self.noise(n, generator))

    def linear(self, matrix: Tensor, shift: Tensor | float = 0.0) -> Gaussian:
        """The law of `matrix θ + shift`, full, for a (k, dim) matrix."""
        mean = (matrix @ self.mean.unsqueeze(-1)).squeeze(-1) + shift
        return Gaussian(mean, None, triangular(matrix @ self.root()))

    def rescaled(self, scale: Tensor) -> Gaussian:
        """The law of `scale ⊙ θ`, in the same shape, for (dim,) positive scales."""
        diagonal = None if self.diagonal is None else self.diagonal * scale.square()
        factor = None if self.factor is None else self.factor * scale.unsqueeze(-1)
        return Gaussian(self.mean * scale, diagonal, factor, self.sign)

    def map(self, change: Callable[[Tensor], Tensor]) -> Gaussian:
        """The same change (an indexing, a move to a device) of each tensor."""
        diagonal, factor = (None if p is None else change(p) for p in (self.diagonal, self.factor))
        return Gaussian(change(self.mean), diagonal, factor, self.sign)

    def __getitem__(self, index: Any) -> Gaussian:
        """Members of the leading batch axis."""
        return self.map(lambda tensor: tensor[index])


def _inverse_root(eigenvalue: Tensor) -> Tensor:
    return (1 + eigenvalue).rsqrt()


def _inverse_root_slope(eigenvalue: Tensor) -> Tensor:
    return -0.5 * (1 + eigenvalue) ** -1.5


def narrowed(root: Tensor, curvature: Tensor, rank: int) -> Tensor:
    """L with L Lᵀ = (Λ + C_r)⁻¹, for Λ⁻¹ = root rootᵀ and C_r the curvature's leading directions.

    Args:
        root: (..., dim, dim).
        curvature: (..., dim, dim) C, symmetric.
        rank: directions of C to keep, the largest relative to Λ.
    """
    inner = root.mT @ curvature @ root
    return triangular(root @ leading(inner, rank, _inverse_root, _inverse_root_slope, 1.0))


def _cholesky_of_one_plus(matrix: Tensor) -> Tensor:
    """Cholesky factor of I + matrix; NaN, for that batch member alone, where there is none."""
    eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    lower, info = torch.linalg.cholesky_ex(eye + matrix)
    return torch.where(info[..., None, None] > 0, torch.nan, lower)


def triangular(root: Tensor) -> Tensor:
    """A square lower-triangular L, diagonal ≥ 0, with L Lᵀ = root rootᵀ."""
    dim, rank = root.shape[-2:]
    if rank < dim:
        root = torch.cat([root, root.new_zeros((*root.shape[:-1], dim - rank))], -1)
    upper = torch.linalg.qr(root.mT, mode="r").R
    sign = torch.where(upper.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(upper.dtype)
    return (upper * sign.unsqueeze(-1)).mT
