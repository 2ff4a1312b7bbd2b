"""Images read from folders: one per class, splits as mini-ImageNet's, files that are refused."""

from __future__ import annotations

import os
import re
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from bayesmeta.images import folder
from bayesmeta.results import InputError


def refuses(*words: str):
    return pytest.raises(InputError, match="(?s)" + ".*".join(map(re.escape, words)))


def save(path, colour, size=(8, 8), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)
    return path


@pytest.fixture
def animals(tmp_path):
    """Two classes in folders; what is no image is passed over."""
    save(tmp_path / "ant" / "2.png", (0, 0, 20))
    save(tmp_path / "ant" / "1.BMP", (0, 0, 10))
    save(tmp_path / "bee" / "1.jpg", (200, 200, 200))
    save(tmp_path / ".thumbnails" / "1.png", 0, mode="L")
    (tmp_path / "ant" / "notes.txt").write_text("not an image")
    return tmp_path


def test_folders_of_classes(animals):
    images = folder(animals, size=4)
    assert images.classes == ("ant", "bee") and images.labels.tolist() == [0, 0, 1]
    assert images.shape == (3, 4, 4) and images.values.dtype == torch.uint8
    assert images.values[:, :, 0, 0].tolist() == [[0, 0, 10], [0, 0, 20], [200, 200, 200]]
    assert images.source == animals.name
    assert folder(animals, size=None).shape == (3, 8, 8)
    assert folder(animals, colour=False).shape == (1, 84, 84)


def test_resizing_is_lanczos(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    (tmp_path / "a").mkdir()
    Image.fromarray(noise).save(tmp_path / "a" / "1.png")
    expected = Image.fromarray(noise).resize((7, 7), Image.Resampling.LANCZOS)
    images = folder(tmp_path, size=7)
    assert np.array_equal(images.values[0].permute(1, 2, 0).numpy(), np.asarray(expected))


def test_more_images_than_are_decoded_at_a_time_keep_their_order(tmp_path):
    for k in range(300):
        save(tmp_path / f"class{k // 100}" / f"{k:03d}.png", k % 256, (1, 1), "L")
    images = folder(tmp_path, size=None)
    assert images.values.flatten().tolist() == [k % 256 for k in range(300)]
    assert images.labels.tolist() == [k // 100 for k in range(300)]


def test_splits_in_folders_and_tables_are_the_same(tmp_path):
    for name, label, value in [("x1", "b", 3), ("x2", "a", 1), ("x3", "a", 2)]:
        save(tmp_path / "of" / "train" / label / f"{name}.png", value, mode="L")
        save(tmp_path / "by" / "images" / f"{name}.png", value, mode="L")
    (tmp_path / "by" / "train.csv").write_text("filename,label\nx1.png,b\nx2.png,a\nx3.png,a\n")
    folders = folder(tmp_path / "of", split="train", size=8)
    table = folder(tmp_path / "by", split="train", size=8)
    assert table.values[:, 0, 0, 0].tolist() == [1, 2, 3] and table.classes == ("a", "b")
    assert table.fingerprint() == folders.fingerprint()
    assert (folders.source, table.source) == ("of (train)", "by (train)")
    for root in (tmp_path / "of", tmp_path / "by"):
        with refuses("split into train", 'split="train"'):
            folder(root)
        with refuses("no split 'val'", "val.csv"):
            folder(root, split="val")


def test_a_class_may_be_called_train(tmp_path):
    save(tmp_path / "train" / "1.png", 0)
    save(tmp_path / "tram" / "1.png", 0)
    assert folder(tmp_path).classes == ("train", "tram")


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("filename,label\nx.png,a\n", ("row 2 of", "'x.png'", "images")),
        ("filename,label\n../a.png,a\n", ("row 2 of", "'../a.png'")),
        ("filename,label\n1.png,a\n1.png\n", ("row 3 of", "has no label")),
        ("file,label\n1.png,a\n", ("KeyError: 'filename'", "columns filename and label")),
        ("filename,label\n", ("names no images",)),
        ("filename,label\n1.png,a\n1.png,a\n", ("row 3 of", "'1.png', as row 2 does")),
        ("filename,label\n1.png,a\n1.png,b\n", ("row 3 of", "'1.png', as row 2 does")),
        ("filename,label,label\n1.png,a,b\n", ("row 1 of", "one column 'label'")),
        (f"filename,label\n{'x' * 5000}.png,a\n", ("row 2 of", "xx...", "no such file")),
    ],
)
def test_tables_refuse(tmp_path, rows, words):
    save(tmp_path / "images" / "1.png", 0)
    save(tmp_path / "a.png", 0)
    (tmp_path / "train.csv").write_text(rows)
    with refuses(*words):
        folder(tmp_path, split="train")


