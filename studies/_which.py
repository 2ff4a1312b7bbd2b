"""*Which method?*: decisions for a newcomer, each with what was measured for it.

`studies/_shown.py` has the sentences of the last column.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from bayesmeta.results import InputError
from studies import _shown as shown

HEAD = """# Which method?

Take the first line that is your case; the line on few tasks goes with any other.
`bm.fit(model, family)` chooses by itself; where a line says `method=` or `prior=`, that is an
argument of it, so trying a second method costs a word:

```python
import bayesmeta as bm

m = bm.methods
fit = bm.fit(model, family, method=m.laplace(points=9), prior=bm.Prior("diagonal"))
adapted = fit.adapt(new)  # posteriors of tasks that were not in the fit
```

On the command line that is `bayesmeta fit … --method laplace --option points=9 --prior diagonal`.
Step sizes and batches are those of the study in the last column; your data may want others.

The last column is computed from the table of that study, and holds at its sizes. *Nats a point* are
minus the log of the probability density given to an observation that was not seen: lower is better,
and 0.7 fewer mean that it was twice as likely. A *task* is a group of rows (lme4's group), its
*weights* are its random effects or its network's parameters, and *query* rows are those of a task
that are held back from adaptation and predicted.
"""


@dataclass(frozen=True)
class Decision:
    """A line of the page.

    Args:
        case: what one has or wants.
        use: what to write; all code in it can be run as it stands.
        study: that measured it.
        because: says what its table shows, and refuses to where that is against the advice.
    """

    case: str
    use: str
    study: str
    because: Callable[[pd.DataFrame], str]


DECISIONS = (
    Decision(
        "a table, Gaussian noise, a prediction linear in its weights (what lme4's `lmer` fits)",
        "`bm.fit(model, family)`: exact, no method to choose",
        "reference_fits",
        shown.exact,
    ),
    Decision(
        "the same, and you think of MAML or its like",
        "`bm.fit(model, family)` all the same: MAML and its like keep one value of a task's "
        "weights, and not how uncertain they are",
        "joint_or_amortised",
        shown.points,
    ),
    Decision(
        "counts or yes/no, or a loss of your own with up to three weights "
        "(`bm.Model.from_energy`), and posteriors matter",
        "`bm.fit(model, family)`: it takes `method=m.joint()`, the best Gaussian posteriors",
        "laplace_nuts",
        shown.few_weights,
    ),
    Decision(
        "counts or yes/no, and the log-likelihood has to be that of lme4's `glmer`",
        "`method=m.laplace()` is its nAGQ = 1, `method=m.laplace(points=9)` its nAGQ = 9",
        "glmer",
        shown.glmer,
    ),
    Decision(
        "a network of up to a few hundred weights, and few points of a new task",
        '`method=m.laplace(covariance="lowrank(20)", curvature="ggn", steps=1, batch=25, '
        "outer_lr=0.02)`; then "
        '`fit.adapt(new, method=m.laplace(covariance="lowrank(20)", curvature="ggn"))`',
        "joint_or_amortised",
        shown.small_network,
    ),
    Decision(
        "a larger network (a thousand weights) on a table or on curves, and you want to know how "
        "sure it is",
        '`method=m.joint(covariance="diagonal")` and `prior=bm.Prior("lowrank(10)")`; for new '
        'tasks `fit.choices = m.joint(covariance="lowrank(10)", steps=1500, warmup=0.0, lr=0.005, '
        "draws=4)` and `fit.adapt(new)`",
        "sinusoid_prior",
        shown.uncertain_network,
    ),
    Decision(
        "a small network, and only the error on a new task counts",
        '`method=m.laplace(covariance="diagonal", steps=5, batch=25)`, then '
        '`fit.adapt(new, method=m.laplace(covariance="diagonal"))`; or '
        '`method=m.variational_imaml(steps=16, lr=0.005, lam=0.1, curvature="ggn", batch=25, '
        "outer_lr=0.004)`; where adaptation must be one gradient step "
        "`method=m.maml(steps=1, lr=0.01, support=10, batch=25, outer_lr=0.004)`, or "
        "`method=m.fomaml(steps=1, lr=0.01, support=10, batch=25, outer_lr=0.004)`",
        "few_shot_sinusoid",
        shown.best_start,
    ),
    Decision(
        "images, told apart from a few of each class",
        "`method=m.maml(steps=1, lr=0.4, outer_lr=0.003)`, or "
        "`method=m.imaml(lam=0.1, steps=5, lr=0.4, cg_steps=3, outer_lr=0.003)`",
        "omniglot",
        shown.images,
    ),
    Decision(
        f"fewer than some {shown.FEW} tasks, with any method that learns a prior",
        'as well, `prior=bm.Prior("full", hyperprior="boundary-avoiding")` '
        "(`--hyperprior boundary-avoiding`)",
        "calibration",
        shown.few_tasks,
    ),
    Decision(
        "to know single weights, or differences of them, with intervals that hold",
        '`method=m.joint(covariance="full")`; `method=m.joint(covariance="diagonal")` only where '
        "there are too many weights for that",
        "calibration",
        shown.forms,
    ),
    Decision(
        "many inner steps, or little memory",
        '`method=m.imaml(lam=2.0, steps=64, lr=0.01, curvature="ggn")`; or MAML that computes each '
        "step again on the way back, `from dataclasses import replace` and "
        "`method=replace(m.maml(steps=64, lr=0.01), gradient=m.Unrolled(checkpoint=1))`",
        "compute_memory",
        shown.memory,
    ),
    Decision(
        "to learn in which layers of a network tasks differ",
        '`method=m.joint(covariance="diagonal")` and `prior=bm.Prior("block")`, with a module '
        'already trained on all tasks together; to predict, `prior=bm.Prior("lowrank(4)")`',
        "shrinkage",
        shown.layers,
    ),
    Decision(
        "a start that others will train with an optimiser you do not know",
        "`method=m.stochastic(algorithm=m.GradientDescent(0.05, 5, rows=2))`; try also a mixture, "
        "`method=m.stochastic(algorithm=m.Mixture((m.GradientDescent(0.05, 5, rows=2), "
        "m.Adam(0.01, 3, rows=4))))`",
        "any_optimiser",
        shown.any_optimiser,
    ),
    Decision(
        "random runs (minibatches, dropout) whose weights you will average before you predict",
        "`method=m.two_path(forward=2, backward=2, every_pair=True)`",
        "two_paths",
        shown.two_paths,
    ),
    Decision(
        "runs that may end in one of several minima of a task's loss",
        '`method=m.stochastic(algorithm=m.SGLD(0.1, 100), gradient="score", anchored=True)`, '
        "gradient descent with Langevin noise",
        "which_minimum",
        shown.minima,
    ),
)


def which(figures: Path) -> str:
    """The page.

    Raises:
        InputError: a table lacks what is said of it, or no longer bears an advice out.
    """
    lines = ["| you have, or want | use | because |", "|---|---|---|"]
    for one in DECISIONS:
        try:
            because = one.because(pd.read_csv(figures / f"{one.study}.csv"))
        except InputError as error:
            raise InputError(f"figures/{one.study}.csv, {one.case}: {error}") from error
        lines.append(
            f"| {one.case} | {one.use} | {because} ([{one.study}](README.md#{one.study})) |"
        )
    return "\n".join([HEAD, *lines, ""])
