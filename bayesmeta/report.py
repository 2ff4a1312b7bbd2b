"""What a person reads at the end of a command: tables of numbers, sentences, nothing computed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from bayesmeta.console import show, show_json

if TYPE_CHECKING:
    from bayesmeta.commands import Rows
    from bayesmeta.fit import Fit

MOST_COORDINATES = 20
LARGEST = 1e9  # nats written out in full
MOST_CORRELATIONS = 6
MOST_ROWS = 30


def number(value: float | None) -> str:
    """Five significant digits, with a true minus sign; an empty cell for what is not known.

    Example:
        >>> number(251.40510485), number(-0.656136), number(float("nan")), number(None)
        ('251.41', '−0.65614', '', '')
    """
    return "" if value is None or value != value else f"{value:.5g}".replace("-", "−")


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A plain table: the first column names the row, the others hold numbers."""
    drawn = Table(title=title or None, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    for place, column in enumerate(columns):
        drawn.add_column(column, justify="right" if place else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*map(Text, row))
    return drawn


def indented(line: str) -> Padding:
    """A sentence, set in by two characters."""
    return Padding(Text(line), (0, 0, 0, 2), expand=False)


def sentences(title: str, lines: Sequence[str]) -> list[RenderableType]:
    """A heading and a line each; nothing at all when there are none."""
    return [Text(title, style="bold"), *map(indented, lines)] if lines else []


def tell_fit(fit: Fit, run: Path, *, as_json: bool, quiet: bool) -> None:
    """Print a fit that was saved, as was asked for."""
    if as_json:
        show_json(fit.record() | {"run": str(run)})
    elif not quiet:
        show(fit_report(fit, run))


def fit_report(fit: Fit, run: Path) -> Group:
    """The table at the end of `bayesmeta fit`.

    Args:
        fit: the fit.
        run: its run folder.
    """
    record = fit.record()
    known = fit.family.table
    data = f"{record['tasks']} tasks, {record['observations']} observations"
    head = f"{known.formula or known.response} · {data}" if known else data
    if record["stream"] is not None:
        head = _stream(record["stream"], record["tasks"])
    prior: list[RenderableType] = [_prior_table(fit, record)]
    if record["shared"]:
        prior.append(_shared_table(record["shared"], fit.standard_errors))
    if record["noise"] is not None:
        prior.append(Text(f"Noise sd      {number(record['noise'])}"))
    scores = [
        Text(_evidence(fit, record["log_evidence"])),
        *_query_image(fit, record["log_evidence"]),
        Text(f"Flagged       {len(record['flagged'])} of {record['tasks']} tasks"),
    ]
    # The weights of a network by their quartiles are the last thing to be looked at.
    many = record["weights"]["number"] > MOST_COORDINATES
    body: list[RenderableType] = [Text(head, style="bold"), Text()]
    body += [*scores, *prior] if many else [*prior, *scores]
    body += sentences("Tasks that need a look", _shortened(_by_sentence(record["flagged"])))
    body += sentences("Notes", fit.notes)
    body.append(Text(f"{number(record['seconds'])} s, saved in {run}"))
    return Group(*body)


def _stream(stream: Mapping[str, Any], tasks: int) -> str:
    """What the tasks were drawn from; those of the fit's posteriors are so many more."""
    if stream.get("kind") != "few_shot":
        return f"a stream of tasks; posteriors of {tasks}"
    turned = ", with rotations" if stream["rotations"] else ""
    kept = f", {stream['held_out']} held out" if stream.get("held_out") else ""
    channels, height, width = stream["shape"]
    colours = {1: "grey", 3: "in colour"}.get(channels, f"of {channels} channels")
    return (
        f"{stream['ways']}-way {stream['shots']}-shot, {stream['queries']} queries a class · "
        f"{stream['source']}: {stream['classes']} classes{turned}{kept} · "
        f"{width}×{height} pixels, {colours}"
    )


def _prior_table(fit: Fit, record: Mapping[str, Any]) -> Table:
    names = list(record["theta0"])
    if record["weights"]["number"] > MOST_COORDINATES:
        return _prior_summary(record["weights"])
    errors = [fit.standard_errors.get(name, math.nan) for name in names]
    known = any(error == error for error in errors)
    spread = any(sd is not None for sd in record["prior_sd"].values())
    correlated = len(names) if spread and 1 < len(names) <= MOST_CORRELATIONS else 1
    columns = ["Prior", "mean", *["s.e."] * known, "sd"]
    columns += ["correlation", *[""] * (correlated - 2)] * (correlated > 1)
    rows = []
    for i, name in enumerate(names):
        row = [name, number(record["theta0"][name]), *[number(errors[i])] * known]
        row += [number(record["prior_sd"][name])]
        row += [_correlation(record, i, j) for j in range(correlated - 1)]
        rows.append(row)
    return table("", columns, rows)


def _correlation(record: Mapping[str, Any], i: int, j: int) -> str:
    value = record["prior_correlation"][i][j]
    return f"{value:.3f}".replace("-", "−") if j < i and value is not None else ""


def _prior_summary(weights: Mapping[str, Any]) -> Table:
    """For a network: the weights' means and sds by their quartiles, not one by one."""
    rows = [
        [label, *map(number, weights[f"{key}_quartiles"])]
        for label, key in (("mean", "theta0"), ("sd", "prior_sd"))
        if weights[f"{key}_quartiles"] is not None
    ]
    columns = ["least", "25 %", "median", "75 %", "most"]
    return table("", [f"Prior of {weights['number']} weights", *columns], rows)


def _evidence(fit: Fit, nats: float | None) -> str:
    """−M by what it is called, how it was computed, and the solver where that does not say it."""
    kind = fit.evidence_kind
    from bayesmeta.judging import evidence_name

    label, how = evidence_name(kind)
    if kind == "quadrature":
        how = f"quadrature, {getattr(fit.choices.objective, 'points', '')} points a weight"
    value = "not finite"
    if nats is not None:
        form = ".3f" if abs(nats) < LARGEST else ".4g"
        value = f"{nats:{form}} nats".replace("-", "−")
    solver = "" if fit.solver == "exact" else f", {fit.solver} solver"
    return f"{label:<14}{value} ({how}{solver})"


def _query_image(fit: Fit, nats: float | None) -> list[Text]:
    """The score of one query image, in tasks of the classes that were trained on."""
    stream = fit.stream or {}
    if nats is None or fit.evidence_kind != "validation" or stream.get("kind") != "few_shot":
        return []
    each = nats / (len(fit.family) * stream["ways"] * stream["queries"])
    found, chance = (
        f"{value:.4f}".replace("-", "−") for value in (each, -math.log(stream["ways"]))
    )
    return [Text(f"A query image {found} nats, of classes trained on (by chance {chance})")]


def _shared_table(shared: Mapping[str, Any], errors: Mapping[str, Any]) -> Table:
    """Shared coefficients; one that is an array is told by its size."""
    rows = []
    for name, value in shared.items():
        cell = number(value) if isinstance(value, float) else f"{_count(value)} values"
        rows.append([name, cell, number(float(errors[name])) if name in errors else ""])
    if not errors:
        return table("", ["Shared", "value"], [row[:2] for row in rows])
    return table("", ["Shared", "value", "s.e."], rows)


def _count(value: Any) -> int:
    return sum(map(_count, value)) if isinstance(value, list) else 1


def rows_report(title: str, rows: Rows, out: Path | None) -> Group:
    """The first rows of a result, where the rest is, and what is to be said about it.

    Args:
        title: what the rows are.
        rows: the result.
        out: the CSV that has every row, if one was written.
    """
    if out is not None:
        body: list[RenderableType] = [Text(f"{title}: {len(rows.cells)} rows in {out}")]
    else:
        cells = [[number(c) if isinstance(c, float) else str(c) for c in row] for row in rows.cells]
        body = [table(title, rows.header, cells[:MOST_ROWS])]
        if len(cells) > MOST_ROWS:
            body.append(Text(f"... and {len(cells) - MOST_ROWS} more; --out FILE.csv writes all"))
    return Group(*body, *map(Text, rows.remarks))


def check_report(checks: Mapping[str, Any]) -> Group:
    """What `bayesmeta check` found: a line per check, then the tasks concerned."""
    drawn = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for finding in checks["findings"]:
        verdict = "ok" if finding["ok"] else "look"
        drawn.add_row(finding["check"], verdict, Text(finding["sentence"]))
    if checks["coverage"] is not None:
        shares = [f"{share:.1%} at {float(p):.0%}" for p, share in checks["coverage"].items()]
        drawn.add_row("coverage", "", f"{', '.join(shares)}, on rows the fit has seen")
    if checks["few_shot"] is not None:
        for kind in ("inductive", "transductive"):
            drawn.add_row(kind, "", _scores(checks["few_shot"], kind))
    lines = _by_sentence([flag for finding in checks["findings"] for flag in finding["flagged"]])
    body = sentences("Tasks that need a look", _shortened(lines))
    return Group(drawn, *body, *sentences("Notes", checks["notes"]))


def _scores(scores: Mapping[str, Any], kind: str) -> str:
    """New classes told apart, in a line."""
    found = scores[kind]
    half = found["accuracy"] - found["accuracy_interval"][0]
    return (
        f"accuracy {found['accuracy']:.1%} ± {half:.1%} on {scores['tasks']} tasks of classes held "
        f"out, {found['nll']:.3f} nats a query image, calibration error "
        f"{found['calibration_error']:.1%}"
    )


def figure_report(path: Path, caption: str) -> Group:
    """Where a figure is, and what it shows in this fit's numbers."""
    return Group(Text(str(path)), indented(caption))


def example_report(about: str, fit: Fit, run: Path, figures: Sequence[tuple[Path, str]]) -> Group:
    """One fit of the demonstration, with its figures."""
    drawn = [figure_report(path, caption) for path, caption in figures]
    return Group(Text(about, style="bold"), Text(), fit_report(fit, run), *drawn, Text())


def _by_sentence(flags: Sequence[Mapping[str, str]]) -> list[str]:
    """A line per sentence, with the tasks of which it is said, each once."""
    tasks: dict[str, dict[str, None]] = {}
    for flag in flags:
        tasks.setdefault(flag["why"], {})[flag["task"]] = None
    return [f"{', '.join(names)}: {why}" for why, names in tasks.items()]


def _shortened(lines: list[str]) -> list[str]:
    if len(lines) <= MOST_ROWS:
        return lines
    return [*lines[:MOST_ROWS], f"... and {len(lines) - MOST_ROWS} more; --json lists all"]
