"""The whole search on a model that is not there, where the best policy and its true latency are known."""

from pathlib import Path
from typing import Any

import pytest
from tuner.fake_bench import STAGES, FakeBench, FakeTask, fake_policy

from vidsieve.framework.errors import DataError, TargetUnreachableError, TuneError, UsageError
from vidsieve.framework.policy import Policy
from vidsieve.framework.policy_file import load_policy
from vidsieve.framework.registry import Registry
from vidsieve.tuner.events import Bounds, Listener, TrialEvent
from vidsieve.tuner.interrupted import Interrupted
from vidsieve.tuner.request import TuneRequest
from vidsieve.tuner.result import TuneResult
from vidsieve.tuner.tune import tune

BEST_POWER = 1.4
GOOD = {"good": 0.0, "bad": -0.25, "random": -0.15, "uniform-frames": -0.2}


def quality(policy: Policy) -> float:
    """More tokens are better; `good` loses little, and less still with power near 1.4."""
    ratio = policy.retention_ratio or 1.0
    tuned = getattr(policy.stages[0].stage, "power", 1.0)
    return 0.9 + GOOD[policy.name] - 0.05 * (1 - ratio) ** 2 - 0.1 * abs(tuned - BEST_POWER)


class Recorder(Listener):
    def __init__(self) -> None:
        self.bounds: Bounds | None = None
        self.trials: list[TrialEvent] = []
        self.confirmed: list[Policy] = []
        self.ends: list[tuple[str, TuneResult | None]] = []

    def started(self, bounds: Bounds) -> None:
        self.bounds = bounds

    def trial(self, event: TrialEvent) -> None:
        self.trials.append(event)

    def confirming(self, policy: Policy) -> None:
        self.confirmed.append(policy)

    def finished(self, result: TuneResult) -> None:
        self.ends.append(("finished", result))

    def interrupted(self, result: TuneResult | None) -> None:
        self.ends.append(("interrupted", result))


def search(
    bench: FakeBench, listener: Listener | None = None, *, task: FakeTask | None = None, **options: Any
) -> TuneResult:
    request = TuneRequest(**({"latency_ms": 200.0, "trials": 16, "examples": 100} | options))
    policies = [fake_policy("good"), fake_policy("bad")]
    controls = [fake_policy("random"), fake_policy("uniform-frames")]
    return tune(bench, task or FakeTask(), request, policies=policies, controls=controls, listener=listener)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_winner_truly_meets_the_target_and_beats_the_preset(seed: int) -> None:
    bench = FakeBench(quality, noise=0.03, seed=seed)
    result = search(bench, seed=seed)
    assert result.policy.name == "good"
    assert bench.true_ms(result.policy) <= 200
    # 200 ms leaves room for a retention of 0.322; the search should stay close to it
    assert (result.policy.retention_ratio or 0) > 0.25
    assert result.confirmed
    assert result.latency is not None
    assert result.latency.policy_ms.high <= 200


def test_the_search_finds_a_better_setting_than_the_published_one() -> None:
    result = search(FakeBench(quality), trials=30)
    assert quality(result.policy) > quality(fake_policy("good", result.policy.retention_ratio or 1.0))


def test_the_same_seed_finds_the_same_policy() -> None:
    first, second = (search(FakeBench(quality, noise=0.02, seed=5), seed=3) for _ in range(2))
    assert first.policy.hash == second.policy.hash


def test_a_relative_target_is_held_by_the_ratio() -> None:
    bench = FakeBench(quality, noise=0.02)
    result = search(bench, latency_ms=None, speedup=2.0)
    assert bench.true_ms(result.policy) <= 250
    assert result.latency is not None
    assert result.latency.ratio.high <= 0.5
    assert result.policy.provenance["target"]["speedup"] == 2.0


def test_a_floor_above_the_target_is_said_before_any_accuracy_is_measured() -> None:
    bench = FakeBench(quality)
    with pytest.raises(TargetUnreachableError, match=r"floor.*uncompressed 500 ms") as caught:
        search(bench, latency_ms=40.0)
    assert caught.value.exit_code == 3
    assert not bench.scored


