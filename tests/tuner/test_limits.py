"""Retention is solved for the target, searched where latency is not monotone, and all of it outlives the process."""

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tuner.fake_bench import FakeBench, fake_policy

from vidsieve.framework.errors import TargetUnreachableError, TuneError
from vidsieve.framework.policy.policy import Policy
from vidsieve.framework.records import VideoShape
from vidsieve.tuner.measure.bounds import BESIDE, Explored, explore
from vidsieve.tuner.measure.latency import TimingRules
from vidsieve.tuner.measure.measurement import Measurement, Target
from vidsieve.tuner.measure.retention_curve import RetentionCurve
from vidsieve.tuner.measure.retention_limits import AIM, RetentionSolver
from vidsieve.tuner.measured import Latency
from vidsieve.tuner.request import TuneRequest
from vidsieve.tuner.result import Bounds, Listener
from vidsieve.tuner.space.search_space import PolicySpace, Space
from vidsieve.tuner.statistics import Interval
from vidsieve.tuner.study.record import explored_from_dict, explored_to_dict


def _measurement(
    bench: FakeBench | None = None, clock: Callable[[], float] = lambda: 0.0, **options: Any
) -> Measurement:
    request = TuneRequest(**({"latency_ms": 200.0} | options))
    return Measurement.open(bench or FakeBench(lambda policy: 0.9), request, Listener(), None, clock)


class Bent(FakeBench):
    """Latency as `extra_ms` bends it, by retention ratio."""

    def __init__(self, extra_ms: Callable[[float], float], **options: Any) -> None:
        super().__init__(lambda policy: 0.9, **options)
        self.extra_ms = extra_ms

    def true_ms(self, policy: Policy | None) -> float:
        return super().true_ms(policy) + (self.extra_ms(policy.retention_ratio or 1.0) if policy is not None else 0.0)


def test_the_solved_retention_is_the_largest_that_meets_the_aim() -> None:
    measurement = _measurement()
    entry = explore(measurement, [fake_policy("good")]).space.entries["good"]
    # 55 ms + 450 ms * retention, aimed at 195 ms
    assert entry.solved
    assert entry.retention == pytest.approx((0.3111, 0.3111), abs=2e-4)


@pytest.mark.parametrize("bend", [lambda r: 200 * r * r, lambda r: 120 * math.sqrt(r), lambda r: 40 * (r > 0.6)])
def test_a_bent_curve_is_solved_within_two_percent(bend: Callable[[float], float]) -> None:
    bench = Bent(bend)
    bounds = explore(_measurement(bench), [fake_policy("good")]).bounds
    at_limit = bench.true_ms(fake_policy("good", bounds.limits["good"]))
    assert at_limit <= 200
    assert at_limit == pytest.approx(AIM * 200, rel=0.02)


def test_a_larger_target_never_gives_fewer_tokens() -> None:
    bench = Bent(lambda ratio: 100 * ratio**3)
    found = []
    for latency_ms in (80.0, 120.0, 200.0, 300.0, 400.0, 499.0):
        explored = explore(_measurement(bench, latency_ms=latency_ms), [fake_policy("good")])
        found.append(explored.bounds.limits["good"])
    assert found == sorted(found)
    assert found[-1] > 3 * found[0]


def test_the_error_of_the_model_and_the_configurations_are_told() -> None:
    straight = explore(_measurement(), [fake_policy("good"), fake_policy("bad")]).bounds
    assert straight.model_error == pytest.approx(0.0, abs=1e-3)
    assert straight.configurations == 6
    bent = explore(_measurement(Bent(lambda ratio: 300 * ratio**4)), [fake_policy("good")]).bounds
    assert (bent.model_error or 0) > 0.002


def test_a_curve_that_falls_makes_retention_a_searched_parameter_and_says_so() -> None:
    bench = Bent(lambda ratio: 300.0 if 0.35 < ratio < 0.7 else 0.0)
    explored = explore(_measurement(bench, latency_ms=400.0, seed=1), [fake_policy("good")])
    entry = explored.space.entries["good"]
    assert not entry.solved
    assert entry.retention is not None
    low, high = entry.retention
    assert low == pytest.approx(fake_policy("good").attainable(bench.shape)[0])
    assert bench.true_ms(fake_policy("good", high)) <= 400
    [warning] = explored.bounds.warnings
    assert warning == "latency of good is not monotone in retention within its error: retention is searched"


def test_noise_alone_does_not_make_a_curve_fall() -> None:
    for seed in range(20):
        explored = explore(_measurement(FakeBench(lambda policy: 0.9, noise=0.03, seed=seed)), [fake_policy("good")])
        assert explored.space.entries["good"].solved, seed


