"""Hessians and Gauss-Newton matrices against torch.func.hessian and closed forms."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, jacrev, vmap
from torch.func import hessian as dense_hessian

from bayesmeta import likelihoods
from bayesmeta.curvature import Curvature, gauss_newton, hessian

TASKS, ROWS, WIDTH = 3, 7, 4
CLASSES = 3
NAMES = ("gaussian", "student_t", "bernoulli", "binomial", "poisson", "negative_binomial")


def normal(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


class Case:
    """A linear or tanh prediction, a likelihood and ragged data; energies written out by hand."""

    def __init__(self, name: str, *, linear: bool, scale: float = 1.0) -> None:
        self.outputs = CLASSES if name == "categorical" else 1
        self.x = normal(0, TASKS, ROWS, 2)
        self.mask = torch.arange(ROWS) < torch.tensor([[7], [4], [1]])
        options = {"categorical": {"classes": CLASSES}, "negative_binomial": {"concentration": 2.0}}
        options |= {"gaussian": {"scale": 0.7}, "student_t": {"scale": 0.5}}
        self.likelihood = likelihoods.by_name(name, **options.get(name, {}))
        real = name in ("gaussian", "student_t")
        self.y = 2 * normal(1, TASKS, ROWS) if real else (normal(1, TASKS, ROWS) > 0).double()
        self.extra = (
            {"trials": torch.full((TASKS, ROWS), 3.0).double()} if name == "binomial" else {}
        )
        hidden = [] if linear else [torch.nn.Linear(2, WIDTH), torch.nn.Tanh()]
        last = torch.nn.Linear(2 if linear else WIDTH, self.outputs)
        self.network = torch.nn.Sequential(*hidden, last).double()
        self.shapes = {k: v.shape for k, v in self.network.named_parameters()}
        self.dim = sum(s.numel() for s in self.shapes.values())
        self.theta = scale * normal(2, TASKS, self.dim)

    def predict_task(self, theta: Tensor, x: Tensor) -> Tensor:
        parts = theta.split([s.numel() for s in self.shapes.values()])
        weights = {k: p.reshape(s) for (k, s), p in zip(self.shapes.items(), parts, strict=True)}
        eta = functional_call(self.network, weights, (x,))
        return eta if self.outputs > 1 else eta.squeeze(-1)

    def predict(self, theta: Tensor) -> Tensor:
        return vmap(self.predict_task)(theta, self.x)

    def loss(self, eta: Tensor) -> Tensor:
        rows = -self.likelihood.log_prob(eta, self.y, **self.extra)
        return torch.where(self.mask, rows, 0.0)

    def energy(self, i: int) -> Callable[[Tensor], Tensor]:
        extra = {k: v[i] for k, v in self.extra.items()}

        def energy(theta: Tensor) -> Tensor:
            eta = self.predict_task(theta, self.x[i])
            rows = -self.likelihood.log_prob(eta, self.y[i], **extra)
            return rows[self.mask[i]].sum()

        return energy

    def hessians(self) -> Tensor:
        return torch.stack([dense_hessian(self.energy(i))(self.theta[i]) for i in range(TASKS)])

    def gradient(self, theta: Tensor) -> Tensor:
        return grad(lambda t: self.loss(self.predict(t)).sum())(theta)

    def gauss_newton(self, theta: Tensor | None = None) -> Curvature:
        return gauss_newton(self.predict, self.loss, self.theta if theta is None else theta)

    def curvature(self, kind: str, theta: Tensor) -> Curvature:
        return hessian(self.gradient, theta) if kind == "hessian" else self.gauss_newton(theta)

    def gauss_newton_by_definition(self) -> Tensor:
        """Σ_rows Jᵀ W₊ J, each row on its own, W₊ by an eigendecomposition."""
        total = torch.zeros(TASKS, self.dim, self.dim).double()
        for i in range(TASKS):
            for r in range(int(self.mask[i].sum())):
                extra = {k: v[i, r] for k, v in self.extra.items()}
                y = self.y[i, r]

                def row(eta: Tensor, y: Tensor = y, extra: dict = extra) -> Tensor:
                    one = eta if self.outputs > 1 else eta[0]
                    return -self.likelihood.log_prob(one, y, **extra)

                def outputs(t: Tensor, x: Tensor = self.x[i, r]) -> Tensor:
                    return self.predict_task(t, x[None]).reshape(-1)

                values, vectors = torch.linalg.eigh(dense_hessian(row)(outputs(self.theta[i])))
                weight = vectors @ torch.diag(values.clamp(min=0)) @ vectors.T
                jacobian = jacrev(outputs)(self.theta[i])
                total[i] += jacobian.T @ weight @ jacobian
        return total


def check_consistent(curvature: Curvature, theta: Tensor) -> None:
    """Product, dense, diagonal and root are of one matrix."""
    dense = curvature.dense(theta)
    assert torch.equal(dense, dense.mT)
    v = normal(9, *theta.shape)
    torch.testing.assert_close(curvature.product(v), (dense @ v.unsqueeze(-1)).squeeze(-1))
    torch.testing.assert_close(curvature.product(2 * v), 2 * curvature.product(v))
    torch.testing.assert_close(curvature.diagonal(theta), dense.diagonal(dim1=-2, dim2=-1))
    if curvature.root is not None:
        root = curvature.root()
        torch.testing.assert_close(root @ root.mT, dense)


@pytest.mark.parametrize("linear", [True, False])
@pytest.mark.parametrize("name", [*NAMES, "categorical"])
def test_the_hessian_is_torchs(name: str, linear: bool) -> None:
    case = Case(name, linear=linear)
    curvature = hessian(case.gradient, case.theta)
    torch.testing.assert_close(curvature.dense(case.theta), case.hessians())
    check_consistent(curvature, case.theta)


@pytest.mark.parametrize("linear", [True, False])
@pytest.mark.parametrize("name", [*NAMES, "categorical"])
def test_gauss_newton_is_its_definition(name: str, linear: bool) -> None:
    case = Case(name, linear=linear)
    curvature = case.gauss_newton()
    torch.testing.assert_close(curvature.dense(case.theta), case.gauss_newton_by_definition())
    check_consistent(curvature, case.theta)
    assert curvature.root is not None
    assert curvature.root().shape == (TASKS, case.dim, ROWS * case.outputs)
    assert torch.linalg.eigvalsh(curvature.dense(case.theta)).min() > -1e-12


@pytest.mark.parametrize("name", [n for n in (*NAMES, "categorical") if n != "student_t"])
def test_gauss_newton_is_the_hessian_of_a_linear_prediction(name: str) -> None:
    case = Case(name, linear=True)
    torch.testing.assert_close(case.gauss_newton().dense(case.theta), case.hessians())


def test_gauss_newton_drops_the_networks_own_curvature_of_a_poisson_network() -> None:
    case = Case("poisson", linear=False)
    eta = case.predict(case.theta)
    slope = grad(lambda e: case.loss(e).sum())(eta)
    own = [
        dense_hessian(lambda t, i=i: (slope[i] * case.predict_task(t, case.x[i])).sum())(
            case.theta[i]
        )
        for i in range(TASKS)
    ]
    total = case.gauss_newton().dense(case.theta) + torch.stack(own)
    torch.testing.assert_close(total, case.hessians())
    assert torch.stack(own).abs().max() > 0.1


def test_an_outlier_of_a_student_t_gives_no_curvature_instead_of_a_negative_one() -> None:
    case = Case("student_t", linear=True)
    case.y = case.y + 100
    assert torch.linalg.eigvalsh(case.hessians()).max() < 1e-9
    curvature = case.gauss_newton()
    assert (curvature.dense(case.theta) == 0).all()
    assert (curvature.product(case.theta) == 0).all()


@pytest.mark.parametrize("name", ["gaussian", "poisson", "categorical"])
@pytest.mark.parametrize("kind", ["hessian", "ggn"])
def test_no_forward_mode_is_needed(name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("forward mode")

    class Cube(torch.autograd.Function):
        """An operation with a backward rule only, as users write them."""

        generate_vmap_rule = True

        @staticmethod
        def forward(x: Tensor) -> Tensor:
            return x**3

        @staticmethod
        def setup_context(ctx, inputs, output) -> None:
            ctx.save_for_backward(inputs[0])

        @staticmethod
        def backward(ctx, slope: Tensor) -> Tensor:
            return slope * 3 * ctx.saved_tensors[0] ** 2

    monkeypatch.setattr(torch.autograd.forward_ad, "make_dual", refuse)
    case = Case(name, linear=True)
    plain = case.predict_task
    case.predict_task = lambda t, x: Cube.apply(plain(t, x))
    curvature = case.curvature(kind, case.theta)
    got = curvature.dense(case.theta)
    check_consistent(curvature, case.theta)
    case.predict_task = lambda t, x: plain(t, x) ** 3
    monkeypatch.undo()
    expected = case.hessians() if kind == "hessian" else case.gauss_newton_by_definition()
    torch.testing.assert_close(got, expected)


def log_det(case: Case, kind: str, part: str) -> Callable[[Tensor], Tensor]:
    """½ Σ_i log |200 I + the matrix|, or the like of its other forms, as a function of θ."""

    def value(theta: Tensor) -> Tensor:
        curvature = case.curvature(kind, theta)
        if part == "diagonal":
            return 0.5 * torch.log1p(curvature.diagonal(theta)).sum()
        if part == "root":
            assert curvature.root is not None
            root = curvature.root()
            small = torch.eye(root.shape[-1]).double() + root.mT @ root
            return 0.5 * torch.logdet(small).sum()
        return 0.5 * torch.logdet(200 * torch.eye(case.dim).double() + curvature.dense(theta)).sum()

    return value


def central(function: Callable[[Tensor], Tensor], at: Tensor, along: Tensor) -> Tensor:
    step = 1e-5
    return (function(at + step * along) - function(at - step * along)) / (2 * step)


@pytest.mark.parametrize("kind", ["hessian", "dense", "diagonal", "root"])
@pytest.mark.parametrize("name", ["gaussian", "bernoulli", "poisson", "categorical"])
def test_determinants_are_differentiable_in_the_point(name: str, kind: str) -> None:
    case = Case(name, linear=False, scale=0.3)
    value = log_det(case, "hessian" if kind == "hessian" else "ggn", kind)
    along = normal(10, *case.theta.shape)
    by_func = grad(value)(case.theta)
    point = case.theta.clone().requires_grad_()
    (by_autograd,) = torch.autograd.grad(value(point), point)
    torch.testing.assert_close(by_func, by_autograd)
    slope = central(value, case.theta, along)
    torch.testing.assert_close((by_func * along).sum(), slope, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["bernoulli", "categorical"])
def test_a_root_is_twice_differentiable(name: str) -> None:
    case = Case(name, linear=False, scale=0.3)
    value = log_det(case, "ggn", "root")
    along = normal(11, *case.theta.shape)
    second = grad(lambda t: (grad(value)(t) * along).sum())(case.theta)
    slope = central(lambda t: (grad(value)(t) * along).sum(), case.theta, along)
    torch.testing.assert_close((second * along).sum(), slope, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("part", ["dense", "diagonal", "root"])
def test_equal_probabilities_and_certain_ones_have_finite_gradients(part: str) -> None:
    # An eigendecomposition of the softmax's W has NaN derivatives at both.
    case = Case("categorical", linear=True)
    value = log_det(case, "ggn", part)
    for theta in (torch.zeros_like(case.theta), 1e3 * case.theta):
        slope = grad(value)(theta)
        assert slope.isfinite().all()
    along = normal(12, *case.theta.shape)
    zero = torch.zeros_like(case.theta)
    expected = central(value, zero, along)
    torch.testing.assert_close((grad(value)(zero) * along).sum(), expected, rtol=1e-6, atol=1e-7)


def test_a_task_of_padding_only_has_no_curvature_and_finite_gradients() -> None:
    case = Case("poisson", linear=False)
    case.mask = torch.zeros_like(case.mask)
    assert (case.gauss_newton().dense(case.theta) == 0).all()
    for part in ("dense", "diagonal", "root"):
        assert (grad(log_det(case, "ggn", part))(case.theta) == 0).all()


def test_more_rows_than_weights_and_more_weights_than_rows_agree() -> None:
    # The Jacobian is taken by columns in the one case and by rows in the other.
    case = Case("poisson", linear=True)
    assert 2 * case.dim < ROWS
    wide = case.gauss_newton().dense(case.theta)
    case.x, case.y, case.mask = case.x[:, :2], case.y[:, :2], case.mask[:, :2]
    assert 2 * case.dim > 2
    torch.testing.assert_close(
        case.gauss_newton().dense(case.theta), case.gauss_newton_by_definition()
    )
    assert (wide - case.gauss_newton().dense(case.theta)).abs().max() > 0.01


@pytest.mark.parametrize("name", ["poisson", "categorical"])
def test_curvature_works_under_vmap_without_gradients_and_in_one_compiled_graph(name: str) -> None:
    case = Case(name, linear=False)
    v = normal(13, *case.theta.shape)

    def both(theta: Tensor) -> tuple[Tensor, Tensor]:
        exact = hessian(case.gradient, theta).product(v)
        return exact, case.gauss_newton(theta).product(v)

    expected = both(case.theta)
    points = torch.stack([case.theta, case.theta + 1])
    with torch.no_grad():
        batched = vmap(both)(points)
        compiled = torch.compile(both, fullgraph=True, backend="aot_eager")(case.theta)
    for want, mapped, fused in zip(expected, batched, compiled, strict=True):
        torch.testing.assert_close(mapped[0], want)
        torch.testing.assert_close(fused, want)


def test_a_task_that_is_not_finite_harms_no_other() -> None:
    case = Case("categorical", linear=False)
    clean = case.gauss_newton().dense(case.theta)
    case.theta[1] = torch.nan
    got = case.gauss_newton().dense(case.theta)
    assert got[1].isnan().any()
    torch.testing.assert_close(got[[0, 2]], clean[[0, 2]])


@pytest.mark.parametrize("scale", [1.0, 10.0, 40.0])
def test_probabilities_of_any_size_lose_no_digits_in_the_root(scale: float) -> None:
    logits = scale * normal(14, 1, 500, CLASSES)
    curvature = gauss_newton(
        lambda t: t.reshape(logits.shape), lambda e: -e.log_softmax(-1)[..., 0], logits.flatten(1)
    )
    p = logits.softmax(-1)[0]
    v = normal(15, 500, CLASSES)
    expected = p * v - p * (p * v).sum(-1, keepdim=True)  # (diag(p) − p pᵀ) v
    got = curvature.product(v.reshape(1, -1)).reshape(500, CLASSES)
    torch.testing.assert_close(got, expected, rtol=1e-7, atol=1e-13)
