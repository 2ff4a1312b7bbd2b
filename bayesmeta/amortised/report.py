"""What every meta-gradient carries: how well each task's two solves were done, in plain words."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from bayesmeta.amortised.audit import Audit
from bayesmeta.amortised.step import Outcome
from bayesmeta.gradients.direct import Direct
from bayesmeta.gradients.implicit import Implicit
from bayesmeta.inner.loop import CODE
from bayesmeta.method import Method
from bayesmeta.posteriors.proximal import Proximal
from bayesmeta.results import Flag, Result

STATIONARY = 1e-2
SOLVED = 0.1
ROUNDING = 1e3


@dataclass(frozen=True, eq=False)
class Report:
    """Per task, how far the inner and the linear solve are from done.

    Args:
        stationarity: (task,) ‖∇f + Λ(θ − θ₀)‖ at the θ used, in nats per unit of θ; ‖∇f‖ without
            an anchor.
        relative_stationarity: (task,) the same over ‖Λ(θ − θ₀)‖, to which ‖∇f‖ is equal at θ*; NaN
            without an anchor.
        solve_residual: (task,) ‖v − A u‖ / ‖v‖ of the implicit gradient; 0 for the other rules.
        steps: (task,) inner steps taken.
        solve_steps: (task,) curvature products spent.
        negative_curvature: (task,) the linear solve met it and stopped there.
        result: (task,) how the task ended, the worst thing first.
        curvature: of the system solved: "hessian", "ggn", or None.
        names: of the tasks.
        audits: by name, of the tasks that were compared with the exact answer.
        whole: whether the rule means to give the gradient of M, of which Reptile and first-order
            rules leave out a part.
    """

    stationarity: Tensor
    relative_stationarity: Tensor
    solve_residual: Tensor
    steps: Tensor
    solve_steps: Tensor
    negative_curvature: Tensor
    result: list[Result]
    curvature: str | None
    names: tuple[str, ...]
    audits: dict[str, Audit] = field(default_factory=dict)
    whole: bool = True

    @classmethod
    def of(cls, outcome: Outcome, method: Method, names: tuple[str, ...]) -> Report:
        """The report of a meta-step; waits for the device."""
        rule, solved = method.gradient, outcome.solved
        relative = outcome.adapted.residual / outcome.pull
        relative = torch.where(outcome.pull > 0, relative, torch.nan)
        return cls(
            stationarity=outcome.adapted.residual,
            relative_stationarity=relative,
            solve_residual=solved.residual,
            steps=outcome.adapted.steps,
            solve_steps=solved.steps,
            negative_curvature=solved.negative,
            result=results(outcome, method),
            curvature=rule.curvature if isinstance(rule, Implicit) else None,
            names=names,
            whole=method.whole_gradient,
        )

    def flagged(self) -> list[Flag]:
        """The tasks that did not end well, each with a sentence."""
        return [
            Flag(name, result.sentence)
            for name, result in zip(self.names, self.result, strict=True)
            if result is not Result.converged
        ]

    def __str__(self) -> str:
        """A few lines a person can read."""
        bad = sum(result is not Result.converged for result in self.result)
        inner = f"inner steps {_range(self.steps)}, stationarity {_range(self.stationarity)}"
        solves = f"residual {_range(self.solve_residual)}, products {_range(self.solve_steps)}"
        negative = int(self.negative_curvature.sum())
        lines = [
            f"{len(self.names)} tasks, {bad} flagged; {inner} nats per unit of θ",
            f"linear solves: {solves}, negative curvature in {negative} tasks",
        ]
        if self.curvature == "ggn":
            lines.append(
                "curvature: the Gauss-Newton matrix, which is not the loss's own: "
                'curvature="hessian" is exact'
            )
        for name, audit in self.audits.items():
            limit = ""
            if audit.bound is not None:
                limit = f" (at most {audit.bound:.2g} by Lemma 3 of Rajeswaran et al. 2019)"
            what = "relative error" if self.whole else "relative distance from the gradient of M"
            lines.append(f"audit: task {name}: {what} {audit.error:.2g}{limit}")
        return "\n".join(lines)


def stationary(residual: Tensor, pull: Tensor, tolerance: float) -> Tensor:
    """(task,) whether θ* solves its problem: by the tolerance, or else to a hundredth."""
    if tolerance > 0:
        # No solve comes closer than the rounding of what ∇f and the pull have in common.
        return residual <= (ROUNDING * torch.finfo(residual.dtype).eps * pull).clamp(min=tolerance)
    small = residual <= torch.finfo(residual.dtype).eps ** 0.5
    return (residual <= STATIONARY * pull) | small


def results(outcome: Outcome, method: Method) -> list[Result]:
    """(task,) the worst thing that happened to each task."""
    solved, rule = outcome.solved, method.gradient
    assert method.inner is not None
    code = adapted_code(outcome, method)
    if isinstance(rule, Implicit):
        limit = rule.tolerance if rule.tolerance > 0 else SOLVED
        left = ~(solved.residual <= limit) & (code == CODE[Result.converged])
        code = torch.where(left, CODE[Result.unsolved], code)
        code = torch.where(solved.negative, CODE[Result.negative_curvature], code)
    finite = outcome.values.isfinite() & outcome.gradients["anchor"]["mean"].isfinite().all(-1)
    code = torch.where(finite, code, CODE[Result.nonfinite])
    members = list(Result)
    return [members[c] for c in code.tolist()]


def adapted_code(outcome: Outcome, method: Method) -> Tensor:
    """(task,) how adaptation ended, and whether its end is one that the gradient rule needs."""
    assert method.inner is not None
    code = outcome.adapted.result
    unfinished = code == CODE[Result.max_steps]
    if method.gradient.needs_path or not isinstance(method.posterior, Proximal):
        # A fixed number of steps is what such a method asks for, and differentiates.
        wanted = unfinished & (method.inner.tolerance == 0)
        return torch.where(wanted, CODE[Result.converged], code)
    if not isinstance(method.gradient, Implicit | Direct):
        return code
    done = stationary(outcome.adapted.residual, outcome.pull, method.inner.tolerance)
    code = torch.where(unfinished & done, CODE[Result.converged], code)
    return torch.where(unfinished & ~done, CODE[Result.not_stationary], code)


def _range(values: Tensor) -> str:
    low, high = float(values.min()), float(values.max())
    return f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"
