"""The lme4-style formula: which column is the response, what is adapted, what is shared.

    Reaction ~ Days + (Days | Subject)

What stands in the bar is adapted (a weight for each task, with a prior); the rest of the common
part is shared (one weight for all). This file reads the sentence; `designs` turns it into numbers.
Nothing in a formula is run as code: a function must be one of `FUNCTIONS` or `STATEFUL`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
from formulae.environment import Environment
from formulae.parser import ParseError, Parser
from formulae.resolver import Resolver, ResolverError
from formulae.scanner import ScanError, Scanner
from formulae.terms import Call, Intercept, NegatedIntercept, Term, Variable
from formulae.terms.call_resolver import CallResolverError, LazyCall
from formulae.terms.terms import Model
from formulae.transforms import TRANSFORMS

from bayesmeta.results import InputError

ELEMENTWISE = ("log", "log2", "log10", "log1p", "exp", "expm1", "sqrt", "abs", "sin", "cos", "tanh")
FUNCTIONS: dict[str, Any] = {name: getattr(np, name) for name in ELEMENTWISE}
FUNCTIONS["np"] = SimpleNamespace(**FUNCTIONS)
FUNCTIONS["I"] = TRANSFORMS["I"]
ENVIRONMENT = Environment([FUNCTIONS])
STATELESS = ("I", *ELEMENTWISE)
STATEFUL = ("center", "scale", "standardize", "poly", "bs")
CALLABLE = ("I", "C", "offset", *ELEMENTWISE, *(f"np.{name}" for name in ELEMENTWISE), *STATEFUL)
# What formulae raises, a class for each stage of reading, and what a function of a formula raises.
UNREADABLE = (
    ScanError,
    ParseError,
    ResolverError,
    CallResolverError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
)


@dataclass(frozen=True, eq=False)
class Formula:
    """A formula, read but not yet applied to a table.

    Args:
        text: as written.
        response: the left side, as written.
        task: the grouping factor, "a:b" for an interaction.
        common: the terms of the common part, as `formulae` objects, intercept included.
        bar: the terms inside the bar.
    """

    text: str
    response: str
    task: str
    common: tuple[Any, ...]
    bar: tuple[Any, ...]

    @property
    def adapted(self) -> tuple[int, ...]:
        """Positions in `common` of the terms in the bar."""
        keys = [_key(term) for term in self.common]
        return tuple(sorted(keys.index(_key(term)) for term in self.bar))

    @property
    def predictors(self) -> tuple[str, ...]:
        """The columns that the common part uses, in order of appearance."""
        names = [str(name) for term in self.common for name in sorted(map(str, term.var_names))]
        return tuple(dict.fromkeys(name for name in names if name))

    def calls(self) -> list[LazyCall]:
        """All function calls of the common part, outermost first, in a fixed order."""
        found = []
        for term in self.common:
            for component in getattr(term, "components", ()):
                if isinstance(component, Call):
                    found.extend(nested_calls(component.call))
        return found


def parse_formula(text: str) -> Formula:
    """Read an lme4-style formula.

    Args:
        text: e.g. "Reaction ~ Days + (Days | Subject)".

    Raises:
        InputError: it is not a formula, or not one that a single family of tasks can express.

    Example:
        >>> formula = parse_formula("y ~ a + I(b**2) + (1 + a | g)")
        >>> formula.task, [term.name for term in formula.common], formula.adapted
        ('g', ['Intercept', 'a', 'I(b ** 2)'], (0, 1))
    """
    if text.count("~") != 1:
        raise InputError(
            f"the formula {text!r} needs one '~' between response and predictors, as in "
            "'y ~ x + (x | group)'"
        )
    response, right = (part.strip() for part in text.split("~"))
    if not response or not right:
        raise InputError(f"the formula {text!r} lacks a side of its '~': write y ~ x + (x | group)")
    model = _parse_right_side(right, text)
    task = _task(model, right, text)
    common = tuple(term for term in model.common_terms if not isinstance(term, NegatedIntercept))
    bar = tuple(term.expr for term in model.group_terms)
    formula = Formula(text, response, task, common, bar)
    _refuse_unshared(formula)
    _refuse_functions(formula)
    return formula


def parse_response_call(text: str) -> Call | None:
    """The function call on a formula's left side, as log(y); None when it is no call."""
    try:
        term = _resolved(text)
    except UNREADABLE:  # not a formula, so the caller takes it for the name of a column
        return None
    if not isinstance(term, Term) or not isinstance(term.components[0], Call):
        return None
    calls = nested_calls(term.components[0].call)
    unknown = [call.callee for call in calls if call.callee.split(".")[-1] not in STATELESS]
    if unknown:
        raise InputError(
            f"the response {text!r} uses {unknown[0]!r}: only {', '.join(STATELESS)} can be "
            "applied to a response"
        )
    return term.components[0]


