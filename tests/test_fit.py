"""After the fit: adapt, predict, standardise, save and load."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributions import Normal

import bayesmeta as bm
from bayesmeta import families, likelihoods, models
from bayesmeta.methods import joint

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="module")
def radon() -> bm.Fit:
    family = bm.TaskFamily.from_csv(DATA / "radon.csv", task="county", x=["floor"], y="log_radon")
    return bm.fit(models.linear(family, likelihoods.Gaussian()), family)


def network_fit(**options) -> bm.Fit:
    family, _ = families.sinusoid(
        tasks=6, rows=8, noise=0.1, generator=torch.Generator().manual_seed(0)
    )
    model = models.mlp((5,), family, likelihoods.Gaussian())
    method = joint(covariance="diagonal", steps=60)
    return bm.fit(model, family, method=method, prior=bm.Prior("diagonal"), **options)


def test_adapting_the_training_tasks_gives_the_fitted_posteriors(radon: bm.Fit) -> None:
    again = radon.adapt(radon.family)
    torch.testing.assert_close(again.posterior.mean, radon.posterior.mean)
    torch.testing.assert_close(again.posterior.covariance(), radon.posterior.covariance())
    assert again.log_evidence == pytest.approx(radon.log_evidence, abs=1e-9)


def test_a_task_without_information_gets_the_prior(radon: bm.Fit) -> None:
    nothing = bm.TaskFamily.from_tensors(
        x=torch.zeros(1, 1, 1).double(),
        y=torch.full((1, 1), 1.0).double(),
        standard_error=torch.full((1, 1), 1e6).double(),
    )
    adapted = radon.adapt(nothing)
    torch.testing.assert_close(adapted.posterior.mean[0], radon.prior.mean, atol=1e-6, rtol=0)
    torch.testing.assert_close(adapted.posterior.sd()[0], radon.prior.sd())


def test_predictive_draws_have_the_closed_form_moments(radon: bm.Fit) -> None:
    family = radon.family.subset(["HENNEPIN", "AITKIN"])
    prediction = radon.predict(family, draws=20_000)
    index = [radon.posterior.tasks.index(n) for n in family.names]
    x = family.tensors["x"]
    z = torch.cat([torch.ones_like(x), x], -1)
    mean = (z @ radon.posterior.mean[index].unsqueeze(-1)).squeeze(-1)
    covariance = radon.posterior.covariance()[index]
    sd = ((z @ covariance * z).sum(-1) + radon.noise**2).sqrt()
    keep = prediction.mask
    error = sd / math.sqrt(20_000)
    assert float(((prediction.mean - mean) / error)[keep].abs().max()) < 4.5
    assert float((prediction.sd / sd - 1)[keep].abs().max()) < 0.03
    low, high = prediction.interval(0.9)
    assert float(((high - low) / (2 * 1.6449 * sd) - 1)[keep].abs().max()) < 0.05
    exact = Normal(mean, sd).log_prob(family.tensors["y"])
    score = torch.where(keep, exact, 0.0).sum(-1)
    torch.testing.assert_close(prediction.log_score(), score, atol=0.1, rtol=0)


def test_the_log_score_is_the_log_of_a_mean() -> None:
    density = torch.tensor([[[0.1]], [[0.3]]]).double().log()
    prediction = bm.fit.__globals__["Prediction"](
        torch.zeros(2, 1, 1), torch.ones(1, 1, dtype=torch.bool), density, ("a",)
    )
    assert float(prediction.log_score()) == pytest.approx(math.log(0.2))
    assert float(prediction.log_score()) > float(density.mean())  # not the mean of logs


def test_an_unknown_task_is_predicted_from_the_prior(radon: bm.Fit) -> None:
    stranger = bm.TaskFamily.from_tensors(
        x=torch.zeros(1, 3, 1).double(), y=torch.zeros(1, 3).double(), names=["ELSEWHERE"]
    )
    prediction = radon.predict(stranger, draws=4000)
    assert prediction.from_prior == ("ELSEWHERE",)
    assert float(prediction.mean[0, 0]) == pytest.approx(float(radon.prior.mean[0]), abs=0.06)
    assert radon.predict(draws=2).from_prior == ()


def test_no_pooling_is_least_squares_and_nan_where_that_fails(radon: bm.Fit) -> None:
    alone = radon.no_pooling()
    place = radon.posterior.tasks.index("HENNEPIN")
    keep = radon.family.mask[place]
    x, y = radon.family.tensors["x"][place][keep], radon.family.tensors["y"][place][keep]
    z = torch.cat([torch.ones_like(x), x], -1)
    wanted = torch.linalg.lstsq(z, y.unsqueeze(-1)).solution.squeeze(-1)
    torch.testing.assert_close(alone.mean[place], wanted, rtol=1e-4, atol=1e-5)
    error = radon.noise * torch.linalg.inv(z.T @ z).diagonal().sqrt()
    torch.testing.assert_close(alone.sd()[place], error, rtol=1e-4, atol=1e-6)
    single = radon.posterior.tasks.index("WILKIN")  # one row: a slope cannot be told
    assert bool(alone.mean[single].isnan().any())


def test_log_ratios_are_constant_where_the_posterior_is_exact(radon: bm.Fit) -> None:
    ratios = radon.log_ratio(200, torch.Generator().manual_seed(0))
    assert ratios.shape == (200, 85)
    assert float(ratios.std(0).max()) < 1e-8
    torch.testing.assert_close(ratios.mean(0), radon.task_evidence)


def test_log_ratios_live_on_the_support_of_a_singular_prior() -> None:
    family = bm.TaskFamily.from_csv(
        DATA / "eight_schools.csv", task="school", y="y", standard_error="sigma"
    )
    fit = bm.fit(models.linear(family, likelihoods.Gaussian()), family)
    ratios = fit.log_ratio(10, torch.Generator().manual_seed(0))
    torch.testing.assert_close(ratios.mean(0), fit.task_evidence)


def test_standardised_and_plain_networks_report_in_original_units() -> None:
    family, _ = families.sinusoid(
        tasks=6, rows=8, noise=0.1, generator=torch.Generator().manual_seed(0)
    )
    bigger = bm.TaskFamily(family.tensors | {"y": 100 * family.tensors["y"] + 7})
    model = models.mlp((5,), family, likelihoods.Gaussian())
    method = joint(covariance="diagonal", steps=60)
    small, big = (
        bm.fit(model, f, method=method, prior=bm.Prior("diagonal"), standardise=True)
        for f in (family, bigger)
    )
    n = family.observations
    assert big.log_evidence == pytest.approx(small.log_evidence - n * math.log(100), abs=1e-5)
    assert big.noise == pytest.approx(100 * small.noise, rel=1e-9)
    torch.testing.assert_close(
        big.predict(draws=50).mean, 100 * small.predict(draws=50).mean + 7, rtol=1e-6, atol=1e-6
    )
    scores = big.predict(draws=50).log_score(), small.predict(draws=50).log_score()
    torch.testing.assert_close(scores[0], scores[1] - 8 * math.log(100), rtol=1e-6, atol=1e-6)


def test_a_known_noise_is_in_the_units_of_the_data() -> None:
    family, _ = families.sinusoid(
        tasks=4, rows=8, noise=0.1, generator=torch.Generator().manual_seed(0)
    )
    model = models.mlp((3,), family, likelihoods.Gaussian(scale=0.25))
    method = joint(covariance="diagonal", steps=5)
    fit = bm.fit(model, family, method=method, prior=bm.Prior("diagonal"), standardise=True)
    assert fit.noise == pytest.approx(0.25)


def test_the_same_seed_gives_the_same_fit_and_another_seed_does_not() -> None:
    state = torch.get_rng_state()
    first, second, other = network_fit(seed=1), network_fit(seed=1), network_fit(seed=2)
    assert torch.equal(first.posterior.mean, second.posterior.mean)
    assert not torch.equal(first.posterior.mean, other.posterior.mean)
    assert torch.equal(state, torch.get_rng_state())


def test_fewer_tasks_than_weights_fall_back_to_a_diagonal_prior_and_say_so() -> None:
    family, _ = families.linear_gaussian(
        tasks=2, rows=9, generator=torch.Generator().manual_seed(0)
    )
    fit = bm.fit(bm.Model(nn.Linear(1, 1), likelihoods.Gaussian()), family)
    assert fit.method["prior"]["form"] == "diagonal"
    assert any("2 tasks cannot identify" in note for note in fit.notes)


def test_a_run_comes_back_equal(radon: bm.Fit, tmp_path: Path) -> None:
    radon.save(tmp_path / "run")
    again = bm.load(tmp_path / "run")
    assert json.dumps(again.record()) == json.dumps(radon.record())
    assert again.method == radon.method and again.notes == radon.notes
    assert torch.equal(again.posterior.mean, radon.posterior.mean)
    assert torch.equal(again.prior.covariance(), radon.prior.covariance())
    assert again.family.fingerprint() == radon.family.fingerprint()
    assert torch.equal(again.predict(draws=3).draws, radon.predict(draws=3).draws)
    names = {p.name for p in (tmp_path / "run").iterdir()}
    assert {"run.json", "prior.safetensors", "posterior.nc", "log.jsonl"} <= names
    assert not any(b"pickle" in p.read_bytes() for p in (tmp_path / "run").iterdir())


def test_a_network_and_a_users_module_come_back(tmp_path: Path) -> None:
    fit = network_fit(standardise=True)
    fit.save(tmp_path / "net")
    again = bm.load(tmp_path / "net")
    assert torch.equal(again.predict(draws=3).draws, fit.predict(draws=3).draws)
    family, _ = families.linear_gaussian(
        tasks=9, rows=5, generator=torch.Generator().manual_seed(0)
    )
    own = bm.Model(nn.Linear(1, 1), likelihoods.Gaussian())
    line = bm.fit(own, family)
    line.save(tmp_path / "own")
    with pytest.raises(bm.InputError, match="model of your own"):
        bm.load(tmp_path / "own")
    assert torch.equal(bm.load(tmp_path / "own", model=own).prior.mean, line.prior.mean)


@pytest.mark.parametrize("file", ["run.json", "prior.safetensors", "tasks.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "garbage"])
def test_a_damaged_run_is_refused_in_a_sentence(
    radon: bm.Fit, tmp_path: Path, file: str, damage: str
) -> None:
    radon.save(tmp_path / "run")
    path = tmp_path / "run" / file
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"\x80garbage")
    with pytest.raises(bm.InputError, match=file.split(".")[0]):
        bm.load(tmp_path / "run")


def test_changed_data_do_not_belong_to_the_record(radon: bm.Fit, tmp_path: Path) -> None:
    radon.save(tmp_path / "run")
    path = tmp_path / "run" / "tasks.safetensors"
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(bm.InputError, match=r"tasks.safetensors is damaged, or of another run"):
        bm.load(tmp_path / "run")


def test_the_readme_example_of_the_public_surface(radon: bm.Fit) -> None:
    module = bm.Model(nn.Linear(1, 1), likelihoods.Gaussian())
    fit = bm.fit(module, radon.family, method=joint(covariance="full"), prior=bm.Prior("full"))
    assert fit.prior.names == ("weight[0,0]", "bias[0]")
    assert fit.log_evidence == pytest.approx(radon.log_evidence, abs=1e-8)
    assert fit.posterior.mean.shape == (85, 2)
    assert fit.posterior.sample(7).shape == (7, 85, 2)
    assert float(fit.likelihood.scale) == pytest.approx(radon.noise, rel=1e-6)


def test_noise_that_goes_to_zero_is_reported() -> None:
    # Two rows and two weights a task: in this half of the data the likelihood rises without end.
    family = bm.TaskFamily.from_formula("distance ~ age + (age | Subject)", DATA / "orthodont.csv")
    half, _ = family.split(0.5, torch.Generator().manual_seed(5))
    fit = bm.fit(models.linear(half, likelihoods.Gaussian()), half)
    assert any("noise sd is estimated as practically 0" in note for note in fit.notes)


def test_a_new_table_is_read_with_the_coding_of_the_fitted_one(tmp_path: Path) -> None:
    family = bm.TaskFamily.from_formula(
        "distance ~ age + Sex + (age | Subject)", DATA / "orthodont.csv"
    )
    fit = bm.fit(models.linear(family, likelihoods.Gaussian()), family)
    lines = (DATA / "orthodont.csv").read_text().splitlines()
    boys = [line for line in lines if ",M01," in line]
    (tmp_path / "new.csv").write_text("\n".join([lines[0], *boys]).replace("M01", "N1"))
    adapted = fit.adapt(tmp_path / "new.csv")
    place = fit.posterior.tasks.index("M01")
    torch.testing.assert_close(adapted.posterior.mean[0], fit.posterior.mean[place])
    other = bm.TaskFamily.from_formula("distance ~ age + (1 | Subject)", DATA / "orthodont.csv")
    with pytest.raises(bm.InputError, match="fit.read"):
        fit.adapt(other)


def test_learned_degrees_of_freedom_are_not_lost_in_the_gaussian_limit() -> None:
    family = bm.TaskFamily.from_csv(
        DATA / "sleepstudy.csv", task="Subject", x=["Days"], y="Reaction"
    )
    fit = bm.fit(models.linear(family, likelihoods.StudentT(df=None)), family)
    assert fit.log_evidence > -854.2  # -854.11 with df held at 3
    assert 2 < fit.shared["df"] < 4


def test_padding_that_is_not_a_number_changes_nothing() -> None:
    family, _ = families.linear_gaussian(
        tasks=9, rows=(2, 6), generator=torch.Generator().manual_seed(0)
    )
    model = bm.Model(nn.Linear(1, 1), likelihoods.Gaussian())
    holes = torch.where(family.mask, family.tensors["y"], torch.nan)
    padded = bm.TaskFamily.from_tensors(x=family.tensors["x"], y=holes, mask=family.mask)
    fit = bm.fit(model, family)
    assert bm.fit(model, padded).log_evidence == pytest.approx(fit.log_evidence, abs=1e-9)
    lists = {k: [v[i][m] for i, m in enumerate(family.mask)] for k, v in family.tensors.items()}
    again = bm.fit(model, bm.TaskFamily.from_tensors(**lists))
    assert again.log_evidence == pytest.approx(fit.log_evidence, abs=1e-9)
    real = family.tensors["y"].clone()
    real[3, 0] = torch.nan
    poisoned = bm.TaskFamily.from_tensors(x=family.tensors["x"], y=real, mask=family.mask)
    found = bm.fit(model, poisoned)
    assert [flag.task for flag in found.flagged] == ["3"] and "left out" in found.flagged[0].why
    others = [i for i in range(9) if i != 3]
    assert found.log_evidence == bm.fit(model, family.subset(others)).log_evidence
    with pytest.raises(bm.InputError, match="y of task '0'.*not finite"):
        bm.fit(model, bm.TaskFamily.from_tensors(x=family.tensors["x"], y=real * torch.nan))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (lambda m, f: (f, m), "model is a TaskFamily"),
        (lambda m, f: (m, f, {"prior": "diagonal"}), "prior is a str"),
        (lambda m, f: (m, f, {"method": "joint"}), "method is a str"),
        (lambda m, f: (bm.Model(nn.Linear(3, 1), likelihoods.Gaussian()), f), r"x \(5, 1\)"),
        (lambda m, f: (bm.Model(nn.Linear(1, 2), likelihoods.Gaussian()), f), "must match"),
        (lambda m, f: (bm.Model.from_energy(lambda t, x, y: y - t[0], 1), f), "sum an energy"),
        (
            lambda m, f: (bm.Model.from_energy(lambda t, x, y: t.sum() * torch.nan, 1), f),
            "not finite",
        ),
    ],
)
def test_what_does_not_fit_together_is_said_in_a_sentence(arguments, sentence: str) -> None:
    family, _ = families.linear_gaussian(
        tasks=4, rows=5, generator=torch.Generator().manual_seed(0)
    )
    given = arguments(bm.Model(nn.Linear(1, 1), likelihoods.Gaussian()), family)
    options = given[2] if len(given) > 2 else {}
    with pytest.raises(bm.InputError, match=sentence):
        bm.fit(*given[:2], **options)
