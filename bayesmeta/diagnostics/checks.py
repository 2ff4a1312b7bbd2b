"""`check(fit)`: everything that could make a person distrust a fit, as sentences."""

from __future__ import annotations

import torch

from bayesmeta.amortised.estimate import FEW_WEIGHTS
from bayesmeta.diagnostics.convergence import khat, trace_convergence
from bayesmeta.diagnostics.findings import Finding, listed, named
from bayesmeta.diagnostics.meta_gradients import meta_gradients
from bayesmeta.fitted import Fit
from bayesmeta.gaussian import Gaussian
from bayesmeta.posteriors.free import Free
from bayesmeta.results import Flag
from bayesmeta.weak import weak_tasks

BOUNDARY = 1e-3  # prior sd over what the data of one task leave uncertain
LARGEST_GAP = 1.0  # nats
DENSE_LIMIT = 500  # weights up to which the eigenvalues of Σ₀ are computed


DRAWS = 20_000
NETWORK_DRAWS = 2000


def check(fit: Fit, *, draws: int | None = None, seed: int = 0) -> list[Finding]:
    """All checks of a fit: trace, pareto_k, tasks, data, boundary, reachability, meta_gradient.

    Args:
        fit: a fit.
        draws: from each Q_i for Pareto k̂. By default 20,000, which one-sided likelihoods need,
            and 2,000 where a draw is a pass through a network.
        seed: of the draws.

    Returns:
        One finding per check that applies: point posteriors have no k̂, only a fit by joint descent
        can leave the reach of adaptation, and only Q_i that are adapted have a meta-gradient.
    """
    found = [_trace(fit)]
    if isinstance(fit.posterior.gaussian, Gaussian) and not fit.posterior.gaussian.is_point:
        enough = NETWORK_DRAWS if fit.solver in ("gradient", "amortised") else DRAWS
        found.append(_pareto_k(fit, enough if draws is None else draws, seed))
    found += [_tasks(fit), _data(fit), _boundary(fit)]
    if fit.solver == "gradient":
        found.append(_reachability(fit))
    if not isinstance(fit.choices.posterior, Free):
        found.append(meta_gradients(fit, seed=seed))
    return found


def _trace(fit: Fit) -> Finding:
    ended = trace_convergence(fit.trace)
    return Finding("trace", ended.converged or _solved_at_once(fit), ended.sentence)


def _solved_at_once(fit: Fit) -> bool:
    # A closed form leaves a trace of one or two values, and is nowhere else to go; nor is a prior
    # that is held.
    return len(fit.trace) < 3 and (fit.solver == "exact" or fit.fitted_prior.learn == "none")


def _pareto_k(fit: Fit, draws: int, seed: int) -> Finding:
    if fit.choices.lam is not None and fit.family.ragged:
        said = (
            "Pareto k̂ was not computed: with lam= every task has a prior of its own (Λ = n_i λ I), "
            "and the tasks differ in their number of rows"
        )
        return Finding("pareto_k", True, said)
    if fit.model.dim > FEW_WEIGHTS:
        said = (
            f"Pareto k̂ was not computed: of {fit.model.dim:,} weights it is large for any Q_i but "
            "the posterior itself; judge by the calibration of tasks held out (few_shot_scores, "
            "coverage), or ask for bm.diagnostics.khat(fit)"
        )
        return Finding("pareto_k", True, said)
    found = khat(fit, draws=draws, seed=seed)
    flags = tuple(found.flags)
    full = fit.choices.posterior.form.name == "full"
    better = "" if full else "use full posteriors, or "
    wrong = [task for task, out in zip(found.tasks, found.wrong, strict=True) if out]
    if not flags:
        said = f"Pareto k̂ is at most {found.k.max():.2f} over {len(found.k)} tasks"
    elif not wrong:
        said = (
            f"Pareto k̂ is above 0.7 in {len(flags)} of {len(found.k)} tasks ({named(flags)}), but "
            f"importance sampling keeps {found.efficiency.min():.1%} of the draws or more: only "
            "the far tails of Q_i are off"
        )
    else:
        said = (
            f"Pareto k̂ is above 0.7, with uneven ratios, in {len(wrong)} of {len(found.k)} tasks "
            f"({listed(wrong)}): their Q_i is not the posterior; {better}compare with NUTS"
        )
    return Finding("pareto_k", not wrong, said, flags if wrong else ())


