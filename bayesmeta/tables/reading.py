"""A table as its owner sees it: a file or a DataFrame, and a name for every cell.

Columns of a file in which every cell is a number are read as numbers, all others as text; the text
of every cell, as it was written, is there to be asked for. What a column means (a number, a
category, a task) is decided in `columns`. A file that is not what it seems (a folder, a
spreadsheet, half-converted text, lines of different lengths) is refused with the line.
"""

from __future__ import annotations

import csv
import difflib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pandas.api import types

from bayesmeta.results import InputError

DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "vertical bar"}
PART = 1 << 24
"""Bytes of a file that are looked at together."""
UTF16 = (b"\xff\xfe", b"\xfe\xff")
SIGNATURES = {
    b"PK\x03\x04": "a spreadsheet or zip archive",
    b"\x1f\x8b": "a gzip archive",
    b"\xd0\xcf\x11\xe0": "an old Excel spreadsheet",
    b"%PDF": "a PDF",
}


@dataclass(frozen=True, eq=False)
class Lines:
    """The lines of a file, from which columns are read.

    Args:
        content: UTF-8 text with unix line ends.
        delimiter: what separates fields.
        header: the names of all columns, "" where one has none.
        before: lines up to the end of the header.
    """

    content: bytes
    delimiter: str
    header: tuple[str, ...]
    before: int

    def columns(self, dtype: type | None, *only: int) -> pd.DataFrame:
        """Columns by their place: as text, or (None) as numbers where every cell is one.

        Args:
            dtype: str or None.
            only: places; none for all.
        """
        return pd.read_csv(
            io.BytesIO(self.content),
            sep=self.delimiter,
            header=None,
            names=list(range(len(self.header))),
            usecols=list(only) if only else None,
            skiprows=self.before,
            dtype=dtype,
            na_filter=False,
            index_col=False,
            low_memory=False,  # which would look at parts of a column apart
            # The C parser also skips lines of blanks only, which csv counts as one empty field.
            skip_blank_lines=True,
        )

    def refuse_ragged(self, source: str) -> None:
        """Every record has as many fields as the header; blank lines are skipped.

        Raises:
            InputError: one has not; names the line.
        """
        try:
            fields = self._quoted() if b'"' in self.content else self._plain()
        except csv.Error as error:
            raise InputError(
                f"{source}, line {self._first_error()}: {error}; look for a quote that is not "
                "closed"
            ) from None
        fields = fields[fields > 0]
        wrong = np.flatnonzero(fields != len(self.header))
        if len(wrong):
            count = int(fields[wrong[0]])
            raise InputError(
                f"{source}, line {self.of_record(int(wrong[0]))} has {count} "
                f"field{'s' * (count != 1)} but the header has {len(self.header)}: correct the "
                f"line, or quote a value that holds a {DELIMITERS[self.delimiter]}"
            )

    def _quoted(self) -> np.ndarray:
        """(record,) fields; 0 for a blank line."""
        reader = csv.reader(_text(self.content), delimiter=self.delimiter, strict=True)
        return np.fromiter(map(len, reader), dtype=np.int64)

    def _plain(self) -> np.ndarray:
        """The same of a file without quotes, where a delimiter is always one."""
        sign, parts = self.delimiter.encode(), io.BytesIO(self.content)
        counts = [np.zeros(0, dtype=np.int64)]
        while some := parts.read(PART) + parts.readline():
            some = some.removesuffix(b"\n") + b"\n"
            letters = np.frombuffer(some, dtype=np.uint8)
            ends = np.flatnonzero(letters == ord("\n"))
            starts = np.append(0, ends[:-1] + 1)
            signs = np.add.reduceat(letters == ord(sign), starts, dtype=np.int64)
            counts.append(np.where(ends > starts, signs + 1, 0))
        return np.concatenate(counts)

    def _first_error(self) -> int:
        """The line where the first record starts that csv refuses."""
        reader = csv.reader(_text(self.content), delimiter=self.delimiter, strict=True)
        before = 0
        try:
            for _ in reader:
                before = reader.line_num
        except csv.Error:
            pass
        return before + 1

    def of_record(self, record: int) -> int:
        """The line in an editor where a record starts (the header is record 0)."""
        reader = csv.reader(_text(self.content), delimiter=self.delimiter)
        before = 0
        for fields in reader:
            if fields:
                if record == 0:
                    return before + 1
                record -= 1
            before = reader.line_num
        return before


