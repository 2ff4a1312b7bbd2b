"""Few-shot tasks: what is drawn, how often, from which side of a split, and what is refused."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2
from small_images import bank
from torch.utils.data import TensorDataset

import bayesmeta as bm
from bayesmeta.images import Images


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def numbered(counts: list[int]) -> Images:
    """Images whose every pixel is their own number; class i holds counts[i] of them, shuffled."""
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=generator(5))]
    values = torch.arange(len(labels)).double()[:, None, None, None].expand(-1, 1, 2, 2)
    return Images(values, labels, tuple(f"c{i}" for i in range(len(counts))), "numbered")


def chosen(stream: bm.FewShot, tasks: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """The numbers of the support and query images, (task, ways, image)."""
    found = stream.draw(tasks, generator(seed))
    both = (part.tensors["x"][..., 0, 0, 0].long() for part in found)
    support, query = (numbers.unflatten(1, (stream.ways, -1)) for numbers in both)
    return support, query


SHAPES = st.tuples(st.integers(2, 4), st.integers(1, 3), st.integers(1, 4), st.integers(0, 4))


@settings(deadline=None, max_examples=40)
@given(shape=SHAPES, seed=st.integers(0, 2**32), extra=st.lists(st.integers(0, 5), min_size=8))
def test_a_task_has_distinct_classes_and_no_image_twice(shape, seed, extra):
    ways, shots, queries, spare = shape
    counts = [shots + queries + e for e in extra[: ways + spare]]
    images = numbered(counts)
    stream = bm.FewShot(images, ways, shots, queries, dtype=torch.float64)
    support, query = chosen(stream, 3, seed)
    assert support.shape == (3, ways, shots) and query.shape == (3, ways, queries)
    for task in range(3):
        everything = torch.cat([support[task], query[task]], 1)
        assert len(everything.unique()) == ways * (shots + queries)
        classes = images.labels[everything]
        assert bool((classes == classes[:, :1]).all())  # a row of the task is one class ...
        assert len(classes[:, 0].unique()) == ways  # ... and each another one


@settings(deadline=None, max_examples=20)
@given(shape=SHAPES, seed=st.integers(0, 2**32))
def test_the_rows_of_a_task_are_in_the_order_of_their_labels(shape, seed):
    ways, shots, queries, _ = shape
    stream = bm.FewShot(bank(4, 7, 2), ways, shots, queries)
    support, query = stream.draw(2, generator(seed))
    for part, each in ((support, shots), (query, queries)):
        wanted = [label for label in range(ways) for _ in range(each)]
        assert part.tensors["y"].tolist() == [wanted, wanted]
        assert part.tensors["y"].dtype == torch.long
        assert part.mask.shape == (2, ways * each) and bool(part.mask.all())
        assert part.tensors["x"].shape == (2, ways * each, 1, 2, 2)
        assert part.rowwise == {"x", "y"}
        assert part.index.tolist() == [0, 1]


def uniform(counts: torch.Tensor, expected: torch.Tensor, freedom: int) -> bool:
    """Whether counts are as a uniform draw gives them in all but one of 10,000 cases."""
    statistic = float(((counts - expected).square() / expected).sum())
    return 1e-4 < chi2.cdf(statistic, freedom) < 1 - 1e-4


TASKS = 40_000


def test_classes_and_images_are_uniform():
    """Chi-square of each class at each place, and of each image of a class in each role.

    A task takes its classes without replacement, so counts over all ways are less spread than
    independent draws; one way alone is independent over tasks.
    """
    counts = [3, 4, 7, 5, 3]
    images = numbered(counts)
    stream = bm.FewShot(images, ways=2, shots=1, queries=2, dtype=torch.float64)
    support, query = chosen(stream, TASKS)
    for way in range(2):
        seen = torch.bincount(images.labels[support[:, way, 0]], minlength=5).double()
        assert uniform(seen, torch.full((5,), TASKS / 5).double(), 4)
    pairs = images.labels[support[..., 0]]
    seen = torch.bincount(5 * pairs[:, 0] + pairs[:, 1], minlength=25).double()
    off = ~torch.eye(5).bool().flatten()
    assert uniform(seen[off], torch.full((20,), TASKS / 20).double(), 19)
    for name, role in (("support", support[..., 0]), ("query", query[..., 0])):
        for c, number in enumerate(counts):
            mine = role[images.labels[role] == c]
            own = (images.labels == c).nonzero().flatten()
            seen = torch.stack([(mine == k).sum() for k in own]).double()
            assert uniform(seen, torch.full_like(seen, len(mine) / number), number - 1), (name, c)


def test_the_test_of_uniformity_notices_a_little():
    even = torch.full((5,), TASKS / 5).double()
    tilted = even * torch.tensor([1.06, 0.985, 0.985, 0.985, 0.985]).double()
    assert not uniform(tilted, even, 4) and not uniform(even, even, 4)


# Seeds


def test_the_seed_decides_the_tasks():
    stream = bm.FewShot(bank(), 3, 1, 2)
    (support, query), again = stream.draw(4, generator(7)), stream.draw(4, generator(7))
    assert torch.equal(support.tensors["x"], again[0].tensors["x"])
    assert torch.equal(query.tensors["x"], again[1].tensors["x"])
    other = stream.draw(4, generator(8))
    assert not torch.equal(support.tensors["x"], other[0].tensors["x"])
    # Another stream over the same images, and the family, draw the same.
    equal = bm.FewShot(bank(), 3, 1, 2).family(4, generator(7))
    assert torch.equal(equal[0].tensors["x"], support.tensors["x"])
    assert torch.equal(equal[1].tensors["x"], query.tensors["x"])
    # A generator goes on, and the global one is left alone.
    state, ahead = torch.get_rng_state(), generator(7)
    first, second = stream.draw(4, ahead), stream.draw(4, ahead)
    assert not torch.equal(first[0].tensors["x"], second[0].tensors["x"])
    assert torch.equal(state, torch.get_rng_state())


# Splits and rotations


def test_a_split_is_disjoint_and_of_its_seed():
    stream = bm.FewShot(bank(12, 4), 2, 1, 1)
    train, validation, test = stream.split(6, 2, 4, seed=1)
    assert [len(part.classes) for part in (train, validation, test)] == [6, 2, 4]
    together = train.classes + validation.classes + test.classes
    assert sorted(together) == sorted(stream.classes)
    assert stream.split(6, 2, 4, seed=1)[2].classes == test.classes
    drawn = Counter(stream.split(6, 2, 4, seed=seed)[2].classes for seed in range(20))
    assert len(drawn) > 15
    for part in (train, test):
        assert (part.ways, part.shots, part.queries) == (2, 1, 1)


def test_names_are_taken_first_and_numbers_from_the_rest():
    stream = bm.FewShot(bank(8, 3), 2, 1, 1)
    numbers, names = stream.split(6, ["class03", "class01"])
    assert names.classes == ("class03", "class01")
    assert not set(numbers.classes) & set(names.classes)
    rest, _ = stream.split(2, ["class00", "class01"])
    assert len(rest.classes) == 2


def test_rotations_never_leave_their_side_of_a_split():
    """Each class is a corner of its own brightness, so that an image tells class and rotation."""
    values = torch.zeros(24, 1, 4, 4, dtype=torch.float64)
    labels = torch.arange(6).repeat_interleave(4)
    values[:, 0, 0, 1] = 1.0 + labels
    images = Images(values, labels, tuple("abcdef"), "corners")
    stream = bm.FewShot(images, 5, 1, 2, rotations=True, dtype=torch.float64)
    train, test = stream.split(3, 3, seed=2)
    assert len(train.classes) == 3  # rotations not counted
    seen = []
    for part in (train, test):
        support, query = part.draw(300, generator())
        x = torch.cat([support.tensors["x"], query.tensors["x"]], 1)
        bright = set((x.amax((-1, -2, -3)).flatten() - 1).long().tolist())
        assert {images.classes[i] for i in bright} == set(part.classes)
        seen.append(bright)
        # A class in another rotation is another class: four of each, and five in a task.
        turn = x.flatten(-3).argmax(-1)
        assert len(turn.unique()) == 4
        kinds = support.tensors["x"].flatten(-3).argmax(-1) * 10 + support.tensors["x"].amax(
            (-1, -2, -3)
        )
        assert all(len(task.unique()) == 5 for task in kinds)
        # Support and query images of a class are turned alike.
        alike = query.tensors["x"].flatten(-3).argmax(-1).unflatten(1, (5, 2))
        assert bool((alike == support.tensors["x"].flatten(-3).argmax(-1)[..., None]).all())
    assert not seen[0] & seen[1]
    assert train.record()["rotations"] is True


def test_the_hash_of_a_split_changes_with_its_classes_and_not_with_their_order():
    stream = bm.FewShot(bank(6, 3), 2, 1, 1)
    one = stream.over(stream.images.select(["class00", "class01", "class02"]))
    turned = stream.over(stream.images.select(["class02", "class00", "class01"]))
    other = stream.over(stream.images.select(["class00", "class01", "class03"]))
    assert one.split_hash == turned.split_hash == one.record()["split"]
    assert len({one.split_hash, other.split_hash, stream.split_hash}) == 3
    # The names cannot run into each other.
    joined = [bm.FewShot(bank(2, 2), 2, 1, 1).images for _ in range(2)]
    first = Images(joined[0].values, joined[0].labels, ("ab", "c"), "s")
    second = Images(joined[1].values, joined[1].labels, ("a", "bc"), "s")
    assert bm.FewShot(first, 2, 1, 1).split_hash != bm.FewShot(second, 2, 1, 1).split_hash


def test_the_record_is_what_the_tasks_are_drawn_from():
    stream = bm.FewShot(bank(5, 4), 3, 1, 2)
    record = stream.record()
    assert record == {
        "kind": "few_shot", "ways": 3, "shots": 1, "queries": 2, "rotations": False,
        "source": "generated", "shape": [1, 8, 8], "classes": list(stream.classes),
        "split": stream.split_hash, "images": stream.images.fingerprint(),
    }  # fmt: skip
    assert "5 classes, from generated" in repr(stream) and "3-way 1-shot" in repr(stream)
    assert stream.like(shots=2).record()["shots"] == 2


# Values


def test_eight_bits_come_between_0_and_1():
    values = torch.tensor([0, 51, 255, 102], dtype=torch.uint8).reshape(4, 1, 1, 1)
    images = Images(values, torch.tensor([0, 0, 1, 1]), ("a", "b"), "bytes")
    x = bm.FewShot(images, 2, 1, 1).draw(20, generator())[0].tensors["x"]
    assert x.dtype == torch.float32
    torch.testing.assert_close(x.unique(), torch.tensor([0.0, 0.2, 0.4, 1.0]))
    double = bm.FewShot(images, 2, 1, 1, dtype=torch.float64).draw(20, generator())[0].tensors["x"]
    assert double.dtype == torch.float64
    assert torch.equal(double.unique(), torch.tensor([0, 51, 102, 255]).double() / 255)
    # Floating images are as they are.
    floating = Images(3.0 * values, images.labels, images.classes, "floats")
    assert float(bm.FewShot(floating, 2, 1, 1).draw(20, generator())[0].tensors["x"].max()) == 765
    assert images.values.dtype == torch.uint8


def test_any_labelled_dataset_will_do():
    data = TensorDataset(torch.rand(12, 1, 4, 4), torch.arange(12) % 3)
    stream = bm.FewShot(data, ways=3, shots=1, queries=3)
    assert stream.classes == ("0", "1", "2") and stream.shape == (1, 4, 4)
    support, query = stream.family(2, generator())
    assert support.names == query.names == ("0", "1")
    assert support.tensors["x"].shape == (2, 3, 1, 4, 4) and query.observations == 18


def test_a_stream_on_a_device_is_the_same_stream():
    stream = bm.FewShot(bank(), 3, 1, 2, rotations=True, dtype=torch.float64)
    moved = stream.to("cpu")
    assert moved.record() == stream.record() and moved.dtype == torch.float64
    drawn = [s.draw(2, generator())[0].tensors["x"] for s in (stream, moved)]
    assert torch.equal(*drawn)


# Refused


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ways": 9}, "8 classes are fewer than ways=9: lower ways=, or give more"),
        ({"ways": 33, "rotations": True}, "32 classes are fewer than ways=33"),
        ({"ways": 1}, "ways=1: give a whole number, 2 or more"),
        ({"shots": 0}, "shots=0: give a whole number, 1 or more"),
        ({"queries": 0}, "queries=0: give a whole number"),
        ({"queries": 2.0}, "queries=2.0: give a whole number"),
        ({"shots": True}, "shots=True: give a whole number"),
        ({"shots": 3, "queries": 4}, "class 'class00' has 6 images, fewer than .* = 7.*8 of 8"),
        ({"device": "cuda:99"}, "device='cuda:99': this machine has"),
        ({"device": "gpu"}, "'gpu' is not the name of a device: use cpu or cuda"),
        ({"device": "meta"}, "device='meta' holds no numbers"),
        ({"device": "vulkan"}, "device='vulkan' cannot be used on this machine"),
        ({"dtype": torch.uint8}, "dtype=torch.uint8: give a floating one"),
        ({"dtype": "float32"}, "dtype='float32': give a floating one"),
        ({"rotations": "no"}, "rotations='no': give True or False"),
    ],
)
def test_a_stream_that_cannot_be(options, words):
    given_options = {"ways": 2, "shots": 1, "queries": 2} | options
    with pytest.raises(bm.InputError, match=words):
        bm.FewShot(bank(), **given_options)


def test_the_class_with_too_few_images_is_named():
    images = bank(4, [5, 2, 5, 3])
    with pytest.raises(bm.InputError, match=r"class 'class01' has 2 images.*= 4 \(2 of 4 classes"):
        bm.FewShot(images, 2, 1, 3)
    # What the sentence advises.
    kept = images.select(["class00", "class02"])
    assert bm.FewShot(kept, 2, 1, 3).classes == ("class00", "class02")
    assert bm.FewShot(images, 2, 1, 1).draw(1, generator())[0].tensors["y"].tolist() == [[0, 1]]


def test_values_beyond_the_range_of_a_type_are_refused():
    images = numbered([3, 3])
    large = Images(-1e6 * images.values.float(), images.labels, images.classes, "large")
    with pytest.raises(bm.InputError, match=r"values up to 5e\+06.*torch.float16 ends at 6.55e"):
        bm.FewShot(large, 2, 1, 1, dtype=torch.float16)
    bm.FewShot(large, 2, 1, 1, dtype=torch.bfloat16).draw(1, generator())


def test_a_path_is_no_images():
    with pytest.raises(bm.InputError, match=r"bm.images.folder\('shapes'\)"):
        bm.FewShot("shapes")


@pytest.mark.parametrize("seed", [1.5, -1, 10**30])
def test_a_seed_is_a_whole_number(seed):
    with pytest.raises(bm.InputError, match="seed=.*whole number"):
        bm.FewShot(bank(), 2, 1, 1).split(4, 4, seed=seed)


def test_tasks_beyond_memory_are_named():
    with pytest.raises(bm.InputError, match="no memory for 4611686018427387904 tasks of 4 .*1×8×8"):
        bm.FewShot(bank(), 2, 1, 1).draw(2**62, generator())


def test_cuda_where_there_is_none():
    if torch.cuda.is_available():
        pytest.skip("there is one")
    for call in (
        lambda: bm.FewShot(bank(), 2, 1, 1, device="cuda"),
        lambda: bm.FewShot(bank(), 2, 1, 1).to("cuda:0"),
    ):
        with pytest.raises(bm.InputError, match="no CUDA device.*leave device= out"):
            call()


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ((5, 4), r"needs 9 classes, and 8 are left"),
        ((7, ["class00", "class01"]), "needs 7 classes, and 6 are left"),
        ((["class00", "class01"], ["class01", "class02"]), "'class01' is in two parts"),
        ((["class00", "class00"],), "'class00' is in two parts|named twice"),
        ((["class00", "klass01"],), "no class is named 'klass01'; the nearest is 'class01'"),
        ((-1, 4), "-1 is no part of a split: give a number of classes, or their names"),
        ((4, 1), "1 classes are fewer than ways=2"),
        ((True, 4), "True is no part"),
        (("class00", 4), r"list of class names: write \['class00'\]"),
        ((0.5, 0.5), "0.5 is no part"),
        ((["class00"], 4), "1 classes are fewer than ways=2"),
    ],
)
def test_a_split_that_cannot_be(parts, words):
    with pytest.raises(bm.InputError, match=words):
        bm.FewShot(bank(), 2, 1, 1).split(*parts)


def test_rotated_images_are_not_split():
    """A class and its rotations would fall on two sides, and the test be of classes trained on."""
    turned = bm.FewShot(bank(4).rotated(), 2, 1, 1)
    with pytest.raises(bm.InputError, match="'class00@90' is a rotation.*rotations=True"):
        turned.split(8, 8)


def test_streams_that_share_classes_are_told_apart():
    stream = bm.FewShot(bank(), 2, 1, 1)
    train, test = stream.split(4, 4)
    train.refuse_overlap(test)
    train.refuse_overlap(set(test.classes))
    with pytest.raises(bm.InputError, match="4 of 4 classes of these tasks were also trained on"):
        train.refuse_overlap(stream)
    with pytest.raises(bm.InputError, match=f"1 of 4 .*{test.classes[1]!r} for one.*split"):
        test.refuse_overlap({test.classes[1], "elsewhere"})


@pytest.mark.parametrize("tasks", [0, -3, 2.0])
def test_a_number_of_tasks_that_cannot_be(tasks):
    with pytest.raises(bm.InputError, match="tasks=.*whole number, 1 or more"):
        bm.FewShot(bank(), 2, 1, 1).draw(tasks, generator())