def _tasks(fit: Fit) -> Finding:
    flags = tuple(fit.flagged)
    said = f"{len(flags)} of {len(fit.family)} tasks did not converge by themselves"
    if flags:
        said += f" ({named(flags)}): see the sentence of each"
    return Finding("tasks", not flags, said, flags)


def _data(fit: Fit) -> Finding:
    """Tasks that are fine in a family, and would have no finite estimate alone."""
    family = fit.internal(fit.family)
    flags = tuple(weak_tasks(fit.model, family, fit.posterior.gaussian.mean))
    if not flags:
        return Finding("data", True, "every task's own data say something of its weights")
    said = (
        f"{len(flags)} of {len(family)} tasks lean on the prior, as their own rows give no finite "
        f"estimate ({named(flags)}): see the sentence of each"
    )
    return Finding("data", True, said, flags)


def _boundary(fit: Fit) -> Finding:
    """Directions in which Σ₀ is tiny beside what one task's data leave uncertain."""
    prior = fit.prior
    if fit.fitted_prior.form.name == "point":
        return Finding("boundary", True, "this method learns no Σ₀, so it has no boundary")
    if fit.fitted_prior.learn != "all":
        return Finding("boundary", True, "Σ₀ was held, not estimated")
    alone = torch.nan_to_num(fit.no_pooling().sd().nanmedian(0).values)
    # Where no task alone identifies a weight, the posteriors' sd is the scale that is left.
    scale = torch.where(alone > 0, alone, fit.posterior.sd().median(0).values)
    scale = torch.where(scale > 0, scale, torch.where(prior.sd() > 0, prior.sd(), 1.0))
    small = prior.sd() < BOUNDARY * scale
    names = [name for name, out in zip(prior.names, small.tolist(), strict=True) if out]
    if names:
        return Finding(
            "boundary",
            False,
            f"the prior sd of {listed(names)} is at its boundary, 0: the tasks do not differ in "
            "it beyond the noise; leave it out of the adapted weights, or use "
            'hyperprior="boundary-avoiding"',
        )
    if len(scale) <= DENSE_LIMIT:
        scaled = prior.covariance() / (scale[:, None] * scale)
        if float(torch.linalg.eigvalsh(scaled)[0]) < BOUNDARY**2:
            return Finding(
                "boundary",
                False,
                f"Σ₀ is singular: a combination of {listed(prior.names)} does not differ between "
                'tasks; use Prior("diagonal"), or hyperprior="boundary-avoiding"',
            )
    return Finding("boundary", True, "Σ₀ is inside its boundary")


def _reachability(fit: Fit) -> Finding:
    gap = fit.reachability_gap()
    pairs = zip(fit.family.names, gap.tolist(), strict=True)
    flags = tuple(
        Flag(
            task,
            f"adaptation from θ₀ ends {abs(nats):.3g} nats "
            f"{'above' if nats < 0 else 'below'} the fitted Q_i: use reset_every=, or more steps",
        )
        for task, nats in pairs
        if not abs(nats) <= LARGEST_GAP
    )
    said = f"adaptation from θ₀ reaches every Q_i within {gap.abs().max():.2g} nats"
    if flags:
        said = (
            f"adaptation from θ₀ misses the fitted Q_i by more than {LARGEST_GAP:g} nat in "
            f"{len(flags)} of {len(gap)} tasks ({named(flags)}): use reset_every=, or more steps"
        )
    return Finding("reachability", not flags, said, flags)
