"""The search on a model that is not there, where the best policy and its true latency are known."""

import pytest
from tuner.fake_bench import FakeBench, fake_policy
from tuner.searching import Recorder, quality, search

from vidsieve.framework.errors import TargetUnreachableError
from vidsieve.framework.policy.policy import Policy
from vidsieve.tuner.protocol import EncodingWork


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


def test_every_published_policy_is_tried_before_the_sampler_roams() -> None:
    listener = Recorder()
    search(FakeBench(quality), listener)
    first = listener.trials[:2]
    assert {event.policy for event in first} == {"good", "bad"}
    assert all(event.settings["fake.score.power"] == 1.0 for event in first)


def test_where_speed_is_what_counts_the_published_ratio_a_milder_one_and_half_of_it_come_first() -> None:
    listener = Recorder()
    search(FakeBench(quality), listener, latency_ms=10_000.0, trials=6)
    assert [event.retention_ratio for event in listener.trials] == [0.3, 0.3, 0.65, 0.65, 0.15, 0.15]


def test_what_encoding_once_has_spared_is_told_and_kept() -> None:
    bench, said = FakeBench(quality), list[str]()
    bench.encoding = EncodingWork(passes=40, seconds=12.34, saved_passes=900, saved_seconds=277.0)  # type: ignore[attr-defined]

    class Hears(Recorder):
        def notice(self, text: str) -> None:
            said.append(text)

    result = search(bench, Hears())
    assert [text for text in said if "encoded once" in text] == [
        "clips encoded once: 40 passes of the vision tower with reading in 12.3 s; 900 more were spared, 277.0 s"
    ]
    told = {"passes": 40, "seconds": 12.3, "saved_passes": 900, "saved_seconds": 277.0}
    assert result.search["encoding"] == result.policy.provenance["search"]["encoding"] == told
    assert "encoding" not in search(FakeBench(quality)).search
