"""A fit on disk: JSON for the record, safetensors for numbers, nothing executable.

run.json               the record: method, units, table or stream of tasks, data fingerprint,
                       versions, seed, result, and the sha256 of the other files
prior.safetensors      θ₀, Σ₀ and ψ
posterior.safetensors  every Q_i
tasks.safetensors      the data the fit was made from
log.jsonl              M per outer step
"""

from __future__ import annotations

import json
import math
import platform
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict

import torch
from safetensors import SafetensorError
from safetensors.torch import load as unpacked
from safetensors.torch import save_file
from torch import Tensor

from bayesmeta import __version__, likelihoods, models, seal
from bayesmeta.amortised.meta_gradient import prepared
from bayesmeta.amortised.step import LEARNED_STEPS
from bayesmeta.atomic import move_in, settle
from bayesmeta.empirical import Empirical
from bayesmeta.fitted import Fit
from bayesmeta.gaussian import Gaussian
from bayesmeta.identity import differing
from bayesmeta.inner.loop import Algorithm
from bayesmeta.judging import evidence_kind
from bayesmeta.method import Method
from bayesmeta.models import Model
from bayesmeta.predictions import Named
from bayesmeta.prior import Prior
from bayesmeta.records import names_record
from bayesmeta.results import Flag, InputError, Result, check_whole
from bayesmeta.standardise import Standardisation
from bayesmeta.tasks import TableInfo, TaskFamily
from bayesmeta.typed import BROKEN, made, refuse_misfits, shortened

if TYPE_CHECKING:
    from os import PathLike

SCHEMA = 3
LOG, RECORD = "log.jsonl", "run.json"
"""With it the folder is a run, and before it no run at all."""
THETA, PSI = ("prior.mean",), "shared.module."
"""Where the weights of a model are among the run's tensors: the adapted, and the shared."""


class Outcome(TypedDict):
    """What of a record's result is not in the files."""

    log_evidence: float | None
    standard_errors: dict[str, float]
    flagged: list[dict[str, str]]
    notes: list[str]
    seconds: float


class Record(TypedDict):
    """The types of run.json."""

    schema: int
    model: dict[str, Any] | None
    likelihood: dict[str, Any] | None
    prior: dict[str, Any]
    method: dict[str, Any]
    posterior_sign: int
    solver: Literal["exact", "profile", "gradient", "amortised"]
    names: list[str] | dict[str, Any]
    tasks: list[str]
    tensors: list[str]
    table: dict[str, Any] | None
    standardisation: dict[str, Any] | None
    evidence_kind: str
    seed: int
    fingerprint: str
    stream: dict[str, Any] | None
    result: Outcome
    files: dict[str, str]


def write(fit: Fit, folder: Path) -> None:
    """Write a run folder.

    Args:
        fit: what to write.
        folder: an empty one, from `whole_files`, by which they come to their place together.
    """
    prior = {f"prior.{k}": v for k, v in fit.fitted_prior.free.items()}
    shared = {f"shared.{k}": v for k, v in fit.model.shared.items()}
    parts = _parts(fit.posterior.gaussian)
    data = {f"tensor.{k}": v for k, v in fit.family.tensors.items()}
    lines = [json.dumps({"step": i, "M": m}) for i, m in enumerate(fit.trace)]
    tensors = {
        "prior.safetensors": prior | shared | {"blocks": fit.fitted_prior.blocks},
        "posterior.safetensors": parts | {"task_evidence": fit.task_evidence},
        "tasks.safetensors": data | {"mask": fit.family.mask},
    }
    for name, some in tensors.items():
        _save(some, folder / name)
    (folder / LOG).write_text("\n".join(lines) + "\n", "utf-8")
    files = {name: folder / name for name in (*tensors, LOG)}
    record = seal.sealed(json.loads(json.dumps(_record(fit))), files)
    text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
    (folder / RECORD).write_text(text, "utf-8")


def _parts(posterior: Gaussian | Empirical) -> dict[str, Tensor | None]:
    """The tensors that every Q_i is made of, by name."""
    if isinstance(posterior, Empirical):
        return {"draws": posterior.draws}
    return {"mean": posterior.mean, "diagonal": posterior.diagonal, "factor": posterior.factor}


