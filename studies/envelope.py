"""The envelope theorem in the variational meta-objective, and what ends it.

With exact adaptation and the same rows everywhere, M(θ₀) = min_θ f(θ) + ½‖θ − θ₀‖²_Λ is f's Moreau
envelope, and ∂M/∂θ₀ = Λ(θ₀ − θ*): Reptile's step on the anchored problem, without an implicit term.
Two things end that. Adaptation that stops at a residual r = ∇f + Λ(θ − θ₀) ≠ 0, where

    M's error ∝ r²      the envelope gradient's ∝ r      with the implicit term ∝ r² again

and a loss g of other rows, for which the derivative is Λ(θ₀ − θ*) + Λ(H + Λ)⁻¹(∇g − ∇f).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from torch import Tensor

import bayesmeta as bm
from bayesmeta.plots import COLOURS, DOUBLE, LINES, MARKERS, style
from studies._framework import Result

QUESTION = "When is the gradient of the variational meta-objective Reptile's, and what breaks that?"
F64 = torch.float64
DIM, TASKS, ROWS = 4, 8, 20
LR = 0.08
"""Of an inner step in nats; f + the anchor has curvatures up to about 1/LR."""
SOLVED = bm.methods.Newton(30, tolerance=1e-12)
CG_STEPS = (1, 2, DIM)
USED = (1e-10, 0.1)
"""Residuals between which powers are fitted, in nats per unit of θ: above rounding, below 1."""
ABOVE_ROUNDING = 1e-11
NEWTON_STEPS = 12
Row = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """How large a run is.

    Args:
        steps: of gradient descent.
        separate: rows in which the validation set differs from training, of `ROWS`.
        families: with rows of their own.
    """

    steps: tuple[int, ...] = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 80, 96, 112, 128, 160)
    separate: tuple[int, ...] = tuple(range(0, ROWS + 1, 2))
    families: int = 40


QUICK = Size((4, 16, 24, 32, 48), (0, 20), 2)


@dataclass(frozen=True, eq=False)
class Tasks:
    """Logistic regressions of several families, side by side, and their gradients at θ₀ = 0.

    Args:
        family: of all tasks, with 2 · `ROWS` rows each, the first half for training.
    """

    family: bm.TaskFamily

    @classmethod
    def drawn(cls, families: int, device: str) -> Tasks:
        family, _ = bm.families.logistic(
            tasks=families * TASKS, rows=2 * ROWS, generator=torch.Generator().manual_seed(0),
            theta0=[1.0, -0.5, 0.5, 0.0], covariance=torch.eye(DIM).tolist(),
        )  # fmt: skip
        return cls(family.to(device=device))

    def rows(self, first: int) -> bm.TaskFamily:
        """`ROWS` rows of every task, from this one on."""
        part = slice(first, first + ROWS)
        x, y = (self.family.tensors[name][:, part] for name in ("x", "y"))
        return bm.TaskFamily.from_tensors(x=x, y=y)

    def gradient(
        self, method: bm.methods.Method, query: bm.TaskFamily | None = None
    ) -> bm.MetaGradient:
        """M and its gradient by the library, on the training rows, under Λ = I."""
        model = bm.Model(torch.nn.Linear(DIM - 1, 1), bm.likelihoods.Bernoulli())
        prior = bm.Prior("isotropic").at(mean=torch.zeros(DIM, dtype=F64), variance=1.0)
        return bm.meta_gradient(
            model, prior.to(self.family.device), self.rows(0), method, query=query
        )  # fmt: skip

    def with_validation(self, rule: Any, separate: int) -> dict[str, Tensor]:
        """(family, dim) gradients with the validation loss g, by what becomes of the KL.

        Σ g(θ*) with the KL dropped, and with it kept M + Σ (g − f)(θ*), term by term.
        """
        validation = proximal(SOLVED, rule, bm.methods.Validation(None))
        own, other = (
            by_family(self.gradient(validation, rows).per_task)
            for rows in (self.rows(0), self.rows(separate))
        )
        return {"dropped": other, "kept": self.envelope() + other - own}

    def envelope(self) -> Tensor:
        """(family, dim) Λ(θ₀ − θ*)."""
        return by_family(self.gradient(proximal(SOLVED, bm.methods.Direct())).per_task)

    def exact(self, separate: int) -> dict[str, Tensor]:
        """(family, dim) the same gradients by finite differences of plain Newton's minima."""

        def values(at: Tensor) -> Tensor:
            adapted, anchored = self.minima(at)
            g = self.loss(adapted, separate)
            anchor = anchored - self.loss(adapted, 0)
            return torch.stack([by_family(g, 1), by_family(g + anchor, 1)], -1)

        slopes = differences(values, torch.zeros(DIM, dtype=F64, device=self.family.device))
        return {"dropped": slopes[..., 0, :], "kept": slopes[..., 1, :]}

    def loss(self, theta: Tensor, first: int) -> Tensor:
        """(point, task) −log p of `ROWS` rows from one on, in plain torch."""
        x, y = self.rows(first).tensors["x"], self.rows(first).tensors["y"]
        logit = torch.einsum("trd,ptd->ptr", x, theta[..., :-1]) + theta[..., -1:]
        return (torch.nn.functional.softplus(logit) - y * logit).sum(-1)

    def minima(self, at: Tensor) -> tuple[Tensor, Tensor]:
        """θ* (point, task, dim) of anchors (point, dim), and the anchored losses there."""
        x, y = self.rows(0).tensors["x"], self.rows(0).tensors["y"]
        x = torch.cat([x, torch.ones_like(x[..., :1])], -1)
        theta = at[:, None].expand(-1, len(x), -1)
        eye = torch.eye(DIM, dtype=at.dtype, device=at.device)
        for _ in range(NEWTON_STEPS):
            chance = torch.einsum("trd,ptd->ptr", x, theta).sigmoid()
            slope = torch.einsum("ptr,trd->ptd", chance - y, x) + theta - at[:, None]
            bend = torch.einsum("ptr,trd,tre->ptde", chance * (1 - chance), x, x) + eye
            theta = theta - torch.linalg.solve(bend, slope[..., None])[..., 0]
        return theta, self.loss(theta, 0) + 0.5 * (theta - at[:, None]).square().sum(-1)


