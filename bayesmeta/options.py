"""The methods by name, and their options as NAME=VALUE."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, get_args, get_type_hints

from bayesmeta.results import LARGEST_WHOLE, InputError
from bayesmeta.typed import fits

METHODS = {
    "joint": "prior and posteriors descend together; what lme4's lmer does, where that applies",
    "laplace": "what lme4's glmer does",
    "maml": "a start from which a few gradient steps do well on held-out rows",
    "fomaml": "maml without second derivatives",
    "truncated_maml": "maml, differentiated through its last steps only",
    "reptile": "a start that moves towards where gradient descent from it ends",
    "imaml": "as maml, each task solved to the end under its pull towards the prior",
    "imaml_hf": "imaml, solved by Newton-CG",
    "variational_imaml": "imaml without held-out rows",
    "stochastic": "maml for a random algorithm: minibatches, Langevin noise, a mixture of several",
    "two_path": "the same for the mean of its runs, by separate runs forward and backward",
}


def check_numbers(flags: Mapping[str, int | None], *, least: int = 1) -> None:
    """Refuse numbers that are too small, or that torch cannot hold.

    Args:
        flags: value by the option's name; None is one that was not given.
        least: the smallest that will do.

    Raises:
        InputError: naming the option.

    Example:
        >>> check_numbers({"--ways": 0})
        Traceback (most recent call last):
        bayesmeta.results.InputError: --ways 0: give a whole number, 1 or more
    """
    for flag, value in flags.items():
        if value is not None and not least <= value <= LARGEST_WHOLE:
            bounds = f"{least} or more" if value < least else f"at most {LARGEST_WHOLE}"
            raise InputError(f"{flag} {value}: give a whole number, {bounds}")


def method_options(name: str) -> dict[str, Any]:
    """Every option of a method, with the type of its value.

    Raises:
        InputError: there is no such method.
    """
    from bayesmeta import methods
    from bayesmeta.method import Method

    if name not in METHODS:
        raise InputError(f"there is no method {name!r}: use one of {', '.join(METHODS)}")
    make, joint = getattr(methods, name), name == "joint"
    left_out = ("optimiser", "compile") if joint else ("warmup", "reset_every", "prior_update")
    renamed = {} if joint else {name: f"outer_{name}" for name in ("steps", "lr", "tolerance")}
    outer = {
        renamed.get(key, key): hint
        for key, hint in get_type_hints(Method).items()
        if key not in ("posterior", "inner", "gradient", "objective", *left_out)
    }
    hints, parameters = get_type_hints(make), inspect.signature(make).parameters.values()
    return {p.name: hints[p.name] for p in parameters if p.kind is p.KEYWORD_ONLY} | {
        key: hint for key, hint in outer.items() if key not in hints
    }


def read_options(texts: Sequence[str], method: str, known: dict[str, Any]) -> dict[str, Any]:
    """The values of "NAME=VALUE" texts.

    Args:
        texts: as they were given.
        method: its name, for errors.
        known: type of every option the method has.

    Raises:
        InputError: no "=", a name that is not known or comes twice, a value of another type, or
            no steps.

    Example:
        >>> read_options(["lam=0.5", "steps=32"], "imaml", {"lam": float | None, "steps": int})
        {'lam': 0.5, 'steps': 32}
    """
    values: dict[str, Any] = {}
    for text in texts:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not (name and equals and value):
            raise InputError(f"--option wants NAME=VALUE, such as lr=0.01, not {text!r}")
        if name not in known:
            raise InputError(f"{method} has no option {name!r}; it has {', '.join(known)}")
        if name in values:
            raise InputError(f"--option {name}= is given twice: give it once")
        values[name] = _value(value)
        if not fits(values[name], known[name]):
            kinds = get_args(known[name]) or (known[name],)
            wanted = [WORDS[kind] for kind in kinds if kind in WORDS]  # no objects in a text
            raise InputError(f"--option {name}= wants {' or '.join(wanted)}, not {value!r}")
        if name == "steps" and values[name] is not None and values[name] < 1:
            raise InputError(
                f"--option steps={value}: without a step nothing is adapted, and every task stays "
                "where it starts; give 1 or more"
            )
    return values


WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a word",
    type(None): "none",
}


def _value(text: str) -> Any:
    """A number, true, false, none, or the text itself."""
    named = {"true": True, "false": False, "none": None}
    if text.lower() in named:
        return named[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def listed(texts: Sequence[str] | None) -> tuple[str, ...]:
    """Names that were given one by one, or with commas between them.

    Example:
        >>> listed(["a, b", "c"])
        ('a', 'b', 'c')
    """
    parts = [part.strip() for text in texts or () for part in text.split(",")]
    return tuple(part for part in parts if part)


def widths(net: str | None) -> tuple[int, ...]:
    """Hidden widths from "40,40"; none where nothing was given.

    Raises:
        InputError: it is another text.
    """
    if net is None:
        return ()
    parts = [part.strip() for part in net.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise InputError(f"--net wants the widths of hidden layers, such as 40,40, not {net!r}")
    return tuple(map(int, parts))


def image_net(net: str | None) -> str | tuple[int, ...] | None:
    """A network for images: by name, or its widths."""
    return widths(net) if net is not None and net[:1].isdigit() else net
