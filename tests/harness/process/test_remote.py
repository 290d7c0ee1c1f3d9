"""A bench in a child process: the same answers, and deaths that cost one call."""

import dataclasses
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from harness.process.benches import Options, gone, within
from tuner.fake_bench import FakeBench, FakeTask, fake_policy
from tuner.searching import quality, search

from vidsieve.framework.errors import DataError, PolicyFileError, TuneError, UnknownNameError
from vidsieve.framework.task import Example
from vidsieve.harness.process.failures import OutOfMemory, WorkerCannotStart, WorkerDied, WorkerError
from vidsieve.harness.process.messages import pack, unpack
from vidsieve.harness.process.remote_bench import RemoteBench
from vidsieve.tuner.measure.latency import PairedTimer, TimingRules
from vidsieve.tuner.protocol import Bench, EncodingWork, SmallerInput
from vidsieve.tuner.trial_failure import reason_of

HARMFUL = "harness.process.benches:harmful"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("marks")


@pytest.fixture(scope="module")
def shared(folder: Path) -> Iterator[RemoteBench]:
    with RemoteBench(HARMFUL, Options(folder), name="cpu") as bench:
        yield bench


@pytest.fixture
def bench(shared: RemoteBench, folder: Path) -> RemoteBench:
    for mark in folder.iterdir():
        mark.unlink()
    return shared


def examples(count: int = 20) -> list[Example]:
    return list(FakeTask().examples("search", count))


def test_the_work_of_all_children_is_summed_up(folder: Path) -> None:
    with RemoteBench(HARMFUL, Options(folder), name="cpu") as bench:
        bench.start()
        assert bench.encoding == EncodingWork()
        list(bench.score(None, examples(4)))
        assert bench.encoding == EncodingWork(passes=4, seconds=2.0)
        bench.renew()
        list(bench.score(None, examples(2)))
        assert bench.encoding == EncodingWork(passes=6, seconds=3.0)


def test_answers_as_the_bench_does(bench: RemoteBench) -> None:
    near = FakeBench(quality)
    same: Bench = bench
    assert isinstance(same, Bench)
    assert (same.shape, same.offers, same.clips, same.smaller) == (near.shape, near.offers, near.clips, near.smaller)
    assert same.describe() == near.describe()
    for policy in (None, fake_policy("good", 0.4)):
        assert same.timed(policy, 3, "e2e") == near.timed(policy, 3, "e2e")
        assert list(same.score(policy, examples())) == list(near.score(policy, examples()))
    shapes = [same.clip_shape(clip) for clip in range(4)]
    assert (shapes[0] == shapes[2]) and (shapes[1] == shapes[3]) and shapes[0] != shapes[1]


def test_a_smaller_input_crosses(bench: RemoteBench) -> None:
    assert bench.timed(SmallerInput(kind="frames", ratio=0.375), 0, "ttft") == {"ttft_ms": 0.375}


def test_a_search_over_it_finds_what_one_in_process_finds(bench: RemoteBench) -> None:
    near, far = search(FakeBench(quality)), search(bench)  # type: ignore[arg-type]
    assert far.policy.hash == near.policy.hash
    assert far.accuracy == near.accuracy
    assert [event.verdict for event in far.trials] == [event.verdict for event in near.trials]
    assert far.policy.provenance["measured_on"] == near.policy.provenance["measured_on"]


def test_a_death_is_said_in_words_and_the_next_call_goes_on(bench: RemoteBench) -> None:
    before = bench.clip_shape(0)
    with pytest.raises(WorkerDied, match=r"^child process cpu: killed by SIGSEGV\.$"):
        bench.timed(fake_policy("SIGSEGV"), 0, "ttft")
    assert bench.timed(None, 0, "ttft")["ttft_ms"] == 500.0
    assert bench.clip_shape(0) != before, "a fresh process has to warm up again"


def test_a_death_while_scoring_leaves_what_came_before(bench: RemoteBench) -> None:
    outcomes = bench.score(fake_policy("SIGKILL"), examples())
    assert [next(outcomes).example_id for _ in range(3)] == [example.id for example in examples()[:3]]
    with pytest.raises(WorkerDied):
        next(outcomes)
    assert len(list(bench.score(None, examples()))) == 20


