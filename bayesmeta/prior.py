"""N(θ₀, Σ₀): the prior over a task's weights, as a module that hands out an immutable Gaussian."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bayesmeta.forms import Form
from bayesmeta.gaussian import Gaussian
from bayesmeta.results import InputError

PRIOR_FORMS = ("point", "isotropic", "block", "diagonal", "lowrank", "full")
LEARN = ("all", "mean", "none")
HYPERPRIORS = (None, "boundary-avoiding")


def with_values(prior: Any) -> Prior:
    """The prior, if it is one and has values.

    Raises:
        InputError: it is something else, or a form alone.
    """
    if not isinstance(prior, Prior):
        raise InputError(
            f"prior is a {type(prior).__name__}: give a bm.Prior with values, such as "
            "fit.fitted_prior"
        )
    if not prior.has_values:
        raise InputError("this prior has no values: use .at(mean=, variance=)")
    return prior


class Prior(nn.Module):
    """N(θ₀, Σ₀) with Σ₀ of a chosen form.

    `Prior("full")` is a wish: the fit gives it its dimension and a start. `.at(...)` gives values.

    Args:
        form: isotropic, block (one variance per parameter tensor), diagonal, lowrank(r), full; or
            point, for methods that learn a start θ₀ and no Σ₀ (MAML).
        hyperprior: None, or "boundary-avoiding": log p(Σ₀) = ½ log|Σ₀| up to a constant, for one
            coordinate the Gamma(2, 0) on the standard deviation of Chung et al. (2013), for more
            the Wishart limit of Chung et al. (2015). It keeps Σ₀ off its boundary.
        learn: "all", "mean" (Σ₀ held) or "none" (both held).

    Raises:
        InputError: an unknown form, hyper-prior, or value of learn.

    Example:
        >>> prior = Prior("isotropic").at(mean=torch.zeros(2).double(), variance=4.0)
        >>> prior().covariance().tolist()
        [[4.0, 0.0], [0.0, 4.0]]
    """

    def __init__(
        self, form: str | Form = "full", *, hyperprior: str | None = None, learn: str = "all"
    ) -> None:
        super().__init__()
        self.form = Form.parse(form, allowed=PRIOR_FORMS)
        if hyperprior not in HYPERPRIORS:
            raise InputError(f"hyperprior must be one of {HYPERPRIORS}, not {hyperprior!r}")
        if learn not in LEARN:
            raise InputError(f"learn must be one of {LEARN}, not {learn!r}")
        self.hyperprior = hyperprior
        self.learn = learn
        self.free = nn.ParameterDict()
        self.blocks: Tensor
        self.register_buffer("blocks", torch.zeros(0, dtype=torch.long))

    @property
    def has_values(self) -> bool:
        return "mean" in self.free

    def at(
        self,
        *,
        mean: Tensor | float,
        variance: Tensor | float | None = None,
        covariance: Tensor | None = None,
        blocks: Tensor | None = None,
    ) -> Prior:
        """This prior with values.

        Args:
            mean: (dim,), or a number for one dimension.
            variance: a number or (dim,), in squared units of θ; or
            covariance: (dim, dim).
            blocks: (dim,) parameter tensor of each coordinate; needed by the block form.

        Raises:
            InputError: shapes disagree, or a variance is negative.
        """
        centre = torch.as_tensor(mean).reshape(-1)
        centre = centre if centre.is_floating_point() else centre.double()
        if (variance is None) == (covariance is None):
            raise InputError("give exactly one of variance= and covariance=")
        if covariance is not None:
            matrix = torch.as_tensor(covariance).to(centre)
            if matrix.shape != (len(centre), len(centre)):
                raise InputError(f"covariance is {tuple(matrix.shape)} for {len(centre)} weights")
            values = torch.linalg.eigvalsh(matrix) if bool(matrix.isfinite().all()) else -matrix
            if not torch.allclose(matrix, matrix.T) or not values.min() >= -1e-10 * values.max():
                raise InputError("a prior covariance must be finite, symmetric and not negative")
            gaussian = Gaussian.from_covariance(centre, matrix)
        else:
            spread = torch.as_tensor(variance).to(centre).expand(centre.shape)
            if not bool((spread >= 0).all() & spread.isfinite().all()):
                raise InputError("a prior variance must be finite and not negative")
            gaussian = Gaussian(centre, spread.clone())
        return self.like(gaussian, blocks)

    def like(self, gaussian: Gaussian, blocks: Tensor | None = None) -> Prior:
        """This prior with a Gaussian's values, projected on its form."""
        if self.form.name == "block" and blocks is None:
            raise InputError("the block form needs blocks=, the parameter tensor of each weight")
        default = torch.zeros(gaussian.dim, dtype=torch.long)
        blocks = (default if blocks is None else blocks).to(gaussian.mean.device)
        return self.of(self.form.unconstrain(gaussian, blocks), blocks)

    def of(self, free: Mapping[str, Tensor], blocks: Tensor) -> Prior:
        """This prior with the values of its unconstrained parameters, to the last bit.

        Raises:
            InputError: they are not those of its form, or give no finite Gaussian.
        """
        self.form.check(free, blocks)
        new = Prior(self.form, hyperprior=self.hyperprior, learn=self.learn)
        new.blocks = blocks
        new.free = nn.ParameterDict(
            {k: nn.Parameter(v.detach().clone().contiguous()) for k, v in free.items()}
        )
        for name, parameter in new.free.items():
            held = self.learn == "none" or (self.learn == "mean" and name != "mean")
            parameter.requires_grad_(not held)
        return new

    def forward(self) -> Gaussian:
        """The Gaussian N(θ₀, Σ₀)."""
        if not self.has_values:
            raise InputError("this prior has no values yet: fit it, or use .at(mean=, variance=)")
        return self.form.constrain(dict(self.free), self.blocks)

    def log_hyperprior(self, gaussian: Gaussian | None = None) -> Tensor | float:
        """log p(Σ₀) in nats up to a constant; 0 without a hyper-prior."""
        if self.hyperprior is None:
            return 0.0
        return 0.5 * (self() if gaussian is None else gaussian).log_det()

    def closed_form(self, posteriors: Gaussian) -> Prior:
        """The minimiser of Σ_i KL(Q_i ‖ N(θ₀, Σ₀)) over the prior, all Q_i held.

            θ₀ = mean_i m_i        Σ₀ = mean_i [S_i + (m_i − θ₀)(m_i − θ₀)ᵀ], on the form

        Parts that are not learned stay. For the low-rank form the projection is maximum-likelihood
        factor analysis, iterated.

        Args:
            posteriors: Q_i with one leading task axis.
        """
        if self.learn == "none":
            return self
        mean = posteriors.mean.mean(0)
        if self.learn == "mean":
            current = self()
            return self.like(Gaussian(mean, current.diagonal, current.factor), self.blocks)
        deviation = posteriors.mean - mean
        if self.form.name in ("lowrank", "full"):
            covariance = (
                posteriors.covariance() + deviation.unsqueeze(-1) * deviation.unsqueeze(-2)
            ).mean(0)
            return self.like(Gaussian.from_covariance(mean, covariance), self.blocks)
        variance = (posteriors.variance() + deviation.square()).mean(0)
        return self.like(Gaussian(mean, variance), self.blocks)

    def to_json(self) -> dict[str, Any]:
        return {"form": str(self.form), "hyperprior": self.hyperprior, "learn": self.learn}

    def extra_repr(self) -> str:
        return ", ".join(f"{k}={v!r}" for k, v in self.to_json().items())
