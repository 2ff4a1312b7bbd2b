"""Batch normalisation by its three policies, against torch's own and against rows by hand."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_images import bank
from torch import Tensor, nn

import bayesmeta as bm
from bayesmeta import likelihoods, methods
from bayesmeta.models.normalisation import TaskNorm, frozen_on, with_policy
from bayesmeta.tasks import TaskBatch

F64 = torch.float64
SIDE = 8
INDUCTIVE = pytest.mark.parametrize("policy", ["support", "transductive"])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=F64)


def conv(policy: str, *, filters: int = 3) -> bm.Model:
    """A small Conv4, whose affine constants are not those it starts with."""
    model = bm.models.conv4(2, (1, SIDE, SIDE), filters=filters, batch_norm=policy).double()
    with torch.no_grad():
        for i, parameter in enumerate(model.module.parameters()):
            parameter.add_(0.3 * noise(*parameter.shape, seed=i))
    return model


def sets(tasks: int = 3) -> tuple[TaskBatch, TaskBatch]:
    stream = bm.FewShot(bank(4, 6, SIDE), ways=2, shots=2, queries=3, dtype=F64)
    return stream.draw(tasks, generator())


def one(batch: TaskBatch, i: int) -> TaskBatch:
    return batch[torch.tensor([i])]


def predicted(model: bm.Model, query: TaskBatch, support: TaskBatch) -> Tensor:
    """(task, row, class) at the weights of the module."""
    theta = model.start.expand(len(query), -1)
    return model.predict(theta, model.seen(query, support)).detach()


# Each policy against a definition of its own


def through_torch(model: bm.Model, x: Tensor) -> Tensor:
    """Logits of rows x (row, ...), with torch's own function over these rows."""
    for layer in model.module.children():
        if isinstance(layer, TaskNorm):
            x = nn.functional.batch_norm(
                x, None, None, layer.weight, layer.bias, training=True, eps=layer.eps
            )
        else:
            x = layer(x)
    return x.detach()


def test_transductive_statistics_are_those_torch_takes_of_the_query_rows():
    model, (support, query) = conv("transductive"), sets()
    found = predicted(model, query, support)
    for i in range(3):
        torch.testing.assert_close(found[i], through_torch(model, query.tensors["x"][i]))


def by_hand(model: bm.Model, support: Tensor, row: Tensor) -> Tensor:
    """Logits of one query row, every channel shifted and scaled by the support's own moments."""
    query = row[None]
    for layer in model.module.children():
        if not isinstance(layer, TaskNorm):
            support, query = layer(support), layer(query)
            continue
        normalised = [torch.empty_like(support), torch.empty_like(query)]
        for channel in range(support.shape[1]):
            values = support[:, channel]
            mean = values.sum() / values.numel()
            variance = ((values - mean) ** 2).sum() / values.numel()
            for old, new in zip((support, query), normalised, strict=True):
                new[:, channel] = (old[:, channel] - mean) / torch.sqrt(variance + layer.eps)
                new[:, channel] *= layer.weight[channel]
                new[:, channel] += layer.bias[channel]
        support, query = normalised
    return query[0]


@torch.no_grad()
def test_support_statistics_are_the_supports_row_by_row():
    model, (support, query) = conv("support"), sets()
    found = predicted(model, query, support)
    for i in range(3):
        for row in range(query.tensors["x"].shape[1]):
            wanted = by_hand(model, support.tensors["x"][i], query.tensors["x"][i, row])
            torch.testing.assert_close(found[i, row], wanted)


def test_support_rows_are_normalised_among_themselves_by_either_policy():
    support, query = sets()
    theta = conv("support").start.expand(3, -1)
    alone = [conv(p).predict(theta, support).detach() for p in ("support", "transductive")]
    torch.testing.assert_close(*alone)
    # A support set that is asked about itself answers what it did.
    model = conv("support")
    torch.testing.assert_close(predicted(model, support, support), alone[0])
    assert not torch.allclose(predicted(model, query, support)[:, :2], alone[0][:, :2])


