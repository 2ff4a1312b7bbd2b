"""What is known of these estimators without drawing anything.

Squared errors: a step is u ← S_r u for u = (θ, 1) and a row r drawn at random, a path is P, the
product of its steps, and E[P] and E[P ⊗ P] follow by recursion. With J = P's first dim columns and
rows, s = ∇g(θ_T) and independent paths i, j, k,

    ∇ g(E θ) = E[J]ᵀ E[s]
    shared:      E = ∇ g(E θ) + (1/K) E[(J − EJ)ᵀ(s − Es)]
    split:     Var = (a + b)/h + e/h²,    h = K/2
    pairs:     Var = (a + b + 2c)/K + (e + e′)/(K(K − 1))

where a, b, c are the variances and covariance of E[J]ᵀs and JᵀE[s], and e, e′ those of the products
of the centred J_j, s_i with themselves and with J_i, s_j (Hoeffding's decomposition).

Poisson losses: all paths are walked, and E e^{xᵀθ̄} for the mean of K paths is (E e^{xᵀθ/K})^K.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from studies.two_paths.problem import DIM, F64, Problem, Sets


@dataclass(frozen=True, eq=False)
class Quadratic:
    """The law of paths of squared-error tasks.

    Args:
        Q: (task, dim+1, dim+1), g = ½ uᵀQu.
        P: (task, dim+1, dim+1) E[P].
        PP: (task, dim+1, dim+1, dim+1, dim+1) E[P_ij P_kl].
    """

    Q: Tensor
    P: Tensor
    PP: Tensor

    @classmethod
    def of(cls, problem: Problem) -> Quadratic:
        x, y = problem.support.x, problem.support.y
        tasks, rows, _ = x.shape
        S = torch.eye(DIM + 1, dtype=F64).repeat(tasks, rows, 1, 1)
        S[..., :DIM, :DIM] -= problem.lr * rows * x[..., :, None] * x[..., None, :]
        S[..., :DIM, DIM] += problem.lr * rows * x * y[..., None]
        P = torch.eye(DIM + 1, dtype=F64).expand(tasks, -1, -1)
        PP = torch.einsum("tij,tkl->tijkl", P, P)
        for _ in range(problem.steps):
            P = S.mean(1) @ P
            PP = torch.einsum("trai,trbk,tijkl->tajbl", S, S, PP) / rows
        C = torch.cat([problem.query.x, -problem.query.y[..., None]], -1)
        return cls(C.mT @ C, P, PP)

    def weights(self, covariance: bool) -> Tensor:
        """(dim+1, dim+1) Σ_i M_i of the objective ½ u₀ᵀ M u₀: g(E θ), or Σ Cov's part of E g."""
        at_mean = self.P.mT @ self.Q @ self.P
        whole = torch.einsum("tab,taibj->tij", self.Q, self.PP)
        return (whole - at_mean if covariance else at_mean).sum(0)

    def values(self, theta0: Tensor) -> tuple[float, float]:
        """g(E θ), and E g(θ) − g(E θ) = ½ tr(A Cov θ), from a start."""
        u = torch.cat([theta0, torch.ones(1, dtype=F64)])
        at_mean, spread = (float(0.5 * u @ self.weights(c) @ u) for c in (False, True))
        return at_mean, spread

    def gradient(self, theta0: Tensor, mixed: float = 0.0) -> Tensor:
        """∇ of g(E θ) + mixed · (E g(θ) − g(E θ)): mixed = 1/K is what K shared paths average."""
        u = torch.cat([theta0, torch.ones(1, dtype=F64)])
        return ((self.weights(False) + mixed * self.weights(True)) @ u)[:DIM]

    def fixed_point(self, mixed: float) -> Tensor:
        """θ₀ where that gradient is 0."""
        M = self.weights(False) + mixed * self.weights(True)
        return torch.linalg.solve(M[:DIM, :DIM], -M[:DIM, DIM])

    def curvature(self) -> Tensor:
        """(dim, dim) of E g in θ₀."""
        return (self.weights(False) + self.weights(True))[:DIM, :DIM]

    def variances(self, theta0: Tensor, paths: int) -> tuple[float, float]:
        """Of split halves and every pair, summed over weights (tasks are independent)."""
        u, half = torch.cat([theta0, torch.ones(1, dtype=F64)]), paths // 2
        centred = self.PP - torch.einsum("tij,tkl->tijkl", self.P, self.P)
        A = self.Q[:, :DIM]
        m, mu = self.P[:, :DIM, :DIM], torch.einsum("tqi,tij,j->tq", A, self.P, u)
        JJ = centred[:, :DIM, :DIM, :DIM, :DIM]
        Js = torch.einsum("tqpkl,trk,l->tqpr", centred[:, :DIM, :DIM], A, u)
        ss = torch.einsum("tqi,tijkl,j,trk,l->tqr", A, centred, u, A, u)
        a = torch.einsum("tqp,tqr,trp->", m, ss, m)
        b = torch.einsum("tqprp,tq,tr->", JJ, mu, mu)
        c = torch.einsum("tqpr,tq,trp->", Js, mu, m)
        e = torch.einsum("tqprp,tqr->", JJ, ss)
        swapped = torch.einsum("tqpr,trpq->", Js, Js)
        split = (a + b) / half + e / half**2
        pairs = (a + b + 2 * c) / paths + (e + swapped) / (paths * (paths - 1))
        return float(split), float(pairs)