def by_family(values: Tensor, axis: int = 0) -> Tensor:
    """Sums over the tasks of each family, along the task axis."""
    return values.unflatten(axis, (-1, TASKS)).sum(axis + 1)


def proximal(inner: Any, rule: Any, objective: Any = None) -> bm.methods.Method:
    """A point at the minimum of the anchored loss, and the variational M unless told otherwise."""
    m = bm.methods
    return m.Method(m.Proximal(), inner, rule, m.Variational() if objective is None else objective)


def reptile(steps: int) -> bm.methods.Method:
    """As it is defined: descent on f alone."""
    m = bm.methods
    return m.Method(m.Algorithmic(), descent(steps), m.Direct(), m.Variational())


def descent(steps: int) -> bm.methods.GradientDescent:
    """Gradient descent with a step in nats."""
    return bm.methods.GradientDescent(LR, steps, per="task")


def differences(values: Callable[[Tensor], Tensor], at: Tensor, h: float = 0.05) -> Tensor:
    """(..., dim) central differences over h, h/2, h/4 and h/8, extrapolated to 0 (Richardson).

    Args:
        values: of points (point, dim), with the points' axis first.
        at: (dim,).
        h: the longest.
    """
    eye = torch.eye(len(at), dtype=at.dtype, device=at.device)
    level = []
    for step in (h, h / 2, h / 4, h / 8):
        above, below = values(at + step * eye), values(at - step * eye)
        level.append((above - below) / (2 * step))
    for power in (4, 16, 64):
        level = [fine + (fine - coarse) / (power - 1) for coarse, fine in pairwise(level)]
    return level[0].movedim(0, -1)


def run(quick: bool, device: str) -> Result:
    """Errors against inner steps for one family, angles against validation rows for several."""
    size = QUICK if quick else Size()
    table = pd.DataFrame([*inexact(size, device), *validated(size, device)])
    table = table.astype({"steps": "Int64", "separate": "Int64", "family": "Int64"})
    return Result(table)