@dataclass(frozen=True, eq=False)
class Table:
    """A table and how to name its parts to the person who made it.

    Args:
        frame: the columns; from a file, numbers where all cells are, and text.
        source: the file's name, or what stands for it, e.g. "DataFrame".
        lines: of the file; None for a DataFrame.
    """

    frame: pd.DataFrame
    source: str
    lines: Lines | None = None

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(self.frame.columns)

    def row(self, position: int) -> str:
        """What to call a row: its line in an editor, or its index label in a DataFrame."""
        if self.lines is None:
            return f"index {self.frame.index[position : position + 1].tolist()[0]!r}"
        return f"line {self.lines.of_record(position + 1)}"

    def cell(self, column: str, position: int) -> str:
        return f"{self.source}, {self.row(position)}, column {column!r}"

    def column(self, name: str) -> pd.Series:
        """A column by name.

        Raises:
            InputError: there is none; the nearest name is suggested.
        """
        if name not in self.frame.columns:
            raise InputError(f"{self.source} has no column {name!r}{self._advice(name)}")
        return pd.Series(self.frame[name])

    def written(self, name: str) -> pd.Series:
        """A column as it is written: of a file the text, "007" and not 7."""
        column = self.column(name)
        if self.lines is None or not types.is_numeric_dtype(column):
            return column
        return self.lines.columns(str, self.lines.header.index(name)).iloc[:, 0]

    def refuse_row(self, column: str, bad: np.ndarray, why: str, what_to_do: str) -> None:
        """Raise for the first row marked in `bad`, counting the others.

        Args:
            column: the column to name.
            bad: (row,) bool.
            why: what is wrong with the cell; "{value}" stands for what it holds.
            what_to_do: the advice.
        """
        places = np.flatnonzero(bad)
        if len(places) == 0:
            return
        value = self.written(column).iloc[places[0]] if column in self.frame.columns else ""
        others = len(places) - 1
        more = f" (and {others} more row{'s' * (others > 1)})" if others else ""
        why = why.replace("{value}", repr(value) if isinstance(value, str) else str(value))
        raise InputError(f"{self.cell(column, places[0])}: {why}{more}; {what_to_do}")

    def _advice(self, name: str) -> str:
        lower = {column.lower(): column for column in self.columns}
        near = difflib.get_close_matches(name.lower(), list(lower), n=1)
        shown = ", ".join(self.columns[:12]) + (", ..." if len(self.columns) > 12 else "")
        hint = f": did you mean {lower[near[0]]!r}?" if near else ";"
        return f"{hint} its columns are {shown}"


def read_csv(path: str | Path) -> pd.DataFrame:
    r"""Read a delimited text file, every cell as the text it holds.

    Comma, semicolon, tab or vertical bar, whichever the header uses; UTF-8 with or without a byte
    order mark; any line ends. The family builders turn text into numbers, categories and tasks.

    Args:
        path: the file.

    Returns:
        A DataFrame of text with the header's names, rows in file order.

    Raises:
        InputError: the file is missing, not text, not UTF-8, empty, or its lines disagree.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "a.csv")
        ...     _ = file.write_text("task,y\n007,1.50\n")
        ...     read_csv(file).iloc[0].tolist()
        ['007', '1.50']
    """
    lines = _lines_of_file(Path(path))
    return _named(lines.columns(str), lines.header)


def open_table(data: str | Path | pd.DataFrame, *, source: str = "DataFrame") -> Table:
    """A file or a DataFrame as a `Table`, checked as a whole but not yet column by column."""
    if isinstance(data, pd.DataFrame):
        return _table_of_frame(data, source)
    if isinstance(data, (str, Path)):
        return _table_of_file(Path(data))
    raise InputError(f"expected a path or a pandas DataFrame, not {type(data).__name__}")


def _table_of_frame(frame: pd.DataFrame, source: str) -> Table:
    names = [str(name) for name in frame.columns]
    _refuse_repeated(names, source)
    if len(frame) == 0:
        raise InputError(f"{source} has no rows: there is nothing to fit")
    return Table(frame.set_axis(names, axis=1), source)


