"""The outer descent over (θ₀, Σ₀, ψ) of a method whose Q_i is a function of them.

One outer step is taken on some tasks: all of a family, a batch of it, or tasks drawn from a stream.
They are gone through in parts, by this process's share of them and by what fits into memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from bayesmeta.amortised.checks import check_anchor, check_minibatches, check_random
from bayesmeta.amortised.memory import within_memory
from bayesmeta.amortised.step import MetaStep, Outcome
from bayesmeta.failures import Failures
from bayesmeta.gaussian import Gaussian
from bayesmeta.inner.paths import Paths
from bayesmeta.joint.problem import Problem
from bayesmeta.objective import Validation
from bayesmeta.outer import Group, Trace, descend, minimise
from bayesmeta.prior import Prior
from bayesmeta.ranks import Ranks, wide
from bayesmeta.results import InputError
from bayesmeta.splits import Split
from bayesmeta.streams import STEP_TASKS, Passes
from bayesmeta.tasks import TaskBatch

START_SD = 0.3
NOISY_STEPS = 5000
DETERMINISTIC_STEPS = 500
SHARED_LR = 0.01
LARGEST_INPUT = 250_000
"""Numbers of data at once on a CPU: 320 images of 28 × 28. Layers of more are so large that every
one is new memory from the system, which took up to half the time (study conv_speed)."""


@dataclass(frozen=True, eq=False)
class Tasks:
    """What one outer step is taken on.

    Args:
        support, query: S_i and V_i.
        noise: of `MetaStep.noise`.
    """

    support: TaskBatch
    query: TaskBatch
    noise: Tensor | Paths

    def __len__(self) -> int:
        return len(self.support)

    def __getitem__(self, which: Tensor) -> Tasks:
        """Some of the tasks, by ascending position."""
        if len(which) == len(self):
            return self
        which = which.to(self.support.index.device)
        if isinstance(self.noise, Paths):
            noise = self.noise.part(which, len(self))
        else:
            noise = self.noise[:, which]
        return Tasks(self.support[which], self.query[which], noise)


class Descent:
    """The leaf tensors descended on, and M as a function of them."""

    def __init__(self, problem: Problem) -> None:
        given = problem.query is not None or problem.stream is not None
        check_random(problem.method, problem.family, query=given)
        check_minibatches(problem.model, problem.method, problem.family)
        check_anchor(problem.method, problem.prior)
        self.problem, self.method = problem, problem.method
        self.prior = start_prior(problem)
        self.shared = {
            k: v.detach().clone().requires_grad_() for k, v in problem.model.shared.items()
        }
        self.step = MetaStep(problem.model, self.prior, self.method, problem.family)
        self.call: Callable[..., Outcome] = self.step
        if self.method.compile:
            self.call = compiled(self.step)
        self.deterministic = deterministic(problem)
        self.ranks = Ranks.present()
        self.failures = Failures(
            None if problem.stream is not None else len(problem.family),
            ranks=self.ranks,
            device=problem.family.batch().index.device,
        )
        self.passes = Passes(problem.family, self.method.batch, problem.generator)
        self.split = _split(problem)
        mean = self.prior.free["mean"].detach()
        self.solutions: Tensor | None = None
        if self.method.gradient.warm_start:
            if problem.stream is not None:
                raise InputError(
                    "warm_start=True starts a task's solve where its last one ended, and the tasks "
                    "of a stream never come again: leave it out"
                )
            self.solutions = mean.new_full((len(problem.family), len(mean)), torch.nan)

    @property
    def streamed(self) -> int:
        """Tasks of a stream in one outer step."""
        return self.method.batch or STEP_TASKS

    def parameters(self) -> list[Tensor]:
        return [p for p in self.prior.parameters() if p.requires_grad] + [*self.shared.values()]

    def evaluate(self, tasks: Tasks) -> Tensor:
        """() M, scaled to all tasks, whose autograd derivative is the method's meta-gradient.

        The tasks of a stream are as many as one step's: M, and the weight of a hyper-prior beside
        it, are then of that many.
        """
        mine, start = self.ranks.share(len(tasks)), self.prior.free["mean"].detach()
        leaves = (start.sum(), start.sum(), *self.parameters())  # of M and of the count of tasks
        sums = [torch.zeros_like(p, dtype=wide(p)) for p in leaves]
        # The last batch of a family may be fewer tasks than there are processes.
        for part in mine.split(self._at_once(tasks)) if len(mine) else ():
            found = within_memory(lambda which: self._sums(tasks[which]), part)
            sums = [a + b for a, b in zip(sums, found, strict=True)]
        if self.solutions is not None:  # those of the other ranks' tasks come again here too
            index = tasks.support.index
            self.solutions[index] = self.ranks.gathered(
                self.solutions[index[mine.to(index.device)]]
            )
        value, count, *gradients = (total.to(start) for total in self.ranks.summed(sums))
        # A linear function with the rule's own derivative, through the value of M.
        pairs = zip(self.parameters(), gradients, strict=True)
        linear = sum(((p - p.detach()) * g).sum() for p, g in pairs)
        value = (len(self.problem.family) / count) * (value + linear)
        learned = self.prior.learn == "all"
        return value - (self.prior.log_hyperprior() if learned else 0.0)

    def _at_once(self, tasks: Tasks) -> int:
        """Tasks gone through together: as asked for, or on a CPU as many as stay in its caches."""
        if (asked := self.problem.model.chunk_size) is not None:
            return asked
        if tasks.support.index.device.type != "cpu":
            return len(tasks)
        sets = {id(t): t for b in (tasks.support, tasks.query) for t in b.tensors.values()}
        numbers = sum(t.numel() for t in sets.values()) // len(tasks)
        return max(1, LARGEST_INPUT // max(1, numbers))

    def _sums(self, tasks: Tasks) -> list[Tensor]:
        """Σ_i M_i, the number of its tasks, and its derivative in every parameter."""
        free = {k: v.detach() for k, v in self.prior.free.items()}
        shared = {k: v.detach() for k, v in self.shared.items()}
        params = self.step.params(free, shared, len(tasks))
        index = tasks.support.index
        start = None if self.solutions is None else self.solutions[index]
        # A compiled step has its own way of recording nothing.
        with nullcontext() if self.method.compile else torch.no_grad():
            outcome = self.call(params, tasks.support, tasks.query, tasks.noise, start)
        if self.solutions is not None:
            self.solutions[index] = outcome.solved.value
        found = outcome.gradients
        slope = found["anchor"]["mean"]
        finite = outcome.values.isfinite() & slope.isfinite().all(-1)
        others = self.failures.others(finite, index)
        if others is not None:
            return self._sums(tasks[others])
        by_name = {"mean": slope.sum(0, dtype=wide(slope)), **found["covariance"]}
        learned = [by_name[k] for k, p in self.prior.free.items() if p.requires_grad]
        value = outcome.values.sum(dtype=wide(outcome.values))
        count = torch.full_like(value, len(tasks))
        return [value, count, *learned, *(found["shared"][k] for k in self.shared)]

    def draw(self) -> Tasks:
        """The tasks of the next outer step."""
        problem, generator = self.problem, self.problem.generator
        if problem.stream is not None:
            support, query = problem.stream.draw(self.streamed, generator)
        else:
            support = next(self.passes)
            query = self._query(support)
            if query is None:
                assert self.split is not None
                support, query = self.split.draw(support, generator)
        mean = self.prior.free["mean"].detach()
        return Tasks(support, query, self.step.noise(support, mean, generator))

    def _query(self, batch: TaskBatch) -> TaskBatch | None:
        """The query sets of a batch; None where they are to be split off."""
        query = self.problem.query
        if isinstance(self.method.objective, Validation) and query is not None:
            return query.batch(batch.index)
        return batch if self.split is None else None

    def tensors(self) -> dict[str, Tensor]:
        """Where the descent is among its tasks and noise."""
        found = self.passes.tensors() | self.failures.tensors()
        return found if self.solutions is None else found | {"solutions": self.solutions}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from there."""
        self.passes.restore(tensors)
        self.failures.restore(tensors)
        if self.solutions is not None:
            self.solutions.copy_(tensors["solutions"])

    def search(self) -> Trace:
        """Minimise M."""
        # With "auto" curvatures decided, which decide whether the gradient is exact.
        method, problem = self.step.method, self.problem
        optimiser = method.optimiser
        if optimiser == "auto":
            exact = self.deterministic and method.exact_gradient
            optimiser = "quasi-newton" if exact else "adam"
        self._refuse_noise(optimiser)
        self.ranks.refuse_idle(self.passes.size if problem.stream is None else self.streamed)
        fixed = self.draw() if self.deterministic else None
        if optimiser == "quasi-newton":
            assert fixed is not None
            self.failures.contained = False
            problem.refuse_checkpoint()
            return minimise(
                lambda: self.evaluate(fixed),
                self.parameters(),
                steps=method.steps or DETERMINISTIC_STEPS,
                tolerance=method.tolerance * len(problem.family),
                callbacks=problem.callbacks,
            )
        return descend(
            lambda step: self.evaluate(self.draw() if fixed is None else fixed),
            self._groups(optimiser),
            steps=method.steps or NOISY_STEPS,
            callbacks=problem.callbacks,
            checkpoint=problem.checkpoint,
            memory=self,
        )

    def _groups(self, optimiser: str) -> list[Group]:
        if optimiser != "sgd":
            return [(torch.optim.Adam, self.parameters(), self.method.lr)]
        # Papers step along the mean over tasks; ψ, which they do not have, goes with Adam.
        prior = [p for p in self.prior.parameters() if p.requires_grad]
        return [
            (torch.optim.SGD, prior, self.method.lr / len(self.problem.family)),
            (torch.optim.Adam, [*self.shared.values()], SHARED_LR),
        ]

    def _refuse_noise(self, optimiser: str) -> None:
        method = self.method
        asked = 'optimiser="quasi-newton"' if optimiser == "quasi-newton" else None
        if method.noise == "common" and (
            method.stochastic or method.posterior.form.name != "point"
        ):
            asked = 'noise="common"'
        if asked is not None and not self.deterministic:
            raise InputError(
                f"{asked} needs the same M at every step: leave batch= out, use "
                "Validation(fresh=False) or support=None, a family and no stream, and "
                'noise="common" for a Gaussian Q_i or a random algorithm'
            )


