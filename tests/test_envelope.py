"""The envelope study: its plain reference against the library and autograd, and its headline."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch

import bayesmeta as bm
from studies import envelope
from studies.envelope import DIM, F64, ROWS, SOLVED, Tasks, proximal

TASKS = Tasks.drawn(2, "cpu")
ZERO = torch.zeros(1, DIM, dtype=F64)


def closed(separate, kept):
    """(family, dim) Λ(H + Λ)⁻¹∇g, and with the KL kept Λ(θ₀ − θ*) + Λ(H + Λ)⁻¹(∇g − ∇f)."""
    theta = TASKS.minima(ZERO)[0][0]

    def loss(t, first):
        return TASKS.loss(t[None], first).sum()

    g, f = (torch.func.grad(loss)(theta, first) for first in (separate, 0))
    H = torch.func.hessian(loss)(theta, 0)
    H = torch.stack([H[i, :, i] for i in range(len(theta))])
    right = g - f if kept else g
    solved = torch.linalg.solve(H + torch.eye(DIM, dtype=F64), right[..., None])[..., 0]
    return envelope.by_family(solved - theta if kept else solved)


@pytest.mark.parametrize("separate", [0, ROWS])
def test_differences_are_the_closed_form_and_so_is_the_library_with_the_implicit_term(separate):
    exact = TASKS.exact(separate)
    found = TASKS.with_validation(bm.methods.Implicit("cholesky"), separate)
    for kl in ("kept", "dropped"):
        known = closed(separate, kl == "kept")
        torch.testing.assert_close(exact[kl], known, atol=1e-10, rtol=0)
        torch.testing.assert_close(found[kl], known, atol=1e-10, rtol=0)


def test_the_envelope_gradient_is_exact_with_the_same_rows_and_not_with_others():
    assert float((TASKS.envelope() - TASKS.exact(0)["kept"]).abs().max()) < 1e-10
    assert float((TASKS.envelope() - TASKS.exact(ROWS)["kept"]).abs().min()) > 1e-4
    assert float((TASKS.envelope() - TASKS.exact(0)["dropped"]).abs().max()) > 1e-2


def test_a_planted_sign_and_a_planted_factor_are_seen():
    exact, found = TASKS.exact(0)["kept"][0], TASKS.envelope()[0]
    assert envelope.relative(found, exact) < 1e-10
    assert envelope.relative(-found, exact) == pytest.approx(2, rel=1e-6)
    assert envelope.relative(2 * found, exact) == pytest.approx(1, rel=1e-6)
    assert envelope.angle(-found, exact) == pytest.approx(180)


def test_plain_minima_have_the_value_of_the_library():
    value = TASKS.minima(ZERO)[1].sum()
    found = TASKS.gradient(proximal(SOLVED, bm.methods.Direct()))
    assert float(found.value) == pytest.approx(float(value), rel=1e-13)


def test_differences_of_a_smooth_function_have_ten_digits():
    def values(at):
        return torch.stack([at[:, 0].exp() * at[:, 1].sin(), at[:, 1] ** 3], -1)

    x, y = 0.3, 1.1
    found = envelope.differences(values, torch.tensor([x, y], dtype=F64))
    known = [
        [math.exp(x) * math.sin(y), math.exp(x) * math.cos(y)],
        [0.0, 3 * y**2],
    ]
    torch.testing.assert_close(found, torch.tensor(known, dtype=F64), atol=1e-10, rtol=0)


def test_angles_small_and_right():
    one, other = torch.tensor([1.0, 0.0], dtype=F64), torch.tensor([1.0, 1e-9], dtype=F64)
    assert envelope.angle(one, other) == pytest.approx(math.degrees(1e-9), rel=1e-6)
    assert envelope.angle(one, torch.tensor([0.0, 3.0], dtype=F64)) == pytest.approx(90)


def table(powers):
    """A made-up table, with errors that go with powers of the residual."""
    residual = np.logspace(-4, -1.5, 6)
    rows = [
        {"panel": "inexact", "gradient": name, "steps": i, "residual": r, "error": r**p}
        for name, p in powers.items()
        for i, r in enumerate(residual)
    ]
    rows += [
        {"panel": "inexact", "gradient": "Reptile", "steps": s, "error": e}
        for s, e in ((3, 0.4), (7, 0.25))
    ]
    angles = {("kept", 0.0): 1e-9, ("kept", 1.0): 33.0, ("dropped", 0.0): 5.0, ("dropped", 1.0): 71}
    for (kl, share), angle in angles.items():
        for family in range(3):
            row = {"panel": "validation", "kl": kl, "share": share, "family": family}
            rows.append(row | {"gradient": "envelope", "angle": angle, "error": 1.0})
            rows.append(row | {"gradient": f"{DIM} CG", "angle": 2e-8, "error": 3e-9})
    return pd.DataFrame(rows)


def test_headline_says_what_a_table_says():
    said = envelope.headline(table({"value": 2, "envelope": 1, "implicit": 2.5, "unrolled": 1.5}))
    for part in (
        "exact within 0.0001, while",
        "never nearer than 25 %",
        "to the power of 1.00 (2.50 with the implicit term)",
        "by 33° in the median of 3 families",
        "which makes that 71°",
        "err by at most 3e-09 everywhere",
    ):
        assert part in said


def test_powers_leave_out_rounding_and_what_is_not_near():
    good = table({"envelope": 1})
    spoilt = pd.concat([good, pd.DataFrame([
        {"panel": "inexact", "gradient": "envelope", "residual": 1e-9, "error": 1e-12},
        {"panel": "inexact", "gradient": "envelope", "residual": 5.0, "error": 1e-3},
    ])])  # fmt: skip
    assert envelope.power(spoilt, "envelope") == pytest.approx(1)
