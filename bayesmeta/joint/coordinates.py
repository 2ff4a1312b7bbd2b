"""Well-scaled coordinates for the outer descent: the search must not see anybody's units.

A linear predictor is scaled by its columns. Any other model by the curvature of the pooled loss
(every task at θ₀) at its minimum, which is also where the search starts.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.func import grad, jacrev

from bayesmeta.forms import Form
from bayesmeta.joint import newton
from bayesmeta.models import Model
from bayesmeta.posteriors.conjugate import least_squares, orthonormal, rescaling
from bayesmeta.prior import Prior
from bayesmeta.tasks import TaskFamily

DENSE_LIMIT = 300
POOLED_STEPS = 100
POOLED_TOLERANCE = 1e-3
LEAST_EIGENVALUE = 1e-6
SHAPES = ("likelihood.log_df", "likelihood.log_concentration")


@dataclass(frozen=True, eq=False)
class Coordinates:
    """location = start + to_location location', θ = to_theta θ'.

    Args:
        start: (m,) θ₀ and the module's ψ after it.
        to_location: (m, m).
        to_theta: (p, p).
        constants: where the likelihood's own ψ start, by name.
    """

    start: Tensor
    to_location: Tensor
    to_theta: Tensor
    constants: dict[str, Tensor] = field(default_factory=dict)


def linear(
    model: Model, family: TaskFamily, form: Form, design: Tensor, constant: Tensor
) -> Coordinates:
    """Of a prediction W (θ, ψ) + c, W (task, row, m), c (task, row)."""
    mask = family.mask
    weight = 1.0 if mask is None else mask.unsqueeze(-1)
    pooled = (design * weight).flatten(0, 1)
    to_theta, to_location = rescaling(pooled[:, : model.dim], form), orthonormal(pooled)
    if model.require_likelihood().responses != "real":
        return Coordinates(_start(model), to_location, to_theta)
    # In units of the residual, from least squares: the search does not see y's units.
    y = model.response(family.tensors)
    place, unit = least_squares(design, y - constant, mask)
    scale = {"likelihood.log_scale": unit.log()}
    scale = {k: v for k, v in scale.items() if k in model.shared}
    return Coordinates(place, unit * to_location, unit * to_theta, scale)


def general(model: Model, family: TaskFamily, prior: Prior) -> Coordinates:
    """Of any model: its pooled optimum, from its present weights, and the curvature there."""
    start, p = _start(model), model.dim
    if len(start) > DENSE_LIMIT:
        eye = torch.eye(len(start)).to(start)
        return Coordinates(start, eye, eye[:p, :p])
    if prior.learn == "none":
        start[:p] = prior().mean.detach()
    batch, m = family.batch(), len(start)
    free = {k: v.detach() for k, v in model.shared.items() if not k.startswith("module.")}
    moving = [k for k in free if k not in SHAPES]

    def pooled(v: Tensor) -> Tensor:
        theta = start[:p] if prior.learn == "none" else v[:p]
        shared = free | {k: v[m + i].reshape(free[k].shape) for i, k in enumerate(moving)}
        shared = shared | model.split_shared(v[p:m])
        return model.energies(theta.expand(len(batch), p), batch, shared).sum()

    def derivatives(v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        second = jacrev(grad(pooled))(v[0])
        # What does not move, and what the loss does not see, is a parabola at its minimum.
        second = second + torch.diag((second.diagonal() == 0).to(v))
        return pooled(v[0])[None], grad(pooled)(v[0])[None], second[None]

    first = torch.cat([start, *[free[k].reshape(1).to(start) for k in moving]])
    with torch.no_grad():
        end = newton.minimise(
            derivatives, first[None], steps=POOLED_STEPS, tolerance=POOLED_TOLERANCE
        )
    place = end.point[0]
    curvature = end.second[0, :m, :m] / family.observations
    constants = {k: place[m + i].reshape(free[k].shape) for i, k in enumerate(moving)}
    to_theta = _unit_curvature(curvature[:p, :p], prior.form)
    return Coordinates(place[:m], _unit_curvature(curvature), to_theta, constants)


def _start(model: Model) -> Tensor:
    return torch.cat([model.start, *[w.detach().flatten() for w in model.shared_weights.values()]])


def _unit_curvature(curvature: Tensor, form: Form | None = None) -> Tensor:
    """T with Tᵀ C T = I, as near as the form of Σ₀ allows and for an indefinite C by |C|."""
    diagonal = curvature.diagonal().abs()
    scale = torch.where(diagonal > 0, diagonal, 1.0).sqrt()
    if form is not None and form.name in ("isotropic", "block"):
        return torch.eye(len(scale)).to(scale) / scale.mean()
    if form is not None and form.name != "full":
        return torch.diag(1 / scale)
    values, vectors = torch.linalg.eigh(curvature / (scale[:, None] * scale))
    root = vectors * values.abs().clamp(min=LEAST_EIGENVALUE).rsqrt()
    return root / scale[:, None]
