"""The two posteriors that NUTS samples, as potentials U(z) = −log density of a flat z, in nats.

`HeldPrior`: Σ_i [f_i(θ_i) + ½‖θ_i − θ₀‖²_Λ] with N(θ₀, Σ₀) and ψ held; tasks are independent.
`Hierarchy`: the same with θ₀, Σ₀ and ψ random too. Constants are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import CorrCholeskyTransform, LKJCholesky
from torch.func import grad, jacrev

from bayesmeta.gaussian import Gaussian
from bayesmeta.models import Model
from bayesmeta.results import InputError
from bayesmeta.tasks import TaskBatch

DENSE_LIMIT = 64  # weights per task up to which each task's Hessian is formed
NEWTON_STEPS = 50
NEWTON_TOLERANCE = 1e-8  # nats, twice the descent that a full step promises
SMALLEST_CURVATURE = 0.1  # per unit of u, where the prior alone has 1
LOCATION_WIDTH = 10.0
SCALE_WIDTH = 2.5
DEGREES = 4.0
LOG_CONSTANT_WIDTH = 2.0
LOGARITHM = "likelihood.log_"  # how a likelihood names the parameter behind a positive constant


class HeldPrior:
    """θ_i = θ₀ + A(μ_i + L_i w_i), Σ₀ = A Aᵀ, for w_i (task, k), near N(0, I) under the posterior.

    μ_i is the mode and L_i L_iᵀ the inverse Hessian there, in the coordinates in which the prior is
    N(0, I). Both only shape the coordinates of the chain: where Newton's method does not arrive
    the target is the same, and the chain works harder. A singular Σ₀ needs no exception.
    """

    def __init__(self, model: Model, batch: TaskBatch, prior: Gaussian) -> None:
        self.model, self.batch, self.prior = model, batch, prior
        self.shared = {k: v.detach() for k, v in model.shared.items()}
        self.root = prior.root()
        tasks, k, like = len(batch), self.root.shape[-1], prior.mean
        self.mode = like.new_zeros(tasks, k)
        self.spread = torch.eye(k, dtype=like.dtype, device=like.device).expand(tasks, k, k)
        if k <= DENSE_LIMIT:
            self._whiten()

    def start(self, generator: torch.Generator) -> dict[str, Tensor]:
        w = torch.randn(self.mode.shape, generator=generator, dtype=self.mode.dtype)
        return {"w": w.to(self.mode.device)}

    def __call__(self, z: dict[str, Tensor]) -> Tensor:
        u = self._u(z["w"])
        energies = self.model.energies(self._theta(u), self.batch, self.shared)
        return energies.sum() + 0.5 * u.square().sum()

    def constrained(self, z: dict[str, Tensor]) -> dict[str, Any]:
        """Fields of `NutsResult` from draws of z."""
        return {"draws": self._theta(self._u(z["w"]))}

    def _u(self, w: Tensor) -> Tensor:
        return self.mode + (self.spread @ w.unsqueeze(-1)).squeeze(-1)

    def _theta(self, u: Tensor) -> Tensor:
        return self.prior.mean + u @ self.root.mT

    def _task_energy(self, u: Tensor, tensors: dict[str, Tensor], mask: Tensor | None) -> Tensor:
        energy = self.model.energy(self._theta(u), self.shared, tensors, mask)
        return energy + 0.5 * u.square().sum()

    def _whiten(self) -> None:
        """Newton's method from θ₀ for all tasks at once, each step shortened until it descends."""
        over = self.model.over_tasks
        u = self.mode
        value, size = over(self._task_energy, u, self.batch), u.new_ones(len(u))
        for _ in range(NEWTON_STEPS):
            slope, spread = over(grad(self._task_energy), u, self.batch), self._inverse_root(u)
            if not bool(slope.isfinite().all() & spread.isfinite().all()):
                return
            self.mode, self.spread = u, spread
            whitened = spread.mT @ slope.unsqueeze(-1)
            if float(whitened.square().sum((-2, -1)).max()) < NEWTON_TOLERANCE:
                return
            trial = u - size[:, None] * (spread @ whitened).squeeze(-1)
            trial_value = over(self._task_energy, trial, self.batch)
            better = trial_value <= value
            u = torch.where(better[:, None], trial, u)
            value = torch.where(better, trial_value, value)
            size = torch.where(better, (2 * size).clamp(max=1.0), 0.25 * size)

    def _inverse_root(self, u: Tensor) -> Tensor:
        """(task, k, k) R with R Rᵀ = |H|⁻¹, the curvature kept away from zero."""
        curvature = self.model.over_tasks(jacrev(grad(self._task_energy)), u, self.batch)
        values, vectors = torch.linalg.eigh(torch.nan_to_num(curvature))
        return vectors * values.abs().clamp(min=SMALLEST_CURVATURE).rsqrt().unsqueeze(-2)


