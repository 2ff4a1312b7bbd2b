"""Bad tables are refused with one sentence that names file, line, column and what to do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from table_cases import GOOD, changed

from bayesmeta.results import InputError
from bayesmeta.tables import family_from_csv, family_from_dataframe, family_like
from bayesmeta.tasks import TableInfo


@pytest.fixture
def write(tmp_path):
    def to_file(content: str | bytes, name: str = "t.csv") -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return to_file


def refusal(path: Path, **options) -> str:
    arguments = {"task": "g", "x": ["x"], "y": "y"} | options
    with pytest.raises(InputError) as caught:
        family_from_csv(path, **arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- refusals: the file ---------------------------------------------------------------------------


def test_a_missing_file_or_a_folder(tmp_path, write):
    write(GOOD, "sleep.csv")
    assert "there is no file" in refusal(tmp_path / "slep.csv")
    assert refusal(tmp_path / "slep.csv").endswith("check the path; did you mean 'sleep.csv'?")
    assert refusal(tmp_path).endswith("is a folder: name a CSV file inside it")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "t.csv is empty: it needs a header line and rows"),
        (b"\n \n", "t.csv is empty: it needs a header line and rows"),
        (b"g,x,y\n", "t.csv has a header but no rows: there is nothing to fit"),
        (bytes(range(256)), "t.csv is a binary file, not text: give a CSV file"),
        (b"PK\x03\x04..", "t.csv is a spreadsheet or zip archive, not text: export the table"),
        (b"\x1f\x8b..", "t.csv is a gzip archive, not text: export the table as a CSV file"),
        (GOOD.encode("utf-16"), "t.csv is UTF-16 text: save it as UTF-8"),
        (
            GOOD.encode() + "é,1,M,1,1,1,1\n".encode("latin-1"),
            "t.csv, line 12: byte 0xe9 is not UTF-8 (it may be Latin-1 or Windows-1252); save the",
        ),
        (
            GOOD.encode() + "é,1,M,1,1,1,1\n".encode() + "ü,1,M,1,1,1,1\n".encode("latin-1"),
            "t.csv, line 13: byte 0xfc is not UTF-8 while other lines are UTF-8 (the file mixes",
        ),
        (
            b"g,x,y\na,1,2\nb,1,2,3\n",
            "t.csv, line 3 has 4 fields but the header has 3: correct the line, or quote a value",
        ),
        (b"g,x,y\n\na,1,2\nb\n", "t.csv, line 4 has 1 field but the header has 3"),
        (
            b'g,x,y\na,1,2\nb,"1,2\nb,2,3\n',
            "t.csv, line 3: unexpected end of data; look for a quote",
        ),
        (
            b"g,x,x,y\na,1,2,3\n",
            "t.csv has more than one column named 'x': rename or remove one",
        ),
    ],
    ids=lambda value: None if isinstance(value, bytes) else value[:40],
)
def test_a_file_that_is_not_what_it_seems(write, content, sentence):
    assert refusal(write(content)).startswith(sentence)


def test_dataframes_are_checked_too():
    columns = pd.DataFrame([["a", 1.0, 2.0]], columns=["g", "y", "y"])
    with pytest.raises(InputError, match="DataFrame has more than one column named 'y'"):
        family_from_dataframe(columns, task="g", y="y")
    with pytest.raises(InputError, match="DataFrame has no rows"):
        family_from_dataframe(pd.DataFrame({"g": [], "y": []}), task="g", y="y")
    with pytest.raises(InputError, match="expected a path or a pandas DataFrame, not dict"):
        family_like(TableInfo("t", "g", "y", (), terms={"likelihood": "gaussian"}), {"g": 1})  # pyright: ignore[reportArgumentType]


# --- refusals: columns and cells ------------------------------------------------------------------


def test_absent_columns_come_with_the_nearest_name(write):
    path = write(GOOD)
    listing = "its columns are g, x, sex, n, s, e, y"
    assert refusal(path, y="Y") == f"t.csv has no column 'Y': did you mean 'y'? {listing}"
    assert refusal(path, x=["Sexx"]) == f"t.csv has no column 'Sexx': did you mean 'sex'? {listing}"
    assert refusal(path, task="subject") == f"t.csv has no column 'subject'; {listing}"


@pytest.mark.parametrize(
    ("line", "column", "value", "sentence"),
    [
        (4, "x", "two", "'two' is not a number; correct it or remove the row, or write C(x) if"),
        (7, "y", "abc", "'abc' is not a number; correct it or remove the row"),
        (7, "y", "1,5", "'1,5' is not a number; write decimals with a point, not a comma"),
        (3, "x", "", "the value is missing (''); fill it in or remove the row"),
        (3, "x", "NA", "the value is missing ('NA'); fill it in or remove the row"),
        (3, "y", "nan", "the value is missing ('nan'); fill it in or remove the row"),
        (9, "y", "-inf", "'-inf' is not finite; correct it or remove the row"),
        (9, "x", "1e308", "'1e308' is too large to square in double precision; correct it, or"),
        (9, "x", "-1e999", "'-1e999' is not "),
        (2, "g", "", "the label is missing (''); fill it in, remove the row, or rename the label"),
        (2, "g", "NA", "the label is missing ('NA'); fill it in, remove the row, or rename"),
    ],
)
def test_a_bad_cell_is_named_by_line_and_column(write, line, column, value, sentence):
    content = changed(line, column, f'"{value}"')
    assert refusal(write(content)).startswith(f"t.csv, line {line}, column {column!r}: {sentence}")


@pytest.mark.parametrize(
    ("line", "column", "value", "options", "sentence"),
    [
        (5, "n", "-2", {"y": "n", "likelihood": "poisson"}, "'-2' is negative, which no count is"),
        (5, "n", "1.5", {"y": "n", "likelihood": "poisson"}, "'1.5' is not a whole number"),
        (5, "n", "-1", {"y": "n", "likelihood": "negative_binomial"}, "'-1' is negative"),
        (
            5,
            "s",
            "9",
            {"y": "s/n", "likelihood": "binomial"},
            "'9' successes are more than the 3 trials of column 'n'; correct one of the two",
        ),
        (3, "n", "0", {"y": "s/n", "likelihood": "binomial"}, "there are '0' trials"),
        (3, "s", "0.5", {"y": "s/n", "likelihood": "binomial"}, "'0.5' is not a whole number"),
        (8, "e", "0", {"standard_error": "e"}, "'0' is no standard error, which must be above 0"),
        (
            8,
            "e",
            "-1",
            {"exposure": "e", "y": "n", "likelihood": "poisson"},
            "'-1' is no exposure, which must be above 0",
        ),
        (8, "e", "?", {"offset": "e"}, "'?' is not a number"),
        (
            6,
            "sex",
            "D",
            {"y": "sex", "likelihood": "bernoulli"},
            "'M' is a third level beside D, F",
        ),
    ],
)
def test_values_that_the_likelihood_cannot_take(write, line, column, value, options, sentence):
    message = refusal(write(changed(line, column, value)), **options)
    line = 2 if "third level" in sentence else line
    assert message.startswith(f"t.csv, line {line}, column {column!r}: {sentence}")


def test_more_bad_rows_are_counted(write):
    content = changed(4, "y", "a").replace("7.0", "b")
    assert "line 4, column 'y': 'a' is not a number (and 1 more row);" in refusal(write(content))


def test_dataframe_rows_are_named_by_their_index():
    frame = pd.DataFrame({"g": list("aab"), "y": [1.0, np.nan, 2.0]}, index=["r1", "r2", "r3"])
    with pytest.raises(InputError, match="DataFrame, index 'r2', column 'y': the value is missing"):
        family_from_dataframe(frame, task="g", y="y")
    with pytest.raises(InputError, match="DataFrame, index 7, column 'y': the value is missing"):
        family_from_dataframe(frame.set_index(pd.Index([9, 7, 5])), task="g", y="y")
    frame["g"] = ["a", None, "b"]
    with pytest.raises(InputError, match="DataFrame, index 'r2', column 'g': the label is missing"):
        family_from_dataframe(frame, task="g", y="y")


def test_columns_that_no_weight_can_be_told_from(write):
    rows = [(g, i, i * i, 2 * i + 3 * i * i + 1, 7) for g in "abc" for i in range(4)]
    header = "g,x,w,q,k,y\n"
    path = write(header + "".join(f"{','.join(map(str, r))},{r[1] + ord(r[0])}\n" for r in rows))
    assert refusal(path, x=["x", "k"]) == (
        "t.csv, column 'k' is 7 in every row, so its weight cannot be estimated: leave it out"
    )
    assert refusal(path, x=["x", "w", "q"]) == (
        "t.csv: column 'q' is an exact linear combination of the intercept, 'x', 'w', so their "
        "weights cannot be told apart: leave one of them out"
    )
    assert refusal(path, x=["x", "C(x)"]).startswith("t.csv: column 'C(x)[3]' is an exact linear")
    assert family_from_csv(path, task="g", x=["x", "w"], y="y").tensors["x"].shape == (3, 4, 2)


def test_large_but_varying_columns_are_not_taken_for_constants():
    frame = pd.DataFrame({"g": list("aaabbb"), "year": 2000.0 + np.arange(6), "y": np.arange(6.0)})
    frame["square"] = frame["year"] ** 2
    family = family_from_dataframe(frame, task="g", x=["year", "square"], y="y")
    assert family.tensors["x"].shape == (2, 3, 2)


def test_one_level_one_task_and_no_variation(write):
    assert refusal(write("g,x,y\na,M,1\nb,M,2\n")) == (
        "t.csv, column 'x' is 'M' in every row, so its weight cannot be estimated: leave it out"
    )
    assert refusal(write("g,x,y\na,1,1\na,2,2\n")) == (
        "t.csv has one task only, 'a' in column 'g': a prior over tasks needs at least 2, so check "
        "which column names the tasks"
    )
    assert refusal(write("g,x,y\na,1,3\nb,2,3\n")) == (
        "t.csv, column 'y' is 3 in every row: there is no variation to model"
    )
    assert refusal(write("g,y\na,Y\nb,Y\n"), x=[], likelihood="bernoulli") == (
        "t.csv, column 'y' is 'Y' in every row: likelihood 'bernoulli' needs two levels"
    )
    assert refusal(write("g,x,z,y\na,1,0,3\nb,2,5,4\n"), x=["x", "z"]) == (
        "t.csv has 2 rows for 3 coefficients: leave columns out"
    )


def test_a_column_plays_one_part(write):
    path = write(GOOD)
    assert refusal(path, task="y") == (
        "column 'y' is both the task and the response: name two columns"
    )
    assert refusal(path, task="x").startswith("column 'x' is both the task and a predictor")
    assert refusal(path, y="x").startswith("column 'x' is both the response and a predictor")
    assert refusal(path, offset="y").startswith("column 'y' is both the response and an offset")
    assert refusal(path, x=["x", "x"]) == "predictor 'x' is listed twice: list it once"


def test_likelihoods_that_do_not_fit(write):
    path = write(GOOD)
    assert refusal(path, likelihood="gausian").startswith("there is no likelihood 'gausian'")
    assert "needs likelihood 'binomial'" in refusal(path, y="s/n")
    assert "as successes/trials, not 's'" in refusal(path, y="s", likelihood="binomial")
    assert "is for counts" in refusal(path, exposure="e")
    assert "is for likelihood 'gaussian'" in refusal(
        path, y="n", standard_error="e", likelihood="poisson"
    )
    assert refusal(path, y="sex") == (
        "t.csv, line 2, column 'y': 'M' is not a number; the two levels F, M suit likelihood "
        "'bernoulli'"
    ).replace("'y'", "'sex'")


def test_texts_that_are_neither_numbers_nor_categories(write):
    rows = "".join(f"{'ab'[i % 2]},2020-01-{i + 1:02d},{i}\n" for i in range(28))
    assert refusal(write("g,x,y\n" + rows)) == (
        "t.csv, line 2, column 'x': '2020-01-01' is not a number, and 28 different texts in 28 "
        "rows are no category; leave the column out or code it first"
    )
    frame = pd.DataFrame({"g": ["a", "b"], "t": pd.to_datetime(["2020", "2021"]), "y": [1.0, 2]})
    with pytest.raises(InputError, match="turn it into a number first, such as days since a start"):
        family_from_dataframe(frame, task="g", x="t", y="y")
