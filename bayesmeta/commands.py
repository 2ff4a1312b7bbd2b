"""What each command does between its options and its report."""

from __future__ import annotations

import csv
import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bayesmeta.atomic import alone, refuse_existing, settle, whole_file, whole_folder, why
from bayesmeta.options import METHODS as METHODS
from bayesmeta.options import check_numbers, method_options, read_options
from bayesmeta.results import InputError

if TYPE_CHECKING:
    from bayesmeta.fit import Fit
    from bayesmeta.method import Method
    from bayesmeta.models import Model
    from bayesmeta.prior import Prior
    from bayesmeta.resuming import Checkpoint
    from bayesmeta.tasks import TableInfo, TaskFamily

FIGURES = "spread, shrinkage, predictive, prior, trace or calibration"
DATA = Path(__file__).parent / "data"
Progress = Callable[[int, int, float], None]


@dataclass(frozen=True)
class Rows:
    """A result for a CSV.

    Args:
        header: names of the columns.
        cells: rows of strings and numbers.
        remarks: sentences about them, for a person.
    """

    header: Sequence[str]
    cells: Sequence[Sequence[Any]]
    remarks: Sequence[str] = ()


@dataclass(frozen=True)
class Columns:
    """Which columns of a table are what: a formula, or task, x and y.

    Args:
        formula: lme4-style, e.g. "Reaction ~ Days + (Days | Subject)".
        task, y: column names; y may be "successes/trials".
        x: predictors; none means an intercept only.
        offset, exposure, standard_error: column names.
        likelihood: by name.
    """

    formula: str | None = None
    task: str | None = None
    x: Sequence[str] = ()
    y: str | None = None
    offset: str | None = None
    exposure: str | None = None
    standard_error: str | None = None
    likelihood: str = "gaussian"

    def read(self, path: Path) -> TaskFamily:
        """The family of tasks in a CSV.

        Raises:
            InputError: the choice of columns is incomplete or double, or the table is bad.
        """
        from bayesmeta.tables import family_from_csv, family_from_formula

        special: dict[str, Any] = {
            "offset": self.offset,
            "exposure": self.exposure,
            "standard_error": self.standard_error,
            "likelihood": self.likelihood,
        }
        named = self.task is not None or self.y is not None or len(self.x) > 0
        if self.formula is not None:
            if named:
                raise InputError("give either --formula or --task, --x and --y, not both")
            return family_from_formula(self.formula, path, **special)
        if self.task is None or self.y is None:
            raise InputError(
                "say which columns to use: --task TASK --x X --y Y, "
                'or --formula "y ~ x + (x | task)"'
            )
        return family_from_csv(path, task=self.task, x=list(self.x), y=self.y, **special)


