"""log p(S_i) = log ∫ exp(−f_i(θ)) N(θ; θ₀, Σ₀) dθ by Laplace's method or Gauss-Hermite quadrature.

In u, θ = θ₀ + A u with Σ₀ = A Aᵀ (A may be singular), F(u) = f(θ₀ + A u) + ½|u|² has its minimum at
û, P = I + Aᵀ H A is its curvature there, and with the rule's nodes z and weights w over N(0, I)

    −log p = ½ log|P| − log Σ_z w exp(½|z|² − F(û + P^{-1/2} z))

for one node Laplace's method, F(û) + ½ log|P| (Tierney & Kadane 1986), for more the adaptive rule
of Pinheiro & Bates (1995). û and P depend on θ₀, A and ψ, and the gradient goes through both.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bayesmeta.forms import Form
from bayesmeta.gaussian import Gaussian, triangular
from bayesmeta.joint import newton
from bayesmeta.joint.losses import GeneralTasks, LinearTasks, Loss, Shared
from bayesmeta.models import Model
from bayesmeta.results import InputError, Result
from bayesmeta.tasks import TaskFamily

NODE_DIM_LIMIT = 3
STEPS = 100
TOLERANCE = 1e-7
FLAGGED = 1e-4
CHUNK = 10_000_000  # numbers held at once


@dataclass(frozen=True, eq=False)
class Evidence:
    """−log p(S_i) of every task, and Q_i.

    Args:
        tasks: whose.
        points: of the rule, per direction; 1 is Laplace's method.
        curvature: P's, "hessian" or "ggn".
        form: of Q_i's covariance.
        steps: of Newton's method, at most.
    """

    tasks: LinearTasks | GeneralTasks
    points: int = 1
    curvature: str = "hessian"
    form: str = "full"
    steps: int = STEPS

    def begin(self, tasks: int, root: Tensor) -> newton.Minimum:
        """Every task at θ₀, its mode not yet looked for."""
        k = root.shape[1]
        if self.points > 1 and k > NODE_DIM_LIMIT:
            raise InputError(
                f"points={self.points} in {k} directions is too many nodes: quadrature is for "
                f"up to {NODE_DIM_LIMIT} (a lowrank(r) prior has r + dim); use points=1"
            )
        eye = torch.eye(k, dtype=root.dtype, device=root.device).expand(tasks, k, k)
        return newton.Minimum(root.new_zeros(tasks, k), eye, root.new_full((tasks,), torch.inf))

    def solve(
        self, location: Tensor, shared: Shared, root: Tensor, state: newton.Minimum
    ) -> newton.Minimum:
        """û of every task, from the modes of the last call."""
        with torch.no_grad():
            loss = self.tasks.loss(location, shared, root)
            eye = torch.eye(root.shape[1], dtype=root.dtype, device=root.device)

            def derivatives(u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
                value, gradient, second = loss.derivatives(u, "hessian")
                return value + 0.5 * u.square().sum(-1), gradient + u, eye + second

            return newton.minimise(
                derivatives, state.point, steps=self.steps, tolerance=_tolerance(root)
            )

    def value(
        self, location: Tensor, shared: Shared, root: Tensor, state: newton.Minimum
    ) -> Tensor:
        """(task,) −log p(S_i), its gradient exact at a solved state."""
        loss = self.tasks.loss(location, shared, root)
        u = implicit_mode(loss, state)
        value, _, curvature = loss.derivatives(u, self.curvature)
        lower, _ = _factor(curvature)
        log_det = lower.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        if self.points == 1:
            return value + 0.5 * u.square().sum(-1) + log_det
        nodes, log_weights = _rule(self.points, u)
        shift = torch.linalg.solve_triangular(lower.mT, nodes.mT, upper=True).movedim(-1, 0)
        exponents = loss.value(u + shift) + 0.5 * (u + shift).square().sum(-1)
        exponents = exponents - 0.5 * nodes.square().sum(-1)[:, None] - log_weights[:, None]
        return log_det - torch.logsumexp(-exponents, 0)

    def pooled(self, location: Tensor, shared: Shared) -> Tensor:
        """() −log p with every task at θ₀."""
        tasks = len(self.tasks.batch)
        loss = self.tasks.loss(location, shared, location.new_zeros(self.tasks.model.dim, 1))
        return loss.value(location.new_zeros(tasks, 1)).sum()

    def posterior(
        self, location: Tensor, shared: Shared, root: Tensor, state: newton.Minimum
    ) -> Gaussian:
        """Q_i = N(θ₀ + A û, A P⁻¹ Aᵀ); narrower forms have its variances."""
        loss = self.tasks.loss(location, shared, root)
        u = implicit_mode(loss, state)
        lower, _ = _factor(loss.derivatives(u, self.curvature)[2])
        spread = torch.linalg.solve_triangular(
            lower, root.mT.expand(len(lower), -1, -1), upper=False
        )
        mean = location[: len(root)] + u @ root.mT
        full = Gaussian(mean, None, triangular(spread.mT))
        return _projected(full, Form.parse(self.form), self.tasks.model.blocks)

    def results(
        self, location: Tensor, shared: Shared, root: Tensor, state: newton.Minimum
    ) -> list[Result]:
        """How each task ended."""
        loss = self.tasks.loss(location, shared, root)
        _, ridged = _factor(loss.derivatives(state.point, self.curvature)[2])
        ended = []
        for residual, bad in zip(state.residual.tolist(), ridged.tolist(), strict=True):
            fine = residual <= max(FLAGGED, _tolerance(root))
            result = Result.converged if fine else Result.max_steps
            result = Result.not_concave if bad else result
            ended.append(Result.nonfinite if residual != residual else result)
        return ended


def _factor(curvature: Tensor) -> tuple[Tensor, Tensor]:
    """Cholesky factor of P = I + `curvature`, and (task,) where P was not positive definite.

    There P is raised until its least eigenvalue is the prior's own, 1.
    """
    eye = torch.eye(curvature.shape[-1], dtype=curvature.dtype, device=curvature.device)
    precision = eye + curvature
    lower, info = torch.linalg.cholesky_ex(precision)
    ridged = (info > 0) & precision.isfinite().all(-1).all(-1)
    if not bool(ridged.any()):
        return lower, ridged
    least = torch.linalg.eigvalsh(torch.where(ridged[:, None, None], precision.detach(), eye))
    ridge = torch.where(ridged, 1 - least[:, 0], 0.0)
    return torch.linalg.cholesky_ex(precision + ridge[:, None, None] * eye)[0], ridged


def implicit_mode(loss: Loss, state: newton.Minimum) -> Tensor:
    """û (task, k), with the derivative ∂û = −P⁻¹ ∂∇F(û) of the implicit function theorem.

    In value it is one Newton step beyond `state`, where that is nearly solved.
    """
    u = state.point.detach()
    gradient = loss.gradient(u) + u
    step = torch.linalg.solve_ex(state.second, gradient.unsqueeze(-1))[0].squeeze(-1)
    near = (state.residual <= FLAGGED).unsqueeze(-1)
    return u - torch.where(near, step, step - step.detach())


def _rule(points: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes (node, k) and log weights (node,) of the product rule over N(0, I)."""
    k = like.shape[1]
    places, weights = (
        torch.as_tensor(a).to(like) for a in np.polynomial.hermite_e.hermegauss(points)
    )
    grid = torch.cartesian_prod(*[places] * k).reshape(-1, k)
    products = torch.cartesian_prod(*[(weights / weights.sum()).log()] * k).reshape(-1, k)
    return grid, products.sum(-1)


