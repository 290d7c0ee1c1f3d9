"""What is said about the winner: held-out, beside controls, certified or not, in a file that loads back."""

from pathlib import Path
from typing import Any

import pytest
from tuner.fake_bench import STAGES, FakeBench, FakeTask, fake_policy
from tuner.searching import Recorder, quality, search

from vidsieve.framework.policy.file import load_policy
from vidsieve.framework.policy.policy import Policy
from vidsieve.framework.registry import Registry
from vidsieve.tuner.judge.finals import fast_finalists
from vidsieve.tuner.request import TuneRequest
from vidsieve.tuner.study.record import TrialResult
from vidsieve.tuner.tuning import tune


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


def _finding(number: int, change: float, error: float) -> TrialResult:
    return TrialResult(
        number=number,
        candidate=None,
        verdict="feasible",
        value=-0.1 * number,
        violation={},
        change=change,
        change_error=error,
    )


def test_finalists_for_speed_are_the_fastest_the_fastest_safe_and_the_most_accurate() -> None:
    lucky, also_lucky = _finding(1, -0.009, 0.02), _finding(2, -0.009, 0.02)
    safe, slower, accurate = _finding(3, 0.0, 0.005), _finding(4, 0.0, 0.005), _finding(5, 0.01, 0.005)
    assert fast_finalists([lucky, also_lucky, safe, slower, accurate], 0.01) == [lucky, safe, accurate]
    assert fast_finalists([safe], 0.01) == [safe]
    first, second, third = _finding(1, 0.0, 0.005), _finding(2, 0.0, 0.005), _finding(3, 0.0, 0.005)
    assert fast_finalists([first, second, third, accurate], 0.01) == [first, third, accurate]
    assert fast_finalists([], 0.01) == []
