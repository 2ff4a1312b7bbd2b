"""Linear regressions whose meta-gradient in θ₀ is known, and a way to ask the library for its own.

    A = XᵀX + λI,   θ* = A⁻¹(Xᵀy + λθ₀),   dM/dθ₀ = λ A⁻¹ v,   v = X'ᵀ(X'θ* − y')

with noise of sd 1, (X', y') the query set and N(θ₀, I/λ) the prior. A has eigenvalues from 1 to κ.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import bayesmeta as bm
from bayesmeta.gradients.implicit import Implicit
from bayesmeta.inner.first_order import GradientDescent, Nesterov
from bayesmeta.inner.loop import Algorithm
from bayesmeta.inner.problem import InnerProblem
from bayesmeta.method import Gradient, Method
from bayesmeta.objective import Validation
from bayesmeta.posteriors.proximal import Proximal

F64 = torch.float64
LAM = 0.5


@dataclass(frozen=True, eq=False)
class Problem:
    """A family, what `meta_gradient` needs beside it, and the closed form.

    Args:
        kappa: condition number of every A.
        A: (task, dim, dim).
        minimum: (task, dim) θ*.
        slope: (task, dim) v, the gradient of the query loss at θ*.
        exact: (task, dim) dM/dθ₀.
    """

    kappa: int
    family: bm.TaskFamily
    query: bm.TaskFamily
    model: bm.Model
    prior: bm.Prior
    A: Tensor
    minimum: Tensor
    slope: Tensor
    exact: Tensor

    @classmethod
    def draw(cls, kappa: int, eigenvalues: Tensor, tasks: int, device: str) -> Problem:
        """Random eigenvectors, another set of them for the query; the same draws at every κ."""
        generator = torch.Generator().manual_seed(0)
        dim = len(eigenvalues)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=F64)

        def rows() -> tuple[Tensor, Tensor]:
            left, right = (torch.linalg.qr(normal(tasks, dim, dim)).Q for _ in range(2))
            x = left * (eigenvalues - LAM).sqrt() @ right.mT
            return x, (x @ normal(tasks, dim, 1))[..., 0] + normal(tasks, dim)

        (x, y), (x_query, y_query), theta0 = rows(), rows(), normal(dim)
        A = x.mT @ x + LAM * torch.eye(dim, dtype=F64)
        minimum = torch.linalg.solve(A, times(x.mT, y) + LAM * theta0)
        slope = times(x_query.mT, times(x_query, minimum) - y_query)
        exact = LAM * torch.linalg.solve(A, slope)
        family, query = (
            bm.TaskFamily.from_tensors(x=x, y=y).to(device=device)
            for x, y in ((x, y), (x_query, y_query))
        )
        linear = torch.nn.Linear(dim, 1, bias=False)
        model = bm.Model(linear, bm.likelihoods.Gaussian(scale=1.0)).to(device=device, dtype=F64)
        prior = bm.Prior("isotropic").at(mean=theta0.to(device), variance=1 / LAM)
        return cls(kappa, family, query, model, prior, A, minimum, slope, exact)

    def gradient(self, inner: Algorithm, rule: Gradient, audit: int = 0) -> bm.MetaGradient:
        """The library's."""
        method = Method(
            posterior=Proximal(), inner=inner, gradient=rule, objective=Validation(None)
        )
        return bm.meta_gradient(
            self.model, self.prior, self.family, method, query=self.query, audit=audit
        )

    def errors(self, gradient: Tensor) -> list[float]:
        """‖g − g_exact‖ / ‖g_exact‖ of every task."""
        away = torch.linalg.vector_norm(gradient.cpu() - self.exact, dim=-1)
        return (away / torch.linalg.vector_norm(self.exact, dim=-1)).tolist()

    def error(self, inner: Algorithm, rule: Gradient) -> float:
        """The largest of any task."""
        return max(self.errors(self.gradient(inner, rule).per_task))

    def descent(self, steps: int) -> GradientDescent:
        """With the step size that is best for eigenvalues from 1 to κ."""
        return GradientDescent(2 / (1 + self.kappa), steps, per="task")

    def nesterov(self, steps: int) -> Nesterov:
        return Nesterov(1 / self.kappa, steps, per="task", condition=self.kappa)

    def path(self, inner: Algorithm) -> list[Tensor]:
        """θ after 1, 2, … steps of an adaptation."""
        seen: list[Tensor] = []
        self.gradient(Watched(inner, seen), Implicit(steps=0))
        return seen


@dataclass(frozen=True, eq=False)
class Watched:
    """An algorithm whose every θ is kept, so that one run serves all numbers of steps."""

    algorithm: Algorithm
    seen: list[Tensor]
    tolerance = 0.0
    differentiable = False

    @property
    def steps(self) -> int:
        return self.algorithm.steps

    def init(self, problem: InnerProblem, theta: Tensor) -> Any:
        return self.algorithm.init(problem, theta)

    def step(
        self, problem: InnerProblem, theta: Tensor, gradient: Tensor, state: Any
    ) -> tuple[Tensor, Any]:
        theta, state = self.algorithm.step(problem, theta, gradient, state)
        self.seen.append(theta)
        return theta, state


@dataclass(frozen=True, eq=False)
class Reached:
    """Goes to a θ known already."""

    theta: Tensor
    steps = 1
    tolerance = 0.0
    differentiable = False

    def init(self, problem: InnerProblem, theta: Tensor) -> tuple[()]:
        return ()

    def step(
        self, problem: InnerProblem, theta: Tensor, gradient: Tensor, state: tuple[()]
    ) -> tuple[Tensor, tuple[()]]:
        return self.theta, state


def spread(dim: int, kappa: int) -> Tensor:
    """Eigenvalues evenly spaced in their logarithm."""
    return torch.logspace(0, 1, dim, base=kappa, dtype=F64)


def hardest(dim: int, kappa: int) -> Tensor:
    """Chebyshev's nodes, for which CG's bound with √κ is all but attained while steps < dim."""
    cosines = torch.linspace(0, math.pi, dim, dtype=F64).cos()
    return (kappa + 1) / 2 - (kappa - 1) / 2 * cosines


def times(matrix: Tensor, v: Tensor) -> Tensor:
    """Each task's matrix times its vector."""
    return (matrix @ v[..., None])[..., 0]