@INDUCTIVE
@settings(deadline=None, max_examples=10)
@given(kept=st.integers(0, 5), seed=st.integers(0, 100), scale=st.sampled_from([0.1, 1.0, 30.0]))
def test_other_query_rows_are_seen_by_transductive_statistics_only(policy, kept, seed, scale):
    model, (support, query) = conv(policy), sets()
    x = query.tensors["x"]
    others = torch.arange(x.shape[1]) != kept
    changed = x.clone()
    changed[:, others] += scale * noise(*x[:, others].shape, seed=seed)
    other = TaskBatch(query.tensors | {"x": changed}, query.mask, query.index, query.rowwise)
    before, after = (predicted(model, q, support)[:, kept] for q in (query, other))
    if policy == "support":
        torch.testing.assert_close(before, after, rtol=1e-12, atol=1e-12)
    else:
        assert not torch.allclose(before, after, rtol=1e-3)


def trained() -> nn.Sequential:
    """A network whose running statistics come from passes over several batches."""
    torch_default = noise(3, 1, 3, 3)
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(108, 2))
    net = net.double()
    with torch.no_grad():
        net[0].weight.copy_(torch_default)
    for seed in range(4):
        net(1 + 2 * noise(5, 1, SIDE, SIDE, seed=seed))
    return net


def test_frozen_is_torchs_layer_in_eval_mode():
    net = trained()
    model = bm.Model(net, likelihoods.Categorical(2), batch_norm="frozen")
    support, query = sets()
    found = predicted(model, query, support)
    reference = net.eval()
    for i in range(3):
        torch.testing.assert_close(found[i], reference(query.tensors["x"][i]).detach())
    assert not torch.allclose(found[0], net.train()(query.tensors["x"][0]))


def test_frozen_on_holds_what_the_whole_network_has_there():
    """Layer after layer: the second layer's statistics follow from the first's frozen ones."""
    model, (support, query) = conv("transductive"), sets()
    rows = query.tensors["x"].flatten(0, 1)
    frozen = model.frozen_on(rows)
    assert frozen.batch_norm == "frozen" and model.batch_norm == "transductive"
    at_once = through_torch(model, rows).reshape(3, 6, 2)
    torch.testing.assert_close(predicted(frozen, query, support), at_once)
    # Held from now on: a row alone is what it was among all.
    torch.testing.assert_close(frozen.module(rows[:1]).detach(), at_once[0, :1])
    assert not torch.allclose(model.module(rows[:2]), frozen.module(rows[:2]))
    with pytest.raises(bm.InputError, match="single row has no variance"):
        model.module(rows[:1])


# Kinds of layers


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        (nn.BatchNorm1d, (6, 4)),
        (nn.BatchNorm1d, (6, 4, 5)),
        (nn.BatchNorm2d, (6, 4, 3, 5)),
        (nn.BatchNorm3d, (6, 4, 2, 3, 2)),
    ],
)
def test_every_layer_of_torch_has_its_place_taken(kind, shape, affine):
    layer = kind(4, affine=affine, eps=0.01).double()
    if affine:
        with torch.no_grad():
            layer.weight.copy_(noise(4, seed=1))
            layer.bias.copy_(noise(4, seed=2))
    x = 3 + noise(*shape)
    module = with_policy(nn.Sequential(layer), "transductive")
    assert len(list(module.parameters())) == 2 * affine
    torch.testing.assert_close(module(x), layer(x))
    assert int(layer.num_batches_tracked) == 1  # of that call alone: the copy leaves it in peace
    frozen = with_policy(nn.Sequential(layer), "frozen")
    torch.testing.assert_close(frozen(x), layer.eval()(x))
    held = frozen_on(module, 2 * x)
    torch.testing.assert_close(held(2 * x), module(2 * x))
    assert not torch.allclose(held(x), module(x))
    # Half of the rows count.
    counted = torch.tensor([1.0, 1, 1, 0, 0, 0], dtype=F64)
    half = torch.func.functional_call(module, {"0.counted": counted}, (x,))
    torch.testing.assert_close(half[:3], module(x[:3]))


def test_a_lone_layer_is_a_module_too():
    x = noise(6, 4)
    torch.testing.assert_close(
        with_policy(nn.BatchNorm1d(4).double(), "support")(x), nn.BatchNorm1d(4).double()(x)
    )


