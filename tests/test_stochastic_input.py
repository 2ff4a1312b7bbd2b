"""Models, tables and folders that do not go with minibatches: a sentence, never a silent number."""

from __future__ import annotations

import json
import math

import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from safetensors.torch import load_file, save_file
from seals import resealed
from torch import nn

import bayesmeta as bm
from bayesmeta import methods as m

F64 = torch.float64
PLAIN = m.Validation(None)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def linear(tasks=4, rows=8):
    family, _ = bm.families.linear_gaussian(tasks=tasks, rows=rows, generator=seeded())
    return family, bm.Model(nn.Linear(1, 1), bm.likelihoods.Gaussian())


def test_an_energy_that_is_no_sum_over_rows_takes_no_minibatches():
    family = bm.TaskFamily.from_tensors(y=torch.randn(3, 6, generator=seeded(), dtype=F64))

    def ridge(theta, y, mask):
        return (0.5 * (y - theta[0]).square() * mask).sum() + 2.0 * theta.square().sum()

    def plain(theta, y, mask):
        return (0.5 * (y - theta[0]).square() * mask).sum()

    prior = bm.Prior("point").at(mean=torch.zeros(1, dtype=F64), variance=0.0)
    method = m.stochastic(support=None, draws=2)
    with pytest.raises(bm.InputError, match="no sum over rows"):
        bm.meta_gradient(bm.Model.from_energy(ridge, 1), prior, family, method, generator=seeded())
    bm.meta_gradient(bm.Model.from_energy(plain, 1), prior, family, method, generator=seeded())


def test_a_pyro_model_with_data_of_the_group_takes_no_minibatches():
    def model(y, w):
        level = pyro.sample("level", dist.Normal(0.0, 1.0))
        pyro.sample("group", dist.Normal(level, 0.25), obs=w)
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(level, 1.0), obs=y)

    tensors = {"y": torch.randn(3, 6, generator=seeded()), "w": torch.ones(3)}
    family = bm.TaskFamily.from_tensors(**tensors)
    with pytest.raises(bm.InputError, match="no sum over rows"):
        bm.fit(bm.Model.from_pyro(model), family, method=m.stochastic(support=None))


def test_a_module_that_cannot_do_with_one_row_is_named():
    family, _ = linear()
    norm, likelihood = nn.BatchNorm1d(1), bm.likelihoods.Gaussian()
    module = nn.Sequential(norm, nn.Linear(1, 1))
    model = bm.Model(module, likelihood, adapt="1", batch_norm="transductive")
    with pytest.raises(bm.InputError, match="cannot be applied to a minibatch of 1 rows"):
        bm.fit(model, family, method=m.stochastic(rows=1, support=None))


@pytest.mark.parametrize("method", [m.maml, m.stochastic])
@pytest.mark.parametrize(("support", "scored"), [(0.5, 5), (3, 7), (None, 10)])
def test_evidence_of_query_rows_changes_units_with_those_rows_only(method, support, scored):
    """y in tenths is y with ten times the scale: each row that M scores costs log 10 nats."""
    g = seeded()
    frame = pd.DataFrame({
        "task": [f"t{i // 10}" for i in range(60)],
        "x": torch.randn(60, generator=g).tolist(),
        "y": torch.randn(60, generator=g).tolist(),
    })  # fmt: skip
    fits = []
    for scale in (1.0, 10.0):
        table = frame.assign(y=frame["y"] * scale)
        family = bm.TaskFamily.from_dataframe(table, task="task", x=["x"], y="y")
        model = bm.models.mlp((3,), family, bm.likelihoods.Gaussian())
        fits.append(bm.fit(model, family, method=method(support=support, outer_steps=2)))
    moved = fits[0].log_evidence - fits[1].log_evidence
    assert moved == pytest.approx(6 * scored * math.log(10), rel=1e-6)
    again = [fit.adapt(fit.family).log_evidence for fit in fits]
    assert again[0] - again[1] == pytest.approx(moved, rel=1e-6)


