"""Every minibatch path of a quadratic task, walked by plain matrix algebra: exact moments of all.

A task's rows are f = Σ_r ½ (x_rᵀθ − y_r)². With n rows, b of them in each of T steps, there are
finitely many paths z, all equally likely. With J_z = ∂θ_z/∂θ₀ and A the query's curvature,

    ∇ E_z g(θ_z)  = E[Jᵀ ∇g(θ)]
    ∇ g(E_z θ_z)  = E[J]ᵀ ∇g(E θ)
    mean of the gradient of g(θ̄_K), K shared paths = ∇ g(E_z θ_z) + (1/K) E[(J − EJ)ᵀ A (θ − Eθ)]
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

import bayesmeta as bm
from bayesmeta.methods import (
    Algorithmic,
    GradientDescent,
    Method,
    Momentum,
    SeparatePaths,
    Unrolled,
    Validation,
)

F64 = torch.float64
DRAWS = 100_000
START = torch.tensor([1.2, -0.9], dtype=F64)
LAM = 0.8


def squares(theta, x, y, mask):
    return (0.5 * (x @ theta - y).square() * mask).sum()


def bent(theta, x, y, curved, mask):
    """Rows of squared error, and where `curved` of a Poisson loss e^η − yη."""
    eta = x @ theta
    rows = torch.where(curved, eta.exp() - y * eta, 0.5 * (eta - y).square())
    return (rows * mask).sum()


def rows_of(x, y, **curved):
    """A family of one (row, dim) task per entry; ragged ones are padded."""
    flags = {name: [torch.full(t.shape, value) for t in y] for name, value in curved.items()}
    return bm.TaskFamily.from_tensors(x=list(x), y=list(y), **flags)


def copies(family, number):
    """Every task so many times: that many independent estimates in one call."""
    tensors = {k: v.repeat(number, *[1] * (v.ndim - 1)) for k, v in family.tensors.items()}
    return bm.TaskFamily(tensors, mask=family.mask.repeat(number, 1))


def batches_of(n, size, steps, replacement):
    """(path, step, row) of every path, all equally likely, by the rules of `Minibatched`."""
    if replacement:
        one = list(itertools.product(range(n), repeat=size))
        return torch.tensor(list(itertools.product(one, repeat=steps)))
    if n <= size:
        return torch.arange(n).expand(1, steps, n)
    passes = math.ceil(steps * size / n)
    orders = itertools.product(itertools.permutations(range(n)), repeat=passes)
    stream = torch.tensor([sum(order, ()) for order in orders])
    return stream[:, : steps * size].reshape(-1, steps, size)


@dataclass(frozen=True)
class Setting:
    """How paths are made, once in the library's words and once in matrices."""

    name: str
    steps: int = 3
    size: int = 1
    replacement: bool = True
    momentum: float = 0.0
    anchored: bool = False
    lr: float = 0.12

    def method(self, rule, at, draws=1, **options):
        noise = {"rows": self.size, "replacement": self.replacement, "per": "task"}
        inner = GradientDescent(self.lr, self.steps, **noise, **options)
        if self.momentum:
            inner = Momentum(self.lr, self.steps, momentum=self.momentum, **noise)
        posterior = Algorithmic(anchored=self.anchored)
        return Method(posterior, inner, rule, Validation(None, at=at), draws=draws)

    def ends(self, x, y, theta0, lam=LAM, lr=None, recorded=None):
        """(path, dim) θ_T of every path; `recorded`: a cut as in `Truncated`."""
        batches = batches_of(len(y), self.size, self.steps, self.replacement)
        lr = self.lr if lr is None else lr
        theta, velocity = theta0.expand(len(batches), -1), 0.0
        for step in range(self.steps):
            if recorded is not None and step == self.steps - recorded:
                theta = theta.detach() + (theta0 - theta0.detach())
                velocity = velocity.detach() if step else 0.0
            xs, ys = x[batches[:, step]], y[batches[:, step]]
            residual = (xs @ theta[..., None])[..., 0] - ys
            slope = len(y) / xs.shape[1] * (residual[..., None] * xs).sum(1)
            slope = slope + (lam * (theta - theta0) if self.anchored else 0.0)
            velocity = self.momentum * velocity + slope
            theta = theta - lr * velocity
        return theta


PLAIN = Setting("with replacement")
SETTINGS = [
    PLAIN,
    Setting("reshuffled", size=2, replacement=False, lr=0.2),
    Setting("anchored", anchored=True),
    Setting("momentum", momentum=0.6, lr=0.08),
    Setting("anchored momentum", size=2, replacement=False, momentum=0.5, anchored=True),
]


