"""What is done to a CSV: by chance, by a spreadsheet, by a person in a hurry."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

Rows = list[list[str]]
Spoil = Callable[[str, random.Random], bytes]
# fmt: off
NOT_NUMBERS = ("NaN", "nan", "inf", "-Infinity", "", " ", "NA", "null", "abc", "#REF!", "-", ".",
               "1.2.3", "0x1F", "1_000", "١٢", "½", "½", "1e999", "TRUE", "--1", "1+2j", "∞")
DATES = ("2024-01-31", "31/01/2024", "12:30", "Jan 5", "2024-01-31T12:00Z")
COMMAS = ('"1,5"', '"1.000,5"', "1;5", '"1 000"', "1'000", "1\u00a0000", "12 %", "$5")
MAGNITUDES = ("1e-300", "1e300", "-1e300", "1e150", "1e-320", "1e154", "99999999999999999999999",
              "0.1e-200", "1e15", "-1e15", "4503599627370497.5", "-0")
LONG = ("9" * 10**5, "a" * 10**5, '"' + "b,\n" * 30000 + '"', "0." + "1" * 10**5, "=" * 10**5)
QUOTES = ('"', '""', '"a', 'a"b', '"a"b', "'1'", '"1"', '"1\n"', '"a\nb"')
TASKS = ("new", "S0", " s0", "s0 ", "s0:s1", "NA", "0", "s\u200b0", "日本", "a\tb", "é", "e\u0301")
# fmt: on


def _cell(values: Sequence[str]) -> Spoil:
    def spoiled(text: str, chance: random.Random) -> bytes:
        rows = _rows(text)
        row = chance.randrange(1, len(rows))
        rows[row][chance.randrange(len(rows[0]))] = chance.choice(values)
        return _text(rows)

    return spoiled


def _column(values: Sequence[str]) -> Spoil:
    """One value in all cells of a column, or each time another one."""

    def spoiled(text: str, chance: random.Random) -> bytes:
        rows = _rows(text)
        place, one = chance.randrange(len(rows[0])), chance.choice((*values, None))
        for row in rows[1:]:
            row[place] = chance.choice(values) if one is None else one
        return _text(rows)

    return spoiled


def _digit(text: str, chance: random.Random) -> bytes:
    """One digit is another one: what nobody can see, and the fingerprint must."""
    places = [i for i, letter in enumerate(text) if letter.isdigit() and i > text.index("\n")]
    place = chance.choice(places)
    other = chance.choice([d for d in "0123456789" if d != text[place]])
    return (text[:place] + other + text[place + 1 :]).encode()


def _lines(text: str, chance: random.Random) -> bytes:
    lines = text.splitlines(keepends=True)
    one = chance.randrange(1, len(lines))
    return "".join(
        chance.choice(
            (
                lines[:one] + lines[one + 1 :],
                lines[:one] + [lines[one]] + lines[one:],
                [*lines[:one], lines[one].replace(",", "", 1), *lines[one + 1 :]],
                [*lines[:one], lines[one].rstrip("\n") + ",1\n", *lines[one + 1 :]],
                [*lines[:one], "\n", "  \n", *lines[one:]],
                [*lines[:one], ",,,\n", *lines[one:]],
                [*lines[:one], lines[0], *lines[one:]],
                lines[:1],
                lines[1:],
                [lines[0], *reversed(lines[1:])],
                [lines[0], lines[one]],
                ["# a comment\n", *lines],
            )
        )
    ).encode()


def _header(text: str, chance: random.Random) -> bytes:
    header, rest = text.split("\n", 1)
    names = header.split(",")
    one = chance.randrange(len(names))
    how: list[Callable[[str], str]] = [
        str.upper, lambda name: f" {name} ", lambda name: "", lambda name: names[one - 1],
        lambda name: f'"{name}"', lambda name: f"{name},{name}", lambda name: name[:-1] or "q",
        lambda name: f"{name}\u200b", lambda name: "x" * 10**5, lambda name: f"`{name}`",
    ]  # fmt: skip
    names[one] = chance.choice(how)(names[one])
    return (",".join(names) + "\n" + rest).encode()


def _delimiters(text: str, chance: random.Random) -> bytes:
    sign = chance.choice((";", "\t", "|", " ", ":", "^", ", ", "\x1f"))
    lines = text.split("\n")
    some = chance.random() < 0.3
    return "\n".join(
        line if some and chance.random() < 0.5 else line.replace(",", sign) for line in lines
    ).encode()


def _encoding(text: str, chance: random.Random) -> bytes:
    rows = _rows(text)
    rows[chance.randrange(1, len(rows))][0] = "Zürich"
    changed = _text(rows).decode()
    how = chance.choice(("utf-16", "utf-16-le", "latin-1", "utf-32", "utf-8-sig", "utf-7", "cp500"))
    return changed.encode(how)


def _bytes(text: str, chance: random.Random) -> bytes:
    content = bytearray(text.encode())
    for _ in range(chance.choice((1, 1, 3, 20))):
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    return bytes(content)


def _controls(text: str, chance: random.Random) -> bytes:
    """NULs, byte order marks, end-of-file signs, and lines that end in three ways."""
    content = text.encode()
    place = chance.randrange(len(content))
    what = chance.randrange(7)
    if what < 4:
        sign = (b"\0", b"\xef\xbb\xbf", b"\x1a", b"\x0c")[what]
        place = 0 if what == 1 and chance.random() < 0.5 else place
        return content[:place] + sign + content[place:]
    ends = ((b"\r\n",), (b"\r",), (b"\n", b"\r\n", b"\r", b"\n\n", b"\n\r"))[what - 4]
    return b"".join(line + chance.choice(ends) for line in content.splitlines())


def _cut(text: str, chance: random.Random) -> bytes:
    return text.encode()[: chance.choice((0, 1, chance.randrange(len(text)), len(text) - 1))]


def _tasks(text: str, chance: random.Random) -> bytes:
    """One row to a task, one task, a task of one row, the same name spelt in two ways."""
    rows, what = _rows(text), chance.randrange(4)
    for i, row in enumerate(rows[1:]):
        if what == 0:
            row[0] = f"task {i}"
        elif what == 1:
            row[0] = "one"
        elif what == 2 and i == 0:
            row[0] = "lone"
        elif what == 3 and chance.random() < 0.5:
            row[0] = chance.choice(TASKS)
    return _text(rows)


SPOILS: dict[str, Spoil] = {
    "cell: no number": _cell(NOT_NUMBERS),
    "cell: date": _cell(DATES),
    "cell: comma, unit": _cell(COMMAS),
    "cell: magnitude": _cell(MAGNITUDES),
    "cell: very long": _cell(LONG),
    "cell: quotes": _cell(QUOTES),
    "cell: a digit": _digit,
    "column: magnitude": _column(MAGNITUDES),
    "column: constant": _column(("0", "1", "1e-300", "a", "")),
    "tasks": _tasks,
    "lines": _lines,
    "header": _header,
    "delimiters": _delimiters,
    "encoding": _encoding,
    "bits": _bytes,
    "control characters": _controls,
    "cut off": _cut,
}


def _rows(text: str) -> Rows:
    return [line.split(",") for line in text.splitlines()]


def _text(rows: Rows) -> bytes:
    return ("\n".join(",".join(row) for row in rows) + "\n").encode()
