"""Requests, data and spaces that cannot be used are refused with a reason."""

from typing import Any

import pytest
from tuner.fake_bench import FakeBench, FakeTask, fake_policy
from tuner.searching import quality, search

from vidsieve.framework.errors import DataError, TuneError, UsageError
from vidsieve.framework.policy.policy import Policy
from vidsieve.tuner.request import TuneRequest
from vidsieve.tuner.tuning import tune


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


@pytest.mark.parametrize("value", [0.0, -5.0, float("nan"), float("inf")])
def test_a_target_that_is_no_time_is_refused(value: float) -> None:
    with pytest.raises(UsageError, match="`latency_ms`"):
        TuneRequest(latency_ms=value)


@pytest.mark.parametrize("value", [0.0, 1.0, -2.0, float("nan")])
def test_a_speedup_that_is_none_is_refused(value: float) -> None:
    with pytest.raises(UsageError, match="`speedup`"):
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

    with pytest.raises(DataError, match="`videos`"):
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
