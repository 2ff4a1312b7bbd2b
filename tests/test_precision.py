"""Fewer bits: bfloat16 in the forward pass alone, TF32 for the length of a call."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from small_images import bank
from torch import Tensor, nn

import bayesmeta as bm
from bayesmeta import families, likelihoods, methods
from bayesmeta.diagnostics import few_shot_scores
from bayesmeta.models import precision
from bayesmeta.models.energy import EnergyModel
from bayesmeta.models.normalisation import with_policy

LOW = ("float32", "tf32", "bfloat16")
PRIOR = {"lam": None, "support": None}
METHODS = {
    "maml": methods.maml(steps=1, lr=0.01, support=None),
    "fomaml": methods.fomaml(steps=1, lr=0.01, support=None),
    "imaml, Gauss-Newton": methods.imaml(steps=2, lr=0.01, curvature="ggn", **PRIOR),
    "imaml, Hessian": methods.imaml(steps=2, lr=0.01, curvature="hessian", **PRIOR),
    "imaml_hf": methods.imaml_hf(steps=1, newton_cg_steps=2, **PRIOR),
}


def smooth(which: str | None = None) -> bm.Model:
    """Convolutions without a ReLU or a normalisation, which enlarge every rounding."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 8, 3, stride=2), nn.Tanh(), nn.Conv2d(8, 8, 3, stride=2), nn.Tanh(),
            nn.Flatten(), nn.Linear(72, 3),
        )  # fmt: skip
    return bm.Model(net, likelihoods.Categorical(3), precision=which)


def conv(which: str | None = None) -> bm.Model:
    return bm.models.conv4(3, (1, 16, 16), filters=8, precision=which)


@cache
def pair() -> tuple[bm.TaskFamily, bm.TaskFamily]:
    stream = bm.FewShot(bank(6, 10, 16), ways=3, shots=5, queries=5)
    return stream.family(4, torch.Generator().manual_seed(0))


def slope(model: bm.Model, method: bm.methods.Method) -> Tensor:
    support, query = pair()
    if method.anchored:
        prior = bm.Prior("isotropic", learn="mean").at(mean=model.start, variance=0.1)
    else:
        prior = bm.Prior("point").at(mean=model.start, variance=0.0)
    return bm.meta_gradient(model, prior, support, method, query=query).theta0


def away(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / one.norm())


@pytest.mark.parametrize("name", METHODS)
def test_bfloat16_is_near_float32_and_is_not_float32(name):
    """Through vmap over tasks, reverse over reverse, and products with the curvature."""
    full, half = (slope(smooth(p), METHODS[name]) for p in (None, "bfloat16"))
    assert half.dtype == torch.float32
    assert 1e-3 < away(full, half) < 0.03
    # A CPU multiplies float32 numbers as float32 numbers, whatever it is asked.
    assert torch.equal(slope(smooth("float32"), METHODS[name]), full)
    assert torch.equal(slope(smooth("tf32"), METHODS[name]), full)


def test_bfloat16_of_a_conv4_points_the_same_way():
    """Its roundings move inputs of ReLUs across 0, so this is what is to be had, and no more."""
    full, half = (slope(conv(p), METHODS["maml"]) for p in (None, "bfloat16"))
    assert 1e-3 < away(full, half) < 0.2
    assert float(full @ half / full.norm() / half.norm()) > 0.98


