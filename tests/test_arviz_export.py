"""Runs without torch as well: the fit here is numpy, so that ArviZ 1.x can be tried alone."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import xarray as xr

from bayesmeta import arviz_export
from bayesmeta.arviz_export import pareto_k, save_netcdf, to_arviz
from bayesmeta.results import InputError

az = arviz_export._arviz()
TASKS = ("308", "309", "310")
ROWS = (2, 4, 1)
PADDING = 1e6


class FakeGaussian:
    def __init__(self, mean: np.ndarray, tasks: tuple[str, ...] = ()) -> None:
        self.mean, self.tasks, self.names = mean, tasks, ("Intercept", "Days")

    def sample(self, n: int, generator: Any = None) -> np.ndarray:
        rng = generator if isinstance(generator, np.random.Generator) else np.random.default_rng(0)
        return self.mean + 0.1 * rng.standard_normal((n, *self.mean.shape))


@dataclass
class FakeFit:
    """Ragged tasks, two coordinates; y is 10 × task + row, and PADDING where there is none."""

    rows: tuple[int, ...] = ROWS
    likelihood: Any = "gaussian"
    notes: list[str] = field(default_factory=lambda: ["a prior variance is at its boundary"])
    log_evidence: float = -875.97
    evidence_kind: str = "exact"
    noise: float | None = 25.6

    def __post_init__(self) -> None:
        tasks = len(self.rows)
        mask = np.arange(max(self.rows)) < np.array(self.rows)[:, None]
        y = 10.0 * np.arange(tasks)[:, None] + np.arange(max(self.rows))
        names = TASKS if self.rows == ROWS else tuple(map(str, range(tasks)))
        self.family = SimpleNamespace(
            tensors={"y": np.where(mask, y, PADDING)},
            mask=mask,
            names=names,
            rows=np.array(self.rows),
        )
        mean = np.array([250.0, 10.0]) + np.arange(tasks)[:, None]
        self.posterior = FakeGaussian(mean, names)
        self.prior = SimpleNamespace(gaussian=FakeGaussian(np.array([251.4, 10.5])))
        self.model = SimpleNamespace(likelihood=self.likelihood)
        self.shared: dict[str, Any] = {"Age": np.float64(0.5)}
        self.asked: list[int] = []

    def predict(self, *, draws: int, seed: int) -> Any:
        self.asked.append(draws)
        noise = np.random.default_rng(seed).standard_normal((draws, *self.family.mask.shape))
        return SimpleNamespace(draws=self.family.tensors["y"] + 0.1 * noise)

    def log_likelihood(self, theta: np.ndarray) -> np.ndarray:
        assert theta.shape[1:] == (len(self.rows), 2)
        return np.where(self.family.mask, -0.01 * theta[:, :, :1], 0.0)


def dataset(data: Any, group: str) -> xr.Dataset:
    """A group as a dataset: InferenceData hands out datasets, DataTree nodes."""
    found = data[group]
    return found if isinstance(found, xr.Dataset) else found.to_dataset()


def test_groups_dims_and_named_coords():
    data = to_arviz(FakeFit(), draws=50)
    posterior = dataset(data, "posterior")
    assert posterior["theta"].dims == ("chain", "draw", "task", "coordinate")
    assert posterior["theta"].shape == (1, 50, 3, 2)
    days = posterior["theta"].sel(task="309", coordinate="Days")
    assert abs(float(days.mean()) - 11.0) < 0.1
    assert dataset(data, "prior")["theta"].dims == ("chain", "draw", "coordinate")
    assert json.loads(posterior.attrs["shared"]) == {"Age": 0.5}
    assert posterior.attrs["noise"] == 25.6
    assert posterior.attrs["log_evidence"] == -875.97
    assert "boundary" in posterior.attrs["notes"]


def test_no_padding_leaks_and_every_observation_is_named():
    data = to_arviz(FakeFit(), draws=20)
    observed = dataset(data, "observed_data")
    assert observed["y"].values.tolist() == [0.0, 1.0, 10.0, 11.0, 12.0, 13.0, 20.0]
    assert observed["task"].values.tolist() == ["308"] * 2 + ["309"] * 4 + ["310"]
    assert observed["row"].values.tolist() == [0, 1, 0, 1, 2, 3, 0]
    predictive = dataset(data, "posterior_predictive")["y"]
    assert predictive.dims == ("chain", "draw", "observation")
    assert np.abs(predictive.mean(("chain", "draw")) - observed["y"]).max() < 0.2
    log_likelihood = dataset(data, "log_likelihood")["y"]
    assert log_likelihood.shape == (1, 20, 7)
    assert (log_likelihood < -2.0).all()  # padding is 0 there


def test_log_likelihood_belongs_to_the_posterior_draws_also_in_chunks(monkeypatch):
    whole = to_arviz(FakeFit(), draws=7)
    monkeypatch.setattr(arviz_export, "LARGEST_CHUNK", 3 * 12)  # 3 draws of 3 x 4 at a time
    fit = FakeFit()
    chunked = to_arviz(fit, draws=7)
    assert fit.asked == [3, 3, 1]
    theta = dataset(chunked, "posterior")["theta"].sel(coordinate="Intercept")
    for data in (whole, chunked):
        computed = dataset(data, "log_likelihood")["y"]
        named = theta.sel(task=computed["task"])
        np.testing.assert_allclose(computed.values, -0.01 * named.values)


def test_arviz_itself_reads_it():
    data = to_arviz(FakeFit(), draws=200)
    summary = az.summary(data, var_names=["theta"], kind="stats", round_to="none")
    assert len(summary) == 6
    loo = az.loo(data, pointwise=True)
    assert loo.pareto_k.shape == (7,)
    extracted = az.extract(data, group="posterior", var_names="theta")
    assert extracted.sizes["sample"] == 200


@pytest.mark.filterwarnings("ignore")  # what matplotlib and friends announce is not ours
def test_a_forest_of_one_coordinate_has_one_line_per_task():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    data = to_arviz(FakeFit(), draws=50)
    drawn = az.plot_forest(
        data, var_names=["theta"], coords={"coordinate": ["Days"]}, combined=True
    )
    if arviz_export._before_1(az):
        assert len(drawn[0].get_yticklabels()) == 3
    else:
        assert drawn.viz["trunk"]["theta"].shape == (3, 1)


def test_the_same_seed_gives_the_same_draws_and_another_does_not():
    first, again, other = (to_arviz(FakeFit(), draws=5, seed=seed) for seed in (1, 1, 2))
    values = [dataset(d, "posterior")["theta"].values for d in (first, again, other)]
    assert (values[0] == values[1]).all()
    if "torch" not in arviz_export.sys.modules:  # the fake's draws are numpy's
        assert (values[0] != values[2]).any()


def test_a_file_comes_back_the_same(tmp_path):
    path = tmp_path / "posterior.nc"
    assert save_netcdf(FakeFit(), path, draws=30) == []
    save_netcdf(FakeFit(), path, draws=30)  # a second save replaces the first
    read = az.from_netcdf(path)
    expected = to_arviz(FakeFit(), draws=30)
    for group in ("posterior", "prior", "posterior_predictive", "log_likelihood", "observed_data"):
        xr.testing.assert_identical(dataset(read, group).load(), dataset(expected, group))
    read.close()
    assert [p.name for p in tmp_path.iterdir()] == ["posterior.nc"]


def test_a_failed_save_leaves_nothing(tmp_path):
    fit = FakeFit()
    fit.shared = {"Age": object()}
    with pytest.raises(TypeError):
        save_netcdf(fit, tmp_path / "posterior.nc")
    assert list(tmp_path.iterdir()) == []


def test_without_a_likelihood_only_theta_is_exported():
    data: Any = to_arviz(FakeFit(likelihood=None), draws=5)
    names: Any = data.groups() if callable(data.groups) else data.groups
    assert {name.strip("/") for name in names} - {""} == {"posterior", "prior"}


def test_a_real_fit_with_ragged_tasks(tmp_path):
    torch = pytest.importorskip("torch")
    import bayesmeta as bm

    generator = torch.Generator().manual_seed(0)
    x = torch.arange(5.0, dtype=torch.float64).expand(6, 5)
    mask = torch.arange(5) < torch.tensor([[2], [3], [5], [4], [1], [5]])
    theta = torch.randn(6, 2, generator=generator, dtype=torch.float64)
    noise = 0.3 * torch.randn(6, 5, generator=generator, dtype=torch.float64)
    family = bm.TaskFamily.from_tensors(
        x=x.unsqueeze(-1),
        y=theta[:, :1] + theta[:, 1:] * x + noise,
        mask=mask,
        names=list("abcdef"),
    )
    model = bm.Model(torch.nn.Linear(1, 1), bm.likelihoods.Gaussian())
    fit = bm.fit(model, family, prior=bm.Prior("diagonal"))
    data = fit.to_arviz(draws=400, seed=3)
    posterior = dataset(data, "posterior")["theta"]
    assert posterior["coordinate"].values.tolist() == ["weight[0,0]", "bias[0]"]
    error = fit.posterior.sd().numpy() / 20  # of a mean of 400 draws
    assert (
        np.abs(posterior.mean(("chain", "draw")) - fit.posterior.mean.numpy()) < 5 * error
    ).all()
    drawn = torch.as_tensor(posterior.values[0])
    np.testing.assert_allclose(
        dataset(data, "log_likelihood")["y"].values[0], fit.log_likelihood(drawn)[:, mask].numpy()
    )
    observed = dataset(data, "observed_data")["y"].values
    np.testing.assert_array_equal(observed, family.tensors["y"][mask].numpy())
    predicted = dataset(data, "posterior_predictive")["y"].values[0]
    assert np.abs(predicted.mean(0) - observed).max() < 1.0
    again = dataset(fit.to_arviz(draws=400, seed=4), "posterior")["theta"]
    assert (again.values != posterior.values).all()
    save_netcdf(fit, tmp_path / "p.nc", draws=10)
    assert pareto_k(fit.log_ratio(500, generator)).tolist() == [0.0] * 6


def test_a_large_family_gets_fewer_draws_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(arviz_export, "LARGEST_FILE", 50_000)  # 176 bytes a draw here
    with pytest.warns(UserWarning, match="has 284 draws in place of 1000, to stay under"):
        data = to_arviz(FakeFit())
    assert dataset(data, "posterior").sizes["draw"] == 284
    assert dataset(data, "posterior_predictive").sizes["draw"] == 284
    (note,) = save_netcdf(FakeFit(), tmp_path / "p.nc")
    assert "284 draws" in note


def test_a_very_large_family_loses_the_numbers_per_row_before_its_draws(monkeypatch):
    monkeypatch.setattr(arviz_export, "LARGEST_FILE", 15_000)
    with pytest.warns(UserWarning, match="234 draws in place of 1000 and no posterior_predictive"):
        data = to_arviz(FakeFit())
    assert dataset(data, "posterior").sizes["draw"] == 234
    assert dataset(data, "observed_data").sizes["observation"] == 7
    with pytest.raises(KeyError):
        data["log_likelihood"]


def test_no_draws_is_refused():
    with pytest.raises(InputError, match="at least 1"):
        to_arviz(FakeFit(), draws=0)


@pytest.mark.parametrize("k", [0.3, 0.5, 0.9, 1.5])
def test_pareto_k_finds_the_index_of_a_pareto_tail(k):
    # r = exp(k E) with E exponential has P(r > x) = x^(-1/k): a Pareto tail of index k.
    draws = k * np.random.default_rng(0).exponential(size=(10_000, 4))
    estimate = pareto_k(draws)
    assert estimate.shape == (4,)
    # k-hat's standard error is about (1 + k) / sqrt(300 tail draws).
    assert np.abs(estimate - k).max() < 4 * (1 + k) / np.sqrt(300)


def test_pareto_k_of_a_light_right_tail_is_small_whatever_the_left():
    # The sign matters: 1/r of the draws above has a bounded right tail and a heavy left one.
    draws = -1.5 * np.random.default_rng(0).exponential(size=(10_000, 1))
    assert pareto_k(draws)[0] < 0.3


def test_pareto_k_of_a_very_heavy_tail_is_large_and_quiet():
    draws = np.exp(2 * np.random.default_rng(0).exponential(size=(2000, 1)))
    assert pareto_k(draws)[0] > 2


def test_pareto_k_without_a_tail_or_without_numbers():
    rng = np.random.default_rng(0)
    ratios = np.stack(
        [
            5.0 + 1e-9 * rng.standard_normal(1000),  # an exact Q_i, up to rounding
            rng.standard_normal(1000),
            np.where(np.arange(1000) == 3, np.nan, 0.0),
            np.where(np.arange(1000) == 3, np.inf, 0.0),
            np.full(1000, -np.inf),
            np.where(np.arange(1000) % 2, rng.standard_normal(1000), -np.inf),
        ],
        axis=1,
    )
    k = pareto_k(ratios)
    assert k[0] == 0.0
    assert np.isfinite(k[1])
    assert np.isposinf(k[2:5]).all()
    assert np.isfinite(k[5])


@pytest.mark.parametrize("shape", [(1000,), (50, 2)])
def test_pareto_k_refuses_what_it_cannot_read(shape):
    with pytest.raises(InputError, match="draw, task"):
        pareto_k(np.zeros(shape))