def test_a_target_already_met_gives_the_fastest_policy_within_the_allowed_drop() -> None:
    bench, listener = FakeBench(lambda policy: quality(policy) if policy.name == "bad" else 0.9), Recorder()
    result = search(bench, listener, latency_ms=10_000.0)
    assert listener.bounds is not None
    assert listener.bounds.already_met
    assert result.already_met
    assert result.policy.name == "good"
    # `good` loses nothing at any retention, so faster is all there is
    assert (result.policy.retention_ratio or 1) < 0.1
    assert result.accuracy is not None
    assert result.accuracy.drop.value <= 0.01


def test_a_target_already_met_and_nothing_worth_it_gives_the_policy_that_does_nothing() -> None:
    result = search(FakeBench(lambda policy: 0.5), latency_ms=10_000.0)
    assert result.policy.name == "none"
    assert result.policy.is_empty
    assert result.accuracy is not None
    assert result.accuracy.difference.value == 0
    assert "no policy was worth it" in result.sentences()[0]


def test_nothing_is_slowed_down_when_the_target_is_already_met() -> None:
    slow = {"good": 600.0, "bad": 600.0}
    result = search(FakeBench(lambda policy: 0.9, cost_ms=slow), latency_ms=10_000.0)
    assert result.policy.is_empty


def test_no_accuracy_examples_are_spent_on_a_trial_that_misses_the_target() -> None:
    listener = Recorder()
    # the settings cost time, which the published policy does not show

    class Costly(FakeBench):
        def true_ms(self, policy: Policy | None) -> float:
            power = policy.stages[0].stage.power if policy else 1.0  # type: ignore[attr-defined]
            return super().true_ms(policy) * (1.5 if power > 1.3 else 1.0)

    bench = Costly(quality)
    result = search(bench, listener, trials=20)
    slow = [event for event in listener.trials if event.verdict == "too slow"]
    assert slow
    assert all(event.scored == 0 and event.score is None for event in slow)
    assert bench.true_ms(result.policy) <= 200


def test_a_policy_that_is_clearly_beaten_is_not_scored_to_the_end() -> None:
    listener = Recorder()
    search(FakeBench(quality), listener)
    beaten = [event for event in listener.trials if event.policy == "bad" and event.verdict == "pruned"]
    assert beaten
    assert all(event.scored < 100 for event in beaten)


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


def test_a_space_with_nothing_in_it_says_why() -> None:
    class Dead(FakeBench):
        def timed(self, policy: Policy | None, clip_index: int, metric: str) -> Any:
            if policy is not None:
                raise RuntimeError("broken")
            return super().timed(policy, clip_index, metric)

    with pytest.raises(TuneError, match=r"nothing to search.*good \(RuntimeError: broken\)"):
        search(Dead(quality))
    with pytest.raises(TuneError, match="No policy was given"):
        tune(FakeBench(quality), FakeTask(), TuneRequest(latency_ms=200), policies=[])


def test_every_published_policy_is_tried_before_the_sampler_roams() -> None:
    listener = Recorder()
    search(FakeBench(quality), listener)
    first = listener.trials[:2]
    assert {event.policy for event in first} == {"good", "bad"}
    assert all(event.settings["fake.score.power"] == 1.0 for event in first)


def test_held_out_examples_are_apart_from_the_search_and_scored_once() -> None:
    bench = FakeBench(quality)
    result = search(bench)
    heldout = set(result.policy.provenance["heldout_ids"])
    searched = {example for _, example in bench.scored if example not in heldout}
    assert len(heldout) == 200
    assert len(searched) == 100
    by_policy = [name for name, example in bench.scored if example in heldout]
    assert {name: by_policy.count(name) for name in set(by_policy)} == dict.fromkeys(
        ("", "good", "random", "uniform-frames"), 200
    )


