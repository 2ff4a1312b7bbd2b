"""Figures of a fit. Axes in, Axes out; pyplot and global settings are never touched.

    spread        posteriors of all tasks in one coordinate, over the prior
    shrinkage     two coordinates, from each task's own estimate to the pooled one
    predictive    predictive intervals of a task over its data
    prior         densities of the prior and of the tasks' posteriors
    trace         the objective M against outer steps
    calibration   nominal against observed coverage of predictive intervals
    estimators    bias and precision per second of estimators of a meta-gradient

`draw(name, fit)` makes the whole figure (a panel per coordinate or task), `caption(name, fit)` the
words under it, `save(figure, path)` the file. `style()` is the look, for figures of one's own.

Example:
    figure = bm.plots.draw("spread", fit)
    bm.plots.save(figure, "spread.svg")
    print(bm.plots.caption("spread", fit))
"""

from bayesmeta.plots._calibration import calibration
from bayesmeta.plots._draw import REGISTRY, caption, draw
from bayesmeta.plots._estimators import estimators
from bayesmeta.plots._predictive import predictive, predictive_grid
from bayesmeta.plots._prior import prior
from bayesmeta.plots._shrinkage import shrinkage
from bayesmeta.plots._spread import spread
from bayesmeta.plots._style import COLOURS, DOUBLE, LINES, MARKERS, SINGLE, save, style
from bayesmeta.plots._trace import trace

__all__ = [
    "COLOURS",
    "DOUBLE",
    "LINES",
    "MARKERS",
    "REGISTRY",
    "SINGLE",
    "calibration",
    "caption",
    "draw",
    "estimators",
    "predictive",
    "predictive_grid",
    "prior",
    "save",
    "shrinkage",
    "spread",
    "style",
    "trace",
]