class Spy(nn.Module):
    """Notes the type of what a layer takes and gives."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.seen = layer, []

    def forward(self, x):
        y = self.layer(x)
        self.seen.append((x.dtype, y.dtype))
        return y


F32, B16 = torch.float32, torch.bfloat16


def test_only_the_module_is_in_bfloat16():
    """Its products are, its statistics are not, and nothing that is made of its output is."""
    layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3, bias=False), nn.Flatten()]
    spies = [Spy(layer) for layer in layers]
    net = nn.Sequential(*spies, nn.Linear(288, 3, bias=False))
    model = bm.Model(net, likelihoods.Categorical(3), batch_norm="support", precision="bfloat16")
    support, _ = pair()
    batch = support.batch()
    eta = model.predict(model.start.expand(4, -1), batch)
    values = model.energies(model.start.expand(4, -1), batch)
    seen = [set(spy.seen) for spy in model.module if isinstance(spy, Spy)]
    assert seen == [{(F32, B16)}, {(B16, F32)}, {(F32, B16)}, {(B16, B16)}]
    assert eta.dtype == values.dtype == F32
    assert torch.equal(eta, eta.to(B16).float()) and float(eta.abs().min()) > 0
    assert not torch.equal(values, values.to(B16).float())
    losses = nn.functional.cross_entropy(eta.flatten(0, 1), batch.tensors["y"].flatten())
    torch.testing.assert_close(values.sum() / (4 * 15), losses)
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_all_tasks_at_once_are_rounded_as_one_is(kind):
    """vmap hides convolutions from a CPU's autocast."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        net = nn.Sequential(kind(1, 3, 5), nn.Flatten())
    model = bm.Model(net, likelihoods.Categorical(3), precision="bfloat16")
    x = torch.rand(4, 15, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    batch = bm.TaskFamily.from_tensors(x=x, y=torch.zeros(4, 15).long()).batch()
    together = model.predict(model.start.expand(4, -1), batch)
    with torch.autocast("cpu", B16):
        alone = torch.stack([net(rows) for rows in x]).float()
    full = model.with_precision(None).predict(model.start.expand(4, -1), batch)
    errors = [float((found - full).abs().detach().mean()) for found in (alone, together)]
    assert errors[0] > 1e-4 and errors[0] / 3 < errors[1] < 3 * errors[0]


def test_statistics_of_bfloat16_numbers_are_not():
    x = 3 + torch.rand(500, 2, 4, 4, generator=torch.Generator().manual_seed(1)).to(B16)
    norm = with_policy(nn.Sequential(nn.BatchNorm2d(2)), "transductive")
    torch.testing.assert_close(norm(x), norm(x.float()))


def test_a_fit_in_bfloat16_learns_and_comes_back(tmp_path):
    stream, new = bm.FewShot(bank(12, 10, 16), ways=3, shots=1, queries=3).split(6, 6)

    def fitted(precision, steps):
        method = methods.maml(
            steps=1, lr=0.1, support=None, batch=4, outer_steps=steps, outer_lr=0.01
        )
        return bm.fit(conv(precision), stream, method=method, seed=1)

    half, full, start = fitted("bfloat16", 40), fitted(None, 40), fitted("bfloat16", 1)
    assert half.prior.mean.dtype == torch.float32 and half.trace != full.trace
    learned, before, as_well = (
        few_shot_scores(fit, new, count=64).transductive.nll.mean() for fit in (half, start, full)
    )
    assert learned < before - 0.5 * (before - as_well)
    loaded = bm.load(half.save(tmp_path / "run"))
    assert loaded.model.precision == "bfloat16"
    support, query = stream.family(2, torch.Generator().manual_seed(3))
    scores = [f.adapt(support).predict(query, draws=1).log_density for f in (half, loaded)]
    assert torch.equal(*scores)


def test_a_checkpoint_of_another_precision_is_not_gone_on_from(tmp_path):
    stream = bm.FewShot(bank(6, 10, 16), ways=3, shots=1, queries=3)
    method = methods.maml(steps=1, support=None, batch=2, outer_steps=2)
    bm.fit(conv(), stream, method=method, checkpoint=bm.Checkpoint(tmp_path, every=1))
    with pytest.raises(bm.InputError, match="precision = None there, 'bfloat16' here"):
        bm.fit(conv("bfloat16"), stream, method=method, checkpoint=bm.Checkpoint(tmp_path))


# TF32


def standing() -> tuple[str, bool]:
    return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32


@pytest.fixture
def watched(monkeypatch) -> list[tuple[str, bool]]:
    """How torch is set whenever a model is applied."""
    seen: list[tuple[str, bool]] = []
    honest = precision.forward

    def forward(module, x, which):
        seen.append(standing())
        return honest(module, x, which)

    monkeypatch.setattr("bayesmeta.models.model.forward", forward)
    return seen


@pytest.mark.parametrize(
    ("which", "inside"), [("tf32", ("high", True)), ("float32", ("highest", False)), (None, None)]
)
def test_torch_is_set_for_the_length_of_a_call(which, inside, watched):
    before = standing()
    inside = inside or before
    method = methods.maml(steps=1, support=None, batch=2, outer_steps=1)
    stream = bm.FewShot(bank(6, 10, 16), ways=3, shots=1, queries=3)
    fit = bm.fit(conv(which), stream, method=method)
    assert inside in watched and standing() == before
    for call in (
        lambda: fit.adapt(fit.family),
        lambda: fit.predict(draws=1),
        lambda: fit.log_likelihood(fit.posterior.mean[None]),
        lambda: slope(conv(which), METHODS["maml"]),
    ):
        watched.clear()
        call()
        assert watched.pop() == inside
        assert standing() == before


@pytest.mark.parametrize("before", [("highest", True), ("medium", False)])
def test_torch_is_set_back_after_an_error(before):
    kept = standing()
    try:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
        for which in LOW:
            with pytest.raises(KeyError), precision.multiplying(which):
                raise KeyError
            assert standing() == before
    finally:
        torch.set_float32_matmul_precision(kept[0])
        torch.backends.cudnn.allow_tf32 = kept[1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_tf32_and_bfloat16_differ_on_a_gpu():
    support, query = (part.to(device="cuda") for part in pair())
    found = {}
    for which in LOW:
        model = conv(which)
        prior = bm.Prior("point").at(mean=model.start, variance=0.0)
        gradient = bm.meta_gradient(model, prior, support, METHODS["maml"], query=query)
        found[which] = gradient.theta0
    assert 1e-6 < away(found["float32"], found["tf32"]) < 0.01
    assert 1e-4 < away(found["float32"], found["bfloat16"]) < 0.05


# Refused


@pytest.mark.parametrize("which", LOW)
def test_data_of_64_bits_are_not_thrown_away(which):
    family, _ = families.linear_gaussian(tasks=5, rows=4, generator=torch.Generator())
    model = bm.Model(nn.Linear(1, 1), likelihoods.Gaussian(), precision=which)
    with pytest.raises(bm.InputError, match=f"precision='{which}' is for data in float32.*float64"):
        bm.fit(model, family)
    single = family.to(dtype=torch.float32)
    assert bm.fit(model, single, method=methods.maml(optimiser="adam", outer_steps=2)).trace


def test_a_precision_that_is_none():
    with pytest.raises(bm.InputError, match="precision='half': give one of float32, tf32, bfl"):
        bm.Model(nn.Linear(1, 1), likelihoods.Gaussian(), precision="half")
    with pytest.raises(bm.InputError, match="precision='fp8'"):
        conv().with_precision("fp8")
    energy = bm.Model.from_energy(lambda theta, c: (theta - c).square().sum(), 2)
    assert isinstance(energy, EnergyModel)
    with pytest.raises(bm.InputError, match="EnergyModel has no module"):
        energy.with_precision("bfloat16")


def test_a_copy_in_another_precision_leaves_the_model_as_it_is():
    model = conv()
    half = model.with_precision("bfloat16")
    assert (model.precision, half.precision) == (None, "bfloat16")
    assert half.spec == model.spec | {"precision": "bfloat16"}
    assert torch.equal(half.start, model.start)
    assert half.with_precision(None).precision is None
    own = bm.Model(nn.Linear(1, 1), likelihoods.Gaussian(), precision="tf32")
    assert own.with_precision("float32").spec is None


def test_the_error_of_fewer_bits_is_that_of_the_two_gradients():
    support, query = bm.FewShot(bank(6, 10, 16), ways=3, shots=1, queries=3).family(
        4, torch.Generator().manual_seed(0)
    )
    model, method = conv(None), methods.maml(steps=1, lr=0.01, support=None)
    prior = bm.Prior("point").at(mean=model.start, variance=0.0)
    found = bm.diagnostics.precision_error(model, prior, support, method, query=query)
    full, half = (
        bm.meta_gradient(model.with_precision(p), prior, support, method, query=query).theta0
        for p in (None, "bfloat16")
    )
    assert found.relative == pytest.approx(float((half - full).norm() / full.norm()), rel=1e-5)
    assert 0 < found.relative < 1 and found.tasks == 4
    same = bm.diagnostics.precision_error(
        model, prior, support, method, query=query, precision="float32"
    )
    assert same.relative == 0.0
    assert "off by" in str(found)
