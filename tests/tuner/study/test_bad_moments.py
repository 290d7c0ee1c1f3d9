"""A kill in the worst of moments: between two writes, or in the middle of one."""

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vidsieve.tuner.request import TuneRequest
from vidsieve.tuner.study.store import Study, set_aside

PARAMS = {"x": 0.25, "y": 0.75}


def opened(path: Path) -> Study:
    study = Study(TuneRequest(latency_ms=200.0, storage=path))
    study.claim({"model": "one"})
    return study


@pytest.mark.parametrize("suggested", [(), ("x",), ("x", "y")])
def test_a_trial_killed_before_its_parameters_were_all_suggested_is_asked_again(
    tmp_path: Path, suggested: tuple[str, ...]
) -> None:
    study = opened(tmp_path / "study.db")
    study.enqueue(PARAMS)
    trial = study.ask()
    for name in suggested:
        trial.suggest_float(name, 0, 1)
    study.close()
    again = opened(tmp_path / "study.db")
    trial = again.ask()
    assert {name: trial.suggest_float(name, 0, 1) for name in PARAMS} == PARAMS
    assert trial.user_attrs == {"retry": 1}


def test_a_kill_while_a_trial_is_put_back_does_not_lose_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    def dies(*_: Any, **__: Any) -> None:
        raise Killed

    study = opened(tmp_path / "study.db")
    study.enqueue(PARAMS)
    trial = study.ask()
    monkeypatch.setattr(study.optuna, "tell", dies)
    with pytest.raises(Killed):
        study.abandon(trial.number, {}, 0)
    study.close()
    again = opened(tmp_path / "study.db")
    waiting = [t for t in again.optuna.trials if t.state.name == "WAITING"]
    assert all(t.system_attrs["fixed_params"] == PARAMS for t in waiting)
    assert len(waiting) in (1, 2)


DIES_IN_A_TRANSACTION = """
import os, signal, sqlite3, sys
study = sqlite3.connect(sys.argv[1], isolation_level=None)
study.execute("PRAGMA cache_size = 1")
study.execute("BEGIN IMMEDIATE")
study.execute("UPDATE t SET x = zeroblob(2000)")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_fresh_sets_a_study_aside_with_what_its_killed_tuner_left_half_written(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    with sqlite3.connect(path) as study:
        study.execute("CREATE TABLE t (x)")
        study.executemany("INSERT INTO t VALUES (?)", [(str(i) * 100,) for i in range(400)])
    study.close()
    done = subprocess.run([sys.executable, "-c", DIES_IN_A_TRANSACTION, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert os.path.getsize(f"{path}-journal") > 0
    aside = set_aside(path)
    assert aside is not None
    assert not list(tmp_path.glob("study.db*"))
    with sqlite3.connect(aside) as study:
        assert study.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert study.execute("SELECT count(*) FROM t WHERE length(x) < 400").fetchone() == (400,)
    study.close()
