"""Families with known truth: what is drawn has the moments that the truth says.

A mean of n draws is compared within five of its standard errors, sd / √n.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from bayesmeta import families
from bayesmeta.likelihoods import Gaussian
from bayesmeta.models import Model
from bayesmeta.results import InputError

F64 = torch.float64
TASKS = 4000
WITH_ROWS = [
    families.linear_gaussian,
    families.logistic,
    families.poisson,
    families.sinusoid,
    families.pacoh_sinusoid,
    families.pacoh_nn_sinusoid,
]
with_rows = pytest.mark.parametrize("make", WITH_ROWS, ids=lambda make: make.__name__)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def assert_mean(values: torch.Tensor, expected: float, sd: float | None = None) -> None:
    """The mean of independent values within five standard errors of `expected`."""
    sd = values.std().item() if sd is None else sd
    error = sd / math.sqrt(values.numel())
    assert abs(values.mean().item() - expected) <= 5 * error + 1e-12


def assert_moments(truth: families.Truth) -> None:
    deviations = truth.theta - truth.theta0
    for i in range(len(truth.names)):
        assert_mean(deviations[:, i], 0.0)
        for j in range(i + 1):
            assert_mean(deviations[:, i] * deviations[:, j], truth.covariance[i, j].item())


def test_the_assertion_notices_a_wrong_mean():
    values = torch.randn(10_000, generator=seeded(), dtype=F64)
    assert_mean(values, 0.0, 1.0)
    for wrong in (0.1, -0.1):
        with pytest.raises(AssertionError):
            assert_mean(values, wrong, 1.0)


@with_rows
def test_coordinates_have_their_moments(make):
    assert_moments(make(tasks=TASKS, rows=1, generator=seeded())[1])


@with_rows
def test_a_seed_is_a_family_and_the_global_state_is_left_alone(make):
    before = torch.get_rng_state()
    first, truth = make(tasks=5, rows=(2, 6), generator=seeded(3))
    again, _ = make(tasks=5, rows=(2, 6), generator=seeded(3))
    other, _ = make(tasks=5, rows=(2, 6), generator=seeded(4))
    assert torch.equal(torch.get_rng_state(), before)
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()
    assert {t.dtype for t in first.tensors.values()} == {F64}
    assert truth.theta.dtype == truth.theta0.dtype == truth.covariance.dtype == F64


@with_rows
def test_ragged_tasks_have_uniform_numbers_of_rows_and_repeat_their_first(make):
    family, _ = make(tasks=TASKS, rows=(2, 6), generator=seeded())
    assert family.mask is not None
    assert family.rows.min() == 2
    assert family.rows.max() == 6
    assert_mean(family.rows.double(), 4.0, math.sqrt(2.0))
    for tensor in family.tensors.values():
        first = tensor[:, :1].expand_as(tensor)
        assert torch.equal(tensor[~family.mask], first[~family.mask])


@with_rows
def test_the_truths_prediction_is_of_the_rows_it_is_given(make):
    family, truth = make(tasks=6, rows=8, generator=seeded())
    support, query = family.split(3, seeded())
    both = torch.cat([truth.prediction(support), truth.prediction(query)], 1)
    torch.testing.assert_close(both.sort(1).values, truth.prediction(family).sort(1).values)


def test_linear_gaussian_noise_and_features():
    family, truth = families.linear_gaussian(tasks=TASKS, rows=5, generator=seeded(), noise=0.3)
    residual = family.tensors["y"] - truth.prediction(family)
    assert_mean(residual, 0.0, 0.3)
    assert_mean(residual.square(), 0.09, 0.09 * math.sqrt(2))
    assert_mean(family.tensors["x"], 0.0, 1.0)
    assert_mean(family.tensors["x"].square(), 1.0, math.sqrt(2))
    assert truth.shared == {"scale": 0.3}
    assert truth.gaussian


@pytest.mark.parametrize("intercept", [True, False])
def test_coordinates_are_those_of_a_torch_linear(intercept):
    covariance = torch.tensor([[1.0, 0.5, 0.5], [0.5, 1.0, 0.5], [0.5, 0.5, 1.0]])
    family, truth = families.linear_gaussian(
        tasks=4,
        rows=(3, 5),
        generator=seeded(),
        theta0=[1.0, 2.0, 3.0],
        covariance=covariance,
        intercept=intercept,
    )
    module = nn.Linear(family.tensors["x"].shape[-1], 1, bias=intercept).double()
    model = Model(module, Gaussian())
    assert model.names == truth.names
    predicted = model.predict(truth.theta, family.batch()).detach()
    torch.testing.assert_close(predicted, truth.prediction(family))


def test_a_singular_covariance_is_drawn_from():
    _, truth = families.linear_gaussian(
        tasks=TASKS, rows=1, generator=seeded(), covariance=[[1.0, 2.0], [2.0, 4.0]]
    )
    deviations = truth.theta - truth.theta0
    torch.testing.assert_close(deviations[:, 1], 2 * deviations[:, 0], rtol=1e-6, atol=1e-6)
    assert_moments(truth)


def test_no_noise_is_exact():
    family, truth = families.linear_gaussian(tasks=3, rows=4, generator=seeded(), noise=0)
    assert torch.equal(family.tensors["y"], truth.prediction(family))


@pytest.mark.parametrize("trials", [None, 7])
def test_logistic_successes(trials):
    family, truth = families.logistic(tasks=TASKS, rows=5, generator=seeded(), trials=trials)
    n = 1 if trials is None else trials
    p = truth.prediction(family).sigmoid()
    score = (family.tensors["y"] - n * p) / (n * p * (1 - p)).sqrt()
    assert_mean(score, 0.0, 1.0)
    assert_mean(score.square(), 1.0)
    assert list(family.tensors) == (["x", "y"] if trials is None else ["x", "y", "trials"])
    assert family.tensors["y"].unique().tolist() == list(range(n + 1))


@pytest.mark.parametrize("exposure", [None, (0.5, 4.0)])
def test_poisson_counts(exposure):
    family, truth = families.poisson(tasks=TASKS, rows=5, generator=seeded(), exposure=exposure)
    mean = truth.prediction(family).exp()
    score = (family.tensors["y"] - mean) / mean.sqrt()
    assert_mean(score, 0.0, 1.0)
    assert_mean(score.square(), 1.0)
    if exposure is None:
        assert "offset" not in family.tensors
    else:
        exposures = family.tensors["offset"].exp()
        assert_mean(exposures, 2.25, 3.5 / math.sqrt(12))
        assert 0.5 <= exposures.min() < 0.51
        assert 3.99 < exposures.max() <= 4.0


def test_the_sinusoids_of_maml():
    family, truth = families.sinusoid(tasks=TASKS, rows=4, generator=seeded())
    amplitude, phase = truth.theta.unbind(-1)
    x, y = family.tensors["x"], family.tensors["y"]
    torch.testing.assert_close(y[7, 2], amplitude[7] * torch.sin(x[7, 2, 0] - phase[7]))
    assert_mean(amplitude, 2.55, 4.9 / math.sqrt(12))
    assert_mean(phase, math.pi / 2, math.pi / math.sqrt(12))
    assert_mean(x, 0.0, 10 / math.sqrt(12))
    assert 0.1 <= amplitude.min() < 0.12
    assert 4.98 < amplitude.max() <= 5.0
    assert 0 <= phase.min() < phase.max() <= math.pi
    assert -5 <= x.min() < -4.98
    assert truth.names == ("amplitude", "phase")
    assert not truth.gaussian


def test_the_sinusoids_of_pacoh():
    family, truth = families.pacoh_sinusoid(tasks=TASKS, rows=4, generator=seeded())
    amplitude, slope, x_shift, y_shift = truth.theta.T[..., None]
    x = family.tensors["x"][..., 0]
    curve = slope * x + amplitude * torch.sin(1.5 * (x - x_shift)) + y_shift
    torch.testing.assert_close(truth.prediction(family), curve)
    assert_mean(slope, 0.5, 0.2)
    assert_mean((slope - 0.5).square(), 0.04, 0.04 * math.sqrt(2))
    assert_mean(x_shift.square(), 0.01, 0.01 * math.sqrt(2))
    assert_mean(y_shift, 5.0, 0.1)
    assert 0.7 <= amplitude.min() < amplitude.max() <= 1.3
    residual = family.tensors["y"] - curve
    assert_mean(residual.square(), 0.01, 0.01 * math.sqrt(2))


def test_the_sinusoids_of_pacoh_nn():
    family, truth = families.pacoh_nn_sinusoid(tasks=TASKS, rows=4, generator=seeded())
    amplitude, phase = truth.theta.T[..., None]
    x = family.tensors["x"][..., 0]
    torch.testing.assert_close(
        truth.prediction(family), amplitude * torch.sin(x - phase) + 5, rtol=1e-12, atol=1e-12
    )
    assert 2 <= amplitude.min() < amplitude.max() <= 3
    assert -2 <= phase.min() < -1.9 < 1.9 < phase.max() <= 2
    assert -4 <= x.min() < -3.9 < 3.9 < x.max() <= 4
    residual = family.tensors["y"] - truth.prediction(family)
    assert_mean(residual.square(), 0.01, 0.01 * math.sqrt(2))


def test_quadratics():
    before = torch.get_rng_state()
    family, truth = families.quadratics(
        tasks=TASKS, dim=3, generator=seeded(), curvature=(0.5, 8.0), spread=2.0
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert list(family.tensors) == ["A", "c"]
    assert family.mask is None
    A, c = family.tensors["A"], family.tensors["c"]
    assert torch.equal(A, A.mT)
    eigenvalues = torch.linalg.eigvalsh(A)
    assert 0.5 <= eigenvalues.min() < eigenvalues.max() <= 8.0
    logs = eigenvalues.log()
    assert_mean(logs, 0.5 * math.log(4.0), math.log(16.0) / math.sqrt(12))
    # Uniform eigenvectors: E[A] is the mean eigenvalue times the identity.
    mean = 7.5 / math.log(16.0)
    for i in range(3):
        for j in range(3):
            assert_mean(A[:, i, j], mean * (i == j))
    assert torch.equal(truth.theta, c)
    assert_moments(truth)


def test_the_energy_of_quadratics_by_hand_and_through_a_model():
    A = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=F64)
    theta, c = torch.tensor([1.0, 2.0], dtype=F64), torch.tensor([0.0, 1.0], dtype=F64)
    assert families.quadratic_energy(theta, A, c).item() == 0.5 * (2 + 2 * 0.5 + 1)
    family, truth = families.quadratics(tasks=4, dim=2, generator=seeded())
    model = Model.from_energy(families.quadratic_energy, 2)
    assert model.names == truth.names
    assert model.energies(truth.theta, family.batch()).tolist() == [0.0] * 4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@with_rows
def test_a_seed_is_the_same_family_on_a_gpu(make):
    here, truth = make(tasks=5, rows=(2, 6), generator=seeded())
    there, same = make(tasks=5, rows=(2, 6), generator=seeded(), device="cuda")
    assert there.device.type == same.theta.device.type == "cuda"
    assert there.fingerprint() == here.fingerprint()
    torch.testing.assert_close(same.theta.cpu(), truth.theta)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": 0}, "at least 1"),
        ({"rows": (3, 2)}, "low ≤ high"),
        ({"covariance": [[1.0]]}, "2 coordinates"),
        ({"covariance": [[1.0, 2.0], [2.0, 1.0]]}, "negative eigenvalue"),
        ({"theta0": [1.0], "covariance": [[1.0]]}, "bias"),
        ({"noise": -1.0}, "positive"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        families.linear_gaussian(**{"tasks": 2, "rows": 3, "generator": seeded(), **options})


def test_what_the_others_refuse():
    few = {"tasks": 2, "rows": 3, "generator": seeded()}
    with pytest.raises(InputError, match="exposure"):
        families.poisson(**few, exposure=(0.0, 1.0))
    with pytest.raises(InputError, match="trial"):
        families.logistic(**few, trials=0)
    with pytest.raises(InputError, match="curvature"):
        families.quadratics(tasks=2, dim=2, generator=seeded(), curvature=(0.0, 1.0))
    family, truth = families.quadratics(tasks=2, dim=2, generator=seeded())
    with pytest.raises(InputError, match="no rows"):
        truth.prediction(family)
