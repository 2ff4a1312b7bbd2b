"""Figures by name: what `bayesmeta plot RUN NAME` draws, all coordinates as panels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bayesmeta.plots._calibration import calibration, calibration_caption
from bayesmeta.plots._predictive import predictive_caption, predictive_grid
from bayesmeta.plots._prior import prior, prior_caption
from bayesmeta.plots._reading import array, position
from bayesmeta.plots._shrinkage import shrinkage, shrinkage_caption
from bayesmeta.plots._spread import height, spread, spread_caption
from bayesmeta.plots._style import DOUBLE, figure_key, new_figure, style
from bayesmeta.plots._trace import trace, trace_caption
from bayesmeta.results import InputError

if TYPE_CHECKING:
    from bayesmeta.fit import Fit

MOST_PANELS = 6
PANEL = 2.2  # inches: the least width of a panel


def draw(name: str, fit: Fit, **options: Any) -> Figure:
    """A whole figure by its name.

    Args:
        name: spread, shrinkage, predictive, prior, trace or calibration.
        fit: a fit.
        options: of that figure: `width` in inches for all; `coordinates` for spread, shrinkage
            and prior; `tasks` and `x` for predictive; the plot's own keywords.

    Returns:
        The figure, for `save`.

    Raises:
        InputError: an unknown figure, or an unknown option of it.
    """
    return _known(name, options)(fit, **options)


def caption(name: str, fit: Fit, **options: Any) -> str:
    """One to three sentences under `draw(name, fit, **options)`, with this fit's numbers."""
    _known(name, options)
    options.pop("width", None)
    return _CAPTIONS[name](fit, **options)


def interesting(fit: Fit, most: int = MOST_PANELS) -> list[int]:
    """The coordinates to show where there are too many: in which tasks differ most surely.

    Ranked by the spread of the posterior means between tasks over the posteriors' own sd; a fit
    with few coordinates shows them all, in their order.
    """
    dim = len(fit.prior.names)
    if dim <= most:
        return list(range(dim))
    between = array(fit.posterior.mean).std(0)
    within = np.sqrt((array(fit.posterior.sd()) ** 2).mean(0))
    ratio = between / np.where(within > 0.0, within, np.inf)
    return sorted(int(j) for j in np.argsort(-ratio, kind="stable")[:most])


def _known(name: str, options: dict[str, Any]) -> Callable[..., Figure]:
    if name not in REGISTRY:
        raise InputError(f"no figure is named {name!r}; there are: {', '.join(REGISTRY)}")
    unknown = sorted(set(options) - set(_OPTIONS[name]))
    if unknown:
        raise InputError(
            f"the figure {name} has no option {unknown[0]!r}; it has: {', '.join(_OPTIONS[name])}"
        )
    return REGISTRY[name]


def _coordinates(fit: Fit, coordinates: Sequence[str | int] | None) -> list[int]:
    if coordinates is None:
        return interesting(fit)
    wanted = [coordinates] if isinstance(coordinates, str | int) else coordinates
    return [position(fit, c) for c in wanted]


