"""What one check of a fit found, for a person and for a program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bayesmeta.results import Flag

MOST_NAMED = 5


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Args:
        check: "trace", "pareto_k", "tasks", "data", "boundary", "reachability" or "meta_gradient".
        ok: whether there is nothing to do.
        sentence: what was found and, unless ok, what to try.
        flags: the tasks it concerns, each with its own sentence.
        details: its numbers, where there are more than the sentence holds; NaN is None.
    """

    check: str
    ok: bool
    sentence: str
    flags: tuple[Flag, ...] = ()
    details: dict[str, Any] | None = None


def named(flags: Sequence[Flag]) -> str:
    """The first of the tasks flagged, and how many more there are."""
    return listed([flag.task for flag in flags])


def listed(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more
