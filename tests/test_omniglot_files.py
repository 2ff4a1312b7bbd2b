"""Omniglot from each of its published forms, and its official runs, on small copies made here."""

from __future__ import annotations

import csv
import re
import zipfile
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from bayesmeta.images import omniglot, omniglot_runs
from bayesmeta.images.archives import LARGEST
from bayesmeta.images.pixels import inked
from bayesmeta.results import InputError

# Written in an order that is not that of the names.
CHARACTERS = {
    "background": [("Greek", "character02"), ("Greek", "character01"), ("Anglo", "character01")],
    "evaluation": [("Angelic", "character01"), ("Angelic", "character02")],
}
ORDER = [
    "Anglo/character01",
    "Greek/character01",
    "Greek/character02",
    "Angelic/character01",
    "Angelic/character02",
]


def refuses(*words: str):
    return pytest.raises(InputError, match="(?s)" + ".*".join(map(re.escape, words)))


def ink(part: str) -> np.ndarray:
    """(character, 20, 105, 105) bool: rectangles of ink, each of another place and size."""
    drawings = np.zeros((len(CHARACTERS[part]), 20, 105, 105), dtype=bool)
    for i, (alphabet, character) in enumerate(CHARACTERS[part]):
        for k in range(20):
            top, left = 5 * len(alphabet) + k, 9 * int(character[-2:])
            drawings[i, k, top : top + 21, left : left + 40] = True
    return drawings


def png(drawing: np.ndarray) -> bytes:
    file = BytesIO()
    Image.fromarray(~drawing).save(file, "png")  # one bit per pixel, paper = 1
    return file.getvalue()


def tree(part: str) -> dict[str, bytes]:
    """Path -> PNG, as in the official repository."""
    return {
        f"images_{part}/{alphabet}/{character}/{i:04d}_{k + 1:02d}.png": png(drawing)
        for i, (alphabet, character) in enumerate(CHARACTERS[part])
        for k, drawing in enumerate(ink(part)[i])
    }


