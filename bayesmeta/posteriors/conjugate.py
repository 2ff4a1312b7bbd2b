"""Linear-Gaussian tasks: the optimal full Q_i and the evidence, both exact.

    y_i = Z_i θ_i + X_i ψ + ε,   θ_i ~ N(θ₀, Σ₀),   ε ~ N(0, σ² S_i²)

With Σ₀ = σ² A Aᵀ, θ_i = θ₀ + A u_i, u_i ~ N(0, σ² I) and M_i = I + Aᵀ Z_iᵀ Z_i A,

    −2 log p = Σ log|M_i| + n log 2πσ² + r²/σ²,
    Q_i = N(θ₀ + A M_i⁻¹ Aᵀ Z_iᵀ (y_i − W_i b), σ² A M_i⁻¹ Aᵀ),   W_i = [Z_i X_i],  b = (θ₀, ψ)

where r² is the generalised residual sum of squares at its minimiser b (Bates et al. 2015,
eqs. 24-41; here batched over tasks, with any form of Σ₀ and without the sparse Cholesky). A may be
singular, so a variance of zero is an ordinary point of the parameter space.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bayesmeta.forms import Form
from bayesmeta.gaussian import LOG_2PI, Gaussian, triangular
from bayesmeta.results import InputError

TOGETHER = 4096
"""Tasks whose products are made together: of all at once they are twice the data more."""


@dataclass(frozen=True, eq=False)
class LinearTasks:
    """Sufficient statistics of linear-Gaussian tasks, in well-scaled coordinates.

    Rows are divided by their known standard errors, if any. Fixed effects are b = `to_b` b' with
    the columns of W `to_b` orthonormal over the pooled rows; adapted weights are θ = `to_theta` θ'.

    Args:
        zz: (task, p, p) Z'ᵀ Z'.        zw: (task, p, p+q) Z'ᵀ W'.        zy: (task, p) Z'ᵀ r.
        ww, wy, yy: pooled W'ᵀ W', W'ᵀ r, rᵀ r, with r = y − W b_start.
        b_start: (p+q,) pooled least squares, about which everything is taken for accuracy.
        observations: n.
        log_errors: Σ log of the known standard errors.
        known_noise: σ is 1 after dividing by the known standard errors.
    """

    zz: Tensor
    zw: Tensor
    zy: Tensor
    ww: Tensor
    wy: Tensor
    yy: Tensor
    b_start: Tensor
    to_b: Tensor
    to_theta: Tensor
    observations: int
    log_errors: Tensor
    known_noise: bool

    @classmethod
    def build(
        cls,
        design: Tensor,
        response: Tensor,
        mask: Tensor,
        *,
        adapted: int,
        form: Form,
        errors: Tensor | None = None,
    ) -> LinearTasks:
        """From W (task, row, p+q) with Z its first p columns, and y minus offsets (task, row).

        Args:
            design: W.
            response: y − c.
            mask: (task, row).
            adapted: p.
            form: of Σ₀; decides which changes of coordinates it survives.
            errors: (task, row) known standard errors, or None when σ is free.
        """
        weight = mask.to(response.dtype)
        log_errors = response.new_zeros(())
        if errors is not None:
            log_errors = torch.where(mask, errors, torch.ones_like(errors)).log().sum()
            weight = weight / errors
        design, response = design * weight.unsqueeze(-1), response * weight
        pooled = design.flatten(0, 1)
        to_b = orthonormal(pooled)
        b_start = to_b @ ((pooled @ to_b).mT @ response.flatten()) / len(pooled)
        to_theta = rescaling(pooled[:, :adapted], form)

        def products(design: Tensor, response: Tensor) -> tuple[Tensor, ...]:
            residual = (response - design @ b_start).unsqueeze(-1)
            z, w = design[..., :adapted] @ to_theta, design @ to_b
            shared = (w.mT @ w).sum(0), (w.mT @ residual).sum(0).squeeze(-1)
            return (
                z.mT @ z,
                z.mT @ w,
                (z.mT @ residual).squeeze(-1),
                *shared,
                residual.square().sum(),
            )

        parts = zip(design.split(TOGETHER), response.split(TOGETHER), strict=True)
        zz, zw, zy, ww, wy, yy = zip(*(products(*part) for part in parts), strict=True)
        return cls(
            zz=torch.cat(zz), zw=torch.cat(zw), zy=torch.cat(zy), ww=torch.stack(ww).sum(0),
            wy=torch.stack(wy).sum(0), yy=torch.stack(yy).sum(),
            b_start=b_start, to_b=to_b, to_theta=to_theta,
            observations=int(mask.sum()), log_errors=log_errors, known_noise=errors is not None,
        )  # fmt: skip

    @property
    def adapted(self) -> int:
        return self.zz.shape[-1]


@dataclass(frozen=True, eq=False)
class Elimination:
    """One evaluation at A and σ: the weights u integrated out, the fixed effects minimised over.

    Args:
        log_det: Σ_i log|M_i|.
        fixed: (fixed,) minimiser b' − b'_start over the free fixed effects, zero elsewhere.
        rss: r² at it.
        information: (free, free) T_ww, the fixed effects' precision times σ².
    """

    log_det: Tensor
    fixed: Tensor
    rss: Tensor
    information: Tensor
    free: Tensor


def eliminate(tasks: LinearTasks, root: Tensor, free: Tensor, held: Tensor) -> Elimination:
    """Integrate u out and minimise over the free fixed effects.

    Args:
        tasks: the statistics.
        root: A' (p, k), θ' coordinates.
        free: (fixed, m) basis of the fixed effects that are estimated, in b' coordinates.
        held: (fixed,) where the fixed effects stand when their free part is zero.
    """
    eye = torch.eye(root.shape[1], dtype=root.dtype, device=root.device)
    lower = torch.linalg.cholesky(eye + root.mT @ tasks.zz @ root)
    columns = torch.cat([tasks.zw @ free, (tasks.zy - tasks.zw @ held).unsqueeze(-1)], -1)
    absorbed = torch.linalg.solve_triangular(lower, root.mT @ columns, upper=False)
    flat = absorbed.flatten(0, 1)
    inner = flat.mT @ flat
    m = free.shape[1]
    wy = tasks.wy - tasks.ww @ held
    yy = tasks.yy - 2 * held @ tasks.wy + held @ tasks.ww @ held
    information = free.mT @ tasks.ww @ free - inner[:m, :m]
    right = free.mT @ wy - inner[:m, m]
    solution = torch.linalg.solve(information, right)
    return Elimination(
        log_det=2 * lower.diagonal(dim1=-2, dim2=-1).log().sum(),
        fixed=held + free @ solution,
        rss=yy - inner[m, m] - right @ solution,
        information=information,
        free=free,
    )


def log_evidence(tasks: LinearTasks, part: Elimination, log_noise: Tensor, *, reml: bool) -> Tensor:
    """() log marginal likelihood in nats, or with `reml` the restricted one.

    REML integrates the free fixed effects under a flat prior:
    adds ½ k log 2πσ² − ½ log|Σ WᵀV⁻¹W σ²|, in the original coordinates of W.
    """
    n = tasks.observations
    deviance = part.log_det + n * (LOG_2PI + 2 * log_noise) + part.rss * (-2 * log_noise).exp()
    deviance = deviance + 2 * tasks.log_errors
    if reml:
        k = part.information.shape[0]
        basis = (tasks.to_b @ part.free).mT @ (tasks.to_b @ part.free)
        original = torch.logdet(part.information) - torch.logdet(basis)
        deviance = deviance + original - k * (LOG_2PI + 2 * log_noise)
    return -0.5 * deviance


def condition(
    z: Tensor, residual: Tensor, errors: Tensor, mask: Tensor, prior: Gaussian
) -> tuple[Gaussian, Tensor]:
    """Q_i and the log evidence of each task, prior and ψ held.

    Args:
        z: (task, row, p) design of the adapted weights.
        residual: (task, row) y − Z θ₀ − X ψ.
        errors: (task, row) noise sd.
        mask: (task, row).
        prior: N(θ₀, Σ₀); may be singular.

    Returns:
        Full Gaussians with a task axis, and (task,) nats.
    """
    weight = mask / errors
    residual, scaled = residual * weight, (z * weight.unsqueeze(-1)) @ prior.root()
    eye = torch.eye(scaled.shape[-1], dtype=z.dtype, device=z.device)
    lower = torch.linalg.cholesky(eye + scaled.mT @ scaled)
    pull = scaled.mT @ residual.unsqueeze(-1)
    half = torch.linalg.solve_triangular(lower, pull, upper=False).squeeze(-1)
    mean = (prior.root() @ torch.cholesky_solve(pull, lower)).squeeze(-1)
    spread = torch.linalg.solve_triangular(lower, prior.root().mT, upper=False).mT
    log_det = 2 * lower.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    log_errors = torch.where(mask, errors, 1.0).log().sum(1)
    chi2 = residual.square().sum(1) - half.square().sum(-1)
    rows = mask.sum(1).to(z.dtype)
    evidence = -0.5 * (log_det + rows * LOG_2PI + 2 * log_errors + chi2)
    return Gaussian(prior.mean + mean, None, triangular(spread)), evidence


def least_squares(design: Tensor, response: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Pooled fixed effects (p+q,) and the residual sd (), every task alike: where a search starts.

    Args:
        design: W (task, row, p+q).
        response: y − c (task, row).
        mask: (task, row), or None.
    """
    rows = torch.ones_like(response, dtype=torch.bool) if mask is None else mask
    w, y = design[rows], response[rows]
    to_b = orthonormal(w)
    b = to_b @ ((w @ to_b).mT @ y) / len(w)
    spread = (y - w @ b).square().mean().sqrt()
    return b, torch.where(spread > 0, spread, torch.ones_like(spread))


def orthonormal(pooled: Tensor) -> Tensor:
    """T with (pooled T)ᵀ (pooled T) = rows · I."""
    upper = torch.linalg.qr(pooled, mode="r").R
    diagonal = upper.diagonal().abs()
    norms = pooled.square().sum(0).sqrt()
    if len(pooled) < pooled.shape[1] or bool((diagonal <= 1e-11 * norms).any()):
        place = int((diagonal / norms.clamp(min=1e-300)).argmin()) if len(diagonal) else 0
        raise InputError(
            f"predictor column {place} is a combination of the others over all tasks, so its "
            "coefficient cannot be told apart from theirs: drop it"
        )
    eye = torch.eye(len(upper), dtype=upper.dtype, device=upper.device)
    inverse = torch.linalg.solve_triangular(upper, eye, upper=True)
    return inverse * len(pooled) ** 0.5


def rescaling(pooled: Tensor, form: Form) -> Tensor:
    """The change θ = T θ' under which the form of Σ₀ is closed and Z T is well scaled."""
    if form.name == "full":
        return orthonormal(pooled)
    scale = pooled.square().mean(0).sqrt()
    if form.name in ("isotropic", "block"):
        scale = scale.mean().expand(scale.shape)
    return torch.diag(1 / scale)