def test_a_search_survives_policies_that_kill_it(bench: RemoteBench) -> None:
    from vidsieve.tuner.request import TuneRequest
    from vidsieve.tuner.result import Listener, TrialEvent
    from vidsieve.tuner.tuning import tune

    told: list[TrialEvent] = []

    class Listening(Listener):
        def trial(self, event: TrialEvent) -> None:
            told.append(event)

    request = TuneRequest(latency_ms=200.0, trials=4, examples=40)
    policies = [fake_policy("good"), fake_policy("SIGSEGV")]
    result = tune(bench, FakeTask(), request, policies=policies, listener=Listening())
    assert result.policy.name == "good"


def test_memory_that_ran_out_once_is_tried_again_in_a_fresh_child(bench: RemoteBench) -> None:
    before = bench.pid
    outcomes = bench.score(fake_policy("memory-once"), examples())
    assert [outcome.example_id for outcome in outcomes] == [example.id for example in examples()]
    assert bench.pid != before


def test_memory_that_runs_out_twice_is_said_in_a_line(bench: RemoteBench) -> None:
    with pytest.raises(OutOfMemory, match=r"in a fresh process too: .* 1 GiB") as caught:
        bench.timed(fake_policy("memory"), 0, "ttft")
    assert "\n" not in str(caught.value)


def test_a_device_that_is_lost_takes_its_process_along(bench: RemoteBench) -> None:
    bench.start()
    before = bench.pid
    with pytest.raises(RuntimeError, match="illegal memory access"):
        bench.timed(fake_policy("device"), 0, "ttft")
    bench.start()
    assert bench.pid != before


@pytest.mark.parametrize(
    ("harm", "kind", "line"),
    [
        ("data-error", DataError, "DataError: data: cannot be used"),
        ("unknown-name", UnknownNameError, "UnknownNameError: here: no stage named 'topk'. Did you mean 'top-k'?"),
        ("file-error", PolicyFileError, "PolicyFileError: one"),
        ("value-error", ValueError, "ValueError: not that"),
        ("home", TuneError, "TuneError: Home: home: broken"),
    ],
)
def test_errors_cross_as_they_are(
    bench: RemoteBench, harm: str, kind: type[Exception], line: str, capfd: pytest.CaptureFixture[str]
) -> None:
    bench.start()
    before = bench.pid
    with pytest.raises(kind) as caught:
        bench.timed(fake_policy(harm), 0, "ttft")
    assert type(caught.value) is kind
    assert reason_of(caught.value).startswith(line)
    if isinstance(caught.value, PolicyFileError):
        assert caught.value.faults == ["one", "two"]
    assert bench.pid == before, "the child goes on"
    assert "Traceback" not in capfd.readouterr().err


def test_what_the_child_prints_goes_to_standard_error(bench: RemoteBench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.timed(fake_policy("print"), 0, "ttft")
    told: list[str] = []

    def seen() -> bool:
        captured = capsys.readouterr()
        assert captured.out == ""
        told.append(captured.err)
        return "to standard output" in "".join(told)

    assert within(5, seen)


def test_warnings_are_given_here(bench: RemoteBench) -> None:
    with pytest.warns(UserWarning, match="take care"):
        bench.timed(fake_policy("warn"), 0, "ttft")


def test_a_warning_made_an_error_leaves_the_pipe_in_step(bench: RemoteBench) -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning):
            list(bench.score(fake_policy("warn-again"), examples()))
    assert bench.timed(None, 0, "ttft")["ttft_ms"] == 500.0


def test_notices_of_the_bench_cross_once_each_and_are_warned_about(bench: RemoteBench) -> None:
    for name in ("notice-one", "notice-two", "notice-one"):
        bench.timed(fake_policy(name), 0, "ttft")
    assert bench.notices == ["notice-one", "notice-two"]
    bench.renew()
    timer, heard = PairedTimer(bench, "ttft"), []
    timer.warn = heard.append
    timer.measure(fake_policy("notice-one"), TimingRules(max_pairs=2, min_pairs=2))
    assert heard == bench.notices == ["notice-one", "notice-two"]


def test_an_abandoned_score_stops_and_stays_in_step(bench: RemoteBench, folder: Path) -> None:
    many = examples(30_000)
    outcomes = bench.score(None, many)
    next(outcomes)
    outcomes.close()
    assert bench.timed(None, 0, "ttft")["ttft_ms"] == 500.0
    assert (folder / "scored").stat().st_size < len(many)
    assert [o.example_id for o in bench.score(None, many[:5])] == [e.id for e in many[:5]]


