"""`nuts`: Pyro's No-U-Turn sampler on a model's own energies."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from typing import Any

import pyro
import torch
from pyro.distributions import MultivariateNormal
from pyro.infer import MCMC, NUTS
from torch import Tensor

from bayesmeta.fitted import Fit
from bayesmeta.gaussian import Gaussian
from bayesmeta.models import Model
from bayesmeta.prior import Prior
from bayesmeta.pyro_bridge.result import NutsResult
from bayesmeta.pyro_bridge.targets import HeldPrior, Hierarchy
from bayesmeta.results import InputError
from bayesmeta.tasks import TaskFamily

FEWEST_DRAWS = 4  # split-R̂ needs two halves with a variance


def nuts(
    model: Model | Fit,
    family: TaskFamily | None = None,
    *,
    prior: Any = None,
    task: str | Sequence[str] | None = None,
    draws: int = 1000,
    warmup: int = 1000,
    chains: int = 1,
    seed: int = 0,
    hierarchy: bool = False,
    diagonal: bool = False,
    centred: bool = False,
    learn_shared: bool = True,
    target_accept: float = 0.8,
    max_tree_depth: int = 10,
) -> NutsResult:
    """Draws from the exact posterior by NUTS, as the reference for a fit.

    With `hierarchy=False` the prior N(θ₀, Σ₀) and ψ are held, and the tasks are independent:

        p(θ_i | S_i) ∝ exp(−f_i(θ_i)) N(θ_i; θ₀, Σ₀)

    All tasks share one chain over their product: 300 tasks cost little more than one, since their
    energies are one batched call. Each θ_i is sampled in coordinates in which its posterior is
    nearly N(0, I).

    With `hierarchy=True` θ₀, Σ₀ and ψ are random too, with weak hyper-priors in the data's units
    (s_j² = prior variance + unit-information variance of θ_j; see `targets.Hierarchy`):

        θ₀_j ~ N(prior mean, (10 s_j)²)   sd_j ~ half-t(4, 2.5 s_j)   correlations ~ LKJ(1)
        log of each likelihood constant ~ N(present, 2²)
        other shared weights ~ N(present, (10 × unit-information sd)²)

    They are printed in numbers in `NutsResult.hyperpriors`.

    Args:
        model: a fit, or a model with the ψ to be held.
        family: the tasks, in original units; those of the fit by default.
        prior: a `Prior` with values, or a `Gaussian`; that of the fit by default. The hierarchy
            takes from it the place and order of magnitude only.
        task: names of the tasks to sample, or one name; all by default. A hierarchy of some tasks
            is another hierarchy than that of all.
        draws: per chain, after warm-up.
        warmup: steps that adapt step size and mass matrix, discarded.
        chains: run one after another.
        seed: of everything random here; the global random state is left as it was.
        hierarchy: sample the prior's parameters and ψ too.
        diagonal: no correlations in Σ₀ (hierarchy only).
        centred: sample θ_i rather than its deviation in units of Σ₀^½: better with many rows
            per task, worse with few (hierarchy only).
        learn_shared: sample ψ (hierarchy only); otherwise hold it.
        target_accept: mean acceptance that the step size is adapted to.
        max_tree_depth: at most 2 to this power gradients per draw.

    Returns:
        NutsResult; `problems()` says whether it can serve as a reference. θ is in the model's
        units: for a fit that standardised its data, in standardised ones, as in `fit.posterior`.

    Raises:
        InputError: too few draws, a prior of another dimension, an unknown task, a density that
            is not finite where the chain starts.

    References:
        Hoffman & Gelman (2014), algorithm 6, in Pyro's implementation with multinomial sampling.

    Example:
        >>> import torch
        >>> from bayesmeta.gaussian import Gaussian
        >>> model = Model.from_energy(lambda theta, c: 0.5 * (theta - c).square().sum(), 1)
        >>> family = TaskFamily.from_tensors(c=torch.full((2, 1), 3.0).double())
        >>> prior = Gaussian(torch.zeros(1).double(), torch.ones(1).double())
        >>> result = nuts(model, family, prior=prior, draws=200, warmup=50)
        >>> bool(((result.mean - 1.5).abs() < 5 * result.mcse).all())  # mean of N(3/2, 1/2)
        True
    """
    started = time.perf_counter()
    _check_counts(draws=draws, warmup=warmup, chains=chains)
    model, family, law = _inputs(model, family, prior, task)
    batch = family.batch()
    target: HeldPrior | Hierarchy
    if hierarchy:
        options = {"diagonal": diagonal, "centred": centred, "learn_shared": learn_shared}
        target = Hierarchy(model, batch, law, **options)
    else:
        target = HeldPrior(model, batch, law)
    generator = torch.Generator().manual_seed(seed)
    settings = {"target_accept_prob": target_accept, "max_tree_depth": max_tree_depth}
    ran = [_chain(target, draws, warmup, generator, settings) for _ in range(chains)]
    together = {site: torch.cat([z[site] for z, _ in ran]) for site in ran[0][0]}
    return NutsResult(
        names=model.names,
        tasks=family.names,
        chains=chains,
        divergences=sum(count for _, count in ran),
        seconds=time.perf_counter() - started,
        **target.constrained(together),
    )


def prior_as_pyro(fit: Fit) -> Callable[..., Tensor]:
    """The fitted prior as a Pyro model, to be called inside a larger one.

    Args:
        fit: a fit; its Σ₀ must not be singular.

    Returns:
        `model(tasks=None)`: samples the site "theta" from N(θ₀, Σ₀) and returns it, (dim,), or,
        inside the plate "task", (tasks, dim).

    Raises:
        InputError: Σ₀ has no inverse, so "theta" would have no density.

    Example:
        `pyro.poutine.trace(prior_as_pyro(fit)).get_trace()` has one site, "theta".
    """
    law = _law(fit.prior)
    lower, info = torch.linalg.cholesky_ex(law.covariance())
    if int(info):
        raise InputError(
            "the fitted Σ₀ is singular (a variance at its boundary), so theta has no density: "
            'fit with hyperprior="boundary-avoiding"'
        )
    mean = law.mean

    def model(tasks: int | None = None) -> Tensor:
        theta = MultivariateNormal(mean, scale_tril=lower)
        if tasks is None:
            return pyro.sample("theta", theta)
        with pyro.plate("task", tasks):
            return pyro.sample("theta", theta)

    return model


def _chain(
    target: HeldPrior | Hierarchy,
    draws: int,
    warmup: int,
    generator: torch.Generator,
    settings: dict[str, Any],
) -> tuple[dict[str, Tensor], int]:
    """One chain's draws of z and its number of divergences."""
    start = target.start(generator)
    _check_finite(target, start)
    chain_seed = int(torch.randint(2**31, (), generator=generator))
    # θ₀, Σ₀ and ψ are few and correlated; the tasks are many, and scaled alike.
    dense: Any = [("hyper",)] if "hyper" in start else False
    kernel = NUTS(potential_fn=target, full_mass=dense, **settings)
    sampler = MCMC(kernel, draws, warmup_steps=warmup, initial_params=start, disable_progbar=True)
    # Pyro draws from the global state, the accelerator's too.
    devices = list(range(torch.cuda.device_count()))
    with torch.random.fork_rng(devices=devices), torch.enable_grad():
        torch.manual_seed(chain_seed)
        sampler.run()
    return sampler.get_samples(), sum(map(len, sampler.diagnostics()["divergences"].values()))


