"""A result file is whole or not there, and never replaces another unasked."""

import os
from pathlib import Path

import pytest

from vidsieve.framework.errors import TuneError, UsageError
from vidsieve.tuner.atomic_files import check_output, write_atomically


def test_a_file_is_written_whole_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = write_atomically(tmp_path / "policy.yaml", "a: ü\n")
    assert path.read_text(encoding="utf-8") == "a: ü\n"
    assert os.listdir(tmp_path) == ["policy.yaml"]


def test_an_existing_file_stays_unless_forced(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("old")
    with pytest.raises(UsageError, match="`force`"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    write_atomically(path, "new", force=True)
    assert path.read_text() == "new"


def test_a_file_that_appears_meanwhile_is_not_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "policy.yaml"
    fsync = os.fsync

    def rival(descriptor: int) -> None:
        fsync(descriptor)
        path.write_text("rival")

    monkeypatch.setattr(os, "fsync", rival)
    with pytest.raises(UsageError, match="exists already"):
        write_atomically(path, "ours")
    assert path.read_text() == "rival"
    assert os.listdir(tmp_path) == ["policy.yaml"]


def test_a_full_disk_says_so_and_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TuneError, match="No space left"):
        write_atomically(path, "new", force=True)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["policy.yaml"]


def test_a_path_that_cannot_be_written_is_refused_early(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="folder"):
        check_output(tmp_path)
    with pytest.raises(UsageError, match="does not exist"):
        check_output(tmp_path / "missing" / "policy.yaml")


def test_the_usual_permissions_apply(tmp_path: Path) -> None:
    ordinary = tmp_path / "ordinary"
    ordinary.write_text("")
    written = write_atomically(tmp_path / "policy.yaml", "a")
    assert written.stat().st_mode == ordinary.stat().st_mode
