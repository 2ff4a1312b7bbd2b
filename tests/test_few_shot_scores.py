"""Scores of few-shot tasks, against a loop in plain torch that shares nothing with the library."""

import pytest
import torch
import torch.nn.functional as F
from small_images import bank
from torch import nn

import bayesmeta as bm
from bayesmeta.diagnostics import few_shot
from bayesmeta.results import InputError

WAYS, SHOTS, QUERIES, LR, STEPS = 3, 2, 3, 0.3, 2


def network():
    torch_state = torch.random.get_rng_state()
    torch.manual_seed(3)
    module = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 6, bias=False), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, WAYS)
    )
    torch.random.set_rng_state(torch_state)
    return module


def streams(ways=WAYS):
    tasks = bm.FewShot(bank(12, 6, noise=0.5), ways, SHOTS, QUERIES, dtype=torch.float64)
    return tasks.split(6, 6)


def fitted(method=None, *, batch_norm="transductive"):
    train, _ = streams()
    method = method or bm.methods.maml(
        steps=STEPS, lr=LR, support=None, batch=2, outer_steps=3, outer_lr=0.05
    )
    model = bm.Model(network(), bm.likelihoods.Categorical(WAYS), batch_norm=batch_norm)
    return bm.fit(model, train, method=method)


def logits(w, x, moments=None):
    """The network by hand; also the mean and variance that normalised."""
    linear, scale, shift, weight, bias = w
    h = x.flatten(1) @ linear.T
    mean, variance = (h.mean(0), h.var(0, correction=0)) if moments is None else moments
    h = (h - mean) / (variance + 1e-5).sqrt() * scale + shift
    return h.relu() @ weight.T + bias, (mean, variance)


def weights_of(fit):
    shapes = [(6, 64), (6,), (6,), (WAYS, 6), (WAYS,)]
    sizes = [torch.Size(shape).numel() for shape in shapes]
    parts = fit.prior.mean.split(sizes)
    return [part.reshape(shape).clone() for part, shape in zip(parts, shapes, strict=True)]


def by_hand(fit, support, query):
    """Accuracy, nats and probabilities of every task, inductive and transductive."""
    found = {"inductive": [], "transductive": []}
    for x, y, new in zip(
        support.tensors["x"], support.tensors["y"], query.tensors["x"], strict=True
    ):
        w = [part.requires_grad_() for part in weights_of(fit)]
        for _ in range(STEPS):
            loss = F.cross_entropy(logits(w, x)[0], y)
            slopes = torch.autograd.grad(loss, w)
            w = [(p - LR * g).detach().requires_grad_() for p, g in zip(w, slopes, strict=True)]
        moments = logits(w, x)[1]
        found["inductive"].append(logits(w, new, moments)[0].log_softmax(-1).detach())
        found["transductive"].append(logits(w, new)[0].log_softmax(-1).detach())
    return {kind: torch.stack(values) for kind, values in found.items()}


@pytest.mark.parametrize("batch_norm", ["transductive", "support"])
def test_scores_are_those_of_a_plain_loop(batch_norm):
    fit = fitted(batch_norm=batch_norm)
    _, test = streams()
    scores = bm.diagnostics.few_shot_scores(fit, test, count=10, seed=5)
    support, query = test.draw(10, torch.Generator().manual_seed(5))
    labels = query.tensors["y"]
    for kind, log_p in by_hand(fit, support, query).items():
        own = getattr(scores, kind)
        nll = -log_p.gather(-1, labels[..., None])[..., 0].mean(1)
        torch.testing.assert_close(own.nll, nll, rtol=1e-10, atol=1e-10)
        right = (log_p.argmax(-1) == labels).double().mean(1)
        torch.testing.assert_close(own.accuracy, right)
        confidence, named = log_p.exp().flatten(0, 1).max(1)
        hit = (named == labels.flatten()).double()
        bins = (confidence * 15).long().clamp(max=14)
        gap = sum(abs(float((hit - confidence)[bins == b].sum())) for b in range(15))
        assert own.calibration == pytest.approx(gap / len(hit), abs=1e-12)
    assert not torch.equal(scores.inductive.nll, scores.transductive.nll)


def test_the_interval_is_that_of_a_mean_over_tasks():
    scores = few_shot.Scores(torch.tensor([0.0, 1.0, 1.0, 1.0]).double(), torch.zeros(4), 0.0)
    mean, low, high = scores.interval
    assert mean == 0.75
    assert high - mean == pytest.approx(1.959964 * 0.5 / 2, rel=1e-6)
    assert mean - low == pytest.approx(high - mean)


