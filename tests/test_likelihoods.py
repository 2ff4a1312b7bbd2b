"""The seven likelihoods against scipy's densities, quadrature, and finite differences."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch.func import functional_call, grad, hessian, jacrev, vmap

from bayesmeta import likelihoods as L
from bayesmeta.likelihoods import discrete, quadrature
from bayesmeta.likelihoods.base import Likelihood

F64 = torch.float64
# torch itself warns at the first forward-mode derivative of a process.
forward_mode = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")


def tensor(*values: float, dtype: torch.dtype = F64) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype)


@dataclass(frozen=True)
class Case:
    """A likelihood, responses it allows, and scipy's logarithm of the same density."""

    likelihood: Likelihood
    y: tuple[float, ...]
    scipy: Any
    extra: dict[str, torch.Tensor] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.likelihood.name}({self.likelihood.extra_repr()})"


def sigmoid(eta):
    return 1 / (1 + np.exp(-eta))


REALS, COUNTS = (-3.0, 0.0, 0.4, 7.5), (0.0, 1.0, 4.0, 19.0)
TWENTY = {"trials": tensor(20.0)}
CASES = [
    Case(L.Gaussian(), REALS, lambda y, eta: stats.norm.logpdf(y, eta, 1)),
    Case(L.Gaussian(2.5), REALS, lambda y, eta: stats.norm.logpdf(y, eta, 2.5)),
    Case(
        L.Gaussian(2.5),
        REALS,
        lambda y, eta: stats.norm.logpdf(y, eta, 0.3),
        {"standard_error": tensor(0.3)},
    ),
    Case(L.StudentT(), REALS, lambda y, eta: stats.t.logpdf(y, 4, eta, 1)),
    Case(L.StudentT(1.5, 2.5), REALS, lambda y, eta: stats.t.logpdf(y, 2.5, eta, 1.5)),
    Case(L.StudentT(df=None), REALS, lambda y, eta: stats.t.logpdf(y, 4, eta, 1)),
    Case(L.Bernoulli(), (0.0, 1.0), lambda y, eta: stats.bernoulli.logpmf(y, sigmoid(eta))),
    Case(L.Binomial(), COUNTS, lambda y, eta: stats.binom.logpmf(y, 20, sigmoid(eta)), TWENTY),
    Case(L.Poisson(), COUNTS, lambda y, eta: stats.poisson.logpmf(y, np.exp(eta))),
    Case(L.NegativeBinomial(), COUNTS, lambda y, eta: stats.geom.logpmf(y + 1, sigmoid(-eta))),
    Case(
        L.NegativeBinomial(3.7),
        COUNTS,
        lambda y, eta: stats.nbinom.logpmf(y, 3.7, 3.7 / (3.7 + np.exp(eta))),
    ),
]
every_case = pytest.mark.parametrize("case", CASES, ids=str)


def value(case: Case, eta: float, y: float) -> float:
    return case.likelihood.log_prob(tensor(eta), tensor(y), **case.extra).item()


def expected(case: Case, mean: torch.Tensor, variance: torch.Tensor, y: float) -> torch.Tensor:
    return case.likelihood.expected_log_prob(mean, variance, tensor(y), **case.extra).sum()


def assert_is_scipys(case: Case) -> None:
    for y in case.y:
        for eta in (-2.3, -0.1, 0.0, 1.7, 4.0):
            assert value(case, eta, y) == pytest.approx(case.scipy(y, eta), rel=1e-12, abs=1e-12)


@every_case
def test_log_prob_is_scipys(case):
    assert_is_scipys(case)


@every_case
def test_that_comparison_notices_a_missing_constant(case, monkeypatch):
    kind = type(case.likelihood)
    whole = kind._log_prob
    monkeypatch.setattr(kind, "_log_prob", lambda *arguments: whole(*arguments) + 1e-9)
    with pytest.raises(AssertionError):
        assert_is_scipys(case)


