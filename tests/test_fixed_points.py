"""Training by each named method ends where theory says: θ₀ = (Σ W_i)⁻¹ Σ W_i c_i.

Quadratic tasks ½(θ−c_i)ᵀA_i(θ−c_i) with A_i that do not commute; W_i as in DESIGN's known answers.
"""

from __future__ import annotations

import pytest
import torch

import bayesmeta as bm
from bayesmeta.families import quadratic_energy, quadratics
from tests.scenarios import F64

ALPHA, LAM, STEPS = 0.1, 2.0, 3
SOLVED = {"steps": 3000, "lr": 0.15, "lam": LAM, "tolerance": 1e-12, "outer_tolerance": 1e-9}
SGD = {"optimiser": "sgd", "outer_lr": 0.4, "outer_steps": 500}


def weights(name, A):
    """W_i of each method."""
    dim = A.shape[-1]
    eye = torch.eye(dim, dtype=F64)
    shrink = torch.linalg.matrix_power(eye - ALPHA * A, STEPS)
    pull = torch.linalg.solve(A + LAM * eye, LAM * eye.expand_as(A))  # (A + Λ)⁻¹Λ
    last = eye - ALPHA * A
    return {
        "maml": shrink @ A @ shrink,
        "truncated_maml": last @ A @ shrink,
        "fomaml": A @ shrink,
        "reptile": eye - shrink,
        "imaml": pull.mT @ A @ pull,
        "imaml_hf": pull.mT @ A @ pull,
        "variational_imaml": pull.mT @ A,
        "joint": pull.mT @ A,
        "laplace": pull.mT @ A,
    }[name]


def method(name):
    make = getattr(bm.methods, name)
    if name in ("maml", "truncated_maml", "fomaml"):
        extra = {} if name == "maml" else SGD
        return make(steps=STEPS, lr=ALPHA, support=None, outer_tolerance=1e-9, **extra)
    if name == "reptile":
        return make(steps=STEPS, lr=ALPHA, outer_steps=500)
    if name == "imaml":
        return make(cg_steps=20, support=None, **SOLVED)
    if name == "imaml_hf":
        products = {"newton_cg_steps": 20, "cg_steps": 20}
        return make(steps=20, lam=LAM, support=None, outer_tolerance=1e-9, **products)
    if name == "variational_imaml":
        return make(**SOLVED)
    if name == "joint":
        return make(covariance="point", tolerance=1e-9)
    return make(outer_tolerance=1e-9)


@pytest.mark.parametrize("dim", [2, 5, 10])
@pytest.mark.parametrize(
    "name",
    ["maml", "truncated_maml", "fomaml", "reptile", "imaml", "imaml_hf", "variational_imaml",
     "joint", "laplace"],
)  # fmt: skip
def test_training_ends_at_the_curvature_weighted_average(name, dim):
    generator = torch.Generator().manual_seed(dim)
    family, _ = quadratics(tasks=4, dim=dim, generator=generator)
    A, c = family.tensors.values()
    assert float((A[0] @ A[1] - A[1] @ A[0]).norm()) > 0.1
    W = weights(name, A)
    expected = torch.linalg.solve(W.sum(0), (W @ c[..., None]).sum(0))[:, 0]
    held = bm.Prior("isotropic", learn="mean").at(
        mean=torch.full((dim,), 0.3, dtype=F64), variance=1 / LAM
    )
    prior = held if name in ("joint", "laplace") else None
    model = bm.Model.from_energy(quadratic_energy, dim)
    fit = bm.fit(model, family, method=method(name), prior=prior)
    assert float((fit.prior.mean - expected).norm()) < 1e-6
    # And not at its neighbours' answers: the methods' fixed points are told apart.
    others = [n for n in ("maml", "fomaml", "reptile", "imaml", "joint") if n != name]
    others = [n for n in others if not {n, name} <= {"joint", "variational_imaml", "laplace"}]
    for other in others:
        V = weights(other, A)
        place = torch.linalg.solve(V.sum(0), (V @ c[..., None]).sum(0))[:, 0]
        if not torch.allclose(V, W):
            assert float((fit.prior.mean - place).norm()) > 1e-4


def test_meta_sgd_beats_one_step_size():
    """Learned step sizes go to the inverse curvatures of tasks that share diagonal ones."""
    generator = torch.Generator().manual_seed(0)
    A = torch.diag(torch.tensor([0.5, 4.0], dtype=F64)).expand(6, 2, 2)
    c = torch.randn(6, 2, generator=generator, dtype=F64)
    family = bm.TaskFamily.from_tensors(A=A, c=c)
    model = bm.Model.from_energy(quadratic_energy, 2)
    method = bm.methods.maml(steps=1, lr=0.1, learn_lr=True, support=None, outer_tolerance=1e-9)
    fit = bm.fit(model, family, method=method)
    learned = torch.tensor(fit.shared["inner.lr"], dtype=F64)
    assert torch.allclose(learned, 1 / A[0].diagonal(), atol=1e-4)
    again = fit.adapt(family)
    assert torch.allclose(again.posterior.mean, c, atol=1e-3)