def test_probabilities_are_averaged_over_draws_inside_the_logarithm():
    _, test = streams()
    model = bm.Model(network(), bm.likelihoods.Categorical(WAYS), batch_norm="transductive")
    model = model.double()
    _, query = test.draw(2, torch.Generator().manual_seed(0))
    theta = model.start + torch.randn(
        5, 2, model.dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    with torch.no_grad():
        found = few_shot._log_probabilities(model, theta, query)
        wanted = torch.stack([model.predict(one, query).softmax(-1) for one in theta]).mean(0)
    torch.testing.assert_close(found, wanted.log())


def test_a_gaussian_posterior_is_scored_by_draws():
    method = bm.methods.variational_imaml(
        covariance="diagonal", lam=2.0, steps=3, lr=0.1, batch=2, outer_steps=2
    )
    fit = fitted(method)
    _, test = streams()
    one, many, again = (
        bm.diagnostics.few_shot_scores(fit, test, count=4, draws=n) for n in (1, 64, 64)
    )
    assert torch.equal(many.inductive.nll, again.inductive.nll)
    assert not torch.equal(one.inductive.nll, many.inductive.nll)


def test_more_tasks_than_fit_at_a_time_are_all_scored(monkeypatch):
    fit = fitted()
    _, test = streams()
    whole = bm.diagnostics.few_shot_scores(fit, test, count=7, seed=2)
    assert whole.tasks == len(whole.inductive.accuracy) == len(whole.stationarity) == 7
    monkeypatch.setattr(few_shot, "AT_A_TIME", 3)
    parts = bm.diagnostics.few_shot_scores(fit, test, count=7, seed=2)
    assert len(parts.transductive.nll) == 7
    assert "7 tasks" in repr(parts)
    assert "inductive:" in repr(parts)


def test_a_model_without_batch_normalisation_has_one_score():
    train, test = streams()
    torch_state = torch.random.get_rng_state()
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, WAYS))
    torch.random.set_rng_state(torch_state)
    model = bm.Model(module, bm.likelihoods.Categorical(WAYS))
    method = bm.methods.maml(steps=1, lr=0.1, support=None, batch=2, outer_steps=1)
    scores = bm.diagnostics.few_shot_scores(bm.fit(model, train, method=method), test, count=3)
    assert torch.equal(scores.inductive.nll, scores.transductive.nll)


def test_what_cannot_be_scored_is_refused():
    fit = fitted()
    train, test = streams()
    with pytest.raises(InputError, match="also trained on"):
        bm.diagnostics.few_shot_scores(fit, train, count=2)
    with pytest.raises(InputError, match="3 classes apart, the tasks have 4 ways"):
        bm.diagnostics.few_shot_scores(fit, test.like(ways=4), count=2)
    other = test.over(bank(6, 6, 10, kind="other"))
    with pytest.raises(InputError, match=r"images are \(1, 10, 10\)"):
        bm.diagnostics.few_shot_scores(fit, other, count=2)
    with pytest.raises(InputError, match="free Q_i are not adapted"):
        bm.diagnostics.few_shot_scores(fit, test, count=2, method=bm.methods.joint())


def test_a_seed_is_the_same_tasks_for_every_method_and_number_of_draws(monkeypatch):
    _, test = streams()
    seen = []
    draw = bm.FewShot.draw

    def spied(self, tasks, generator):
        support, query = draw(self, tasks, generator)
        seen[-1].append(query.tensors["x"])
        return support, query

    gaussian = bm.methods.variational_imaml(
        covariance="diagonal", lam=2.0, steps=2, lr=0.1, batch=2, outer_steps=1
    )
    fits = [fitted(), fitted(gaussian)]
    monkeypatch.setattr(bm.FewShot, "draw", spied)
    monkeypatch.setattr(few_shot, "AT_A_TIME", 3)
    for fit, draws in ((fits[0], 16), (fits[1], 16), (fits[1], 2)):
        seen.append([])
        bm.diagnostics.few_shot_scores(fit, test, count=8, seed=3, draws=draws)
    first, second, third = (torch.cat(parts[-3:]) for parts in seen)
    assert torch.equal(first, second)
    assert torch.equal(first, third)


def test_a_random_algorithm_is_scored_by_as_many_runs_as_are_asked_for():
    sgd = bm.methods.GradientDescent(0.3, 2, rows=2)
    method = bm.methods.stochastic(algorithm=sgd, draws=1, support=None, batch=2, outer_steps=2)
    fit = fitted(method)
    _, test = streams()
    few, many = (
        bm.diagnostics.few_shot_scores(fit, test, count=24, draws=n).inductive.nll.mean()
        for n in (1, 64)
    )
    assert many < few - 0.01  # the mean of many is inside the logarithm


