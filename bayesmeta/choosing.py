"""Which prior and which solver belong to a method, and what is refused before a fit begins."""

from __future__ import annotations

from bayesmeta import methods
from bayesmeta.gradients.implicit import Implicit
from bayesmeta.inner.newton import Newton
from bayesmeta.joint import exact, profile
from bayesmeta.joint.problem import Problem
from bayesmeta.method import Method
from bayesmeta.models import Model
from bayesmeta.models.matching import check_ways, paired
from bayesmeta.objective import Evidence, Validation, Variational
from bayesmeta.posteriors.algorithmic import Algorithmic
from bayesmeta.posteriors.free import Free
from bayesmeta.prior import Prior
from bayesmeta.results import InputError
from bayesmeta.streams import TaskStream
from bayesmeta.tasks import TaskFamily

LARGEST_TABLE = 5e8


def default_prior(prior: Prior | None, method: Method, model: Model, family: TaskFamily) -> Prior:
    """The prior given, or the one that belongs to the method."""
    lam = method.lam
    if prior is not None:
        if lam is not None:
            raise InputError(
                f"lam={lam} holds Λ = n_i λ I in the place of the prior's own: leave prior= out, "
                "or leave lam= out"
            )
        return prior
    if lam is not None:
        rows = float(family.rows.double().mean())
        held = Prior("isotropic", learn="mean")
        return held.at(mean=model.start, variance=1 / (lam * rows), blocks=model.blocks)
    if isinstance(method.posterior, Algorithmic) and not method.anchored:
        if isinstance(method.objective, Variational):
            held = Prior("isotropic", learn="mean")
            return held.at(mean=model.start, variance=1.0, blocks=model.blocks)
        return Prior("point")
    if isinstance(method.objective, Validation):
        # One number: a query set says little about many variances.
        return Prior("isotropic")
    return Prior(methods.default_form(model.dim))


def check_stream(
    stream: TaskStream, model: Model, method: Method | None, query: TaskFamily | None
) -> None:
    """Refuse what a stream of tasks cannot do.

    Raises:
        InputError: free Q_i, which are stored per task, query sets beside the stream's own, or a
            model of more or fewer classes than a task has.
    """
    check_ways(model, stream)
    if method is None or isinstance(method.posterior, Free):
        raise InputError(
            "a stream of tasks never ends, so no task's posterior can be stored and descended on: "
            "give method=, one that adapts (bm.methods.imaml(...), maml, variational_imaml, …)"
        )
    if query is not None:
        raise InputError("a stream brings its own query sets: leave query= out")


def checked_query(
    query: TaskFamily | None, family: TaskFamily, method: Method, model: Model
) -> TaskFamily | None:
    """The query sets in the order, dtype and place of the tasks.

    Raises:
        InputError: the method does not use any, or they are not those of the tasks.
    """
    if query is None:
        return None
    if not isinstance(method.objective, Validation):
        raise InputError(
            "query= is for methods with a Validation objective (maml, imaml, …): leave it out"
        )
    return paired(query, family, model)


def checked_prior(
    prior: Prior, method: Method, model: Model, family: TaskFamily, notes: list[str]
) -> Prior:
    """The prior, if it can be learned in this way; a form the tasks identify if not."""
    if prior.has_values:
        prior = prior.like(prior().map(lambda t: t.to(model.start)), model.blocks)
        if prior().dim != model.dim:
            raise InputError(f"the prior has {prior().dim} weights, the model {model.dim}")
    elif prior.learn != "all":
        raise InputError(f'a prior with learn="{prior.learn}" needs values: use .at(...)')
    algorithmic = isinstance(method.posterior, Algorithmic) and not method.anchored
    if prior.form.name == "point" and not (
        algorithmic and not isinstance(method.objective, Variational)
    ):
        raise InputError(
            'a prior of the form "point" is for methods without Σ₀ (maml, fomaml, truncated_maml): '
            'use "isotropic", "diagonal" or another form'
        )
    if algorithmic and prior.form.name != "point" and prior.learn == "all":
        raise InputError(
            "this method adapts without a prior covariance, so it cannot learn one: leave prior= "
            'out, use bm.Prior("point"), or hold Σ₀ with learn="mean" and .at(mean=, variance=)'
        )
    variational = isinstance(method.objective, Variational)
    if method.posterior.form.name == "point" and prior.learn == "all" and variational:
        raise InputError(
            "point posteriors cannot teach the prior its covariance (M has no minimum in it): "
            'hold it with lam= or bm.Prior(form, learn="mean").at(mean=, variance=), or use '
            'covariance="diagonal"'
        )
    if prior.hyperprior is not None and method.prior_update == "closed_form":
        raise InputError(
            'the closed-form prior update knows no hyper-prior: use prior_update="gradient"'
        )
    full = method.posterior.form.name == "full"
    if full and len(family) * model.dim**2 > LARGEST_TABLE:
        raise InputError(
            f"full posteriors of {len(family)} tasks × {model.dim} weights do not fit in memory: "
            'use covariance="diagonal" or "lowrank(10)"'
        )
    if prior.form.name == "full" and prior.learn == "all" and len(family) <= model.dim:
        notes.append(
            f"{len(family)} tasks cannot identify a full {model.dim} × {model.dim} covariance, so "
            "the prior is diagonal; use more tasks, or choose a form."
        )
        prior = Prior("diagonal", hyperprior=prior.hyperprior)
    return prior


def choose(problem: Problem) -> str:
    """The solver asked for, or the first that applies."""
    wanted = problem.method.solver
    if not isinstance(problem.method.posterior, Free):
        return _choose_adapted(problem)
    gaussian = exact.applies(problem)
    if problem.reml and not (gaussian and wanted in ("auto", "exact")):
        raise InputError("reml=True needs Gaussian noise, a linear predictor and full posteriors")
    if wanted == "auto":
        return "exact" if gaussian else "profile" if profile.applies(problem) else "gradient"
    if wanted == "exact" and not gaussian:
        raise InputError(
            'solver="exact" needs Gaussian noise and a prediction linear in all weights: use "auto"'
        )
    if wanted == "profile" and not profile.applies(problem):
        raise InputError(
            'solver="profile" needs a linear predictor with at most '
            f"{profile.DIM_LIMIT} adapted weights, or any model with at most "
            f'{profile.NODE_DIM_LIMIT}: use "gradient"'
        )
    return wanted


def _choose_adapted(problem: Problem) -> str:
    """For Q_i that are functions of θ₀: few weights by full batches, or the general loop."""
    method = problem.method
    if problem.reml:
        raise InputError("reml=True belongs to the exact fit of linear-Gaussian tasks (joint)")
    if method.solver in ("exact", "gradient"):
        raise InputError(f'solver="{method.solver}" is for free Q_i: leave solver= out')
    few = isinstance(method.objective, Evidence) and profile.applies(problem)
    few = few and problem.stream is None
    # Who asks for an outer loop of another kind, or for other inner steps, gets them.
    few = few and method.optimiser == "auto" and not method.compile
    few = few and isinstance(method.inner, Newton) and isinstance(method.gradient, Implicit)
    if method.solver == "profile" and not few:
        raise InputError(
            f'solver="profile" integrates over at most {profile.DIM_LIMIT} adapted weights, with '
            "every task in each step, by Newton's method and a quasi-Newton search: leave "
            "solver=, optimiser= and compile= out"
        )
    return "profile" if few else "amortised"
