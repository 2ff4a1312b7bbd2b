"""f_i(θ) = −log p(S_i | θ, ψ): any torch module, plain energy or Pyro model as a function of θ.

θ is a flat (dim,) vector inside; ψ (`shared`) is a dictionary of everything not adapted. One task's
energy is written by the user; `torch.func.vmap` makes it one for all tasks and draws.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.parameter import is_lazy

from bayesmeta.likelihoods import Likelihood
from bayesmeta.models.affine import is_affine
from bayesmeta.models.normalisation import (
    CONTEXT,
    COUNTED,
    frozen_on,
    in_context,
    takes_statistics,
    with_policy,
)
from bayesmeta.models.precision import checked, forward
from bayesmeta.results import InputError, check_whole
from bayesmeta.tasks import TaskBatch, TaskFamily

KEYWORDS = ("trials", "offset", "standard_error")
KEEP = "keep"
Energy = Callable[..., Tensor]
Tensors = dict[str, Tensor]


class Model(nn.Module):
    """A likelihood over a module's prediction, as a function of the adapted weights θ.

        f(θ) = −Σ_rows log p(y | module(x; θ, ψ) + offset),    in nats, summed over real rows

    Args:
        module: maps x (row, features) to a prediction (row,), (row, 1) or (row, classes).
        likelihood: of y given the prediction.
        adapt: "all", or names of parameters (or of submodules) that have a prior and a posterior;
            every other parameter is shared by all tasks.
        names: one name per coordinate of θ; by default "weight[0,1]" and the like.
        spec: how the library built the module, for the run record; None for a user's module.
        chunk_size: so many tasks at a time, which bounds memory; None: all.
        batch_norm: whose statistics the module's batch normalisation uses: "support",
            "transductive" or "frozen"; see `models.normalisation`. None leaves the module as it is.
        precision: of products: "float32", "tf32" or "bfloat16"; see `models.precision`.

    Raises:
        InputError: `adapt` names nothing, or `names` has the wrong length.

    Example:
        >>> from bayesmeta import likelihoods
        >>> Model(nn.Linear(1, 1), likelihoods.Gaussian()).names
        ('weight[0,0]', 'bias[0]')
    """

    def __init__(
        self,
        module: nn.Module,
        likelihood: Likelihood | None,
        *,
        adapt: str | Sequence[str] = "all",
        names: Sequence[str] | None = None,
        spec: dict[str, Any] | None = None,
        chunk_size: int | None = None,
        batch_norm: str | None = None,
        precision: str | None = None,
    ) -> None:
        super().__init__()
        if likelihood is not None and not isinstance(likelihood, Likelihood):
            raise InputError(
                f"the likelihood is {likelihood!r}: give one, such as bm.likelihoods.Gaussian()"
            )
        self.module = module = with_policy(module, batch_norm)
        self.batch_norm = batch_norm
        self.likelihood = likelihood
        self.spec = spec
        if chunk_size is not None:
            check_whole("chunk_size", chunk_size, least=1)
        self.chunk_size, self.precision = chunk_size, checked(precision)
        parameters = dict(module.named_parameters())
        self.adapted = tuple(_select(parameters, adapt))
        self.shapes = tuple(parameters[name].shape for name in self.adapted)
        self.sizes = tuple(shape.numel() for shape in self.shapes)
        # Looking for weights that share a tensor costs as much as a small network.
        self.tied = len(dict(self.named_parameters(remove_duplicate=False))) > len(
            dict(self.named_parameters())
        )
        default = [n for name in self.adapted for n in coordinate_names(name, parameters[name])]
        self.names = tuple(names) if names is not None else tuple(default)
        if len(self.names) != len(default):
            raise InputError(f"{len(self.names)} names for {len(default)} adapted weights")

    @property
    def dim(self) -> int:
        """Number of adapted weights."""
        return sum(self.sizes)

    @property
    def blocks(self) -> Tensor:
        """(dim,) which parameter tensor each coordinate belongs to."""
        return torch.repeat_interleave(torch.arange(len(self.sizes)), torch.tensor(self.sizes))

    @property
    def shared(self) -> Tensors:
        """ψ: every parameter that is neither adapted nor frozen, the likelihood's included."""
        adapted = {f"module.{name}" for name in self.adapted}
        return {n: p for n, p in self.named_parameters() if n not in adapted and p.requires_grad}

    def add_shared(self, name: str, value: Tensor) -> None:
        """One more tensor in ψ, that the model itself does not read; its name has one dot."""
        group, _, key = name.partition(".")
        setattr(self, group, nn.ParameterDict({key: nn.Parameter(value)}))

    def load_shared(self, shared: Tensors) -> None:
        """Set ψ in place."""
        own = self.shared
        with torch.no_grad():
            for name, value in shared.items():
                if own[name].shape != value.shape:  # a copy would repeat it
                    raise InputError(
                        f"{name} is {tuple(value.shape)}, of the model {tuple(own[name].shape)}"
                    )
                own[name].copy_(value)

    @property
    def start(self) -> Tensor:
        """(dim,) the module's present values of the adapted weights."""
        parameters = dict(self.module.named_parameters())
        return torch.cat([parameters[name].detach().flatten() for name in self.adapted])

    def bind(self, family: TaskFamily) -> Model:
        """This model, ready for a family's tensors."""
        return self

    def unflatten(self, theta: Tensor) -> Tensors:
        parts = zip(self.adapted, theta.split(self.sizes), self.shapes, strict=True)
        return {f"module.{name}": part.reshape(shape) for name, part, shape in parts}

    def forward(self, function: Callable[[], Tensor]) -> Tensor:
        """Whatever `function` computes, with θ and ψ in the place of this module's parameters."""
        return function()

    def at(self, theta: Tensor | None, shared: Tensors, function: Callable[[], Tensor]) -> Tensor:
        """`function()`, evaluated at θ (dim,) and ψ."""
        values = shared if theta is None else {**shared, **self.unflatten(theta)}
        return functional_call(self, values, (function,), tie_weights=self.tied)

    def prediction(self, tensors: Tensors) -> Tensor:
        """(row,) or (row, classes) for one task at the present weights, offset included."""
        x, context = self.inputs(tensors), tensors.get(CONTEXT)
        x = x if context is None else torch.cat([context, x])
        output = forward(self.module, x, self.precision)
        output = output if context is None else output[len(context) :]
        if output.ndim > 1 and getattr(self.likelihood, "name", None) != "categorical":
            output = output.squeeze(-1)
        return output + tensors["offset"] if "offset" in tensors else output

    def frozen_on(self, x: Tensor) -> Model:
        """This model with batch normalisation held at the statistics of x (row, ...)."""
        model = copy.deepcopy(self)
        model.module, model.batch_norm, model.spec = frozen_on(self.module, x), "frozen", None
        return model

    def with_precision(self, precision: str | None) -> Model:
        """A copy in another precision, such as to compare meta-gradients with."""
        if type(self) is not Model:
            raise InputError(f"a {type(self).__name__} has no module: its precision is its own")
        model = copy.deepcopy(self)
        model.precision, spec = checked(precision), self.spec
        model.spec = None if spec is None else spec | {"precision": precision}
        return model

    @classmethod
    def inputs(cls, tensors: Tensors) -> Tensor:
        return tensors[cls.inputs_name(tensors)]

    @staticmethod
    def inputs_name(tensors: Tensors) -> str:
        return "x" if "x" in tensors else next(iter(tensors))

    def seen(self, query: TaskBatch, support: TaskBatch, *, inductive: bool = False) -> TaskBatch:
        """The query sets as the model is to see them: with their context, or as they are."""
        x, needed = self.inputs_name(query.tensors), self.needs_context(inductive)
        return in_context(self, query, support, x) if needed else query

    def needs_context(self, inductive: bool = False) -> bool:
        """Whether statistics of query rows are to be those of the support rows."""
        return self.batch_norm == "support" or (inductive and takes_statistics(self))

    def predict_task(self, theta: Tensor, shared: Tensors, tensors: Tensors) -> Tensor:
        """Prediction for one task at θ (dim,)."""
        return self.at(theta, shared | given(tensors), lambda: self.prediction(tensors))

    def log_prob_task(self, theta: Tensor, shared: Tensors, tensors: Tensors) -> Tensor:
        """(row,) log p(y | θ, ψ) in nats for one task."""
        likelihood, options = self.require_likelihood(), self.options(tensors)
        y = self.response(tensors)
        return self.at(
            theta,
            shared | given(tensors),
            lambda: likelihood.log_prob(self.prediction(tensors), y, **options),
        )

    def options(self, tensors: Tensors) -> Tensors:
        """The optional tensors (trials, known standard errors) that the likelihood takes."""
        return {k: tensors[k] for k in self.require_likelihood().optional if k in tensors}

    def require_likelihood(self) -> Likelihood:
        if self.likelihood is None:
            raise InputError("a model made from an energy has no likelihood of single rows")
        return self.likelihood

    @staticmethod
    def response(tensors: Tensors) -> Tensor:
        if "y" in tensors:
            return tensors["y"]
        plain = [v for k, v in tensors.items() if k not in KEYWORDS]
        if len(plain) < 2:
            raise InputError("the family has no response y")
        return plain[1]

    def energy(
        self, theta: Tensor, shared: Tensors, tensors: Tensors, mask: Tensor | None = None
    ) -> Tensor:
        """() f(θ) in nats for one task: the sum over its real rows."""
        rows = self.log_prob_task(theta, shared, tensors)
        return -(rows if mask is None else torch.where(mask, rows, 0.0)).sum()

    def over_tasks(
        self, function: Callable[..., Tensor], theta: Tensor, batch: TaskBatch, *rest: Any
    ) -> Tensor:
        """Map a function of (θ, tensors, mask) over tasks, and over draw axes before them."""
        inner = (0, 0, None if batch.mask is None else 0) + (None,) * len(rest)
        call = vmap(function, in_dims=inner, chunk_size=self.chunk_size)
        for _ in range(theta.ndim - 2):
            call = vmap(call, in_dims=(0,) + (None,) * (2 + len(rest)))
        return call(theta, batch.tensors, batch.mask, *rest)

    def energies(self, theta: Tensor, batch: TaskBatch, shared: Tensors | None = None) -> Tensor:
        """(..., task) f_i(θ_i) in nats.

        Args:
            theta: (..., task, dim); axes before the task are draws.
            batch: the tasks.
            shared: ψ; the model's own values by default.
        """
        shared = self.shared if shared is None else shared
        return self.over_tasks(
            lambda t, tensors, mask, s: self.energy(t, s, tensors, mask), theta, batch, shared
        )

    def predict(self, theta: Tensor, batch: TaskBatch, shared: Tensors | None = None) -> Tensor:
        """(..., task, row[, class]) predictions, offset included."""
        shared = self.shared if shared is None else shared
        return self.over_tasks(
            lambda t, tensors, mask, s: self.predict_task(t, s, tensors), theta, batch, shared
        )

    def log_prob_rows(
        self, theta: Tensor, batch: TaskBatch, shared: Tensors | None = None
    ) -> Tensor:
        """(..., task, row) log p(y | θ, ψ) in nats; 0 at padding."""

        def rows(t: Tensor, tensors: Tensors, mask: Tensor | None, s: Tensors) -> Tensor:
            values = self.log_prob_task(t, s, tensors)
            return values if mask is None else torch.where(mask, values, 0.0)

        shared = self.shared if shared is None else shared
        return self.over_tasks(rows, theta, batch, shared)

    def log_prob_at(self, prediction: Tensor, batch: TaskBatch, shared: Tensors) -> Tensor:
        """(..., task, row) log p(y | η) at given predictions η; 0 at padding."""
        likelihood = self.require_likelihood()
        y, options = self.response(batch.tensors), self.options(batch.tensors)
        rows = self.at(None, shared, lambda: likelihood.log_prob(prediction, y, **options))
        return rows if batch.mask is None else torch.where(batch.mask, rows, 0.0)

    def paper_scale(self, batch: TaskBatch, shared: Tensors) -> Tensor | float:
        """What turns f into the summed loss of papers: 2σ² where they take squared errors, or 1."""
        likelihood = self.likelihood
        if likelihood is None or "standard_error" in batch.tensors:
            return 1.0
        if not any(True for _ in likelihood.parameters()):
            return likelihood.paper_scale
        return self.at(None, shared, lambda: torch.as_tensor(likelihood.paper_scale))

    @property
    def shared_weights(self) -> Tensors:
        """The module's part of ψ (without the likelihood's parameters)."""
        return {k: v for k, v in self.shared.items() if k.startswith("module.")}

    def flat_prediction(self, vector: Tensor, tensors: Tensors) -> Tensor:
        """Prediction at (θ, the module's ψ) laid out in one vector."""
        shared = self.split_shared(vector[self.dim :])
        return self.predict_task(vector[: self.dim], shared, tensors)

    def split_shared(self, vector: Tensor) -> Tensors:
        """The module's part of ψ by name, from one vector."""
        weights = self.shared_weights
        parts = vector.split([w.numel() for w in weights.values()]) if weights else ()
        return {k: p.reshape(w.shape) for (k, w), p in zip(weights.items(), parts, strict=True)}

    @property
    def flat_dim(self) -> int:
        """Length of (θ, the module's ψ)."""
        return self.dim + sum(w.numel() for w in self.shared_weights.values())

    def design(self, batch: TaskBatch) -> tuple[Tensor, Tensor]:
        """W (task, row, flat_dim) and c (task, row) of a prediction W (θ, ψ) + c."""
        basis = torch.eye(self.flat_dim, dtype=self.start.dtype, device=batch.index.device)
        vectors = torch.cat([torch.zeros_like(basis[:1]), basis])[:, None]
        values = self.over_tasks(
            lambda v, tensors, mask: self.flat_prediction(v, tensors),
            vectors.expand(-1, len(batch), -1),
            batch,
        )
        # Differences are exact Jacobian columns of an affine function, and need no forward mode.
        return (values[1:] - values[0]).movedim(0, -1), values[0]

    def is_affine(self, family: TaskFamily, *, jointly: bool = False) -> bool:
        """Whether the prediction is affine in θ (or in θ and ψ jointly); see `models.affine`."""
        return is_affine(self, family, jointly=jointly)

    @classmethod
    def from_energy(cls, fn: Energy, dim: int, *, names: Sequence[str] | None = None) -> Model:
        """A model from a plain function f(θ, *task tensors) → nats of one task.

        Args:
            fn: receives θ (dim,), the family's tensors in order without their task axis, and, if
                it has an argument `mask`, the task's (row,) mask.
            dim: length of θ.
            names: one per coordinate.

        Example:
            >>> model = Model.from_energy(lambda theta, c: 0.5 * (theta - c).square().sum(), 2)
            >>> family = TaskFamily.from_tensors(c=torch.ones(3, 2))
            >>> model.energies(torch.zeros(3, 2), family.batch()).tolist()
            [1.0, 1.0, 1.0]
        """
        from bayesmeta.models.energy import EnergyModel

        return EnergyModel(fn, dim, names)

    @classmethod
    def from_pyro(cls, fn: Callable[..., Any]) -> Model:
        """A model from a Pyro model fn(*task tensors): latent sites become θ, unconstrained.

        The sites' own priors are replaced by N(θ₀, Σ₀); f is minus the log-density of the observed
        sites. See `bayesmeta.models.pyro`.
        """
        from bayesmeta.models.pyro import PyroModel

        return PyroModel(fn)


def given(tensors: Tensors) -> Tensors:
    """Buffers that a task's tensors give: dropped units, rows in statistics."""
    return {k: tensor for k, tensor in tensors.items() if k.endswith((f".{KEEP}", f".{COUNTED}"))}


def _select(parameters: Mapping[str, Tensor], adapt: str | Sequence[str]) -> list[str]:
    for name, parameter in parameters.items():
        if is_lazy(parameter):
            raise InputError(
                f"the weights {name!r} have no size yet: call the module on some rows once, which "
                "gives lazy layers theirs"
            )
    if adapt == "all":
        return [name for name, p in parameters.items() if p.requires_grad]
    wanted = [adapt] if isinstance(adapt, str) else list(adapt)
    for name in wanted:
        if not any(p == name or p.startswith(name + ".") for p in parameters):
            raise InputError(f"adapt names {name!r}, but the parameters are {list(parameters)}")
    return [p for p in parameters if any(p == n or p.startswith(n + ".") for n in wanted)]


def coordinate_names(name: str, parameter: Tensor) -> list[str]:
    """One name per element of a parameter: "weight[0,1]", or the bare name of a scalar."""
    places = product(*map(range, parameter.shape))
    return [f"{name}[{','.join(map(str, i))}]" if i else name for i in places]