def test_predictions_of_new_images_are_those_that_are_scored():
    """Five labelled images, then probabilities: inductive ones do not see the other images."""
    fit = fitted()
    support, query = streams()[1].draw(2, torch.Generator().manual_seed(4))
    wanted = by_hand(fit, support, query)
    names = ["mine", "yours"]
    labelled = bm.TaskFamily.from_tensors(names=names, **support.tensors)
    new = bm.TaskFamily.from_tensors(names=names, x=query.tensors["x"])
    mine = fit.adapt(labelled)
    for kind in wanted:
        found = mine.predict(new, draws=3, inductive=kind == "inductive")
        torch.testing.assert_close(found.probabilities, wanted[kind].exp())
        assert not found.from_prior
    alone = bm.TaskFamily.from_tensors(names=names, x=query.tensors["x"][:, :1])
    one = mine.predict(alone, draws=3, inductive=True).probabilities
    torch.testing.assert_close(one, wanted["inductive"].exp()[:, :1])
    with pytest.raises(InputError, match=r"x is uint8.*float\(\) / 255"):
        fit.adapt(bm.TaskFamily.from_tensors(x=torch.zeros(1, 2, 1, 8, 8).byte(), y=[[0, 1]]))
    assert "no evidence" in repr(mine)
    strangers = mine.predict(bm.TaskFamily.from_tensors(x=query.tensors["x"]), draws=3)
    assert "predicted from the prior" in repr(strangers)
    with pytest.raises(InputError, match="no support rows"):
        mine.predict(bm.TaskFamily.from_tensors(x=query.tensors["x"]), inductive=True)


class Centred(nn.Module):
    """Takes away the mean of the rows at hand, and is no layer that anybody would know."""

    def forward(self, x):
        return x - x.mean(0)


def test_a_score_is_inductive_or_refused():
    """Whatever the module does: an image's probabilities may not change with its neighbours."""
    train, test = streams()
    method = bm.methods.maml(support=None, batch=2, outer_steps=1)
    norms = {
        "support": nn.BatchNorm1d(64),
        "transductive": nn.BatchNorm1d(64, track_running_stats=False),
        None: Centred(),
    }
    for policy, layer in norms.items():
        module = nn.Sequential(nn.Flatten(), layer, nn.Linear(64, WAYS))
        model = bm.Model(module, bm.likelihoods.Categorical(WAYS), batch_norm=policy)
        fit = bm.fit(model, train, method=method)
        if policy is not None:
            assert bm.diagnostics.few_shot_scores(fit, test, count=2).tasks == 2
            continue
        with pytest.raises(InputError, match="so it has no inductive score"):
            bm.diagnostics.few_shot_scores(fit, test, count=2)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"count": 1}, "count=1: give a whole number, 2 or more"),
        ({"count": 2.5}, r"count=2\.5"),
        ({"draws": 0}, "draws=0"),
        ({"seed": 2**70}, "seed="),
        ({"method": "maml"}, "method is a str: give a Method"),
        ({"tasks": "omniglot"}, "tasks is a str: give a FewShot"),
    ],
)
def test_options_that_mean_nothing(options, said):
    given = {"tasks": streams()[1], "count": 2} | options
    with pytest.raises(InputError, match=said):
        bm.diagnostics.few_shot_scores(fitted(), **given)


def test_out_of_memory_names_the_tasks_that_fit(monkeypatch):
    honest = few_shot._some_scored

    def scored(*arguments):
        if len(arguments[-1]) > 2:
            raise torch.OutOfMemoryError
        return honest(*arguments)

    monkeypatch.setattr(few_shot, "_some_scored", scored)
    with pytest.raises(InputError, match=r"out of memory with 8 tasks at a time; 2 fit"):
        bm.diagnostics.few_shot_scores(fitted(), streams()[1], count=8)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"filters": 0}, "filters=0"),
        ({"shape": (1, 16)}, "channel, height, width"),
        ({"chunk_size": 0}, "chunk_size=0: give a whole number, 1 or more"),
        ({"chunk_size": "3"}, "chunk_size='3'"),
        ({"ways": 1}, "ways=1"),
    ],
)
def test_sizes_of_a_network_that_cannot_be(options, said):
    with pytest.raises(InputError, match=said):
        bm.models.conv4(**{"ways": 3} | options)
    with pytest.raises(InputError, match="widths=-2"):
        bm.models.dense(3, widths=(-2,))


def test_a_model_of_other_ways_is_refused_before_it_is_trained():
    model = bm.models.conv4(WAYS + 1, (1, 8, 8), filters=2)
    with pytest.raises(InputError, match="tells 4 classes apart, the tasks have 3 ways"):
        bm.fit(model, streams()[0], method=bm.methods.maml(support=None))
