"""The linear solvers against dense solves, and against the errors known from published code."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import grad, vmap

from bayesmeta.linsolve import Product, cg, cholesky, neumann
from bayesmeta.results import InputError

TASKS, DIM = 5, 6


def normal(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def positive(seed: int, tasks: int = TASKS, dim: int = DIM, least: float = 0.5) -> Tensor:
    """(task, dim, dim) positive definite, far from any special case."""
    root = normal(seed, tasks, dim, dim)
    return root @ root.mT + least * torch.eye(dim).double()


def by(matrix: Tensor) -> Product:
    return lambda v: (matrix @ v.unsqueeze(-1)).squeeze(-1)


def solved(matrix: Tensor, b: Tensor) -> Tensor:
    return torch.linalg.solve(matrix, b.unsqueeze(-1)).squeeze(-1)


def relative(matrix: Tensor, b: Tensor, x: Tensor) -> Tensor:
    return (b - by(matrix)(x)).norm(dim=-1) / b.norm(dim=-1)


def test_cg_is_exact_on_the_identity_after_one_step() -> None:
    # Published code returns the iterate before the last: zeros here.
    b = normal(0, TASKS, DIM)
    solution = cg(lambda v: v, b, steps=1)
    torch.testing.assert_close(solution.value, b)
    assert solution.residual.max() < 1e-15 and (solution.steps == 1).all()


def test_cg_is_exact_in_as_many_steps_as_dimensions() -> None:
    matrix, b = positive(1), normal(2, TASKS, DIM)
    solution = cg(by(matrix), b, steps=DIM)
    torch.testing.assert_close(solution.value, solved(matrix, b), rtol=1e-8, atol=1e-10)
    assert cg(by(matrix), b, steps=DIM - 1).residual.min() > 1e-6  # and not before


@pytest.mark.parametrize("steps", [0, 1, 3, 6])
@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("preconditioned", [False, True])
def test_cg_minimises_the_quadratic_over_its_krylov_space(
    steps: int, warm: bool, preconditioned: bool
) -> None:
    """The definition of the k-th iterate, for one task: no recursion is shared with the code."""
    matrix, b = positive(3, tasks=1), normal(4, 1, DIM)
    m = positive(5, tasks=1) if preconditioned else torch.eye(DIM).double()[None]
    start = normal(6, 1, DIM) if warm else torch.zeros(1, DIM).double()
    columns, z = [], solved(m, b - by(matrix)(start))
    for _ in range(steps):
        columns.append(z[0])
        z = solved(m, by(matrix)(z))
    expected = start[0]
    if columns:
        basis = torch.linalg.qr(torch.stack(columns, -1)).Q
        reduced = basis.T @ matrix[0] @ basis
        expected = start[0] + basis @ torch.linalg.solve(
            reduced, basis.T @ (b[0] - matrix[0] @ start[0])
        )
    solution = cg(
        by(matrix),
        b,
        steps=steps,
        start=start if warm else None,
        precondition=(lambda r: solved(m, r)) if preconditioned else None,
    )
    torch.testing.assert_close(solution.value[0], expected, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(
        solution.residual, relative(matrix, b, solution.value), rtol=1e-6, atol=1e-10
    )


def test_the_exact_inverse_as_preconditioner_needs_one_step() -> None:
    # Published code is wrong with a preconditioner.
    matrix, b = positive(7), normal(8, TASKS, DIM)
    solution = cg(by(matrix), b, steps=1, precondition=lambda r: solved(matrix, r))
    torch.testing.assert_close(solution.value, solved(matrix, b))


def test_the_residual_is_that_of_the_value_returned() -> None:
    matrix, b = positive(9), normal(10, TASKS, DIM)
    for solution in (
        cg(by(matrix), b, steps=3),
        neumann(by(matrix), b, steps=3, scale=0.01),
        cholesky(matrix, b),
    ):
        expected = relative(matrix, b, solution.value)
        torch.testing.assert_close(solution.residual, expected, rtol=1e-6, atol=1e-14)


def test_each_task_stops_at_its_own_tolerance_and_stays_there() -> None:
    matrix, b = positive(11), normal(12, TASKS, DIM)
    matrix[0] = torch.eye(DIM)
    short, long = (cg(by(matrix), b, steps=k, tolerance=1e-2) for k in (10, 200))
    assert long.steps.tolist() == short.steps.tolist() and long.steps[0] == 1
    assert long.steps.max() > 1 and long.residual.max() <= 1e-2
    assert torch.equal(short.value, long.value)
    for i in range(TASKS):  # as if every task were alone, to the last products' order of addition
        alone = cg(by(matrix[i : i + 1]), b[i : i + 1], steps=200, tolerance=1e-2)
        assert alone.steps[0] == long.steps[i]
        torch.testing.assert_close(alone.value[0], long.value[i])
        before = cg(by(matrix), b, steps=int(long.steps[i]) - 1)
        assert before.residual[i] > 1e-2  # stopped at the first step that was good enough


@pytest.mark.parametrize("tolerance", [0.0, 1e-10])
def test_running_on_after_convergence_changes_nothing(tolerance: float) -> None:
    matrix, b = positive(13), normal(14, TASKS, DIM)
    b[1] = 0
    there = cg(by(matrix), b, steps=60, tolerance=tolerance)
    further = cg(by(matrix), b, steps=400, tolerance=tolerance)
    assert torch.equal(there.value, further.value)
    assert further.residual.max() < 1e-9 and not further.negative.any()
    assert torch.equal(there.steps, further.steps) and further.steps.max() < 4 * DIM
    assert further.residual[1] == 0 and further.steps[1] == 0 and (further.value[1] == 0).all()


def test_an_early_stop_waits_for_the_last_task_and_spends_no_more() -> None:
    calls = []

    def product(v: Tensor) -> Tensor:
        calls.append(1)
        return by(matrix)(v)

    matrix, b = positive(15), normal(16, TASKS, DIM)
    cg(product, b, steps=500, tolerance=1e-6)
    assert len(calls) <= 21  # DIM steps and rounding, the next multiple of ten, and the residual
    calls.clear()
    cg(product, b, steps=50)
    assert len(calls) == 51


def test_negative_curvature_stops_that_task_at_its_last_good_iterate() -> None:
    matrix, b = positive(17), normal(18, TASKS, DIM)
    sign = torch.ones(DIM).double()
    sign[-1] = -1
    matrix[2] = torch.diag(sign * torch.arange(1, DIM + 1))
    solution = cg(by(matrix), b, steps=50)
    assert solution.negative.tolist() == [False, False, True, False, False]
    kept = int(solution.steps[2]) - 1  # the last product showed the curvature and moved nothing
    assert 0 <= kept < DIM
    torch.testing.assert_close(
        solution.value[2], cg(by(matrix), b, steps=kept).value[2], rtol=0, atol=0
    )
    assert solution.residual[2] > 1e-3
    others = torch.tensor([0, 1, 3, 4])
    torch.testing.assert_close(solution.value[others], solved(matrix, b)[others])


def test_a_nearly_flat_direction_is_refused_though_its_curvature_is_positive() -> None:
    # The sign alone would take a step of length 1e9 here.
    matrix = torch.diag(torch.tensor([1.0, 1e-9]).double())[None]
    b = torch.tensor([[0.0, 1.0]]).double()
    refused = cg(by(matrix), b, steps=5)
    assert refused.negative.all() and (refused.value == 0).all() and refused.residual == 1
    by_sign = cg(by(matrix), b, steps=5, floor=0.0)
    assert not by_sign.negative.any() and by_sign.value[0, 1] > 1e8


def test_the_floor_is_measured_in_the_metric() -> None:
    # The same tiny matrix is a good one where the prior's precision is as tiny.
    scale = torch.tensor([1.0, 1e-9]).double()
    b = torch.tensor([[1.0, 1.0]]).double()
    solution = cg(
        lambda v: 2 * scale * v,
        b,
        steps=5,
        metric=lambda v: scale * v,
        precondition=lambda r: r / scale,
    )
    assert not solution.negative.any()
    torch.testing.assert_close(solution.value, b / (2 * scale))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("place", ["matrix", "b"])
@pytest.mark.parametrize("tolerance", [0.0, 1e-8])
def test_a_task_that_is_not_finite_is_reported_and_harms_no_other(
    bad: float, place: str, tolerance: float
) -> None:
    matrix, b = positive(19), normal(20, TASKS, DIM)
    clean = solved(matrix, b)
    if place == "matrix":
        matrix[1, 0, 0] = bad
    else:
        b[1, 0] = bad
    for solution in (
        cg(by(matrix), b, steps=20, tolerance=tolerance),
        neumann(by(matrix), b, steps=5000, scale=0.02),
        cholesky(matrix, b),
    ):
        assert not solution.residual[1].isfinite()
        assert not solution.negative.any()
        others = torch.tensor([0, 2, 3, 4])
        torch.testing.assert_close(solution.value[others], clean[others], rtol=1e-5, atol=1e-6)
    assert cholesky(matrix, b).value.isfinite().all()


def test_a_product_that_hides_its_nan_at_zero_is_still_reported() -> None:
    def product(v: Tensor) -> Tensor:
        return torch.where(v == 0, 0.0, torch.nan)

    solution = cg(product, torch.ones(1, 2).double(), steps=3)
    assert solution.residual.isnan().all() and (solution.value == 0).all()


@pytest.mark.parametrize("exponent", [-200, 200])
def test_very_small_and_very_large_systems_are_solved_alike(exponent: int) -> None:
    # Squares of these leave the range of float64.
    matrix, b = positive(21), normal(22, TASKS, DIM)
    unit = cg(by(matrix), b, steps=DIM)
    scaled = cg(by(matrix), b * 10.0**exponent, steps=DIM)
    torch.testing.assert_close(scaled.value * 10.0**-exponent, unit.value)
    assert scaled.residual.max() < 1e-6 and not scaled.negative.any()


def test_no_steps_return_the_start() -> None:
    matrix, b, start = positive(23), normal(24, TASKS, DIM), normal(25, TASKS, DIM)
    for solution in (
        cg(by(matrix), b, steps=0, start=start),
        neumann(by(matrix), b, steps=0, scale=0.1, start=start),
    ):
        torch.testing.assert_close(solution.value, start)
        torch.testing.assert_close(solution.residual, relative(matrix, b, start))
        assert (solution.steps == 0).all()
    assert (cg(by(matrix), b, steps=0).value == 0).all()
    with pytest.raises(InputError, match="steps=-1"):
        cg(by(matrix), b, steps=-1)
    with pytest.raises(InputError, match="steps=-1"):
        neumann(by(matrix), b, steps=-1, scale=1.0)


def test_a_right_hand_side_of_zero_is_solved_by_zero_from_any_start() -> None:
    matrix, b = positive(26), torch.zeros(TASKS, DIM).double()
    cold, warm = (cg(by(matrix), b, steps=20, start=s) for s in (None, normal(27, TASKS, DIM)))
    assert (cold.residual == 0).all() and (cold.steps == 0).all()
    assert warm.value.abs().max() < 1e-8 and warm.residual.max() < 1e-8
    assert (cholesky(matrix, b).residual == 0).all()


@pytest.mark.parametrize("kind", ["number", "tensor", "product"])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_neumann_is_the_truncated_series_for_any_scale(kind: str, steps: int) -> None:
    # Published code is wrong for a scale other than 1.
    matrix, b = positive(28), normal(29, TASKS, DIM)
    size = 0.03 + 0.02 * normal(30, TASKS, 1).sigmoid()
    m = torch.full((TASKS, 1), 0.04).double() if kind == "number" else size
    scale = {"number": 0.04, "tensor": m, "product": lambda v: m * v}[kind]
    eye = torch.eye(DIM).double()
    term, total = m * b, torch.zeros_like(b)
    for _ in range(steps):
        total, term = total + term, by(eye - m[..., None] * matrix)(term)
    solution = neumann(by(matrix), b, steps=steps, scale=scale)
    torch.testing.assert_close(solution.value, total)
    torch.testing.assert_close(neumann(lambda v: v, b, steps=1, scale=1.0).value, b)
    assert (solution.steps == steps).all() and not solution.negative.any()


def test_cholesky_solves_and_falls_back_to_zero_where_it_cannot() -> None:
    matrix, b = positive(31), normal(32, TASKS, DIM)
    matrix[3] = -matrix[3]
    matrix[4] = 0
    solution = cholesky(matrix, b)
    torch.testing.assert_close(solution.value[:3], solved(matrix[:3], b[:3]))
    assert solution.negative.tolist() == [False, False, False, True, True]
    assert (solution.value[3:] == 0).all() and (solution.residual[3:] == 1).all()


@pytest.mark.parametrize("solver", ["cg", "neumann", "cholesky"])
def test_solutions_are_differentiable_and_a_bad_task_does_not_spoil_the_others(solver: str) -> None:
    matrix, b, weight = positive(33), normal(34, TASKS, DIM), normal(35, TASKS, DIM)
    matrix[1] = torch.diag(torch.tensor([1.0, -1, 0, 2, 3, 0]).double())
    b[1] = torch.tensor([0, 1.0, 0, 0, 0, 0]).double()
    b[0] = 0

    def total(b: Tensor, matrix: Tensor) -> Tensor:
        solve = {
            "cg": lambda: cg(by(matrix), b, steps=DIM),
            "neumann": lambda: neumann(by(matrix), b, steps=4000, scale=0.05),
            "cholesky": lambda: cholesky(matrix, b),
        }[solver]
        # The bad task's own value is dropped, as a caller drops a flagged task.
        values = solve().value
        return (weight * torch.where(torch.arange(TASKS)[:, None] == 1, 0.0, values)).sum()

    if solver == "neumann":
        matrix[1] = torch.eye(DIM)
    by_b, by_matrix = grad(total, argnums=(0, 1))(b, matrix)
    assert by_b.isfinite().all() and by_matrix.isfinite().all()
    others = torch.tensor([0, 2, 3, 4]) if solver != "cg" else torch.tensor([2, 3, 4])
    adjoint = solved(matrix[others], weight[others])
    torch.testing.assert_close(by_b[others], adjoint, rtol=1e-5, atol=1e-7)


def test_all_solvers_work_under_vmap() -> None:
    matrix, b = positive(36), normal(37, 3, TASKS, DIM)
    expected = torch.stack([solved(matrix, row) for row in b])
    preconditioner = 1 / matrix.diagonal(dim1=-2, dim2=-1)
    for solve in (
        lambda row: cg(by(matrix), row, steps=12, precondition=lambda r: preconditioner * r),
        lambda row: neumann(by(matrix), row, steps=4000, scale=0.05),
        lambda row: cholesky(matrix, row),
    ):
        value, residual = vmap(lambda row, s=solve: (s(row).value, s(row).residual))(b)
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-8)
        assert residual.max() < 1e-6


def test_a_fixed_number_of_steps_compiles_into_one_graph() -> None:
    matrix, b = positive(38), normal(39, TASKS, DIM)

    def solve(b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        solution = cg(by(matrix), b, steps=4, precondition=lambda r: r / 2, metric=lambda v: v / 3)
        series = neumann(by(matrix), b, steps=3, scale=0.1)
        return solution.value, solution.residual, series.value + cholesky(matrix, b).value

    compiled = torch.compile(solve, fullgraph=True, backend="aot_eager")(b)
    for got, expected in zip(compiled, solve(b), strict=True):
        torch.testing.assert_close(got, expected)


def test_float32_stops_at_its_own_rounding() -> None:
    matrix, b = positive(40).float(), normal(41, TASKS, DIM).float()
    solution = cg(by(matrix), b, steps=300)
    assert solution.value.dtype == torch.float32 and not solution.negative.any()
    torch.testing.assert_close(solution.value, solved(matrix, b), rtol=1e-3, atol=1e-4)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), steps=st.integers(0, 2 * DIM))
def test_the_error_in_the_matrix_norm_never_grows(seed: int, steps: int) -> None:
    matrix, b = positive(seed), normal(seed + 1, TASKS, DIM)
    exact = solved(matrix, b)

    def error(k: int) -> Tensor:
        gap = cg(by(matrix), b, steps=k).value - exact
        return (gap * by(matrix)(gap)).sum(-1)

    assert (error(steps + 1) <= error(steps) * (1 + 1e-9) + 1e-18).all()
