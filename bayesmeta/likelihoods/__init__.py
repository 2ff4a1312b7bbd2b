"""log p(y | η, ψ): the likelihoods inside f_i and g_i, in nats, with every constant.

The prediction η is the linear predictor, offset included: the mean of a Gaussian or Student-t, the
logit of a Bernoulli or binomial, the log mean of a Poisson or negative binomial, one logit per
class of a categorical. Learned constants are part of ψ, as parameters that hold logarithms in
float64; a result has the prediction's dtype. No value decides which code runs, so `torch.func`'s
vmap, grad, jacrev and hessian apply to everything except `sample`.
"""

from __future__ import annotations

from typing import Any

from bayesmeta.likelihoods.base import Likelihood
from bayesmeta.likelihoods.discrete import (
    Bernoulli,
    Binomial,
    Categorical,
    NegativeBinomial,
    Poisson,
)
from bayesmeta.likelihoods.real import Gaussian, StudentT
from bayesmeta.results import InputError

__all__ = [
    "REGISTRY",
    "Bernoulli",
    "Binomial",
    "Categorical",
    "Gaussian",
    "Likelihood",
    "NegativeBinomial",
    "Poisson",
    "StudentT",
    "by_name",
    "from_json",
]

REGISTRY: dict[str, type[Likelihood]] = {
    kind.name: kind
    for kind in (Gaussian, StudentT, Bernoulli, Binomial, Categorical, Poisson, NegativeBinomial)
}


def by_name(name: str, **options: Any) -> Likelihood:
    """The likelihood called `name`, built with the options of its class.

    Args:
        name: a key of `REGISTRY`.
        options: of the constructor, e.g. scale=, df=, classes=, concentration=, nodes=.

    Raises:
        InputError: no such likelihood, or it has no such option.

    Example:
        >>> by_name("gaussian", scale=2.0).summary()
        {'scale': 2.0}
    """
    if name not in REGISTRY:
        raise InputError(f"no likelihood is called {name!r}; choose from {', '.join(REGISTRY)}")
    try:
        return REGISTRY[name](**options)
    except TypeError as error:
        given = ", ".join(options) or "nothing"
        raise InputError(f"a {name} likelihood cannot be made from {given}: {error}") from error


def from_json(record: dict[str, Any]) -> Likelihood:
    """The likelihood that `Likelihood.to_json` described, its learned values at their start.

    Example:
        >>> from_json(StudentT(df=3.0).to_json()).summary()
        {'scale': 1.0, 'df': 3.0}
    """
    return by_name(**record)
