"""Draws of θ_i ~ Q_i, and of what they predict, as ArviZ reads them (0.2x and 1.x).

The groups are plain xarray datasets, so a file is written without loading ArviZ; `to_arviz` wraps
them in what the installed ArviZ works with. Tensors are only ever turned into numpy arrays here,
so this file runs without torch.
"""

from __future__ import annotations

import io
import json
import math
import sys
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5netcdf
import numpy as np
import xarray as xr
from xarray.backends import H5NetCDFStore

from bayesmeta import __version__
from bayesmeta.atomic import whole_file
from bayesmeta.results import InputError

if TYPE_CHECKING:
    from bayesmeta.fit import Fit

LARGEST_FILE = 100e6  # bytes
FEWEST_DRAWS = 100  # below this the groups of one number per row are left out
LARGEST_CHUNK = 5e6  # numbers in one padded (draw, task, row) block
EQUAL_RATIOS = 1e-6  # nats


def to_arviz(fit: Fit, *, draws: int = 1000, seed: int = 0) -> Any:
    """The fit as ArviZ's InferenceData (0.2x) or xarray's DataTree (1.x).

        posterior             theta (chain, draw, task, coordinate)
        prior                 theta (chain, draw, coordinate)
        posterior_predictive  y (chain, draw, observation)
        log_likelihood        y (chain, draw, observation), nats
        observed_data         y (observation), with `task` and `row` naming each observation

    Tasks of different lengths lie one after another along `observation`, so no padding is in it.
    A model without a likelihood of rows has the first two groups only. What is not random in a
    fit (shared values, noise, evidence) is in the attributes of `posterior`.

    One 8-byte number per draw, task and coordinate, and two per draw and observation, would be
    large for large families. Draws are cut so that all stays under about 100 MB; where fewer than
    100 draws would be left, `posterior_predictive` and `log_likelihood` are left out first.

    Args:
        fit: a fit.
        draws: draws per group; of a random algorithm's Q_i never more than its runs.
        seed: of the draws.

    Returns:
        InferenceData or DataTree.

    Raises:
        InputError: draws is less than 1.

    Warns:
        UserWarning: fewer draws or groups than asked for, and why.

    Example:
        `az.plot_forest(fit.to_arviz(), coords={"coordinate": ["Days"]})` draws one line per task;
        `az.loo(fit.to_arviz())` has one k̂ per observation, named by its task and row.
    """
    datasets, notes = groups(fit, draws=draws, seed=seed)
    for note in notes:
        warnings.warn(note, stacklevel=2)
    az = _arviz()
    if _before_1(az):
        return az.InferenceData(**datasets)
    return xr.DataTree.from_dict({f"/{name}": dataset for name, dataset in datasets.items()})


def save_netcdf(fit: Fit, path: Any, *, draws: int = 1000, seed: int = 0) -> list[str]:
    """Write the groups of `to_arviz` to a netCDF file that `az.from_netcdf` reads.

    The file appears whole or not at all.

    Args:
        fit: a fit.
        path: file to write; one that exists is replaced.
        draws: draws per group, cut as in `to_arviz`.
        seed: of the draws.

    Returns:
        Sentences on draws or groups that were left out; empty when nothing was.
    """
    datasets, notes = groups(fit, draws=draws, seed=seed)
    # In memory: HDF5 itself ends the whole process where a disk is full.
    content = io.BytesIO()
    with h5netcdf.File(content, "w") as file:
        for name, dataset in datasets.items():
            dataset.dump_to_store(H5NetCDFStore(file, group=name))
    with whole_file(Path(path)) as unfinished:
        unfinished.write_bytes(content.getvalue())
    return notes


