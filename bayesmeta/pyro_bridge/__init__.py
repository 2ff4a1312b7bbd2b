"""Pyro's NUTS as the reference for any fit, and a fitted prior as a Pyro model.

The only folder that imports Pyro's inference. The Markov chain is Pyro's; its target is the sum
of this library's energies f_i and of the prior, so a fit and its reference share one model.
"""

from __future__ import annotations

from bayesmeta.pyro_bridge.result import NutsResult
from bayesmeta.pyro_bridge.sampling import nuts, prior_as_pyro

__all__ = ["NutsResult", "nuts", "prior_as_pyro"]
