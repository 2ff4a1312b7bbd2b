"""Two quadratic tasks ½(θ−c)ᵀA(θ−c) in the plane, and what is known of them in closed form."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

import bayesmeta as bm
from bayesmeta.families import quadratic_energy

F64 = torch.float64
ALPHA, LAM = 0.2, 1.0
"""The inner step size, and λ = 1/(5 α): an anchor about as strong as stopping after 5 steps."""
STEPS = (1, 5, 50)
EIGENVALUES = ((3.0, 0.1), (1.0, 0.05))
ANGLES = (150.0, 10.0)
"""Of the first eigenvector, in degrees: the curvatures do not commute."""
OPTIMA = ((-1.0, -0.4), (1.0, 0.4))
METHODS = (
    *(f"MAML, {k}" for k in STEPS),
    *("iMAML", "Reptile", "joint", "variational iMAML", "Reptile, 5"),
)
"""Those that are fitted; a number is of inner steps, and Reptile without one is anchored."""


@dataclass(frozen=True, eq=False)
class Pair:
    """The tasks.

    Args:
        A: (task, dim, dim) curvatures.
        c: (task, dim) optima.
    """

    A: Tensor
    c: Tensor

    @classmethod
    def chosen(cls) -> Pair:
        """The two that are drawn."""
        A = torch.stack([_curvature(e, a) for e, a in zip(EIGENVALUES, ANGLES, strict=True)])
        return cls(A, torch.tensor(OPTIMA, dtype=F64))

    @property
    def midpoint(self) -> Tensor:
        return self.c.mean(0)

    def weights(self, method: str) -> Tensor:
        """(task, dim, dim) W_i, with which the optima are averaged."""
        name, _, steps = method.partition(", ")
        eye = torch.eye(self.A.shape[-1], dtype=F64)
        pull = torch.linalg.solve(self.A + LAM * eye, LAM * eye.expand_as(self.A))
        if name == "iMAML":
            return pull.mT @ self.A @ pull
        if not steps:
            return pull @ self.A
        left = torch.linalg.matrix_power(eye - ALPHA * self.A, int(steps))
        return eye - left if name == "Reptile" else left @ self.A @ left

    def average(self, method: str) -> Tensor:
        """(Σ W_i)⁻¹ Σ W_i c_i."""
        W = self.weights(method)
        return torch.linalg.solve(W.sum(0), (W @ self.c[..., None]).sum(0))[:, 0]

    def adapted_losses(self, start: Tensor, steps: int) -> Tensor:
        """(task,) each loss after so many steps of gradient descent from a start."""
        eye = torch.eye(self.A.shape[-1], dtype=F64)
        left = torch.linalg.matrix_power(eye - ALPHA * self.A, steps)
        away = (left @ (start - self.c)[..., None])[..., 0]
        return 0.5 * torch.einsum("ti,tij,tj->t", away, self.A, away)

    @property
    def family(self) -> bm.TaskFamily:
        return bm.TaskFamily.from_tensors(A=self.A, c=self.c)

    @property
    def model(self) -> bm.Model:
        return bm.Model.from_energy(quadratic_energy, self.A.shape[-1])


def _curvature(eigenvalues: tuple[float, float], degrees: float) -> Tensor:
    """With these eigenvalues, the first along the direction at this angle."""
    x, y = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turn = torch.tensor([[x, -y], [y, x]], dtype=F64)
    return turn @ torch.diag(torch.tensor(eigenvalues, dtype=F64)) @ turn.T


def attenuated(eigenvalue: Tensor, steps: int) -> Tensor:
    """a(1 − αa)^{2k}, the eigenvalue of W for A's a."""
    return eigenvalue * (1 - ALPHA * eigenvalue) ** (2 * steps)


def fitted(pair: Pair, method: str) -> Tensor:
    """Where bm.fit ends, of a method by its name in `METHODS`."""
    held = bm.Prior("isotropic", learn="mean").at(mean=torch.zeros(2, dtype=F64), variance=1 / LAM)
    prior = held if method == "joint" else None
    return bm.fit(pair.model, pair.family, method=_method(method), prior=prior).prior.mean


def _method(method: str) -> bm.methods.Method:
    name, _, steps = method.partition(", ")
    m, tight = bm.methods, {"outer_tolerance": 1e-12}
    if name == "MAML":
        return m.maml(steps=int(steps), lr=ALPHA, support=None, **tight)
    if name == "iMAML":
        return m.imaml_hf(steps=3, lam=LAM, support=None, **tight)
    if name == "variational iMAML":
        return m.variational_imaml(steps=400, lr=ALPHA, lam=LAM, tolerance=1e-13, **tight)
    if name == "joint":
        return m.joint(covariance="point", tolerance=1e-10)
    if steps:
        return m.reptile(steps=int(steps), lr=ALPHA, outer_steps=300)
    # Any number of steps of any algorithm would do, were they enough: here one that is exact.
    descent = {"optimiser": "sgd", "lr": 2.0, "steps": 400}
    anchored = m.Algorithmic(anchored=True, lam=LAM)
    return m.Method(anchored, m.Newton(1), m.Direct(), m.Variational(), **descent)


def adaptation(pair: Pair, start: Tensor, steps: int) -> Tensor:
    """(task,) each loss after so many steps, by the library.

    A first-order meta-gradient is A(θ_n − c), from which the loss is ½ ∇ᵀA⁻¹∇.
    """
    prior = bm.Prior("isotropic").at(mean=start, variance=1.0)
    method = bm.methods.fomaml(steps=steps, lr=ALPHA, support=None)
    slope = bm.meta_gradient(pair.model, prior, pair.family, method).per_task
    return 0.5 * (slope * torch.linalg.solve(pair.A, slope[..., None])[..., 0]).sum(-1)