def groups(fit: Fit, *, draws: int, seed: int) -> tuple[dict[str, xr.Dataset], list[str]]:
    """The datasets of `to_arviz` by group name, and sentences on what was left out."""
    if draws < 1:
        raise InputError(f"draws must be at least 1, not {draws}")
    per_row = fit.model.likelihood is not None and "y" in fit.family.tensors
    runs = getattr(fit.posterior, "draws", None)
    if runs is not None:  # repeating them would look like more than is known
        draws = min(draws, len(runs))
    draws, per_row_kept, notes = _affordable(fit, draws, per_row)
    generator = _generator(seed)
    theta = _array(fit.posterior.sample(draws, generator))
    prior = _array(fit.prior.gaussian.sample(draws, generator))
    names = {"coordinate": list(fit.posterior.names)}
    datasets = {
        "posterior": _draws(
            {"theta": (("task", "coordinate"), theta)},
            {"task": list(fit.posterior.tasks), **names},
            _about(fit, notes),
        ),
        "prior": _draws({"theta": (("coordinate",), prior)}, names),
    }
    if per_row:
        observations = _Observations(fit.family)
        if per_row_kept:
            datasets["posterior_predictive"] = observations.draws(
                lambda start, stop: _array(
                    fit.predict(draws=stop - start, seed=seed + start).draws
                ),
                draws,
            )
            datasets["log_likelihood"] = observations.draws(
                lambda start, stop: _array(fit.log_likelihood(_like(theta[start:stop], fit))),
                draws,
            )
        datasets["observed_data"] = observations.observed()
    return datasets, notes


class _Observations:
    """The real rows of a family in one line, task after task."""

    def __init__(self, family: Any) -> None:
        y = _array(family.tensors["y"])
        shape = (y.shape + (1,))[:2]
        mask = np.ones(shape, bool) if family.mask is None else _array(family.mask)
        task, row = mask.nonzero()
        self.mask, self.y = mask, y.reshape(shape)[mask]
        self.coords = {
            "observation": np.arange(len(row)),
            "task": ("observation", np.array(family.names)[task]),
            "row": ("observation", row),
        }

    def observed(self) -> xr.Dataset:
        return xr.Dataset({"y": (("observation",), self.y)}, self.coords, _library())

    def draws(self, compute: Callable[[int, int], np.ndarray], draws: int) -> xr.Dataset:
        """compute(start, stop) gives (draw, task, row), padded: only a chunk of it at a time."""
        size = max(1, int(LARGEST_CHUNK / self.mask.size))
        chunks = [
            compute(start, min(start + size, draws)).reshape(-1, *self.mask.shape)[:, self.mask]
            for start in range(0, draws, size)
        ]
        return _draws({"y": (("observation",), np.concatenate(chunks))}, self.coords)


def _draws(variables: dict[str, Any], coords: dict[str, Any], about: Any = None) -> xr.Dataset:
    """A dataset whose variables get one chain and their draws in front."""
    data = {k: (("chain", "draw", *dims), v[None]) for k, (dims, v) in variables.items()}
    draws = next(iter(variables.values()))[1].shape[0]
    coords = {"chain": [0], "draw": np.arange(draws), **coords}
    return xr.Dataset(data, coords, {**_library(), **(about or {})})


def _affordable(fit: Fit, draws: int, per_row: bool) -> tuple[int, bool, list[str]]:
    """How many draws keep the file small, and whether numbers per row can be among them."""
    tasks, dim = len(fit.posterior.tasks), len(fit.posterior.names)
    weights = 8 * (tasks + 1) * dim
    rows = 16 * int(_array(fit.family.rows).sum()) if per_row else 0
    kept = math.floor(LARGEST_FILE / (weights + rows))
    if kept >= draws:
        return draws, per_row, []
    without_rows = per_row and kept < FEWEST_DRAWS
    if without_rows:
        kept = math.floor(LARGEST_FILE / weights)
    kept = min(draws, max(kept, 2))
    left_out = "no posterior_predictive and no log_likelihood" if without_rows else ""
    cut = f"{kept} draws in place of {draws}" if kept < draws else ""
    note = (
        f"the ArviZ export has {' and '.join(filter(None, [cut, left_out]))}, to stay under "
        f"{LARGEST_FILE / 1e6:.0f} MB; take fit.posterior.sample(n) or fit.predict(draws=n) for "
        "more, or export a part of the tasks with fit.adapt(family.subset(names))"
    )
    return kept, per_row and not without_rows, [note]


