"""How every figure looks: one colour per meaning, one size of type, files that do not change.

The colours are those of Okabe and Ito, told apart by all common forms of colour blindness. In
grey they still differ by marker or line, so a printed page loses nothing.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.font_manager
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from bayesmeta.results import InputError

SINGLE = 3.3
"""Width in inches of one column of a two-column page."""
DOUBLE = 7.0
"""Width in inches of both columns."""

MOST_VECTORS = 2000
"""Beyond so many tasks their marks are pixels in an SVG or PDF, which would not open otherwise."""

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILLION, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
GREY = "#7F7F7F"

COLOURS: dict[str, str] = {
    # what a mark stands for
    "prior": GREEN,
    "posterior": BLUE,
    "predictive": BLUE,
    "no_pooling": VERMILLION,
    "full_pooling": PURPLE,
    "data": BLACK,
    "truth": BLACK,
    "reference": GREY,
    "nuts": ORANGE,
    "flagged": ORANGE,
    # methods: one colour for a kin, told apart inside it by LINES
    "joint": BLUE,
    "variational_imaml": BLUE,
    "laplace": SKY,
    "imaml": GREEN,
    "imaml_hf": GREEN,
    "maml": VERMILLION,
    "fomaml": VERMILLION,
    "truncated_maml": VERMILLION,
    "reptile": PURPLE,
    "stochastic": ORANGE,
    "two_path": ORANGE,
}
"""The colour of each role and each method, the same in every figure."""

MARKERS: dict[str, str] = {
    "posterior": "o",
    "no_pooling": "o",
    "full_pooling": "^",
    "data": ".",
    "truth": "*",
    "nuts": "s",
    "flagged": "D",
    "joint": "o",
    "variational_imaml": "v",
    "laplace": "s",
    "imaml": "D",
    "imaml_hf": "d",
    "maml": "^",
    "fomaml": "<",
    "truncated_maml": ">",
    "reptile": "P",
    "stochastic": "X",
    "two_path": "*",
}
"""The marker of each role and each method; that of "no_pooling" is drawn hollow."""

LINES: dict[str, str | tuple[float, tuple[float, ...]]] = {
    "joint": "-",
    "variational_imaml": "--",
    "laplace": "-",
    "imaml": "-",
    "imaml_hf": "--",
    "maml": "-",
    "fomaml": "--",
    "truncated_maml": ":",
    "reptile": "-.",
    "stochastic": "-",
    "two_path": "--",
    "nuts": (0, (4, 1, 1, 1)),
}
"""The line of each method, so that methods of one colour differ."""

# DejaVu Sans comes with matplotlib; the others are asked for letters it lacks, where installed.
_OTHER_SCRIPTS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "WenQuanYi Zen Hei",
    "PingFang SC",
    "Microsoft YaHei",
    "Noto Sans Arabic",
    "Noto Sans Devanagari",
)


@contextmanager
def style() -> Iterator[None]:
    """The look of the package's figures, for the length of a `with` block.

    Example:
        >>> before = mpl.rcParams["font.size"]
        >>> with style():
        ...     mpl.rcParams["font.size"]
        8.0
        >>> mpl.rcParams["font.size"] == before
        True
    """
    installed = set(matplotlib.font_manager.fontManager.get_font_names())
    look: Any = {
        "font.family": ["DejaVu Sans", *(f for f in _OTHER_SCRIPTS if f in installed)],
        "font.size": 8.0,
        "axes.titlesize": 8.0,
        "axes.labelsize": 8.0,
        "xtick.labelsize": 7.0,
        "ytick.labelsize": 7.0,
        "legend.fontsize": 7.0,
        "axes.linewidth": 0.6,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "axes.grid": False,
        "xtick.major.width": 0.6,
        "ytick.major.width": 0.6,
        "xtick.major.size": 2.5,
        "ytick.major.size": 2.5,
        "xtick.minor.size": 1.5,
        "ytick.minor.size": 1.5,
        "lines.linewidth": 1.2,
        "figure.facecolor": "white",
        "axes.facecolor": "white",
    }
    with mpl.rc_context(look):
        yield


def save(fig: Figure | SubFigure, path: str | Path, *, dpi: int = 200) -> Path:
    """Write a figure as PNG, SVG or PDF, the same bytes for the same figure.

    No time and no version goes into the file, and the names inside an SVG are hashed with a
    fixed salt. The file appears whole or not at all; folders that are missing are made.

    Args:
        fig: the figure, as `draw` gives it or as an Axes names it, `ax.figure`.
        path: where to; the ending chooses the format.
        dpi: dots per inch of a PNG.

    Returns:
        The path written.

    Raises:
        InputError: the ending is not .png, .svg or .pdf.
    """
    path = Path(path)
    kind = path.suffix.lower().lstrip(".")
    undated: dict[str, dict[str, None]] = {
        "png": {"Software": None},
        "svg": {"Date": None, "Creator": None},
        "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    }
    if kind not in undated:
        raise InputError(f"{path.name}: figures are written as .png, .svg or .pdf")
    drawn = io.BytesIO()
    with style(), mpl.rc_context({"svg.hashsalt": "bayesmeta"}):
        fig.figure.savefig(drawn, format=kind, dpi=dpi, metadata=undated[kind])
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(drawn.getvalue())
    part.replace(path)
    return path


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches, outside pyplot: nothing global knows of it."""
    return Figure(figsize=(width, height), layout="constrained")


