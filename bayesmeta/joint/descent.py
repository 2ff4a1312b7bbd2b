"""The tensors of a joint descent: (θ₀, Σ₀, ψ) and every Q_i, where they start, and M of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from bayesmeta.expectation import LinearExpectation, drawn_loss
from bayesmeta.failures import Failures
from bayesmeta.forms import Form
from bayesmeta.gaussian import Gaussian
from bayesmeta.joint.problem import Problem
from bayesmeta.objective import Variational, per_task
from bayesmeta.outer import minimise
from bayesmeta.posteriors.conjugate import least_squares, rescaling
from bayesmeta.prior import Prior
from bayesmeta.ranks import Ranks, wide
from bayesmeta.streams import Passes
from bayesmeta.tasks import TaskBatch

START_SD = 0.3
START_NOISE = 0.3
POOLED_STEPS = 200
RELATIVE_START = 0.1


class Descent:
    """The tensors descended on, and M as a function of them, in coordinates θ = scale ⊙ θ'."""

    def __init__(
        self, problem: Problem, shared: dict[str, Tensor] | None, ranks: Ranks | None = None
    ) -> None:
        self.problem = problem
        self.model, self.method = problem.model, problem.method
        self.form: Form = self.method.posterior.form
        self.affine = self.model.is_affine(problem.family, jointly=True)
        self.ranks = Ranks() if ranks is None or self.deterministic else ranks
        self.ranks.refuse_idle(len(problem.family))
        self.mine = self.ranks.share(len(problem.family))
        self.own = self.everyone = problem.family.batch()
        self.expectation = self._linear(self.everyone) if self.affine else None
        self.least_squares: tuple[Tensor, Tensor] | None = None
        self.scale, self.shared_scale = self._scales()
        self.learn_shared = shared is None
        start = self.model.shared if shared is None else shared
        self.shared = {
            k: (v.detach() / self.shared_scale.get(k, 1.0)).clone().requires_grad_(shared is None)
            for k, v in start.items()
        }
        if not self.affine and self.learn_shared and "likelihood.log_scale" in self.shared:
            with torch.no_grad():
                # From the response's own spread, noise would explain everything at once.
                self.shared["likelihood.log_scale"] += math.log(START_NOISE)
        self.prior = self._start_prior()
        if self.affine and self.learn_shared and not problem.prior.has_values:
            self._pool()
        self.table = self._start_table()
        self.common = self.draw(len(self.everyone), self.method.draws)
        self.failures = Failures(
            len(self.everyone),
            contained=not self.deterministic,
            ranks=self.ranks,
            device=self.everyone.index.device,
        )
        self.batches = Passes(problem.family, self.method.batch, problem.generator)
        if self.ranks.size > 1:
            self.own = self.everyone[self.mine]
            self.expectation = self._linear(self.own) if self.affine else None

    def _scales(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Typical |y| / |column| of the design, so that weights in any units descend alike."""
        if self.expectation is None:
            return torch.ones_like(self.model.start), {}
        self.least_squares = self._least_squares(self.expectation)
        response = 1.0 if self.least_squares is None else self.least_squares[1]
        pooled = self.expectation.fixed.flatten(0, 1) / response
        dim = self.model.dim
        tied = self.problem.prior.form.name in ("isotropic", "block")
        form = Form("isotropic") if tied else Form("diagonal")
        scale = rescaling(pooled[:, :dim], form).diagonal()
        rest = pooled[:, dim:].square().mean(0).clamp(min=1e-300).rsqrt()
        return scale, self.model.split_shared(rest)

    def _least_squares(self, expectation: LinearExpectation) -> tuple[Tensor, Tensor] | None:
        """Pooled fixed effects and residual sd of a real response."""
        if self.model.require_likelihood().responses != "real":
            return None
        y = self.model.response(self.everyone.tensors) - expectation.constant
        return least_squares(expectation.fixed, y, self.everyone.mask)

    def _start_prior(self) -> Prior:
        prior, blocks = self.problem.prior, self.model.blocks.to(self.scale.device)
        if prior.has_values:
            return prior.like(prior().rescaled(1 / self.scale), blocks)
        sd = 1.0 if self.affine else START_SD
        mean = self.model.start / self.scale
        started = prior.like(Gaussian(mean, torch.full_like(mean, sd**2)), blocks)
        if prior.form.name == "lowrank":
            with torch.no_grad():
                started.free["factor"].copy_(_waves(started.free["factor"], 0.1 * sd))
        return started

    def _pool(self) -> None:
        """Start θ₀ and ψ where M is smallest with every task at θ₀."""
        if self.least_squares is not None:
            b, unit = self.least_squares
            rest = self.model.split_shared(b[self.model.dim :])
            with torch.no_grad():
                self.prior.free["mean"].copy_(b[: self.model.dim] / self.scale)
                for name, value in rest.items():
                    self.shared[name].copy_(value / self.shared_scale[name])
                if "likelihood.log_scale" in self.shared:
                    self.shared["likelihood.log_scale"].copy_(unit.log())
        parameters = [self.prior.free["mean"], *self.shared.values()]

        def objective() -> Tensor:
            point = Gaussian(self.prior.free["mean"].expand(len(self.everyone), -1))
            return self.losses(self.everyone, point, point.mean[None]).sum()

        minimise(objective, parameters, steps=POOLED_STEPS, tolerance=1e-3)

    def _start_table(self) -> dict[str, Tensor]:
        """Every Q_i at θ₀ in the prior's shape, narrower."""
        prior = self.prior().map(Tensor.detach)
        narrow = prior.rescaled(torch.full_like(prior.mean, RELATIVE_START))
        start = Gaussian(prior.mean, narrow.diagonal, narrow.factor)
        if start.diagonal is not None:
            start = Gaussian(start.mean, start.diagonal.clamp(min=1e-12), start.factor)
        free = self.form.unconstrain(start, self.model.blocks)
        if self.form.name == "lowrank" and not bool(free["factor"].any()):
            free["factor"] = _waves(free["factor"], 0.1) * start.sd().unsqueeze(-1)
        free = {k: v.expand(len(self.mine), *v.shape) for k, v in free.items()}
        return {k: v.detach().clone().contiguous().requires_grad_() for k, v in free.items()}

    def _linear(self, batch: TaskBatch) -> LinearExpectation:
        with torch.no_grad():
            design, constant = self.model.design(batch)
        return LinearExpectation(self.model, batch, design[..., : self.model.dim], design, constant)

    @property
    def settled(self) -> bool:
        """Whether the expectation needs no draws."""
        return self.affine or self.form.name == "point"

    @property
    def deterministic(self) -> bool:
        settled = self.settled or self.method.noise == "common"
        return settled and self.method.batch is None and self.method.reset_every is None

    def posteriors(self, index: Tensor | None = None) -> Gaussian:
        """Q_i of this rank's tasks in scaled coordinates."""
        free = self.table if index is None else {k: v[index] for k, v in self.table.items()}
        return self.form.constrain(free, self.model.blocks)

    def all_posteriors(self) -> Gaussian:
        """Q_i of all tasks, without derivatives."""
        with torch.no_grad():
            return self.posteriors().map(self.ranks.gathered)

    def present_prior(self) -> Gaussian:
        """N(θ₀, Σ₀) in scaled coordinates; at its minimiser where that is asked for."""
        if self.method.prior_update == "closed_form" and self.prior.learn != "none":
            self.prior = self.prior.closed_form(self.all_posteriors())
            return self.prior().map(Tensor.detach)
        return self.prior()

    def unscaled(self) -> dict[str, Tensor]:
        return {k: v * self.shared_scale.get(k, 1.0) for k, v in self.shared.items()}

    def draw(self, tasks: int, draws: int) -> Tensor:
        """(draw, task, noise_dim) standard normals, in antithetic pairs where possible."""
        with torch.no_grad():
            one = self.form.constrain({k: v[:1] for k, v in self.table.items()}, self.model.blocks)
        like = one.map(lambda tensor: tensor.expand(tasks, *tensor.shape[1:]))
        noise = like.noise((draws + 1) // 2, self.problem.generator)
        return torch.cat([noise, -noise])[:draws] if draws > 1 else noise

    def losses(self, batch: TaskBatch, posteriors: Gaussian, noise: Tensor) -> Tensor:
        """(task,) E_{Q_i} f_i."""
        shared, actual = self.unscaled(), posteriors.rescaled(self.scale)
        if self.affine:
            kept = self.expectation if batch is self.own else None
            expectation = self._linear(batch) if kept is None else kept
            weights = [shared[k].flatten() for k in self.model.shared_weights]
            location = torch.cat([torch.zeros_like(self.scale), *weights])
            return expectation.value(location, shared, actual)
        if self.form.name == "point":
            return self.model.energies(actual.mean, batch, shared)
        return drawn_loss(self.model, batch, shared, actual, noise)

    def value(self, batch: TaskBatch, noise: Tensor, weight: float = 1.0) -> Tensor:
        """() M, from a batch of tasks, with `weight` times its β; its derivative in Q_i is local.

        It is linear in Q_i, ψ and the prior, with the derivative that M has.

        Args:
            batch: the same on every rank.
            noise: of `draw`, for all of the batch.
            weight: of β.
        """
        prior = self.present_prior()
        held = prior.map(lambda tensor: tensor.detach().to(wide(tensor)).requires_grad_())
        value, count, gradients = self._sums(batch, noise, weight, held)
        own = list(self.table.values())
        learned = [p for p in self.shared.values() if p.requires_grad]
        value, count, *summed = self.ranks.summed([value, count, *gradients[len(own) :]])
        value = value.to(self.scale)
        moving = [*own, *learned, *_tensors(prior)]
        for tensor, gradient in zip(moving, [*gradients[: len(own)], *summed], strict=True):
            value = value + ((tensor - tensor.detach()) * gradient.to(tensor)).sum()
        penalty = self.prior.log_hyperprior(prior) if self.prior.learn == "all" else 0.0
        return (len(self.everyone) / count).to(value) * value - penalty

    def _sums(
        self, batch: TaskBatch, noise: Tensor, weight: float, held: Gaussian
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Σ_i M_i of this rank's tasks, their number, and its derivative in Q_i, ψ and `held`.

        Args:
            batch, noise, weight: of `value`.
            held: stands for the prior.
        """
        own = list(self.table.values())
        leaves = [*own, *(p for p in self.shared.values() if p.requires_grad), *_tensors(held)]
        mine, rows, places = self._own(batch)
        count = torch.tensor(len(mine), dtype=held.mean.dtype, device=held.mean.device)
        if not len(mine):  # none of the batch are this rank's
            return torch.zeros_like(count), count, [torch.zeros_like(p) for p in leaves]

        def slopes(which: Tensor | None) -> tuple[Tensor, Sequence[Tensor]]:
            values = self._values(
                mine if which is None else mine[which],
                _some(rows, which),
                noise if _some(places, which) is None else noise[:, _some(places, which)],
                weight,
                held,
            )
            return values, torch.autograd.grad(values.sum(), leaves, materialize_grads=True)

        values, gradients = slopes(None)
        at = slice(None) if rows is None else rows
        finite = [g[at].isfinite().flatten(1).all(1) for g in gradients[: len(own)]]
        others = self.failures.others(torch.stack([values.isfinite(), *finite]).all(0), mine.index)
        if others is not None:
            values, gradients = slopes(others)
            count = torch.full_like(count, len(others))
        # All ranks leave out a step that any of them finds not finite.
        sound = torch.stack([g.isfinite().all() for g in gradients]).all()
        return torch.where(sound, values.sum().detach(), torch.nan), count, list(gradients)

    def _values(
        self, tasks: TaskBatch, rows: Tensor | None, noise: Tensor, weight: float, held: Gaussian
    ) -> Tensor:
        """(task,) M_i, in the precision that is summed."""
        objective = self.method.objective
        assert isinstance(objective, Variational)  # the only one that free Q_i have
        posteriors = self.posteriors(rows)
        losses = self.losses(tasks, posteriors, noise)
        values = per_task(losses, posteriors, _each(held, posteriors), weight * objective.beta)
        return values.to(wide(values))

    def _own(self, batch: TaskBatch) -> tuple[TaskBatch, Tensor | None, Tensor | None]:
        """This rank's tasks of a batch, their rows in its table, their places in the batch.

        None stands for all of them, in order.
        """
        alone = self.ranks.size == 1
        if len(batch) == len(self.everyone):
            return self.own, None, None if alone else self.mine
        if alone:
            return batch, batch.index, None
        rows = batch.index - int(self.mine[0])
        places = ((rows >= 0) & (rows < len(self.mine))).nonzero().flatten()
        return batch[places], rows[places], places

    def parameters(self) -> list[Tensor]:
        """The leaf tensors."""
        own = list(self.table.values())
        if self.learn_shared:
            own += list(self.shared.values())
        if self.method.prior_update == "gradient":
            own += [p for p in self.prior.parameters() if p.requires_grad]
        return own

    def tensors(self) -> dict[str, Tensor]:
        """Where the descent is among its tasks, and which of them failed."""
        return self.batches.tensors() | self.failures.tensors()

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from there."""
        self.batches.restore(tensors)
        self.failures.restore(tensors)

    def reset(self, step: int) -> None:
        """Start every m_i again at θ₀."""
        every = self.method.reset_every
        if every is not None and (step + 1) % every == 0:
            with torch.no_grad():
                self.table["mean"].copy_(self.prior().mean.expand_as(self.table["mean"]))


def _tensors(gaussian: Gaussian) -> list[Tensor]:
    parts = (gaussian.mean, gaussian.diagonal, gaussian.factor)
    return [part for part in parts if part is not None]


def _some(chosen: Tensor | None, which: Tensor | None) -> Tensor | None:
    """Some of the positions that were chosen, where None is all of them."""
    if chosen is None or which is None:
        return which if chosen is None else chosen
    return chosen[which.to(chosen.device)]


def _each(prior: Gaussian, posteriors: Gaussian) -> Gaussian:
    """The prior, once per task where that is cheap: then its derivative is summed as `wide` is."""
    if prior.factor is None:
        prior = prior.map(lambda tensor: tensor.expand(len(posteriors.mean), *tensor.shape))
    return prior.map(lambda tensor: tensor.to(posteriors.mean))


def _waves(like: Tensor, size: float) -> Tensor:
    """A start of F without structure: at F = 0 the gradient in F vanishes."""
    places = torch.arange(like.numel(), device=like.device).add(1).to(like)
    return size * places.sin().reshape(like.shape)