def test_categorical_log_prob_is_the_normalised_softmax():
    logits = torch.tensor([[0.3, -1.2, 2.0], [700.0, -700.0, 0.0]], dtype=F64)
    got = L.Categorical(3).log_prob(logits, torch.tensor([2, 1]))
    first = math.log(math.exp(2.0) / (math.exp(0.3) + math.exp(-1.2) + math.exp(2.0)))
    assert got.tolist() == pytest.approx([first, -1400.0], rel=1e-12)
    everywhere = torch.stack([L.Categorical(3).log_prob(logits, torch.tensor(k)) for k in range(3)])
    assert everywhere.exp().sum(0).tolist() == pytest.approx([1.0, 1.0], rel=1e-12)


@pytest.mark.parametrize("concentration", [1e-6, 0.3, 29.9, 30.1, 1e4, 1e9, 1e15])
@pytest.mark.parametrize("y", [0, 1, 250])
def test_negative_binomial_keeps_its_digits_up_to_the_poisson_limit(concentration, y):
    mpmath.mp.dps = 60
    c, mu = mpmath.mpf(concentration), mpmath.e ** mpmath.mpf("1.5")
    truth = (
        mpmath.loggamma(y + c)
        - mpmath.loggamma(c)
        - mpmath.loggamma(y + 1)
        + c * mpmath.log(c / (c + mu))
        + y * mpmath.log(mu / (c + mu))
    )
    got = L.NegativeBinomial(concentration).log_prob(tensor(1.5), tensor(float(y))).item()
    assert got == pytest.approx(float(truth), rel=1e-12)


def test_the_negative_binomials_gradient_in_its_concentration_is_smooth_where_formulas_meet():
    def slope(log_c):
        c = torch.tensor(log_c, dtype=F64)
        likelihood = L.NegativeBinomial()
        return grad(
            lambda v: functional_call(
                likelihood, {"log_concentration": v}, (tensor(1.0), tensor(5.0))
            ).sum()
        )(c).item()

    meet = math.log(discrete.STIRLING_FROM)
    assert slope(meet - 1e-9) == pytest.approx(slope(meet + 1e-9), rel=1e-8)
    assert math.isfinite(slope(-700.0))
    assert slope(35.0) == pytest.approx(0.0, abs=1e-14)


@every_case
@pytest.mark.parametrize(("mean", "variance"), [(0.4, 0.01), (-1.0, 0.3), (2.0, 1.0)])
def test_expected_log_prob_is_the_integral(case, mean, variance):
    sd = math.sqrt(variance)
    # The sum of Student-t's nearby poles makes Gauss-Hermite converge more slowly.
    bound = 2e-4 if case.likelihood.name == "student_t" else 1e-8
    for y in case.y[:3]:
        truth, _ = integrate.quad(
            lambda z, y=y: value(case, mean + sd * z, y) * stats.norm.pdf(z), -11, 11, limit=100
        )
        got = expected(case, tensor(mean), tensor(variance), y).item()
        assert got == pytest.approx(truth, rel=1e-8, abs=bound)


def test_closed_form_expectations():
    m, v, y = tensor(0.7), tensor(1.9), tensor(3.0)
    assert L.Gaussian(2.0).expected_log_prob(m, v, y).item() == pytest.approx(
        stats.norm.logpdf(3, 0.7, 2) - 1.9 / 8, rel=1e-13
    )
    assert L.Poisson().expected_log_prob(m, v, y).item() == pytest.approx(
        3 * 0.7 - math.exp(0.7 + 0.95) - math.log(6), rel=1e-13
    )


def test_more_nodes_are_more_exact():
    mean, variance, y = tensor(0.3), tensor(9.0), tensor(1.0)
    values = [L.Bernoulli(nodes=n).expected_log_prob(mean, variance, y) for n in (10, 20, 80, 160)]
    errors = [abs((v - values[-1]).item()) for v in values[:-1]]
    assert errors[0] > 10 * errors[1] > 100 * errors[2]


def test_the_categoricals_expectation_for_independent_and_for_correlated_logits():
    mean = torch.tensor([[0.3, -0.5, 1.0]], dtype=F64)
    factor = torch.tensor([[0.9, 0.0, 0.0], [0.5, 0.6, 0.0], [-0.4, 0.2, 0.8]], dtype=F64)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(200_000, 3, generator=generator, dtype=F64)
    noise = torch.cat([noise, -noise])
    likelihood, y = L.Categorical(3), torch.tensor([1])
    for spread in (factor, factor.diag().diag()):
        covariance = spread @ spread.T
        truth = likelihood.log_prob(mean + noise @ spread.T, y).mean().item()
        full = likelihood.expected_log_prob(mean, covariance[None], y).item()
        assert full == pytest.approx(truth, abs=2e-3)
    diagonal = likelihood.expected_log_prob(mean, covariance.diag()[None], y).item()
    assert diagonal == pytest.approx(full, rel=1e-12)


