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
SHAPES = (*FORMS, "minus")  # no prior has the last one: a diagonal minus a low rank


def random_gaussian(form: str, seed: int, dim: int = 4, tasks: int = 3) -> Gaussian:
    """A batch of Gaussians of a form, far from any special case."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    mean, diagonal = normal(tasks, dim), 0.2 + normal(tasks, dim).square()
    if form == "minus":
        return Gaussian.from_precision_root(mean, 1 / diagonal, normal(tasks, dim, 2))
    name = Form.parse(form).name
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


@pytest.mark.parametrize("form", SHAPES)
def test_kl_of_a_gaussian_with_itself_is_zero(form: str) -> None:
    gaussian = random_gaussian(form, 0)
    assert gaussian.kl(gaussian).abs().max() < 1e-12


def test_kl_of_two_standard_normals_is_zero_in_any_dimension() -> None:
    # A published re-implementation gives 25.5 here by counting tensors instead of elements.
    for dim in (1, 7, 26):
        standard = Gaussian(torch.zeros(dim), torch.ones(dim))
        assert float(standard.kl(standard)) == 0.0


@pytest.mark.parametrize("p", SHAPES)
@pytest.mark.parametrize("q", SHAPES)
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
    torch.testing.assert_close(
        second.covariance_product(theta[0]),
        (second.covariance() @ theta[0].unsqueeze(-1)).squeeze(-1),
    )
    columns = second.precision_columns(second.covariance())
    torch.testing.assert_close(columns, torch.eye(4).double().expand(3, 4, 4))
    torch.testing.assert_close(second.log_det(), torch.logdet(second.covariance()))


@pytest.mark.parametrize("form", SHAPES)
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
@given(seed=st.integers(0, 10_000), form=st.sampled_from(SHAPES))
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


@pytest.mark.parametrize("form", SHAPES)
def test_derived_gaussians_are_those_of_the_dense_one(form: str) -> None:
    gaussian = random_gaussian(form, 10)
    covariance = gaussian.covariance()
    torch.testing.assert_close(gaussian.variance(), covariance.diagonal(dim1=-2, dim2=-1))
    scale = torch.tensor([0.5, 2.0, 3.0, 0.1]).double()
    spread = torch.diag(scale)
    torch.testing.assert_close(gaussian.rescaled(scale).covariance(), spread @ covariance @ spread)
    matrix = torch.randn(2, 4, generator=torch.Generator().manual_seed(11)).double()
    torch.testing.assert_close(gaussian.linear(matrix).covariance(), matrix @ covariance @ matrix.T)
    torch.testing.assert_close(gaussian[1].covariance(), covariance[1])
    torch.testing.assert_close(gaussian.map(torch.flipud).covariance(), covariance.flipud())
    size = gaussian.sd().unsqueeze(-1)
    torch.testing.assert_close(gaussian.correlation(), covariance / size / size.mT)


@pytest.mark.parametrize("form", SHAPES)
def test_a_draw_is_the_mean_plus_a_root_of_the_covariance_times_the_noise(form: str) -> None:
    gaussian = random_gaussian(form, 12)
    k = gaussian.noise_dim
    units = torch.eye(k).double().unsqueeze(1).expand(k, 3, k)
    root = (gaussian.transform(units) - gaussian.mean).movedim(0, -1)
    torch.testing.assert_close(root @ root.mT, gaussian.covariance())


@pytest.mark.parametrize("rank", [0, 1, 4, 9])
def test_a_precision_root_gives_the_inverse_of_that_precision(rank: int) -> None:
    generator = torch.Generator().manual_seed(13)
    mean = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    precision = torch.tensor([1.0, 2.0, 3.0, 4.0]).double()  # one for all tasks
    root = torch.randn(3, 4, rank, generator=generator, dtype=torch.float64)
    if rank > 1:
        root[0, :, 1:] = 0  # padding rows
        root[1] = 0  # a task without data
    posterior = Gaussian.from_precision_root(mean, precision, root)
    dense_precision = torch.diag(precision) + root @ root.mT
    torch.testing.assert_close(posterior.covariance(), torch.linalg.inv(dense_precision))
    theta = mean + 1
    torch.testing.assert_close(
        posterior.precision_product(theta), (dense_precision @ theta.unsqueeze(-1)).squeeze(-1)
    )
    assert posterior.kl(posterior).abs().max() < 1e-12
    assert posterior.noise_dim == 4
    draws = posterior.sample(5, generator)
    torch.testing.assert_close(posterior.log_prob(draws), dense(posterior).log_prob(draws))


def test_a_precision_root_is_differentiable_where_rows_are_padding() -> None:
    # The eigenvalues are then equal, and an eigendecomposition's derivative is NaN.
    mean, root = torch.zeros(2, 3).double(), torch.ones(2, 3, 4).double()
    noise = torch.randn(2, 3, generator=torch.Generator().manual_seed(14)).double()
    mask = torch.tensor([[1.0, 1, 0, 0], [0, 0, 0, 0]]).double()[:, None]

    def parts(precision: torch.Tensor, root: torch.Tensor) -> tuple[torch.Tensor, ...]:
        posterior = Gaussian.from_precision_root(mean, precision, root * mask)
        return posterior.transform(noise[None]), posterior.log_det(), posterior.variance()

    inputs = (torch.ones(3).double().requires_grad_(), root.requires_grad_())
    assert torch.autograd.gradcheck(parts, inputs)


def test_a_posterior_used_up_by_rounding_is_nan_in_that_task_alone() -> None:
    root = torch.tensor([[[1.0]], [[1e12]]]).double()
    one = torch.ones(2, 1).double()
    posterior = Gaussian.from_precision_root(one, one, root)
    assert posterior.log_det().isnan().tolist() == [False, True]
    torch.testing.assert_close(posterior.variance(), torch.tensor([[0.5], [0.0]]).double())


def test_a_point_has_no_covariance_to_multiply_by() -> None:
    assert (Gaussian(torch.ones(2, 3)).covariance_product(torch.ones(2, 3)) == 0).all()


@pytest.mark.parametrize("sign", [-1, 0, 2])
def test_a_sign_that_means_nothing_is_refused(sign: int) -> None:
    with pytest.raises(InputError, match="sign is 1, or -1 together with a diagonal"):
        Gaussian(torch.zeros(2), None, torch.eye(2), sign=sign)
