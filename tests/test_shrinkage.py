"""Which layer varies: the family, posteriors by weighted draws, and what the headline says."""

from __future__ import annotations

import math

import pandas as pd
import pytest
import torch

import bayesmeta as bm
from studies.shrinkage import detection, headline
from studies.shrinkage.measure import FORMS, OWN, TRUTH, exactly
from studies.shrinkage.problem import (
    CASES,
    CHANGE,
    LAYERS,
    NOISE,
    Problem,
    by_layer,
    layer_of_weights,
    network,
)

F64 = torch.float64


@pytest.mark.parametrize("known", [True, False])
def test_the_network_written_out_is_the_module(known):
    problem = Problem("middle", 1)
    family = problem.family(3, 5, 0)
    model = problem.model(family, known=known)
    assert torch.equal(model.start, problem.theta0) == known
    away = torch.randn(3, model.dim, generator=torch.Generator().manual_seed(0), dtype=F64)
    theta = model.start + 0.2 * away
    found = model.predict(theta[None], family.batch())[0]
    torch.testing.assert_close(found, network(theta, family.tensors["x"]))


def test_layers_are_those_of_the_modules_parameters():
    problem = Problem("first", 0)
    model = problem.model(problem.family(1, 2, 0), known=True)
    assert layer_of_weights().tolist() == (model.blocks // 2).tolist()
    assert by_layer(layer_of_weights().to(F64)) == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("case", CASES)
def test_only_the_named_layer_varies(case):
    problem = Problem(case, 2)
    wanted = [CHANGE if layer == case else 0.0 for layer in LAYERS]
    assert by_layer(problem.sd) == pytest.approx(wanted)
    family = problem.family(200, 20, 0)
    common = network(problem.theta0.expand(200, -1), family.tensors["x"])
    apart = float((family.tensors["y"] - common).std())
    assert (apart < 1.1 * NOISE) == (case == "none")
    held = problem.true_prior(problem.model(family, known=True).blocks)()
    assert by_layer(held.sd()) == pytest.approx(wanted, abs=1e-4)


def test_weighted_draws_are_the_exact_posterior_of_a_linear_model():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 5, 1, generator=generator, dtype=F64)
    y = 0.7 * x[..., 0] + 0.5 * torch.randn(4, 5, generator=generator, dtype=F64)
    family = bm.TaskFamily.from_tensors(x=x, y=y)
    support, query = family.split(3, torch.Generator().manual_seed(0))
    prior = bm.Prior("diagonal", learn="none").at(
        mean=torch.tensor([0.5, 0.0], dtype=F64), variance=torch.tensor([0.3, 0.2], dtype=F64)
    )
    module = torch.nn.Linear(1, 1).double()
    model = bm.Model(module, bm.likelihoods.Gaussian(scale=0.5))
    fit = bm.fit(model, family, prior=prior)
    found = exactly(fit, support, query, 40_000, torch.Generator().manual_seed(1))

    def design(part):
        rows = part.tensors["x"]
        return torch.cat([rows, torch.ones_like(rows)], -1)

    start, spread = prior().mean, prior().covariance()
    one, two = design(support), design(query)
    precision = torch.linalg.inv(spread) + one.mT @ one / 0.25
    covariance = torch.linalg.inv(precision)
    pull = (
        torch.linalg.solve(spread, start)
        + (one.mT @ support.tensors["y"][..., None] / 0.25)[..., 0]
    )
    mean = (covariance @ pull[..., None])[..., 0]
    centre = (two @ mean[..., None])[..., 0]
    variance = 0.25 + (two @ covariance * two).sum(-1)
    exact = torch.distributions.Normal(centre, variance.sqrt()).log_prob(query.tensors["y"])
    torch.testing.assert_close(found.score, exact.mean(-1), atol=0.01, rtol=0)
    sd = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    torch.testing.assert_close(found.sd, sd, atol=0.01, rtol=0)
    assert not torch.allclose(found.sd, spread.diagonal().sqrt(), atol=0.03)
    assert bool((found.effective > 1000).all() and (found.effective < 40_000).all())


def made_up(missed=()):
    """A table in which every form has sd 0.2 in the layer that varies and 0.05 elsewhere."""
    rows = []
    for case in CASES:
        for seed in range(2):
            for form in (*FORMS, TRUTH):
                common = {"case": case, "seed": seed, "form": form, "steps": 7}
                for layer in LAYERS:
                    found = 0.01 if (form, case, seed) in missed else 0.2
                    rows.append(
                        common
                        | {"panel": "layer", "layer": layer, "true_sd": CHANGE * (layer == case)}
                        | {"prior_sd": found if layer == case else 0.05}
                    )
                behind = math.nan if case == "none" else 0.1 * [*FORMS, TRUTH].index(form)
                rows.append(common | {"panel": "score", "behind": behind})
    return pd.DataFrame(rows)


def test_detection_is_the_layers_sd_over_the_largest_other():
    found = detection(made_up(missed=[("block", "middle", 1)]))
    assert set(found.form) == {"block", "diagonal", "low-rank", OWN}
    wrong = found.loc[found.ratio.idxmin()]
    assert (wrong.form, wrong.case, wrong.seed) == ("block", "middle", 1)
    assert wrong.ratio == pytest.approx(0.2)
    assert sorted(found.ratio)[1:] == pytest.approx([4.0] * 23)


def test_the_headline_says_what_the_table_says():
    said = headline(made_up(missed=[("block", "middle", 1), (OWN, "last", 0), (OWN, "last", 1)]))
    assert "After 7 steps" in said
    assert "differ in 5 of 6 fits from the true network, and in 4 of 6 from another" in said
    assert "0.01 to 0.20 where 0.3 is true" in said
    assert "by 0.10 nats a point, the isotropic prior by 0.00." in said
    assert "it misses the middle layer in 1 of 2 fits" in said
    assert "shows 7 steps to be enough" in said
    assert "it misses no layer" in headline(made_up())
