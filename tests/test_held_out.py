"""What `fit IMAGES` says before it starts, of sizes and classes held out, and `check` verifies."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from command_line import run, succeed
from PIL import Image
from small_images import bank
from test_image_cli import write

import bayesmeta as bm
from bayesmeta.image_tasks import held_out

QUICK = ("--ways", "3", "--queries", "2", "--net", "4", "--batch", "2", "--steps", "1")


def fit(*arguments) -> tuple[str, str]:
    """What is printed to stdout and to stderr."""
    result = run("fit", *arguments)
    assert result.exit_code == 0, result.stderr
    return result.stdout, result.stderr


def refused(*arguments) -> str:
    result = run(*arguments)
    assert result.exit_code == 2 and not result.stdout
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    return result.stderr


# Sizes


def test_images_of_one_size_keep_it_and_the_report_says_so(tmp_path):
    folder = write(tmp_path / "shapes", bank(12, 4))
    told, warned = fit(folder, *QUICK, "--out", tmp_path / "run")
    assert "12 classes" not in told and "9 classes, 3 held out · 8×8 pixels, grey" in told
    assert not warned
    tasks = held_out(bm.load(tmp_path / "run"))
    assert tasks.shape == (1, 8, 8)
    # The score comes before the weights, which are of the least interest here.
    assert told.index("A query image −") < told.index("Prior of ")
    assert "of classes trained on (by chance −1.0986)" in told


def test_images_of_different_sizes_are_resized_and_that_is_said(tmp_path):
    folder = write(tmp_path / "shapes", bank(12, 4))
    Image.new("L", (9, 8)).save(folder / "class00" / "more.png")
    told, warned = fit(folder, *QUICK, "--out", tmp_path / "run")
    assert "84×84 pixels" in told and "different sizes, and are resized to 84×84" in told
    assert warned.startswith("note: The images have different sizes")
    quiet = run("fit", folder, *QUICK, "--out", tmp_path / "b", "--quiet")
    assert not quiet.stderr
    told, warned = fit(folder, *QUICK, "--image-size", 6, "--out", tmp_path / "c")
    assert "6×6 pixels" in told and not warned


def test_large_images_keep_their_size_and_that_is_said(tmp_path):
    folder = write(tmp_path / "photos", bank(12, 3, side=85))
    _, warned = fit(folder, *QUICK, "--out", tmp_path / "run")
    assert "keep their size of 85×85 pixels" in warned and "--image-size 84" in warned


def test_images_that_are_not_square_are_rotated_when_they_are_resized(tmp_path):
    folder = write(tmp_path / "shapes", bank(12, 4))
    for path in folder.glob("*/*.png"):
        Image.open(path).crop((0, 0, 8, 6)).save(path)
    told = refused("fit", folder, *QUICK, "--rotations", "--out", tmp_path / "run")
    assert "6×8 pixels" in told and "give an --image-size" in told
    options = ("--rotations", "--image-size", 8, "--out", tmp_path / "run")
    assert "8×8 pixels" in fit(folder, *QUICK, *options)[0]


def test_a_test_part_of_another_size_is_resized_too(tmp_path):
    root = tmp_path / "mini"
    write(root / "train", bank(4, 4, kind="train"))
    write(root / "test", bank(4, 4, side=6, kind="new"))
    told, _ = fit(root, *QUICK, "--out", tmp_path / "run")
    assert "84×84 pixels" in told
    assert held_out(bm.load(tmp_path / "run")).shape == (1, 84, 84)


def test_help_says_the_default_of_steps():
    assert "5000" in succeed("fit", "--help")
    assert "bayesmeta.image_tasks.held_out" in succeed("check", "--help").replace("\n", " ")


# Classes held out


@pytest.mark.parametrize(
    ("classes", "options", "words"),
    [
        (8, (), ("2 classes are held out, fewer than the 3", "--train-classes 5 or fewer")),
        (12, ("--train-classes", 12), ("0 classes are held out", "--train-classes 9 or fewer")),
        (4, (), ("1 classes are held out", "at least 6 classes, or lower --ways")),
    ],
)
def test_too_few_classes_held_out_are_said_before_the_fit(tmp_path, classes, options, words):
    folder = write(tmp_path / "shapes", bank(classes, 4))
    told, warned = fit(folder, *QUICK, *options, "--out", tmp_path / "run")
    for word in words:
        assert word in warned and word in told
    notes = json.loads(succeed("check", tmp_path / "run", "--json"))["notes"]
    assert "were not scored" in notes[-1]


def test_with_rotations_one_class_held_out_is_enough(tmp_path):
    folder = write(tmp_path / "shapes", bank(4, 4))
    _, warned = fit(folder, *QUICK, "--rotations", "--out", tmp_path / "run")
    assert not warned
    checks = json.loads(succeed("check", tmp_path / "run", "--json", "--tasks", 2))
    assert checks["few_shot"]["tasks"] == 2


def split(root: Path, **test) -> Path:
    write(root / "train", bank(5, 4, kind="train"))
    if test:
        write(root / "test", bank(**test))
    return root


def test_a_split_that_cannot_be_scored_is_said_before_the_fit(tmp_path):
    _, warned = fit(split(tmp_path / "a"), *QUICK, "--out", tmp_path / "1")
    assert "0 classes are held out" in warned and "put more into test/" in warned
    few = split(tmp_path / "b", classes=2, images=4, kind="new")
    _, warned = fit(few, *QUICK, "--out", tmp_path / "2")
    assert "2 classes are held out" in warned and "put more into test beside train" in warned
    small = split(tmp_path / "c", classes=4, images=2, kind="new")
    _, warned = fit(small, *QUICK, "--out", tmp_path / "3")
    assert "cannot score the classes held out: class 'new00' has 2 images" in warned


def test_a_split_that_shares_classes_is_refused(tmp_path):
    root = split(tmp_path / "mini", classes=4, images=4, kind="train")
    told = refused("fit", root, *QUICK, "--out", tmp_path / "run")
    assert "'train00' is both in train and in test" in told and "4 of 4 classes" in told


def spoil(folder: Path) -> None:
    Image.new("L", (8, 8), 200).save(next(folder.iterdir()))


def test_images_held_out_that_have_changed_are_noticed(tmp_path):
    folder = write(tmp_path / "shapes", bank(12, 4))
    whole = split(tmp_path / "mini", classes=4, images=4, kind="new")
    for name, root in (("run", folder), ("split", whole)):
        fit(root, *QUICK, "--out", tmp_path / name)
        checks = json.loads(succeed("check", tmp_path / name, "--json", "--tasks", 2))
        assert checks["few_shot"]["tasks"] == 2
    spoil(folder / held_out(bm.load(tmp_path / "run")).classes[0])
    spoil(whole / "test" / "new02")
    for name in ("run", "split"):
        checks = json.loads(succeed("check", tmp_path / name, "--json"))
        assert checks["few_shot"] is None
        assert "held out are not those of the fit" in checks["notes"][-1]
    # A class that is gone is no other thing.
    shutil.rmtree(whole / "test" / "new01")
    with pytest.raises(bm.InputError, match="held out are not those of the fit"):
        held_out(bm.load(tmp_path / "split"))


def test_images_that_have_moved_are_found_where_they_are_said_to_be(tmp_path):
    folder = write(tmp_path / "shapes", bank(12, 4))
    out, moved = tmp_path / "run", tmp_path / "elsewhere"
    fit(folder, *QUICK, "--out", out)
    before = json.loads(succeed("check", out, "--json", "--tasks", 3))["few_shot"]
    folder.rename(moved)
    notes = json.loads(succeed("check", out, "--json", "--tasks", 3))["notes"]
    assert f"there is no {folder} any more" in notes[-1] and "--images" in notes[-1]
    after = json.loads(succeed("check", out, "--json", "--tasks", 3, "--images", moved))
    assert after["few_shot"] == before
    assert held_out(bm.load(out), moved).classes == tuple(bm.load(out).stream["held_out"])
    for option in (("--tasks", 1), ("--tasks", 10**20)):
        assert f"--tasks {option[1]}" in refused("check", out, *option)


# Refused


def test_a_folder_that_is_not_there_is_said(tmp_path):
    for options in ((), ("--ways", 3), ("--formula", "y ~ 1 + (1 | g)")):
        told = refused("fit", tmp_path / "none", *options)
        assert f"there is no file or folder {tmp_path / 'none'}" in told


def test_names_that_are_not_utf_8_and_pipes_are_refused(tmp_path):
    folder = write(tmp_path / "shapes", bank(5, 4))
    os.mkfifo(folder / "class00" / "z.png")
    assert "z.png is no file" in refused("fit", folder, *QUICK, "--out", tmp_path / "run")
    os.remove(folder / "class00" / "z.png")
    os.rename(folder / "class00", os.fsencode(folder) + b"/c\xff")
    assert "not UTF-8" in refused("fit", folder, *QUICK, "--out", tmp_path / "run")


def test_a_run_of_images_says_how_to_adapt_and_predict_in_python(tmp_path):
    folder = write(tmp_path / "shapes", bank(12, 4))
    out = tmp_path / "run"
    fit(folder, *QUICK, "--out", out)
    for command in ("adapt", "predict"):
        (tmp_path / "new.csv").write_text("g,x\na,1\n")
        told = refused(command, out, tmp_path / "new.csv")
        assert "fitted to images" in told and "inductive=True).probabilities" in told
    # What the sentence says works.
    given = {"images": torch.rand(1, 3, 1, 8, 8), "labels": torch.tensor([[0, 1, 2]])}
    given |= {"new": torch.rand(1, 5, 1, 8, 8), "RUN": out, "bm": bm}
    found = eval(told[told.index("bm.load") :], given)
    assert found.shape == (1, 5, 3)
