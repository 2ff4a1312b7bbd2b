"""What every likelihood log p(y | η, ψ) offers, checks and promises."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bayesmeta.results import InputError


class Likelihood(nn.Module):
    """What all likelihoods share; the final classes below say which densities they are.

    Args:
        options: what the constructor was given, kept for the record.

    Attributes:
        name: the key in `REGISTRY`.
        responses: "real", "binary", "count" or "class": what y is.
        optional: the optional tensors it takes, `required` those that it cannot do without.
        support: what y must be, in words.
        constants: its positive constants, each known or learned.
    """

    name: ClassVar[str]
    responses: ClassVar[str]
    optional: ClassVar[tuple[str, ...]] = ()
    required: ClassVar[tuple[str, ...]] = ()
    support: ClassVar[str]
    constants: ClassVar[tuple[str, ...]] = ()

    def __init__(self, **options: float | None) -> None:
        super().__init__()
        self.options: dict[str, Any] = options

    def log_prob(
        self,
        prediction: Tensor,
        y: Tensor,
        *,
        trials: Tensor | None = None,
        standard_error: Tensor | None = None,
    ) -> Tensor:
        """The log-density log p(y | η, ψ) of every row, all constants included.

        Args:
            prediction: η, (..., row); (..., row, class) for a categorical.
            y: (..., row), in the units of the data; class numbers from 0 for a categorical.
            trials: (..., row) trials behind each binomial count.
            standard_error: (..., row) known sd of each row, in place of a Gaussian's scale.

        Returns:
            (..., row) nats.

        Raises:
            InputError: a tensor this likelihood has no use for, or lacks one it needs.

        Example:
            >>> from bayesmeta.likelihoods import Bernoulli
            >>> value = Bernoulli().log_prob(torch.zeros(1), torch.ones(1))
            >>> bool(value == math.log(0.5))
            True
        """
        extra = self._extra(trials, standard_error, prediction)
        return self._log_prob(prediction, y.to(prediction.dtype), extra)

    forward = log_prob

    def expected_log_prob(
        self,
        mean: Tensor,
        variance: Tensor,
        y: Tensor,
        *,
        trials: Tensor | None = None,
        standard_error: Tensor | None = None,
    ) -> Tensor:
        """E log p(y | η, ψ) over η ~ N(mean, variance), row by row.

        Closed form for a Gaussian and a Poisson; otherwise a fixed quadrature rule, twice
        differentiable in both arguments, at zero variance too.

        Args:
            mean: (..., row) in units of η; (..., row, class) for a categorical.
            variance: like `mean`; for a categorical also (..., row, class, class), the covariance
                of the logits of a row.
            y: as in `log_prob`.
            trials: as in `log_prob`.
            standard_error: as in `log_prob`.

        Returns:
            (..., row) nats.

        Example:
            >>> from bayesmeta.likelihoods import Poisson
            >>> zero, four = torch.zeros(1), torch.full((1,), 4.0)
            >>> value = Poisson().expected_log_prob(zero, four, zero)  # −E exp(η) = −exp(4 / 2)
            >>> round(value.item(), 4)
            -7.3891
        """
        extra = self._extra(trials, standard_error, mean)
        return self._expected(mean, variance, y.to(mean.dtype), extra)

    def sample(
        self,
        prediction: Tensor,
        generator: torch.Generator,
        *,
        trials: Tensor | None = None,
        standard_error: Tensor | None = None,
    ) -> Tensor:
        """One draw of y for every prediction; the global random state is left alone.

        Args:
            prediction: η with any leading axes; on any device.
            generator: the randomness; the draws are made on its device.
            trials: as in `log_prob`.
            standard_error: as in `log_prob`.

        Returns:
            y, of the prediction's dtype; int64 class numbers for a categorical.

        Raises:
            InputError: a prediction is not a number.
        """
        if bool(prediction.isnan().any()):
            raise InputError("a prediction is not a number: check the weights it was made from")
        here = prediction.detach().to(generator.device)
        extra = self._extra(trials, standard_error, here)
        with torch.no_grad():
            return self._sample(here, generator, extra).to(prediction.device)

    def mean(self, prediction: Tensor, *, trials: Tensor | None = None) -> Tensor:
        """E[y | η]; the probabilities (..., class) for a categorical."""
        return self._mean(prediction, trials)

    def summary(self) -> dict[str, float]:
        """The constants in the units of the data, e.g. {"scale": 25.6}."""
        return {name: self._value(name).item() for name in self.constants}

    def rescale(self, y_scale: float) -> Likelihood:
        """The likelihood of y_scale · y, if this one is of y (only of real y)."""
        raise InputError(f"the y of a {self.name} likelihood has no units to change")

    def initialise(self, y: Tensor, mask: Tensor | None = None) -> None:
        """Set learned constants, in place, to where the data suggest a search should start.

        Args:
            y: (task, row).
            mask: (task, row) True on real rows; None when all are.
        """

    def check(
        self,
        y: Tensor,
        mask: Tensor | None = None,
        *,
        trials: Tensor | None = None,
        standard_error: Tensor | None = None,
        names: Sequence[str] | None = None,
    ) -> None:
        """Refuse a response that this likelihood gives no probability.

        Args:
            y: (task, row).
            mask: (task, row) True on real rows.
            trials: (task, row), for a binomial.
            standard_error: (task, row), for a Gaussian.
            names: of the tasks, for the message.

        Raises:
            InputError: names the first impossible value, its task and its row.
        """
        self._extra(trials, standard_error, y)
        support = f"{self.support} under a {self.name} likelihood"
        _refuse("y", y, self._possible(y.double(), trials), support, mask, names)
        if standard_error is not None:
            possible = (standard_error > 0) & standard_error.isfinite()
            support = "it must be positive and finite"
            _refuse("standard_error", standard_error, possible, support, mask, names)

    def to_json(self) -> dict[str, Any]:
        """The name and the constructor's options; learned values are in `state_dict`."""
        return {"name": self.name, **self.options}

    def extra_repr(self) -> str:
        return ", ".join(f"{k}={v}" for k, v in self.options.items())

    def _extra(
        self, trials: Tensor | None, standard_error: Tensor | None, like: Tensor
    ) -> Tensor | None:
        """The one optional tensor this likelihood has, as `like`; the other one is refused."""
        given = {"trials": trials, "standard_error": standard_error}
        for name, value in given.items():
            if value is not None and name not in self.optional:
                raise InputError(f"a {self.name} likelihood takes no {name}=: leave it out")
            if value is None and name in self.required:
                raise InputError(f"a {self.name} likelihood needs {name}=")
        extra = given[self.optional[0]] if self.optional else None
        return None if extra is None else extra.to(device=like.device, dtype=like.dtype)

    def _constant(self, name: str, *, start: float = 1.0) -> None:
        """Declare a positive constant: `options[name]`, or learned as `log_<name>` if that is None.

        The logarithm is float64: a 0-dim tensor leaves the dtype of what it multiplies alone.
        """
        known = self.options[name]
        if known is None:
            logarithm = torch.tensor(math.log(start), dtype=torch.float64)
            self.register_parameter(f"log_{name}", nn.Parameter(logarithm))
        elif isinstance(known, bool) or not 0 < known < math.inf:
            raise InputError(f"{name}={known!r}: it must be a positive number, or None to learn it")

    def _value(self, name: str) -> Tensor:
        """() a positive constant, read where `functional_call` can replace it."""
        known = self.options[name]
        if known is None:
            return getattr(self, f"log_{name}").exp()
        return torch.tensor(known, dtype=torch.float64)

    @property
    def paper_scale(self) -> Tensor | float:
        """What turns the nats of a row into the loss that papers take of it: 1, cross-entropy."""
        return 1.0

    def _start(self, name: str, value: float) -> None:
        """Set a positive constant if it is learned."""
        if self.options[name] is None:
            with torch.no_grad():
                self.get_parameter(f"log_{name}").fill_(math.log(value))

    def _log_prob(self, prediction: Tensor, y: Tensor, extra: Tensor | None) -> Tensor:
        raise NotImplementedError

    def _expected(self, mean: Tensor, variance: Tensor, y: Tensor, extra: Tensor | None) -> Tensor:
        raise NotImplementedError

    def _sample(
        self, prediction: Tensor, generator: torch.Generator, extra: Tensor | None
    ) -> Tensor:
        raise NotImplementedError

    def _mean(self, prediction: Tensor, trials: Tensor | None) -> Tensor:
        return prediction

    def _possible(self, y: Tensor, trials: Tensor | None) -> Tensor:
        """Where y has a density; `isfinite` for real y."""
        return y.isfinite()


def _refuse(
    what: str,
    values: Tensor,
    possible: Tensor,
    support: str,
    mask: Tensor | None,
    names: Sequence[str] | None,
) -> None:
    """Raise at the first real row whose value is not possible."""
    bad = ~possible if mask is None else ~possible & mask
    if bool(bad.any()):
        task, row = bad.nonzero()[0].tolist()
        name = task if names is None else names[task]
        value = values[task, row].item()
        raise InputError(f"{what} = {value:g} in row {row + 1} of task {str(name)!r}: {support}")
