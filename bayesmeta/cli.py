"""The command line: `bayesmeta fit · adapt · predict · plot · check · demo`.

Results go to stdout, progress and errors to stderr. Bad input is one sentence and exit code 2.
Everything heavy is imported inside the commands' work, so that `--help` answers at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from bayesmeta import __version__, commands, interrupted, report
from bayesmeta.atomic import refuse_existing
from bayesmeta.commands import Choices, Columns
from bayesmeta.console import ProgressBar, plainly, show, show_json, warn
from bayesmeta.image_tasks import Pictures, fit_images
from bayesmeta.options import METHODS, check_numbers, image_net, listed, widths
from bayesmeta.results import InputError

app = typer.Typer(
    name="bayesmeta",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, from `bayesmeta fit`.")]
New = Annotated[Path, typer.Argument(metavar="NEW.csv", help="A CSV with the fitted columns.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an earlier result.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
OutCsv = Annotated[Path | None, typer.Option("--out", help="Write every row to this CSV.")]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


def _methods() -> str:
    """The methods by name, a line each, left as they are by the formatter of help texts."""
    width = max(map(len, METHODS)) + 2
    lines = [f"  {name:{width}}{about}" for name, about in METHODS.items()]
    return "\n".join(["\b", "Methods:", *lines])


@app.callback()
def top(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    """Fit a Gaussian prior over a model's weights to a family of related tasks.

    Start with: bayesmeta fit DATA.csv --formula "y ~ x + (x | task)"
    or, for few-shot images: bayesmeta fit IMAGES --ways 5 --shots 1
    """


@app.command(epilog=_methods())
@plainly
def fit(
    context: typer.Context,
    data: Annotated[
        Path | None,
        typer.Argument(
            metavar="DATA.csv|IMAGES",
            help="A table with one row per observation; or a folder of images: one folder per "
            "class, or Omniglot.",
        ),
    ] = None,
    formula: Annotated[
        str | None, typer.Option(help='Like lme4: "y ~ x + (x | task)"; in the bar = adapted.')
    ] = None,
    task: Annotated[str | None, typer.Option(help="The column that names the task.")] = None,
    x: Annotated[
        list[str] | None, typer.Option(help="Predictors: repeat, or a,b; none: intercept only.")
    ] = None,
    y: Annotated[str | None, typer.Option(help="The response, or successes/trials.")] = None,
    likelihood: Annotated[
        str | None,
        typer.Option(
            help="gaussian (the default), student_t, bernoulli, binomial, categorical, poisson, "
            "negative_binomial"
        ),
    ] = None,
    offset: Annotated[str | None, typer.Option(help="Column added to the predictor.")] = None,
    exposure: Annotated[str | None, typer.Option(help="Column whose log is an offset.")] = None,
    standard_error: Annotated[
        str | None, typer.Option(help="Column of known standard errors of y.")
    ] = None,
    reml: Annotated[
        bool, typer.Option("--reml", help="Restricted maximum likelihood (exact fits).")
    ] = False,
    hyperprior: Annotated[
        str | None, typer.Option(help="boundary-avoiding keeps every prior sd above zero.")
    ] = None,
    ways: Annotated[
        int | None, typer.Option(help="Images: classes of a task, by default 5.")
    ] = None,
    shots: Annotated[
        int | None, typer.Option(help="Images: how many of a class to adapt to, by default 1.")
    ] = None,
    queries: Annotated[
        int | None, typer.Option(help="Images: how many more to tell apart, by default 15.")
    ] = None,
    rotations: Annotated[
        bool,
        typer.Option("--rotations", help="Images: a class turned by 90 degrees is another one."),
    ] = False,
    filters: Annotated[int | None, typer.Option(help="Images: of conv4, by default 64.")] = None,
    batch_norm: Annotated[
        str | None,
        typer.Option(
            help="Images: statistics of transductive (the query images together, as in the papers; "
            "the default) or support (one query image at a time)."
        ),
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(
            help="Images: pixels a side; default: 28 of Omniglot, else as they are or 84."
        ),
    ] = None,
    grey: Annotated[bool, typer.Option("--grey", help="Images: turn colours to grey.")] = False,
    train_classes: Annotated[
        int | None,
        typer.Option(
            help="Images: train on so many classes, drawn by the seed, and hold the others out; by "
            "default 1200 of Omniglot, else three quarters."
        ),
    ] = None,
    net: Annotated[
        str | None,
        typer.Option(
            help="Table: a tanh network of these widths, 40,40. Images: conv4 (the default), "
            "dense, or widths."
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(help="How to fit: one of those below; joint for a table, maml for images."),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="Of the method, e.g. lam=0.5; repeat for more. A wrong name lists them all.",
        ),
    ] = None,
    covariance: Annotated[
        str | None,
        typer.Option(
            "--covariance",
            "--posterior",
            help="Of each task's posterior: full, diagonal, lowrank(r), point. For joint, laplace "
            "(default: full, or diagonal for a network) and variational_imaml (point).",
        ),
    ] = None,
    prior: Annotated[
        str | None,
        typer.Option(
            help="Of the prior: full, diagonal, lowrank(r), block, isotropic. Default, for joint "
            "and laplace: full, or diagonal for a network; else the method's own."
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            help="Steps of the outer loop, at most: by default 500, or 5000 where steps are "
            "random, as for images and with --batch."
        ),
    ] = None,
    batch: Annotated[
        int | None, typer.Option(help="Tasks per step; all of a table by default, 16 of images.")
    ] = None,
    chunk_size: Annotated[
        int | None, typer.Option(help="Tasks at a time, to save memory; the result is the same.")
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(help="Images: of the network's products: float32, tf32 or bfloat16."),
    ] = None,
    checkpoint_every: Annotated[
        int | None,
        typer.Option(
            help="Steps after which a fit by adam or sgd writes where it stands to "
            "RUN.checkpoint, from where --resume RUN or the same command goes on; by default 100."
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Go on with a fit that was interrupted; give no more."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of every random number.")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...")] = None,
    out: Annotated[
        Path | None, typer.Option(help="The run folder; runs/<name of DATA> by default.")
    ] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Fit a prior to the tasks of a CSV, or of a folder of images; save it as a run folder."""
    if resume is not None:
        fitted = interrupted.ended(resume, quiet=quiet)
        if fitted is None:
            context.params = interrupted.options(context, resume)
            fit(context, **context.params)
        else:
            report.tell_fit(fitted, resume, as_json=as_json, quiet=quiet)
        return
    if data is None:
        raise InputError("say what to fit: DATA.csv or IMAGES, or --resume RUN")
    images = data.is_dir()
    table_only = {
        "--formula": formula, "--task": task, "--x": x, "--y": y, "--likelihood": likelihood,
        "--offset": offset, "--exposure": exposure, "--standard-error": standard_error,
        "--reml": reml, "--hyperprior": hyperprior,
    }  # fmt: skip
    images_only = {
        "--ways": ways, "--shots": shots, "--queries": queries, "--rotations": rotations,
        "--filters": filters, "--batch-norm": batch_norm, "--image-size": image_size,
        "--grey": grey, "--train-classes": train_classes, "--precision": precision,
    }  # fmt: skip
    if not data.exists():
        raise InputError(f"there is no file or folder {data}: check the path")
    _refuse_mixed(data, table_only if images else images_only, images=images)
    choices = Choices(
        () if images else widths(net), method or ("maml" if images else "joint"), covariance,
        prior, hyperprior, reml, steps, batch, seed, device, tuple(option or ()), chunk_size,
        precision, checkpoint_every,
    )  # fmt: skip
    run = out if out is not None else Path("runs") / (data.resolve().name if images else data.stem)
    if run.name in ("", ".."):
        raise InputError(f"--out '{run}' is no name for a run folder: give one such as runs/first")
    kept = choices.checkpoint(run, interrupted.command(context.params))
    common: dict[str, Any] = {"out": run, "overwrite": overwrite, "checkpoint": kept}
    with ProgressBar("fitting", hidden=quiet) as progress, interrupted.said(kept, run):
        if images:
            given = {
                "ways": ways, "shots": shots, "queries": queries, "rotations": rotations,
                "net": image_net(net), "filters": filters, "batch_norm": batch_norm,
                "size": image_size, "train": train_classes, "grey": grey,
            }  # fmt: skip
            pictures = Pictures(**{name: v for name, v in given.items() if v is not None})
            fitted = fit_images(
                data, pictures, choices, progress=progress,
                warn=(lambda note: None) if quiet else warn, **common,
            )  # fmt: skip
        else:
            columns = Columns(
                formula, task, listed(x), y, offset, exposure, standard_error,
                likelihood or "gaussian",
            )  # fmt: skip
            fitted = commands.fit_table(data, columns, choices, progress=progress, **common)
    report.tell_fit(fitted, run, as_json=as_json, quiet=quiet)