class _Values(NamedTuple):
    """What z stands for; draws come first."""

    theta: Tensor
    theta0: Tensor
    sd: Tensor
    lower: Tensor
    shared: dict[str, Tensor]


class Hierarchy:
    """θ₀, Σ₀ = diag(τ) L Lᵀ diag(τ), ψ and every θ_i, with weak hyper-priors.

        θ₀_j ~ N(m_j, (10 s_j)²)     τ_j ~ half-t(4 degrees, scale 2.5 s_j)     L Lᵀ ~ LKJ(1)
        log of a likelihood's constant ~ N(its present value, 2²)
        any other shared weight ~ N(its present value, (10 × its unit-information sd)²)

    m is the mean of `prior`, and s_j² = its variance + the unit-information variance of θ_j, which
    is 1 / (mean second derivative of f in θ_j per row, at m). For a linear Gaussian model s_j is
    near sd(y) / rms(x_j): the hyper-priors have the data's units and are several times as wide.
    With more than 64 weights s_j² is the prior's variance alone.

    Args:
        model: bound to the family.
        batch: all tasks.
        prior: a fitted or otherwise plausible prior: its mean and order of magnitude are used.
        diagonal: Σ₀ without correlations.
        centred: sample θ_i itself; otherwise w_i with θ_i = θ₀ + diag(τ) L w_i.
        learn_shared: sample ψ; otherwise it is held.
    """

    def __init__(
        self,
        model: Model,
        batch: TaskBatch,
        prior: Gaussian,
        *,
        diagonal: bool,
        centred: bool,
        learn_shared: bool,
    ) -> None:
        self.model, self.batch, self.prior = model, batch, prior
        self.diagonal, self.centred = diagonal or prior.dim == 1, centred
        self.present = {k: v.detach() for k, v in model.shared.items()}
        self.learned = tuple(self.present) if learn_shared else ()
        self.scale = self._scale()
        self.width = self._width()
        like = prior.mean
        pairs = 0 if self.diagonal else prior.dim * (prior.dim - 1) // 2
        self.sizes = (prior.dim, prior.dim, pairs, len(self.width))
        self.to_cholesky: Any = CorrCholeskyTransform()  # torch types its call as "maybe None"
        if not self.diagonal:
            self.lkj = LKJCholesky(prior.dim, like.new_ones(()), validate_args=False)

    def start(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Near θ₀ = m and τ = the prior's sd (at least s/10), scattered."""
        like = self.prior.mean
        hyper = 0.1 * torch.randn(sum(self.sizes), generator=generator, dtype=like.dtype)
        tasks = torch.randn(len(self.batch), len(like), generator=generator, dtype=like.dtype)
        hyper, tasks = hyper.to(like.device), 0.5 * tasks.to(like.device)
        spread = (self.prior.sd() / self.scale).clamp(min=0.1)
        hyper[len(like) : 2 * len(like)] += spread.log()
        return {"hyper": hyper, "tasks": tasks * spread if self.centred else tasks}

    def __call__(self, z: dict[str, Tensor]) -> Tensor:
        location, log_ratio, pairs, psi = z["hyper"].split(self.sizes)
        v = self._values(z)
        energy = self.model.energies(v.theta, self.batch, v.shared).sum()
        half_t = log_ratio - 0.5 * (DEGREES + 1) * torch.log1p(
            (log_ratio.exp() / SCALE_WIDTH).square() / DEGREES
        )
        energy = energy + 0.5 * (location / LOCATION_WIDTH).square().sum() - half_t.sum()
        energy = energy + 0.5 * psi.square().sum()
        if not self.diagonal:
            jacobian = self.to_cholesky.log_abs_det_jacobian(pairs, v.lower)
            energy = energy - self.lkj.log_prob(v.lower) - jacobian
        if self.centred:
            law = Gaussian(v.theta0, None, v.sd.unsqueeze(-1) * v.lower)
            return energy - law.log_prob(v.theta).sum()
        return energy + 0.5 * z["tasks"].square().sum()

    def constrained(self, z: dict[str, Tensor]) -> dict[str, Any]:
        """Fields of `NutsResult` from draws of z."""
        v = self._values(z)
        shared = {name: v.shared[name] for name in self.learned}
        logarithms = {k: value for k, value in shared.items() if k.startswith(LOGARITHM)}
        return {
            "draws": v.theta,
            "theta0": v.theta0,
            "prior_sd": v.sd,
            "correlation": v.lower @ v.lower.mT,
            "shared": shared,
            "constants": {k.removeprefix(LOGARITHM): x.exp() for k, x in logarithms.items()},
            "hyperpriors": self.sentences(),
        }

    def sentences(self) -> tuple[str, ...]:
        """The hyper-priors in numbers."""
        pairs = zip(self.model.names, self.prior.mean.tolist(), self.scale.tolist(), strict=True)
        said = [
            f"{name}: mean ~ N({mean:.4g}, {LOCATION_WIDTH * scale:.3g}²), "
            f"sd ~ half-t({DEGREES:.0f}, {SCALE_WIDTH * scale:.3g})"
            for name, mean, scale in pairs
        ]
        if not self.diagonal:
            said.append("correlations ~ LKJ(1)")
        place = 0
        for name in self.learned:
            value, width = self.present[name].flatten(), self.width[place:]
            said += [
                f"{name} ~ N({v:.4g}, {w:.3g}²)"
                for v, w in zip(value.tolist(), width.tolist(), strict=False)
            ]
            place += value.numel()
        return tuple(said)

    def _values(self, z: dict[str, Tensor]) -> _Values:
        location, log_ratio, pairs, psi = z["hyper"].split(self.sizes, -1)
        theta0 = self.prior.mean + self.scale * location
        sd = self.scale * log_ratio.exp()
        lower = torch.diag_embed(torch.ones_like(sd)) if self.diagonal else self.to_cholesky(pairs)
        if self.centred:
            theta = self.prior.mean + self.scale * z["tasks"]
        else:
            theta = theta0.unsqueeze(-2) + z["tasks"] @ (sd.unsqueeze(-1) * lower).mT
        return _Values(theta, theta0, sd, lower, self.present | self._shared(psi))

    def _shared(self, psi: Tensor) -> dict[str, Tensor]:
        sizes = [self.present[name].numel() for name in self.learned]
        found = {}
        for name, move in zip(self.learned, (psi * self.width).split(sizes, -1), strict=True):
            here = self.present[name]
            found[name] = here + move.reshape(move.shape[:-1] + here.shape)
        return found

    def _scale(self) -> Tensor:
        """(dim,) s."""
        unit = torch.zeros_like(self.prior.mean)
        if self.prior.dim <= DENSE_LIMIT:
            information = self._information(self.prior.mean, lambda theta: (theta, self.present))
            unit = torch.where(information > 0, 1 / information, 0.0)
        scale = (self.prior.variance() + unit).sqrt()
        bad = (~(scale > 0) | ~scale.isfinite()).nonzero().flatten().tolist()
        if bad:
            raise InputError(
                f"the data say nothing of the scale of {self.model.names[bad[0]]!r} and the "
                "prior's variance there is 0: give nuts a prior with a positive variance"
            )
        return scale

    def _width(self) -> Tensor:
        """(number of learned ψ,) prior sd of each."""
        parts = []
        for name in self.learned:
            here = self.present[name]
            if name.startswith(LOGARITHM):
                parts.append(here.new_full((1,), LOG_CONSTANT_WIDTH))
                continue
            if here.numel() > DENSE_LIMIT:
                raise InputError(
                    f"{name} has {here.numel()} shared weights, more than NUTS can sample here: "
                    "hold them with learn_shared=False"
                )
            information = self._information(
                here.flatten(),
                lambda flat, name=name, here=here: (
                    self.prior.mean,
                    self.present | {name: flat.reshape(here.shape)},
                ),
            )
            wide = torch.where(information > 0, information.rsqrt(), here.flatten().abs() + 1.0)
            parts.append(LOCATION_WIDTH * wide)
        return torch.cat(parts) if parts else self.prior.mean.new_zeros(0)

    def _information(self, at: Tensor, place: Callable) -> Tensor:
        """Diagonal of the Hessian of the mean energy of a row; `place` gives θ and ψ."""
        mask = self.batch.mask
        rows = len(self.batch) if mask is None else int(mask.sum())

        def total(flat: Tensor) -> Tensor:
            theta, shared = place(flat)
            theta = theta.expand(len(self.batch), -1)
            return self.model.energies(theta, self.batch, shared).sum()

        return torch.nan_to_num(jacrev(grad(total))(at).diagonal() / rows)
