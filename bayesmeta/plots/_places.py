"""Where names beside points go, so that none lies on another or on a mark."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from bayesmeta.plots._reading import Array
from bayesmeta.plots._style import plain, short_names, small

# Offsets in points and alignments, in the order they are tried.
PLACES = (
    (4, 0, "left", "center"),
    (-4, 0, "right", "center"),
    (0, 4, "center", "bottom"),
    (0, -4, "center", "top"),
    (3, 3, "left", "bottom"),
    (3, -3, "left", "top"),
    (-3, 3, "right", "bottom"),
    (-3, -3, "right", "top"),
)
CROWDED = 0.06  # of a name's area


def name_points(ax: Axes, names: list[str], at: Array, marks: Array) -> None:
    """Write each name at the place beside its point that covers the fewest marks and names.

    A name that would still cover too much is left out.

    Args:
        ax: with its limits set.
        names: one per point.
        at: (point, 2) in data units.
        marks: (mark, 2) positions of all that is drawn, in data units.
    """
    size = small(ax)
    scale = 72.0 / ax.figure.dpi
    frame = ax.get_window_extent()
    edges = scale * np.array([frame.x0, frame.y0, frame.x1, frame.y1])
    taken = scale * ax.transData.transform(marks[np.isfinite(marks).all(1)])
    boxes = np.concatenate([taken - 2.0, taken + 2.0], 1)
    for text, point in zip(short_names(names, 16), at, strict=True):
        x, y = scale * ax.transData.transform(point)
        best = min(PLACES, key=lambda p: _cost(_box(p, x, y, len(text), size), boxes, edges))
        box = _box(best, x, y, len(text), size)
        if _cost(box, boxes, edges) > CROWDED * np.prod(box[2:] - box[:2]):
            continue
        boxes = np.concatenate([boxes, box[None]])
        ax.annotate(
            plain(text),
            point,
            best[:2],
            textcoords="offset points",
            ha=best[2],
            va=best[3],
            fontsize=size,
        )


def _box(
    place: tuple[float, float, str, str], x: float, y: float, letters: int, size: float
) -> Array:
    """(left, bottom, right, top) in points of a name at a place beside (x, y)."""
    width, height = 0.58 * size * letters, 1.1 * size
    left = x + place[0] - width * {"left": 0.0, "center": 0.5, "right": 1.0}[place[2]]
    low = y + place[1] - height * {"bottom": 0.0, "center": 0.5, "top": 1.0}[place[3]]
    return np.array([left, low, left + width, low + height])


def _cost(box: Array, boxes: Array, edges: Array) -> float:
    """The area that `box` shares with `boxes`, and a lot more where it leaves the axes."""
    across = np.minimum(box[2], boxes[:, 2]) - np.maximum(box[0], boxes[:, 0])
    upward = np.minimum(box[3], boxes[:, 3]) - np.maximum(box[1], boxes[:, 1])
    shared = float((np.clip(across, 0, None) * np.clip(upward, 0, None)).sum())
    outside = bool((box[:2] < edges[:2]).any() or (box[2:] > edges[2:]).any())
    return shared + 1e4 * outside
