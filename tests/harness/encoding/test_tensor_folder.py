"""A folder of tensors: whole or not there, bounded, shared by processes, and never an error for what the disk does."""

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vidsieve.harness.encoding.feature_store import ABANDONED_S, HALF_WRITTEN, TensorFolder

KEY, OTHER = "a" * 64, "b" * 64
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool)


def tensors(value: float = 1.0, count: int = 100) -> dict[str, Tensor]:
    return {"rows": torch.full((count, 4), value), "mask": torch.ones(3, dtype=torch.bool)}


@pytest.fixture
def folder(tmp_path: Path) -> TensorFolder:
    return TensorFolder(tmp_path / "deep" / "down", 1 << 20)


def only_file(folder: TensorFolder) -> Path:
    (file,) = folder.folder.iterdir()
    return file


@settings(max_examples=25, deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(0, 3), max_size=3), min_size=1, max_size=3),
    dtype=st.sampled_from(DTYPES),
    note=st.text(max_size=9),
)
def test_what_is_written_is_read_bit_by_bit(
    tmp_path_factory: pytest.TempPathFactory, shapes: list[list[int]], dtype: torch.dtype, note: str
) -> None:
    folder = TensorFolder(tmp_path_factory.mktemp("store"), 1 << 20)
    written = {f"t{i}": torch.randn(shape).to(dtype) for i, shape in enumerate(shapes)}
    folder.write(KEY, written, {"note": note})
    found = folder.read(KEY)
    assert found is not None
    assert found[1] == {"note": note}
    assert found[0].keys() == written.keys()
    for name, tensor in written.items():
        assert found[0][name].dtype == dtype
        assert torch.equal(found[0][name], tensor)


def test_a_second_write_takes_the_place_of_the_first(folder: TensorFolder) -> None:
    folder.write(KEY, tensors(1.0), {})
    folder.write(KEY, tensors(2.0), {})
    found = folder.read(KEY)
    assert found is not None and float(found[0]["rows"][0, 0]) == 2.0
    assert folder.read(OTHER) is None
    assert [file.name for file in folder.folder.iterdir()] == [f"{KEY[:40]}.vidsieve.safetensors"]


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.99])
def test_a_file_cut_short_counts_as_none_and_goes(folder: TensorFolder, share: float) -> None:
    folder.write(KEY, tensors(), {})
    file = only_file(folder)
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    assert folder.read(KEY) is None
    assert not file.exists()
    folder.write(KEY, tensors(), {})
    assert folder.read(KEY) is not None


@settings(max_examples=40, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), change=st.integers(1, 255))
def test_a_file_with_a_changed_byte_is_never_taken_for_another_content(
    tmp_path_factory: pytest.TempPathFactory, place: float, change: int
) -> None:
    folder = TensorFolder(tmp_path_factory.mktemp("store"), 1 << 20)
    folder.write(KEY, tensors(), {"note": "kept"})
    file = only_file(folder)
    payload = bytearray(file.read_bytes())
    payload[int(place * len(payload))] ^= change
    file.write_bytes(payload)
    found = folder.read(KEY)
    if found is not None:  # a byte of a note, or of the padding of the header
        assert all(torch.equal(found[0][name], tensor) for name, tensor in tensors().items())


def test_a_file_of_another_key_under_this_name_is_not_taken(folder: TensorFolder) -> None:
    alike = KEY[:40] + "c" * 24
    folder.write(alike, tensors(), {})
    assert folder.read(KEY) is None


def test_what_was_used_longest_ago_goes(tmp_path: Path) -> None:
    folder = TensorFolder(tmp_path, 4000)  # two of 1,600 bytes and their headers
    keys = [letter * 64 for letter in "abc"]
    for age, key in zip((30, 20), keys[:2], strict=True):
        folder.write(key, tensors(), {})
        os.utime(tmp_path / f"{key[:40]}.vidsieve.safetensors", (time.time() - age,) * 2)
    assert folder.read(keys[0]) is not None  # used now
    folder.write(keys[2], tensors(), {})
    assert [folder.read(key) is not None for key in keys] == [True, False, True]
    folder.write("d" * 64, tensors(count=1000), {})  # larger than all that may be kept
    assert folder.read("d" * 64) is None
    assert folder.read(keys[0]) is not None


def test_files_that_are_not_ours_are_left_alone(tmp_path: Path) -> None:
    theirs = tmp_path / "model.safetensors"
    theirs.write_bytes(b"weights" * 1000)
    new, old = (tmp_path / f"{name}{HALF_WRITTEN}" for name in ("new", "old"))
    new.write_bytes(b"1")
    old.write_bytes(b"1")
    os.utime(old, (time.time() - 2 * ABANDONED_S,) * 2)
    TensorFolder(tmp_path, 4000).write(KEY, tensors(), {})
    assert theirs.read_bytes() == b"weights" * 1000
    assert new.exists() and not old.exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_disk_that_takes_nothing_is_said_once_and_read_on(
    folder: TensorFolder, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    folder.write(KEY, tensors(), {})

    def full(self: Path, payload: bytes) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "write_bytes", full)
    folder.write(OTHER, tensors(), {})
    assert folder.fault == f"{folder.folder}: cannot be written to ({os.strerror(number)})"
    assert folder.read(OTHER) is None
    assert folder.read(KEY) is not None


def test_a_file_in_place_of_the_folder_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    folder = TensorFolder(tmp_path / "file" / "store", 1 << 20)
    assert folder.read(KEY) is None
    folder.write(KEY, tensors(), {})
    assert folder.fault is not None and "cannot be written to" in folder.fault


WRITER = """
import sys, torch
from pathlib import Path
from vidsieve.harness.encoding.feature_store import TensorFolder
folder, value = TensorFolder(Path(sys.argv[1]), 1 << 20), float(sys.argv[2])
for _ in range(100):
    folder.write("a" * 64, {"rows": torch.full((500, 4), value)}, {"value": str(value)})
assert folder.fault is None
"""


def test_two_processes_that_write_at_once_leave_one_of_both(tmp_path: Path) -> None:
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), value]) for value in ("1.0", "2.0")]
    folder, seen = TensorFolder(tmp_path, 1 << 20), 0
    while any(writer.poll() is None for writer in writers):
        found = folder.read(KEY)
        if found is not None:
            seen += 1
            assert bool((found[0]["rows"] == float(found[1]["value"])).all())
        elif seen:
            pytest.fail("what was there was not read whole")
        time.sleep(0.005)
    assert [writer.wait() for writer in writers] == [0, 0]
    assert folder.read(KEY) is not None
    assert len(list(tmp_path.iterdir())) == 1