def test_grey_among_colour_is_refused_unless_converted(animals):
    save(animals / "bee" / "2.png", 7, mode="L")
    with refuses("2.png is grey", "1.BMP is in colour", "colour=True"):
        folder(animals)
    assert folder(animals, colour=True).values[3, :, 0, 0].tolist() == [7, 7, 7]


def test_what_is_transparent_shows_white_paper(tmp_path):
    save(tmp_path / "a" / "1.png", (10, 20, 30, 0), mode="RGBA")
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.save(tmp_path / "a" / "2.png", transparency=bytes([255, 0]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images = folder(tmp_path)
    assert images.values[:, :, 0, 0].tolist() == [[255, 255, 255], [10, 20, 30]]


@pytest.mark.parametrize(
    ("spoil", "options", "words"),
    [
        (lambda r: (r / "bee/2.png").write_bytes(b"no"), {}, ("2.png", "no image", "delete")),
        (lambda r: cut(r / "bee/1.jpg"), {}, ("1.jpg cannot be read", "intact copy")),
        (lambda r: cut(r / "ant/2.png"), {}, ("2.png cannot be read",)),
        (lambda r: save(r / "bee/2.png", 5, mode="I;16"), {}, ("2.png", "more than 8 bits")),
        (lambda r: (r / "cow").mkdir(), {}, ("class 'cow' has no images", "1 of 3")),
        (
            lambda r: save(r / "bee/2.png", 5, (8, 9)),
            {"size": None},
            ("2.png has 8×9 pixels", "1.BMP has 8×8", "size="),
        ),
        (lambda r: deep(r / "bee/2.png"), {}, ("2.png", "more than 8 bits")),
        (lambda r: deep(r / "bee/2.ppm"), {}, ("2.ppm", "more than 8 bits")),
        (lambda r: os.mkfifo(r / "bee/2.png"), {}, ("bee/2.png is no file",)),
        (lambda r: None, {"size": 1_000_000}, ("3 images of 1000000×1000000", "GiB", "size=")),
        (lambda r: None, {"colour": "grey"}, ("colour='grey'", "False for grey")),
        (lambda r: None, {"size": 0}, ("size", "0")),
        (lambda r: None, {"size": 8.0}, ("size", "8.0")),
        (lambda r: save(r / "ant/a/1.png", 0), {"split": "ant/.."}, ("no split 'ant/..'",)),
        (lambda r: None, {"split": ".."}, ("no split '..'",)),
    ],
)
def test_folders_refuse(animals, spoil, options, words):
    spoil(animals)
    with refuses(*words):
        folder(animals, **options)


def deep(path):
    """A small image of 16 bits a number, which Pillow would cut to 8 without a word."""
    if path.suffix == ".ppm":
        path.write_bytes(b"P6 2 2 65535\n" + b"\x12\x34" * 12)
        return
    rows = (b"\0" + b"\x12\x34" * 6) * 2
    header = struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    chunks = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


def test_images_larger_than_memory_are_refused_as_they_are(animals, monkeypatch):
    monkeypatch.setattr(os, "sysconf", lambda name: 10)  # 100 bytes
    with refuses("3 images of 8×8 pixels", "this machine has 0 GiB"):
        folder(animals, size=None)


def test_a_name_that_is_not_utf_8_is_refused(animals):
    os.rename(animals / "bee", os.fsencode(animals / "b") + b"\xff")
    with refuses("'b\\udcff'", "not UTF-8"):
        folder(animals)
    root = os.fsdecode(os.fsencode(animals) + b"\xff")
    os.rename(animals, root)
    with refuses("not UTF-8"):
        folder(root)


@pytest.mark.parametrize("root", [None, 5])
def test_a_folder_is_a_path(root):
    with refuses(f"a folder is wanted here, not {root}"):
        folder(root)


def cut(path):
    path.write_bytes(path.read_bytes()[:-30])


def test_a_folder_without_classes_is_refused(tmp_path):
    with refuses("no folders", "of its own"):
        folder(tmp_path)
    with refuses("there is no folder"):
        folder(tmp_path / "nowhere")
    with refuses("there is no folder"):
        folder("x" * 5000)
