"""Tables to families of tasks: CSV, DataFrame and formula, with checks that answer in plain words.

reading: files and DataFrames. columns: numbers, categories, tasks. formulas, designs: the features
x of each row. requests, responses: y for each likelihood, offsets, known noise. remarks: what a
person should know. assembly: padded families, and reading a new table in the same way.
"""

from __future__ import annotations

from bayesmeta.tables.assembly import (
    family_from_csv,
    family_from_dataframe,
    family_from_formula,
    family_like,
    row_order,
)
from bayesmeta.tables.formulas import parse_formula
from bayesmeta.tables.reading import read_csv
from bayesmeta.tables.requests import LIKELIHOODS

__all__ = [
    "LIKELIHOODS",
    "family_from_csv",
    "family_from_dataframe",
    "family_from_formula",
    "family_like",
    "parse_formula",
    "read_csv",
    "row_order",
]