def inexact(size: Size, device: str) -> Iterator[Row]:
    """Relative errors of M and of its gradients after so many inner steps, in one family."""
    tasks, m = Tasks.drawn(1, device), bm.methods
    value = tasks.minima(torch.zeros(1, DIM, dtype=F64, device=tasks.family.device))[1].sum()
    slope = tasks.exact(0)["kept"][0]
    rules = {
        "envelope": m.Direct(),
        "unrolled": m.Unrolled(),
        "implicit": m.Implicit("cholesky"),
    }
    for steps in size.steps:
        methods = {name: proximal(descent(steps), rule) for name, rule in rules.items()}
        for name, method in {**methods, "Reptile": reptile(steps)}.items():
            found = tasks.gradient(method)
            row = {"panel": "inexact", "gradient": name, "steps": steps}
            row["error"] = relative(found.theta0, slope)
            if name != "Reptile":  # its residual is f's own
                row["residual"] = float(found.report.stationarity.norm())
            yield row
            if name == "envelope":
                yield row | {"gradient": "value", "error": relative(found.value, value)}


def validated(size: Size, device: str) -> Iterator[Row]:
    """Angles to the gradient of M with validation rows, by how many are not training rows."""
    tasks, m = Tasks.drawn(size.families, device), bm.methods
    rules = {f"{k} CG": m.Implicit(steps=k, curvature="hessian") for k in CG_STEPS}
    envelope = tasks.envelope()
    for separate in size.separate:
        exact = tasks.exact(separate)
        found = {name: tasks.with_validation(rule, separate) for name, rule in rules.items()}
        found["envelope"] = dict.fromkeys(exact, envelope)
        for name, gradients in found.items():
            for kl, slopes in exact.items():
                for family, (one, slope) in enumerate(zip(gradients[kl], slopes, strict=True)):
                    yield {
                        "panel": "validation",
                        "gradient": name,
                        "kl": kl,
                        "family": family,
                        "separate": separate,
                        "share": separate / ROWS,
                        "angle": angle(one, slope),
                        "error": relative(one, slope),
                    }


def relative(found: Tensor, exact: Tensor) -> float:
    """‖found − exact‖ / ‖exact‖."""
    return float((found - exact).norm() / exact.norm())


def angle(found: Tensor, exact: Tensor) -> float:
    """In degrees; by the tangent, which is exact for small ones too."""
    one, other = found / found.norm(), exact / exact.norm()
    return float(torch.rad2deg(2 * torch.atan2((one - other).norm(), (one + other).norm())))


def select(table: pd.DataFrame, **values: Any) -> pd.DataFrame:
    """The rows with these values in these columns."""
    for column, value in values.items():
        table = table.loc[table[column] == value]
    return table


def power(table: pd.DataFrame, gradient: str) -> float:
    """Of the residual with which an error goes: least squares, log-log, away from rounding."""
    rows = select(table, panel="inexact", gradient=gradient)
    rows = rows.loc[rows.residual.between(*USED) & (rows.error > ABOVE_ROUNDING)]
    if len(rows) < 2:
        return float("nan")
    return float(np.polyfit(np.log(rows.residual.astype(float)), np.log(rows.error), 1)[0])


def draw(table: pd.DataFrame) -> dict[str, Figure]:
    """The study's figures, by name."""
    return {"envelope": _figure(table)}


def headline(table: pd.DataFrame) -> str:
    """Powers of the residual, Reptile as defined, and the angles."""
    near, law = select(table, panel="inexact"), power(table, "envelope")
    known = select(near, gradient="envelope").error.min()
    plain = select(near, gradient="Reptile").error.min()
    angles = select(table, panel="validation")
    last, families = angles.share.max(), angles.family.nunique()
    kept, dropped = (_middle(angles, kl, "envelope").loc[last] for kl in ("kept", "dropped"))
    mended = select(angles, gradient=f"{DIM} CG").error.max()
    return (
        f"It is Reptile's when a task is adapted to the end, on all its rows and to the anchored "
        f"loss: the envelope gradient Λ(θ₀ − θ*) is then exact within {known:.1g}, while Reptile "
        f"without the anchor is never nearer than {100 * plain:.0f} %. "
        f"Stopping early breaks that by an error that falls as the inner residual to the power of "
        f"{law:.2f} ({power(table, 'implicit'):.2f} with the implicit term), and validation on "
        f"other rows by {kept:.0f}° in the median of {families} families. "
        f"Beware of dropping the KL as iMAML does, which makes that {dropped:.0f}°, and of leaving "
        f"out the implicit term, with which {DIM} steps of conjugate gradients for {DIM} weights "
        f"err by at most {mended:.1g} everywhere."
    )


