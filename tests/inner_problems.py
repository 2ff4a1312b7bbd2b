"""Problems and a table of algorithms that the tests of `bayesmeta.inner` share."""

from __future__ import annotations

import torch
from torch import nn

from bayesmeta import families
from bayesmeta.gaussian import Gaussian
from bayesmeta.inner.first_order import Adam, GradientDescent, Momentum, Nesterov
from bayesmeta.inner.loop import Adapted
from bayesmeta.inner.newton import Exact, Newton, NewtonCG
from bayesmeta.inner.problem import InnerProblem
from bayesmeta.inner.quasi_newton import LBFGS
from bayesmeta.models import Model
from bayesmeta.tasks import TaskFamily

F64 = torch.float64
VARIANCES = torch.tensor([0.5, 1.0, 2.0], dtype=F64)
THETA0 = torch.tensor([1.0, -1.0, 0.5], dtype=F64)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def quadratic_problem(family, theta0=THETA0, variances=VARIANCES, shared=None) -> InnerProblem:
    """½(θ−c)ᵀA(θ−c), with ½‖θ−θ₀‖²_Λ unless `variances` is None."""
    model = Model.from_energy(families.quadratic_energy, family.tensors["c"].shape[1])
    start = theta0.expand(len(family), -1)
    anchor = None if variances is None else Gaussian(start, variances)
    return InnerProblem(model, family.batch(), shared or {}, start, anchor)


def quadratics(tasks=4, dim=3, seed=0, **options) -> TaskFamily:
    return families.quadratics(tasks=tasks, dim=dim, generator=generator(seed), **options)[0]


def minimum(problem: InnerProblem) -> torch.Tensor:
    """(A + Λ)⁻¹ (A c + Λ θ₀)."""
    a, c = problem.batch.tensors["A"], problem.batch.tensors["c"]
    precision = torch.diag(1 / VARIANCES)
    right = (a @ c[..., None])[..., 0] + problem.start @ precision
    return torch.linalg.solve(a + precision, right)


def regression_problem(family, likelihood, theta0=(0.5, -0.5)) -> InnerProblem:
    module = nn.Linear(1, 1).double()
    model = Model(module, likelihood)
    start = torch.tensor(theta0, dtype=F64).expand(len(family), 2)
    anchor = Gaussian(start, None, torch.tensor([[1.0, 0.0], [0.5, 0.7]], dtype=F64))
    shared = {name: value.detach() for name, value in model.shared.items()}
    return InnerProblem(model, family.batch(), shared, start, anchor)


def names(adapted: Adapted) -> list[str]:
    return [result.name for result in adapted.results()]


def spiked(family: TaskFamily, factor: float) -> TaskFamily:
    """The same tasks, with A of task 1 multiplied."""
    a = family.tensors["A"].clone()
    a[1] *= factor
    return TaskFamily.from_tensors(A=a, c=family.tensors["c"])


ALGORITHMS = {
    "descent": GradientDescent(0.2, 500, per="task", tolerance=1e-9),
    "backtracking": GradientDescent(10.0, 500, backtracking=True, tolerance=1e-9),
    "nesterov": Nesterov(0.15, 500, per="task", tolerance=1e-9),
    "nesterov of known condition": Nesterov(0.15, 500, per="task", condition=12.0, tolerance=1e-9),
    "momentum": Momentum(0.05, 800, momentum=0.8, per="task", tolerance=1e-9),
    "adam": Adam(0.02, 3000, betas=(0.9, 0.99), tolerance=1e-6),
    "newton-cg": NewtonCG(20, 5, tolerance=1e-9),
    "newton": Newton(20, tolerance=1e-9),
    "exact": Exact(tolerance=1e-9),
    "l-bfgs": LBFGS(60, tolerance=1e-9),
}