@dataclass(frozen=True)
class Choices:
    """How to fit.

    Args:
        net: hidden widths of a tanh network; none is the linear predictor.
        method: by name.
        covariance: form of every Q_i; None leaves it to the method and the number of weights.
        prior: form of Σ₀; None likewise.
        hyperprior: None or "boundary-avoiding".
        reml: integrate the prior mean and the shared coefficients out (exact fits only).
        steps, batch: None leaves them to the method.
        seed, device: of the fit.
        options: "NAME=VALUE" each, keyword arguments of the method.
        chunk_size: of the model.
        precision: of a network for images.
        checkpoint_every: outer steps between two writings of where the fit stands; None: none.
    """

    net: tuple[int, ...] = ()
    method: str = "joint"
    covariance: str | None = None
    prior: str | None = None
    hyperprior: str | None = None
    reml: bool = False
    steps: int | None = None
    batch: int | None = None
    seed: int = 0
    device: str | None = None
    options: Sequence[str] = ()
    chunk_size: int | None = None
    precision: str | None = None
    checkpoint_every: int | None = None

    def __post_init__(self) -> None:
        check_numbers({"--seed": self.seed}, least=0)
        check_numbers(
            {
                "--batch": self.batch,
                "--chunk-size": self.chunk_size,
                "--checkpoint-every": self.checkpoint_every,
            }
        )

    def build(self, family: TaskFamily, likelihood: str) -> Model:
        from bayesmeta import likelihoods, models

        options: dict[str, Any] = {}
        if likelihood == "categorical":
            if not self.net:
                raise InputError("a categorical response needs a network: add --net 40,40")
            options["classes"] = int(family.tensors["y"].max()) + 1
        built = likelihoods.by_name(likelihood, **options)
        if self.net:
            model = models.mlp(self.net, family, built, seed=self.seed)
        else:
            model = models.linear(family, built)
        model.chunk_size = self.chunk_size
        return model

    def run(
        self,
        family: TaskFamily,
        likelihood: str,
        progress: Progress,
        checkpoint: Checkpoint | None = None,
    ) -> Fit:
        """Fit the family; everything the user can get wrong here is an InputError."""
        from bayesmeta.fit import fit

        known = method_options(self.method)
        model = self.build(family, likelihood)
        method = self.made(known, model.dim)
        return fit(
            model,
            family,
            method=method,
            prior=self.chosen_prior(method, model, family),
            seed=self.seed,
            device=usable_device(self.device),
            callbacks=(progress,),
            reml=self.reml,
            checkpoint=checkpoint,
        )

    def checkpoint(self, out: Path, command: Mapping[str, Any]) -> Checkpoint:
        """Beside the run folder, which appears only when it is complete.

        Args:
            out: the run folder.
            command: the options that make the same fit.
        """
        from bayesmeta.resuming import Checkpoint

        usual = Checkpoint(checkpoint_of(out), required=False, command=command)
        every = self.checkpoint_every
        return usual if every is None else replace(usual, every=every, required=True)

    def made(self, known: dict[str, Any], dim: int) -> Method:
        """The method by name, with its options.

        Args:
            known: of `method_options`.
            dim: number of adapted weights, which decides the default covariance.
        """
        from bayesmeta import methods

        options = read_options(self.options, self.method, known)
        outer = "steps" if self.method == "joint" else "outer_steps"
        for name, value in (
            ("covariance", self.covariance),
            (outer, self.steps),
            ("batch", self.batch),
        ):
            if value is None:
                continue
            flag = "--steps" if name == outer else f"--{name}"
            if name not in known:
                raise InputError(
                    f"{self.method} has no posterior covariance, its posteriors are points: leave "
                    f"{flag} out, or use joint, laplace or variational_imaml"
                )
            if name in options:
                raise InputError(f"give either {flag} or --option {name}=, not both")
            options[name] = value
        make = getattr(methods, self.method)
        own = inspect.signature(make).parameters.get("covariance")
        if own is not None and own.default == "full":
            options.setdefault("covariance", methods.default_form(dim))
        return make(**options)

    def chosen_prior(self, method: Method, model: Model, family: TaskFamily) -> Prior | None:
        """The prior asked for; None leaves it to `fit`."""
        from bayesmeta.choosing import default_prior
        from bayesmeta.prior import Prior

        if self.prior is not None:
            return Prior(self.prior, hyperprior=self.hyperprior)
        if self.hyperprior is None and self.method != "joint":
            return None
        usual = default_prior(None, method, model, family)
        if usual.learn != "all" or usual.form.name == "point":
            raise InputError(
                f"{self.method} learns no prior covariance here, so there is none to keep off its "
                "boundary: leave --hyperprior out"
            )
        return Prior(usual.form, hyperprior=self.hyperprior)


def usable_device(name: str | None) -> str | None:
    """The device by name, tried with one number.

    Raises:
        InputError: torch does not know it, or this machine does not have it.
    """
    if name is None:
        return None
    from bayesmeta.devices import usable

    try:
        usable(name)
    except InputError as error:
        raise InputError(str(error).replace("device=", "--device ")) from None
    return name