def test_controls_stand_beside_the_winner_at_its_latency() -> None:
    bench = FakeBench(quality)
    result = search(bench)
    assert [control.name for control in result.controls] == ["random", "uniform-frames"]
    for control in result.controls:
        assert control.latency is not None
        assert result.latency is not None
        assert control.latency.ratio.value == pytest.approx(result.latency.ratio.value, rel=0.02)
        assert control.advantage is not None
        assert control.advantage.low > 0
        assert not control.warning


def test_a_winner_that_does_not_beat_the_controls_is_warned_about() -> None:
    result = search(FakeBench(lambda policy: 0.85))
    warned = [text for text in result.warnings if "does not beat the control" in text]
    assert len(warned) == 2
    assert any("does not beat" in line for line in result.sentences())


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

    request = TuneRequest(latency_ms=200.0, trials=1000, examples=50, time_budget_s=1500.0)
    result = tune(
        Slow(quality), FakeTask(), request, policies=[fake_policy("good"), fake_policy("bad")], clock=lambda: now[0]
    )
    assert result.search["stopped_by"] == "time budget"
    assert 1 <= result.search["trials"] < 100
    assert now[0] <= 1500
    assert result.confirmed


def test_provenance_is_complete_and_the_file_loads_back(tmp_path: Path) -> None:
    result = search(FakeBench(quality, noise=0.02))
    path = result.save(tmp_path / "policy.yaml")
    registry = Registry(installed=False)
    for name, stage in STAGES.items():
        registry.register(name, stage)
    loaded = load_policy(path, registry=registry)
    assert loaded.hash == result.policy.hash
    told = loaded.provenance
    assert told["measured_on"]["model"] == "fake"
    assert told["measured_on"]["device"] == "cpu"
    assert told["data"]["task"]["name"] == "fake"
    assert told["data"]["splits"]["heldout"]["examples"] == len(told["heldout_ids"]) == 200
    assert len(told["data"]["splits"]["search"]["ids_sha256"]) == 64
    assert told["target"] == {"metric": "ttft_ms", "value_ms": 200.0, "already_met": False}
    for interval in (
        told["latency"]["policy_ms"],
        told["latency"]["ratio"],
        told["accuracy"]["policy"],
        told["accuracy"]["change_points"],
        told["bounds"]["floor_ms"],
    ):
        assert interval["low"] <= interval["value"] <= interval["high"]
    assert told["search"]["seed"] == 0
    assert told["search"]["trials"] == 16
    assert told["search"]["sampler"].startswith("optuna 5")
    assert [control["name"] for control in told["controls"]] == ["random", "uniform-frames"]


def test_the_accuracy_in_the_file_is_that_of_its_policy_on_its_ids() -> None:
    bench = FakeBench(quality)
    result = search(bench)
    by_id = {example.id: example for example in FakeTask().examples("heldout", 200)}
    examples = [by_id[name] for name in result.policy.provenance["heldout_ids"]]
    again = list(bench.score(result.policy, examples))
    assert result.policy.provenance["accuracy"]["policy"]["value"] == sum(o.correct for o in again) / 200


def test_a_small_drop_is_certified_and_a_large_one_is_not() -> None:
    same = search(FakeBench(lambda policy: 0.9), heldout_examples=4000, max_drop_points=1.0)
    assert same.accuracy is not None
    assert same.accuracy.certified
    worse = search(FakeBench(quality))
    assert worse.accuracy is not None
    assert not worse.accuracy.certified
    assert any("not certified" in line for line in worse.sentences())


def test_zero_or_one_scores_do_where_there_is_no_p_gold() -> None:
    listener = Recorder()
    result = search(FakeBench(quality, p_gold=False), listener)
    assert {event.scorer for event in listener.trials} == {"correct"}
    assert result.policy.name == "good"


def test_agreement_needs_no_answers_and_is_called_agreement() -> None:
    result = search(FakeBench(quality, full=1.0, p_gold=False), task=FakeTask("agreement"))
    assert result.accuracy is not None
    assert result.accuracy.metric == "agreement"
    assert any("held-out agreement" in line for line in result.sentences())