def _law(prior: Any) -> Gaussian:
    """A Gaussian from `fit.prior`, a Prior, or itself."""
    if isinstance(prior, Prior):
        prior = prior()
    law = getattr(prior, "gaussian", prior)
    return law.map(torch.Tensor.detach)


def _inputs(
    model: Model | Fit, family: TaskFamily | None, prior: Any, task: str | Sequence[str] | None
) -> tuple[Model, TaskFamily, Gaussian]:
    """The model, the tasks and the prior, in one dtype, on one device and in the model's units."""
    if isinstance(model, Fit):
        fit = model
        model, prior = fit.model, fit.prior if prior is None else prior
        family = fit.internal(fit.family if family is None else family)
    if family is None or prior is None:
        raise InputError("give nuts a fit, or a model with family and prior=")
    if task is not None:
        family = family.subset([task] if isinstance(task, str) else list(task))
    law = _law(prior)
    if law.is_point:
        raise InputError("the prior is a point: there is nothing to sample")
    if law.mean.shape != (model.dim,):
        raise InputError(
            f"the prior is over {tuple(law.mean.shape)} weights, the model has {model.dim}"
        )
    floating = [t for t in family.tensors.values() if t.is_floating_point()]
    like = floating[0] if floating else law.mean
    model = copy.deepcopy(model.bind(family)).to(device=like.device, dtype=like.dtype)
    return model, family, law.map(lambda tensor: tensor.to(like))


def _check_counts(*, draws: int, warmup: int, chains: int) -> None:
    if draws < FEWEST_DRAWS or chains < 1 or warmup < 0:
        raise InputError(
            f"draws must be at least {FEWEST_DRAWS}, chains at least 1 and warmup at least 0, "
            f"not {draws}, {chains} and {warmup}"
        )


def _check_finite(target: HeldPrior | Hierarchy, start: dict[str, Tensor]) -> None:
    with torch.no_grad():
        energy = float(target(start))
    if not abs(energy) < float("inf"):
        raise InputError(
            f"the log-density is {-energy} where the chain starts: check the energy at the "
            "prior's mean"
        )
