"""The forms a covariance can take, and each form's unconstrained parameters.

    point          S = 0
    isotropic      S = σ² I
    block          S = σ_b² on each parameter tensor b
    diagonal       S = diag(σ_j²)
    lowrank(r)     S = diag(σ_j²) + F Fᵀ, F (dim, r)
    full           S = L Lᵀ,  L = diag(σ_j) + strictly lower F

A form turns a dictionary of free tensors (`mean`, `log_scale` = log σ, `factor` = F) into a
`Gaussian` and back; priors have no batch axis, the posteriors of a family have a task axis.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bayesmeta.gaussian import Gaussian
from bayesmeta.results import InputError

FORMS = ("point", "isotropic", "block", "diagonal", "lowrank", "full")
FACTOR_ITERATIONS = 5000


@dataclass(frozen=True)
class Form:
    """One of the forms above.

    Args:
        name: a member of `FORMS`.
        rank: r of the low-rank form.

    Example:
        >>> str(Form.parse("lowrank(2)")), Form.parse("full").rank
        ('lowrank(2)', 0)
    """

    name: str
    rank: int = 0

    @classmethod
    def parse(cls, text: str | Form, *, allowed: Sequence[str] = FORMS) -> Form:
        """Read "full", "lowrank(3)", ...

        Raises:
            InputError: not the name of an allowed form.
        """
        if isinstance(text, Form):
            return text
        match = re.fullmatch(r"\s*([a-z]+)\s*(?:\(\s*(\d+)\s*\))?\s*", str(text))
        name, rank = (match[1], int(match[2] or 0)) if match else ("", 0)
        if name not in allowed or (name == "lowrank") != (rank > 0):
            names = ", ".join("lowrank(r)" if f == "lowrank" else f for f in allowed)
            raise InputError(f"{text!r} is not a form of covariance: use one of {names}")
        return cls(name, rank)

    def __str__(self) -> str:
        return f"{self.name}({self.rank})" if self.rank else self.name

    def constrain(self, free: dict[str, Tensor], blocks: Tensor) -> Gaussian:
        """The Gaussian of free parameters.

        Args:
            free: `mean` (..., dim), `log_scale` (..., scales), `factor` (..., dim, rank).
            blocks: (dim,) which parameter tensor each coordinate belongs to.
        """
        mean = free["mean"]
        if self.name == "point":
            return Gaussian(mean)
        scale = free["log_scale"].exp()
        if self.name == "full":
            return Gaussian(mean, None, free["factor"].tril(-1) + torch.diag_embed(scale))
        if self.name == "isotropic":
            scale = scale.expand(mean.shape)
        if self.name == "block":
            scale = scale[..., blocks]
        return Gaussian(mean, scale.square(), free.get("factor"))

    def shapes(self, dim: int, blocks: Tensor) -> dict[str, tuple[int, ...]]:
        """Those of a prior's free parameters."""
        number = int(blocks.max()) + 1 if self.name == "block" else dim
        scales = (1,) if self.name == "isotropic" else (number,)
        factor = {"full": dim, "lowrank": self.rank}.get(self.name, 0)
        wanted = {"mean": (dim,)} | ({} if self.name == "point" else {"log_scale": scales})
        return wanted | ({"factor": (dim, factor)} if factor else {})

    def check(self, free: Mapping[str, Tensor], blocks: Tensor) -> None:
        """Refuse a prior's free parameters that are not of this form.

        Raises:
            InputError: shapes, or parameters, that are of another one.
        """
        dim = len(free["mean"])
        counted = blocks.shape == (dim,) and blocks.dtype == torch.long and dim > 0
        if not (counted and int(blocks.min()) >= 0 and int(blocks.max()) < dim):
            raise InputError(f"the blocks of {dim} weights are {tuple(blocks.shape)}: give (dim,)")
        found = {name: tuple(tensor.shape) for name, tensor in free.items()}
        wanted = self.shapes(dim, blocks)
        if found != wanted or not all(tensor.is_floating_point() for tensor in free.values()):
            raise InputError(f"a prior of the form {self} has {wanted}, not {found}")

    def unconstrain(self, gaussian: Gaussian, blocks: Tensor) -> dict[str, Tensor]:
        """Free parameters of the Gaussian's projection on this form (exact if it has the form)."""
        free = {"mean": gaussian.mean}
        if self.name == "point":
            return free
        if self.name == "full":
            factor = gaussian.factor
            if factor is None or gaussian.diagonal is not None:
                factor = Gaussian.from_covariance(gaussian.mean, gaussian.covariance()).factor
            assert factor is not None
            scale = factor.diagonal(dim1=-2, dim2=-1)
            return free | {"log_scale": scale.log(), "factor": factor.tril(-1)}
        if self.name == "lowrank":
            return free | self._low_rank(gaussian)
        return free | {"log_scale": 0.5 * self.tie(gaussian.variance(), blocks).log()}

    def tie(self, variance: Tensor, blocks: Tensor) -> Tensor:
        """Average (..., dim) variances over the coordinates that share one."""
        if self.name == "isotropic":
            return variance.mean(-1, keepdim=True)
        if self.name == "block":
            counts = torch.bincount(blocks)
            total = variance.new_zeros((*variance.shape[:-1], len(counts)))
            return total.index_add(-1, blocks, variance) / counts
        return variance

    def _low_rank(self, gaussian: Gaussian) -> dict[str, Tensor]:
        """Maximum-likelihood factor analysis of the covariance (Lawley's fixed point)."""
        diagonal, factor = gaussian.diagonal, gaussian.factor
        if diagonal is not None and factor is not None and factor.shape[-1] == self.rank:
            return {"log_scale": 0.5 * diagonal.log(), "factor": factor}
        if factor is None and diagonal is not None:
            factor = diagonal.new_zeros((*gaussian.mean.shape, self.rank))
            return {"log_scale": 0.5 * diagonal.log(), "factor": factor}
        covariance = gaussian.covariance()
        variance = gaussian.variance()
        unique, factor = 0.5 * variance, covariance[..., : self.rank]
        for _ in range(FACTOR_ITERATIONS):
            root = unique.sqrt()
            scaled = covariance / (root.unsqueeze(-1) * root.unsqueeze(-2))
            values, vectors = torch.linalg.eigh(scaled)
            excess = (values[..., -self.rank :] - 1).clamp(min=0).sqrt()
            factor = root.unsqueeze(-1) * vectors[..., -self.rank :] * excess.unsqueeze(-2)
            before, unique = unique, variance - factor.square().sum(-1)
            unique = torch.maximum(unique, 1e-6 * variance)
            if bool(((unique - before).abs() <= 1e-9 * variance).all()):
                break
        return {"log_scale": 0.5 * unique.log(), "factor": factor}