def normals(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


X, Y = normals(3, 2, seed=0), normals(3, seed=1)
XQ, YQ = normals(4, 2, seed=2), normals(4, seed=3) + 1.0
MODEL, BENT = bm.Model.from_energy(squares, 2), bm.Model.from_energy(bent, 2)
PRIOR = bm.Prior("isotropic").at(mean=START, variance=1 / LAM)


def query_loss(theta, x=XQ, y=YQ):
    return 0.5 * ((x @ theta[..., None])[..., 0] - y).square().sum(-1)


@dataclass(frozen=True)
class Exact:
    """Moments over all paths: J (path, dim, dim), θ (path, dim), slope A θ − b (path, dim)."""

    J: Tensor
    theta: Tensor
    A: Tensor
    slope: Tensor

    @classmethod
    def of(cls, setting, x=X, y=Y, xq=XQ, yq=YQ, **options):
        def ends(theta0):
            return setting.ends(x, y, theta0, **options)

        J = torch.autograd.functional.jacobian(ends, START.clone())
        theta, A = ends(START), xq.T @ xq
        return cls(J, theta, A, theta @ A - xq.T @ yq)

    @property
    def mean_of_losses(self):
        return (self.J.mT @ self.slope[..., None]).mean(0)[:, 0]

    @property
    def loss_at_mean(self):
        return self.J.mean(0).T @ self.slope.mean(0)

    @property
    def difference(self):
        """E[(J − EJ)ᵀ A (θ − Eθ)], which K shared paths are off by, divided by K."""
        J, theta = self.J - self.J.mean(0), self.theta - self.theta.mean(0)
        return torch.einsum("zij,ik,zk->j", J, self.A, theta) / len(J)

    def variances(self, paths):
        """Var of split halves and of every pair, `paths` in all, summed over components.

        By Hoeffding's decomposition of J_jᵀs_i, i ≠ j: s_i moves it by X, J_j by Y, and together
        by what is left; every pair uses both X and Y of each path.
        """
        m, mu = self.J.mean(0), self.slope.mean(0)
        J, s = self.J - m, self.slope - mu
        X, Y = s @ m, torch.einsum("zij,i->zj", J, mu)
        a, b, c = (torch.mean(p * q, 0).sum() for p, q in ((X, X), (Y, Y), (X, Y)))
        JJ = torch.einsum("zqp,zrp->pqr", J, J) / len(J)
        Js = torch.einsum("zqp,zr->pqr", J, s) / len(J)
        e = torch.einsum("pqr,qr->", JJ, s.T @ s / len(s))
        swapped = torch.einsum("pqr,prq->", Js, Js)
        half = paths // 2
        split = (a + b) / half + e / half**2
        pairs = (a + b + 2 * c) / paths + (e + swapped) / (paths * (paths - 1))
        return float(split), float(pairs)


def estimates(method, number, support=None, query=None, *, seed, model=MODEL):
    """(number, task, dim) independent estimates of each task's gradient."""
    support = rows_of([X], [Y]) if support is None else support
    query = rows_of([XQ], [YQ]) if query is None else query
    found = bm.meta_gradient(
        model, PRIOR, copies(support, number), method, query=copies(query, number),
        generator=torch.Generator().manual_seed(seed),
    )  # fmt: skip
    return found.per_task.reshape(number, len(support), -1)


def worst(found, exact):
    """The largest distance of a mean from what it should be, in standard errors."""
    error = found.std(0) / len(found) ** 0.5
    return float(((found.mean(0) - exact).abs() / error).max())


RULES = {
    "unrolled": (Unrolled(), "draws", 1),
    "4 draws": (Unrolled(), "draws", 4),
    "shared": (Unrolled(), "mean", 2),
    "4 shared": (Unrolled(), "mean", 4),
    "separate": (SeparatePaths(1, 1), "mean", 1),
    "uneven": (SeparatePaths(1, 3), "mean", 1),
    "split halves": (SeparatePaths(2, 2), "mean", 1),
    "every pair": (SeparatePaths(2, 2, every_pair=True), "mean", 1),
}
FEW = ("unrolled", "4 shared", "separate", "every pair")


def expected(exact, rule, at, draws):
    """What an estimate is on average, by the three equations above."""
    if at == "draws":
        return exact.mean_of_losses
    shared = not isinstance(rule, SeparatePaths)
    return exact.loss_at_mean + (exact.difference / draws if shared else 0.0)