def _table_of_file(path: Path) -> Table:
    lines = _lines_of_file(path)
    body = lines.columns(None)
    for place, dtype in body.dtypes.items():
        # True and False are two texts, and a whole number beyond 64 bits is read as an object.
        if types.is_bool_dtype(dtype) or dtype == np.dtype(object):
            body[place] = lines.columns(str, place)
    return Table(_named(body, lines.header), path.name, lines)


def _named(body: pd.DataFrame, header: Sequence[str]) -> pd.DataFrame:
    """The columns that have a name."""
    return pd.DataFrame({name: body[i] for i, name in enumerate(header) if name})


def _lines_of_file(path: Path) -> Lines:
    """The file's lines, all of as many fields."""
    content = _decodable(_read_bytes(path), path.name)
    delimiter = _delimiter(content)
    header, before = _header(content, delimiter, path.name)
    _refuse_repeated([name for name in header if name], path.name)
    lines = Lines(content, delimiter, tuple(header), before)
    lines.refuse_ragged(path.name)
    return lines


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"there is no file {str(path)!r}: check the path{_nearby(path)}") from None
    except IsADirectoryError:
        raise InputError(f"{str(path)!r} is a folder: name a CSV file inside it") from None
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be read: {error.strerror or error}") from None


def _nearby(path: Path) -> str:
    try:
        names = [file.name for file in path.parent.iterdir() if file.is_file()]
    except OSError:
        return ""
    near = difflib.get_close_matches(path.name, names, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _decodable(content: bytes, source: str) -> bytes:
    """UTF-8 text with unix line ends, or an InputError that names the first bad line."""
    for signature, kind in SIGNATURES.items():
        if content.startswith(signature):
            raise InputError(f"{source} is {kind}, not text: export the table as a CSV file")
    if content.startswith(UTF16):
        raise InputError(f"{source} is UTF-16 text: save it as UTF-8")
    if b"\0" in content:
        raise InputError(f"{source} is a binary file, not text: give a CSV file")
    content = content.removeprefix(b"\xef\xbb\xbf")
    if b"\r" in content:
        content = content.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    if not content or content.isspace():
        raise InputError(f"{source} is empty: it needs a header line and rows")
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        byte = content[error.start]
        mixed = _has_multibyte(content[: error.start] + content[error.start + 1 :])
        which = (
            "while other lines are UTF-8 (the file mixes encodings)"
            if mixed
            else "(it may be Latin-1 or Windows-1252)"
        )
        raise InputError(
            f"{source}, line {line}: byte 0x{byte:02x} is not UTF-8 {which}; save the file as UTF-8"
        ) from None
    return content


def _has_multibyte(content: bytes) -> bool:
    """Whether some character outside ASCII is spelt as UTF-8 spells it."""
    return any(ord(char) > 127 for char in content.decode("utf-8", errors="ignore"))


def _delimiter(content: bytes) -> str:
    """The delimiter that splits the header into most fields; the comma wins ties."""
    header = content.lstrip(b"\n").split(b"\n", 1)[0].decode("utf-8")
    return max(DELIMITERS, key=lambda sign: len(next(csv.reader([header], delimiter=sign), [])))


def _header(content: bytes, delimiter: str, source: str) -> tuple[list[str], int]:
    """The header's names, and the number of lines up to its end."""
    reader = csv.reader(_text(content), delimiter=delimiter)
    try:
        header = next(record for record in reader if record)
        lines = reader.line_num
        if next((record for record in reader if record), None) is None:
            raise InputError(f"{source} has a header but no rows: there is nothing to fit")
    except csv.Error as error:
        raise InputError(f"{source}, line 1: {error}; check its quotes") from None
    return [name.strip() for name in header], lines


def _text(content: bytes) -> io.TextIOWrapper:
    """Its lines, without a copy of the whole."""
    return io.TextIOWrapper(io.BytesIO(content), "utf-8", newline="")


def _refuse_repeated(names: Sequence[str], source: str) -> None:
    repeated = [name for i, name in enumerate(names) if name in names[:i]]
    if repeated:
        raise InputError(
            f"{source} has more than one column named {repeated[0]!r}: rename or remove one"
        )


def joined(names: Sequence[Any], most: int = 5) -> str:
    """At most `most` names, comma separated, with a sign that there are more."""
    return ", ".join(map(str, names[:most])) + (", ..." if len(names) > most else "")