def test_layers_deep_inside_and_shared_ones_are_found():
    norm = nn.BatchNorm1d(3)
    inner = nn.Sequential(nn.Linear(2, 3), norm)
    net = nn.ModuleDict({"a": inner, "b": nn.Sequential(nn.Linear(3, 3), norm)})
    changed = with_policy(net, "support")
    assert not [m for m in changed.modules() if isinstance(m, nn.BatchNorm1d)]
    assert isinstance(net["a"][1], nn.BatchNorm1d)
    assert changed["a"][1].weight is changed["b"][1].weight


# Derivatives, and all tasks at once


def dense(policy: str) -> bm.Model:
    model = bm.models.dense(2, (1, 4, 4), widths=(4, 3), batch_norm="transductive").double()
    x = 0.5 + 0.3 * noise(30, 1, 4, 4, seed=9)
    return model.frozen_on(x) if policy == "frozen" else bm.Model(
        model.module, model.likelihood, batch_norm=policy
    )  # fmt: skip


@cache
def pair() -> tuple[bm.TaskFamily, bm.TaskFamily]:
    stream = bm.FewShot(bank(4, 6, 4), ways=2, shots=2, queries=3, dtype=F64)
    return stream.family(3, generator())


MAML = methods.maml(steps=2, lr=0.3, support=None)


def start(model: bm.Model) -> bm.Prior:
    return bm.Prior("point").at(mean=model.start, variance=0.0)


@pytest.mark.parametrize("policy", ["support", "transductive", "frozen"])
def test_the_gradient_in_theta0_is_the_finite_difference(policy):
    model, (support, query) = dense(policy), pair()

    def value(theta0: Tensor) -> bm.MetaGradient:
        prior = bm.Prior("point").at(mean=theta0, variance=0.0)
        return bm.meta_gradient(model, prior, support, MAML, query=query)

    theta0, step = model.start, 1e-6
    slope = value(theta0).theta0
    for seed in range(4):
        direction = noise(len(theta0), seed=seed)
        ends = [float(value(theta0 + s * step * direction).value) for s in (1, -1)]
        difference = (ends[0] - ends[1]) / (2 * step)
        assert difference == pytest.approx(float(slope @ direction), rel=1e-6, abs=1e-7)
    assert float(slope.norm()) > 0.1


def test_each_policy_has_a_meta_gradient_of_its_own():
    support, query = pair()
    found = []
    for policy in ("support", "transductive", "frozen"):
        model = dense(policy)
        found.append(bm.meta_gradient(model, start(model), support, MAML, query=query).theta0)
    assert not torch.allclose(found[0], found[1], rtol=1e-2)
    assert not torch.allclose(found[1], found[2], rtol=1e-2)


@INDUCTIVE
@pytest.mark.parametrize("method", [MAML, methods.imaml(steps=4, lr=0.3, support=None)])
def test_a_tasks_meta_gradient_does_not_depend_on_who_else_is_there(policy, method):
    model, (support, query) = dense(policy), pair()
    held = bm.Prior("isotropic", learn="mean").at(mean=model.start, variance=1.0)
    prior = start(model) if method is MAML else held
    whole = bm.meta_gradient(model, prior, support, method, query=query)
    for i, name in enumerate(support.names):
        some = support.subset([name]), query.subset([name])
        alone = bm.meta_gradient(model, prior, some[0], method, query=some[1])
        torch.testing.assert_close(whole.per_task[i], alone.per_task[0])


@INDUCTIVE
def test_all_tasks_at_once_are_a_loop_over_them(policy):
    model, (support, query) = conv(policy), sets()
    theta = model.start + 0.1 * noise(3, model.dim)
    seen = model.seen(query, support)
    together = model.energies(theta, seen)
    draws = model.energies(torch.stack([theta, theta + 0.1]), seen)
    for i in range(3):
        mine = model.seen(one(query, i), one(support, i))
        tensors = {k: v[0] for k, v in mine.tensors.items()}
        alone = model.energy(theta[i], model.shared, tensors, query.mask[i])
        torch.testing.assert_close(together[i], alone)
    torch.testing.assert_close(draws[0], together)
    parts = bm.Model(model.module, model.likelihood, batch_norm=policy, chunk_size=2)
    torch.testing.assert_close(parts.energies(theta, seen), together)


