"""How well new classes are told apart: accuracy, nats, calibration, by both kinds of statistics.

A network with batch normalisation has two accuracies. *Inductive*: every query image is judged from
the support set alone, as if it came by itself. *Transductive*: all query images of a task are
normalised together, so each is judged knowing what the others look like. Both are given, always.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from bayesmeta.amortised.memory import within_memory
from bayesmeta.amortised.step import MetaStep
from bayesmeta.diagnostics.calibration import expected_calibration_error
from bayesmeta.empirical import Empirical
from bayesmeta.few_shot import FewShot
from bayesmeta.fit import Fit
from bayesmeta.gaussian import Gaussian
from bayesmeta.inner.problem import InnerProblem
from bayesmeta.method import Method
from bayesmeta.models import Model
from bayesmeta.models.matching import check_ways
from bayesmeta.models.normalisation import CONTEXT, COUNTED
from bayesmeta.models.precision import multiplying
from bayesmeta.posteriors.free import Free
from bayesmeta.results import InputError, check_whole
from bayesmeta.tasks import TaskBatch

AT_A_TIME = 16
ALIKE, ROUNDED = 1e-3, 0.05  # of a probability: in float32 and float64, and in bfloat16
Z95 = 1.959963984540054


@dataclass(frozen=True, eq=False)
class Scores:
    """Query images of many tasks, scored with one kind of statistics.

    Args:
        accuracy: (task,) share of query images in the right class.
        nll: (task,) −log p(y) in nats per query image, p the mean over draws of θ.
        calibration: expected calibration error over all query images, in 15 bins.
    """

    accuracy: Tensor
    nll: Tensor
    calibration: float

    @property
    def interval(self) -> tuple[float, float, float]:
        """Mean accuracy over tasks, and the ends of its 95 % interval (normal, over tasks)."""
        mean = float(self.accuracy.mean())
        half = Z95 * float(self.accuracy.std()) / len(self.accuracy) ** 0.5
        return mean, mean - half, mean + half

    def __str__(self) -> str:
        mean, low, _ = self.interval
        return (
            f"{100 * mean:.2f} ± {100 * (mean - low):.2f} %, {float(self.nll.mean()):.4f} nats a "
            f"query image, calibration error {100 * self.calibration:.2f} %"
        )


@dataclass(frozen=True, eq=False)
class FewShotScores:
    """What a fit makes of new tasks.

    Args:
        inductive: every query image judged from the support set alone.
        transductive: the query images of a task normalised together; the same numbers where the
            model has no batch normalisation with a task's own statistics.
        tasks: how many.
        stationarity: (task,) ‖∇F‖ by all support rows at the mean of Q_i, over that at θ₀; 0 where
            adaptation was run to its end.
    """

    inductive: Scores
    transductive: Scores
    tasks: int
    stationarity: Tensor

    def __repr__(self) -> str:
        return (
            f"{self.tasks} tasks (95 % interval over tasks)\n  inductive:    {self.inductive}\n"
            f"  transductive: {self.transductive}"
        )


def few_shot_scores(
    fit: Fit,
    tasks: FewShot,
    *,
    count: int = 600,
    seed: int = 0,
    draws: int = 16,
    method: Method | None = None,
) -> FewShotScores:
    """Adapt to the support sets of new tasks, and score their query sets.

        p(y | x) = mean_draws p(y | x, θ),  θ ~ Q_i

    Args:
        fit: with the prior.
        tasks: over classes that were not trained on.
        count: how many tasks.
        seed: of tasks and draws; the same seed is the same tasks for every fit.
        draws: of θ where Q_i is not a point; of a random algorithm so many runs.
        method: to adapt by, in the place of the fit's own.

    Raises:
        InputError: the classes were trained on, the images have another shape or the tasks other
            ways than the model, or Q_i is free.
    """
    choices = fit.choices if method is None else method
    check_whole("count", count, least=2)
    check_whole("draws", draws, least=1)
    check_whole("seed", seed)
    _check(fit, tasks, choices)
    generator = _seeded(seed)
    # Noise of its own, so that what a method draws does not decide which tasks come next.
    noise = _seeded(int(torch.randint(2**62, (), generator=_seeded(seed))))
    mean = fit.prior.mean
    tasks = tasks.like(device=mean.device, dtype=mean.dtype)
    step = MetaStep(fit.model, fit.fitted_prior, choices, tasks.family(1, _seeded(0))[0])
    parts = []
    with multiplying(fit.model.precision):
        for start in range(0, count, AT_A_TIME):
            both = tasks.draw(min(AT_A_TIME, count - start), generator)
            some = partial(_some_scored, fit, step, both, draws, noise)
            parts.append(within_memory(some, torch.arange(len(both[0]))))
    pooled = [torch.cat(each) for each in zip(*parts, strict=True)]
    labels, inductive, transductive, stationarity = pooled
    return FewShotScores(
        _summary(inductive, labels), _summary(transductive, labels), count, stationarity
    )


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _check(fit: Fit, tasks: FewShot, method: Method) -> None:
    for name, value, kind in (("tasks", tasks, FewShot), ("method", method, Method)):
        if not isinstance(value, kind):
            raise InputError(f"{name} is a {type(value).__name__}: give a {kind.__name__}")
    if isinstance(method.posterior, Free):
        raise InputError(
            "free Q_i are not adapted by an algorithm: give method=, such as bm.methods.maml(...)"
        )
    check_ways(fit.model, tasks)
    trained = (fit.stream or {}).get("classes")
    if trained is not None:
        tasks.refuse_overlap(set(trained))
    shape = (fit.stream or {}).get("shape")
    if shape is not None and list(tasks.shape) != list(shape):
        raise InputError(f"images are {tasks.shape}, those trained on {tuple(shape)}: resize them")


def _some_scored(
    fit: Fit,
    step: MetaStep,
    both: tuple[TaskBatch, TaskBatch],
    draws: int,
    generator: torch.Generator,
    which: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Labels (task, row), log p (task, row, class) of both kinds, and the stationarity (task,)."""
    model, (support, query) = fit.model, (batch[which.to(batch.index.device)] for batch in both)
    shared = {k: v.detach() for k, v in model.shared.items()}
    free = {k: v.detach() for k, v in fit.fitted_prior.free.items()}
    with torch.no_grad():
        params = step.params(free, shared, len(support))
        runs = draws if step.method.stochastic else None
        noise = step.noise(support, free["mean"], generator, runs)
        posterior, _ = step.adapt(params, support, noise)
        theta = _draws(posterior, draws, generator)
        stationarity = _stationarity(step.build(support)(params), posterior.mean)
        together = _log_probabilities(model, theta, query)
        alone = together
        if model.needs_context(inductive=True):
            alone = _log_probabilities(model, theta, model.seen(query, support, inductive=True))
        _check_alone(model, theta, model.seen(query[:1], support[:1], inductive=True), alone)
    return model.response(query.tensors), alone, together, stationarity