def test_where_the_target_is_met_anyway_retention_is_searched_over_the_whole_range() -> None:
    explored = explore(_measurement(latency_ms=10_000.0), [fake_policy("good")])
    entry = explored.space.entries["good"]
    assert not entry.solved
    assert entry.retention == (0.01, 1.0)
    assert explored.bounds.model_error is None


def test_the_search_section_bounds_what_is_solved() -> None:
    policy = fake_policy("good", search={"retention_ratio": {"low": 0.1, "high": 0.2}})
    entry = explore(_measurement(), [policy]).space.entries["good"]
    assert entry.retention == (0.2, 0.2)


def test_policies_left_when_time_is_up_are_set_aside_and_one_is_always_measured() -> None:
    now = [0.0]

    class Slow(FakeBench):
        def timed(self, policy: Any, clip_index: int, metric: str) -> Any:
            now[0] += 1.0
            return super().timed(policy, clip_index, metric)

    first, left = [f"first-{number}" for number in range(BESIDE)], ["left"]
    policies = [fake_policy(name) for name in first + left]
    measurement = _measurement(Slow(lambda policy: 0.9), lambda: now[0], time_budget_s=1.0)
    explored = explore(measurement, policies)
    assert list(explored.bounds.policies) == first
    assert explored.bounds.set_aside == {"left": "time budget used up"}
    # time for every policy at its floor, but not for every range
    now[0] = 0.0
    bench = Slow(lambda policy: 0.9)
    measurement = _measurement(bench, lambda: now[0], time_budget_s=85.0)
    bounds = explore(measurement, policies).bounds
    assert {name for name, _ in bench.timed_calls} == {"", *first, *left}
    assert list(bounds.policies) == first
    assert bounds.set_aside == {"left": "time budget used up"}


class Breaking(FakeBench):
    """Policies named `broken` cannot be run above a retention ratio of `until`."""

    def __init__(self, until: float) -> None:
        super().__init__(lambda policy: 0.9)
        self.until = until

    def timed(self, policy: Any, clip_index: int, metric: str) -> Any:
        if policy is not None and policy.name == "broken" and policy.retention_ratio > self.until:
            raise RuntimeError("out of memory")
        return super().timed(policy, clip_index, metric)


@pytest.mark.parametrize("until", [0.0, 0.2, 0.4])
def test_a_policy_that_cannot_run_costs_those_timed_beside_it_nothing(until: float) -> None:
    policies = [fake_policy("good"), fake_policy("broken"), fake_policy("bad")]
    bounds = explore(_measurement(Breaking(until)), policies).bounds
    assert bounds.policies == ("good", "bad")
    assert bounds.set_aside == {"broken": "RuntimeError: out of memory"}
    alone = explore(_measurement(), [fake_policy("good")]).bounds
    assert bounds.limits == {"good": alone.limits["good"], "bad": alone.limits["good"]}


def test_policies_timed_beside_each_other_share_the_runs_of_the_baseline() -> None:
    bench = FakeBench(lambda policy: 0.9)
    measurement = _measurement(bench)
    policies = [fake_policy(name, 0.5) for name in "abc"]
    latencies = measurement.probe_beside(policies, TimingRules(warmup=0, min_pairs=16, max_pairs=16))
    names = [name for name, _ in bench.timed_calls]
    assert len(names) == 16 * (1 + len(policies))
    assert names.count("") == 16
    # each clip is met in both orders, all runs of a turn on the same clip
    turns = [bench.timed_calls[start : start + 4] for start in range(0, len(names), 4)]
    assert all({name for name, _ in turn} == {"", *"abc"} and len({clip for _, clip in turn}) == 1 for turn in turns)
    assert {(turn[0][1], turn[0][0]) for turn in turns} == {(clip, name) for clip in range(8) for name in ("", "c")}
    assert [latency.ratio.value for latency in latencies if isinstance(latency, Latency)] == [pytest.approx(0.56)] * 3


def test_a_floor_above_the_target_stays_unreachable() -> None:
    with pytest.raises(TargetUnreachableError):
        explore(_measurement(latency_ms=40.0), [fake_policy("good")])


def _latency(measurement: Measurement, policy: Policy) -> Any:
    return measurement.timer.measure(policy, measurement.timings.trial)


