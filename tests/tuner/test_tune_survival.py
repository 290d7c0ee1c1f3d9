"""What goes wrong costs as little as it can: one trial, one policy, one control."""

from pathlib import Path
from typing import Any

import pytest
from tuner.fake_bench import FakeBench, FakeTask, fake_policy
from tuner.searching import Recorder, quality, search

from vidsieve.framework.errors import MediaError
from vidsieve.framework.policy.policy import Policy
from vidsieve.harness.process.failures import WorkerCannotStart
from vidsieve.tuner.request import TuneRequest
from vidsieve.tuner.result import TrialEvent
from vidsieve.tuner.search.trial_loop import Interrupted, SearchFailedError
from vidsieve.tuner.tuning import tune


def test_a_trial_that_raises_is_recorded_with_its_reason_and_ends_nothing() -> None:
    class Breaking(FakeBench):
        def score(self, policy: Policy | None, examples: Any) -> Any:
            if policy is not None and policy.name == "bad":
                raise MemoryError("out of memory")
            return super().score(policy, examples)

    listener = Recorder()
    result = search(Breaking(quality), listener)
    failed = [event for event in listener.trials if event.verdict == "failed"]
    assert failed
    assert all(event.reason == "MemoryError: out of memory" for event in failed)
    assert result.policy.name == "good"
    assert "MemoryError: out of memory" in result.search["failures"].values()


@pytest.mark.parametrize("kind", [ZeroDivisionError, TypeError, AttributeError, KeyError, AssertionError])
def test_a_programming_error_in_a_trial_is_no_failed_trial(kind: type[Exception]) -> None:
    class Wrong(FakeBench):
        def score(self, policy: Policy | None, examples: Any) -> Any:
            if policy is not None:
                raise kind("a mistake")
            return super().score(policy, examples)

    listener = Recorder()
    with pytest.raises(kind, match="a mistake"):
        search(Wrong(quality), listener)
    assert not listener.trials


def test_a_policy_that_cannot_run_here_is_set_aside_with_its_reason() -> None:
    class Narrow(FakeBench):
        def timed(self, policy: Policy | None, clip_index: int, metric: str) -> Any:
            if policy is not None and policy.name == "bad":
                raise RuntimeError("no such layer\nand more")
            return super().timed(policy, clip_index, metric)

    listener = Recorder()
    search(Narrow(quality), listener)
    assert listener.bounds is not None
    assert listener.bounds.set_aside == {"bad": "RuntimeError: no such layer"}
    assert all(event.policy == "good" for event in listener.trials)


def test_a_control_that_fails_is_a_warning_and_no_loss() -> None:
    class Breaking(FakeBench):
        def score(self, policy: Policy | None, examples: Any) -> Any:
            if policy is not None and policy.name == "random":
                raise ValueError("odd frames")
            return super().score(policy, examples)

    result = search(Breaking(quality))
    assert result.confirmed
    assert any("odd frames" in text for text in result.warnings)


def test_ctrl_c_keeps_the_best_so_far() -> None:
    class Stopping(Recorder):
        def trial(self, event: TrialEvent) -> None:
            super().trial(event)
            if event.number == 3:
                raise KeyboardInterrupt

    listener = Stopping()
    with pytest.raises(Interrupted) as caught:
        search(FakeBench(quality), listener)
    result = caught.value.result
    assert caught.value.exit_code == 130
    assert result is not None
    assert result.policy.name == "good"
    assert not result.confirmed
    assert result.accuracy is None
    assert listener.ends == [("interrupted", result)]
    assert result.policy.provenance["confirmed"] is False
    assert result.policy.provenance["search"]["stopped_by"] == "interrupted"


def test_ctrl_c_before_anything_was_found_carries_nothing() -> None:
    class Stopping(FakeBench):
        def score(self, policy: Policy | None, examples: Any) -> Any:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted) as caught:
        search(Stopping(quality))
    assert caught.value.result is None


def test_ctrl_c_among_the_controls_loses_only_the_controls() -> None:
    class Stopping(FakeBench):
        def score(self, policy: Policy | None, examples: Any) -> Any:
            if policy is not None and policy.name == "random":
                raise KeyboardInterrupt
            return super().score(policy, examples)

    with pytest.raises(Interrupted) as caught:
        search(Stopping(quality))
    result = caught.value.result
    assert result is not None
    assert result.confirmed
    assert result.accuracy is not None


def test_the_time_budget_ends_the_search_and_leaves_time_to_confirm() -> None:
    now = [0.0]

    class Slow(FakeBench):
        def timed(self, policy: Policy | None, clip_index: int, metric: str) -> Any:
            now[0] += 0.5
            return super().timed(policy, clip_index, metric)

        def score(self, policy: Policy | None, examples: Any) -> Any:
            for outcome in super().score(policy, examples):
                now[0] += 1.0
                yield outcome

    request = TuneRequest(latency_ms=200.0, trials=1000, patience=1000, examples=50, time_budget_s=1500.0)
    result = tune(
        Slow(quality), FakeTask(), request, policies=[fake_policy("good"), fake_policy("bad")], clock=lambda: now[0]
    )
    assert result.search["stopped_by"] == "time budget"
    assert 1 <= result.search["trials"] < 100
    assert now[0] <= 1500
    assert result.confirmed