def _projected(full: Gaussian, form: Form, blocks: Tensor) -> Gaussian:
    """The Gaussian of a form with the variances of `full`; a variance of 0 stays 0."""
    if form.name == "full":
        return full
    variance = full.variance()
    if form.name == "diagonal":
        return Gaussian(full.mean, variance)
    zero = variance == 0
    lifted = Gaussian.from_covariance(
        full.mean, full.covariance() + torch.diag_embed(zero.to(variance))
    )
    low = form.constrain(form.unconstrain(lifted, blocks), blocks)
    assert low.diagonal is not None
    return Gaussian(low.mean, torch.where(zero, 0.0, low.diagonal), low.factor)


def _tolerance(like: Tensor) -> float:
    return max(TOLERANCE, 300 * torch.finfo(like.dtype).eps)


def importance_evidence(
    model: Model,
    prior: Gaussian,
    posteriors: Gaussian,
    shared: Shared,
    family: TaskFamily,
    *,
    draws: int,
    generator: torch.Generator,
    df: int | None = 8,
) -> tuple[Tensor, Tensor]:
    """log p(S_i) by importance sampling, the check of every approximation, and its standard error.

        p(S_i) ≈ mean_s exp(−f_i(θ_s)) N(θ_s; θ₀, Σ₀) / q_i(θ_s),    θ_s ~ q_i

    q_i has the place and shape of Q_i: a Student-t, whose tails keep the weights bounded, or, for
    many weights, where the radius of a Student-t varies too much, Q_i itself.

    Args:
        model: f.
        prior: N(θ₀, Σ₀); where it is singular everything happens on its support.
        posteriors: Q_i, task axis first, not singular where the prior is not.
        shared: ψ.
        family: the tasks.
        draws: of θ, per task.
        generator: the randomness.
        df: degrees of freedom of the Student-t; None draws from Q_i.

    Returns:
        (task,) nats, and (task,) the standard error of the estimate of log p, by the delta method.
    """
    prior, posteriors, back = _on_support(prior, posteriors)
    batch, d = family.batch(), prior.dim
    chunk = max(1, CHUNK // (posteriors.mean.numel() + 1))
    parts = []
    with torch.no_grad():
        for first in range(0, draws, chunk):
            n = min(chunk, draws - first)
            z = posteriors.transform(_student(posteriors.noise(n, generator), df, generator))
            q = _log_student(posteriors, z, df) if d else z.new_zeros(z.shape[:-1])
            p = prior.log_prob(z) if d else torch.zeros_like(q)
            parts.append(p - model.energies(back(z), batch, shared) - q)
    log_weights = torch.cat(parts)
    estimate = torch.logsumexp(log_weights, 0) - math.log(draws)
    relative = (log_weights - estimate).exp()
    return estimate, relative.std(0) / math.sqrt(draws)


def _on_support(
    prior: Gaussian, posteriors: Gaussian
) -> tuple[Gaussian, Gaussian, Callable[[Tensor], Tensor]]:
    """Prior and Q_i in coordinates of the prior's support, and the way back to θ."""
    if bool(prior.sd().min() > 0) and bool(prior.log_det() > -torch.inf):
        return prior, posteriors, lambda z: z
    left, values, _ = torch.linalg.svd(prior.root(), full_matrices=False)
    kept = values > 1e-10 * values.max().clamp(min=torch.finfo(values.dtype).tiny)
    root = left[:, kept] * values[kept]
    inverse = left[:, kept].mT / values[kept][:, None]
    inside = posteriors.linear(inverse, -inverse @ prior.mean)
    standard = Gaussian(root.new_zeros(root.shape[1]), root.new_ones(root.shape[1]))
    return standard, inside, lambda z: prior.mean + z @ root.mT


def _student(noise: Tensor, df: int | None, generator: torch.Generator) -> Tensor:
    """Standard normal draws (draw, task, k) made multivariate t, one radius for each vector."""
    if df is None:
        return noise
    shape = (*noise.shape[:-1], df)
    normal = torch.randn(shape, generator=generator, dtype=noise.dtype, device=generator.device)
    return noise * (df / normal.square().sum(-1, keepdim=True)).sqrt().to(noise.device)


def _log_student(law: Gaussian, z: Tensor, df: int | None) -> Tensor:
    """(draw, task) log-density of the multivariate t with the place and shape of `law`."""
    if df is None:
        return law.log_prob(z)
    d = law.dim
    constant = math.lgamma((df + d) / 2) - math.lgamma(df / 2) - 0.5 * d * math.log(df * math.pi)
    tail = 0.5 * (df + d) * torch.log1p(2 * law.quadratic(z) / df)
    return constant - 0.5 * law.log_det() - tail
