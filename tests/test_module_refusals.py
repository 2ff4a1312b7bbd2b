"""Modules that remember between calls, or are random, are refused before anything is fitted."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import bayesmeta as bm
from bayesmeta import likelihoods, methods
from bayesmeta.results import InputError


def lines(rows: tuple[int, ...] = (4, 4, 4, 4, 4, 4)) -> bm.TaskFamily:
    generator = torch.Generator().manual_seed(0)
    x = [torch.randn(n, 1, generator=generator).double() for n in rows]
    names = [f"task {chr(ord('a') + i)}" for i in range(len(rows))]
    y = [2 * v[:, 0] + i for i, v in enumerate(x)]
    return bm.TaskFamily.from_tensors(x=x, y=y, names=names)


def network(*middle: nn.Module) -> bm.Model:
    return bm.Model(
        nn.Sequential(nn.Linear(1, 2), *middle, nn.Linear(2, 1)), likelihoods.Gaussian()
    )


def everywhere(model: bm.Model, family: bm.TaskFamily) -> list[str]:
    """What a joint fit, an adapted fit and a meta-gradient say; empty where they go through."""
    prior = bm.Prior("isotropic").at(mean=model.start.double(), variance=1.0)
    said = []
    for call in (
        lambda: bm.fit(model, family, method=methods.joint(covariance="diagonal", steps=2)),
        lambda: bm.fit(model, family, method=methods.maml(support=None, outer_steps=2)),
        lambda: bm.meta_gradient(model, prior, family, methods.imaml(support=None, steps=2)),
    ):
        try:
            call()
            said.append("")
        except InputError as error:
            said.append(str(error))
    assert len(set(said)) == 1, said
    return [sentence for sentence in said[:1] if sentence]


MODULES = {
    "running statistics": (
        nn.BatchNorm1d(2),
        ["'1'", "BatchNorm1d", "every call", 'batch_norm="support"'],
    ),
    "running statistics of instances": (
        nn.InstanceNorm1d(2, track_running_stats=True),
        ["InstanceNorm1d", "shared by all tasks", "track_running_stats=False", ".eval()"],
    ),
    "dropout": (
        nn.Dropout(0.25),
        ["'1'", "p=0.25", "no function of the weights", "p=0", ".eval()"],
    ),
    "dropout for a self-normalising network": (nn.AlphaDropout(0.5), ["AlphaDropout", "p=0.5"]),
}


@pytest.mark.parametrize("case", MODULES)
def test_a_module_that_remembers_or_is_random_is_refused(case):
    module, words = MODULES[case]
    (sentence,) = everywhere(network(module), lines())
    for word in words:
        assert word in sentence


@pytest.mark.parametrize(
    "module",
    [
        nn.BatchNorm1d(2).eval(),
        nn.LayerNorm(2),
        nn.GroupNorm(1, 2),
        nn.Dropout(0.25).eval(),
        nn.Dropout(0.0),
    ],
)
def test_what_the_sentence_recommends_is_taken(module):
    assert everywhere(network(module), lines()) == []


@pytest.mark.parametrize("mode", [True, False])
def test_statistics_of_whatever_rows_there_are_need_a_policy(mode):
    """Without running statistics a layer takes those of the rows at hand, in eval mode too."""
    module = nn.BatchNorm1d(2, track_running_stats=False).train(mode)
    (sentence,) = everywhere(network(module), lines())
    assert "'1' is a BatchNorm1d without running statistics" in sentence
    for policy in ("support", "transductive"):
        assert policy in sentence
        said = bm.Model(network(module).module, likelihoods.Gaussian(), batch_norm=policy)
        assert everywhere(said, lines()) == []


def test_frozen_statistics_take_padded_rows():
    assert everywhere(network(nn.BatchNorm1d(2).eval()), lines((4, 3, 4))) == []


def test_weights_without_a_size_are_refused():
    with pytest.raises(InputError, match=r"weights '2\.weight' have no size yet"):
        network(nn.Identity(), nn.LazyLinear(2))
    with pytest.raises(InputError, match="have no size yet"):
        bm.Model(nn.LazyLinear(1), likelihoods.Gaussian())


def test_dropout_inside_a_layer_is_found_by_its_path():
    inner = nn.Sequential(nn.Tanh(), nn.Sequential(nn.Identity(), nn.Dropout(0.1)))
    (sentence,) = everywhere(network(inner), lines())
    assert "'1.1.1'" in sentence


def test_frozen_statistics_are_used_as_they_are_and_stay():
    norm = nn.BatchNorm1d(2).eval()
    norm.running_mean = torch.tensor([0.3, -0.2])
    norm.running_var = torch.tensor([4.0, 0.25])
    model, family = network(norm), lines()
    fit = bm.fit(model, family, method=methods.maml(support=None, outer_steps=2))
    kept = fit.model.module[1].running_mean
    torch.testing.assert_close(kept, torch.tensor([0.3, -0.2]).double())
    assert torch.equal(norm.running_mean, torch.tensor([0.3, -0.2]))
