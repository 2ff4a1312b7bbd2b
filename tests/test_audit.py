"""What a meta-gradient says about itself: residuals, flags, the audit and the paper's bound."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import bayesmeta as bm
from bayesmeta.amortised import audit as audit_module
from bayesmeta.gradients.implicit import Implicit
from bayesmeta.gradients.pathwise import Unrolled
from bayesmeta.inner.first_order import GradientDescent
from bayesmeta.inner.newton import Newton
from bayesmeta.method import Method
from bayesmeta.objective import Validation
from bayesmeta.posteriors.proximal import Proximal
from bayesmeta.results import InputError, Result
from tests.scenarios import F64, poisson_network, quadratic, regression

SOLVED = Newton(50, tolerance=1e-12)


@pytest.mark.parametrize("planted", ["sign", "factor", "damping", "stale"])
def test_the_audit_finds_planted_errors(planted, monkeypatch):
    scenario = quadratic()
    prior = scenario.prior("full")
    rule = Implicit("cholesky", curvature="hessian")
    if planted == "damping":
        rule = Implicit("cholesky", curvature="hessian", damping=0.3)
    right = Implicit.solve

    def wrong(self, problem, theta, v, start=None):
        scale = {"sign": -1.0, "factor": 2.0}.get(planted, 1.0)
        found = right(self, problem, theta, v, start)
        return replace(found, value=scale * found.value)

    inner = GradientDescent(0.05, 3, per="task") if planted == "stale" else SOLVED
    method = Method(Proximal(), inner, rule, Validation(None))

    def audit():
        return bm.meta_gradient(
            scenario.model, prior, scenario.family, method, query=scenario.query, audit=True
        ).report.audits["0"]

    if planted in ("sign", "factor"):
        assert audit().error < 1e-12
        monkeypatch.setattr(Implicit, "solve", wrong)
        # The reference must not share the planted error: it unrolls instead.
        monkeypatch.setattr(
            audit_module,
            "exact",
            lambda m, d, tolerance: Method(
                Proximal(), GradientDescent(0.1, 2000, per="task"), Unrolled(), m.objective
            ),
        )
    assert audit().error > 0.01


def test_lemma_3_bounds_the_true_error():
    scenario = quadratic()
    prior = bm.Prior("isotropic").at(mean=torch.ones(scenario.dim, dtype=F64), variance=0.5)
    errors = []
    for steps in (1, 5, 20, 100):
        for products in (0, 1, 2, 10):
            method = Method(
                Proximal(), GradientDescent(0.1, steps, per="task"),
                Implicit(steps=products, curvature="hessian"), Validation(None),
            )  # fmt: skip
            report = bm.meta_gradient(
                scenario.model, prior, scenario.family, method, query=scenario.query, audit=True
            ).report
            for audit in report.audits.values():
                assert audit.error <= audit.bound * (1 + 1e-9) + 1e-14
                errors.append((audit.error, audit.bound))
    assert max(e for e, _ in errors) > 0.1 > 1e-9 > min(e for e, _ in errors)
    # The bound is not vacuous: somewhere it is within a factor of three of the error.
    assert min(b / e for e, b in errors if e > 1e-9) < 3


def test_every_gradient_carries_its_report():
    scenario = regression()
    prior = scenario.prior("diagonal")
    method = Method(
        Proximal(), GradientDescent(1e-4, 7, per="task"), Implicit(steps=1), Validation(None)
    )
    g = bm.meta_gradient(scenario.model, prior, scenario.family, method, query=scenario.query)
    assert g.report.steps.tolist() == [7] * 4
    assert g.report.solve_steps.tolist() == [1] * 4
    assert set(g.report.result) == {Result.not_stationary}
    assert all("raise steps=" in flag.why for flag in g.report.flagged())
    assert bool((g.report.stationarity > 0).all())
    assert bool((g.report.solve_residual > 0.01).all())
    assert "stationarity" in repr(g)


def test_negative_curvature_is_flagged_and_bounded():
    def double_well(theta, y):
        return (theta.square() - y).square().sum()

    model = bm.Model.from_energy(double_well, 1)
    family = bm.TaskFamily.from_tensors(y=torch.tensor([[1.0], [1.0]], dtype=F64))
    prior = bm.Prior("isotropic").at(mean=torch.tensor([1e-3], dtype=F64), variance=1.0)
    method = Method(
        Proximal(), GradientDescent(1e-6, 1), Implicit(curvature="hessian"), Validation(None)
    )
    report = bm.meta_gradient(model, prior, family, method).report
    assert report.negative_curvature.tolist() == [True, True]
    assert set(report.result) == {Result.negative_curvature}


def test_what_cannot_be_differentiated_is_refused():
    scenario = quadratic()
    prior = scenario.prior("full")
    with pytest.raises(InputError, match="no function of θ₀"):
        bm.meta_gradient(scenario.model, prior, scenario.family, bm.methods.joint())
    with pytest.raises(InputError, match="has no values"):
        bm.meta_gradient(scenario.model, bm.Prior(), scenario.family, bm.methods.maml())
    model, prior, family = poisson_network()
    with pytest.raises(InputError, match="needs generator="):
        bm.meta_gradient(model, prior, family, bm.methods.maml())