@dataclass(frozen=True, eq=False)
class Walked:
    """All paths of a Poisson task, equally likely.

    Args:
        theta: (path, dim) where each ends.
        J: (path, dim, dim) ∂θ/∂θ₀.
        x, y: the query rows.
    """

    theta: Tensor
    J: Tensor
    x: Tensor
    y: Tensor

    @classmethod
    def of(cls, problem: Problem) -> Walked:
        x, y = problem.support.x[0], problem.support.y[0]
        rows = len(y)
        paths = torch.tensor(list(itertools.product(range(rows), repeat=problem.steps)))
        theta = problem.theta0.expand(len(paths), -1)
        J = torch.eye(DIM, dtype=F64).expand(len(paths), -1, -1)
        for step in paths.T:
            at = x[step]
            rate = (at * theta).sum(-1, keepdim=True).exp()
            J = J - problem.lr * rows * rate[..., None] * at[:, :, None] * (at[:, None] @ J)
            theta = theta - problem.lr * rows * (rate - y[step][:, None]) * at
        return cls(theta, J, problem.query.x[0], problem.query.y[0])

    def _back(self, rate: Tensor) -> Tensor:
        return self.J.mean(0).T @ self.x.T @ (rate - self.y)

    @property
    def target(self) -> Tensor:
        """∇ g(E θ)."""
        return self._back((self.x @ self.theta.mean(0)).exp())

    def expected(self, rule: str, paths: int) -> Tensor:
        """The mean of a rule's estimate."""
        if rule != "shared":
            ahead = paths // 2 if rule == "split halves" else paths - 1
            return self._back((self.theta @ self.x.T / ahead).exp().mean(0) ** ahead)
        tilt = (self.theta @ self.x.T / paths).exp()
        own = torch.einsum("zij,ri,zr->rj", self.J, self.x, tilt) / len(tilt)
        return tilt.mean(0) ** (paths - 1) @ own - self.J.mean(0).T @ self.x.T @ self.y

    @property
    def tangent(self) -> Sets:
        """Squared errors with the loss's slope and curvature at E θ."""
        eta = self.x @ self.theta.mean(0)
        root = (0.5 * eta).exp()
        working = eta + self.y * (-eta).exp() - 1
        return Sets((root[:, None] * self.x)[None], (root * working)[None])


def moved(problem: Problem, theta0: Tensor) -> Problem:
    """The same from another start."""
    return replace(problem, theta0=theta0)
