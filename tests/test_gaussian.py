"""Gaussians and forms against torch.distributions and their definitions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import MultivariateNormal, kl_divergence

from bayesmeta.forms import Form
from bayesmeta.gaussian import Gaussian
from bayesmeta.prior import Prior
from bayesmeta.results import InputError

FORMS = ("isotropic", "block", "diagonal", "lowrank(2)", "full")


def random_gaussian(form: str, seed: int, dim: int = 4, tasks: int = 3) -> Gaussian:
    """A batch of Gaussians of a form, far from any special case."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    mean, name = normal(tasks, dim), Form.parse(form).name
    diagonal = 0.2 + normal(tasks, dim).square()
    if name == "isotropic":
        diagonal = diagonal[:, :1].expand(-1, dim)
    if name == "block":
        diagonal = diagonal[:, [0, 0, 1, 1]]
    if name == "lowrank":
        return Gaussian(mean, diagonal, normal(tasks, dim, 2))
    if name == "full":
        return Gaussian(mean, None, normal(tasks, dim, dim).tril(-1) + diagonal.diag_embed())
    return Gaussian(mean, diagonal)


def dense(gaussian: Gaussian) -> MultivariateNormal:
    return MultivariateNormal(gaussian.mean, gaussian.covariance())


@pytest.mark.parametrize("form", FORMS)
def test_kl_of_a_gaussian_with_itself_is_zero(form: str) -> None:
    gaussian = random_gaussian(form, 0)
    assert gaussian.kl(gaussian).abs().max() < 1e-12


def test_kl_of_two_standard_normals_is_zero_in_any_dimension() -> None:
    # A published re-implementation gives 25.5 here by counting tensors instead of elements.
    for dim in (1, 7, 26):
        standard = Gaussian(torch.zeros(dim), torch.ones(dim))
        assert float(standard.kl(standard)) == 0.0


@pytest.mark.parametrize("p", FORMS)
@pytest.mark.parametrize("q", FORMS)
def test_every_pair_agrees_with_torch(q: str, p: str) -> None:
    first, second = random_gaussian(q, 1), random_gaussian(p, 2)
    torch.testing.assert_close(first.kl(second), kl_divergence(dense(first), dense(second)))
    theta = first.sample(5, torch.Generator().manual_seed(3))
    torch.testing.assert_close(second.log_prob(theta), dense(second).log_prob(theta))
    precision = torch.linalg.inv(second.covariance())
    product = (precision @ theta[0].unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(second.precision_product(theta[0]), product)
    diagonal = precision.diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(second.precision_diagonal(), diagonal)
    torch.testing.assert_close(second.root() @ second.root().mT, second.covariance())


@pytest.mark.parametrize("form", FORMS)
def test_draws_have_the_covariance_within_four_standard_errors(form: str) -> None:
    gaussian = random_gaussian(form, 4)[0]
    n = 200_000
    draws = gaussian.sample(n, torch.Generator().manual_seed(5))
    covariance, variance = gaussian.covariance(), gaussian.variance()
    error = ((covariance**2 + variance[:, None] * variance) / n).sqrt()
    assert (((draws.T.cov() - covariance) / error).abs() < 4).all()
    assert (((draws.mean(0) - gaussian.mean) / (variance / n).sqrt()).abs() < 4).all()


@pytest.mark.parametrize("form", FORMS)
def test_forms_give_back_what_they_were_given(form: str) -> None:
    gaussian, blocks = random_gaussian(form, 6)[0], torch.tensor([0, 0, 1, 1])
    parsed = Form.parse(form)
    again = parsed.constrain(parsed.unconstrain(gaussian, blocks), blocks)
    torch.testing.assert_close(again.covariance(), gaussian.covariance())
    if parsed.name in ("lowrank", "full"):
        whole = Gaussian.from_covariance(gaussian.mean, gaussian.covariance())
        projected = parsed.constrain(parsed.unconstrain(whole, blocks), blocks)
        close = 1e-4 if parsed.name == "lowrank" else 1e-12
        torch.testing.assert_close(
            projected.covariance(), gaussian.covariance(), rtol=close, atol=close
        )


@pytest.mark.parametrize("form", FORMS)
def test_closed_form_prior_is_the_minimum_of_the_summed_kl(form: str) -> None:
    posteriors, blocks = random_gaussian("full", 7, tasks=9), torch.tensor([0, 0, 1, 1])
    start = Gaussian(torch.zeros(4).double(), torch.ones(4).double())
    prior = Prior(form).like(start, blocks).closed_form(posteriors)
    gradients = torch.autograd.grad(posteriors.kl(prior()).sum(), list(prior.free.values()))
    assert max(float(g.abs().max()) for g in gradients) < 1e-4
    shifted = prior.like(Gaussian(prior().mean + 0.1, prior().diagonal, prior().factor), blocks)
    assert (posteriors.kl(shifted()).sum() > posteriors.kl(prior()).sum() + 1e-3).item()


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), form=st.sampled_from(FORMS))
def test_kl_is_positive_and_unchanged_by_a_linear_map(seed: int, form: str) -> None:
    q, p = random_gaussian(form, seed), random_gaussian("full", seed + 1)
    assert (q.kl(p) > 0).all()
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(4, 4, generator=generator).double() + 3 * torch.eye(4)
    moved = q.linear(matrix, 1.0).kl(p.linear(matrix, 1.0))
    torch.testing.assert_close(moved, q.kl(p), rtol=1e-6, atol=1e-8)


def test_a_singular_covariance_keeps_its_zero_direction() -> None:
    covariance = torch.tensor([[1.0, 2.0], [2.0, 4.0]]).double()
    prior = Prior("full").at(mean=torch.zeros(2).double(), covariance=covariance)
    torch.testing.assert_close(prior().covariance().detach(), covariance)


@pytest.mark.parametrize("text", ["fulll", "lowrank", "lowrank(0)", "full(2)", ""])
def test_an_unknown_form_is_refused_with_the_list(text: str) -> None:
    with pytest.raises(InputError, match=r"isotropic.*lowrank\(r\).*full"):
        Prior(text)