def _panels(count: int, width: float, each: float) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels of one height, as many side by side as the width allows."""
    columns = max(1, min(count, int(width / PANEL)))
    rows = -(-count // columns)
    with style():
        fig = new_figure(width, each * rows)
        axes = list(fig.subplots(rows, columns, squeeze=False).ravel())
    for ax in axes[count:]:
        ax.remove()
    return fig, axes[:count]


def _spread(
    fit: Fit,
    *,
    coordinates: Sequence[str | int] | None = None,
    width: float = DOUBLE,
    sort: bool | str | int = True,
    max_labels: int = 40,
    level: float = 0.9,
    no_pooling: Any = None,
) -> Figure:
    """One panel per coordinate, all in the order of the first; sorted apart without names."""
    chosen = _coordinates(fit, coordinates)
    alone = fit.no_pooling() if no_pooling is None else no_pooling
    columns = max(1, min(len(chosen), int(width / PANEL)))
    each = height(len(fit.posterior.tasks), max_labels)
    named = len(fit.posterior.tasks) <= max_labels
    lower = not named and columns < len(chosen)
    fig, axes = _panels(len(chosen), width, 4.2 if lower else each)
    order = chosen[0] if sort is True and named else sort
    with style():
        for i, (coordinate, ax) in enumerate(zip(chosen, axes, strict=True)):
            spread(
                fit,
                coordinate,
                ax=ax,
                level=level,
                sort=order,
                max_labels=max_labels,
                no_pooling=alone,
                legend=False,
            )
            if i % columns:
                ax.set_ylabel("")
                ax.tick_params(labelleft=False)
    figure_key(fig, axes)
    return fig


def _spread_caption(
    fit: Fit, *, coordinates: Sequence[str | int] | None = None, **options: Any
) -> str:
    chosen = _coordinates(fit, coordinates)
    alone = options.pop("no_pooling", None)
    alone = fit.no_pooling() if alone is None else alone
    text = " ".join(spread_caption(fit, c, no_pooling=alone, **options) for c in chosen)
    named = len(fit.posterior.tasks) <= options.get("max_labels", 40)
    if len(chosen) > 1 and options.get("sort", True) is True:
        order = f"All panels have the order of {fit.prior.names[chosen[0]]}"
        text += f" {order if named else 'Each panel is sorted by itself'}."
    return text + _left_out(fit, chosen, coordinates)


def _left_out(fit: Fit, chosen: list[int], wanted: Sequence[str | int] | None) -> str:
    dim = len(fit.prior.names)
    if wanted is not None or len(chosen) == dim:
        return ""
    return f" The {len(chosen)} of {dim} coordinates in which the tasks differ most surely."


def _pairs(fit: Fit, coordinates: Sequence[str | int] | None) -> list[tuple[int, int]]:
    if len(fit.prior.names) < 2:
        raise InputError("a shrinkage map needs two coordinates and this fit has one: draw spread")
    chosen = interesting(fit, 3) if coordinates is None else _coordinates(fit, coordinates)
    return list(combinations(chosen, 2))


def _shrinkage(
    fit: Fit,
    *,
    coordinates: Sequence[str | int] | None = None,
    width: float | None = None,
    no_pooling: Any = None,
) -> Figure:
    """One panel per pair of coordinates."""
    pairs = _pairs(fit, coordinates)
    alone = fit.no_pooling() if no_pooling is None else no_pooling
    width = (3.6 if len(pairs) == 1 else DOUBLE) if width is None else width
    fig, axes = _panels(len(pairs), width, 3.3 if len(pairs) == 1 else 2.6)
    with style():
        for pair, ax in zip(pairs, axes, strict=True):
            shrinkage(fit, *pair, ax=ax, no_pooling=alone, legend=False)
    figure_key(fig, axes)
    return fig


def _shrinkage_caption(
    fit: Fit, *, coordinates: Sequence[str | int] | None = None, no_pooling: Any = None
) -> str:
    pairs = _pairs(fit, coordinates)
    alone = fit.no_pooling() if no_pooling is None else no_pooling
    text = " ".join(shrinkage_caption(fit, *pair, no_pooling=alone) for pair in pairs)
    return text + _left_out(fit, sorted({c for pair in pairs for c in pair}), coordinates)


def _prior(
    fit: Fit, *, coordinates: Sequence[str | int] | None = None, width: float | None = None
) -> Figure:
    """One panel per coordinate."""
    chosen = _coordinates(fit, coordinates)
    width = (3.6 if len(chosen) == 1 else DOUBLE) if width is None else width
    fig, axes = _panels(len(chosen), width, 2.3)
    with style():
        for coordinate, ax in zip(chosen, axes, strict=True):
            prior(fit, coordinate, ax=ax, legend=False)
    figure_key(fig, axes)
    return fig


def _prior_caption(fit: Fit, *, coordinates: Sequence[str | int] | None = None) -> str:
    chosen = _coordinates(fit, coordinates)
    text = " ".join(prior_caption(fit, c) for c in chosen)
    return text + _left_out(fit, chosen, coordinates)


def _trace(fit: Fit, *, width: float = DOUBLE) -> Figure:
    """The value, and beside it the distance to the smallest where there is one."""
    moved = len({float(v) for v in fit.trace}) > 1
    fig, axes = _panels(1 + moved, width if moved else min(width, 3.6), 2.3)
    with style():
        for ax, view in zip(axes, ("value", "distance"), strict=False):
            trace(fit, ax=ax, view=view)
    return fig


def _calibration(fit: Fit, *, width: float = 3.4, **options: Any) -> Figure:
    fig, (ax,) = _panels(1, width, width)
    with style():
        calibration(fit, ax=ax, **options)
    return fig


REGISTRY: dict[str, Callable[..., Figure]] = {
    "spread": _spread,
    "shrinkage": _shrinkage,
    "predictive": predictive_grid,
    "prior": _prior,
    "trace": _trace,
    "calibration": _calibration,
}
"""The figures by name; each takes a fit and keywords, and returns a Figure."""

_CAPTIONS: dict[str, Callable[..., str]] = {
    "spread": _spread_caption,
    "shrinkage": _shrinkage_caption,
    "predictive": predictive_caption,
    "prior": _prior_caption,
    "trace": trace_caption,
    "calibration": calibration_caption,
}
_OPTIONS: dict[str, tuple[str, ...]] = {
    "spread": ("coordinates", "width", "sort", "max_labels", "level", "no_pooling"),
    "shrinkage": ("coordinates", "width", "no_pooling"),
    "predictive": ("tasks", "x", "draws", "seed", "width", "sharey"),
    "prior": ("coordinates", "width"),
    "trace": ("width",),
    "calibration": ("width", "family", "prediction", "levels", "draws", "seed"),
}
