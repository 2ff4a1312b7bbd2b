"""Labelled images in memory: selected, rotated, fingerprinted, read from any Dataset."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import IterableDataset, Subset, TensorDataset

import bayesmeta as bm
from bayesmeta.images import Images, of_dataset
from bayesmeta.results import InputError

NAMES = ("Greek/character01", "Greek/character02", "Latin/character01")


def bank(counts=(2, 1, 3), shape=(1, 4, 4), dtype=torch.uint8) -> Images:
    """Image k is full of the value k; classes are interleaved."""
    labels = torch.tensor([i for i, count in enumerate(counts) for _ in range(count)]).flip(0)
    values = torch.arange(len(labels), dtype=dtype).reshape(-1, 1, 1, 1).expand(-1, *shape).clone()
    return Images(values, labels, NAMES[: len(counts)], "test")


def refuses(*words: str):
    return pytest.raises(InputError, match="(?s)" + ".*".join(map(re.escape, words)))


# --- Images ---------------------------------------------------------------------------------


def test_images_say_what_they_are():
    images = bank()
    assert bm.images.Images is Images
    assert len(images) == 6 and images.shape == (1, 4, 4) and images.device.type == "cpu"
    assert images.counts.tolist() == [2, 1, 3] and images.counts.dtype == torch.long
    assert str(images) == "6 images 1×4×4, 3 classes, from test"
    moved = images.to(torch.device("cpu"))
    assert torch.equal(moved.values, images.values) and moved.classes == images.classes


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"values": torch.zeros(6, 4, 4)}, ("(image, channel, height, width)", "(6, 4, 4)")),
        ({"values": torch.zeros(0, 1, 4, 4)}, ("no images",)),
        ({"values": torch.zeros(6, 1, 4, 4).long()}, ("torch.int64", "convert")),
        ({"values": torch.full((6, 1, 4, 4), torch.nan)}, ("image 0", "not finite", "6 of 6")),
        ({"labels": torch.zeros(5).long()}, ("one for each of 6 images", "(5,)")),
        ({"labels": torch.zeros(6)}, ("long", "torch.float32")),
        ({"labels": torch.tensor([0, 1, 2, 3, 0, 1])}, ("image 3 has label 3", "0 to 2")),
        ({"labels": torch.tensor([0, 1, 2, 0, -1, 1])}, ("image 4 has label -1",)),
        ({"labels": torch.tensor([0, 0, 2, 2, 0, 0])}, ("character02' has no images", "1 of 3")),
        ({"classes": ("a", "b", "a")}, ("'a' is named twice",)),
        ({"classes": ("a", 1, "c")}, ("strings", "1 is int")),
        ({"classes": ()}, ("no classes",)),
        ({"classes": 5}, ("list of names, not 5",)),
        ({"classes": "abc"}, ("list of class names", "['abc']")),
        ({"classes": ("a", "b\udcff", "c")}, ("'b\\udcff'", "not UTF-8", "rename")),
        ({"values": np.zeros((6, 1, 4, 4))}, ("values", "a tensor", "ndarray", "from_numpy")),
        ({"labels": np.zeros(6, int)}, ("labels", "a tensor", "ndarray")),
    ],
)
def test_images_refuse_what_disagrees(change, words):
    images = bank()
    given = {n: getattr(images, n) for n in ("values", "labels", "classes", "source")}
    with refuses(*words):
        Images(**(given | change))


def test_labels_and_images_are_on_one_device():
    with refuses("labels are on cpu and images on meta"):
        elsewhere = torch.zeros(2, 1, 4, 4, dtype=torch.uint8, device="meta")
        Images(elsewhere, torch.zeros(2).long(), ("a",), "test")


@given(st.permutations(NAMES), st.integers(1, 3))
def test_select_takes_classes_in_the_order_asked_for(names, count):
    images = bank()
    chosen = images.select(names[:count])
    assert chosen.classes == tuple(names[:count])
    expected = [
        k for name in names[:count] for k in range(6) if NAMES[int(images.labels[k])] == name
    ]
    assert chosen.values[:, 0, 0, 0].tolist() == expected
    assert [NAMES[int(images.labels[k])] for k in expected] == [
        chosen.classes[i] for i in chosen.labels
    ]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["Greek/charater02"], ("'Greek/charater02'", "nearest is 'Greek/character02'")),
        ([NAMES[0], NAMES[0]], ("named twice",)),
        ([], ("no classes",)),
        (NAMES[0], ("list of class names", "['Greek/character01']")),
        (5, ("list of names, not 5",)),
    ],
)
def test_select_refuses(names, words):
    with refuses(*words):
        bank().select(names)


def test_rotations_of_a_known_pattern():
    pattern = torch.tensor([[1, 2], [3, 4]], dtype=torch.uint8)
    images = Images(pattern[None, None], torch.tensor([0]), ("a",), "test").rotated()
    assert images.classes == ("a", "a@90", "a@180", "a@270")
    assert images.values.dtype == torch.uint8 and images.labels.tolist() == [0, 1, 2, 3]
    assert images.values[:, 0].tolist() == [
        [[1, 2], [3, 4]],
        [[2, 4], [1, 3]],  # a quarter turn counter-clockwise: the right column is now on top
        [[4, 3], [2, 1]],
        [[3, 1], [4, 2]],
    ]


def test_rotations_keep_classes_apart():
    images = bank()
    turned = images.rotated((270, 0))
    assert turned.classes == (*(f"{n}@270" for n in NAMES), *NAMES)
    assert turned.counts.tolist() == [2, 1, 3] * 2
    plain = turned.select(NAMES)
    assert torch.equal(plain.values, images.select(NAMES).values)


@pytest.mark.parametrize(
    ("images", "degrees", "words"),
    [
        (bank(), (0, 45), ("multiples of 90", "45")),
        (bank(), (90, 450), ("different rotations", "[90, 450]")),
        (bank(), (), ("different rotations",)),
        (bank(), 90, ("list of rotations", "not 90")),
        (bank(), ("a",), ("multiples of 90 degrees, not by a",)),
        (bank(shape=(1, 4, 6)), (90,), ("4×6", "squares")),
        (bank().rotated((90,)), (90,), ("character01@90' is a rotation already",)),
    ],
)
def test_rotations_refuse(images, degrees, words):
    with refuses(*words):
        images.rotated(degrees)


@given(st.integers(0, 5), st.integers(0, 3), st.integers(0, 3))
def test_the_fingerprint_sees_one_pixel(image, row, column):
    images, other = bank(), bank()
    assert images.fingerprint() == other.fingerprint()
    other.values[image, 0, row, column] += 1
    assert images.fingerprint() != other.fingerprint()


def test_the_fingerprint_sees_labels_names_shape_and_dtype():
    images = bank()
    others = [
        Images(images.values, images.labels.flip(0), images.classes, "test"),
        Images(images.values, images.labels, (*NAMES[:2], "x"), "test"),
        Images(images.values.reshape(6, 1, 2, 8), images.labels, NAMES, "test"),
        Images(images.values.to(torch.bfloat16), images.labels, NAMES, "test"),
    ]
    prints = {x.fingerprint() for x in [images, *others]}
    assert len(prints) == 5
    same_bytes = [images.values.to(t) * 0 for t in (torch.float16, torch.bfloat16)]
    assert len({Images(v, images.labels, NAMES, "test").fingerprint() for v in same_bytes}) == 2
    assert Images(images.values, images.labels, NAMES, "other").fingerprint() in prints


# --- of_dataset -----------------------------------------------------------------------------

GREY = np.arange(6, dtype=np.uint8).reshape(2, 3)
COLOUR = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (GREY, torch.from_numpy(GREY)[None]),
        (torch.from_numpy(GREY), torch.from_numpy(GREY)[None]),
        (torch.from_numpy(COLOUR).permute(2, 0, 1), torch.from_numpy(COLOUR).permute(2, 0, 1)),
        (COLOUR, torch.from_numpy(COLOUR).permute(2, 0, 1)),
        (Image.fromarray(GREY), torch.from_numpy(GREY)[None]),
        (Image.fromarray(COLOUR), torch.from_numpy(COLOUR).permute(2, 0, 1)),
        (GREY > 2, torch.tensor([[[0, 0, 0], [255, 255, 255]]], dtype=torch.uint8)),
        (GREY / 2, torch.from_numpy(GREY)[None] / 2),
        (torch.from_numpy(GREY).double() / 2, torch.from_numpy(GREY)[None] / 2),
    ],
)
def test_images_of_every_form_are_read(image, expected):
    images = of_dataset([(image, 0)])
    assert images.values.dtype == expected.dtype
    assert torch.equal(images.values[0], expected)


def test_labels_are_any_integers():
    labels = [7, torch.tensor(-2), np.int64(7), 30]
    images = of_dataset([(GREY, label) for label in labels], source="made up")
    assert images.classes == ("-2", "7", "30") and images.labels.tolist() == [1, 0, 1, 2]
    assert images.source == "made up" and of_dataset([(GREY, 0)]).source == "list"


def test_classes_are_named_by_the_dataset_or_by_hand():
    class Pets(list):
        classes = ("cat", "dog", "eel")

    pets = Pets([(GREY, 2), (GREY, 0)])
    assert of_dataset(pets).classes == ("cat", "eel")
    assert of_dataset(pets, classes=["a", "b", "c"]).classes == ("a", "c")
    with refuses("label 2 has no name", "0 to 1"):
        of_dataset(pets, classes=["a", "b"])


def test_torch_datasets_are_read():
    data = TensorDataset(torch.rand(5, 1, 4, 4), torch.tensor([0, 1, 0, 1, 1]))
    images = of_dataset(Subset(data, [1, 2, 4]))
    assert torch.equal(images.values, data.tensors[0][[1, 2, 4]])
    assert images.labels.tolist() == [1, 0, 1]


class Stream(IterableDataset):
    def __iter__(self):
        return iter([(GREY, 0)])


class Broken(list):
    def __getitem__(self, i):
        if i == 1:
            raise OSError("cut short")
        return super().__getitem__(i)


class Unnamed(list):
    classes = 5


@pytest.mark.parametrize("device", ["cuda:99", "meta", "vulkan", "toaster"])
def test_images_stay_where_there_is_a_device(device):
    with refuses(device):
        bank().to(device)


def test_images_too_large_for_a_device_are_named(monkeypatch):
    def full(tensor, device):
        raise torch.OutOfMemoryError("CUDA out of memory")

    images = bank()
    monkeypatch.setattr(torch.Tensor, "to", full)
    with refuses("no memory for 6 images 1×4×4", "on cpu", "fewer or smaller"):
        images.to("cpu")


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        (Broken([(GREY, 0), (GREY, 1)]), ("Broken[1]", "image 1", "OSError: cut short")),
        (Unnamed([(GREY, 0)]), ("classes are 5", "names of all labels as a list")),
        ([(GREY, 2**70)], (f"image 0 has label {2**70}", "64 bits")),
        ("shapes", ("not the path 'shapes'", "bm.images.folder('shapes')")),
        (Path("shapes"), ("bm.images.folder('shapes')",)),
        (Stream(), ("Stream cannot be indexed", "map-style")),
        ({(0, 1)}, ("set cannot be indexed",)),
        ([], ("list is empty",)),
        ([GREY], ("list[0] is ndarray", "pair (image, label)")),
        ([(GREY, 0, 1)], ("pair (image, label)",)),
        ([(GREY, "cat")], ("image 0 has label 'cat'", "integer", "sorted(", "classes=names")),
        ([(GREY, 0.5)], ("label 0.5",)),
        ([("x.png", 0)], ("image 0 is str",)),
        ([(GREY, 0), (GREY.T, 0)], ("image 1 has shape (1, 3, 2)", "image 0 has (1, 2, 3)")),
        ([(GREY, 0), (COLOUR, 0)], ("image 1 has 3 channels and image 0 has 1",)),
        ([(GREY, 0), (GREY / 2, 0)], ("image 1 has dtype torch.float32", "torch.uint8")),
        ([(GREY.astype(int), 0)], ("image 0 has dtype torch.int64", "uint8")),
        ([(GREY.astype("U"), 0)], ("image 0 has dtype <U",)),
        ([(torch.zeros(4), 0)], ("image 0 has shape (4,)",)),
        ([(np.zeros((2, 2, 2, 2)), 0)], ("image 0 has shape (2, 2, 2, 2)",)),
        ([(torch.zeros(8, 9, 3), 0)], ("channels last", "permute")),
        ([(np.zeros((3, 8, 9)), 0)], ("channels first",)),
    ],
)
def test_datasets_refuse(dataset, words):
    with refuses(*words):
        of_dataset(dataset)