# Predictions of a fit


@cache
def fitted(policy: str) -> bm.Fit:
    support, query = pair()
    method = methods.maml(steps=2, lr=0.3, support=None, outer_steps=3, optimiser="adam")
    return bm.fit(dense(policy), support, query=query, method=method)


def test_a_fit_predicts_query_rows_with_the_supports_statistics():
    fit, (support, query) = fitted("support"), pair()
    theta = fit.posterior.mean[None]
    rows = fit.log_likelihood(theta, query)[0]
    for i in range(3):
        model = dense("support")
        model.load_state_dict(model.unflatten(theta[0, i]), strict=False)
        for row in range(6):
            logits = by_hand(model, support.tensors["x"][i], query.tensors["x"][i, row]).detach()
            wanted = logits.log_softmax(-1)[query.tensors["y"][i, row]]
            torch.testing.assert_close(rows[i, row], wanted)
    # One task alone, and a part of its query rows, are predicted as among all.
    alone = fit.log_likelihood(theta[:, 1:2], query.subset(["1"]))
    torch.testing.assert_close(alone[0, 0], rows[1])
    predicted = fit.predict(query, draws=3)
    assert predicted.draws.shape == (3, 3, 6)
    torch.testing.assert_close(predicted.log_density[0], rows)


def test_tasks_without_support_rows_cannot_be_predicted_by_them():
    fit, (_, query) = fitted("support"), pair()
    stranger = bm.TaskFamily(query.tensors, mask=query.mask, names=["0", "new", "2"])
    with pytest.raises(bm.InputError, match="'new' has no support rows.*adapt.*predict"):
        fit.predict(stranger)
    with pytest.raises(bm.InputError, match="'new' has no support rows"):
        fit.log_likelihood(fit.posterior.mean[None], stranger)
    # By statistics of whatever is predicted together there is nothing to miss.
    assert fitted("transductive").predict(stranger, draws=2).from_prior == ("new",)
    # Once adapted, a new task brings its support rows.
    support = bm.TaskFamily(pair()[0].tensors, mask=query.mask[:, :4], names=["a", "new", "b"])
    renamed = bm.TaskFamily(query.tensors, mask=query.mask, names=["a", "new", "b"])
    assert fit.adapt(support).predict(renamed, draws=2).from_prior == ()


# Refused


def ragged() -> bm.TaskFamily:
    x = [noise(rows, 1, 4, 4, seed=rows) for rows in (3, 5)]
    return bm.TaskFamily.from_tensors(x=x, y=[torch.arange(len(t)) % 2 for t in x])


@INDUCTIVE
def test_padding_does_not_count_as_data(policy):
    method = methods.maml(steps=1, support=0.5)
    with pytest.raises(bm.InputError, match="'norm1' is a batch norm.*differ in their number of"):
        bm.fit(dense(policy), ragged(), method=method)
    prior = bm.Prior("point").at(mean=dense("frozen").start, variance=0.0)
    found = bm.meta_gradient(dense("frozen"), prior, ragged(), method, generator=generator())
    assert bool(found.theta0.isfinite().all())


class Doubled(nn.BatchNorm1d):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    ("module", "policy", "words"),
    [
        (nn.Sequential(Doubled(2)), "support", "layer '0' is a Doubled with a forward of its own"),
        (nn.Sequential(nn.BatchNorm1d(2)), "batch", "batch_norm='batch': give one of support, tra"),
        (nn.Sequential(nn.Linear(2, 2)), "support", "no nn.BatchNorm layer: leave it out"),
        (nn.Sequential(nn.BatchNorm1d(2)), "frozen", "layer '0' has no running statistics"),
        (
            nn.Sequential(nn.BatchNorm1d(2, track_running_stats=False)),
            "frozen",
            "layer '0' has no running statistics",
        ),
        (with_policy(nn.Sequential(nn.BatchNorm1d(2)), "support"), "frozen", "use .*frozen_on"),
    ],
)
def test_a_policy_that_cannot_be(module, policy, words):
    with pytest.raises(bm.InputError, match=words):
        bm.Model(module, likelihoods.Categorical(2), batch_norm=policy)
