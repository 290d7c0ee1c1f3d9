"""Timing: interleaved, warmed up, stopped when precise or at a cap, and honest about which."""

import gc
import math
from collections.abc import Callable, Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tuner.fake_bench import FakeBench, fake_policy

from vidsieve.framework.errors import TuneError
from vidsieve.framework.policy.policy import Policy
from vidsieve.tuner.measure.latency import STAYS_THROTTLED, THROTTLED, PairedTimer, TimingRules
from vidsieve.tuner.protocol import Intervention


def _bench(**options: float) -> FakeBench:
    return FakeBench(lambda policy: 0.9, **options)  # type: ignore[arg-type]


def test_steady_latency_stops_early_and_is_exact() -> None:
    bench = _bench()
    latency = PairedTimer(bench, "ttft").measure(fake_policy("a", 0.5), TimingRules(min_pairs=10))
    assert latency.stopped == "precise"
    assert latency.policy_ms.n == 10
    assert latency.policy_ms.value == pytest.approx(50 + 5 + 225)
    assert latency.baseline_ms.value == pytest.approx(500)
    assert latency.ratio.value == pytest.approx(280 / 500)
    assert latency.parts_ms["prefill_ms"] == pytest.approx(140)


def test_noise_runs_into_the_cap_and_says_so() -> None:
    latency = PairedTimer(_bench(noise=0.5), "ttft").measure(fake_policy("a"), TimingRules(max_pairs=12))
    assert latency.stopped == "pairs"
    assert latency.policy_ms.n == 12
    assert latency.policy_ms.half_width_ratio > 0.02


def test_the_cap_in_seconds_holds_with_a_slow_model() -> None:
    now = [0.0]

    class Slow(FakeBench):
        def timed(self, policy: Policy | None, clip_index: int, metric: str) -> Mapping[str, float]:
            now[0] += 5.0
            return super().timed(policy, clip_index, metric)

    bench = Slow(lambda policy: 0.9, noise=0.5)
    rules = TimingRules(warmup=10, max_seconds=60)
    latency = PairedTimer(bench, "ttft", clock=lambda: now[0]).measure(fake_policy("a"), rules)
    assert latency.stopped == "seconds"
    assert latency.policy_ms.n >= 3
    assert latency.policy_ms.level < 0.95
    assert now[0] < 120


def test_runs_alternate_and_every_clip_is_met_in_both_orders() -> None:
    bench = _bench(noise=0.5)
    PairedTimer(bench, "ttft").measure(fake_policy("a"), TimingRules(warmup=0, max_pairs=32))
    pairs = list(zip(bench.timed_calls[::2], bench.timed_calls[1::2], strict=True))
    assert all({first[0], second[0]} == {"", "a"} and first[1] == second[1] for first, second in pairs)
    orders = {(first[1], first[0]) for first, _ in pairs}
    assert orders == {(clip, name) for clip in range(8) for name in ("", "a")}
    assert [first[0] for first, _ in pairs[:4]] == ["", "a", "", "a"]


def test_each_token_shape_is_warmed_up_once() -> None:
    bench = _bench()
    timer = PairedTimer(bench, "ttft")
    rules = TimingRules(warmup=3, min_pairs=10)
    policy = fake_policy("a")
    timer.measure(policy, rules)
    # two shapes of clips, policy and baseline, three runs each
    assert len(bench.timed_calls) == 2 * 10 + 2 * 2 * 3
    timer.measure(policy, rules)
    assert len(bench.timed_calls) == 2 * (2 * 10) + 2 * 2 * 3


def test_drift_of_the_machine_leaves_the_ratio_alone() -> None:
    class Drifting(FakeBench):
        calls = 0

        def timed(self, policy: Policy | None, clip_index: int, metric: str) -> Mapping[str, float]:
            self.calls += 1
            return {f"{metric}_ms": self.true_ms(policy) * (1 + 0.01 * self.calls)}

    latency = PairedTimer(Drifting(lambda policy: 0.9), "ttft").measure(
        fake_policy("a", 0.5), TimingRules(max_pairs=40)
    )
    assert latency.baseline_ms.value > 600
    assert latency.ratio.value == pytest.approx(280 / 500, rel=0.01)


def test_garbage_is_not_collected_while_timing_and_is_afterwards() -> None:
    seen = []

    class Watching(FakeBench):
        def timed(self, policy: Policy | None, clip_index: int, metric: str) -> Mapping[str, float]:
            seen.append(gc.isenabled())
            return super().timed(policy, clip_index, metric)

    PairedTimer(Watching(lambda policy: 0.9), "e2e").measure(fake_policy("a"), TimingRules())
    assert not any(seen)
    assert gc.isenabled()


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_a_bench_without_a_usable_number_is_refused(value: float) -> None:
    class Broken(FakeBench):
        def timed(self, policy: Policy | None, clip_index: int, metric: str) -> Mapping[str, float]:
            return {"ttft_ms": value}

    with pytest.raises(TuneError, match="ttft_ms"):
        PairedTimer(Broken(lambda policy: 0.9), "ttft").measure(fake_policy("a"), TimingRules())
    assert gc.isenabled()