def _middle(angles: pd.DataFrame, kl: str, gradient: str) -> pd.Series:
    """The median angle over families, by the share of rows that differ."""
    return select(angles, kl=kl, gradient=gradient).groupby("share").angle.median()


def _figure(table: pd.DataFrame) -> Figure:
    with style():
        figure = Figure(figsize=(DOUBLE, 3.9), layout="constrained")
        left, right = figure.subplots(1, 2)
        _errors(left, table)
        _angles(right, select(table, panel="validation"))
        left.set_title("(a) the same rows, adaptation not exact", loc="left")
        right.set_title("(b) adaptation exact, other validation rows", loc="left")
        for ax in (left, right):
            ax.legend(
                frameon=False, loc="upper center", bbox_to_anchor=(0.45, -0.2), ncols=1,
                handlelength=3.0,
            )  # fmt: skip
    return figure


LEAST = 1e-16
"""Errors at rounding, down to 0, are drawn here."""


def _errors(ax: Axes, table: pd.DataFrame) -> None:
    rows = select(table, panel="inexact")
    for name, said, colour, marker, line in (
        ("Reptile", "Reptile, no anchor", COLOURS["reptile"], MARKERS["reptile"], LINES["reptile"]),
        ("envelope", "envelope Λ(θ₀ − θ)", COLOURS["joint"], MARKERS["joint"], "-"),
        ("unrolled", "unrolled", COLOURS["maml"], MARKERS["maml"], LINES["truncated_maml"]),
        ("implicit", "envelope and implicit term", COLOURS["imaml"], MARKERS["imaml"], "--"),
        ("value", "M itself", COLOURS["data"], ".", (0, (3, 1, 1, 1))),
    ):
        part = select(rows, gradient=name).sort_values("steps")
        law = "" if name == "Reptile" else f", error ∝ $r^{{{power(table, name):.2f}}}$"
        ax.plot(
            part.steps.to_numpy(dtype=float), part.error.clip(lower=LEAST), color=colour,
            marker=marker, linestyle=line, markersize=3.5, linewidth=1.1, label=said + law,
        )  # fmt: skip
    ax.set(yscale="log", xlabel="inner steps of gradient descent (residual $r$)")
    ax.set_ylabel("relative error")
    ax.set_ylim(LEAST / 10, 30)
    powers = range(-16, 2, 4)
    labels = [f"{'≤ ' if 10.0**p == LEAST else ''}$10^{{{p}}}$" for p in powers]
    ax.set_yticks([10.0**p for p in powers], labels)
    ax.minorticks_off()


def _angles(ax: Axes, rows: pd.DataFrame) -> None:
    """Medians and quartiles over families; the envelope gradient hollow where the KL is dropped."""
    blue, green = COLOURS["joint"], COLOURS["imaml"]
    for kl, gradient, said, look in (
        ("dropped", "envelope", "envelope, KL dropped from M", (blue, "s", "white", "--")),
        ("kept", "envelope", "envelope", (blue, MARKERS["joint"], blue, "-")),
        *(
            ("kept", f"{k} CG", f"envelope and implicit term by {_steps(k)}", (green, *look))
            for k, look in zip(CG_STEPS, CG_LOOKS, strict=True)
        ),
    ):
        colour, marker, face, line = look
        part = select(rows, kl=kl, gradient=gradient).groupby("share").angle
        middle, low, high = (part.quantile(q) for q in (0.5, 0.25, 0.75))
        share = middle.index.to_numpy(dtype=float)
        ax.fill_between(share, low, high, color=colour, alpha=0.15, linewidth=0)
        ax.plot(
            share, middle, color=colour, marker=marker, markerfacecolor=face, linestyle=line,
            markersize=4, label=said,
        )  # fmt: skip
    grey = {"color": COLOURS["reference"], "alpha": 0.3, "linewidth": 0}
    ax.fill_between([], [], label=f"quartiles of {rows.family.nunique()} families", **grey)
    ax.set(xlabel="share of validation rows not in training")
    ax.set_ylabel("angle to the exact gradient (median)")
    ax.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    ax.yaxis.set_major_formatter("{x:g}°")
    ax.set_ylim(-2, None)


GREEN = COLOURS["imaml"]
CG_LOOKS = (("<", "white", ":"), ("d", GREEN, "--"), ("D", GREEN, "-"))


def _steps(count: int) -> str:
    return f"{count} CG step{'s' * (count != 1)}"