def new_axes(width: float, height: float) -> Axes:
    """The one Axes of a new figure in the package's style."""
    with style():
        return new_figure(width, height).add_subplot()


def tint(colour: str, amount: float) -> tuple[float, float, float]:
    """A colour mixed with white; amount 1 is the colour. Opaque, so overlaps do not add up."""
    red, green, blue = (1.0 - amount * (1.0 - channel) for channel in to_rgb(colour))
    return red, green, blue


def plain(text: str) -> str:
    """A text for a figure, in which matplotlib finds no TeX."""
    return text.replace("$", r"\$")


def short(text: str, limit: int = 28) -> str:
    """A name on one line, its middle left out where it is long.

    Example:
        >>> short("Lac  qui Parle")
        'Lac qui Parle'
        >>> short("a very long name of a task, number 17", limit=16)
        'a very lon…er 17'
    """
    text = " ".join(str(text).split())
    if len(text) > limit:
        tail = (limit - 1) // 3
        text = f"{text[: limit - 1 - tail]}…{text[-tail:]}"
    return text


def short_names(names: Sequence[str], limit: int = 28) -> list[str]:
    """`short` for names side by side: what all long ones share gives way to where they differ.

    Example:
        >>> short_names(["survey of district 1 (rural)", "survey of district 2 (rural)"], limit=14)
        ['…strict 1 (ru…', '…strict 2 (ru…']
    """
    shown = [short(name, limit) for name in names]
    alike = [i for i, name in enumerate(shown) if shown.count(name) > 1]
    if not alike:
        return shown
    whole = {i: " ".join(names[i].split()) for i in alike}
    # The first and the last in alphabetical order share no more than all of them do.
    ends = zip(min(whole.values()), max(whole.values()), strict=False)
    start = max(0, len(list(takewhile(lambda pair: pair[0] == pair[1], ends))) - limit // 2)
    for i, name in whole.items():
        end = start + limit - 2
        shown[i] = f"{'…' if start else ''}{name[start:end]}{'…' if end < len(name) else ''}"
    return shown


def percent(level: float) -> str:
    """A share as it is written everywhere, "90 %" for 0.9."""
    return f"{100 * level:.4g} %"


def round_ticks(most: int, *, integer: bool = False) -> MaxNLocator:
    """At most so many ticks, at the round numbers 1, 2, 2.5 and 5 times a power of ten."""
    return MaxNLocator(
        most, steps=[1, 2, 5, 10] if integer else [1, 2, 2.5, 5, 10], integer=integer
    )


def small(ax: Axes) -> float:
    """The type size of an axes' tick labels, in points: that of its legend and notes."""
    return float(ax.xaxis.get_major_ticks(1)[0].label1.get_fontsize())


def entries(*axes: Axes) -> tuple[list[Any], list[str]]:
    """Handles and names for one legend of several axes, each name once, in a fixed order."""
    found: dict[str, Any] = {}
    for ax in axes:
        for handle, name in zip(*ax.get_legend_handles_labels(), strict=True):
            found.setdefault(name, handle)
    # Matplotlib lists lines before bars; intervals come first here, whichever they are.
    names = sorted(found, key=lambda name: not name.endswith(" %"))
    return [found[name] for name in names], names


def key(ax: Axes, *, own: bool = False, title: str | None = None) -> None:
    """A legend above the axes, with the panel's title; `own` if the figure holds nothing else."""
    if own:
        figure_key(ax.figure.figure, [ax], title=title)
        return
    handles, names = entries(ax)
    size = small(ax)
    # A layout engine may still make the axes narrower, to make room for the names beside them.
    room = 0.8 * ax.get_window_extent().width / ax.figure.dpi * 72
    ax.legend(
        handles,
        names,
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        ncols=columns_that_fit(names, room, size),
        fontsize=size,
        title=title,
        title_fontsize=size + 1.0,
        borderaxespad=0.3,
        **_look_of_key(handles),
    )


def figure_key(fig: Figure, axes: Sequence[Axes], *, title: str | None = None) -> None:
    """One legend above all panels."""
    handles, names = entries(*axes)
    with style():
        fig.legend(
            handles,
            names,
            loc="outside upper center",
            ncols=columns_that_fit(names, 72 * fig.get_figwidth(), 7.0),
            title=title,
            title_fontsize=8.0,
            **_look_of_key(handles),
        )


def _look_of_key(handles: list[Any]) -> dict[str, Any]:
    """Common options of a legend; its markers are never too small to be told apart."""
    sizes = [h.get_markersize() for h in handles if isinstance(h, Line2D) and h.get_marker()]
    return {
        "frameon": False,
        "handlelength": 1.6,
        "columnspacing": 1.2,
        "markerscale": float(np.clip(3.5 / min(sizes, default=3.5), 1.0, 2.0)),
    }


def columns_that_fit(names: Sequence[str], room: float, size: float) -> int:
    """Columns of a legend in `room` points, by the names' widths at type size `size`."""
    widths = [(0.55 * len(name) + 3.4) * size for name in names]
    if sum(widths) <= room:
        return max(1, len(names))
    return int(max(1, room // max(widths)))