def test_tasks_that_a_minibatch_holds_whole_are_named_as_not_certain():
    family, model = linear()
    fit = bm.fit(model, family, method=m.stochastic(rows=4, support=None, outer_steps=1, samples=9))
    assert not any("no certainty" in note for note in fit.notes)
    short, _ = bm.families.linear_gaussian(tasks=2, rows=(3, 6), generator=seeded(3))
    found = fit.adapt(short)
    same = (found.posterior.sd() == 0).all(-1)
    assert same.equal(short.rows <= 4) and same.any()
    assert any(f"All runs of {int(same.sum())} of 2 tasks" in note for note in found.notes)


def test_another_algorithm_with_dropout_drops_units():
    family, _ = linear()
    net = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 1)).eval()
    model = bm.Model(net, bm.likelihoods.Gaussian())
    fit = bm.fit(model, family, method=m.maml(outer_steps=1, support=None))
    noisy = m.stochastic(algorithm=m.Adam(0.05, 4, dropout=True), support=None, samples=6)
    assert (fit.adapt(family, method=noisy).posterior.sd() > 0).any(-1).all()
    without = bm.fit(linear()[1], family, method=m.maml(outer_steps=1, support=None))
    with pytest.raises(bm.InputError, match="the module has no nn.Dropout"):
        without.adapt(family, method=noisy)


def test_steps_that_differ_when_run_again_give_no_gradient_at_all():
    class Remembers:
        steps, tolerance, differentiable, rows = 4, 0.0, True, 2

        def init(self, problem, theta):
            self.velocity = torch.zeros_like(theta)
            return ()

        def step(self, problem, theta, gradient, state):
            self.velocity = 0.9 * self.velocity + gradient
            return theta - 0.01 * self.velocity, state

    family, model = linear()
    prior = bm.Prior("point").at(mean=model.start, variance=0.0)
    found = {}
    for checkpoint in (None, 2):
        rule = m.Unrolled(checkpoint)
        method = m.Method(m.Algorithmic(), Remembers(), rule, PLAIN)
        found[checkpoint] = bm.meta_gradient(model, prior, family, method, generator=seeded())
    assert found[None].theta0.isfinite().all() and found[2].theta0.isnan().all()
    assert {flag.task for flag in found[2].report.flagged()} == set(family.names)


def test_an_estimator_all_of_whose_paths_break_is_no_winner():
    family, model = linear()
    prior = bm.Prior("point").at(mean=model.start, variance=0.0)

    def way(lr, steps):
        return m.stochastic(algorithm=m.GradientDescent(lr, steps, rows=2), support=None)

    ways = {"calm": way(0.01, 3), "wild": way(1e3, 150)}
    reference = {"draws": torch.zeros(2)}
    table = bm.diagnostics.compare_estimators(
        model, prior, family, ways, generator=seeded(), repeats=4, reference=reference
    ).frame()
    wild = table.loc["wild"]
    assert wild["broken"] == 1 and math.isnan(wild["precision_per_second"])
    with pytest.raises(bm.InputError, match="every path of the reference broke"):
        bm.diagnostics.compare_estimators(
            model, prior, family, {"wild": ways["wild"]}, generator=seeded(), repeats=4
        )


@pytest.mark.parametrize("change", ["weights", "tasks", "evidence", "whole numbers"])
def test_posteriors_of_another_shape_are_not_loaded(change, tmp_path):
    family, model = linear()
    fit = bm.fit(model, family, method=m.stochastic(support=None, outer_steps=1, samples=6))
    path = fit.save(tmp_path / "run") / "posterior.safetensors"
    tensors = load_file(path)
    if change == "weights":
        tensors["draws"] = tensors["draws"][..., :1].contiguous()
    elif change == "tasks":
        tensors["draws"] = tensors["draws"].repeat(1, 2, 1)
    elif change == "evidence":
        tensors["task_evidence"] = tensors["task_evidence"][:2].contiguous()
    else:
        tensors["draws"] = tensors["draws"].long()
    save_file(tensors, path)
    with pytest.raises(bm.InputError, match="damaged, or of another run"):
        bm.load(tmp_path / "run", model=model)
    resealed(tmp_path / "run")  # as somebody does who means to change it
    with pytest.raises(bm.InputError, match="not those of its 4 tasks with 2 weights"):
        bm.load(tmp_path / "run", model=model)