@app.command()
@plainly
def adapt(
    run: Run, new: New, out: OutCsv = None, overwrite: Overwrite = False, quiet: Quiet = False
) -> None:
    """Posteriors of new tasks under a fitted prior: mean and sd of every weight."""
    _check_csv(out, overwrite)
    adapted, rows = commands.adapt_run(run, new)
    _deliver(f"Posteriors of {len(adapted.posterior.tasks)} tasks", rows, out, quiet)


@app.command()
@plainly
def predict(
    run: Run,
    new: New,
    support: Annotated[
        Path | None, typer.Option(help="CSV of rows with responses to adapt new tasks on.")
    ] = None,
    level: Annotated[float, typer.Option(help="Mass of the predictive intervals.")] = 0.9,
    draws: Annotated[int, typer.Option(help="Predictive draws.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    out: OutCsv = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Predictions for every row of a CSV: mean, sd and interval, beside the row itself."""
    from bayesmeta.predicting import predict_run

    check_numbers({"--seed": seed, "--draws": draws}, least=0)
    _check_csv(out, overwrite)
    rows = predict_run(run, new, support=support, level=level, draws=draws, seed=seed)
    _deliver(f"Predictions, {level:.0%} intervals", rows, out, quiet)


@app.command()
@plainly
def plot(
    run: Run,
    name: Annotated[str, typer.Argument(metavar="NAME", help=commands.FIGURES)],
    out: Annotated[
        Path | None, typer.Option(help="FILE.svg, .png or .pdf; RUN/NAME.svg by default.")
    ] = None,
    coordinate: Annotated[
        list[str] | None, typer.Option(help="A weight by name; repeat for more.")
    ] = None,
    task: Annotated[list[str] | None, typer.Option(help="A task by name; repeat for more.")] = None,
    quiet: Quiet = False,
) -> None:
    """Draw a figure of a run."""
    path, caption = commands.plot_run(
        run, name, out=out, coordinates=coordinate or (), tasks=task or ()
    )
    if not quiet:
        show(report.figure_report(path, caption))


@app.command()
@plainly
def check(
    run: Run,
    tasks: Annotated[
        int | None,
        typer.Option(help="Images: tasks of the classes held out to score, by default 200."),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Images: their folder, if it has moved since the fit.")
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """How far a run is to be trusted: convergence, Pareto k̂ per task, calibration.

    Of images also how well new tasks of the classes held out are told apart; those are the stream
    bayesmeta.image_tasks.held_out(bm.load(RUN)) in Python.
    """
    from bayesmeta.checking import check_run

    checks = check_run(run, tasks, images)
    if as_json:
        show_json(checks)
    elif not quiet:
        show(report.check_report(checks))


@app.command()
@plainly
def demo(
    out: Annotated[Path, typer.Option(help="A folder for the runs and figures.")] = Path("demo"),
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Fit the bundled radon data and eight schools, and draw their figures."""
    from bayesmeta.demo import run_examples

    with ProgressBar("fitting", hidden=quiet) as progress:
        for example, fitted, run, figures in run_examples(
            out, overwrite=overwrite, progress=progress
        ):
            if not quiet:
                show(report.example_report(example.about, fitted, run, figures))


def _refuse_mixed(data: Path, options: Mapping[str, Any], *, images: bool) -> None:
    """Options of the other kind of data, which would otherwise be passed over in silence."""
    given = [name for name, value in options.items() if value]
    if given and images:
        raise InputError(
            f"{given[0]} is for tables, and {data} is a folder of images: leave it out"
        )
    if given:
        raise InputError(
            f"{given[0]} is for images, and {data} is not a folder of them: leave it out, or give "
            "the folder"
        )


def _check_csv(out: Path | None, overwrite: bool) -> None:
    if out is not None:
        refuse_existing(out, overwrite=overwrite, run=False)


def _deliver(title: str, rows: commands.Rows, out: Path | None, quiet: bool) -> None:
    if out is not None:
        commands.write_csv(out, rows)
    if not quiet:
        show(report.rows_report(title, rows, out))


def main() -> None:
    """The entry point `bayesmeta`."""
    app()