def _about(fit: Fit, notes: list[str]) -> dict[str, Any]:
    shared = {name: _array(value).tolist() for name, value in fit.shared.items()}
    noise = {} if fit.noise is None else {"noise": float(fit.noise)}
    return {
        **noise,
        "log_evidence": float(fit.log_evidence),
        "evidence_kind": str(fit.evidence_kind),
        "shared": json.dumps(shared),
        "notes": " ".join([*fit.notes, *notes]),
    }


def _library() -> dict[str, str]:
    return {"inference_library": "bayesmeta", "inference_library_version": __version__}


def _array(values: Any) -> np.ndarray:
    """A tensor on any device, or anything array-like, as a numpy array."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
    return np.asarray(values)


def _generator(seed: int) -> Any:
    """Randomness for a fit's draws: torch's where there is torch, as in every fitted model."""
    torch = sys.modules.get("torch")
    return np.random.default_rng(seed) if torch is None else torch.Generator().manual_seed(seed)


def _like(theta: np.ndarray, fit: Fit) -> Any:
    """Draws as the fit's own kind of array."""
    mean: Any = fit.posterior.mean
    return mean.new_tensor(theta) if hasattr(mean, "new_tensor") else theta


def _arviz() -> Any:
    """ArviZ, loaded on first use, without its note to its own users about the coming 1.x."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return import_module("arviz")


def _before_1(az: Any) -> bool:
    # 1.x still answers to the old names, with DataTree in the place of InferenceData.
    return int(az.__version__.split(".")[0]) < 1


def pareto_k(log_ratios: Any) -> np.ndarray:
    """Pareto k̂ of each task's importance ratios: how heavy their right tail is.

        r_is = p(y_i | θ_is) p(θ_is) / q_i(θ_is)   for draws θ_is ~ Q_i

    The generalised Pareto distribution is fitted by ArviZ's PSIS to the largest ratios. Below 0.7,
    Q_i is close enough to the posterior for importance sampling to correct it; above, its
    moments are not to be trusted (Vehtari, Simpson, Gelman, Yao & Gabry 2024; Yao, Vehtari,
    Simpson & Gelman 2018).

    Args:
        log_ratios: (draw, task) log r, in nats, up to a constant per task.

    Returns:
        (task,) k̂. It is 0 where all ratios are equal within 1e-6 nats, as they are when Q_i is
        the exact posterior: there is no tail to fit. It is inf where a ratio is NaN or +inf, or the
        tail too heavy or too short to fit.

    Raises:
        InputError: the ratios are not (draw, task), or have fewer than 100 draws.

    Example:
        >>> pareto_k(np.zeros((1000, 2))).tolist()
        [0.0, 0.0]
    """
    ratios = np.asarray(_array(log_ratios), dtype=float)
    if ratios.ndim != 2 or ratios.shape[0] < FEWEST_DRAWS:
        raise InputError(
            f"log_ratios must be (draw, task) with at least {FEWEST_DRAWS} draws, "
            f"not {ratios.shape}"
        )
    k = np.full(ratios.shape[1], np.inf)
    usable = ~(np.isnan(ratios) | np.isposinf(ratios)).any(0) & np.isfinite(ratios).any(0)
    ratios = ratios - np.where(usable, ratios.max(0), 0.0)
    equal = usable & (ratios.min(0) > -EQUAL_RATIOS)
    k[equal] = 0.0
    rest = usable & ~equal
    if rest.any():
        fitted = _psis(np.ascontiguousarray(ratios[:, rest].T))
        k[rest] = np.where(np.isnan(fitted), np.inf, fitted)  # 1.x on a tail beyond its range
    return k


def _psis(log_ratios: np.ndarray) -> np.ndarray:
    """(task,) k̂ of (task, draw) ratios, by whichever ArviZ is installed."""
    az = _arviz()
    # A tail too short to fit is told by k̂ = inf; both versions also warn of it. A heavy tail
    # overflows an exponential on the way to a weight of 0, which is what it should be.
    with warnings.catch_warnings(), np.errstate(over="ignore"):
        warnings.simplefilter("ignore", UserWarning)
        if _before_1(az):
            return np.asarray(az.psislw(log_ratios)[1])
        # In 1.x the argument is a log-likelihood, the *negative* of a log ratio.
        return np.asarray(import_module("arviz_stats.base").array_stats.psislw(-log_ratios)[1])