def test_learned_steps_survive_adaptation_by_another_algorithm(tmp_path):
    family, model = linear()
    fit = bm.fit(model, family, method=m.maml(learn_lr=True, outer_steps=2, support=None))
    other = fit.adapt(family, algorithm=m.Adam(0.01, 3))
    other.save(tmp_path / "run")
    again = bm.load(tmp_path / "run", model=model)
    assert again.posterior.mean.equal(other.posterior.mean)


def test_query_sets_leave_all_rows_to_the_minibatches():
    family, model = linear(rows=8)
    query, _ = bm.families.linear_gaussian(tasks=4, rows=5, generator=seeded(2))
    method = m.stochastic(rows=5, outer_steps=1, samples=6)
    assert (bm.fit(model, family, method=method, query=query).posterior.sd() > 0).all()
    with pytest.raises(bm.InputError, match="at most 4"):
        bm.fit(model, family, method=method)


def test_weights_of_a_mixture_may_be_a_tensor_and_are_written():
    mixture = m.Mixture((m.Adam(), m.SGLD()), weights=torch.tensor([0.25, 0.75]))
    assert mixture.weights == (0.25, 0.75)
    written = json.dumps(m.stochastic(algorithm=mixture).to_json())
    assert m.Method.from_json(json.loads(written)).inner == mixture


@pytest.mark.parametrize("rows", ["2", 2.0, 0, -1])
def test_rows_of_ones_own_algorithm_are_checked(rows):
    class Own:
        steps, tolerance, differentiable = 1, 0.0, True

        def init(self, problem, theta):
            return ()

        def step(self, problem, theta, gradient, state):
            return theta, state

    own = Own()
    own.rows = rows
    with pytest.raises(bm.InputError, match="give a whole number, at least 1"):
        m.Method(m.Algorithmic(), own, m.Unrolled(), PLAIN)


def test_a_categorical_prediction_without_responses_has_no_score():
    y = torch.randint(0, 3, (4, 9), generator=seeded())
    family = bm.TaskFamily.from_tensors(x=torch.randn(4, 9, 2, generator=seeded(1)), y=y)
    model = bm.Model(nn.Linear(2, 3), bm.likelihoods.Categorical(3))
    fit = bm.fit(model, family, method=m.stochastic(support=None, outer_steps=1, samples=5))
    new = bm.TaskFamily({"x": family.tensors["x"]}, mask=family.mask)
    assert fit.predict(new, draws=5).log_score().isnan().all()


@pytest.mark.parametrize("width", [2, 4, 5, 6])
def test_a_tensor_of_a_task_is_not_cut_where_it_is_as_long_as_a_part_of_the_rows(width):
    """Tasks of ten rows, five of them support, two of them a minibatch."""
    side = torch.arange(3 * width, dtype=F64).reshape(3, width)
    y = torch.ones(3, 10, dtype=F64) * side.mean(1, keepdim=True)
    family = bm.TaskFamily.from_tensors(y=y, side=side)

    def energy(theta, y, side, mask):
        return 0.5 * ((y - side.mean() - theta[0]).square() * mask).sum()

    support, query = family.split(5, seeded())
    for part in (support, query):
        assert torch.equal(part.tensors["side"], side) and part.rowwise == {"y"}
    prior = bm.Prior("point").at(mean=torch.zeros(1, dtype=F64), variance=0.0)
    model = bm.Model.from_energy(energy, 1)
    for method in (m.stochastic(support=5, draws=3), m.maml(support=5)):
        found = bm.meta_gradient(model, prior, family, method, generator=seeded())
        assert float(found.value) == 0.0 and float(found.theta0) == 0.0


@pytest.mark.parametrize(
    "make",
    [
        lambda: m.stochastic(anchored="no"),
        lambda: m.stochastic(replacement="no"),
        lambda: m.two_path(every_pair=1),
        lambda: m.Adam(dropout="no"),
    ],
)
def test_a_word_is_no_switch(make):
    with pytest.raises(bm.InputError, match="give True or False"):
        make()
