"""A table as its owner sees it: a file or a DataFrame, and a name for every cell.

Reading changes nothing: every cell of a file stays the text it was, and what it means (a number, a
category, a task) is decided column by column in `columns`. A file that is not what it seems (a
folder, a spreadsheet, half-converted text, lines of different lengths) is refused with the line.
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

from bayesmeta.results import InputError

DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "vertical bar"}
UTF16 = (b"\xff\xfe", b"\xfe\xff")
SIGNATURES = {
    b"PK\x03\x04": "a spreadsheet or zip archive",
    b"\x1f\x8b": "a gzip archive",
    b"\xd0\xcf\x11\xe0": "an old Excel spreadsheet",
    b"%PDF": "a PDF",
}


@dataclass(frozen=True, eq=False)
class Table:
    """A table and how to name its parts to the person who made it.

    Args:
        frame: the columns; from a file all cells are text.
        source: the file's name, or what stands for it, e.g. "DataFrame".
        text: the whole text of the file, to find line numbers in; None for a DataFrame.
        delimiter: what separates the file's fields.
    """

    frame: pd.DataFrame
    source: str
    text: str | None = None
    delimiter: str = ","

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(self.frame.columns)

    def row(self, position: int) -> str:
        """What to call a row: its line in an editor, or its index label in a DataFrame."""
        if self.text is None:
            return f"index {self.frame.index[position : position + 1].tolist()[0]!r}"
        return f"line {_line_of_record(self.text, self.delimiter, position + 1)}"

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
        value = self.frame[column].iloc[places[0]] if column in self.frame.columns else ""
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
    return open_table(path).frame


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
    text = _decode(_read_bytes(path), path.name)
    delimiter = _delimiter(text)
    header, lines = _header(text, delimiter, path.name)
    _refuse_repeated([name for name in header if name], path.name)
    _refuse_ragged(text, delimiter, len(header), path.name)
    body = pd.read_csv(
        io.StringIO(text),
        sep=delimiter,
        header=None,
        names=list(range(len(header))),
        skiprows=lines,
        dtype=str,
        na_filter=False,
        index_col=False,
        # The C parser also skips lines of blanks only, which csv counts as one empty field.
        skip_blank_lines=True,
    )
    frame = pd.DataFrame({name: body[i] for i, name in enumerate(header) if name})
    return Table(frame, path.name, text, delimiter)


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


def _decode(content: bytes, source: str) -> str:
    """UTF-8 text with unix line ends, or an InputError that names the first bad line."""
    for signature, kind in SIGNATURES.items():
        if content.startswith(signature):
            raise InputError(f"{source} is {kind}, not text: export the table as a CSV file")
    if content.startswith(UTF16):
        raise InputError(f"{source} is UTF-16 text: save it as UTF-8")
    if b"\0" in content:
        raise InputError(f"{source} is a binary file, not text: give a CSV file")
    content = content.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    if not content.strip():
        raise InputError(f"{source} is empty: it needs a header line and rows")
    try:
        return content.decode("utf-8")
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


def _has_multibyte(content: bytes) -> bool:
    """Whether some character outside ASCII is spelt as UTF-8 spells it."""
    return any(ord(char) > 127 for char in content.decode("utf-8", errors="ignore"))


def _delimiter(text: str) -> str:
    """The delimiter that splits the header into most fields; the comma wins ties."""
    header = text.lstrip("\n").split("\n", 1)[0]
    return max(DELIMITERS, key=lambda sign: len(next(csv.reader([header], delimiter=sign), [])))


def _header(text: str, delimiter: str, source: str) -> tuple[list[str], int]:
    """The header's names, and the number of lines up to its end."""
    reader = csv.reader(io.StringIO(text), delimiter=delimiter)
    try:
        header = next(record for record in reader if record)
        lines = reader.line_num
        if next((record for record in reader if record), None) is None:
            raise InputError(f"{source} has a header but no rows: there is nothing to fit")
    except csv.Error as error:
        raise InputError(f"{source}, line 1: {error}; check its quotes") from None
    return [name.strip() for name in header], lines


def _refuse_repeated(names: Sequence[str], source: str) -> None:
    repeated = [name for i, name in enumerate(names) if name in names[:i]]
    if repeated:
        raise InputError(
            f"{source} has more than one column named {repeated[0]!r}: rename or remove one"
        )


def _refuse_ragged(text: str, delimiter: str, width: int, source: str) -> None:
    """Every record has as many fields as the header; blank lines are skipped."""
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, strict=True)
    try:
        fields = np.fromiter(map(len, reader), dtype=np.int64)
    except csv.Error as error:
        line = _line_of_first_error(text, delimiter)
        raise InputError(
            f"{source}, line {line}: {error}; look for a quote that is not closed"
        ) from None
    fields = fields[fields > 0]
    wrong = np.flatnonzero(fields != width)
    if len(wrong):
        line = _line_of_record(text, delimiter, int(wrong[0]))
        count = int(fields[wrong[0]])
        raise InputError(
            f"{source}, line {line} has {count} field{'s' * (count != 1)} but the header has "
            f"{width}: correct the line, or quote a value that holds a {DELIMITERS[delimiter]}"
        )


def _line_of_first_error(text: str, delimiter: str) -> int:
    """The line where the first record starts that csv refuses."""
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, strict=True)
    before = 0
    try:
        for _ in reader:
            before = reader.line_num
    except csv.Error:
        pass
    return before + 1


def _line_of_record(text: str, delimiter: str, record: int) -> int:
    """The line in an editor where the record starts (the header is record 0)."""
    reader = csv.reader(io.StringIO(text), delimiter=delimiter)
    before = 0
    for fields in reader:
        if fields:
            if record == 0:
                return before + 1
            record -= 1
        before = reader.line_num
    return before


def joined(names: Sequence[Any], most: int = 5) -> str:
    """At most `most` names, comma separated, with a sign that there are more."""
    return ", ".join(map(str, names[:most])) + (", ..." if len(names) > most else "")