def test_a_study_can_live_in_a_file(tmp_path: Path) -> None:
    import optuna

    url = f"sqlite:///{tmp_path / 'study.db'}"
    result = search(FakeBench(quality), storage=url, trials=4)
    study = optuna.load_study(study_name="vidsieve", storage=url)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 4
    assert all("latency" in trial.constraints for trial in study.trials)
    assert result.confirmed


def test_a_finalist_that_fails_on_held_out_examples_is_passed_over() -> None:
    class Breaking(FakeBench):
        def score(self, policy: Policy | None, examples: Any) -> Any:
            if policy is not None and policy.name == "good" and examples[0].id.startswith("heldout"):
                raise RuntimeError("too short a clip")
            return super().score(policy, examples)

    # `good` wins the search but cannot be judged; the floor is then the last resort, here with `bad`
    result = search(Breaking(quality, cost_ms={"bad": 0.0}))
    assert result.policy.name == "bad"
    assert any("too short a clip" in text for text in result.warnings)


def test_ctrl_c_in_the_held_out_examples_keeps_the_confirmed_latency() -> None:
    class Stopping(FakeBench):
        def score(self, policy: Policy | None, examples: Any) -> Any:
            if policy is not None and examples[0].id.startswith("heldout"):
                raise KeyboardInterrupt
            return super().score(policy, examples)

    with pytest.raises(Interrupted) as caught:
        search(Stopping(quality, noise=0.02))
    result = caught.value.result
    assert result is not None
    assert result.latency is not None
    assert result.latency.policy_ms.high <= 200
    assert not result.confirmed


class Losing(FakeBench):
    """Cannot be used any more once `good` has been timed this often."""

    left = 10**9

    def timed(self, policy: Policy | None, clip_index: int, metric: str) -> Any:
        if policy is not None and policy.name == "good":
            self.left -= 1
            if self.left < 0:
                raise WorkerCannotStart("child process: killed by SIGABRT. That was at start, 3 times in a row.")
        return super().timed(policy, clip_index, metric)


def test_a_bench_that_cannot_start_ends_the_search_and_spoils_no_trial() -> None:
    bench, listener = Losing(quality), Recorder()
    bench.left = 100
    with pytest.raises(SearchFailedError, match="3 times in a row") as caught:
        search(bench, listener)
    assert isinstance(caught.value.__cause__, WorkerCannotStart)
    assert caught.value.result.policy.name == "good"
    assert 0 < len(listener.trials) < 16
    assert not [event for event in listener.trials if event.verdict == "failed"]


def test_a_bench_that_is_lost_once_the_policy_is_chosen_costs_controls_alone() -> None:
    class Late(FakeBench):
        def timed(self, policy: Policy | None, clip_index: int, metric: str) -> Any:
            if policy is not None and policy.name == "random":
                raise WorkerCannotStart("child process: killed by SIGABRT.")
            return super().timed(policy, clip_index, metric)

    result = search(Late(quality))
    assert result.confirmed
    assert any("SIGABRT" in text for text in result.warnings)


def _raising(phase: str, error: Exception) -> tuple[FakeBench, Recorder]:
    """A bench or listener that raises in a late phase of the search."""

    class Late(FakeBench):
        def score(self, policy: Policy | None, examples: Any) -> Any:
            heldout = examples[0].id.startswith("heldout")
            if phase == "confirming" and heldout and policy is None:
                raise error
            if phase == "judging" and heldout and policy is not None:
                raise error
            if phase == "controls" and policy is not None and policy.name == "random":
                raise error
            return super().score(policy, examples)

        def timed(self, policy: Policy | None, clip_index: int, metric: str) -> Any:
            if phase == "breakdown" and metric == "e2e":
                raise error
            return super().timed(policy, clip_index, metric)

    class Listening(Recorder):
        def finished(self, result: Any) -> None:
            if phase == "finished":
                raise error
            super().finished(result)

    return Late(quality), Listening()


@pytest.mark.parametrize("kind", [ZeroDivisionError, MediaError])
@pytest.mark.parametrize("phase", ["confirming", "judging", "breakdown", "controls", "finished"])
def test_a_late_error_carries_the_best_so_far(phase: str, kind: type[Exception]) -> None:
    bench, listener = _raising(phase, kind("something late"))
    if kind is MediaError and phase in ("breakdown", "controls"):
        # a control that cannot be measured is told in the report, and the policy stands
        assert search(bench, listener, trials=4).confirmed
        return
    with pytest.raises(SearchFailedError, match="something late") as caught:
        search(bench, listener, trials=4)
    assert isinstance(caught.value.__cause__, kind)
    result = caught.value.result
    assert result.policy.name == "good"
    assert result.confirmed is (phase not in ("confirming", "judging"))
    assert phase == "finished" or any("something late" in text for text in result.warnings)


def test_an_error_before_anything_was_found_is_raised_as_it_is() -> None:
    class Early(FakeBench):
        def score(self, policy: Policy | None, examples: Any) -> Any:
            raise MediaError("no.mp4: cannot be read.")

    with pytest.raises(MediaError, match=r"no\.mp4"):
        search(Early(quality))
