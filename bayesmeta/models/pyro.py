"""f_i(θ) from a Pyro model: its latent sites are θ, its observed sites the likelihood.

Each latent site lives on all of ℝ through the bijection of its support. The sites' own priors play
no part: N(θ₀, Σ₀) over the unconstrained coordinates replaces them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn
from torch.distributions import biject_to

from bayesmeta.models.energy import refuse_padding
from bayesmeta.models.model import Model, Tensors, coordinate_names
from bayesmeta.results import InputError
from bayesmeta.tasks import TaskFamily


@dataclass(frozen=True, eq=False)
class Site:
    """A latent site: its name, unconstrained shape, and the way to its support."""

    name: str
    shape: torch.Size
    transform: Any


class PyroModel(Model):
    """A Pyro model as f(θ, task); see `Model.from_pyro`.

    Args:
        fn: Pyro model of one task, called with the task's tensors in the family's order, and with
            mask= (row,) if it takes one. It may use plates, and must not use pyro.param.
    """

    def __init__(self, fn: Callable[..., Any], sites: tuple[Site, ...] = ()) -> None:
        holder = nn.Module()
        holder.theta = nn.Parameter(torch.zeros(sum(s.shape.numel() for s in sites)))
        names = [n for s in sites for n in coordinate_names(s.name, torch.empty(s.shape))]
        super().__init__(holder, None, names=names)
        self.fn = fn
        self.sites = sites
        self.takes_mask = "mask" in inspect.signature(fn).parameters

    def bind(self, family: TaskFamily) -> Model:
        """The model with its latent sites found by running it once on the first task."""
        refuse_padding(family, self.takes_mask, "the Pyro model")
        first = family.batch(torch.tensor([0]))
        # Sites drawn from Python numbers have the default dtype; only their shapes are wanted.
        default = torch.get_default_dtype()
        tensors = [
            t[0].to(default) if t.is_floating_point() else t[0] for t in first.tensors.values()
        ]
        options = {} if first.mask is None or not self.takes_mask else {"mask": first.mask[0]}
        with torch.random.fork_rng(devices=[]), poutine.block():
            nodes: dict[str, Any] = dict(
                poutine.trace(self.fn).get_trace(*tensors, **options).nodes
            )
        if any(site["type"] == "param" for site in nodes.values()):
            raise InputError("a pyro.param cannot be fitted here: make it a latent site")
        latent = [
            (name, site) for name, site in nodes.items()
            if site["type"] == "sample" and not site["is_observed"]
            and type(site["fn"]).__name__ != "_Subsample"
        ]  # fmt: skip
        if not latent:
            raise InputError("the Pyro model has no latent site to adapt")
        sites = []
        for name, site in latent:
            if site["fn"].support.is_discrete:
                raise InputError(f"latent site {name!r} is discrete: only continuous θ is adapted")
            transform = biject_to(site["fn"].support)
            sites.append(Site(name, transform.inv(site["value"]).shape, transform))
        return PyroModel(self.fn, tuple(sites))

    def constrained(self, theta: Tensor) -> dict[str, Tensor]:
        """Values of the latent sites at θ (dim,)."""
        parts = theta.split([s.shape.numel() for s in self.sites])
        return {
            s.name: s.transform(p.reshape(s.shape)) for s, p in zip(self.sites, parts, strict=True)
        }

    def energy(
        self, theta: Tensor, shared: Tensors, tensors: Tensors, mask: Tensor | None = None
    ) -> Tensor:
        """() minus the log-density of the observed sites at θ."""
        options = {"mask": mask} if self.takes_mask else {}
        latent = {s.name for s in self.sites}
        conditioned = poutine.condition(self.fn, data=self.constrained(theta))
        # Validation looks at values, which vmap does not have.
        with pyro.validation_enabled(False):
            trace = poutine.trace(conditioned).get_trace(*tensors.values(), **options)
            trace.compute_log_prob(lambda name, site: name not in latent)
        nodes: dict[str, Any] = dict(trace.nodes)
        observed = [
            site["log_prob_sum"] for name, site in nodes.items()
            if site["type"] == "sample" and name not in latent and "log_prob_sum" in site
        ]  # fmt: skip
        if not observed:
            raise InputError("the Pyro model observes nothing: give a site obs=")
        return -torch.stack(observed).sum()
