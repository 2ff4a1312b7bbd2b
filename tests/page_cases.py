"""Small tables, and the sentences they bear, known by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from studies import _pages as pages
from studies import _shown as shown

Table = pd.DataFrame


@dataclass(frozen=True)
class Case:
    """A sentence that is known by hand.

    Args:
        function: that says it.
        table: small; its last `others` rows are not what is spoken of.
        said: the whole sentence.
        numbers: columns in which no row that is spoken of may lack a number.
        others: how many rows are for other sentences.
    """

    function: Callable[[Table], str]
    table: Table
    said: str
    numbers: tuple[str, ...]
    others: int = 0


def rows(names: str, *values: tuple[Any, ...]) -> Table:
    return pd.DataFrame(list(values), columns=names.split())


REFERENCES = rows(
    "criterion nats", ("ML", -2.1e-7), ("REML", 1e-9), ("ELBO", -1.2)
)  # fmt: skip
CURVE = "panel rule family points method nll nll_low nll_high nll_median"
LINES = rows(
    CURVE,
    ("curve", "own", "linear", 2, "joint, solved", 1.5, 1.4, 1.6, 1.25),
    ("curve", "own", "linear", 2, "MAML", 77.0, 9.0, 99.0, 2.5),
    ("curve", "own", "linear", 2, "iMAML", 2.9, 2.4, 3.4, 2.0),
    ("curve", "own", "linear", 2, "variational iMAML", 4.0, 3.0, 5.0, 3.0),
    ("curve", "own", "linear", 5, "MAML", 0.0, 0.0, 0.0, 0.0),
    ("curve", "descent", "linear", 2, "MAML", 0.0, 0.0, 0.0, 0.0),
    ("curve", "own", "schools", 2, "MAML", 0.0, 0.0, 0.0, 0.0),
    ("fit", None, "linear", None, "MAML", None, None, None, None),
)
NETWORK = rows(
    CURVE,
    ("curve", "own", "sinusoid", 5, "joint", 1.4, 1.25, 1.5, 1.0),
    ("curve", "own", "sinusoid", 5, "joint points", 20.0, 15.0, 25.0, 9.0),
    ("curve", "own", "sinusoid", 5, "Laplace", 0.75, 0.65, 0.85, 0.5),
    ("curve", "own", "sinusoid", 5, "MAML", 1.3, 1.0, 1.6, 0.5),
    ("curve", "own", "sinusoid", 5, "iMAML", 2.5, 1.5, 3.5, 1.5),
    ("curve", "own", "sinusoid", 5, "oracle", -0.5, -0.6, -0.4, 0.1),
    ("curve", "own", "sinusoid", 1, "MAML", 0.0, 0.0, 0.0, 0.0),
)
LOGISTIC = rows(
    "method mean_difference mean_mcse",
    ("laplace", 0.3, 0.004), ("laplace", -0.2, 0.008), ("laplace", 0.1, 0.001),
    ("joint", -0.007, 0.004), ("joint", 0.005, 0.008), ("joint", 0.001, 0.001),
)  # fmt: skip
GLMER = rows(
    "tool nats_from_ours",
    ("glmer", -2e-3), ("glmer", 1e-6), ("bayesmeta", 0.0), ("glmer, calc.derivs = FALSE", 9.0),
)  # fmt: skip
PRIOR = rows(
    "points method nll nll_se coverage coverage_se",
    (3, "fitted prior", -0.004, 0.05, 0.97, 0.01),
    (3, "no pooling", 150.4, 30.0, 0.4, 0.03),
    (3, "full pooling", 2.1, 0.1, 0.9, 0.02),
    (1, "fitted prior", 9.0, 1.0, 0.1, 0.1),
)
START = rows(
    "points method adaptation mse mse_low mse_high seconds",
    (10, "laplace", "converged", 0.04, 0.03, 0.05, 150.2),
    (10, "variational_imaml", "16", 0.07, 0.06, 0.08, 125.0),
    (10, "reptile", "1", 0.5, 0.45, 0.55, 121.0),
    (10, "reptile", "10", 0.11, 0.1, 0.12, 121.0),
    (10, "maml", "1", 0.34, 0.3, 0.38, 124.0),
    (10, "maml", "10", 0.12, 0.11, 0.13, 124.0),
    (10, "fomaml", "1", 0.37, 0.33, 0.41, 106.7),
    (10, "imaml_hf", "1", 0.2, 0.1, 0.3, 120.0),
    (5, "joint", "1", 0.001, 0.0, 0.002, 9.0),
)
IMAGES = rows(
    "part split ways shots method inductive_accuracy inductive_half_width seconds",
    ("table", "random", 5, 1, "Reptile", 84.0, 0.7, 45.0),
    ("table", "random", 5, 1, "MAML", 93.8, 0.5, 840.0),
    ("table", "random", 5, 1, "iMAML, gradient descent", 92.2, 0.6, 2340.0),
    ("table", "random", 5, 1, "first-order MAML", 83.0, 0.8, 420.0),
    ("table", "original", 5, 1, "Reptile", 99.0, 0.1, 60.0),
    ("effect", "random", 5, 1, "Reptile", 99.0, 0.1, 60.0),
    ("table", "random", 20, 1, "Reptile", 99.0, 0.1, 60.0),
)
MEMORY = rows(
    "part rule inner_steps peak_mib seconds",
    ("inner", "imaml", 1, 60.0, 1.0),
    ("inner", "imaml", 256, 61.0, 9.0),
    ("inner", "maml", 64, 2150.0, 10.0),
    ("inner", "maml_checkpoint", 64, 146.0, 13.0),
    ("inner", "maml", 1, 80.0, 1.0),
    ("inner", "maml_checkpoint", 1, 80.0, 1.0),
    ("cg", "imaml", 16, 999.0, 1.0),
)


def _shrinkage() -> Table:
    """Three fits a form that find 2 (block), 1 (other start), 0 (low-rank) of the layers."""
    found = {"block": 2, "block, other start": 1, "low-rank": 0}
    table = [
        ("layer", case, 0, form, layer, 0.3 * (case == layer), size, None)
        for form, right in found.items()
        for place, case in enumerate(("first", "middle", "last"))
        for layer in ("first", "middle", "last")
        for size in [0.2 if (case == layer) == (place < right) else 0.1]
    ]
    lost = {"low-rank": 0.05, "block": 0.4, "isotropic": 2.0, "block, other start": 0.7}
    scores = [
        ("score", "first", 0, form, None, None, None, value + shift)
        for form, value in lost.items()
        for shift in (-0.01, 0.01)
    ]
    control = ("score", "none", 0, "low-rank", None, None, None, 99.0)
    names = "panel case seed form layer true_sd prior_sd behind"
    return rows(names, *table, *scores, control)


HELD = "part level data family quantity form tasks coverage coverage_se"
FITTED = rows(
    HELD,
    *(
        ("fitted", 0.95, "own tasks", "linear", "weights", form, tasks, share, 0.01)
        for form, shares in (
            ("maximum likelihood", (0.6, 0.94, 0.95)), ("boundary-avoiding", (0.8, 0.95, 0.96)),
        )
        for tasks, share in zip((5, 40, 100), shares, strict=True)
    ),
    ("fitted", 0.5, "own tasks", "linear", "weights", "boundary-avoiding", 5, 0.1, 0.01),
    ("fitted", 0.95, "new tasks", "linear", "weights", "boundary-avoiding", 5, 0.1, 0.01),
    ("fitted", 0.95, "own tasks", "logistic", "weights", "boundary-avoiding", 5, 0.1, 0.01),
)  # fmt: skip
FORMS = rows(
    HELD,
    ("held", 0.95, "all", "linear, ρ = 0.9", "sum", "best Gaussian", 1000, 0.949, 0.01),
    ("held", 0.95, "all", "linear, ρ = 0.9", "difference", "best Gaussian", 1000, 0.958, 0.01),
    ("held", 0.95, "all", "linear, ρ = 0.9", "weight[0,0]", "best diagonal", 1000, 0.8, 0.01),
    ("held", 0.95, "all", "linear, ρ = 0.9", "difference", "best diagonal", 1000, 0.478, 0.01),
    ("held", 0.95, "all", "linear, ρ = 0.9", "new row", "best Gaussian", 1000, 0.1, 0.01),
    ("held", 0.95, "all", "linear, ρ = 0", "sum", "best Gaussian", 1000, 0.1, 0.01),
)


def _optimisers() -> Table:
    """Twice the error for MAML; on sinusoids half and twice it for the mixture, on chicks 0.8."""
    table = [
        (family, method, seed, algorithm, "none", error * (1.0 + seed))
        for family in ("sinusoids", "chicks")
        for seed in (0, 1)
        for algorithm in ("Nesterov", "RMSProp")
        for method, error in (
            ("shared", 1.0), ("maml", 2.0),
            ("mixture", 0.8 if family == "chicks" else (0.5, 2.0)[seed]),
        )
    ]  # fmt: skip
    seen = ("chicks", "maml", 0, "full batch", "maml", 1e9)
    return rows("family method seed algorithm seen error", *table, seen)


PATHS = rows(
    "panel paths rule bias bias_error",
    ("quadratic", 2, "shared", -1.07, 0.01),
    ("quadratic", 2, "every pair", -0.004, 0.008),
    ("quadratic", 2, "split halves", 0.5, 0.1),
    ("quadratic", 4, "every pair", 0.9, 0.1),
    ("poisson", 2, "every pair", 0.9, 0.1),
)
MINIMA = rows(
    "panel probability total implicit score",
    ("point", 0.9, 1.0, 0.1, 1.0),
    ("point", -0.9, -1.0, -0.2, -0.95),
    ("point", 1.0, 2.0, 0.2, 1.9),
    ("point", 0.0, 1.0, 1.0, 9.0),
    ("wide", 0.9, 1.0, None, None),
)
QUADRATICS = rows(
    "panel proved_minima alpha_L barrier pairs several_minima",
    ("example", 1, 0.03, 0.0, None, None),
    ("example", 2, 0.945, 0.0816, None, None),
    ("search", None, None, None, 400, 1),
    ("search", None, None, None, 6000, 13),
)
ANCHOR = rows(
    "panel tasks jump_share factor",
    ("roughness", 100, 0.9, None), ("roughness", 100, 0.86, None),
    ("roughness", 1, 0.1, None), ("factor", None, None, 0.12), ("factor", None, None, 0.14),
)  # fmt: skip

CASES = {
    "exact": Case(
        shown.exact, REFERENCES,
        "the log-likelihood is within 3e-07 nats of that of lme4, nlme or statsmodels in 2 fits",
        ("nats",), others=1,
    ),
    "points": Case(
        shown.points, LINES,
        "nats a point on the median new line after 2 of its points: this 1.25, iMAML 2.00, "
        "MAML 2.50, variational iMAML 3.00",
        ("nll_median",), others=4,
    ),
    "few weights": Case(
        shown.few_weights, LOGISTIC,
        "in the median posterior means of yes/no tasks lie 0.5 % of an sd from those of NUTS "
        "(sampling), whose own error is up to 0.8 %; with `method=m.laplace()` 20 %",
        ("mean_difference", "mean_mcse"),
    ),
    "glmer": Case(
        shown.glmer, GLMER,
        "the log-likelihood is within 0.002 nats of glmer's at equal nAGQ in 2 fits",
        ("nats_from_ours",), others=2,
    ),
    "small network": Case(
        shown.small_network, NETWORK,
        "nats a point after 5 points of an unseen sinusoid: Laplace 0.75, MAML 1.30, joint 1.40, "
        "iMAML 2.50",
        ("nll", "nll_low"), others=2,
    ),
    "uncertain network": Case(
        shown.uncertain_network, PRIOR,
        "with 3 points of a new sinusoid 0.00 nats a point, and 97 % of new points in 90 % "
        "intervals; one network for all tasks 2.10 nats, one for each task 150 nats",
        ("nll",), others=1,
    ),
    "best start": Case(
        shown.best_start, START,
        "squared error on new sinusoids with ten points after 107 to 150 s of training, each at "
        "its best number of steps: Laplace 0.040, variational iMAML 0.070 and Reptile 0.110; "
        "after one gradient step MAML 0.340 and first-order MAML 0.370",
        ("mse", "seconds"), others=1,
    ),
    "images": Case(
        shown.images, IMAGES,
        "5-way 1-shot Omniglot, right answers and time of training, each query image by itself: "
        "MAML 94 % in 14 min; iMAML, gradient descent 92 % in 39 min; Reptile 84 % in 45 s",
        ("inductive_accuracy", "seconds"), others=3,
    ),
    "memory": Case(
        shown.memory, MEMORY,
        "a Conv4 task's gradient by iMAML takes 61 MiB with 1 to 256 inner steps; by MAML 2,150 "
        "MiB with 64, with steps computed again 146 MiB and 1.3 times as long",
        ("peak_mib",), others=3,
    ),
    "layers": Case(
        shown.layers, _shrinkage(),
        "the layer that differs has the largest sd of a block prior in 2 of 3 fits that start at "
        "the network tasks differ from (1 by chance), in 1 of 3 that start elsewhere; nats a "
        "point behind the true prior: low-rank 0.05, block 0.40, isotropic 2.00",
        (), others=1,
    ),
    "few tasks": Case(
        shown.few_tasks, FITTED,
        "with 5 tasks 95 % intervals hold the truth in 60 % of cases by maximum likelihood and "
        "80 % with this; with 40 in 94 % and 95 %",
        ("coverage",), others=3,
    ),
    "forms": Case(
        shown.forms, FORMS,
        "95 % intervals of correlated weights, their sums and differences hold the truth in at "
        "least 94 % of cases (full) and 47 % (diagonal)",
        ("coverage",), others=2,
    ),
    "any optimiser": Case(
        shown.any_optimiser, _optimisers(),
        "by 2 optimisers new to every start the squared error is 2.00 (MAML's start) and 1.00 "
        "(undecided) (a mixture's) on sinusoids, 2.00 (MAML's start) and 0.80 (a mixture's) on "
        "chicks times that of `m.stochastic`",
        (), others=1,
    ),
    "two paths": Case(
        shown.two_paths, PATHS,
        "a gradient that takes the same 2 runs forward and back is off by 107 % of its length, "
        "by separate ones 0.4 ± 0.8 %",
        ("paths",), others=1,
    ),
    "minima": Case(
        shown.minima, MINIMA,
        "where the start decides which minimum is reached, implicit gradients miss 90 % of the "
        "derivative, the score 5 % (medians of 3 cases)",
        ("probability", "total", "implicit", "score"), others=2,
    ),
    "gallery: prior": Case(
        pages._sinusoid_prior, PRIOR,
        "With three points of a new sinusoid a prior fitted to an MLP's weights predicts at 0.00 "
        "nats a point, one network for all tasks at 2.10, and a network by itself at 150 (lower "
        "is better).",
        ("nll",), others=1,
    ),
    "gallery: few shots": Case(
        pages._few_shot_sinusoid, START,
        "After 107 to 150 s of training Laplace has the smallest squared error on new sinusoids "
        "with ten points, 0.040; MAML's is 0.340 after one step and 0.120 after 10.",
        ("mse", "seconds"), others=1,
    ),
    "gallery: quadratics": Case(
        pages._quadratics, QUADRATICS,
        "MAML on two smooth, strongly convex losses can have 2 minima, here at step size × "
        "curvature 0.945 with 0.082 nats between them; there are several in 13 of 6,000 random "
        "pairs.",
        ("proved_minima",), others=2,
    ),
    "gallery: anchor": Case(
        pages._anchor, ANCHOR,
        "In the mean over 100 tasks 88 % of the ups and downs of iMAML's objective are jumps, "
        "which an implicit gradient does not see: it gives 0.13 of the slope.",
        ("jump_share", "tasks"), others=3,
    ),
    "gallery: calibration": Case(
        pages._calibration, FITTED,
        "With a prior fitted to 5 tasks 95 % intervals hold the truth in 60 % of cases, and in "
        "80 % with the boundary-avoiding hyper-prior; fitted to 100 they do in 95 %.",
        ("coverage",), others=3,
    ),
}  # fmt: skip
