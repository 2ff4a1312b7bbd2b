"""The evidence's value and gradient: differences, dense grids, and how each task ended."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import bayesmeta as bm
from bayesmeta.gaussian import Gaussian
from bayesmeta.inner.newton import Kind, Newton
from bayesmeta.joint import evidence, profile
from bayesmeta.methods import laplace
from bayesmeta.results import Result
from tests.evidence_cases import binary, orange, theoph


def gradient_errors(
    model: bm.Model, family: bm.TaskFamily, points: int, curvature: Kind
) -> list[float]:
    """Largest relative difference from central differences, for θ₀ and ψ, A, and constants."""
    method = laplace(points=points, curvature=curvature)
    tasks = profile._tasks(model, family, method, profile._design(model, family))
    p = model.dim
    weights = [w.detach().flatten() for w in model.shared_weights.values()]
    location = torch.cat([model.start, *weights])
    root = 0.3 * torch.eye(p).double() + 0.1 * torch.arange(p * p).reshape(p, p).sin().double()
    shared = {k: v.detach() for k, v in model.shared.items() if not k.startswith("module.")}
    leaves = [location, root, *shared.values()]
    shapes = [leaf.shape for leaf in leaves]
    sizes = [leaf.numel() for leaf in leaves]

    def value(flat: Tensor) -> Tensor:
        parts = [v.reshape(s) for v, s in zip(flat.split(sizes), shapes, strict=True)]
        held = dict(zip(shared, parts[2:], strict=True))
        fixed = {k: v.detach() for k, v in held.items()}
        state = tasks.begin(len(family), parts[1].detach())
        state = tasks.solve(parts[0].detach(), fixed, parts[1].detach(), state)
        return tasks.value(parts[0], held, parts[1], state).sum()

    flat = torch.cat([leaf.flatten() for leaf in leaves]).requires_grad_()
    (ours,) = torch.autograd.grad(value(flat), flat)
    steps = 1e-5 * torch.eye(len(flat)).double() * flat.detach().abs().clamp(min=1.0)
    with torch.no_grad():
        numeric = torch.stack([(value(flat + s) - value(flat - s)) / (2 * s.max()) for s in steps])
    error = (ours - numeric).abs() / numeric.abs().clamp(min=1.0)
    return [float(part.max()) for part in error.split(sizes)]


def case_of(name: str) -> tuple[bm.Model, bm.TaskFamily]:
    model, family = {"binary": binary, "theoph": theoph, "orange": orange}[name]()
    return model.double(), family


@pytest.mark.parametrize("points", [1, 3])
@pytest.mark.parametrize(
    ("name", "curvature"),
    [("binary", "hessian"), ("theoph", "hessian"), ("theoph", "ggn"), ("orange", "auto")],
)
def test_the_gradient_is_that_of_the_value(name: str, curvature: Kind, points: int) -> None:
    model, family = case_of(name)
    assert max(gradient_errors(model, family, points, curvature)) < 1e-6


def test_without_the_implicit_term_the_gradient_is_wrong(monkeypatch) -> None:
    monkeypatch.setattr(evidence, "implicit_mode", lambda loss, state: state.point)
    cases: list[tuple[str, Kind]] = [("binary", "hessian"), ("theoph", "ggn")]
    for name, curvature in cases:
        errors = gradient_errors(*case_of(name), 1, curvature)
        assert errors[0] > 1e-3 and errors[1] > 1e-3


def dense_grid(model: bm.Model, family: bm.TaskFamily, prior: Gaussian) -> Tensor:
    """(task,) log evidence of two weights on a grid of ±9 prior sds."""
    axis = torch.linspace(-9, 9, 361, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    theta = (prior.mean + grid @ prior.root().mT)[:, None].expand(-1, len(family), -1)
    with torch.no_grad():
        loss = model.energies(theta, family.batch())
    log_prior = -0.5 * grid.square().sum(-1) - math.log(2 * math.pi)
    return torch.logsumexp(log_prior[:, None] - loss, 0) + 2 * math.log(axis[1] - axis[0])


def test_more_points_converge_to_a_dense_grid() -> None:
    model, family = binary()
    covariance = torch.tensor([[2.0, 0.5], [0.5, 1.0]]).double()
    prior = Gaussian.from_covariance(torch.tensor([0.3, -0.2]).double(), covariance)
    truth = dense_grid(model, family, prior)
    shared = {k: v.detach() for k, v in model.shared.items()}
    errors = []
    for points in (1, 3, 7, 15):
        _, values, _ = profile.adapted(model, prior, shared, family, method=laplace(points=points))
        errors.append(float((values - truth).abs().max()))
    assert 1e-3 < errors[0] < 0.2
    assert errors[0] > 4 * errors[1] > 16 * errors[2] > 64 * errors[3]
    assert errors[-1] < 1e-6


def test_one_point_is_laplace() -> None:
    model, family = binary()
    prior = Gaussian.from_covariance(torch.zeros(2).double(), torch.eye(2).double())
    shared = {k: v.detach() for k, v in model.shared.items()}
    q, value, _ = profile.adapted(model, prior, shared, family, method=laplace())
    # p(S) ≈ p(S | θ*) N(θ*; θ₀, Σ₀) / Q(θ*)
    with torch.no_grad():
        joint = prior.log_prob(q.mean) - model.energies(q.mean, family.batch())
    torch.testing.assert_close(value, joint - q.log_prob(q.mean), rtol=0, atol=1e-9)
    tasks = profile._tasks(model, family, laplace(), profile._design(model, family))
    assert isinstance(tasks, evidence.Evidence)
    place = torch.cat([prior.mean, *[w.flatten() for w in model.shared_weights.values()]])
    state = tasks.solve(place, {}, prior.root(), tasks.begin(len(family), prior.root()))
    nodes, log_weights = evidence._rule(1, state.point)
    assert nodes.tolist() == [[0.0, 0.0]] and float(log_weights) == 0.0
    torch.testing.assert_close(tasks.value(place, {}, prior.root(), state), -value)


def double_well(theta: Tensor, centre: Tensor) -> Tensor:
    return 8 * ((theta[0] - centre).square() - 1).square()


def test_how_each_task_ended() -> None:
    wells = bm.TaskFamily.from_tensors(centre=torch.tensor([0.0, 0.8, torch.nan]).double())
    model = bm.Model.from_energy(double_well, 1).double()
    prior = Gaussian(torch.zeros(1).double(), torch.ones(1).double())
    _, _, results = profile.adapted(model, prior, {}, wells, method=laplace())
    # The first stands on its maximum, where the gradient is 0.
    assert results == [Result.not_concave, Result.converged, Result.nonfinite]
    method = laplace()
    assert isinstance(method.inner, Newton)
    hurried = replace(method, inner=replace(method.inner, steps=1))
    _, _, results = profile.adapted(model, prior, {}, wells, method=hurried)
    assert results[1] is Result.max_steps


def test_quadrature_in_many_directions_is_refused() -> None:
    model = bm.Model.from_energy(lambda theta, c: (theta - c).square().sum(), 4)
    family = bm.TaskFamily.from_tensors(c=torch.randn(9, 4).double())
    with pytest.raises(bm.InputError, match="up to 3.*points=1"):
        bm.fit(model, family, method=laplace(points=5))
