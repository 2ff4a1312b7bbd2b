"""The file of a checkpoint: damaged ones, places that cannot be written, disks that are full."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from test_resuming import small

import bayesmeta as bm
from bayesmeta import outer
from bayesmeta.ranks import RankLost
from bayesmeta.resuming import BEFORE, FILE, LOG, Checkpoint, telling_what_is_left


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def another(path: Path) -> None:
    save_file({"weights": torch.zeros(3)}, path)


def flipped(path: Path) -> None:
    """One bit of the last number."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


DAMAGES = [truncated, empty, another, flipped, Path.unlink]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_leaves_the_one_before_it(damage, tmp_path):
    checkpoint = Checkpoint(tmp_path, every=2)
    wanted = small(checkpoint=checkpoint)
    damage(checkpoint.path)
    assert "its last checkpoint, after 2 steps, is whole" in checkpoint.left()
    found = small(checkpoint=checkpoint)
    assert torch.equal(found.prior.mean, wanted.prior.mean)
    assert found.trace == wanted.trace
    notes = " ".join(found.notes)
    assert "The fit went on from a checkpoint, after 2 steps." in notes
    assert ("state.safetensors cannot be read" in notes) == (damage is not Path.unlink)


@pytest.mark.parametrize("damage", DAMAGES[:-1])
def test_two_damaged_files_are_refused(damage, tmp_path):
    checkpoint = Checkpoint(tmp_path, every=2)
    small(checkpoint=checkpoint)
    damage(checkpoint.path)
    damage(checkpoint.before)
    with pytest.raises(bm.InputError, match=r"state.*\.safetensors cannot be read .*: remove it"):
        small(checkpoint=checkpoint)
    assert "of its last checkpoint nothing is left" in checkpoint.left()


@pytest.mark.parametrize("record", ["[]", "3", '{"schema": 2}', '{"schema": 2, "identity": null}'])
def test_a_record_that_is_not_one_of_a_fit_is_refused(record, tmp_path):
    checkpoint = Checkpoint(tmp_path)
    save_file({"weights": torch.zeros(3)}, checkpoint.path, metadata={"record": record})
    with pytest.raises(bm.InputError, match=r"its record is not that of a fit.*: remove it"):
        small(checkpoint=checkpoint)


def refused_at_once(checkpoint: object) -> str:
    """What a fit says before its first step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outer, "_take", None)
        with pytest.raises(bm.InputError) as raised:
            small(checkpoint=checkpoint)
    return str(raised.value)


def test_a_place_that_cannot_be_written_is_refused_before_the_first_step(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / FILE).mkdir()
    assert "state.safetensors is a folder, where a file is to be" in refused_at_once(tmp_path)
    for place, why in (
        (tmp_path / "file", "File exists"),
        (tmp_path / "file" / "in", "Not a directory"),
        (Path("/proc/x/ck"), "No such file or directory"),
        ("a\0b", "null byte"),
    ):
        says = refused_at_once(Checkpoint(place))
        assert "cannot be written to" in says and why in says and "choose another folder" in says


@pytest.mark.parametrize("folder", [None, 3, True, ["a"]])
def test_a_folder_is_a_path(folder):
    with pytest.raises(bm.InputError, match="is no folder: give a path"):
        Checkpoint(folder)
    if folder is not None:
        with pytest.raises(bm.InputError, match="is no folder: give a path"):
            small(checkpoint=folder)


def test_a_path_is_a_checkpoint_and_may_begin_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    small(checkpoint="~/a")
    small(checkpoint=Path("~/a"))
    assert (tmp_path / "a" / FILE).is_file()
    assert Checkpoint("~/a").path == tmp_path / "a" / FILE


def test_a_file_of_another_version_is_refused(tmp_path, monkeypatch):
    checkpoint = Checkpoint(tmp_path, every=2)
    small(checkpoint=checkpoint)
    monkeypatch.setattr("bayesmeta.resuming.SCHEMA", 3)
    with pytest.raises(bm.InputError, match=r"has schema 2, this version reads 3.*: go on with"):
        small(checkpoint=checkpoint)


@pytest.mark.parametrize("every", [0, -1, 2.5, True, None])
def test_steps_between_two_writings_are_a_whole_number(every, tmp_path):
    with pytest.raises(bm.InputError, match="give a whole number of steps, at least 1"):
        Checkpoint(tmp_path, every=every)


# Writing


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "no space is left for it"),
        (SafetensorError("I/O error: No space left on device"), "no space is left for it"),
        (PermissionError(errno.EACCES, "Permission denied"), "Permission denied"),
    ],
    ids=["full", "full, says safetensors", "forbidden"],
)
def test_a_file_that_could_not_be_written_leaves_the_last_one(error, why, tmp_path, monkeypatch):
    checkpoint = Checkpoint(tmp_path / "deep" / "er", every=2)
    small(checkpoint=checkpoint)
    before = checkpoint.path.read_bytes()

    def half(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise error

    monkeypatch.setattr("bayesmeta.resuming.save_file", half)
    with pytest.raises(bm.InputError) as raised:
        checkpoint.save(5, {"a": torch.zeros(2)})
    assert str(raised.value).startswith(f"{tmp_path}/deep/er could not be written to after 5 ")
    assert why in str(raised.value)
    assert "its last checkpoint, after 3 steps, is whole" in str(raised.value)
    assert checkpoint.path.read_bytes() == before
    assert {path.name for path in checkpoint.path.parent.iterdir()} == {FILE, BEFORE, LOG}


FULL_DISK = """
import resource, sys, torch
from bayesmeta.resuming import Checkpoint
checkpoint = Checkpoint(sys.argv[1])
checkpoint.save(3, {"a": torch.zeros(9)})
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
checkpoint.save(4, {"a": torch.zeros(900)})
"""


def test_a_disk_that_is_full_is_said_in_a_sentence(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    says = done.stderr.strip().splitlines()[-1]
    assert says.startswith("bayesmeta.results.InputError: ") and "after 4 steps" in says
    assert "no space is left for it" in says and "after 3 steps, is whole" in says


def test_only_the_first_process_writes(tmp_path):
    checkpoint = Checkpoint(tmp_path).of({}, writes=False, notes=[])
    checkpoint.save(1, {"a": torch.zeros(2)})
    assert checkpoint.due(100, 150) and checkpoint.due(150, 150) and not checkpoint.due(101, 150)
    assert not list(tmp_path.iterdir())


def test_a_lost_process_is_told_what_is_left(tmp_path):
    def said(checkpoint: Checkpoint | None) -> tuple[str, Path | None]:
        with pytest.raises(RankLost) as raised, telling_what_is_left(checkpoint):
            raise RankLost("it ended")
        return str(raised.value), raised.value.checkpoint

    assert said(None) == ("it ended; nothing was kept, as it has no checkpoint", None)
    checkpoint = Checkpoint(tmp_path / "state", every=2)
    says, path = said(checkpoint)
    assert "no checkpoint was written yet: the first one comes after 2 steps" in says
    assert path is None
    small(checkpoint=checkpoint)
    says, path = said(checkpoint)
    assert f"after 3 steps, is whole: {checkpoint.path}" in says and path == checkpoint.path
    shutil.rmtree(checkpoint.path.parent)
