from __future__ import annotations

import math
from types import SimpleNamespace

import pyro
import pytest
import torch
from torch.distributions import LKJCholesky, MultivariateNormal, Normal, StudentT

import bayesmeta as bm
from bayesmeta import likelihoods
from bayesmeta.gaussian import Gaussian
from bayesmeta.pyro_bridge import NutsResult, nuts, prior_as_pyro
from bayesmeta.pyro_bridge.mixing import effective_size, split_rhat
from bayesmeta.pyro_bridge.targets import Hierarchy
from bayesmeta.results import InputError

ROWS = (1, 3, 6, 8)
MEAN = torch.tensor([250.0, 10.0], dtype=torch.float64)
COVARIANCE = torch.tensor([[570.0, 30.0], [30.0, 36.0]], dtype=torch.float64)
NOISE = 25.0


@pytest.fixture(scope="module")
def family() -> bm.TaskFamily:
    """Ragged straight lines with slopes and intercepts from N(MEAN, COVARIANCE)."""
    generator = torch.Generator().manual_seed(0)
    law = Gaussian.from_covariance(MEAN, COVARIANCE)
    theta = law.sample(len(ROWS), generator)
    x = torch.arange(max(ROWS), dtype=torch.float64).expand(len(ROWS), -1)
    noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    y = theta[:, :1] + theta[:, 1:] * x + NOISE * noise
    return bm.TaskFamily.from_tensors(
        x=torch.stack([torch.ones_like(x), x], -1),
        y=y,
        mask=torch.arange(max(ROWS)) < torch.tensor(ROWS)[:, None],
        names=["a", "b", "c", "d"],
    )


def line(scale: float | None = NOISE) -> bm.Model:
    return bm.Model(torch.nn.Linear(2, 1, bias=False).double(), likelihoods.Gaussian(scale=scale))