def nested_calls(call: LazyCall) -> Iterator[LazyCall]:
    """A call and the calls among its arguments."""
    yield call
    for argument in (*call.args, *call.kwargs.values()):
        yield from _calls_in(argument)


def _calls_in(expression: Any) -> Iterator[LazyCall]:
    if isinstance(expression, LazyCall):
        yield from nested_calls(expression)
    else:
        for argument in getattr(expression, "args", ()):
            yield from _calls_in(argument)


def _resolved(text: str, *, add_intercept: bool = False) -> Any:
    """Parse all of `text`; formulae's own entry stops at the first token it cannot place."""
    parser = Parser(Scanner(text).scan(add_intercept=add_intercept))
    expression = parser.parse()
    if not parser.at_end():
        raise ValueError(f"{parser.peek().lexeme!r} is out of place")
    return Resolver(expression).resolve()


def _parse_right_side(right: str, text: str) -> Model:
    _refuse_bars(right, text)
    try:
        resolved = _resolved(right, add_intercept=True)
    except TypeError:
        raise InputError(
            f"the formula {text!r} combines terms in a way that cannot be read: write products "
            "out, as a:b, and a bar without intercept as (0 + x | group)"
        ) from None
    except UNREADABLE as error:
        reason = str(error).rstrip(".")
        raise InputError(
            f"the formula {text!r} cannot be read ({reason}): write it like "
            "'y ~ x + (x | group)', with unusual column names in `backquotes`"
        ) from None
    return resolved if isinstance(resolved, Model) else Model(resolved)


def _refuse_bars(right: str, text: str) -> None:
    if right.count("`") % 2:
        raise InputError(f"the formula {text!r} has a backquote that is not closed: close it")
    outside = "".join(right.split("`")[::2])
    if "||" in outside.replace(" ", ""):
        raise InputError(
            f"the formula {text!r} has '||': write one '|' and ask for uncorrelated weights by the "
            'prior form "diagonal"'
        )
    if "|" not in outside:
        raise InputError(
            f"the formula {text!r} has no bar: say what differs between tasks, as in "
            "(1 | group) or (x | group)"
        )


def _task(model: Model, right: str, text: str) -> str:
    """The one grouping factor."""
    factors = list(dict.fromkeys(term.factor.name for term in model.group_terms))
    if not factors:
        raise InputError(f"the formula {text!r} subtracts its bar: keep one (x | group)")
    if not model.common_terms:
        raise InputError(
            f"the formula {text!r} has nothing outside its bar: write the bar in brackets after "
            "the common part, as in y ~ x + (x | group)"
        )
    if len(factors) > 1:
        raise InputError(
            f"the formula {text!r} has {len(factors)} grouping factors ({', '.join(factors)}): "
            "crossed and nested groups are not supported, so keep one, or use their interaction "
            "(1 | a:b)"
        )
    if "".join(right.split("`")[::2]).count("|") > 1:
        raise InputError(
            f"the formula {text!r} has several bars on {factors[0]!r}: write one bar and ask for "
            'uncorrelated weights by the prior form "diagonal"'
        )
    components = model.group_terms[0].factor.components
    if not all(isinstance(component, Variable) for component in components):
        raise InputError(
            f"the formula {text!r} groups by {factors[0]!r}: group by a column, or by an "
            "interaction of columns a:b"
        )
    return factors[0]


def _key(term: Any) -> frozenset[str]:
    """What makes two terms the same: their components in any order."""
    if isinstance(term, Intercept):
        return frozenset()
    return frozenset(str(component.name) for component in term.components)


def _refuse_unshared(formula: Formula) -> None:
    """The bar's terms must be in the common part: θ₀ is the mean of what the tasks adapt."""
    names = [term.name for term in formula.common]
    repeated = [name for i, name in enumerate(names) if name in names[:i]]
    if repeated:
        raise InputError(
            f"the formula {formula.text!r} has two terms that are written {repeated[0]!r}: "
            "make one of them a column of its own"
        )
    present = {_key(term) for term in formula.common}
    absent = [term for term in formula.bar if _key(term) not in present]
    if absent and isinstance(absent[0], Intercept):
        raise InputError(
            f"the formula {formula.text!r} has an intercept in the bar but none in the common "
            f"part: drop the 0 from the common part, or write (0 + ... | {formula.task})"
        )
    if absent:
        raise InputError(
            f"the formula {formula.text!r} has {absent[0].name!r} in the bar but not in the "
            "common part: add it to the common part, as its weights vary around a mean"
        )


def _refuse_functions(formula: Formula) -> None:
    for call in formula.calls():
        if call.callee not in CALLABLE:
            raise InputError(
                f"the formula {formula.text!r} uses the function {call.callee!r}: known are "
                f"{', '.join(('I', 'C', 'offset', *ELEMENTWISE, *STATEFUL))}; compute anything "
                "else as a column first"
            )
