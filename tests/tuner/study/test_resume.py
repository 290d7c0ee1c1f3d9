"""A search that stops anywhere goes on where it stopped: nothing finished is lost, nothing is run twice."""

import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from tuner.fake_bench import FakeBench, FakeTask, fake_policy
from tuner.searching import Recorder, quality, search

from vidsieve.framework.errors import UsageError
from vidsieve.framework.policy.policy import Policy
from vidsieve.framework.task import Example
from vidsieve.tuner.request import TuneRequest
from vidsieve.tuner.result import TrialEvent
from vidsieve.tuner.search.trial_loop import Interrupted
from vidsieve.tuner.study.store import RETRIES, Study, StudyMismatchError


class Killed(BaseException):
    """Stands for a death that nothing in the search can catch."""


class StopsAt(Recorder):
    """Dies, or hears Ctrl-C, after a number of trials."""

    def __init__(self, trials: int, error: type[BaseException] = Killed) -> None:
        super().__init__()
        self.left, self.error = trials, error

    def trial(self, event: TrialEvent) -> None:
        super().trial(event)
        self.left -= 1
        if self.left == 0:
            raise self.error


def trials_of(path: Path) -> list[Any]:
    return optuna.load_study(study_name="vidsieve", storage=f"sqlite:///{path}").trials


@pytest.mark.parametrize("stop_after", [1, 5, 9])
def test_a_killed_search_goes_on_and_runs_no_finished_trial_again(tmp_path: Path, stop_after: int) -> None:
    path, first = tmp_path / "study.db", FakeBench(quality)
    with pytest.raises(Killed):
        search(first, StopsAt(stop_after), storage=path, trials=10)
    before = [t for t in trials_of(path) if t.state.name == "COMPLETE"]
    second, listener = FakeBench(quality), Recorder()
    result = search(second, listener, storage=path, trials=10)
    after = [t for t in trials_of(path) if t.state.name == "COMPLETE"]
    assert [t.user_attrs["vidsieve"] for t in after[:stop_after]] == [t.user_attrs["vidsieve"] for t in before]
    assert len(before) == stop_after
    assert len(after) == 10
    assert [event.number for event in listener.trials] == list(range(stop_after + 1, 11))
    assert [event.number for event in result.trials] == list(range(1, 11))
    assert result.search["trials_resumed"] == stop_after
    # the uncompressed model's search examples were scored in the first session and are not scored again
    assert not any(name == "" and example.startswith("search") for name, example in second.scored)
    assert result.confirmed


def test_a_resumed_search_ends_where_an_unbroken_one_does(tmp_path: Path) -> None:
    whole = search(FakeBench(quality), trials=2)
    path = tmp_path / "study.db"
    # presets are asked in a fixed order, so a search that breaks among them must give the same trials
    with pytest.raises(Killed):
        search(FakeBench(quality), StopsAt(1), storage=path, trials=2)
    resumed = search(FakeBench(quality), storage=path, trials=2)
    assert [t.change_points for t in resumed.trials] == [t.change_points for t in whole.trials]
    assert [t.retention_ratio for t in resumed.trials] == [t.retention_ratio for t in whole.trials]
    assert resumed.policy.hash == whole.policy.hash