def _record(fit: Fit) -> dict[str, Any]:
    likelihood = fit.model.likelihood
    return {
        "schema": SCHEMA,
        "versions": {
            "bayesmeta": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "model": fit.model.spec,
        "likelihood": None if likelihood is None else likelihood.to_json(),
        "prior": fit.fitted_prior.to_json(),
        "method": fit.choices.to_json(),
        "posterior_sign": getattr(fit.posterior.gaussian, "sign", 1),
        "solver": fit.solver,
        "names": names_record(fit.model.names),
        "tasks": list(fit.family.names),
        "tensors": list(fit.family.tensors),
        "table": None if fit.family.table is None else fit.family.table.to_json(),
        "standardisation": None if fit.standardisation is None else asdict(fit.standardisation),
        "evidence_kind": fit.evidence_kind,
        "seed": fit.seed,
        "fingerprint": fit.family.fingerprint(),
        "stream": fit.stream,
        "result": fit.record(),
    }


def load(
    folder: str | PathLike[str], *, model: Model | None = None, inner: Algorithm | None = None
) -> Fit:
    """Read a run folder back.

    Args:
        folder: written by `Fit.save`.
        model: the model that was fitted, when it was not one the library can rebuild by itself.
        inner: the inner algorithm, when it was the user's own.

    Raises:
        InputError: not a run folder, damaged, of another version, or its model is needed.
    """
    folder = Path(folder)
    try:
        record = _read_record(folder)
        prior_file = _load(folder, "prior.safetensors", record)
        posterior_file = _load(folder, "posterior.safetensors", record)
        family = _family(record, _load(folder, "tasks.safetensors", record))
        method = Method.from_json(record["method"], inner=inner)
        own = model is not None or inner is not None
        if model is None and record["model"] is not None:
            weights = [v for k, v in prior_file.items() if k in THETA or k.startswith(PSI)]
            models.refuse_other_size(record["model"], sum(tensor.numel() for tensor in weights))
        model = _model(record, model, family, method)
        fit = _assemble(record, model, family, method, prior_file, posterior_file)
        _check_result(record["result"], fit, own=own)
        return _with_flags(fit)
    except InputError as error:
        if str(folder) in str(error):
            raise
        raise InputError(f"{folder}: {error}") from error
    except BROKEN as error:
        raise InputError(f"{folder}: the run is damaged ({error!r}); fit again") from error


def _assemble(
    record: dict[str, Any],
    model: Model,
    family: TaskFamily,
    method: Method,
    prior_file: dict[str, Tensor],
    posterior_file: dict[str, Tensor],
) -> Fit:
    prior = Prior(**record["prior"])
    free = {k.removeprefix("prior."): v for k, v in prior_file.items() if k.startswith("prior.")}
    shared = {k.removeprefix("shared."): v for k, v in prior_file.items() if k[:6] == "shared"}
    if LEARNED_STEPS in shared and LEARNED_STEPS not in model.shared:
        model.add_shared(LEARNED_STEPS, shared[LEARNED_STEPS])  # of an earlier inner algorithm
    model.load_shared(shared)
    _check_posterior(posterior_file, len(record["tasks"]), model.dim)
    if "draws" in posterior_file:
        posterior = Empirical(posterior_file["draws"])
    else:
        posterior = Gaussian(
            posterior_file["mean"],
            posterior_file.get("diagonal"),
            posterior_file.get("factor"),
            sign=record["posterior_sign"],
        )
    check_whole("seed", record["seed"])
    result, standard = record["result"], record["standardisation"]
    log = record["log"]
    return Fit(
        model=model,
        family=family,
        choices=method,
        solver=record["solver"],
        fitted_prior=_finite(prior.of(free, prior_file["blocks"]), shared),
        posterior=Named(model.names, posterior, family.names),
        log_evidence=math.nan if result["log_evidence"] is None else result["log_evidence"],
        evidence_kind=record["evidence_kind"],
        task_evidence=posterior_file["task_evidence"],
        standardisation=None if standard is None else Standardisation.from_json(standard),
        standard_errors=result["standard_errors"],
        flagged=[made(Flag, flag) for flag in result["flagged"]],
        notes=result["notes"],
        trace=log,
        seconds=result["seconds"],
        seed=record["seed"],
        stream=record["stream"],
    )


def _finite(prior: Prior, shared: dict[str, Tensor]) -> Prior:
    """The prior, if it and ψ are numbers."""
    gaussian = prior()
    parts = [gaussian.mean, gaussian.diagonal, gaussian.factor, *shared.values()]
    if not all(bool(part.isfinite().all()) for part in parts if part is not None):
        raise InputError("the run's prior holds values that are not finite; fit again")
    return prior


def _check_result(written: dict[str, Any], fit: Fit, *, own: bool) -> None:
    """Refuse a record that says of the run what its numbers do not.

    Args:
        written: of the record; one of an earlier version may say less.
        fit: what was made of the files.
        own: whether a part of it is the user's, and may be another one than then.
    """
    found = json.loads(json.dumps(fit.record()))
    kinds = {evidence_kind(fit.solver, fit.choices), "restricted"}
    if fit.evidence_kind not in kinds:
        raise InputError(f"the evidence is {shortened(fit.evidence_kind)}, of {sorted(kinds)}")
    said = {k: v for k, v in written.items() if not (own and k == "method")}
    for name, there, here in differing(said, {k: found.get(k) for k in said}):
        if not _alike(there, here):
            raise InputError(
                f"the record says {name} = {shortened(there)}, and its files {shortened(here)}: "
                "one was changed; fit again"
            )


def _alike(there: Any, here: Any) -> bool:
    """Whether two numbers are one but for the rounding of another machine, or two lists of them."""
    if isinstance(there, list) and isinstance(here, list):
        return len(there) == len(here) and all(map(_alike, there, here))
    if isinstance(there, int | float) and isinstance(here, int | float):
        return math.isclose(there, here, rel_tol=1e-3, abs_tol=1e-5)
    return there == here


def _with_flags(fit: Fit) -> Fit:
    """The fit, with a flag for every task whose posterior is not finite, if it has none."""
    known = {flag.task for flag in fit.flagged}
    sound = torch.ones(len(fit.family), dtype=torch.bool)
    for name, part in _parts(fit.posterior.gaussian).items():
        if part is not None:
            by_task = part.movedim(1, 0) if name == "draws" else part
            sound &= by_task.flatten(1).isfinite().all(1)
    names = [fit.family.names[i] for i in (~sound).nonzero().flatten().tolist()]
    more = [Flag(name, Result.nonfinite.sentence) for name in names if name not in known]
    return replace(fit, flagged=[*fit.flagged, *more])


def _check_posterior(file: dict[str, Tensor], tasks: int, dim: int) -> None:
    """Refuse tensors of other shapes than those of the run's own tasks and weights."""
    place = file["draws"][0] if file.get("draws", torch.empty(0)).ndim == 3 else file.get("mean")
    fits = place is not None and place.shape == (tasks, dim) and place.is_floating_point()
    if not fits or file["task_evidence"].shape != (tasks,):
        raise InputError(
            f"the run's posteriors are not those of its {tasks} tasks with {dim} weights: the "
            "files were changed; fit again"
        )
    for name, shape in (("diagonal", (tasks, dim)), ("factor", (tasks, dim, -1))):
        part = file.get(name)
        if part is not None and (*part.shape[:2], *shape[2:]) != shape:
            raise InputError(
                f"the {name} of the run's posteriors is {tuple(part.shape)}; fit again"
            )


def _read_record(folder: Path) -> dict[str, Any]:
    settle(folder)
    move_in(folder, last=RECORD)
    path = folder / RECORD
    if not path.is_file():
        raise InputError(f"{folder} is not a run folder (it has no run.json): name one made by fit")
    record = seal.opened(path)
    if record.get("schema") != SCHEMA:
        raise InputError(
            f"{path} has schema {record.get('schema')!r}, this version reads {SCHEMA}: use the "
            f"version of bayesmeta that wrote it ({_version(record)})"
        )
    seal.check(path, record)
    refuse_misfits(Record, record)
    try:
        log = seal.belonging(folder, LOG, record).decode().splitlines()
        return record | {"log": [float(json.loads(line)["M"]) for line in log if line]}
    except BROKEN as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{folder / LOG}: cannot be read ({error}); fit again") from error


def _version(record: dict[str, Any]) -> str:
    versions = record.get("versions")
    return str(versions.get("bayesmeta")) if isinstance(versions, dict) else "unknown"


def _family(record: dict[str, Any], data: dict[str, Tensor]) -> TaskFamily:
    tensors = {name: data[f"tensor.{name}"] for name in record["tensors"]}
    table = None if record["table"] is None else TableInfo.from_json(record["table"])
    family = TaskFamily(tensors, mask=data.get("mask"), names=record["tasks"], table=table)
    if family.fingerprint() != record["fingerprint"]:
        raise InputError("the run's data do not match its fingerprint: the files were changed")
    return family


def _model(
    record: dict[str, Any], model: Model | None, family: TaskFamily, method: Method
) -> Model:
    if model is None:
        if record["model"] is None:
            raise InputError(
                "this run was fitted with a model of your own: pass it, bm.load(folder, model=...)"
            )
        model = models.from_spec(record["model"], likelihoods.from_json(record["likelihood"]))
    elif not isinstance(model, Model):
        raise InputError(
            f"model is a {type(model).__name__}: wrap it, bm.Model(module, likelihood)"
        )
    saved, given = record["likelihood"], model.likelihood
    if (saved is None) != (given is None) or (given is not None and given.name != saved["name"]):
        raise InputError(
            f"this run was fitted with {'no' if saved is None else saved['name']} likelihood, the "
            f"model has {'none' if given is None else given.name}: pass the same model"
        )
    model = prepared(model, family, method)
    if names_record(model.names) != record["names"]:
        raise InputError("the model's weights have other names than the run's: pass the same model")
    return model


def _save(tensors: dict[str, Tensor | None], path: Path) -> None:
    """Write them without a copy in memory."""
    present = {k: v.detach().cpu().contiguous() for k, v in tensors.items() if v is not None}
    try:
        save_file(present, path)
    except SafetensorError as error:  # a full disk, in its words
        raise OSError(str(error)) from error


def _load(folder: Path, name: str, record: dict[str, Any]) -> dict[str, Tensor]:
    content = seal.belonging(folder, name, record)
    try:
        return unpacked(content)
    except (SafetensorError, ValueError) as error:
        raise InputError(f"{folder / name} is damaged ({error}); fit again") from error