def test_two_classes_are_a_bernoulli_of_the_difference():
    mean, variance = torch.tensor([[0.0, 0.8]], dtype=F64), torch.tensor([[0.2, 0.3]], dtype=F64)
    got = L.Categorical(2, nodes=4096).expected_log_prob(mean, variance, torch.tensor([1]))
    want = L.Bernoulli().expected_log_prob(tensor(0.8), tensor(0.5), tensor(1.0))
    assert got.item() == pytest.approx(want.item(), abs=1e-4)


@every_case
@pytest.mark.parametrize("variance", [0.0, 1e-9, 1e-4, 0.5])
def test_derivatives_of_the_expectation(case, variance):
    y, m, v = case.y[1], tensor(0.6), tensor(variance)

    def f(m, v):
        return expected(case, m, v, y)

    dm, dv = grad(f, 0)(m, v), grad(f, 1)(m, v)
    dmm = jacrev(grad(f, 0), 0)(m, v)
    dvv = jacrev(grad(f, 1), 1)(m, v)
    scale = 1.0 + abs(f(m, v).item())
    # The identity for Gaussian expectations: ∂/∂variance = ½ ∂²/∂mean².
    assert dv.item() == pytest.approx(0.5 * dmm.item(), abs=1e-7 * scale)
    h = 1e-5
    assert dm.item() == pytest.approx(((f(m + h, v) - f(m - h, v)) / (2 * h)).item(), abs=1e-8)
    slope = (grad(f, 0)(m + h, v) - grad(f, 0)(m - h, v)) / (2 * h)
    assert dmm.item() == pytest.approx(slope.item(), abs=1e-7 * scale)
    # Forward differences, exact to O(h²), so that the variance stays on its side of 0.
    h = 1e-4
    steps = [f(m, v + k * h) for k in range(3)]
    one_sided = (-3 * steps[0] + 4 * steps[1] - steps[2]) / (2 * h)
    assert dv.item() == pytest.approx(one_sided.item(), abs=1e-6 * scale)
    slopes = [grad(f, 1)(m, v + k * h) for k in range(3)]
    one_sided = (-3 * slopes[0] + 4 * slopes[1] - slopes[2]) / (2 * h)
    assert dvv.item() == pytest.approx(one_sided.item(), abs=1e-4 * scale)


@every_case
def test_at_zero_variance_the_expectation_is_the_log_prob(case):
    for y in case.y:
        got = expected(case, tensor(0.6), tensor(0.0), y).item()
        assert got == pytest.approx(value(case, 0.6, y), rel=1e-10)


def test_categorical_derivatives_at_zero_variance_obey_the_identity():
    likelihood, y = L.Categorical(3), torch.tensor([0])
    mean, variance = torch.tensor([[0.2, -0.4, 0.9]], dtype=F64), torch.zeros(1, 3, dtype=F64)

    def f(m, v):
        return likelihood.expected_log_prob(m, v, y).sum()

    dv = grad(f, 1)(mean, variance)
    curvature = jacrev(grad(f, 0))(mean, variance).reshape(3, 3).diag()
    assert dv[0].tolist() == pytest.approx((0.5 * curvature).tolist(), abs=1e-7)
    full = grad(f, 1)(mean, torch.zeros(1, 3, 3, dtype=F64))
    assert torch.isfinite(full).all()


def test_without_its_shift_the_rule_has_no_derivative_at_zero_variance(monkeypatch):
    monkeypatch.setattr(quadrature, "SHIFT_EXPONENT", 1e3)  # eps ** 1000 is 0
    slope = grad(lambda v: L.Bernoulli().expected_log_prob(tensor(0.6), v, tensor(1.0)).sum())
    assert not torch.isfinite(slope(tensor(0.0))).any()


