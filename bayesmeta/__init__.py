"""Gaussian priors N(θ₀, Σ₀) over the weights of any torch model, fitted to related tasks.

Every public name loads on first use, so `import bayesmeta` costs no torch, arviz, pyro, pandas or
matplotlib, and `bayesmeta --help` answers at once.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bayesmeta import diagnostics as diagnostics
    from bayesmeta import families as families
    from bayesmeta import images as images
    from bayesmeta import likelihoods as likelihoods
    from bayesmeta import methods as methods
    from bayesmeta import models as models
    from bayesmeta import plots as plots
    from bayesmeta.amortised.meta_gradient import MetaGradient as MetaGradient
    from bayesmeta.amortised.meta_gradient import meta_gradient as meta_gradient
    from bayesmeta.few_shot import FewShot as FewShot
    from bayesmeta.fit import Fit as Fit
    from bayesmeta.fit import fit as fit
    from bayesmeta.fit import load as load
    from bayesmeta.gaussian import Gaussian as Gaussian
    from bayesmeta.models import Model as Model
    from bayesmeta.prior import Prior as Prior
    from bayesmeta.pyro_bridge import nuts as nuts
    from bayesmeta.results import InputError as InputError
    from bayesmeta.resuming import Checkpoint as Checkpoint
    from bayesmeta.streams import TaskStream as TaskStream
    from bayesmeta.tasks import TaskBatch as TaskBatch
    from bayesmeta.tasks import TaskFamily as TaskFamily

__version__ = "0.1.0"

_HOME = {
    "MetaGradient": "amortised.meta_gradient",
    "meta_gradient": "amortised.meta_gradient",
    "FewShot": "few_shot",
    "Fit": "fit",
    "fit": "fit",
    "load": "fit",
    "Gaussian": "gaussian",
    "Model": "models",
    "Prior": "prior",
    "nuts": "pyro_bridge",
    "InputError": "results",
    "Checkpoint": "resuming",
    "TaskStream": "streams",
    "TaskBatch": "tasks",
    "TaskFamily": "tasks",
}
_MODULES = ("diagnostics", "families", "images", "likelihoods", "methods", "models", "plots")


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(import_module(f"bayesmeta.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    if name in _MODULES:
        return import_module(f"bayesmeta.{name}")
    raise AttributeError(f"module 'bayesmeta' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*_HOME, *_MODULES, "__version__"])


class _Package(ModuleType):
    """`bayesmeta.fit` names both a module and the verb inside it; on the package it is the verb.

    Importing a submodule sets it as an attribute of its package, and would hide the function.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _HOME and isinstance(value, ModuleType):
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
