"""`bayesmeta fit IMAGES` from a folder to a run: what is trained on, held out, resumed, refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from command_line import run, succeed
from PIL import Image
from small_images import bank

import bayesmeta as bm
from bayesmeta.image_tasks import divided, held_out, is_omniglot, split_parts

SMALL = (
    "--ways", "3", "--queries", "2", "--image-size", "8", "--net", "16", "--batch", "4",
    "--option", "lr=0.4", "--option", "outer_lr=0.01",
)  # fmt: skip


def fit_json(*arguments) -> dict:
    out = succeed("fit", *arguments, "--json")
    assert out.count("\n") == 1
    return json.loads(out)


def write(folder: Path, images: bm.images.Images) -> Path:
    """A folder of class folders."""
    for i, (values, label) in enumerate(zip(images.values, images.labels, strict=True)):
        place = folder / images.classes[label]
        place.mkdir(parents=True, exist_ok=True)
        picture = values[0] if len(values) == 1 else values.permute(1, 2, 0)
        Image.fromarray(picture.numpy()).save(place / f"{i:03d}.png")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("cli") / "drawings", bank(12, 5))


def test_a_folder_of_images_becomes_a_run(folder, tmp_path):
    out = tmp_path / "run"
    told = succeed("fit", folder, *SMALL, "--steps", 60, "--out", out)
    assert "3-way 1-shot, 2 queries a class · drawings: 9 classes, 3 held out" in told
    assert "Prior of 1107 weights" in told and f"saved in {out}" in told
    fit = bm.load(out)
    assert fit.choices.inner.lr == 0.4 and len(fit.trace) == 60
    assert sum(fit.trace[-10:]) < 0.7 * sum(fit.trace[:10])  # it learns
    record = fit.stream
    assert (record["ways"], record["shots"], record["queries"]) == (3, 1, 2)
    assert sorted(record["classes"] + record["held_out"]) == [f"class{i:02d}" for i in range(12)]
    assert fit.choices.objective.support is None  # a task brings its query images
    assert not (tmp_path / "run.checkpoint").exists()
    # What is in the run is the fit from Python.
    images = bm.images.folder(folder, size=8).select(record["classes"])
    method = bm.methods.maml(
        lr=0.4, support=None, batch=4, outer_lr=0.01, outer_steps=60
    )  # fmt: skip
    model = bm.models.dense(3, (1, 8, 8), widths=(16,))
    same = bm.fit(model, bm.FewShot(images, 3, 1, 2), method=method)
    assert torch.equal(same.prior.mean, fit.prior.mean)
    # The other commands know such a run.
    assert "M, the −log-likelihood of query rows" in succeed("plot", out, "trace")
    checks = json.loads(succeed("check", out, "--json"))
    assert {f["check"] for f in checks["findings"]} >= {"trace", "tasks"}
    # Both accuracies, of the classes held out, on the tasks of seed 0.
    scores = bm.diagnostics.few_shot_scores(fit, held_out(fit), count=200, seed=0)
    for kind in ("inductive", "transductive"):
        mean, low, high = getattr(scores, kind).interval
        assert checks["few_shot"][kind]["accuracy"] == mean
        assert checks["few_shot"][kind]["accuracy_interval"] == [low, high]
        assert f"{kind}" in (told := succeed("check", out)) and f"{mean:.1%} ±" in told
    refused = run("adapt", out, folder)
    assert refused.exit_code == 2 and "no CSV holds them; in Python" in refused.stderr


def test_the_classes_held_out_are_found_again(folder, tmp_path):
    out = tmp_path / "run"
    record = fit_json(folder, *SMALL, "--steps", 2, "--out", out, "--seed", 4, "--rotations")
    assert record["stream"]["classes"] == 9 and record["stream"]["held_out"] == 3
    fit = bm.load(out)
    tasks = held_out(fit)
    names = [f"class{i:02d}" for i in range(12)]
    assert list(tasks.classes) == fit.stream["held_out"] == divided(tuple(names), 9, 4)[1]
    assert (tasks.ways, tasks.shots, tasks.queries, tasks.rotations) == (3, 1, 2, True)
    scores = bm.diagnostics.few_shot_scores(fit, tasks, count=4)
    assert scores.tasks == 4
    # Which classes these are is the seed's choice, and that of FewShot.split.
    train, test = bm.FewShot(bm.images.folder(folder, size=8), 3, 1, 2).split(9, 3, seed=4)
    assert (list(train.classes), list(test.classes)) == (fit.stream["classes"], list(tasks.classes))
    other = fit_json(folder, *SMALL, "--steps", 2, "--out", tmp_path / "b", "--seed", 5)
    assert other["stream"]["split"] != record["stream"]["split"]


def test_images_that_have_changed_are_noticed(tmp_path):
    folder = write(tmp_path / "drawings", bank(8, 3))
    out = tmp_path / "run"
    succeed("fit", folder, *SMALL, "--steps", 1, "--out", out, "--train-classes", 4)
    fit = bm.load(out)
    assert len(held_out(fit).classes) == 4
    changed = folder / fit.stream["classes"][0]
    Image.new("L", (8, 8)).save(next(changed.iterdir()))
    with pytest.raises(bm.InputError, match="drawings trained on are not those of the fit"):
        held_out(fit)
    checks = json.loads(succeed("check", out, "--json"))
    assert checks["few_shot"] is None and "were not scored" in checks["notes"][-1]
    succeed("fit", folder, *SMALL, "--steps", 1, "--out", tmp_path / "all", "--train-classes", 8)
    with pytest.raises(bm.InputError, match="all classes were trained on"):
        held_out(bm.load(tmp_path / "all"))
    family, _ = bm.FewShot(bank(), 3, 1, 1).family(2, torch.Generator())
    model = bm.models.dense(3, (1, 8, 8), widths=(2,))
    own = bm.fit(model, family, method=bm.methods.maml(outer_steps=1, support=None))
    with pytest.raises(bm.InputError, match="not fitted to a folder"):
        held_out(own)


@pytest.mark.parametrize("net", ["conv4", "dense"])
def test_the_networks_by_name(folder, tmp_path, net):
    options = ("--filters", 4) if net == "conv4" else ()
    arguments = [a for a in SMALL if a not in ("--net", "16")]
    out = tmp_path / "run"
    succeed(
        "fit", folder, *arguments, "--net", net, *options, "--steps", 2, "--out", out, "--quiet",
        "--batch-norm", "support", "--chunk-size", 2, "--precision", "bfloat16",
    )  # fmt: skip
    fit = bm.load(out)
    spec = fit.model.spec
    assert spec["kind"] == net and spec.get("filters", 4) == 4
    assert (fit.model.batch_norm, fit.model.chunk_size) == ("support", 2)
    assert fit.model.precision == "bfloat16"
    if net == "dense":
        assert spec["widths"] == [256, 128, 64, 64]


def test_methods_and_priors_of_their_own(folder, tmp_path):
    out = tmp_path / "run"
    succeed(
        "fit", folder, *SMALL, "--steps", 2, "--method", "imaml", "--option", "steps=2",
        "--prior", "isotropic", "--out", out, "--quiet",
    )  # fmt: skip
    fit = bm.load(out)
    assert fit.choices.anchored and str(fit.fitted_prior.form) == "isotropic"
    succeed(
        "fit", folder, *SMALL, "--steps", 1, "--method", "variational_imaml", "--covariance",
        "diagonal", "--option", "lam=2", "--option", "steps=2", "--out", tmp_path / "v", "--quiet",
    )  # fmt: skip
    assert not bm.load(tmp_path / "v").posterior.gaussian.is_point


# Kinds of folders


def test_a_folder_that_is_split_keeps_its_split(tmp_path):
    root = tmp_path / "mini"
    write(root / "train", bank(5, 4, kind="train"))
    write(root / "test", bank(4, 4, seed=1, kind="new"))
    assert split_parts(root) == ["train", "test"]
    out = tmp_path / "run"
    record = fit_json(root, *SMALL, "--steps", 1, "--out", out)
    assert record["stream"]["classes"] == 5 and record["stream"]["source"] == "mini (train)"
    assert held_out(bm.load(out)).classes == ("new00", "new01", "new02", "new03")
    refused = run("fit", root, *SMALL, "--train-classes", 3, "--out", tmp_path / "b")
    assert refused.exit_code == 2 and "says itself which classes" in refused.stderr


def test_classes_called_train_and_test_are_classes(tmp_path):
    images = bank(4, 4)
    named = bm.images.Images(images.values, images.labels, ("test", "train", "val", "x"), "s")
    assert split_parts(write(tmp_path / "odd", named)) == []


def test_omniglot_is_known_by_its_files(tmp_path, folder):
    assert not is_omniglot(folder)
    for place in ("a/images_background", "b/python/images_background", "c/omniglot-py/"):
        (tmp_path / place).mkdir(parents=True)
    (tmp_path / "c/omniglot-py/images_background.zip").touch()
    (tmp_path / "d").mkdir()
    (tmp_path / "d/omniglot_images_background_105.npz").touch()
    assert all(is_omniglot(tmp_path / name) for name in "abcd")
    # So it is not taken for a folder of two classes, and what is missing is said.
    refused = run("fit", tmp_path / "a", "--out", tmp_path / "run")
    assert refused.exit_code == 2 and "mniglot" in refused.stderr


def test_colours_are_turned_to_grey(tmp_path):
    root = write(tmp_path / "colours", bank(5, 3, channels=3))
    write(root, bank(5, 2, kind="grey"))
    mixed = run("fit", root, *SMALL, "--out", tmp_path / "run")
    assert mixed.exit_code == 2 and "convert all, or add --grey" in mixed.stderr
    options = ("--grey", "--steps", 1, "--queries", 1, "--out", tmp_path / "run")
    assert fit_json(root, *SMALL, *options)["stream"]["shape"] == [1, 8, 8]


# Going on


class Stop:
    """A progress bar at which somebody presses Ctrl-C."""

    at = 0

    def __init__(self, title, hidden):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None

    def __call__(self, step, steps, value):
        if step >= self.at:
            raise KeyboardInterrupt


def test_the_same_command_goes_on_from_a_checkpoint(folder, tmp_path, monkeypatch):
    command = ("fit", folder, *SMALL, "--steps", 40, "--checkpoint-every", 4, "--quiet")
    succeed(*command, "--out", tmp_path / "whole")
    out, beside = tmp_path / "run", tmp_path / "run.checkpoint"
    with monkeypatch.context() as patch:
        patch.setattr("bayesmeta.cli.ProgressBar", Stop)
        patch.setattr(Stop, "at", 20)
        stopped = run(*command, "--out", out)
    assert stopped.exit_code == 130 and not stopped.stdout
    assert "stopped: its last checkpoint, after 20 steps, is whole" in stopped.stderr
    assert str(beside) in stopped.stderr and not out.exists()
    # Another command does not go on from there.
    other = run(*command, "--out", out, "--seed", 3)
    assert other.exit_code == 2 and "of a fit to other data" in other.stderr
    assert "seed = 0 there, 3 here" in other.stderr
    more = run(*command, "--out", out, "--steps", 80)  # the last --steps counts
    assert more.exit_code == 2 and "outer_steps = 40 there, 80 here" in more.stderr
    other = run(*command, "--out", out, "--batch-norm", "support")
    assert "batch_norm = 'transductive' there, 'support' here" in " ".join(other.stderr.split())
    steps = []
    monkeypatch.setattr(
        "bayesmeta.cli.ProgressBar.__call__", lambda bar, step, *rest: steps.append(step)
    )
    succeed(*command, "--out", out)
    assert steps[0] == 30  # told every ten steps, and twenty were not taken again
    assert not beside.exists()
    whole, resumed = bm.load(tmp_path / "whole"), bm.load(out)
    assert torch.equal(whole.prior.mean, resumed.prior.mean)
    assert whole.trace == resumed.trace
    # With the run there, the same command says so.
    again = run(*command, "--out", out)
    assert again.exit_code == 2 and "exists already" in again.stderr


def test_images_and_tables_have_a_checkpoint_by_default(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("bayesmeta.cli.ProgressBar", Stop)
    monkeypatch.setattr(Stop, "at", 110)
    stopped = run("fit", folder, *SMALL, "--steps", 120, "--out", tmp_path / "run")
    assert "after 100 steps" in stopped.stderr
    table = tmp_path / "table.csv"
    places = [(i, j) for i in range(8) for j in range(6)]
    rows = [(f"t{i}", j / 5, (i % 3) * j / 5 + 0.1 * ((i * j) % 5)) for i, j in places]
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([("task", "x", "y"), *rows])
    columns = ("--task", "task", "--x", "x", "--y", "y", "--method", "maml", "--batch", 4)
    command = ("fit", table, *columns, "--steps", 40, "--out", tmp_path / "rows")
    monkeypatch.setattr(Stop, "at", 20)
    kept = run(*command)
    assert (
        kept.exit_code == 130
        and "no checkpoint was written yet: the first one comes after 100 steps" in kept.stderr
    )
    kept = run(*command, "--checkpoint-every", 5)
    assert "after 20 steps" in kept.stderr
    monkeypatch.undo()
    succeed(*command, "--checkpoint-every", 5, "--quiet")
    succeed(*command[:-1], tmp_path / "whole", "--quiet")
    fits = [bm.load(tmp_path / name) for name in ("rows", "whole")]
    assert torch.equal(fits[0].prior.mean, fits[1].prior.mean)
    exact = run("fit", table, *columns[:6], "--checkpoint-every", 5, "--out", tmp_path / "exact")
    assert exact.exit_code == 2 and "checkpoint" in exact.stderr
    assert not (tmp_path / "exact").exists()


# Refused


def refusals(folder: Path) -> dict[str, tuple[tuple, list[str]]]:
    return {
        "a table's option": (("--formula", "y ~ x"), ["--formula is for tables", "leave it out"]),
        "a likelihood": (("--likelihood", "poisson"), ["--likelihood is for tables"]),
        "predictors": (("--x", "a"), ["--x is for tables"]),
        "reml": (("--reml",), ["--reml is for tables"]),
        "joint": (("--method", "joint"), ["joint stores", "maml, imaml"]),
        "no method": (("--method", "mamal"), ["no method 'mamal'", "maml"]),
        "no option": (("--option", "rate=1"), ["maml has no option 'rate'", "lr"]),
        "support": (("--option", "support=3"), ["support= is of tables", "--shots"]),
        "more ways": (("--ways", "13"), ["12 classes are fewer than --ways 13", "lower --ways"]),
        "one way": (("--ways", "1"), ["--ways 1", "2 or more"]),
        "shots": (("--shots", "9"), ["class 'class00' has 5 images", "lower --shots or --queries"]),
        "no shots": (("--shots", "0"), ["--shots 0", "1 or more"]),
        "no net": (("--net", "resnet"), ["--net resnet", "conv4, dense"]),
        "widths": (("--net", "16,x"), ["--net", "16,x"]),
        "filters": (("--filters", "8"), ["--filters are those of --net conv4"]),
        "no filters": (("--net", "conv4", "--filters", "0"), ["--filters 0", "1 or more"]),
        "batch norm": (("--batch-norm", "no"), ["--batch-norm no", "transductive or sup"]),
        "frozen": (("--batch-norm", "frozen"), ["whose statistics", "frozen_on(images) in Python"]),
        "tf32": (("--precision", "tf32"), ["--precision tf32 is of CUDA", "changes nothing"]),
        "no steps": (("--option", "steps=0"), ["--option steps=0", "nothing is adapted"]),
        "a huge chunk": (("--chunk-size", str(10**20)), [f"--chunk-size {10**20}", "at most"]),
        "a huge seed": (("--seed", str(10**23)), [f"--seed {10**23}", "at most"]),
        "a seed below 0": (("--seed", "-1"), ["--seed -1", "0 or more"]),
        "a huge batch": (("--batch", str(2**62)), ["no memory for 4611686018427387904 tasks"]),
        "meta": (("--device", "meta"), ["--device 'meta' holds no numbers"]),
        "huge widths": (("--net", str(10**14)), ["no memory for so large a network", "--net"]),
        "no name": (("--out", ""), ["--out '.' is no name", "runs/first"]),
        "huge images": (("--image-size", "1000000"), ["60 images of 1000000", "GiB", "--image-si"]),
        "too many": (("--train-classes", "13"), ["--train-classes 13", "there are 12 classes"]),
        "too few": (("--train-classes", "2"), ["2 classes are fewer than --ways 3"]),
        "none": (("--train-classes", "0"), ["--train-classes 0", "1 or more"]),
        "a size": (("--image-size", "0"), ["--image-size 0", "1 or more"]),
        "device": (("--device", "toaster"), ["'toaster'", "cpu"]),
        "precision": (("--precision", "half"), ["precision='half'", "bfloat16"]),
        "chunk": (("--chunk-size", "0"), ["--chunk-size 0", "1 or more"]),
        "checkpoint": (("--checkpoint-every", "0"), ["--checkpoint-every 0", "1 or more"]),
    }


@pytest.mark.parametrize("name", refusals(Path()))
def test_bad_input_is_one_sentence(name, folder, tmp_path):
    options, words = refusals(folder)[name]
    result = run("fit", folder, *SMALL, "--out", tmp_path / "run", *options)
    assert result.exit_code == 2 and not result.stdout
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    for word in words:
        assert word in result.stderr
    assert not list(tmp_path.iterdir())


def test_cuda_where_there_is_none(folder, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    result = run("fit", folder, *SMALL, "--device", "cuda", "--out", tmp_path / "run")
    assert result.exit_code == 2 and result.stderr.count("\n") == 1
    assert "--device 'cuda': this machine has no CUDA device" in result.stderr
    assert "leave --device out" in result.stderr


def test_options_of_images_are_not_for_tables(tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("g,y\na,1\nb,2\na,2\n")
    for options in (
        ("--ways", 3), ("--shots", 1), ("--queries", 2), ("--rotations",), ("--filters", 4),
        ("--batch-norm", "support"), ("--image-size", 8), ("--grey",), ("--train-classes", 3),
        ("--precision", "bfloat16"),
    ):  # fmt: skip
        result = run("fit", table, "--task", "g", "--y", "y", *options, "--out", tmp_path / "run")
        assert result.exit_code == 2
        assert f"{options[0]} is for images, and {table} is not a folder" in result.stderr
    net = run("fit", table, "--task", "g", "--y", "y", "--net", "conv4", "--out", tmp_path / "run")
    assert net.exit_code == 2 and "--net wants the widths" in net.stderr


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda root: root.mkdir(), ["has no folders", "each class has its images in a folder"]),
        (lambda root: (root / "a").mkdir(parents=True), ["class 'a' has no images"]),
        (lambda root: None, ["no file"]),
    ],
)
def test_a_folder_that_holds_no_images(make, words, tmp_path):
    root = tmp_path / "images"
    make(root)
    options = SMALL if root.exists() else ("--task", "g", "--y", "y")
    result = run("fit", root, *options, "--out", tmp_path / "run")
    assert result.exit_code == 2 and all(word in result.stderr for word in words)


def test_a_broken_image_is_named(tmp_path):
    root = write(tmp_path / "images", bank(5, 3))
    (root / "class02" / "999.png").write_bytes(b"not a picture")
    result = run("fit", root, *SMALL, "--out", tmp_path / "run")
    assert result.exit_code == 2 and str(root / "class02" / "999.png") in result.stderr
