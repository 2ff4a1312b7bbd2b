"""`python -m studies list` and `python -m studies run NAME`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bayesmeta.commands import usable_device
from bayesmeta.console import plainly, show
from bayesmeta.results import InputError
from studies._framework import FIGURES, ROOT, studies, study
from studies._pages import gallery, page
from studies._which import which

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__
)
ANSWERED = ("current", "drawn by older code", "stale", "quick")
Figures = Annotated[Path, typer.Option("--figures", help="The folder with the results.")]


@app.command("list")
@plainly
def list_studies(figures: Figures = FIGURES) -> None:
    """What each study asks, how long a full run takes, and what its committed table answers."""
    table = Table("study", "question", "full run", "state", "answer")
    for name, one in studies().items():
        state = one.state(figures)
        record = one.record(figures) or {}
        answer = one.answer(figures) if state in ANSWERED else ""
        seconds = "" if record.get("quick", True) else f"{record['seconds']:.0f} s"
        cells = (name, one.module.QUESTION, seconds, state, answer)
        table.add_row(*map(Text, cells))  # no markup: "E[g]" is not a style
    show(table)


@app.command()
@plainly
def run(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A study; see `list`.")],
    quick: Annotated[
        bool, typer.Option("--quick", help="Seconds instead of minutes; results mean little.")
    ] = False,
    device: Annotated[str, typer.Option(help="Where to compute: cpu, cuda.")] = "cpu",
    out: Annotated[
        Path | None, typer.Option(help="Where to write; figures, or a new folder with --quick.")
    ] = None,
) -> None:
    """Run one study and write its table, figures and record."""
    chosen = study(name)
    if out is None:
        out = Path(tempfile.mkdtemp(prefix=f"{name}-")) if quick else FIGURES
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is not a folder: choose another --out")
    usable_device(device)
    with Console(stderr=True).status(f"{name}: {chosen.module.QUESTION}"):
        record = chosen.run(quick=quick, device=device, out=out)
    typer.echo(f"{record['headline']}\n{record['seconds']:.0f} s; written to {out}")


@app.command()
@plainly
def draw(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Studies; see `list`.")],
    figures: Figures = FIGURES,
) -> None:
    """Draw figures and write sentences anew from the tables, without measuring again."""
    for one in [study(name) for name in names]:
        typer.echo(f"{one.name}: {', '.join(one.draw(figures)['figures'])}")


@app.command()
@plainly
def readme(figures: Figures = FIGURES) -> None:
    """Write the pages of studies/, and the gallery in README.md, from the committed tables."""
    (ROOT / "studies" / "README.md").write_text(page(figures), "utf-8")
    (ROOT / "studies" / "WHICH_METHOD.md").write_text(which(figures), "utf-8")
    path = ROOT / "README.md"
    before, _, rest = path.read_text("utf-8").partition("<!-- gallery -->")
    _, _, after = rest.partition("<!-- /gallery -->")
    text = f"{before}<!-- gallery -->\n{gallery(figures)}\n<!-- /gallery -->{after}"
    path.write_text(text, "utf-8")


if __name__ == "__main__":
    app(prog_name="python -m studies")
