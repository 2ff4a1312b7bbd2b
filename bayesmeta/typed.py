"""Whether a value that came from a file or a command line is of the type that its reader is for."""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints, is_typeddict

from bayesmeta.results import InputError

T = TypeVar("T")
NUMBER = (int, float)
BROKEN = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, RuntimeError),
    *(TypeError, ValueError),
)
"""What goes wrong where a record says something else than what was written there."""


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type; a whole number is also a number, True and False are neither.

    A protocol fits everything: it says what an object does, which no file holds.

    Example:
        >>> fits([1, 2.5], list[float]), fits(True, int), fits({"a": None}, dict[str, int | None])
        (True, False, True)
    """
    origin, inside = get_origin(hint), get_args(hint)
    if hint is Any or getattr(hint, "_is_protocol", False):
        return True
    if origin in (Union, types.UnionType):
        return any(fits(value, one) for one in inside)
    if origin is Literal:
        return isinstance(value, str) and value in inside
    if is_typeddict(hint):
        known = get_type_hints(hint)
        return isinstance(value, dict) and all(
            name in value and fits(value[name], of) for name, of in known.items()
        )
    if origin in (dict, Mapping):
        key, of = inside
        return isinstance(value, dict) and all(
            fits(k, key) and fits(v, of) for k, v in value.items()
        )
    if origin in (list, tuple):
        return isinstance(value, origin) and all(fits(one, inside[0]) for one in value)
    if hint is float:
        return type(value) in NUMBER
    if hint in (None, types.NoneType):
        return value is None
    return type(value) is hint if hint is int else isinstance(value, origin or hint)


def made(kind: type[T], values: Mapping[str, Any]) -> T:
    """A dataclass of values that were read, each of the type that its field says.

    Raises:
        InputError: a value is of another type.
        TypeError: a field has no value, or a value has no field.
    """
    refuse_misfits(kind, values)
    return kind(**values)


def refuse_misfits(kind: Any, values: Mapping[str, Any]) -> None:
    """Say no to values of other types than those of the fields, by name, of a class.

    Raises:
        InputError: naming the first.
    """
    hints = get_type_hints(kind)
    for name, value in values.items():
        if name in hints and not fits(value, hints[name]):
            raise InputError(
                f"{name} of a {kind.__name__} is {shortened(value)}, which is not what is written "
                "there: the record was changed"
            )


def shortened(value: Any, most: int = 40) -> str:
    """A value in a sentence."""
    text = ascii(value)
    return text if len(text) <= most else f"{text[:most]}..."