def save_zip(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def save_arrays(root, part):
    np.savez_compressed(root / f"omniglot_images_{part}_105.npz", images=~ink(part))
    with (root / f"characters_{part}.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["split", "alphabet", "character", "char_id", "npz_index"])
        for i, name in enumerate(CHARACTERS[part]):
            writer.writerow([part, *name, i + 1, i])


def save_folders(root, part):
    for name, content in tree(part).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


LAYOUTS = {
    "npz": save_arrays,
    "zip": lambda root, part: save_zip(root / "python" / f"images_{part}.zip", tree(part)),
    "folders": save_folders,
}


@pytest.fixture(scope="module", params=list(LAYOUTS))
def root(request, tmp_path_factory):
    where = tmp_path_factory.mktemp(request.param)
    for part in CHARACTERS:
        LAYOUTS[request.param](where, part)
    return where


def test_every_layout_gives_the_same_images(root):
    images = omniglot(root, size=105)
    assert list(images.classes) == ORDER
    assert images.counts.tolist() == [20] * 5 and images.labels.is_contiguous()
    assert images.labels.tolist() == [i for i in range(5) for _ in range(20)]
    background, evaluation = (
        torch.from_numpy(ink("background")),
        torch.from_numpy(ink("evaluation")),
    )
    expected = torch.cat([background[[2, 1, 0]], evaluation]).reshape(100, 1, 105, 105)
    assert torch.equal(images.values, expected.to(torch.uint8) * 255)  # ink = 255, paper = 0
    assert images.source == "Omniglot (all), 105×105"


def test_parts(root):
    assert list(omniglot(root, part="background").classes) == ORDER[:3]
    assert list(omniglot(root, part="evaluation").classes) == ORDER[3:]
    with refuses('"background", "evaluation" or "all"', "'test'"):
        omniglot(root, part="test")


def test_drawings_are_resized_with_antialiasing(root):
    images = omniglot(root, size=21)
    assert images.shape == (1, 21, 21) and images.values.dtype == torch.uint8
    # Ink is kept: the sum over an image is 1/25 of what it was.
    full = omniglot(root, size=105).values.double().sum((1, 2, 3))
    assert torch.allclose(images.values.double().sum((1, 2, 3)) * 25, full, rtol=0.02)
    assert 0 < images.values.eq(0).double().mean() < 1 and images.values.max() == 255
    assert omniglot(root).shape == (1, 28, 28)
    with refuses("size is a number of pixels", "0"):
        omniglot(root, size=0)


def test_more_drawings_than_are_resized_at_a_time():
    drawings = torch.rand(1203, 6, 6, generator=torch.Generator().manual_seed(0)) < 0.5
    one_by_one = torch.cat([inked(drawing[None], 3) for drawing in drawings[[0, 999, 1000, 1202]]])
    assert torch.equal(inked(drawings, 3)[[0, 999, 1000, 1202]], one_by_one)


def test_nothing_found_says_where_it_looked_and_how_to_get_it(tmp_path):
    words = ("background set", "images_background.zip", "omniglot_images_background_105.npz")
    with refuses(*words, "git clone --depth 1 https://github.com/brendenlake/omniglot"):
        omniglot(tmp_path)
    with refuses("there is no folder", "git clone"):
        omniglot(tmp_path / "omniglot")
    save_arrays(tmp_path, "background")
    assert len(omniglot(tmp_path, part="background").classes) == 3
    with refuses("evaluation set"):
        omniglot(tmp_path)


def without(members, *names):
    return {name: content for name, content in members.items() if name not in names}


LAST = "images_background/Greek/character01/0001_20.png"


@pytest.mark.parametrize(
    ("members", "words"),
    [
        (lambda m: without(m, LAST), ("Greek/character01", "19 drawings, not 20", "git clone")),
        (lambda m: m | {LAST: b"no"}, ("Greek/character01/0001_20.png", "no image")),
        (lambda m: m | {LAST: m[LAST][:-40]}, ("0001_20.png cannot be read",)),
        (lambda m: m | {LAST: png(np.zeros((28, 30), bool))}, ("30×28 pixels", "105×105", "size=")),
        (lambda m: m | {LAST: bytes(LARGEST + 1)}, ("0001_20.png", "too many for a drawing")),
        (lambda m: {"../" + name: content for name, content in m.items()}, ("no drawings named",)),
        (lambda m: {}, ("no drawings named", "characterNN/XXXX_YY.png")),
    ],
)
def test_zips_that_are_not_whole_are_refused(tmp_path, members, words):
    save_zip(tmp_path / "images_background.zip", members(tree("background")))
    with refuses(*words):
        omniglot(tmp_path, part="background")
    assert [path.name for path in tmp_path.iterdir()] == ["images_background.zip"]


def test_other_members_of_a_zip_are_passed_over(tmp_path):
    extra = {"__MACOSX/images_background/Greek/character01/._0001_01.png": b"", "notes.txt": b"x"}
    save_zip(tmp_path / "images_background.zip", tree("background") | extra)
    assert list(omniglot(tmp_path, part="background").classes) == ORDER[:3]


def test_an_array_by_itself_is_not_omniglots_file(tmp_path):
    path = tmp_path / "omniglot_images_background_105.npz"
    with path.open("wb") as file:
        np.save(file, ink("background"))  # .npy under the name of an .npz
    with refuses(path.name, "not a whole file of Omniglot's images"):
        omniglot(tmp_path, part="background")


@pytest.mark.parametrize("read", [omniglot, omniglot_runs])
def test_what_is_no_folder_and_what_does_not_fit_are_refused(read, tmp_path):
    with refuses("a folder is wanted here, not None", "git clone"):
        read(None)
    with refuses("images of 10000000×10000000 pixels", "GiB", "smaller size="):
        read(tmp_path, size=10_000_000)


def test_damaged_zips_are_refused(tmp_path):
    path = tmp_path / "images_background.zip"
    save_zip(path, tree("background"))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with refuses("not a whole zip file", "download it again"):
        omniglot(tmp_path)
    start = content.index(b"_01.png") + 30
    path.write_bytes(content[:start] + bytes(4) + content[start + 4 :])
    with refuses("cannot be read", "download the file again"):
        omniglot(tmp_path)


@pytest.mark.parametrize(
    ("images", "rows", "words"),
    [
        (None, ["a,b,0"], ("is not a whole file of Omniglot's images",)),
        (np.zeros((1, 20, 28, 28), bool), ["a,b,0"], ("bool (1, 20, 28, 28)", "105")),
        (np.zeros((1, 20, 105, 105)), ["a,b,0"], ("float64",)),
        (np.zeros((2, 20, 105, 105), bool), ["a,b,0"], ("each of the 2 characters",)),
        (np.zeros((2, 20, 105, 105), bool), ["a,b,0", "a,b,2"], ("each of the 2 characters",)),
        (np.zeros((2, 20, 105, 105), bool), ["a,b,0", "a,b,1"], ("one name of its own",)),
        (np.zeros((1, 20, 105, 105), bool), ["a,b,0", "a,c,0"], ("one name of its own",)),
        (np.zeros((1, 20, 105, 105), bool), ["a,b,x"], ("ValueError", "npz_index, alphabet")),
        (np.zeros((1, 20, 105, 105), bool), None, ("FileNotFoundError", "characters_")),
    ],
)
def test_arrays_are_refused(tmp_path, images, rows, words):
    arrays = {"other": np.zeros(1)} if images is None else {"images": images}
    np.savez_compressed(tmp_path / "omniglot_images_evaluation_105.npz", **arrays)
    if rows is not None:
        table = "\n".join(["alphabet,character,npz_index", *rows])
        (tmp_path / "characters_evaluation.csv").write_text(table)
    with refuses(*words):
        omniglot(tmp_path, part="evaluation")


# --- the official runs ----------------------------------------------------------------------


def blob(place: int) -> bytes:
    drawing = np.zeros((105, 105), bool)
    drawing[5 * place : 5 * place + 5, :50] = True
    return png(drawing)


@pytest.fixture(scope="module")
def members():
    """20 runs; item k of run r is of class (7 k + r) mod 20, and looks like it."""
    blobs, found = [blob(place) for place in range(20)], {}
    for r in range(1, 21):
        lines = []
        for k in range(20):
            of = (7 * k + r) % 20
            item, image = f"run{r:02d}/test/item{k + 1:02d}.png", f"run{r:02d}/training/class"
            found[f"{image}{k + 1:02d}.png"] = blobs[k]
            found[item] = blobs[of]
            lines.append(f"{item} {image}{of + 1:02d}.png\n")
        found[f"run{r:02d}/class_labels.txt"] = "".join(reversed(lines)).encode()
    return found


@pytest.mark.parametrize("place", ["", "python/one-shot-classification"])
def test_runs_say_which_support_image_each_query_is_of(tmp_path, members, place):
    save_zip(tmp_path / place / "all_runs.zip", members)
    runs = omniglot_runs(tmp_path)
    assert [run.name for run in runs] == [f"run{r:02d}" for r in range(1, 21)]
    for r, run in enumerate(runs, 1):
        assert run.support.shape == run.query.shape == (20, 1, 28, 28)
        assert run.support.dtype == torch.uint8 and run.labels.dtype == torch.long
        assert run.labels.tolist() == [(7 * k + r) % 20 for k in range(20)]
        assert torch.equal(run.query, run.support[run.labels])
    full = omniglot_runs(tmp_path, size=105)[0].support[3, 0]
    assert full[15:20, :50].eq(255).all() and full.count_nonzero() == 250


RUN7 = "run07/class_labels.txt"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: {k: v for k, v in m.items() if k < "run12"}, ("lacks 9 of the 20", "run12")),
        (lambda m: without(m, "run03/training/class05.png"), ("run03/training", "19 drawings")),
        (lambda m: without(m, "run03/test/item05.png"), ("run03/test", "19 drawings")),
        (lambda m: without(m, RUN7), ("lacks run07/class_labels.txt",)),
        (lambda m: m | {RUN7: m[RUN7].replace(b"item05", b"item50")}, ("run07", "item05.png")),
        (lambda m: m | {RUN7: m[RUN7].replace(b"class05", b"class50")}, ("run07", "item")),
        (lambda m: m | {"run07/test/item01.png": b"no"}, ("run07/test/item01.png", "no image")),
    ],
)
def test_runs_that_are_not_whole_are_refused(tmp_path, members, change, words):
    save_zip(tmp_path / "all_runs.zip", change(members))
    with refuses(*words):
        omniglot_runs(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["all_runs.zip"]


def test_runs_not_found(tmp_path):
    with refuses("no all_runs.zip", "python/one-shot-classification", "git clone --depth 1"):
        omniglot_runs(tmp_path)