def compiled(step: MetaStep) -> Callable[..., Outcome]:
    """The meta-step as one compiled graph."""
    return torch.compile(step.__call__, dynamic=False)


def deterministic(problem: Problem) -> bool:
    """Whether M is the same function at every step."""
    method, objective = problem.method, problem.method.objective
    if method.batch is not None or problem.stream is not None:
        return False
    draws = method.posterior.form.name != "point" and not hasattr(objective, "points")
    if (draws or method.stochastic) and method.noise == "fresh":
        return False
    if not isinstance(objective, Validation) or objective.support is None:
        return True
    return problem.query is not None or not objective.fresh


def _split(problem: Problem) -> Split | None:
    """How query rows are split off, where they are."""
    objective = problem.method.objective
    if not isinstance(objective, Validation) or objective.support is None:
        return None
    given = problem.query is not None or problem.stream is not None
    return None if given else Split(problem.family, objective.support)


def start_prior(problem: Problem) -> Prior:
    """The given prior, or one around the model's present weights."""
    prior, model = problem.prior, problem.model
    blocks = model.blocks.to(model.start.device)
    if prior.has_values:
        return prior.like(prior(), blocks)
    mean = model.start
    if prior.form.name == "point":
        return prior.like(Gaussian(mean), blocks)
    started = prior.like(Gaussian(mean, torch.full_like(mean, START_SD**2)), blocks)
    if prior.form.name == "lowrank":
        factor = started.free["factor"]
        waves = torch.arange(factor.numel(), device=factor.device).add(1).to(factor).sin()
        with torch.no_grad():
            factor.copy_(0.1 * START_SD * waves.reshape(factor.shape))
    return started
