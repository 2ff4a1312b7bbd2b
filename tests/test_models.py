"""Models: energies against hand-written sums, what is adapted and what is shared."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import bayesmeta as bm
from bayesmeta import families, likelihoods, models


def family(rows: int | tuple[int, int] = (2, 6)) -> bm.TaskFamily:
    drawn, _ = families.linear_gaussian(
        tasks=5, rows=rows, generator=torch.Generator().manual_seed(0)
    )
    return drawn


def test_the_energy_is_summed_over_real_rows_in_nats() -> None:
    tasks, model = family(), bm.Model(nn.Linear(1, 1), likelihoods.Gaussian(scale=0.7)).double()
    theta = torch.arange(10.0).double().reshape(5, 2) / 10
    energies = model.energies(theta, tasks.batch())
    for i in range(5):
        x, y = (tasks.tensors[k][i][tasks.mask[i]] for k in ("x", "y"))
        residual = (y - theta[i, 0] * x[:, 0] - theta[i, 1]) / 0.7
        wanted = 0.5 * residual.square() + math.log(0.7) + 0.5 * math.log(2 * math.pi)
        torch.testing.assert_close(energies[i], wanted.sum())
    draws = model.energies(torch.stack([theta, theta + 1]), tasks.batch())
    torch.testing.assert_close(draws[0], energies)


def test_adapt_chooses_parameters_or_submodules() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    body = bm.Model(net, likelihoods.Gaussian(), adapt=["0"])
    head = bm.Model(net, likelihoods.Gaussian(), adapt=["2.weight", "2.bias"])
    assert body.dim == 9 and head.dim == 4
    assert set(head.shared) == {"module.0.weight", "module.0.bias", "likelihood.log_scale"}
    assert body.names[:2] == ("0.weight[0,0]", "0.weight[0,1]")
    assert head.blocks.tolist() == [0, 0, 0, 1]
    with pytest.raises(bm.InputError, match="'3'.*0.weight"):
        bm.Model(net, likelihoods.Gaussian(), adapt=["3"])


def test_affine_predictions_are_recognised_and_others_are_not() -> None:
    tasks = family(4)
    net = nn.Sequential(nn.Linear(1, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    gaussian = likelihoods.Gaussian()
    last = bm.Model(net, gaussian, adapt=["2"])
    assert last.is_affine(tasks) and not last.is_affine(tasks, jointly=True)
    assert not bm.Model(net, gaussian).is_affine(tasks)
    line = bm.Model(nn.Linear(1, 1).double(), gaussian, adapt=["bias"])
    assert line.is_affine(tasks, jointly=True)
    design, constant = line.design(tasks.batch())
    torch.testing.assert_close(design[..., 1], tasks.tensors["x"][..., 0])  # the shared slope
    assert bool((constant == 0).all())


def test_a_random_intercept_is_the_same_by_module_and_by_formula(tmp_path) -> None:
    tasks = family(6)
    by_module = bm.fit(bm.Model(nn.Linear(1, 1), likelihoods.Gaussian(), adapt=["bias"]), tasks)
    lines = ["g,x,y"]
    for i, name in enumerate(tasks.names):
        lines += [
            f"{name},{float(x)!r},{float(y)!r}"
            for x, y in zip(tasks.tensors["x"][i, :, 0], tasks.tensors["y"][i], strict=True)
        ]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    table = bm.TaskFamily.from_formula("y ~ x + (1 | g)", tmp_path / "t.csv")
    by_formula = bm.fit(models.linear(table, likelihoods.Gaussian()), table)
    assert by_module.solver == by_formula.solver == "exact"
    assert by_module.log_evidence == pytest.approx(by_formula.log_evidence, abs=1e-9)
    assert by_module.shared["weight"] == pytest.approx(by_formula.shared["x"])


def test_fit_leaves_the_users_module_alone() -> None:
    module = nn.Linear(1, 1)
    before = [p.clone() for p in module.parameters()]
    bm.fit(bm.Model(module, likelihoods.Gaussian()), family())
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))


def test_an_offset_is_part_of_the_prediction() -> None:
    tasks = family(3)
    with_offset = bm.TaskFamily(tasks.tensors | {"offset": torch.full((5, 3), 2.0).double()})
    model = bm.Model(nn.Linear(1, 1).double(), likelihoods.Gaussian())
    theta = torch.zeros(5, 2).double()
    assert bool((model.predict(theta, with_offset.batch()) == 2.0).all())


def test_a_ragged_family_needs_an_energy_that_sees_the_mask() -> None:
    def blind(theta: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (y - theta).square().sum()

    def seeing(theta, x, y, mask):
        return torch.where(mask, (y - theta).square(), 0.0).sum()

    prior = bm.Prior("isotropic", learn="none").at(mean=0.0, variance=1.0)
    with pytest.raises(bm.InputError, match="mask="):
        bm.fit(bm.Model.from_energy(blind, 1), family(), prior=prior)
    tasks = family()
    fit = bm.fit(bm.Model.from_energy(seeing, 1), tasks, prior=prior)
    rows = tasks.rows.double()
    total = torch.where(tasks.mask, tasks.tensors["y"], 0.0).sum(1)
    torch.testing.assert_close(fit.posterior.mean[:, 0], 2 * total / (2 * rows + 1))


def test_a_pyro_model_gives_the_energy_of_its_observed_sites() -> None:
    def model(x: torch.Tensor, y: torch.Tensor, mask: torch.Tensor) -> None:
        weight = pyro.sample("weight", dist.Normal(0.0, 1.0).expand([1]).to_event(1))
        scale = pyro.sample("scale", dist.HalfNormal(1.0))
        with pyro.plate("rows", len(y)), pyro.poutine.mask(mask=mask):
            pyro.sample("y", dist.Normal(x @ weight, scale), obs=y)

    tasks = family()
    ours = bm.Model.from_pyro(model).bind(tasks).double()
    assert ours.names == ("weight[0]", "scale")
    theta = torch.tensor([0.3, -0.4]).double().expand(5, 2)
    energies = ours.energies(theta, tasks.batch())
    for i in range(5):
        x, y = (tasks.tensors[k][i][tasks.mask[i]] for k in ("x", "y"))
        wanted = -dist.Normal(0.3 * x[:, 0], math.exp(-0.4)).log_prob(y).sum()
        torch.testing.assert_close(energies[i], wanted)


def test_a_pyro_model_that_observes_nothing_or_has_discrete_sites_is_refused() -> None:
    def discrete(x: torch.Tensor, y: torch.Tensor) -> None:
        k = pyro.sample("k", dist.Bernoulli(0.5))
        pyro.sample("y", dist.Normal(k, 1.0).expand([len(y)]).to_event(1), obs=y)

    with pytest.raises(bm.InputError, match="'k' is discrete"):
        bm.Model.from_pyro(discrete).bind(family(3))
    with pytest.raises(bm.InputError, match="no latent site"):
        bm.Model.from_pyro(lambda x, y: None).bind(family(3))


def test_chunks_change_memory_not_numbers() -> None:
    tasks = family()
    whole = bm.Model(nn.Linear(1, 1), likelihoods.Gaussian()).double()
    chunked = bm.Model(whole.module, whole.likelihood, chunk_size=2)
    theta = torch.randn(3, 5, 2, generator=torch.Generator().manual_seed(1)).double()
    torch.testing.assert_close(
        whole.energies(theta, tasks.batch()), chunked.energies(theta, tasks.batch())
    )
