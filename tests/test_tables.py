"""Families from files and DataFrames: values, padding, and reading a new table the same way."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from table_cases import GOOD

from bayesmeta.results import InputError
from bayesmeta.tables import (
    family_from_csv,
    family_from_dataframe,
    family_like,
    read_csv,
    row_order,
)
from bayesmeta.tasks import TableInfo, TaskFamily

DATA = Path(__file__).parent / "data"


@pytest.fixture
def write(tmp_path):
    def to_file(content: str | bytes, name: str = "t.csv") -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return to_file


# --- what is read ---------------------------------------------------------------------------------


def test_values_are_padded_and_masked_in_file_order(write):
    family = family_from_csv(write(GOOD), task="g", x=["x"], y="y")
    assert family.names == ("a", "b", "c")
    assert family.rows.tolist() == [4, 4, 2]
    assert family.tensors["y"].tolist() == [
        [1.5, 2.5, 2, 4.5],
        [0.5, 1, 3.5, 2.5],
        [7, 6.5, 7, 7],
    ]
    assert family.tensors["x"][2, :, 0].tolist() == [1, 5, 1, 1]
    assert family.mask is not None
    assert family.mask[2].tolist() == [True, True, False, False]
    assert family.tensors["x"].dtype == family.tensors["y"].dtype == torch.float64
    assert family.table is not None
    assert family.table.columns == ("x",)
    assert family.table.notes == ()
    assert family.table.source == "t.csv"


def test_a_csv_and_its_dataframe_give_the_same_family(write):
    path = write(GOOD)
    options = {"task": "g", "x": ["x", "sex"], "y": "y"}
    from_file = family_from_csv(path, **options)
    from_frame = family_from_dataframe(pd.read_csv(path), **options)
    from_text = family_from_dataframe(read_csv(path), **options)
    assert from_file.fingerprint() == from_frame.fingerprint() == from_text.fingerprint()
    assert TaskFamily.from_csv(path, **options).fingerprint() == from_file.fingerprint()


def test_labels_stay_as_written(write):
    family = family_from_csv(
        write("g,y\n007,1\n7,2\n 7,3\n1.50,4\n"), task="g", y="y", standard_error=None
    )
    assert family.names == ("007", "7", " 7", "1.50")
    assert family.table is not None
    assert "some tasks of g differ only in spaces around their names" in family.table.notes


def test_numeric_labels_of_a_dataframe_lose_the_point_that_pandas_adds():
    frame = pd.DataFrame({"g": [308.0, 308.0, 309.5], "y": [1.0, 2, 3]})
    assert family_from_dataframe(frame, task="g", y="y").names == ("308", "309.5")


def test_categories_are_treatment_coded_and_say_so(write):
    family = family_from_csv(write(GOOD), task="g", x=["sex", "x", "C(n)"], y="y")
    table = family.table
    assert table is not None
    assert table.columns == ("sex[M]", "x", "C(n)[3]", "C(n)[4]", "C(n)[5]", "C(n)[9]")
    assert table.coding == {"sex": ("F", "M"), "C(n)": ("2", "3", "4", "5", "9")}
    assert family.tensors["x"][0, :, 0].tolist() == [1, 0, 1, 0]
    assert family.tensors["x"][0, :, 4].tolist() == [1, 1, 0, 0]
    assert table.notes[0] == "sex is a category with levels F, M, compared with F"


def test_a_pandas_category_keeps_its_order_and_a_boolean_is_a_category():
    frame = pd.DataFrame(
        {
            "g": list("aabb"),
            "size": pd.Categorical(
                ["small", "large", "large", "small"], categories=["small", "medium", "large"]
            ),
            "flag": [True, False, False, False],
            "y": [1.0, 2, 3, 5],
        }
    )
    family = family_from_dataframe(frame, task="g", x=["size", "flag"], y="y")
    assert family.table is not None
    assert family.table.columns == ("size[large]", "flag[True]")
    assert family.tensors["x"].flatten().tolist() == [0, 1, 1, 0, 1, 0, 0, 0]


def test_recurring_texts_among_numbers_are_levels_but_a_single_one_is_an_error():
    levels = ["0", "1", "2", "3+"] * 6
    frame = pd.DataFrame({"g": ["a", "b"] * 12, "k": levels, "y": np.arange(24.0)})
    table = family_from_dataframe(frame, task="g", x="k", y="y").table
    assert table is not None
    assert table.columns == ("k[1]", "k[2]", "k[3+]")
    assert "mixes numbers and text" in table.notes[0]
    frame.loc[7, "k"] = "3 +"
    with pytest.raises(InputError, match=r"DataFrame, index 3, column 'k': '3\+' is not a number"):
        family_from_dataframe(frame, task="g", x="k", y="y")


@pytest.mark.parametrize("sign", [";", "\t", "|"])
def test_other_delimiters_are_found_and_noted(write, sign):
    family = family_from_csv(write(GOOD.replace(",", sign)), task="g", x="x", y="y")
    plain = family_from_csv(write(GOOD, "plain.csv"), task="g", x="x", y="y")
    assert family.fingerprint() == plain.fingerprint()
    assert family.table is not None
    assert "was read as separated by" in family.table.notes[0]


@pytest.mark.parametrize("ends", ["\r\n", "\r"])
def test_a_byte_order_mark_and_foreign_line_ends_are_fine(write, ends):
    family = family_from_csv(write("\ufeff" + GOOD.replace("\n", ends)), task="g", x="x", y="y")
    plain = family_from_csv(write(GOOD, "plain.csv"), task="g", x="x", y="y")
    assert family.fingerprint() == plain.fingerprint()


def test_quoted_fields_may_hold_delimiters_and_line_ends(write):
    path = write('g,note,y\n"a, b","two\nlines",1\n\nc,plain,2\nc,plain,oops\n')
    with pytest.raises(InputError, match=r"t.csv, line 6, column 'y': 'oops' is not a number"):
        family_from_csv(path, task="g", y="y")
    assert read_csv(path)["g"].tolist() == ["a, b", "c", "c"]


def test_interaction_groups():
    frame = pd.DataFrame({"a": list("xxyy"), "b": [1, 2, 1, 1], "y": [1.0, 2, 3, 5]})
    family = family_from_dataframe(frame, task="a:b", y="y")
    assert family.names == ("x:1", "x:2", "y:1")
    assert family.rows.tolist() == [1, 1, 2]
    clash = pd.DataFrame({"a": ["p", "p:q"], "b": ["q:r", "r"], "y": [1.0, 2]})
    with pytest.raises(InputError, match="rename the labels that contain ':'"):
        family_from_dataframe(clash, task="a:b", y="y")


def test_offsets_exposures_and_standard_errors(write):
    path = write(GOOD)
    counts = family_from_csv(
        path, task="g", x="x", y="n", offset="y", exposure="e", likelihood="poisson"
    )
    expected = [1.5, 2.5, 2 + np.log(2), 4.5]
    assert counts.tensors["offset"][0].tolist() == pytest.approx(expected, abs=1e-15)
    known = family_from_csv(path, task="g", x="x", y="y", standard_error="e")
    assert known.tensors["standard_error"][1].tolist() == [0.5, 1, 1, 1.5]


def test_binomial_trials(write):
    family = family_from_csv(write(GOOD), task="g", x=[], y="s/n", likelihood="binomial")
    assert family.tensors["y"][0].tolist() == [2, 0, 4, 1]
    assert family.tensors["trials"][0].tolist() == [5, 5, 4, 3]
    assert family.tensors["x"].shape == (3, 4, 0)


@pytest.mark.parametrize(
    ("cells", "levels", "first"),
    [
        (["Y", "N", "N", "Y"], ("N", "Y"), 1.0),
        (["True", "False", "True", "True"], ("False", "True"), 1.0),
        (["2", "1", "1", "1"], ("1", "2"), 1.0),
        (["0", "1", "0", "1"], ("0", "1"), 0.0),
        (["0", "0", "0", "0"], ("0", "1"), 0.0),
    ],
)
def test_two_levels_are_coded_zero_and_one(write, cells, levels, first):
    text = "g,y\n" + "".join(f"{g},{y}\n" for g, y in zip("aabb", cells, strict=True))
    family = family_from_csv(write(text), task="g", y="y", likelihood="bernoulli")
    assert family.table is not None
    assert family.table.coding == {"y": levels}
    assert family.tensors["y"][0, 0].item() == first
    coded = f"the response y is coded {levels[0]} = 0, {levels[1]} = 1"
    assert (coded in family.table.notes) == (levels != ("0", "1"))


def test_categorical_responses_are_integer_codes(write):
    text = "g,y\na,red\na,blue\nb,green\nb,red\n"
    family = family_from_csv(write(text), task="g", y="y", likelihood="categorical")
    assert family.tensors["y"].dtype == torch.int64
    assert family.tensors["y"].tolist() == [[2, 0], [1, 2]]


@pytest.mark.parametrize(
    ("file", "task", "y", "sizes"),
    [
        ("sleepstudy", "Subject", "Reaction", (18, 180, 10, 10)),
        ("radon", "county", "log_radon", (85, 919, 1, 116)),
        ("hsb82", "school", "mAch", (160, 7185, 14, 67)),
        ("insteval", "d", "y", (1128, 73421, 10, 792)),
        ("grouseticks", "BROOD", "TICKS", (118, 403, 1, 10)),
    ],
)
def test_real_files_have_the_sizes_of_their_sources(file, task, y, sizes):
    family = family_from_csv(DATA / f"{file}.csv", task=task, y=y)
    rows = family.rows
    assert (len(family), family.observations, int(rows.min()), int(rows.max())) == sizes


def test_single_rows_are_one_note_with_five_names_at_most(write):
    rows = "".join(f"s{i},{i},{i * i}\n" for i in range(300))
    text = "g,x,y\na,0,1\na,1,3\n" + rows
    family = family_from_csv(write(text), task="g", x="x", y="y")
    assert family.table is not None
    assert family.table.notes == (
        "300 tasks have a single row, so the prior weighs most there: s0, s1, s2, s3, s4, ...",
    )
    radon = family_from_csv(DATA / "radon.csv", task="county", x="floor", y="log_radon").table
    assert radon is not None
    assert radon.notes == (
        "3 tasks have a single row, so the prior weighs most there: MAHNOMEN, MURRAY, WILKIN",
    )


def test_single_rows_everywhere_need_a_known_noise():
    frame = pd.DataFrame({"g": list("abc"), "y": [1.0, 2, 4], "se": [1.0, 1, 2]})
    table = family_from_dataframe(frame, task="g", y="y").table
    assert table is not None
    assert "cannot be told apart" in table.notes[0]
    known = family_from_dataframe(frame, task="g", y="y", standard_error="se").table
    assert known is not None
    assert known.notes == ()


def test_a_constant_response_is_a_note_where_it_can_be_fitted(write):
    path = write("g,x,y,e\na,1,2,1\na,2,2,1\nb,1,2,1\nb,3,2,2\n")
    for options in ({"likelihood": "poisson"}, {"standard_error": "e"}):
        table = family_from_csv(path, task="g", x="x", y="y", **options).table
        assert table is not None
        assert table.notes == ("the response y is 2 in every row",)


# --- padding, permutation, size -------------------------------------------------------------------


@st.composite
def frames(draw):
    rows = draw(st.integers(2, 25))
    floats = st.floats(-1e6, 1e6)
    frame = pd.DataFrame(
        {
            "g": draw(st.lists(st.sampled_from("abcde"), min_size=rows, max_size=rows)),
            "e": draw(st.lists(st.floats(0.5, 2.0), min_size=rows, max_size=rows)),
            "y": draw(st.lists(floats, min_size=rows, max_size=rows)),
        }
    )
    frame.loc[:1, "g"] = ["a", "b"]
    return frame, draw(st.permutations(range(rows)))


def contents(family: TaskFamily) -> dict[str, list[tuple[float, float]]]:
    assert family.mask is not None
    y, e = family.tensors["y"], family.tensors["standard_error"]
    return {
        name: sorted(zip(y[i][family.mask[i]].tolist(), e[i][family.mask[i]].tolist(), strict=True))
        for i, name in enumerate(family.names)
    }


@settings(deadline=None)
@given(frames())
def test_permuted_rows_give_the_same_family_up_to_order(case):
    frame, permutation = case
    options = {"task": "g", "y": "y", "standard_error": "e"}
    family = family_from_dataframe(frame, **options)
    permuted = frame.iloc[list(permutation)]
    other = family_from_dataframe(permuted, **options)
    assert contents(other) == contents(family)
    assert other.names == tuple(dict.fromkeys(permuted["g"]))


@settings(deadline=None)
@given(frames())
def test_padded_rows_come_back_as_the_frame_and_padding_repeats_a_real_row(case):
    frame, _ = case
    family = family_from_dataframe(frame, task="g", y="y", standard_error="e")
    assert family.mask is not None
    assert family.table is not None
    order = row_order(family.table, frame)
    assert family.tensors["y"][family.mask].tolist() == frame["y"].iloc[order].tolist()
    for i, name in enumerate(family.names):
        assert set(family.tensors["y"][i].tolist()) == set(frame["y"][frame["g"] == name])
        assert family.mask[i].sum() == (frame["g"] == name).sum()


def test_a_hundred_thousand_tasks():
    generator = np.random.default_rng(0)
    codes = generator.integers(0, 100_000, 300_000)
    frame = pd.DataFrame({"g": codes, "x": generator.normal(size=codes.size)})
    frame["y"] = frame["x"] * 2
    family = family_from_dataframe(frame, task="g", x="x", y="y")
    assert family.mask is not None
    total = (family.tensors["x"][..., 0] * family.mask).sum(1)
    expected = np.bincount(codes, weights=frame["x"])[[int(name) for name in family.names]]
    assert torch.allclose(total, torch.from_numpy(expected), atol=1e-12)
    assert torch.equal(family.tensors["y"], 2 * family.tensors["x"][..., 0])


def test_a_family_that_padding_would_blow_up_is_refused():
    codes = np.concatenate([np.arange(60_000), np.zeros(60_000, dtype=int)])
    frame = pd.DataFrame({"g": codes, "y": np.arange(120_000.0)})
    with pytest.raises(InputError, match=r"task '0' has 60001 rows .* would take 27 GiB"):
        family_from_dataframe(frame, task="g", y="y")


# --- a new table read the same way ----------------------------------------------------------------


def test_a_new_table_is_read_with_the_coding_of_the_first(write):
    family = family_from_csv(write(GOOD), task="g", x=["x", "sex", "C(n)"], y="y")
    assert family.table is not None
    table = TableInfo.from_json(json.loads(json.dumps(family.table.to_json())))
    assert family_like(table, write(GOOD)).fingerprint() == family.fingerprint()
    new = family_like(table, write("g,y,x,n,sex\nz,1,2,9,M\n", "new.csv"))
    assert new.names == ("z",)
    assert new.tensors["x"].tolist() == [[[2, 1, 0, 0, 0, 1]]]
    assert new.table is not None
    assert new.table.source == "new.csv"
    assert new.table.columns == table.columns
    again = family_like(new.table, write(GOOD))
    assert again.fingerprint() == family.fingerprint()


def test_an_unknown_level_or_an_absent_column_is_refused(write):
    table = family_from_csv(write(GOOD), task="g", x=["x", "sex"], y="y").table
    assert table is not None
    with pytest.raises(InputError) as caught:
        family_like(table, write("g,x,sex,y\nz,1,M,1\nz,1,D,1\n", "new.csv"))
    assert str(caught.value) == (
        "new.csv, line 3, column 'sex': the level 'D' is not one of those fitted (F, M); correct "
        "it, or fit again with this level in the data"
    )
    with pytest.raises(InputError, match=r"new.csv has no column 'sex'; its columns are g, x, y"):
        family_like(table, write("g,x,y\nz,1,1\n", "new.csv"))


@pytest.mark.parametrize("content", ["g,x\nz,1\nz,2\n", "g,x,y\nz,1,\nz,2,\n"])
def test_the_response_may_be_absent_when_it_is_to_be_predicted(write, content):
    table = family_from_csv(write(GOOD), task="g", x="x", y="y").table
    assert table is not None
    path = write(content, "new.csv")
    family = family_like(table, path, require_response=False)
    assert set(family.tensors) == {"x"}
    assert family.mask is not None
    assert family.mask.tolist() == [[True, True]]
    with pytest.raises(InputError, match="column 'y'"):
        family_like(table, path)


def test_a_half_empty_response_is_still_refused(write):
    table = family_from_csv(write(GOOD), task="g", x="x", y="y").table
    assert table is not None
    with pytest.raises(InputError, match=r"new.csv, line 3, column 'y': the value is missing"):
        family_like(table, write("g,x,y\nz,1,1\nz,2,\n", "new.csv"), require_response=False)


def test_response_levels_are_kept(write):
    text = "g,y\na,no\na,yes\nb,yes\nb,no\n"
    table = family_from_csv(write(text), task="g", y="y", likelihood="bernoulli").table
    assert table is not None
    new = family_like(table, write("g,y\nz,yes\nz,yes\n"))
    assert new.tensors["y"].tolist() == [[1.0, 1.0]]
    with pytest.raises(InputError, match="line 2, column 'y': the level 'maybe' is not one of"):
        family_like(table, write("g,y\nz,maybe\n"))


def test_a_response_column_with_a_slash_in_its_name_stays_one_column():
    frame = pd.DataFrame({"g": list("aabb"), "km/h": [1.0, 2, 3, 5]})
    table = family_from_dataframe(frame, task="g", y="km/h").table
    assert table is not None
    new = family_like(table, pd.DataFrame({"g": ["z"]}), require_response=False)
    assert "y" not in new.tensors