def closed_form(family: bm.TaskFamily, prior: Gaussian) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and sd of N(θ | y) by the normal equations, task by task."""
    precision = torch.linalg.inv(prior.covariance())
    means, sds = [], []
    for i, rows in enumerate(family.rows.tolist()):
        x, y = family.tensors["x"][i, :rows], family.tensors["y"][i, :rows]
        covariance = torch.linalg.inv(precision + x.T @ x / NOISE**2)
        means.append(covariance @ (precision @ prior.mean + x.T @ y / NOISE**2))
        sds.append(covariance.diagonal().sqrt())
    return torch.stack(means), torch.stack(sds)


def agrees(result: NutsResult, mean: torch.Tensor, sd: torch.Tensor) -> bool:
    """Means within 4.5 Monte Carlo errors, and sds, whose error is sd / √(2 ESS) for a Gaussian.

    ESS of the squares may be lower than of the mean, so their tolerance has half of it.
    """
    mean_error = (result.mean - mean).abs() / result.mcse
    sd_error = (result.sd - sd).abs() / (sd / result.ess.sqrt())
    return bool((mean_error < 4.5).all() and (sd_error < 4.5).all())


@pytest.fixture(scope="module")
def held(family) -> NutsResult:
    prior = Gaussian.from_covariance(MEAN, COVARIANCE)
    return nuts(line(), family, prior=prior, draws=250, warmup=100, chains=2)


def test_the_posterior_of_linear_gaussian_tasks_is_the_closed_form(family, held):
    prior = Gaussian.from_covariance(MEAN, COVARIANCE)
    assert held.draws.shape == (500, 4, 2)
    assert held.tasks == ("a", "b", "c", "d")
    assert held.names == ("weight[0,0]", "weight[0,1]")
    assert held.problems() == []
    assert agrees(held, *closed_form(family, prior))


def test_that_comparison_notices_a_wrong_prior_and_wrong_noise(family, held):
    wide = Gaussian.from_covariance(MEAN, 2 * COVARIANCE)
    shifted = Gaussian.from_covariance(MEAN + 20, COVARIANCE)
    assert not agrees(held, *closed_form(family, wide))
    assert not agrees(held, *closed_form(family, shifted))
    mean, sd = closed_form(family, Gaussian.from_covariance(MEAN, COVARIANCE))
    assert not agrees(held, mean, 1.3 * sd)


def test_a_poisson_task_against_its_posterior_on_a_grid():
    y = torch.tensor([[3.0, 5.0, 0.0]], dtype=torch.float64)
    model = bm.Model(torch.nn.Linear(1, 1, bias=False).double(), likelihoods.Poisson())
    family = bm.TaskFamily.from_tensors(x=torch.ones(1, 3, 1).double(), y=y)
    prior = Gaussian(torch.zeros(1).double(), torch.ones(1).double())
    result = nuts(model, family, prior=prior, draws=400, warmup=150)
    grid = torch.linspace(-4, 4, 4001, dtype=torch.float64)
    weight = torch.softmax(8 * grid - 3 * grid.exp() - 0.5 * grid.square(), 0)
    mean = (weight * grid).sum()
    sd = (weight * (grid - mean).square()).sum().sqrt()
    assert agrees(result, mean.reshape(1, 1), sd.reshape(1, 1))


def test_a_fit_brings_its_own_prior_tasks_and_units(family):
    days = bm.TaskFamily(
        family.tensors | {"x": family.tensors["x"][..., 1:]}, mask=family.mask, names=family.names
    )
    model = bm.Model(torch.nn.Linear(1, 1), likelihoods.Gaussian())
    fit = bm.fit(model, days, prior=bm.Prior("diagonal"), standardise=True)
    assert fit.standardisation is not None
    result = nuts(fit, task=["c", "a"], draws=300, warmup=100)
    assert result.tasks == ("c", "a")
    picked = fit.posterior.gaussian[torch.tensor([2, 0])]
    assert agrees(result, picked.mean, picked.sd())


def test_a_singular_prior_keeps_its_constant_coordinate(family):
    prior = Gaussian(MEAN, torch.tensor([570.0, 0.0], dtype=torch.float64))
    result = nuts(line(), family, prior=prior, task="d", draws=50, warmup=50)
    assert (result.draws[..., 1] == MEAN[1]).all()
    assert result.rhat[0, 1] == 1.0
    assert result.ess[0, 1] == 50.0


def test_an_energy_with_two_modes_still_runs():
    # The Hessian at θ₀ is negative: Newton's method starts on a hill.
    model = bm.Model.from_energy(
        lambda theta, c: 5 * (theta.square() - c).square().sum(), 1, names=["w"]
    )
    family = bm.TaskFamily.from_tensors(c=torch.ones(1, 1).double())
    prior = Gaussian(torch.zeros(1).double(), torch.ones(1).double())
    result = nuts(model, family, prior=prior, draws=200, warmup=100)
    # ∫|θ| p / ∫p by quadrature; the sd of |θ| is 0.17.
    assert abs(float(result.draws.abs().mean()) - 0.9185) < 0.05


def test_the_global_state_is_left_as_it_was(family):
    prior = Gaussian.from_covariance(MEAN, COVARIANCE)
    model = line()
    before = torch.get_rng_state(), dict(pyro.get_param_store().items()), pyro.settings.get()
    first, again, other = (
        nuts(model, family, prior=prior, draws=4, warmup=4, seed=seed) for seed in (1, 1, 2)
    )
    assert (torch.get_rng_state() == before[0]).all()
    assert dict(pyro.get_param_store().items()) == before[1] == {}
    assert pyro.settings.get() == before[2]
    assert (first.draws == again.draws).all()
    assert (first.draws != other.draws).any()


def test_it_runs_inside_no_grad_and_leaves_the_model_alone(family):
    model = line(None)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    prior = Gaussian.from_covariance(MEAN, COVARIANCE)
    with torch.no_grad():
        nuts(model, family, prior=prior, draws=4, warmup=4, hierarchy=True)
    assert all((model.state_dict()[k] == v).all() for k, v in before.items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prior": Gaussian(torch.zeros(3), torch.ones(3))}, r"\(3,\) weights, the model has 2"),
        ({"prior": Gaussian(MEAN)}, "a point"),
        ({"prior": Gaussian(MEAN, MEAN), "draws": 1}, "at least 4"),
        ({"prior": Gaussian(MEAN, MEAN), "task": "z"}, "no task is named 'z'"),
        ({}, "give nuts a fit"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(family, options, message):
    with pytest.raises(InputError, match=message):
        nuts(line(), family, **options)


def test_a_density_that_is_not_finite_at_the_start_is_refused():
    model = bm.Model.from_energy(lambda theta, c: (theta - c).log().sum(), 1)
    family = bm.TaskFamily.from_tensors(c=torch.full((1, 1), 100.0).double())
    prior = Gaussian(torch.zeros(1).double(), torch.ones(1).double())
    with pytest.raises(InputError, match="where the chain starts"):
        nuts(model, family, prior=prior, draws=4, warmup=4)


# The hierarchy


def hierarchy(family, **options) -> Hierarchy:
    prior = Gaussian.from_covariance(MEAN, COVARIANCE)
    options = {"diagonal": False, "centred": False, "learn_shared": True} | options
    model = line(None)
    with torch.no_grad():
        model.get_parameter("likelihood.log_scale").fill_(math.log(NOISE))
    return Hierarchy(model, family.batch(), prior, **options)


def log_density(target: Hierarchy, family, z: dict[str, torch.Tensor]) -> torch.Tensor:
    """The log density of z written out with torch.distributions, and its Jacobian by autograd."""

    def constrain(flat: torch.Tensor) -> torch.Tensor:
        hyper, tasks = flat[: len(z["hyper"])], flat[len(z["hyper"]) :]
        found = target.constrained({"hyper": hyper, "tasks": tasks.reshape(z["tasks"].shape)})
        return torch.cat(
            [
                found["theta0"],
                found["prior_sd"],
                torch.linalg.cholesky(found["correlation"])[1, :1],
                found["shared"]["likelihood.log_scale"].reshape(1),
                found["draws"].flatten(),
            ]
        )

    flat = torch.cat([z["hyper"], z["tasks"].flatten()])
    values = constrain(flat)
    jacobian = torch.linalg.slogdet(torch.autograd.functional.jacobian(constrain, flat))[1]
    theta0, sd, rho, log_noise, theta = values.split([2, 2, 1, 1, len(values) - 6])
    lower = torch.stack([torch.tensor([1.0, 0.0]).double(), torch.cat([rho, (1 - rho**2).sqrt()])])
    law = MultivariateNormal(theta0, scale_tril=sd[:, None] * lower)
    fitted = Normal((family.tensors["x"] @ theta.reshape(-1, 2, 1)).squeeze(-1), log_noise.exp())
    rows = torch.where(family.mask, fitted.log_prob(family.tensors["y"]), 0.0)
    return (
        Normal(MEAN, 10 * target.scale).log_prob(theta0).sum()
        + StudentT(4.0, 0.0, 2.5 * target.scale).log_prob(sd).sum()  # half of it: a constant
        + LKJCholesky(2, 1.0).log_prob(lower)
        + Normal(math.log(NOISE), 2.0).log_prob(log_noise).sum()
        + law.log_prob(theta.reshape(-1, 2)).sum()
        + rows.sum()
        + jacobian
    )


@pytest.mark.parametrize("centred", [False, True])
def test_the_hierarchy_has_the_density_that_its_docstring_says(family, centred):
    target = hierarchy(family, centred=centred)
    differences = []
    for seed in range(3):
        z = target.start(torch.Generator().manual_seed(seed))
        differences.append(float(target(z) + log_density(target, family, z)))
    assert differences == pytest.approx([differences[0]] * 3, abs=1e-8)


def test_the_scales_of_the_hyperpriors_have_the_units_of_the_data(family):
    # s² = prior variance + noise² / mean square of the column, for a linear Gaussian model.
    target = hierarchy(family)
    x = family.tensors["x"][family.mask]
    expected = COVARIANCE.diagonal() + NOISE**2 / x.square().mean(0)
    torch.testing.assert_close(target.scale.square(), expected)
    said = target.sentences()
    assert said[0] == (
        f"weight[0,0]: mean ~ N(250, {10 * target.scale[0]:.3g}²), "
        f"sd ~ half-t(4, {2.5 * target.scale[0]:.3g})"
    )
    assert said[2:] == ("correlations ~ LKJ(1)", "likelihood.log_scale ~ N(3.219, 2²)")


def test_shared_weights_get_a_prior_of_their_own_width(family):
    model = bm.Model(torch.nn.Linear(2, 1).double(), likelihoods.Gaussian(NOISE), adapt=["weight"])
    prior = Gaussian.from_covariance(MEAN, COVARIANCE)
    options = {"diagonal": True, "centred": False}
    target = Hierarchy(model, family.batch(), prior, learn_shared=True, **options)
    torch.testing.assert_close(target.width, torch.tensor([10 * NOISE], dtype=torch.float64))
    short = {"draws": 6, "warmup": 4, "max_tree_depth": 2, "hierarchy": True}
    result = nuts(model, family, prior=prior, diagonal=True, **short)
    assert result.shared["module.bias"].shape == (6, 1)
    assert (result.correlation == torch.eye(2)).all()
    assert nuts(model, family, prior=prior, learn_shared=False, **short).shared == {}


def test_a_hierarchy_returns_named_draws_of_every_part(family):
    prior = Gaussian.from_covariance(MEAN, COVARIANCE)
    result = nuts(
        line(None), family, prior=prior, draws=5, warmup=5, chains=2, hierarchy=True, seed=3,
        max_tree_depth=2,
    )  # fmt: skip
    assert result.draws.shape == (10, 4, 2)
    assert result.theta0.shape == result.prior_sd.shape == (10, 2)
    assert result.correlation.shape == (10, 2, 2)
    assert result.noise.shape == (10,)
    torch.testing.assert_close(result.noise, result.shared["likelihood.log_scale"].exp())
    assert result.hyperpriors
    assert result.problems()  # ten draws are no reference


@pytest.mark.slow
@pytest.mark.parametrize("centred", [False, True])
def test_eight_schools_against_integration_on_a_grid(centred):
    y = torch.tensor([28.0, 8, -3, 7, -1, 1, 18, 12], dtype=torch.float64)
    error = torch.tensor([15.0, 10, 16, 11, 9, 11, 10, 18], dtype=torch.float64)
    model = bm.Model(torch.nn.Linear(1, 1, bias=False).double(), likelihoods.Gaussian(scale=1.0))
    family = bm.TaskFamily.from_tensors(
        x=torch.ones(8, 1, 1).double(), y=y[:, None], standard_error=error[:, None]
    )
    prior = Gaussian(torch.full((1,), 8.0).double(), torch.full((1,), 25.0).double())
    result = nuts(
        model, family, prior=prior, draws=800, warmup=400, hierarchy=True, centred=centred,
        target_accept=0.95,
    )  # fmt: skip
    scale = (25.0 + 1 / error.square().reciprocal().mean()).sqrt()
    mu = torch.linspace(-60, 80, 561, dtype=torch.float64)[:, None]
    tau = (torch.arange(1600, dtype=torch.float64) + 0.5)[None] * 0.1
    log = Normal(8.0, 10 * scale).log_prob(mu) + StudentT(4.0, 0.0, 2.5 * scale).log_prob(tau)
    for value, sd in zip(y, error, strict=True):
        log = log + Normal(mu, (tau.square() + sd.square()).sqrt()).log_prob(value)
    weight = torch.softmax(log.flatten(), 0).reshape(log.shape)
    for draws, grid in ((result.theta0[:, 0], mu), (result.prior_sd[:, 0], tau)):
        mean = float((weight * grid).sum())
        mcse = float(draws.std() / result.ess_of(draws).sqrt())
        # A centred chain enters the neck of the funnel (τ near 0) rarely: a wider tolerance.
        assert abs(float(draws.mean()) - mean) < (8 if centred else 4) * mcse


# Mixing


@pytest.mark.parametrize("rho", [-0.5, 0.0, 0.5, 0.9])
def test_effective_size_of_an_autoregression_is_n_times_one_minus_rho_over_one_plus(rho):
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(4, 4000, generator=generator, dtype=torch.float64)
    chain = [noise[:, 0] / math.sqrt(1 - rho**2)]
    for t in range(1, noise.shape[1]):
        chain.append(rho * chain[-1] + noise[:, t])
    draws = torch.stack(chain, 1)
    expected = 16_000 * (1 - rho) / (1 + rho)
    assert float(effective_size(draws)) == pytest.approx(expected, rel=0.15)
    assert abs(float(split_rhat(draws)) - 1) < 0.01


def test_rhat_sees_chains_apart_and_a_chain_that_drifts():
    draws = torch.randn(2, 500, 3, generator=torch.Generator().manual_seed(0)).double()
    draws[1, :, 0] += 2.0
    draws[:, :, 1] += torch.linspace(0, 3, 500)
    rhat = split_rhat(draws)
    assert rhat[0] > 1.3
    assert rhat[1] > 1.2
    assert rhat[2] < 1.01
    assert effective_size(draws)[0] < 20


def test_problems_are_sentences_that_say_what_to_try():
    draws = torch.randn(400, 1, 1, generator=torch.Generator().manual_seed(0)).double()
    fine = NutsResult(("w",), ("a",), draws, chains=2, divergences=0, seconds=0.0)
    assert fine.problems() == []
    apart = draws + torch.where(torch.arange(400) < 200, 0.0, 3.0)[:, None, None]
    bad = NutsResult(("w",), ("a",), apart, chains=2, divergences=3, seconds=0.0)
    for said, expected in zip(
        bad.problems(),
        ["3 of 400 trajectories diverged: ", "split-R̂ reaches ", "the effective sample size "],
        strict=True,
    ):
        assert said.startswith(expected)
        assert ": raise " in said
    unknown = NutsResult(("w",), ("a",), draws * torch.nan, chains=1, divergences=0, seconds=0.0)
    assert len(unknown.problems()) == 2  # NaN is a problem, not a pass


# The prior in Pyro


def test_the_prior_as_a_pyro_model_samples_theta():
    model = prior_as_pyro(SimpleNamespace(prior=Gaussian.from_covariance(MEAN, COVARIANCE)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        trace = pyro.poutine.trace(model).get_trace()
        many = model(4000)
    assert list(trace.nodes)[1:-1] == ["theta"]
    assert trace.nodes["theta"]["value"].shape == (2,)
    assert many.shape == (4000, 2)
    torch.testing.assert_close(torch.cov(many.T), COVARIANCE, rtol=0.1, atol=10.0)


def test_a_singular_prior_is_no_pyro_model():
    singular = Gaussian(MEAN, torch.tensor([570.0, 0.0]).double())
    with pytest.raises(InputError, match="boundary"):
        prior_as_pyro(SimpleNamespace(prior=singular))