def test_outcomes_end_when_something_else_is_asked(bench: RemoteBench) -> None:
    outcomes = bench.score(None, examples())
    next(outcomes)
    bench.timed(None, 0, "ttft")
    with pytest.raises(WorkerError, match="something else was asked"):
        next(outcomes)
    assert len(list(bench.score(None, examples()))) == 20


def test_the_collector_rests_while_the_clock_runs(bench: RemoteBench) -> None:
    assert bench.timed(fake_policy("collector"), 0, "ttft")["collects"] == 0.0


def test_renewal_is_another_process(bench: RemoteBench) -> None:
    first = bench.timed(fake_policy("pid"), 0, "ttft")["pid"]
    assert first == bench.pid
    assert bench.renew() is True
    assert bench.timed(fake_policy("pid"), 0, "ttft")["pid"] not in (first, os.getpid())
    assert gone(int(first))


def test_a_child_that_comes_back_as_another_bench_is_refused(
    bench: RemoteBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "_facts", dataclasses.replace(bench.facts(), clips=3))
    with pytest.raises(WorkerCannotStart, match=r"another bench \(other clips\)"):
        bench.renew()


def test_pixels_cross_by_value_and_once(bench: RemoteBench) -> None:
    film = torch.randint(0, 255, (1000, 3, 8, 8), dtype=torch.uint8)
    part = film[::100]
    payload = pack([part, part])
    assert len(payload) < part.numel() + 1000
    there = unpack(payload)
    assert torch.equal(there[0], part) and there[0] is there[1]
    there[0][0] = 1
    odd = torch.ones(2, dtype=torch.bfloat16)
    assert torch.equal(unpack(pack(odd)), odd)
    seen = [dataclasses.replace(example, frames=part) for example in examples(3)]
    for _ in range(2):
        assert [o.example_id for o in bench.score(None, seen)] == [e.id for e in seen]
    assert all(isinstance(item, int) for item in bench._sent.items(seen))


def test_a_failed_score_sends_its_examples_anew(bench: RemoteBench) -> None:
    broken = fake_policy("good")
    stages = tuple(dataclasses.replace(bound, use=f"{bound.use}.not-there") for bound in broken.stages)
    asked = examples(5)

    class Local(type(broken.stages[0].stage)):  # type: ignore[misc]
        pass

    stages = (dataclasses.replace(stages[0], stage=Local()), *stages[1:])
    with pytest.raises(TuneError, match=r"fake.score.not-there.* is not there.*give that as plugin"):
        list(bench.score(dataclasses.replace(broken, stages=stages), asked))
    assert len(list(bench.score(None, asked))) == 5


PLUGIN = """
from vidsieve import Scores, Stage, VideoTokens, hookimpl, tunable

class Lone(Stage):
    power: float = tunable(1.0, low=0.5, high=2.0)

    @hookimpl
    def score_tokens(self, tokens: VideoTokens) -> Scores:
        return Scores(tokens.features.float().norm(dim=-1) ** self.power)

@hookimpl
def register_stages(register):
    register("lone.score", Lone)
"""


def test_a_stage_of_a_lone_plugin_file_crosses(tmp_path: Path) -> None:
    from vidsieve.framework.policy.file import read_policy
    from vidsieve.framework.registry import Registry

    file = tmp_path / "lone.py"
    file.write_text(PLUGIN)
    registry = Registry()
    registry.add_file(file)
    text = "format: 1\nname: lone\nretention_ratio: 0.3\nstages: [{use: lone.score, power: 0.7}, {use: top-k}]\n"
    policy = read_policy(text, "here", registry)
    with RemoteBench(HARMFUL, Options(tmp_path, plugin=file)) as bench:
        assert bench.timed(policy, 0, "ttft")["ttft_ms"] == 500.0


def test_ctrl_c_at_the_terminal_does_not_reach_the_child(bench: RemoteBench) -> None:
    bench.start()
    assert bench.pid is not None and os.getpgid(bench.pid) != os.getpgid(0)
    os.kill(bench.pid, signal.SIGINT)
    assert bench.timed(fake_policy("pid"), 0, "ttft")["pid"] == bench.pid
