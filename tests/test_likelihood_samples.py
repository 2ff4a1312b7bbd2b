"""Draws, constants, units and records of the likelihoods, and what they refuse."""

from __future__ import annotations

import json
import math

import pytest
import torch

from bayesmeta import likelihoods as L
from bayesmeta.results import InputError

F64 = torch.float64
DRAWS = 40_000
ETA = 0.7
MU, P = math.exp(ETA), 1 / (1 + math.exp(-ETA))

# likelihood, optional tensors, mean, variance of y given η = 0.7
MOMENTS = [
    (L.Gaussian(2.0), {}, ETA, 4.0),
    (L.Gaussian(2.0), {"standard_error": 0.5}, ETA, 0.25),
    (L.StudentT(2.0, 9.0), {}, ETA, 4 * 9 / 7),
    (L.Bernoulli(), {}, P, P * (1 - P)),
    (L.Binomial(), {"trials": 12.0}, 12 * P, 12 * P * (1 - P)),
    (L.Poisson(), {}, MU, MU),
    (L.NegativeBinomial(3.0), {}, MU, MU + MU**2 / 3),
]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("likelihood", "extra", "mean", "variance"), MOMENTS, ids=str)
def test_moments_of_draws_within_five_standard_errors(likelihood, extra, mean, variance):
    extra = {k: torch.tensor(v, dtype=F64) for k, v in extra.items()}
    eta = torch.full((200, DRAWS // 200), ETA, dtype=F64)
    y = likelihood.sample(eta, seeded(), **extra)
    assert y.shape == eta.shape
    assert y.mean().item() == pytest.approx(mean, abs=5 * math.sqrt(variance / DRAWS))
    squares = (y - mean).square()
    error = squares.std().item() / math.sqrt(DRAWS)
    assert squares.mean().item() == pytest.approx(variance, abs=5 * error)
    trials = {k: v for k, v in extra.items() if k == "trials"}
    assert likelihood.mean(eta, **trials).unique().tolist() == pytest.approx([mean], rel=1e-12)


def test_draws_of_classes():
    logits = torch.tensor([0.0, 1.0, -0.5], dtype=F64).expand(DRAWS, 3)
    y = L.Categorical(3).sample(logits, seeded())
    assert y.dtype == torch.int64
    share = torch.bincount(y, minlength=3) / DRAWS
    expected = L.Categorical(3).mean(logits)[0]
    assert share.tolist() == pytest.approx(expected.tolist(), abs=5 * 0.5 / math.sqrt(DRAWS))


def test_a_cauchy_draw_has_the_right_quartiles():
    y = L.StudentT(2.0, 1.0).sample(torch.zeros(DRAWS, dtype=F64), seeded())
    error = 5 * math.sqrt(3 / 16 / DRAWS) * 4 * math.pi  # sd of a quantile: √(p(1−p)/n) / density
    for p, quartile in ((0.25, -2.0), (0.5, 0.0), (0.75, 2.0)):
        assert y.quantile(p).item() == pytest.approx(quartile, abs=error)


@pytest.mark.parametrize(("likelihood", "extra", "mean", "variance"), MOMENTS, ids=str)
def test_draws_repeat_with_the_generator_and_leave_the_global_state(
    likelihood, extra, mean, variance
):
    extra = {k: torch.tensor(v) for k, v in extra.items()}
    before = torch.get_rng_state()
    first = likelihood.sample(torch.full((50,), ETA), seeded(1), **extra)
    again = likelihood.sample(torch.full((50,), ETA), seeded(1), **extra)
    other = likelihood.sample(torch.full((50,), ETA), seeded(2), **extra)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.dtype == torch.float32


def test_making_a_categorical_leaves_the_global_state():
    before = torch.get_rng_state()
    L.Categorical(4)
    assert torch.equal(torch.get_rng_state(), before)


def test_counts_beyond_int64_do_not_wrap_around():
    # torch.poisson answers -9.2e18 from a mean of 9.2e18 on.
    eta = torch.tensor([math.log(1e12), math.log(1e16), math.log(1e25), 1000.0], dtype=F64)
    y = L.Poisson().sample(eta, seeded())
    assert y[:3].tolist() == pytest.approx([1e12, 1e16, 1e25], rel=1e-5)
    assert y[3] == math.inf
    assert (L.NegativeBinomial(2.0).sample(eta, seeded()) > 0).all()


def test_a_prediction_that_is_not_a_number_gives_no_draws():
    with pytest.raises(InputError, match="not a number"):
        L.Poisson().sample(torch.tensor([math.nan]), seeded())


@pytest.mark.parametrize("name", list(L.REGISTRY))
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_results_have_the_predictions_dtype(name, dtype):
    likelihood = L.by_name(name, **({"classes": 3} if name == "categorical" else {}))
    eta = torch.zeros(4, 3, dtype=dtype) if name == "categorical" else torch.zeros(4, dtype=dtype)
    extra = {"trials": torch.full((4,), 3.0)} if likelihood.required else {}
    y = torch.tensor([0, 1, 1, 0])
    for value in (
        likelihood.log_prob(eta, y, **extra),
        likelihood.expected_log_prob(eta, torch.ones_like(eta), y, **extra),
    ):
        assert value.dtype == dtype
        assert value.shape == (4,)
    wide = likelihood.double().expected_log_prob(
        eta.double(), torch.ones_like(eta).double(), y, **extra
    )
    assert value.tolist() == pytest.approx(wide.tolist(), rel=2e-5)


def test_a_passage_through_float32_does_not_round_the_quadrature():
    likelihood, zero = L.Bernoulli(), torch.zeros(1, dtype=F64)
    before = likelihood.expected_log_prob(zero, zero + 1, zero)
    assert torch.equal(likelihood.float().double().expected_log_prob(zero, zero + 1, zero), before)


@pytest.mark.parametrize(
    ("likelihood", "learned"),
    [
        (L.Gaussian(), {"log_scale"}),
        (L.Gaussian(2.0), set()),
        (L.StudentT(), {"log_scale"}),
        (L.StudentT(1.0, None), {"log_df"}),
        (L.NegativeBinomial(), {"log_concentration"}),
        (L.Poisson(), set()),
    ],
    ids=str,
)
def test_what_is_learned_is_a_parameter(likelihood, learned):
    assert set(dict(likelihood.named_parameters())) == learned


def test_summaries_and_units():
    assert L.Gaussian(2.0).summary() == {"scale": 2.0}
    assert L.Gaussian(2.0).rescale(10.0).summary() == {"scale": 20.0}
    assert L.StudentT(3.0, 5.0).rescale(0.1).summary() == {"scale": pytest.approx(0.3), "df": 5.0}
    learned = L.Gaussian()
    with torch.no_grad():
        learned.get_parameter("log_scale").fill_(math.log(0.5))
    assert learned.rescale(8.0).summary() == {"scale": pytest.approx(4.0)}
    assert learned.summary() == {"scale": pytest.approx(0.5)}
    # Densities of y and of 8 y differ by log 8, wherever they are taken.
    eta, y = torch.tensor([0.3], dtype=F64), torch.tensor([1.1], dtype=F64)
    difference = learned.log_prob(eta, y) - learned.rescale(8.0).log_prob(8 * eta, 8 * y)
    assert difference.item() == pytest.approx(math.log(8), rel=1e-12)
    for likelihood in (L.Bernoulli(), L.Poisson(), L.NegativeBinomial()):
        assert likelihood.summary().keys() <= {"concentration"}
        with pytest.raises(InputError, match="no units"):
            likelihood.rescale(2.0)
    with pytest.raises(InputError, match="positive"):
        L.Gaussian().rescale(0.0)


def test_starting_values_come_from_real_rows():
    generator = seeded()
    y = 3.0 * torch.randn(40, 50, generator=generator, dtype=F64)
    mask = torch.rand(40, 50, generator=generator) < 0.7
    padded = torch.where(mask, y, 1e6)
    for likelihood in (L.Gaussian(), L.StudentT()):
        likelihood.initialise(padded, mask)
        assert likelihood.summary()["scale"] == pytest.approx(3.0, rel=0.1)
        likelihood.initialise(torch.full((2, 3), 4.0))
        assert likelihood.summary()["scale"] == 1.0
    known = L.Gaussian(2.0)
    known.initialise(padded, mask)
    assert known.summary() == {"scale": 2.0}
    counts = L.NegativeBinomial(2.0).sample(torch.full((400, 50), 2.0, dtype=F64), generator)
    likelihood = L.NegativeBinomial()
    likelihood.initialise(counts)
    assert likelihood.summary()["concentration"] == pytest.approx(2.0, rel=0.1)
    likelihood.initialise(torch.ones(3, 4))
    assert likelihood.summary()["concentration"] == pytest.approx(100.0)


def test_an_outlier_moves_the_robust_start_little():
    y = torch.randn(1, 1000, generator=seeded(), dtype=F64)
    y[0, 0] = 1e4
    likelihood = L.StudentT()
    likelihood.initialise(y)
    assert likelihood.summary()["scale"] == pytest.approx(1.0, rel=0.1)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("gaussian", {"scale": 2.5}),
        ("gaussian", {"scale": None}),
        ("student_t", {"scale": None, "df": None, "nodes": 31}),
        ("bernoulli", {"nodes": 8}),
        ("binomial", {"nodes": 20}),
        ("categorical", {"classes": 4, "nodes": 64}),
        ("poisson", {}),
        ("negative_binomial", {"concentration": 3.0, "nodes": 20}),
    ],
)
def test_records_come_back(name, options):
    likelihood = L.by_name(name, **options)
    record = likelihood.to_json()
    assert record == {"name": name, **options}
    back = L.from_json(json.loads(json.dumps(record)))
    assert type(back) is type(likelihood)
    assert back.to_json() == record


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: L.by_name("gausian"), "choose from gaussian"),
        (lambda: L.by_name("poisson", scale=1.0), "cannot be made from scale"),
        (lambda: L.by_name("categorical"), "cannot be made from nothing"),
        (lambda: L.Gaussian(0.0), "positive"),
        (lambda: L.Gaussian(math.nan), "positive"),
        (lambda: L.StudentT(df=-1.0), "df=-1.0"),
        (lambda: L.NegativeBinomial(math.inf), "concentration=inf"),
        (lambda: L.Categorical(1), "2 classes"),
        (lambda: L.Categorical(40, nodes=64), "need 80"),
        (lambda: L.Bernoulli(nodes=0), "nodes=0"),
    ],
)
def test_what_constructors_refuse(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_tensors_without_a_use_are_refused_and_needed_ones_asked_for():
    zero = torch.zeros(2)
    with pytest.raises(InputError, match="takes no trials="):
        L.Gaussian().log_prob(zero, zero, trials=zero)
    with pytest.raises(InputError, match="takes no standard_error="):
        L.Poisson().expected_log_prob(zero, zero, zero, standard_error=zero)
    with pytest.raises(InputError, match="needs trials="):
        L.Binomial().sample(zero, seeded())
    with pytest.raises(InputError, match="needs trials="):
        L.Binomial().mean(zero)
    with pytest.raises(InputError, match="2 logits for 3 classes"):
        L.Categorical(3).log_prob(torch.zeros(5, 2), torch.zeros(5))


@pytest.mark.parametrize(
    ("likelihood", "value", "message"),
    [
        (L.Gaussian(), math.inf, "finite"),
        (L.StudentT(), math.nan, "finite"),
        (L.Bernoulli(), 0.5, "0 or 1"),
        (L.Poisson(), -1.0, "whole number"),
        (L.NegativeBinomial(), 2.5, "whole number"),
        (L.Categorical(3), 3.0, "below the number of classes"),
    ],
    ids=str,
)
def test_check_names_the_value_the_task_and_the_row(likelihood, value, message):
    y = torch.ones(3, 4, dtype=F64)
    likelihood.check(y)
    y[1, 2] = value
    with pytest.raises(InputError, match=f"in row 3 of task 'Ann': .*{message}"):
        likelihood.check(y, names=["Al", "Ann", "Bo"])
    mask = torch.ones(3, 4, dtype=torch.bool)
    mask[1, 2] = False
    likelihood.check(y, mask)


def test_check_of_successes_above_trials():
    y, trials = torch.full((1, 2), 3.0), torch.tensor([[3.0, 2.0]])
    with pytest.raises(InputError, match=r"row 2 of task '0': .*number of trials"):
        L.Binomial().check(y, trials=trials)


def test_check_of_standard_errors():
    y = torch.zeros(2, 2)
    L.Gaussian().check(y, standard_error=y + 1)
    with pytest.raises(InputError, match=r"standard_error = 0 in row 1 of task 'a': .*positive"):
        L.Gaussian().check(y, standard_error=y, names=["a", "b"])
    with pytest.raises(InputError, match="takes no standard_error="):
        L.Poisson().check(y, standard_error=y + 1)
    with pytest.raises(InputError, match="needs trials="):
        L.Binomial().check(y)