def fit_table(
    path: Path,
    columns: Columns,
    choices: Choices,
    *,
    out: Path,
    overwrite: bool,
    progress: Progress,
    checkpoint: Checkpoint,
) -> Fit:
    """Read, fit and save; the run folder appears complete or not at all."""
    family = columns.read(path)
    return into_run(
        lambda: choices.run(family, columns.likelihood, progress, checkpoint),
        checkpoint,
        out=out,
        overwrite=overwrite,
    )


def into_run(fit: Callable[[], Fit], checkpoint: Checkpoint, *, out: Path, overwrite: bool) -> Fit:
    """Fit, save, and take away the checkpoint; of several processes the first one writes."""
    from bayesmeta.ranks import Ranks

    if Ranks.present().rank > 0:
        return fit()
    refuse_existing(out, overwrite=overwrite, run=True)
    with held(out):
        fitted = fit()
        try:
            with whole_folder(out, overwrite=overwrite) as folder:
                fitted.save(folder)
        except OSError as error:
            left = checkpoint.left() if checkpoint.exists() else "nothing else is kept of it"
            raise InputError(
                f"the fit has ended, and {out} could not be written ({why(error)}): make room "
                f"there, or choose another --out; {left}"
            ) from error
        checkpoint.clear()
    return fitted


def held(run: Path) -> AbstractContextManager[None]:
    """A run folder, to be written by nobody else meanwhile."""
    return alone(run.with_name(f".{run.name}.lock"), str(run))


def checkpoint_of(run: Path) -> Path:
    """The folder of a run's checkpoints."""
    return run.with_name(f"{run.name}.checkpoint")


def open_run(run: Path) -> Fit:
    """A saved fit.

    Raises:
        InputError: there is no run there.
    """
    from bayesmeta.fit import load

    settle(run)
    if not (run / "run.json").is_file():
        raise InputError(f"{run} is not a run folder: give the --out of a `bayesmeta fit`")
    return load(run)


def table_of(fit: Fit) -> TableInfo:
    """How the table behind a fit was read."""
    table = fit.family.table
    if table is None and (fit.stream or {}).get("kind") == "few_shot":
        raise InputError(
            "this run was fitted to images, and no CSV holds them; in Python, with float images "
            "(1, image, channel, height, width) from 0 to 1: bm.load(RUN).adapt("
            'bm.TaskFamily.from_tensors(x=images, y=labels, names=["mine"])).predict('
            'bm.TaskFamily.from_tensors(x=new, names=["mine"]), inductive=True).probabilities'
        )
    if table is None:
        raise InputError("this run was not fitted to a table, so no CSV can be read the same way")
    return table


def adapt_run(run: Path, new: Path) -> tuple[Fit, Rows]:
    """Posteriors of new tasks, one row per task and coordinate."""
    from bayesmeta.tables import family_like

    fitted = open_run(run)
    adapted = fitted.adapt(family_like(table_of(fitted), new))
    q = adapted.posterior
    rows = [
        (task, name, mean, sd)
        for task, means, sds in zip(q.tasks, q.mean.tolist(), q.sd().tolist(), strict=True)
        for name, mean, sd in zip(q.names, means, sds, strict=True)
    ]
    return adapted, Rows(("task", "coordinate", "mean", "sd"), rows)


def plot_run(
    run: Path,
    name: str,
    *,
    out: Path | None,
    coordinates: Sequence[str],
    tasks: Sequence[str],
) -> tuple[Path, str]:
    """Draw a figure of a run: where it was written, and its caption."""
    from bayesmeta import plots

    fitted = open_run(run)
    options: dict[str, Any] = {}
    if coordinates:
        options["coordinates"] = list(coordinates)
    if tasks:
        options["tasks"] = list(tasks)
    figure = plots.draw(name, fitted, **options)
    path = plots.save(figure, out if out is not None else run / f"{name}.svg")
    return path, plots.caption(name, fitted, **options)


def write_csv(path: Path, rows: Rows) -> None:
    """A CSV in which every float comes back as the same float."""
    with whole_file(path) as scratch, scratch.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(rows.header)
        writer.writerows(rows.cells)
