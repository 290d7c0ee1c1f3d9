"""Start and end of the child process of a bench."""

import gc
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from harness.process.benches import Options, gone, within

from vidsieve.framework.errors import ModelError, UsageError
from vidsieve.harness.process import child
from vidsieve.harness.process.failures import WorkerCannotStart, WorkerError
from vidsieve.harness.process.remote_bench import RemoteBench

HARMFUL = "harness.process.benches:harmful"


def test_renewals_leave_no_descriptor_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "MAIN", "harness.process.waits")
    with RemoteBench(HARMFUL, Options(tmp_path)) as bench:
        bench.launch()
        gc.collect()
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(20):
            bench._drop()
            bench.launch()
        assert len(os.listdir("/proc/self/fd")) == before


def test_what_the_factory_raises_is_raised_at_start(tmp_path: Path) -> None:
    with (
        RemoteBench(HARMFUL, Options(tmp_path, start="refuse")) as bench,
        pytest.raises(ModelError, match=r"^checkpoint tiny: is not there\.$"),
    ):
        bench.start()


def test_three_deaths_at_start_are_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "MAIN", "harness.process.dies")
    monkeypatch.setenv("DEATHS", str(tmp_path / "deaths"))
    with (
        RemoteBench(HARMFUL, Options(tmp_path), name="cuda:1") as bench,
        pytest.raises(WorkerCannotStart, match=r"child process cuda:1: killed by SIGABRT.* 3 times in a row"),
    ):
        bench.timed(None, 0, "ttft")
    assert (tmp_path / "deaths").read_text() == "..."


def test_two_deaths_at_start_are_survived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "MAIN", "harness.process.dies")
    monkeypatch.setenv("DEATHS", str(tmp_path / "deaths"))
    monkeypatch.setenv("MOST_DEATHS", "2")
    with RemoteBench(HARMFUL, Options(tmp_path)) as bench:
        assert bench.clips == 8


def test_options_that_cannot_travel_are_refused_before_a_start(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"Options cannot be handed over: .*lambda"):
        RemoteBench(HARMFUL, Options(tmp_path, quality=lambda policy: 1.0))


def test_a_closed_bench_stays_closed(tmp_path: Path) -> None:
    bench = RemoteBench(HARMFUL, Options(tmp_path))
    bench.close()
    with pytest.raises(WorkerError, match="is closed"):
        bench.timed(None, 0, "ttft")


def test_closing_from_another_thread_ends_a_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "MAIN", "harness.process.waits")
    bench = RemoteBench(HARMFUL, Options(tmp_path))
    timer = threading.Timer(0.3, bench.close)
    timer.start()
    with pytest.raises(WorkerError, match="is closed"):
        bench.timed(None, 0, "ttft")
    timer.join()


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "killed by SIGKILL (often: out of memory)"),
        ("os.kill(os.getpid(), signal.SIGRTMIN + 1)", f"killed by signal {signal.SIGRTMIN + 1}"),
        ("sys.exit(3)", "exit code 3"),
        (r"print('so\n\nit ends\n '); os._exit(4)", "exit code 4; it last wrote: it ends"),
        (r"sys.stderr.buffer.write(b'\xff' * 5000); os._exit(5)", "exit code 5; it last wrote: " + "\ufffd" * 200),
    ],
)
def test_what_ended_a_child_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, words: str) -> None:
    (tmp_path / "ends_so.py").write_text(f"import os, signal, sys\n{program}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(child, "MAIN", "ends_so")
    assert child.Child(str(tmp_path)).died_of() == words


def test_a_module_in_the_working_folder_does_not_stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "signal.py").write_text("raise SystemExit(9)")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "ends_well.py").write_text("import signal")
    monkeypatch.syspath_prepend(tmp_path / "here")
    monkeypatch.setattr(child, "MAIN", "ends_well")
    assert child.Child(str(tmp_path)).died_of() == "exit code 0"


PARENT = """
import sys
from pathlib import Path
from tuner.fake_bench import fake_policy
from harness.process.benches import Options
from vidsieve.harness.process.remote_bench import RemoteBench
if __name__ == "__main__":
    bench = RemoteBench("harness.process.benches:harmful", Options(Path(sys.argv[1])))
    bench.start()
    print(bench.pid, flush=True)
    bench.timed(fake_policy("forever"), 0, "ttft")
"""


def test_the_child_ends_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    tests = str(Path(__file__).parents[2])
    parent = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": tests},
        cwd=tmp_path,
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert not gone(child)
    parent.kill()
    parent.wait(20)
    parent.stdout.close()
    assert within(10, lambda: gone(child))