def test_later_candidates_are_solved_with_what_earlier_ones_took() -> None:
    bench = FakeBench(lambda policy: 0.9, cost_ms={"good-without-x": 50.0})
    measurement = _measurement(bench)
    explore(measurement, [fake_policy("good")])
    solver, variant = RetentionSolver(measurement), fake_policy("good-without-x")
    first = variant.with_(retention_ratio=solver("good", variant))
    assert bench.true_ms(first) > 200
    solver.learn("good", first, _latency(measurement, first))
    second = variant.with_(retention_ratio=solver("good", variant))
    assert bench.true_ms(second) <= 200
    assert bench.true_ms(second) == pytest.approx(AIM * 200, rel=0.03)
    # the published policy is solved as before
    assert solver("good", fake_policy("good")) == pytest.approx(0.3111, abs=2e-4)


class Stubborn(Policy):
    """A policy that cannot go below a ratio of its settings'."""

    def attainable(self, shape: VideoShape) -> tuple[float, float]:
        return (0.6, 1.0) if self.stages[0].stage.model_dump()["power"] > 1.5 else (0.01, 0.2)


def test_a_candidate_is_held_within_its_own_reach_or_is_too_slow_by_construction() -> None:
    measurement = _measurement()
    explore(measurement, [fake_policy("good")])
    plain = fake_policy("good")
    stubborn = Stubborn(name="good", retention_ratio=0.3, stages=plain.stages)
    solver = RetentionSolver(measurement)
    assert solver("good", stubborn) == 0.2
    with pytest.raises(TuneError, match=r"too slow by construction.*keeps 0\.6 of the tokens.*0\.311 is the most"):
        solver("good", stubborn.with_(settings={"fake.score.power": 1.9}))


_numbers = st.floats(0.001, 5.0)
_intervals = st.builds(
    lambda low, mid, high, n: Interval(low + mid, low, low + mid + high, n), *[_numbers] * 3, st.just(9)
)
_points = st.lists(st.tuples(st.floats(0.01, 1), _numbers, st.floats(0, 0.1)), min_size=1, max_size=6)


@settings(deadline=None)
@given(_intervals, _intervals, _points, _points, st.floats(0.01, 1), st.booleans(), st.none() | _numbers)
def test_what_was_explored_comes_back_from_json_exactly(
    baseline: Interval, floor: Interval, points: Any, variant: Any, limit: float, solved: bool, error: float | None
) -> None:
    policies = [fake_policy("good"), fake_policy("bad")]
    measurement = _measurement()
    measurement.set_target(Target(baseline_ms=baseline.value, target_ms=limit / 3, already_met=not solved))
    measurement.curves["good"] = RetentionCurve(points)
    measurement.curves["good-without-x"] = RetentionCurve(variant, like=measurement.curves["good"])
    measurement.warn("loud neighbours")
    bounds = Bounds(
        metric="e2e", target_ms=123.4, baseline=baseline, floor=floor, floor_policy="good at 0.01",
        already_met=not solved, policies=("good",), limits={"good": limit}, set_aside={"bad": "broken"},
        warnings=("loud",), model_error=error, configurations=4,
    )  # fmt: skip
    space = Space({"good": PolicySpace.of(policies[0], (limit, limit), solved=solved)})
    before = Explored(bounds, space, policies[0].with_(retention_ratio=limit))
    stored = json.loads(json.dumps(explored_to_dict(measurement, before), sort_keys=True))
    other = _measurement()
    after = explored_from_dict(other, policies, stored)
    assert after.bounds == before.bounds
    assert after.space.to_dict() == before.space.to_dict()
    assert after.space.entries["good"].retention == (limit, limit)
    assert after.floor.hash == before.floor.hash
    assert other.target == measurement.target
    assert other.warnings == measurement.warnings
    assert {name: curve.points for name, curve in other.curves.items()} == {
        name: curve.points for name, curve in measurement.curves.items()
    }
    assert other.curves["good-without-x"].predict(0.5) == measurement.curves["good-without-x"].predict(0.5)


def test_a_resumed_space_keeps_its_order_and_refuses_other_policies() -> None:
    policies = [fake_policy("zebra"), fake_policy("ape")]
    measurement = _measurement()
    stored = json.loads(json.dumps(explored_to_dict(measurement, explore(measurement, policies)), sort_keys=True))
    assert list(explored_from_dict(_measurement(), policies[::-1], stored).space.entries) == ["zebra", "ape"]
    with pytest.raises(TuneError, match="'ape', which is not given now"):
        explored_from_dict(_measurement(), policies[:1], stored)
    changed = [policies[0], fake_policy("ape", 0.9)]
    with pytest.raises(TuneError, match=r"'ape' was .* when it was measured and is"):
        explored_from_dict(_measurement(), changed, stored)