@pytest.mark.parametrize("value", [0.0, -5.0, float("nan"), float("inf")])
def test_a_target_that_is_no_time_is_refused(value: float) -> None:
    with pytest.raises(UsageError, match="--latency-ms"):
        TuneRequest(latency_ms=value)


@pytest.mark.parametrize("value", [0.0, 1.0, -2.0, float("nan")])
def test_a_speedup_that_is_none_is_refused(value: float) -> None:
    with pytest.raises(UsageError, match="--speedup"):
        TuneRequest(speedup=value)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"latency_ms": 200.0, "speedup": 2.0},
        {"latency_ms": 200.0, "trials": 0},
        {"latency_ms": 200.0, "examples": 1},
        {"latency_ms": 200.0, "heldout_examples": 0},
        {"latency_ms": 200.0, "max_drop_points": -1.0},
        {"latency_ms": 200.0, "max_drop_points": float("nan")},
        {"latency_ms": 200.0, "time_budget_s": 0.0},
    ],
)
def test_a_request_that_makes_no_sense_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        TuneRequest(**options)


def _spoiled(spoil: Any) -> FakeTask:
    class Spoiled(FakeTask):
        def examples(self, split: str, count: int, *, seed: int = 0) -> Any:
            return spoil(split, list(super().examples(split, count, seed=seed)))

    return Spoiled()


def test_one_example_is_refused() -> None:
    with pytest.raises(DataError, match="1 found"):
        search(FakeBench(quality), task=FakeTask(available=1))


def test_repeated_ids_are_refused() -> None:
    with pytest.raises(DataError, match="more than once"):
        search(FakeBench(quality), task=_spoiled(lambda split, examples: [*examples, examples[0]]))


def test_a_video_in_both_splits_is_refused() -> None:
    def spoil(split: str, examples: Any) -> Any:
        object.__setattr__(examples[0], "group", "shared-video")
        return examples

    with pytest.raises(DataError, match="shared-video"):
        search(FakeBench(quality), task=_spoiled(spoil))


def test_missing_answers_are_refused_with_the_way_out() -> None:
    def spoil(split: str, examples: Any) -> Any:
        object.__setattr__(examples[3], "answer", None)
        return examples

    with pytest.raises(DataError, match="--videos"):
        search(FakeBench(quality), task=_spoiled(spoil))


def test_two_policies_of_one_name_are_refused() -> None:
    request = TuneRequest(latency_ms=200)
    with pytest.raises(UsageError, match="two are named 'good'"):
        tune(FakeBench(quality), FakeTask(), request, policies=[fake_policy("good"), fake_policy("good")])


def test_a_bench_that_answers_other_examples_is_refused() -> None:
    class Lazy(FakeBench):
        def score(self, policy: Policy | None, examples: Any) -> Any:
            return list(super().score(policy, examples))[:-1]

    with pytest.raises(TuneError, match="the bench gave"):
        search(Lazy(quality))


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


def test_a_fast_policy_that_drops_too_much_on_held_out_examples_is_not_written() -> None:
    class Overfitted(FakeBench):
        def score(self, policy: Policy | None, examples: Any) -> Any:
            self.full = 0.9 if policy is None else self.full
            held = examples[0].id.startswith("heldout")
            self.quality = (lambda policy: 0.5) if held else (lambda policy: 0.9)
            return super().score(policy, examples)

    result = search(Overfitted(quality), latency_ms=10_000.0)
    assert result.policy.is_empty
    assert result.confirmed


def test_a_control_that_is_searched_is_no_control() -> None:
    request = TuneRequest(latency_ms=200, trials=2, examples=20)
    random = fake_policy("random")
    result = tune(FakeBench(quality), FakeTask(), request, policies=[random], controls=[random])
    assert result.policy.name == "random"
    assert not result.controls


def test_a_study_that_holds_a_search_already_is_refused(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    search(FakeBench(quality), storage=url, trials=1)
    with pytest.raises(TuneError, match="holds a search already"):
        search(FakeBench(quality), storage=url, trials=1)
