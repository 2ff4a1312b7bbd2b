"""Numbers that are read at once are those that the text of every cell says."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import bayesmeta as bm
from bayesmeta.tables import columns, reading
from bayesmeta.tables.reading import PART, Lines, Table, open_table

# fmt: off
CELLS = [
    "1", "1.5", "-2", "+3", "007", "1e5", "1E-7", ".5", "5.", "-0", "inf", "-inf", "Infinity",
    "nan", "NaN", "NA", "null", "True", "False", "TRUE", "true", "1_000", "0x10", "1e400", "-1e400",
    "1e-400", "99999999999999999999", "18446744073709551616", "9223372036854775808", "--1", "1-",
    "0.1", "0.30000000000000004", "123456789.123456789", "a", "b", "yes", "1e", "1+2j",
    "2020-01-01", "٣", "１", "", " ", " 1.5", "2 ", "a b", '"', '"1"', "1,5", "1;5",
]
# fmt: on


def written(folder: Path, cells: list[str]) -> Path:
    path = folder / "table.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("y", "g"), *((cell, i) for i, cell in enumerate(cells))])
    return path


def outcome(work, *arguments):
    """What a function gives, or the sentence with which it refuses."""
    try:
        found = work(*arguments)
    except bm.InputError as error:
        return str(error)
    return found


@given(st.lists(st.sampled_from(CELLS), min_size=1, max_size=12))
@example(["1", "2.5", "1e5"])
@example(["True", "False"])
@example(["99999999999999999999", "1"])
@example(["007", "7"])
def test_columns_mean_what_their_text_does(tmp_path_factory, cells):
    path = written(tmp_path_factory.mktemp("table"), cells)
    table = open_table(path)
    text = Table(reading.read_csv(path), table.source, table.lines)
    assert text.frame["y"].tolist() == cells  # every cell, as it was written
    assert table.written("y").tolist() == cells
    for meaning in (columns.is_category, columns.mixes_numbers_and_text):
        assert outcome(meaning, table, "y") == outcome(meaning, text, "y")
    mine, theirs = (outcome(columns.numbers, t, "y") for t in (table, text))
    if isinstance(theirs, str):
        assert mine == theirs
    else:
        np.testing.assert_array_equal(mine, theirs)
    for meaning in (columns.labels, columns.categories, columns.groups):
        mine, theirs = (outcome(meaning, t, "y") for t in (table, text))
        if isinstance(theirs, str):
            assert mine == theirs
        else:
            assert mine.names == theirs.names and mine.codes.tolist() == theirs.codes.tolist()


@given(
    st.lists(st.text("ab,\n ", max_size=8), min_size=1, max_size=30),
    st.integers(1, 5),
    st.booleans(),
)
def test_fields_are_counted_as_csv_counts_them(rows, part, ends):
    text = "\n".join(rows) + ("\n" if ends else "")
    lines = Lines(text.encode(), ",", ("a",), 1)
    before = reading.PART
    try:
        reading.PART = part
        found = lines._plain()
    finally:
        reading.PART = before
    wanted = [len(fields) for fields in csv.reader(io.StringIO(text, newline=""))]
    assert found.tolist() == wanted == lines._quoted().tolist()
    assert PART > 1 << 20


def test_numbers_are_exact(tmp_path):
    values = np.random.default_rng(0).normal(size=20_000) * 10.0 ** np.linspace(-140, 140, 20_000)
    values = values[np.abs(values) < 1e150]
    path = written(tmp_path, [repr(float(value)) for value in values])
    read = columns.numbers(open_table(path), "y")
    wrong = read != pd.to_numeric(pd.Series([repr(float(v)) for v in values])).to_numpy()
    assert not wrong.any()
    np.testing.assert_allclose(read, values, rtol=4e-16)


@pytest.mark.parametrize("quote", ["", '"'])
def test_a_ragged_line_is_named_in_a_long_file(quote, tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "PART", 64)
    lines = ["g,y", *(f"{quote}{i % 7}{quote},{i}.5" for i in range(500))]
    lines[300] += ",9"
    path = tmp_path / "table.csv"
    path.write_text("\n".join(lines))
    with pytest.raises(bm.InputError, match="line 301 has 3 fields but the header has 2"):
        open_table(path)
