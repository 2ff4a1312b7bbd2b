"""Which way to differentiate a random M is best: bias, variance, cost, and what a second buys.

An estimate e of ∇M costs s seconds and misses by

    E‖e − ∇M‖² = ‖bias‖² + tr Cov(e) = rmse²,    precision per second = 1 / (rmse² s)

Every method makes many independent estimates, each of a copy of the family, and the copies are so
many more tasks of one batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bayesmeta.diagnostics.bench import Bench, Runs
from bayesmeta.diagnostics.evaluations import gradient_evaluations
from bayesmeta.diagnostics.noisy_means import Length, Sample, length
from bayesmeta.method import Method
from bayesmeta.models import Model
from bayesmeta.objective import Validation
from bayesmeta.posteriors.free import Free
from bayesmeta.prior import Prior, with_values
from bayesmeta.results import InputError
from bayesmeta.tasks import TaskFamily

if TYPE_CHECKING:
    from pandas import DataFrame

REFERENCE = 20  # paths of the reference for each repeat of a method
WORDS = {"draws": "E_z g(θ_z)", "mean": "g(E_z θ_z)"}
GIVEN = "as given"
SEEDS = 2**62


@dataclass(frozen=True)
class Estimator:
    """What its estimates say of one method. Lengths are in nats per unit of θ.

    Args:
        method: its name.
        target: the M whose gradient it is held against.
        bias: ‖E e − ∇M‖, the noise of both taken out of the square: √max(0, ‖d‖² − tr Cov(d)) for
            the difference d of mean and reference.
        bias_error: standard error of ‖d‖, along d.
        bias_low, bias_high: 95 % interval of the bias; from 0 where none is seen.
        p: of ‖d‖² if there were no bias; NaN where nothing is random.
        relative_bias: bias over the length of the reference.
        sd: √tr Cov(e) of one estimate.
        rmse: √(bias² + sd²), how far one estimate is off.
        gradients: evaluations per estimate, see `gradient_evaluations`; NaN where not counted.
        seconds: per estimate, in a batch of many.
        precision_per_second: 1 / (rmse² seconds), in (unit of θ / nat)² per second.
        broken: share of estimates in which a path met a value that is not finite.
    """

    method: str
    target: str
    bias: float
    bias_error: float
    bias_low: float
    bias_high: float
    p: float
    relative_bias: float
    sd: float
    rmse: float
    gradients: float
    seconds: float
    precision_per_second: float
    broken: float


@dataclass(frozen=True, eq=False)
class EstimatorComparison:
    """Estimators of ∂M/∂θ₀ side by side; `bm.plots.estimators` draws it.

    Args:
        estimators: one per method.
        references: (dim,) ∇M by target.
        reference_errors: √tr Cov of each; 0 where it was given.
        means: (dim,) mean estimate by method.
        repeats: estimates per method.
        tasks: over which a gradient is summed.
    """

    estimators: tuple[Estimator, ...]
    references: dict[str, Tensor]
    reference_errors: dict[str, float]
    means: dict[str, Tensor]
    repeats: int
    tasks: int

    def frame(self) -> DataFrame:
        """One row per method, a column per field of `Estimator`."""
        import pandas as pd

        return pd.DataFrame([asdict(e) for e in self.estimators]).set_index("method")

    def __str__(self) -> str:
        """A table a person can read."""
        dim = len(next(iter(self.references.values())))
        size = f"{_count(dim, 'weight')}, {_count(self.tasks, 'task')}"
        said = f"{self.repeats} estimates of ∂M/∂θ₀ by each method ({size})"
        lines = [f"{said}; lengths in nats per unit of θ"]
        for target, value in self.references.items():
            error = self.reference_errors[target]
            said = f" ± {error:.2g}" if error > 0 else ", exact"
            lines.append(f"reference {target}: length {float(value.norm()):.4g}{said}")
        cells = [HEADINGS, *map(_cells, self.estimators)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        for row in cells:
            padded = (
                cell.ljust(width) if place < 2 else cell.rjust(width)
                for place, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            lines.append("  ".join(padded).rstrip())
        lines += [
            f"{e.method}: a path was not finite in {e.broken:.1%} of its estimates: lower lr="
            for e in self.estimators
            if e.broken > 0
        ]
        return "\n".join(lines)


HEADINGS = (
    *("method", "target", "bias", "95 % interval", "of ‖∇M‖", "p", "sd", "rmse"),
    *("gradients", "ms", "precision/s"),
)


def _cells(e: Estimator) -> tuple[str, ...]:
    return (
        *(e.method, e.target, f"{e.bias:.3g}", f"{e.bias_low:.2g} to {e.bias_high:.2g}"),
        *(f"{e.relative_bias:.2%}", "" if math.isnan(e.p) else f"{e.p:.2g}"),
        *(f"{e.sd:.3g}", f"{e.rmse:.3g}"),
        "" if math.isnan(e.gradients) else f"{e.gradients:.4g}",
        *(f"{1e3 * e.seconds:.3g}", f"{e.precision_per_second:.3g}"),
    )


def compare_estimators(
    model: Model,
    prior: Prior,
    family: TaskFamily,
    methods: Mapping[str, Method],
    *,
    generator: torch.Generator,
    repeats: int = 200,
    reference: Tensor | Mapping[str, Tensor] | None = None,
    query: TaskFamily | None = None,
    reference_paths: int | None = None,
    batch: int | None = None,
) -> EstimatorComparison:
    """Bias, variance, cost and effective precision per second of estimators of ∂M/∂θ₀.

    All methods adapt to the same rows: where they split tasks at random, one split is drawn first.
    All start from the same seed, so that methods with the same algorithm and as many draws see the
    same noise (common random numbers), and look biased together; the reference has its own. Tests
    and intervals take mean estimates for normal: where a few paths explode and make up most of the
    variance, raise repeats= before believing them.

    Without `reference` it is computed. That of E_z g(θ_z) is the mean of `Unrolled` over many
    paths. That of g(E_z θ_z) is the mean over 20 groups of paths of `SeparatePaths(every_pair)`,
    each as exact as its number of paths; where g is not quadratic its own bias falls as one over
    that number. Its standard error is part of every bias's.

    Seconds are the median over batches, at least five where repeats allow, of a batch's time over
    its estimates: what one costs among many on this machine, and not what one alone would take. A
    first one does not count, and the methods take turns.

    Args:
        model: f(θ, task), with ψ at its present values.
        prior: with values.
        family: the tasks, over which a gradient is summed.
        methods: by name; those whose adaptation is not random have sd 0, and are held against the
            E_z g(θ_z) of the others.
        generator: the noise.
        repeats: independent estimates per method.
        reference: (dim,) the exact gradient, or {"draws": of E_z g(θ_z), "mean": of g(E_z θ_z)}.
        query: the query sets, when they are not to be split off the family's rows.
        reference_paths: per task; None: 20 for each repeat.
        batch: estimates at a time; None: a fifth of them, or what some 2·10⁷ numbers hold.

    Raises:
        InputError: no methods, or some that have no meta-gradient; fewer than 2 repeats; methods
            that split tasks differently; a reference of another shape, or none to be computed.

    Example:
        >>> from bayesmeta.methods import GradientDescent, stochastic
        >>> x = torch.linspace(-1, 1, 6).double().reshape(1, 6)
        >>> data = TaskFamily.from_tensors(x=x, y=2 * x + 0.1 * x.cos())
        >>> def energy(theta, x, y, mask):
        ...     return 0.5 * ((x * theta - y).square() * mask).sum()
        >>> line = Model.from_energy(energy, 1)
        >>> start = Prior("point").at(mean=torch.zeros(1).double(), variance=0.0)
        >>> sgd = stochastic(algorithm=GradientDescent(0.1, rows=2), draws=2, support=None)
        >>> g = torch.Generator().manual_seed(0)
        >>> found = compare_estimators(line, start, data, {"sgd": sgd}, generator=g)
        >>> found.estimators[0].p > 0.001, found.estimators[0].gradients
        (True, 12.0)
    """
    paths = reference_paths
    counts = {"repeats": (repeats, 2), "reference_paths": (paths, 4), "batch": (batch, 1)}
    _check(methods, generator, counts)
    prior = with_values(prior)
    targets = _targets(methods, reference)
    bench = Bench(model, prior, *_sets(family, methods, query, generator), batch)
    device = generator.device
    seed, other = torch.randint(SEEDS, (2,), generator=generator, device=device).tolist()
    noise = torch.Generator(device).manual_seed(other)
    references: dict[str, Sample] = {}
    for name, target in targets.items():
        if target in references:
            continue
        if reference is None:
            paths = paths or REFERENCE * repeats
            references[target] = bench.reference(methods[name], paths, noise)
            if not bool(references[target].mean.isfinite().all()):
                raise InputError(
                    f"the reference of {name} is not finite: its paths break; lower lr=, or give "
                    "reference="
                )
        else:
            given = _given(reference, methods[name], methods, model.dim)
            references[target] = Sample.exact(given)
    runs = bench.run(methods, repeats, lambda: torch.Generator(device).manual_seed(seed))
    estimators = []
    for name, method in methods.items():
        cost = gradient_evaluations(method, bench.support, shared=bool(model.shared))
        judged = _judged(name, targets[name], runs[name], references[targets[name]], cost)
        estimators.append(judged)
    return EstimatorComparison(
        tuple(estimators),
        {target: sample.mean for target, sample in references.items()},
        {target: math.sqrt(sample.trace) for target, sample in references.items()},
        {name: found.sample.mean for name, found in runs.items()},
        repeats,
        len(family),
    )


def _judged(name: str, target: str, runs: Runs, reference: Sample, gradients: float) -> Estimator:
    bias, size = length(runs.sample, reference), float(reference.mean.norm())
    mse = bias.value**2 + runs.sample.spread
    if runs.broken == 1:  # what is left of such estimates says nothing
        bias, mse = Length(*[math.nan] * 5), math.nan
    return Estimator(
        method=name,
        target=target,
        bias=bias.value,
        bias_error=bias.error,
        bias_low=bias.low,
        bias_high=bias.high,
        p=bias.p,
        relative_bias=bias.value / size if size > 0 else math.nan,
        sd=math.sqrt(runs.sample.spread),
        rmse=math.sqrt(mse),
        gradients=gradients,
        seconds=runs.seconds,
        precision_per_second=math.inf if mse == 0 else 1 / (mse * runs.seconds),
        broken=runs.broken,
    )


def _check(methods: Any, generator: Any, counts: dict[str, Any]) -> None:
    if not isinstance(methods, Mapping) or not methods:
        raise InputError('methods must name one or more: {"sgd": bm.methods.stochastic(), …}')
    for name, method in methods.items():
        if not isinstance(method, Method):
            raise InputError(
                f"methods[{name!r}] is {type(method).__name__}, not a Method: make it by "
                "bm.methods.stochastic() and its like"
            )
        if isinstance(method.posterior, Free):
            raise InputError(
                f"{name!r} has free Q_i, which are no function of θ₀, so there is no meta-gradient "
                "to estimate: leave it out"
            )
    if not isinstance(generator, torch.Generator):
        raise InputError(
            "the noise is an argument: give generator=, such as torch.Generator().manual_seed(0)"
        )
    for name, (value, least) in counts.items():
        if value is not None and (type(value) is not int or value < least):
            raise InputError(f"{name}={value!r}: give a whole number, at least {least}")


def _sets(
    family: TaskFamily,
    methods: Mapping[str, Method],
    query: TaskFamily | None,
    generator: torch.Generator,
) -> tuple[TaskFamily, TaskFamily]:
    """One support and one query set per task, for all methods."""
    if query is not None:
        return family, query
    objectives = [m.objective for m in methods.values()]
    wanted = {o.support for o in objectives if isinstance(o, Validation)}
    if len(wanted) > 1:
        said = ", ".join(sorted(map(str, wanted)))
        raise InputError(
            f"the methods split tasks differently (support={said}), so they have different M: give "
            "all of them the same support=, or give query="
        )
    support = wanted.pop() if wanted else None
    return (family, family) if support is None else family.split(support, generator)


def _targets(methods: Mapping[str, Method], reference: Any) -> dict[str, str]:
    """By method, the words for the M whose gradient it is held against; random methods first.

    Raises:
        InputError: a method that is not random, where no one M of the others is its own.
    """
    random = {name: m for name, m in methods.items() if m.stochastic}
    fixed = [name for name in methods if name not in random]
    if reference is not None:
        if isinstance(reference, Tensor) and not random:
            return dict.fromkeys(fixed, GIVEN)
        return {name: WORDS[methods[name].at] for name in (*random, *fixed)}
    # The same M: the same law of θ_z, and the same loss at the same point. In order of methods.
    first = {
        name: next(other for other in random if _law(random[other]) == _law(method))
        for name, method in random.items()
    }
    words = [WORDS[methods[name].at] for name in dict.fromkeys(first.values())]
    targets = {}
    for name, other in first.items():
        said = WORDS[methods[other].at]
        targets[name] = said if words.count(said) == 1 else f"{said} of {other}"
    if fixed and words.count(WORDS["draws"]) != 1:
        raise InputError(
            f"{fixed[0]!r} is not random, and the others have no E_z g(θ_z) in common that it "
            "could be held against: give reference="
        )
    return targets | dict.fromkeys(fixed, WORDS["draws"])


def _law(method: Method) -> Any:
    """What decides M, of a random method."""
    loss = "query" if isinstance(method.objective, Validation) else method.objective
    return method.anchored, method.lam, method.inner, loss, method.at


def _given(reference: Any, method: Method, methods: Mapping[str, Method], dim: int) -> Tensor:
    """(dim,) what the user gave for a method.

    Raises:
        InputError: it has another shape, or is missing.
    """
    if isinstance(reference, Mapping):
        if method.at not in reference:
            raise InputError(
                f'reference has no "{method.at}", the gradient of {WORDS[method.at]}: it has '
                f"{', '.join(map(repr, reference))}"
            )
        value = reference[method.at]
    else:
        if len({m.at for m in methods.values()}) > 1:
            raise InputError(
                "the methods differentiate two losses, E_z g(θ_z) and g(E_z θ_z): give reference="
                '{"draws": …, "mean": …}'
            )
        value = reference
    if not isinstance(value, Tensor) or value.shape != (dim,) or not value.isfinite().all():
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise InputError(f"a reference is ∂M/∂θ₀, finite, of shape ({dim},), not {shape}")
    return value.detach().cpu()


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
