"""What can happen to a study's file, each told in words: taken, full, locked, damaged, not writable."""

import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
from tuner.fake_bench import FakeBench
from tuner.searching import quality, search

from vidsieve.framework.errors import TuneError, UsageError
from vidsieve.tuner.request import TuneRequest
from vidsieve.tuner.study import storage
from vidsieve.tuner.study.storage import StudyLock
from vidsieve.tuner.study.store import Study

HOLDER = """
import sys
from pathlib import Path
from vidsieve.tuner.study.storage import StudyLock
lock = StudyLock(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def hold(path: Path) -> "subprocess.Popen[str]":
    """Another process that holds the study."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_the_second_tuner_says_who_holds_the_study(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    with hold(path) as process:
        with pytest.raises(TuneError, match=rf"process {process.pid} on .*, since 20.*name another `study`"):
            search(FakeBench(quality), storage=path)
        process.kill()
    # a holder that was killed lets go, and what it left lying about does not matter
    search(FakeBench(quality), storage=path, trials=2)


def test_a_study_is_let_go_when_its_search_fails(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    with pytest.raises(TuneError):
        search(FakeBench(quality), storage=path, latency_ms=1.0)
    StudyLock(path).release()


def full(engine: Any) -> None:
    """No page more than there is now: SQLite then says what it says on a full disk."""
    with engine.connect() as connection:
        pages = connection.execute(sqlalchemy.text("PRAGMA page_count")).scalar()

    @sqlalchemy.event.listens_for(engine, "checkout")
    def limit(connection: Any, *_: Any) -> None:
        connection.execute(f"PRAGMA max_page_count = {pages}")


def test_a_full_disk_is_told_and_the_search_goes_on_once_there_is_room(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    search(FakeBench(quality), storage=url, trials=3)
    place = optuna.storages.RDBStorage(url)
    full(place.engine)
    with pytest.raises(TuneError, match=r"the disk is full\. Make room\. .*run the same command again"):
        search(FakeBench(quality), storage=place, trials=12)
    result = search(FakeBench(quality), storage=url, trials=5)
    assert len(result.trials) == 5
    assert result.search["trials_resumed"] >= 3


def test_a_study_that_another_program_keeps_locked_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "BUSY_SECONDS", 0.05)
    monkeypatch.setattr(storage, "PAUSES_S", (0.0,))
    path = tmp_path / "study.db"
    search(FakeBench(quality), storage=path, trials=2)
    other = sqlite3.connect(path)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(TuneError, match="another program has kept it locked"):
        search(FakeBench(quality), storage=path, trials=3)
    other.rollback()
    assert len(search(FakeBench(quality), storage=path, trials=3).trials) == 3


def test_a_lock_that_passes_is_waited_for() -> None:
    calls: list[float] = []

    def work() -> str:
        if len(calls) < 2:
            raise optuna.exceptions.StorageInternalError("database is locked")
        return "done"

    assert storage.with_retries(work, calls.append) == "done"
    assert calls == list(storage.PAUSES_S[:2])


def test_what_cannot_pass_is_not_waited_for() -> None:
    def work() -> None:
        raise ValueError("no")

    def never(_: float) -> None:
        raise AssertionError("waited")

    with pytest.raises(ValueError, match="no"):
        storage.with_retries(work, never)


@pytest.mark.parametrize("content", [b"no database at all, " * 200, b"SQLite format 3\x00" + b"\xff" * 4000])
def test_a_file_that_is_no_study_is_told_and_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "study.db"
    path.write_bytes(content)
    with pytest.raises(TuneError, match="no study file, or a damaged one"):
        Study(TuneRequest(latency_ms=1.0, storage=path))
    assert path.read_bytes() == content


def test_a_study_in_no_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(TuneError, match=r"study .*missing"):
        Study(TuneRequest(latency_ms=1.0, storage=tmp_path / "missing" / "study.db"))


@pytest.mark.parametrize("url", ["nowhere://x", "grpc://host", "mysql+nothing://x/y"])
def test_a_server_that_makes_no_sense_is_a_usage_error(url: str) -> None:
    with pytest.raises(UsageError, match="`storage`"):
        Study(TuneRequest(latency_ms=1.0, storage=url))


def test_joining_needs_a_server_and_a_search_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="`join`: needs `storage`"):
        TuneRequest(latency_ms=1.0, storage=tmp_path / "study.db", join=True)


def test_a_study_opens_in_other_programs_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    search(FakeBench(quality), storage=path, trials=6)
    study = optuna.load_study(study_name="vidsieve", storage=f"sqlite:///{path}")
    assert {"verdict", "policy", "latency_ratio", "change_points"} <= set(study.best_trial.user_attrs)
    assert all("latency" in trial.constraints for trial in study.trials)
