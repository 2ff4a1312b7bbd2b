"""Small tasks under minibatch descent, and a way to ask the library for many meta-gradients of one.

Rows are ½(xᵀθ − y)², or where `curved` e^η − yη with η = xᵀθ, a Poisson loss. SGD sees one row a
step, drawn with replacement, times the number of rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import bayesmeta as bm
from bayesmeta.methods import (
    Algorithmic,
    GradientDescent,
    Method,
    SeparatePaths,
    Unrolled,
    Validation,
)

F64 = torch.float64
RULES = ("shared", "split halves", "every pair")
DIM = 2


def energy(theta: Tensor, x: Tensor, y: Tensor, curved: Tensor, mask: Tensor) -> Tensor:
    """f of one task in nats, up to a constant."""
    eta = x @ theta
    rows = torch.where(curved, eta.exp() - y * eta, 0.5 * (eta - y).square())
    return (rows * mask).sum()


MODEL = bm.Model.from_energy(energy, DIM)


@dataclass(frozen=True, eq=False)
class Sets:
    """Support or query rows of some tasks.

    Args:
        x: (task, row, dim).
        y: (task, row).
        curved: whether the rows are Poisson.
    """

    x: Tensor
    y: Tensor
    curved: bool = False

    def family(self, copies: int, device: str) -> bm.TaskFamily:
        """Every task so many times, the whole family after itself."""
        x, y = self.x.repeat(copies, 1, 1), self.y.repeat(copies, 1)
        flags = torch.full(y.shape, self.curved)
        return bm.TaskFamily.from_tensors(x=x, y=y, curved=flags).to(device=device)


@dataclass(frozen=True, eq=False)
class Problem:
    """Tasks, where adaptation starts, and its step size and number of steps."""

    support: Sets
    query: Sets
    theta0: Tensor
    lr: float
    steps: int

    def method(self, rule: str, paths: int) -> Method:
        """One of RULES, for ∇g(E_z θ_z) by so many paths; or the mean loss, for ∇E_z g(θ_z)."""
        inner = GradientDescent(self.lr, self.steps, per="task", rows=1, replacement=True)
        if rule in ("shared", "mean loss"):
            at = "mean" if rule == "shared" else "draws"
            return Method(Algorithmic(), inner, Unrolled(), Validation(None, at=at), draws=paths)
        separate = SeparatePaths(paths // 2, paths // 2, every_pair=rule == "every pair")
        return Method(Algorithmic(), inner, separate, Validation(None, at="mean"))

    def estimates(
        self, rule: str, paths: int, number: int, seed: int, device: str, query: Sets | None = None
    ) -> Tensor:
        """(number, dim) independent meta-gradients of the family, as one batch.

        Args:
            rule, paths: see `method`.
            number: of them.
            seed: of z; the same for two rules of equally many paths gives them the same z.
            device: where.
            query: other query sets than the problem's.
        """
        prior = bm.Prior("point").at(mean=self.theta0.to(device), variance=0.0)
        found = bm.meta_gradient(
            MODEL.to(device=device),
            prior,
            self.support.family(number, device),
            self.method(rule, paths),
            query=(query or self.query).family(number, device),
            generator=torch.Generator().manual_seed(seed),
        )
        return found.per_task.reshape(number, -1, DIM).sum(1).cpu()


def quadratic_family() -> Problem:
    """Four regressions with rows of unlike length: a step's noise differs by task and by θ₀."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=F64)

    centres = torch.tensor([[2.0, 0.0], [-1.0, 1.5], [-1.0, -1.5], [0.5, 0.5]], dtype=F64)
    noisy = torch.tensor([1.6, 0.2, 0.2, 0.8], dtype=F64)[:, None, None]

    def rows(count: int, uneven: bool) -> Sets:
        x = normal(4, count, DIM)
        if uneven:
            x = x * torch.exp(noisy * normal(4, count, 1) - noisy.square())
        y = (x @ centres[..., None])[..., 0] + 0.5 * normal(4, count)
        return Sets(x, y)

    support = rows(8, uneven=True)
    return Problem(support, rows(8, uneven=False), torch.tensor([1.0, 1.0], dtype=F64), 0.04, 5)


def poisson_task() -> Problem:
    """One Poisson regression of five rows: 625 paths of four steps, all of which can be walked."""
    generator = torch.Generator().manual_seed(3)

    def rows(count: int) -> Sets:
        x = torch.randn(1, count, DIM, generator=generator, dtype=F64)
        rate = (x @ torch.tensor([0.6, -0.4], dtype=F64)).exp()
        return Sets(x, torch.poisson(rate, generator=generator), curved=True)

    return Problem(rows(5), rows(8), torch.zeros(DIM, dtype=F64), 0.1, 4)