def test_a_finished_search_repeated_scores_nothing_again(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    first = search(FakeBench(quality), storage=path, trials=6)
    again = FakeBench(quality)
    second = search(again, storage=path, trials=6)
    assert not again.scored
    assert second.policy.hash == first.policy.hash
    assert second.accuracy is not None and first.accuracy is not None
    assert second.accuracy.policy == first.accuracy.policy


def test_more_trials_go_on_from_a_finished_search(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    search(FakeBench(quality), storage=path, trials=4)
    listener = Recorder()
    result = search(FakeBench(quality), listener, storage=path, trials=7)
    assert [event.number for event in listener.trials] == [5, 6, 7]
    assert len(result.trials) == 7


def test_a_trial_that_ran_when_its_tuner_died_is_asked_again_a_few_times(tmp_path: Path) -> None:
    request = TuneRequest(latency_ms=200.0, storage=tmp_path / "study.db")
    params = {"x": 0.25}
    for session in range(RETRIES + 2):
        study = Study(request)
        study.claim({"model": "one"})
        if session == 0:
            study.enqueue(params)
        trial = study.ask()
        got = trial.suggest_float("x", 0, 1)
        assert (got == params["x"]) is (session <= RETRIES)
        study.close()
    states = [t.state.name for t in study.optuna.trials]
    assert states.count("FAIL") == RETRIES + 1
    assert states.count("RUNNING") == 1


@pytest.mark.parametrize(
    ("change", "field"),
    [({"seed": 1}, "seed"), ({"latency_ms": 250.0}, "target"), ({"examples": 60}, "data: search examples")],
)
def test_another_search_in_the_file_is_refused_field_by_field(
    tmp_path: Path, change: dict[str, Any], field: str
) -> None:
    path = tmp_path / "study.db"
    search(FakeBench(quality), storage=path, trials=2)
    before = path.read_bytes()
    with pytest.raises(StudyMismatchError) as caught:
        search(FakeBench(quality), storage=path, trials=2, **change)
    assert caught.value.exit_code == 2
    assert any(line.strip().startswith(field) for line in caught.value.fields)
    assert "`fresh`" in str(caught.value)
    assert path.read_bytes() == before


def test_another_model_and_a_policy_that_changed_are_refused(tmp_path: Path) -> None:
    class Other(FakeBench):
        def describe(self) -> Any:
            return {**super().describe(), "revision": "1", "device_name": "another GPU"}

    path = tmp_path / "study.db"
    search(FakeBench(quality), storage=path, trials=2)
    with pytest.raises(StudyMismatchError) as caught:
        search(Other(quality), storage=path, trials=2)
    assert "  model: revision: 0 in the study, 1 now" in caught.value.fields
    assert "  model: device_name: not there in the study, another GPU now" in caught.value.fields
    from vidsieve.tuner.tuning import tune

    request = TuneRequest(latency_ms=200.0, trials=2, examples=100, storage=path)
    policies = [fake_policy("good", retention_ratio=0.4), fake_policy("bad")]
    with pytest.raises(StudyMismatchError, match="policy: good"):
        tune(FakeBench(quality), FakeTask(), request, policies=policies)


def test_budgets_may_change_when_a_search_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    search(FakeBench(quality), storage=path, trials=2)
    search(FakeBench(quality), storage=path, trials=3, patience=2, time_budget_s=1e6)


def test_fresh_sets_the_old_study_aside_and_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    search(FakeBench(quality), storage=path, trials=3)
    old = path.read_bytes()
    listener = Recorder()
    search(FakeBench(quality), listener, storage=path, trials=2, seed=5, fresh=True)
    assert [event.number for event in listener.trials] == [1, 2]
    aside = [p for p in tmp_path.glob("study.*.db") if p != path]
    assert len(aside) == 1
    assert aside[0].read_bytes() == old


def sends_sigint(times: int) -> type[FakeBench]:
    """A bench that presses Ctrl-C while it scores its third candidate."""

    class Pressing(FakeBench):
        pressed = 0

        def score(self, policy: Policy | None, examples: Sequence[Example]) -> Any:
            done = len({name for name, _ in self.scored})
            for index, outcome in enumerate(super().score(policy, examples)):
                if policy is not None and done >= 2 and index < times and self.pressed < times:
                    self.pressed += 1
                    os.kill(os.getpid(), signal.SIGINT)
                yield outcome

    return Pressing


def test_the_first_ctrl_c_lets_the_running_trial_finish(tmp_path: Path) -> None:
    path, listener = tmp_path / "study.db", Recorder()
    stopping: list[bool] = []
    listener.stopping = lambda: stopping.append(True)  # type: ignore[method-assign]
    with pytest.raises(Interrupted) as caught:
        search(sends_sigint(1)(quality), listener, storage=path)
    assert stopping == [True]
    assert caught.value.result is not None
    assert [t.state.name for t in trials_of(path) if t.state.name != "WAITING"] == ["COMPLETE"] * len(listener.trials)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_second_ctrl_c_stops_at_once_and_the_trial_is_asked_again(tmp_path: Path) -> None:
    path, listener = tmp_path / "study.db", Recorder()
    with pytest.raises(Interrupted) as caught:
        search(sends_sigint(2)(quality), listener, storage=path)
    assert caught.value.result is not None
    trials = trials_of(path)
    failed = [t for t in trials if t.state.name == "FAIL"]
    assert len(failed) == 1
    assert failed[0].params in [t.system_attrs.get("fixed_params") for t in trials if t.state.name == "WAITING"]
    result = search(FakeBench(quality), storage=path)
    assert result.confirmed


def test_sigterm_writes_what_there_is() -> None:
    class Terminated(Recorder):
        def trial(self, event: TrialEvent) -> None:
            super().trial(event)
            if event.number == 3:
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted) as caught:
        search(FakeBench(quality), Terminated())
    assert caught.value.result is not None
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_search_without_progress_ends_by_patience() -> None:
    result = search(FakeBench(lambda policy: 0.9 if policy.name != "none" else 0.5), trials=100, patience=6)
    assert result.search["stopped_by"] == "patience"
    assert len(result.trials) < 40


@pytest.mark.parametrize("options", [{"latency_ms": 200.0}, {"speedup": 2.5}, {"latency_ms": 10_000.0}])
@pytest.mark.parametrize("devices", [2, 3])
def test_every_device_scores_examples_and_no_trial_fails(devices: int, options: dict[str, Any]) -> None:
    from vidsieve.tuner.tuning import tune

    benches = [FakeBench(quality, noise=0.01, seed=seed) for seed in range(devices)]
    request = TuneRequest(trials=18, examples=60, patience=100, **options)
    listener = Recorder()
    policies = [fake_policy("good"), fake_policy("bad")]
    result = tune(benches[0], FakeTask(), request, policies=policies, others=benches[1:], listener=listener)
    # which settings are tried depends on which device asks first: where the whole prompt meets the target too,
    # the search may find nothing as accurate, and says so by naming no policy
    assert result.policy.name in ({"good", "none"} if result.already_met else {"good"})
    assert sorted(event.number for event in listener.trials) == list(range(1, 19))
    assert [event.reason for event in listener.trials if event.verdict == "failed"] == []
    for bench in benches[1:]:
        assert any(name and example.startswith("search") for name, example in bench.scored)


def test_further_devices_of_a_resumed_search_score_too(tmp_path: Path) -> None:
    from vidsieve.tuner.tuning import tune

    search(FakeBench(quality), storage=tmp_path / "study.db", trials=4, patience=100)
    benches = [FakeBench(quality, noise=0.01, seed=seed) for seed in range(2)]
    request = TuneRequest(latency_ms=200.0, trials=10, examples=100, storage=tmp_path / "study.db", patience=100)
    result = tune(
        benches[0], FakeTask(), request, policies=[fake_policy("good"), fake_policy("bad")], others=benches[1:]
    )
    assert not result.search["failures"]
    assert any(name for name, _ in benches[1].scored)


def test_a_device_that_fails_costs_its_own_trials_only() -> None:
    from vidsieve.tuner.tuning import tune

    class Broken(FakeBench):
        def timed(self, policy: Policy | None, clip_index: int, metric: str) -> Any:
            raise RuntimeError("device lost")

    request = TuneRequest(latency_ms=200.0, trials=12, examples=60, patience=100)
    result = tune(FakeBench(quality), FakeTask(), request, policies=[fake_policy("good")], others=[Broken(quality)])
    assert result.policy.name == "good"
    assert "RuntimeError: device lost" in result.search["failures"].values()


def test_unlike_devices_are_refused() -> None:
    from vidsieve.tuner.tuning import tune

    class Other(FakeBench):
        def describe(self) -> Any:
            return {**super().describe(), "device_name": "another"}

    with pytest.raises(UsageError, match="`devices`: must be alike, but device_name"):
        tune(
            FakeBench(quality),
            FakeTask(),
            TuneRequest(latency_ms=200.0),
            policies=[fake_policy("good")],
            others=[Other(quality)],
        )


def test_the_numbers_of_a_finding_survive_the_study_to_the_last_digit(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    told = search(FakeBench(quality, noise=0.03), storage=path, trials=6).trials
    again = search(FakeBench(quality, noise=0.03), storage=path, trials=6).trials
    assert [replace(event, eta_s=None) for event in again] == [replace(event, eta_s=None) for event in told]