def _check_alone(model: Model, theta: Tensor, query: TaskBatch, found: Tensor) -> None:
    """Refuse to call a score inductive where an image's probabilities depend on its neighbours.

    Raises:
        InputError: those of the first image of a task change when it comes by itself.
    """
    x = model.inputs_name(query.tensors)
    rows = query.tensors[x].shape[1]
    short = {
        name: tensor[:, : tensor.shape[1] - rows + 1] if name.endswith(COUNTED) else tensor[:, :1]
        for name, tensor in query.tensors.items()
        if name != CONTEXT
    }
    first = replace(query, tensors=query.tensors | short, mask=None)
    alone = _log_probabilities(model, theta[:, :1], first)
    change = float((alone[0, 0].exp() - found[0, 0].exp()).abs().max())
    if change > (ROUNDED if model.precision == "bfloat16" else ALIKE):
        raise InputError(
            f"the model's probabilities of an image change by {change:.2g} with the images beside "
            "it, so it has no inductive score: use nn.BatchNorm layers and say whose statistics, "
            'bm.Model(..., batch_norm="support" or "transductive"), or no statistics over rows'
        )


def _draws(posterior: Gaussian | Empirical, draws: int, generator: torch.Generator) -> Tensor:
    """(draw, task, dim): one where Q_i is a point."""
    if isinstance(posterior, Empirical):
        return posterior.draws
    if posterior.is_point:
        return posterior.mean[None]
    return posterior.sample(draws, generator)


def _stationarity(problem: InnerProblem, theta: Tensor) -> Tensor:
    """(task,) ‖∇F(θ)‖ / ‖∇F(θ₀)‖ by all support rows; 0 where both are."""
    first, last = (problem.gradient(at).norm(dim=-1) for at in (problem.start, theta))
    return torch.where(last > 0, last / first, 0.0)


def _log_probabilities(model: Model, theta: Tensor, query: TaskBatch) -> Tensor:
    """(task, row, class) log of the mean over draws of the class probabilities."""
    # One draw at a time: all at once would need the memory of as many networks.
    parts = [model.predict(one, query).log_softmax(-1) for one in theta]
    return torch.stack(parts).logsumexp(0) - math.log(len(parts))


def _summary(log_probabilities: Tensor, labels: Tensor) -> Scores:
    right = log_probabilities.argmax(-1) == labels
    nll = -log_probabilities.gather(-1, labels[..., None])[..., 0]
    probabilities = log_probabilities.exp().flatten(0, 1)
    error = expected_calibration_error(probabilities, labels.flatten())
    return Scores(right.double().mean(1), nll.double().mean(1), error)