@every_case
@pytest.mark.parametrize("eta", [-1e3, -300.0, 300.0, 1e3])
def test_extreme_predictions_stay_finite_where_the_truth_is(case, eta):
    if case.likelihood.name == "poisson" and eta > 700:
        pytest.skip("the mean exp(1000) itself is beyond float64")
    for y in case.y:

        def f(eta, y=y):
            return case.likelihood.log_prob(eta, tensor(y), **case.extra).sum()

        first, second = grad(f)(tensor(eta)), jacrev(grad(f))(tensor(eta))
        for number in (f(tensor(eta)), first, second, expected(case, tensor(eta), tensor(4.0), y)):
            assert torch.isfinite(number).all()


def test_extreme_log_odds_are_exact():
    bernoulli = L.Bernoulli()
    assert bernoulli.log_prob(tensor(-1e3, 1e3), tensor(1.0, 1.0)).tolist() == [-1000.0, 0.0]
    near = bernoulli.log_prob(tensor(36.0, 39.9, 50.0), tensor(1.0, 1.0, 1.0))
    assert near.tolist() == pytest.approx([-math.exp(-x) for x in (36.0, 39.9, 50.0)], rel=1e-12)


@forward_mode
@every_case
def test_transforms_and_functional_call(case):
    likelihood, rows = case.likelihood, len(case.y)
    y = tensor(*case.y).repeat(3, 1)
    eta = torch.linspace(-1, 2, 3 * rows, dtype=F64).reshape(3, rows)
    extra = {k: v.expand(3, rows) for k, v in case.extra.items()}
    whole = likelihood.log_prob(eta, y, **extra)
    names = list(extra)

    def energy(parameters, eta, y, *rest):
        keywords = dict(zip(names, rest, strict=True))
        return -functional_call(likelihood, parameters, (eta, y), keywords).sum()

    parameters = dict(likelihood.named_parameters())
    data = (eta, y, *extra.values())
    mapped = vmap(energy, in_dims=(None,) + (0,) * len(data))(parameters, *data)
    torch.testing.assert_close(mapped, -whole.sum(1), rtol=1e-12, atol=1e-12)
    curvature = vmap(hessian(energy, 1), in_dims=(None,) + (0,) * len(data))(parameters, *data)
    reverse = vmap(jacrev(grad(energy, 1), 1), in_dims=(None,) + (0,) * len(data))
    torch.testing.assert_close(curvature, reverse(parameters, *data), rtol=1e-9, atol=1e-12)
    variances = torch.full_like(eta, 0.3)

    def expectation(*data):
        keywords = dict(zip(names, data[3:], strict=True))
        return likelihood.expected_log_prob(*data[:3], **keywords)

    data_and_variances = (eta, variances, y, *extra.values())
    torch.testing.assert_close(
        vmap(expectation)(*data_and_variances),
        expectation(*data_and_variances),
        rtol=1e-12,
        atol=1e-12,
    )
    h = 1e-6
    for name, present in parameters.items():
        slope = grad(energy)({k: v.detach() for k, v in parameters.items()}, *data)[name]
        up, down = (
            energy({**parameters, name: (present + s).detach()}, *data).item() for s in (h, -h)
        )
        assert slope.item() == pytest.approx((up - down) / (2 * h), rel=1e-6, abs=1e-8)


@forward_mode
def test_categorical_under_transforms():
    likelihood, y = L.Categorical(3), torch.tensor([[0, 2], [1, 1]])
    eta = torch.linspace(-1, 1, 12, dtype=F64).reshape(2, 2, 3)
    torch.testing.assert_close(vmap(likelihood.log_prob)(eta, y), likelihood.log_prob(eta, y))
    curvature = vmap(hessian(lambda e, y: likelihood.log_prob(e, y).sum()))(eta, y)
    p = eta.softmax(-1)
    torch.testing.assert_close(
        curvature[1, 0, :, 0, :], p[1, 0, :, None] * p[1, 0] - p[1, 0].diag(), rtol=1e-9, atol=1e-12
    )
    full = torch.eye(3, dtype=F64).expand(2, 2, 3, 3)
    torch.testing.assert_close(
        vmap(likelihood.expected_log_prob)(eta, full, y),
        likelihood.expected_log_prob(eta, torch.ones_like(eta), y),
    )
