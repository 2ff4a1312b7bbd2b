"""Families: shapes, splits, batches, fingerprints, and the errors of their makers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import bayesmeta as bm
from bayesmeta.standardise import Standardisation


def ragged(rows: tuple[int, ...] = (2, 5, 3)) -> bm.TaskFamily:
    """y counts the rows of the whole family; x repeats it."""
    width, start = max(rows), 0
    y = torch.zeros(len(rows), width, dtype=torch.float64)
    for task, count in enumerate(rows):
        y[task, :count] = torch.arange(start, start + count)
        start += count
    mask = torch.arange(width) < torch.tensor(rows)[:, None]
    return bm.TaskFamily.from_tensors(x=y.unsqueeze(-1), y=y, mask=mask)


def real_values(family: bm.TaskFamily) -> list[float]:
    return sorted(family.tensors["y"][family.mask].tolist())


@settings(deadline=None, max_examples=50)
@given(rows=st.lists(st.integers(2, 9), min_size=1, max_size=6), seed=st.integers(0, 999))
def test_a_split_keeps_every_row_once(rows: list[int], seed: int) -> None:
    family = ragged(tuple(rows))
    support, query = family.split(1, torch.Generator().manual_seed(seed))
    assert support.rows.tolist() == [1] * len(rows)
    assert query.rows.tolist() == [r - 1 for r in rows]
    assert sorted(real_values(support) + real_values(query)) == real_values(family)
    for part in (support, query):
        assert torch.equal(part.tensors["x"][..., 0], part.tensors["y"])


@settings(deadline=None, max_examples=30)
@given(tasks=st.integers(1, 12), size=st.integers(1, 12), seed=st.integers(0, 99))
def test_one_pass_of_batches_takes_each_task_once(tasks: int, size: int, seed: int) -> None:
    # "All tasks" drawn with replacement is a published bug: about a third would be missing.
    family = ragged(tuple(range(1, tasks + 1)))
    batches = list(family.batches(size, torch.Generator().manual_seed(seed)))
    assert sorted(i for b in batches for i in b.index.tolist()) == list(range(tasks))
    for batch in batches:
        assert torch.equal(batch.tensors["y"], family.tensors["y"][batch.index])


def test_a_fraction_of_the_rows_is_support() -> None:
    support, query = ragged((4, 8)).split(0.5, torch.Generator().manual_seed(0))
    assert support.rows.tolist() == [2, 4] and query.rows.tolist() == [2, 4]


def test_splits_are_repeatable_and_leave_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    first, _ = ragged().split(1, torch.Generator().manual_seed(7))
    second, _ = ragged().split(1, torch.Generator().manual_seed(7))
    assert first.fingerprint() == second.fingerprint()
    assert torch.equal(state, torch.get_rng_state())


def test_a_task_too_short_to_split_is_named() -> None:
    with pytest.raises(bm.InputError, match="task '0' has too few rows.*support="):
        ragged().split(2, torch.Generator().manual_seed(0))


def test_fingerprints_see_values_masks_and_names() -> None:
    family = ragged()
    assert family.fingerprint() == ragged().fingerprint()
    changed = family.tensors["y"].clone()
    changed[0, 0] += 1e-9
    others = [
        bm.TaskFamily(family.tensors | {"y": changed}, mask=family.mask),
        bm.TaskFamily(family.tensors),
        bm.TaskFamily(family.tensors, mask=family.mask, names=["a", "b", "c"]),
    ]
    assert len({family.fingerprint(), *(o.fingerprint() for o in others)}) == 4


def test_a_sampler_of_ragged_tasks_is_padded_and_masked() -> None:
    def sampler(generator: torch.Generator) -> dict[str, torch.Tensor]:
        rows = int(torch.randint(1, 6, (), generator=generator))
        x = torch.randn(rows, 2, generator=generator)
        return {"x": x, "y": x.sum(1)}

    family = bm.TaskFamily.from_sampler(
        sampler, tasks=20, generator=torch.Generator().manual_seed(0)
    )
    assert len(family) == 20 and family.ragged
    torch.testing.assert_close(family.tensors["x"].sum(-1), family.tensors["y"])


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: bm.TaskFamily({}), "at least one tensor"),
        (lambda: bm.TaskFamily({"x": torch.zeros(2, 3), "y": torch.zeros(3, 3)}), "same"),
        (lambda: bm.TaskFamily({"y": torch.zeros(2, 3)}, names=["a", "a"]), "repeat"),
        (lambda: bm.TaskFamily({"y": torch.zeros(2, 3)}, names=["a"]), "1 names for 2 tasks"),
        (
            lambda: bm.TaskFamily(
                {"y": torch.zeros(2, 3)}, mask=torch.tensor([[True] * 3, [False] * 3])
            ),
            "position 1 has no rows",
        ),
        (
            lambda: bm.TaskFamily({"y": torch.zeros(2, 3)}, mask=torch.ones(2, 4)),
            r"y is \(2, 3\) but mask is \(2, 4\)",
        ),
        (lambda: ragged().subset(["nobody"]), "no task is named 'nobody'"),
    ],
)
def test_what_cannot_be_a_family_is_refused(make, sentence: str) -> None:
    with pytest.raises(bm.InputError, match=sentence):
        make()


def test_standardisation_uses_real_rows_only_and_is_undone() -> None:
    family = ragged()
    standard = Standardisation.of(family, real_response=True)
    inside = standard.apply(family)
    values = inside.tensors["y"][inside.mask]
    torch.testing.assert_close(values.mean(), torch.zeros(()).double())
    torch.testing.assert_close(values.std(correction=0), torch.ones(()).double())
    torch.testing.assert_close(standard.undo_response(inside.tensors["y"]), family.tensors["y"])
    # A new family is changed by the training family's numbers, not by its own.
    alone = standard.apply(family.subset([2]))
    assert torch.equal(alone.tensors["y"][0], inside.tensors["y"][2])


def test_a_constant_column_stays_an_intercept_when_x_is_standardised():
    x = torch.tensor([[[1.0, 4.0, 0.0], [1.0, 8.0, 0.0]], [[1.0, 6.0, 0.0], [1.0, 2.0, 0.0]]])
    family = bm.TaskFamily.from_tensors(x=3 * x, y=torch.zeros(2, 2))
    units = Standardisation.of(family, real_response=True)
    found = units.apply(family).tensors["x"]
    assert torch.equal(found[..., 0], torch.ones(2, 2))
    assert torch.equal(found[..., 2], torch.zeros(2, 2))
    assert abs(float(found[..., 1].mean())) < 1e-6
