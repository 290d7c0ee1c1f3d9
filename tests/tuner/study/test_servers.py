"""Several tuners on one study, on Optuna's gRPC server or PostgreSQL: they share the work, and say what goes wrong."""

import json
import os
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from tuner.fake_bench import FakeBench
from tuner.searching import Recorder, quality, search

from vidsieve.framework.errors import TuneError, UsageError
from vidsieve.tuner.request import TuneRequest
from vidsieve.tuner.result import Bounds, TrialEvent, TuneResult
from vidsieve.tuner.study import storage, store
from vidsieve.tuner.study.storage import open_storage, without_password
from vidsieve.tuner.study.store import Study, StudyMismatchError

TRIALS = 16
PATIENCE_S = 60.0
SERVER = """
import sys
from optuna.storages import get_storage, run_grpc_proxy_server
run_grpc_proxy_server(get_storage(sys.argv[1]), host="localhost", port=int(sys.argv[2]))
"""


class Server:
    """Optuna's own server over a SQLite file, in a process that can be killed."""

    def __init__(self, folder: Path) -> None:
        pytest.importorskip("grpc", reason="needs grpcio and protobuf, which the package does not install")
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        self.url = f"grpc://localhost:{port}"
        place = f"sqlite:///{folder / 'served.db'}"
        self.process = subprocess.Popen([sys.executable, "-c", SERVER, place, str(port)], stderr=subprocess.DEVNULL)
        from optuna.storages import GrpcStorageProxy

        GrpcStorageProxy(host="localhost", port=port).wait_server_ready(timeout=PATIENCE_S)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module", params=["grpc", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    if request.param == "grpc":
        server = Server(folder)
        yield server.url
        server.kill()
        return
    pytest.importorskip("psycopg", reason="needs psycopg, which the package does not install")
    pgserver = pytest.importorskip("pgserver", reason="needs pgserver, a PostgreSQL to install with pip")
    database = pgserver.get_server(folder)
    yield database.get_uri().replace("postgresql://", "postgresql+psycopg://")
    database.cleanup()


def asked(url: str, name: str, **options: Any) -> TuneRequest:
    return TuneRequest(latency_ms=200.0, storage=url, study_name=name, **options)


class Helped(Recorder):
    """Starts `helper` once there is a search to join, and waits after its first trial until the helper told one."""

    def __init__(self, helper: threading.Thread, helped: threading.Event) -> None:
        super().__init__()
        self._helper, self._helped = helper, helped

    def started(self, bounds: Bounds) -> None:
        super().started(bounds)
        self._helper.start()

    def trial(self, event: TrialEvent) -> None:
        super().trial(event)
        assert self._helped.wait(PATIENCE_S)


class Helping(Recorder):
    """Says when it has told a trial."""

    def __init__(self, helped: threading.Event) -> None:
        super().__init__()
        self._helped = helped

    def trial(self, event: TrialEvent) -> None:
        super().trial(event)
        self._helped.set()


def trials_of(url: str, name: str) -> list[Any]:
    return optuna.load_study(study_name=name, storage=open_storage(url)).trials


def test_two_tuners_share_one_search(url: str) -> None:
    helped, results = threading.Event(), list[TuneResult]()
    helping = Helping(helped)
    options: dict[str, Any] = {"storage": url, "study_name": "shared", "trials": TRIALS, "patience": 100}

    def help_out() -> None:
        results.append(search(FakeBench(quality), helping, join=True, **options))

    helper = threading.Thread(target=help_out, daemon=True)
    helped_by = Helped(helper, helped)
    result = search(FakeBench(quality), helped_by, **options)
    helper.join(PATIENCE_S)
    assert not helper.is_alive(), "the joiner ends when the search is complete"
    done = [trial for trial in trials_of(url, "shared") if trial.state.name == "COMPLETE"]
    assert TRIALS <= len(done) <= TRIALS + 1
    assert helped_by.trials and helping.trials
    assert len(helped_by.trials) + len(helping.trials) == len(done)
    measured = Counter()
    for trial in done:
        trial_result = trial.user_attrs["vidsieve"]
        if not trial_result["reason"].startswith("same as trial"):
            measured[json.dumps([trial.params, trial_result["policy_hash"]], sort_keys=True)] += 1
    assert max(measured.values()) == 1
    assert len(result.trials) >= TRIALS
    assert result.confirmed and result.policy.name == "good"
    assert not results[0].confirmed
    assert len(results[0].trials) >= TRIALS