def test_a_question_is_answered_as_soon_as_the_interval_allows() -> None:
    # the true ratio is 0.56; with 20 % noise the interval of ten pairs is far from precise
    for bounds, expected in (({"above": 0.3}, "decided"), ({"below": 0.9}, "decided"), ({"above": 0.9}, "pairs")):
        rules = TimingRules(max_pairs=20, **bounds)
        latency = PairedTimer(_bench(noise=0.2), "ttft").measure(fake_policy("a", 0.5), rules)
        assert latency.stopped == expected
        assert latency.policy_ms.n == (10 if expected == "decided" else 20)


class Throttling(FakeBench):
    """Says which runs were throttled; those take twice as long."""

    def __init__(self, throttled: Callable[[int], bool], notices: tuple[str, ...] = ()) -> None:
        super().__init__(lambda policy: 0.9)
        self.throttled, self.notices = throttled, notices

    def timed(self, policy: Intervention | None, clip_index: int, metric: str) -> Mapping[str, float]:
        slow = self.throttled(len(self.timed_calls))
        parts = super().timed(policy, clip_index, metric)
        return {name: value * (1 + slow) for name, value in parts.items()} | {"clock_ratio": 0.5 if slow else 0.98}


@settings(max_examples=20, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=9))
def test_throttled_pairs_are_never_in_the_medians_while_the_clock_recovers(pattern: list[bool]) -> None:
    def throttled(call: int) -> bool:
        return call < len(pattern) and pattern[call]

    timer, told = PairedTimer(Throttling(throttled), "ttft"), []
    timer.warn = told.append
    latency = timer.measure(fake_policy("a", 0.5), TimingRules(warmup=0, min_pairs=10))
    assert latency.baseline_ms.high == pytest.approx(500)
    assert latency.policy_ms.high == pytest.approx(280)
    assert latency.policy_ms.n == 10
    # pairs are runs 0 and 1, 2 and 3, ...; a dropped one is simply followed by the next
    assert latency.throttled_pairs == len({call // 2 for call, slow in enumerate(pattern) if slow})
    assert (told == [THROTTLED]) is any(pattern)
    assert ("throttled_pairs" in latency.to_dict()) is any(pattern)
    assert "throttled_kept" not in latency.to_dict()
    assert "clock_ratio" not in latency.parts_ms


def test_a_dropped_pair_is_measured_again_on_the_same_clip_in_the_same_order() -> None:
    bench = Throttling(lambda call: call in (2, 7))
    PairedTimer(bench, "ttft").measure(fake_policy("a"), TimingRules(warmup=0, min_pairs=10))
    pairs = list(zip(bench.timed_calls[::2], bench.timed_calls[1::2], strict=True))
    assert pairs[1] == pairs[2]
    assert pairs[3] == pairs[4]
    assert len(pairs) == 12


def test_a_clock_that_stays_low_is_counted_and_told() -> None:
    timer, told = PairedTimer(Throttling(lambda call: True), "ttft"), []
    timer.warn = told.append
    latency = timer.measure(fake_policy("a", 0.5), TimingRules(warmup=0, min_pairs=10, max_pairs=10))
    assert latency.policy_ms.value == pytest.approx(560)
    assert (latency.throttled_pairs, latency.throttled_kept, latency.policy_ms.n) == (10, 10, 10)
    assert told == [STAYS_THROTTLED]
    assert latency.to_dict()["throttled_kept"] == 10


def test_dropping_does_not_outlast_the_seconds() -> None:
    now = [0.0]

    class Slow(Throttling):
        def timed(self, policy: Intervention | None, clip_index: int, metric: str) -> Mapping[str, float]:
            now[0] += 20.0
            return super().timed(policy, clip_index, metric)

    timer = PairedTimer(Slow(lambda call: True), "ttft", clock=lambda: now[0])
    latency = timer.measure(fake_policy("a"), TimingRules(warmup=0, max_seconds=60))
    assert (latency.throttled_pairs, latency.policy_ms.n, latency.stopped) == (1, 3, "seconds")


def test_what_the_bench_notices_is_passed_on() -> None:
    timer, told = PairedTimer(Throttling(lambda call: False, ("a neighbour",)), "ttft"), []
    timer.warn = told.append
    timer.measure(fake_policy("a"), TimingRules())
    assert told == ["a neighbour"]


def test_the_95th_percentile_is_told_from_59_runs_on() -> None:
    for pairs, there in ((58, False), (59, True)):
        rules = TimingRules(max_pairs=pairs, min_pairs=pairs, half_width_ratio=0.0)
        latency = PairedTimer(_bench(noise=0.2), "ttft").measure(fake_policy("a", 0.5), rules)
        assert (latency.policy_p95_ms is not None) is there
        assert ("policy_p95_ms" in latency.to_dict()) is there
    assert latency.policy_p95_ms is not None
    assert latency.policy_p95_ms.low <= latency.policy_p95_ms.value <= latency.policy_p95_ms.high
    assert latency.policy_p95_ms.value > latency.policy_ms.high