def test_who_comes_when_the_search_is_over_adds_nothing(url: str) -> None:
    search(FakeBench(quality), storage=url, study_name="over", trials=3)
    late = Recorder()
    result = search(FakeBench(quality), late, storage=url, study_name="over", trials=3, join=True)
    assert not late.trials
    assert len(result.trials) == 3


def test_the_second_tuner_that_does_not_join_is_told_who_is_at_work(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = os.getpid()
    first = Study(asked(url, "held"))
    with monkeypatch.context() as patch:
        patch.setattr(store.os, "getpid", lambda: mine + 1)
        with pytest.raises(TuneError, match=rf"another tuner \(process {mine} on .*\) is working on it\. Give --join"):
            Study(asked(url, "held"))
        # the refused one must not have let the first one go
        with pytest.raises(TuneError, match=f"process {mine} "):
            Study(asked(url, "held"))
        first.close()
        Study(asked(url, "held")).close()


def test_who_joins_what_is_not_there_is_told(url: str) -> None:
    with pytest.raises(TuneError, match="no search named 'nothing' to join"):
        Study(asked(url, "nothing", join=True))


def test_who_joins_before_there_is_a_space_waits_or_is_told(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Study(asked(url, "early"))
    first.claim({"model": "one"})
    joiner = Study(asked(url, "early", join=True))
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        first.put(store.SPACE, {"space": 1})

    monkeypatch.setattr(store.time, "sleep", wait)
    joiner.claim({"model": "one"})
    assert len(waits) == 1
    first.put(store.SPACE, None)
    first.close()
    with pytest.raises(TuneError, match="stopped before its first trial"):
        joiner.claim({"model": "one"})


def test_who_joins_with_another_model_is_refused(url: str) -> None:
    class Other(FakeBench):
        def describe(self) -> Any:
            return {**super().describe(), "device_name": "another GPU"}

    search(FakeBench(quality), storage=url, study_name="alike", trials=2)
    with pytest.raises(StudyMismatchError, match=r"another GPU now\nRepeat the first command, or name another --study"):
        search(Other(quality), storage=url, study_name="alike", trials=4, join=True)


def test_a_server_that_goes_away_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "PAUSES_S", (0.0,))
    server = Server(tmp_path)

    class Pulling(Recorder):
        def trial(self, event: TrialEvent) -> None:
            super().trial(event)
            if event.number == 3:
                server.kill()

    with pytest.raises(
        TuneError, match=r"study grpc://localhost:\d+: the storage server no longer answers \(unavailab"
    ):
        search(FakeBench(quality), Pulling(), storage=server.url, trials=8)
    monkeypatch.setattr("optuna.storages.GrpcStorageProxy.wait_server_ready", _no_answer)
    with pytest.raises(TuneError, match="no storage server answers there"):
        Study(asked(server.url, "vidsieve"))
    kept = [t for t in optuna.load_study(study_name="vidsieve", storage=f"sqlite:///{tmp_path / 'served.db'}").trials]
    assert [t.state.name for t in kept[:3]] == ["COMPLETE"] * 3


def _no_answer(*_: Any, **__: Any) -> None:
    raise ConnectionError("GRPC connection timeout")


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("postgresql+psycopg://ann:secret@host/base", "postgresql+psycopg://ann:***@host/base"),
        ("postgresql+psycopg://ann:se:cr@host:5432/base", "postgresql+psycopg://ann:***@host:5432/base"),
        ("postgresql://ann@host/base", "postgresql://ann@host/base"),
        ("grpc://host:13000", "grpc://host:13000"),
    ],
)
def test_passwords_are_not_printed(place: str, told: str) -> None:
    assert without_password(place) == told


def test_an_engine_that_is_not_known_does_not_give_the_password_away() -> None:
    with pytest.raises(UsageError) as caught:
        Study(asked("nowhere://ann:secret@host/x", "vidsieve"))
    assert "secret" not in str(caught.value)
