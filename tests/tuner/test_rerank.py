"""The leaders of a search met fresh examples: luck and flattery of p(gold) are found out, time and faults respected."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from tuner.fake_bench import FakeBench, FakeTask, fake_policy

from vidsieve.framework.policy.policy import Policy
from vidsieve.framework.task import Example, Outcome
from vidsieve.tuner.judge.rerank import Fresh, Proxy, far_ahead, rerank
from vidsieve.tuner.measure.measurement import Measurement
from vidsieve.tuner.measure.scoring import Score, Scorer
from vidsieve.tuner.request import TuneRequest
from vidsieve.tuner.result import Listener
from vidsieve.tuner.space.candidate import Candidate
from vidsieve.tuner.study.record import TrialResult

TRUSTED = Proxy(n=10, r=0.9, slope=1.0, intercept=0.0, bias_points=0.0, trusted=True)
BIASED = replace(TRUSTED, bias_points=5.0)
UNKNOWN = replace(TRUSTED, n=3, r=None, bias_points=2.0, trusted=None)
DOUBTED = replace(TRUSTED, r=0.2, trusted=False)
TRUTH = {"best": 0.88, "second": 0.85, "flattered": 0.80, "alike": 0.85}


class Flattering(FakeBench):
    """p(gold) of `flattered` is 8 points higher than its answers deserve; of what `broken` names, none comes."""

    broken: frozenset[str] = frozenset()

    def __init__(self, clock: Any = None, **options: Any) -> None:
        super().__init__(lambda policy: TRUTH[policy.name], **options)
        self.clock = clock

    def score(self, policy: Any, examples: Sequence[Example]) -> Iterator[Outcome]:
        if policy is not None and policy.name in self.broken:
            raise RuntimeError("out of luck")
        for outcome in super().score(policy, examples):
            if self.clock is not None:
                self.clock.now += 1.0
            if policy is not None and policy.name == "flattered" and outcome.p_gold is not None:
                yield replace(outcome, p_gold=min(1.0, outcome.p_gold + 0.2))
            else:
                yield outcome


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def measurement_of(bench: FakeBench, clock: Any = None, **options: Any) -> Measurement:
    return Measurement.open(bench, TuneRequest(latency_ms=200, **options), Listener(), None, clock or Clock())


def searched(bench: FakeBench, names: Sequence[str], scorer: Scorer = "p_gold") -> tuple[list[TrialResult], Score]:
    """Findings as a search would rank them, by its own score."""
    examples = FakeTask().examples("search", 100)
    baseline = Score(tuple(bench.score(None, examples)), scorer)
    found = []
    for number, name in enumerate(names, start=1):
        policy = fake_policy(name)
        score = Score(tuple(FakeBench.score(bench, policy, examples)), scorer)
        if isinstance(bench, Flattering):
            score = Score(tuple(bench.score(policy, examples)), scorer)
        trial_result = TrialResult(
            number=number,
            candidate=Candidate(policy=policy, base=name, settings={}),
            verdict="feasible",
            value=score.mean,
            violation={},
            score=score,
        )
        found.append(trial_result)
    return sorted(found, key=lambda trial_result: -trial_result.value), baseline


def fresh_of(bench: FakeBench, baseline: Score, proxy: Proxy, count: int = 200, **options: Any) -> Fresh:
    examples = FakeTask().examples("rerank", count)
    return Fresh(bench=bench, examples=examples, baseline=baseline, proxy=proxy, **options)


def names(trial_results: Sequence[TrialResult]) -> list[str]:
    return [trial_result.policy.name for trial_result in trial_results]


@pytest.mark.parametrize("proxy", [BIASED, UNKNOWN, DOUBTED])
def test_a_policy_whose_p_gold_flatters_it_loses_on_fresh_answers(proxy: Proxy) -> None:
    bench = Flattering()
    leaders, baseline = searched(bench, ["best", "second", "flattered"])
    assert names(leaders)[0] == "flattered"
    bench.scored.clear()
    got = rerank(measurement_of(bench), leaders, fresh_of(bench, baseline, proxy))
    assert names(got.order) == ["best", "second", "flattered"]
    assert got.changed
    assert not got.skipped
    told = got.to_dict()
    assert told["examples"] == 200
    assert told["examples_scored"] == len(bench.scored) == 800
    best = got.ranked[0]
    # truth: 0.88 against 0.90 uncompressed
    assert abs(best.correct_change + 0.02) < 0.011
    assert best.error > 0


def test_each_is_scored_once_on_fresh_examples_and_on_nothing_else() -> None:
    bench = Flattering()
    leaders, baseline = searched(bench, ["best", "second"])
    bench.scored.clear()
    rerank(measurement_of(bench), leaders, fresh_of(bench, baseline, UNKNOWN, count=50))
    assert len(bench.scored) == len(set(bench.scored)) == 150
    assert all(example.startswith("rerank-") for _, example in bench.scored)


def test_without_p_gold_answers_alone_rank_and_no_p_gold_is_told() -> None:
    bench = Flattering(p_gold=False)
    leaders, baseline = searched(bench, ["second", "best"], "correct")
    got = rerank(measurement_of(bench), leaders[::-1], fresh_of(bench, baseline, UNKNOWN))
    assert names(got.order) == ["best", "second"]
    assert all(one.p_gold_change is None and one.change == one.correct_change for one in got.ranked)


def test_equal_policies_keep_the_order_of_the_search() -> None:
    bench = FakeBench(lambda policy: 0.85)
    leaders, baseline = searched(bench, ["second", "alike", "best"])
    got = rerank(measurement_of(bench), leaders, fresh_of(bench, baseline, TRUSTED))
    assert names(got.order) == ["second", "alike", "best"]
    assert not got.changed


def test_a_leader_that_raises_is_passed_over_and_the_rest_are_ranked() -> None:
    bench = Flattering()
    leaders, baseline = searched(bench, ["best", "second", "flattered"])
    bench.broken = frozenset({"flattered"})
    measurement = measurement_of(bench)
    got = rerank(measurement, leaders, fresh_of(bench, baseline, UNKNOWN))
    assert names(got.order) == ["best", "second"]
    assert got.failed == {leaders[0].policy.hash}
    assert any(
        "flattered was passed over while re-ranking: RuntimeError: out of luck" in w for w in measurement.warnings
    )


def test_an_uncompressed_model_that_raises_is_no_leaders_fault() -> None:
    class Dead(Flattering):
        def score(self, policy: Policy | None, examples: Sequence[Example]) -> Iterator[Outcome]:
            if policy is None and examples[0].id.startswith("rerank"):
                raise RuntimeError("no model")
            return super().score(policy, examples)

    bench = Dead()
    leaders, baseline = searched(bench, ["best", "second"])
    with pytest.raises(RuntimeError, match="no model"):
        rerank(measurement_of(bench), leaders, fresh_of(bench, baseline, UNKNOWN))


def test_only_five_leaders_are_scored_afresh_and_the_sixth_follows() -> None:
    bench = FakeBench(lambda policy: 0.85)
    leaders, baseline = searched(bench, [f"p{i}" for i in range(7)])
    got = rerank(measurement_of(bench), leaders, fresh_of(bench, baseline, UNKNOWN, count=20))
    assert len(got.ranked) == 5
    assert names(got.order)[5:] == ["p5", "p6"]


@pytest.mark.parametrize(
    ("budget", "expected"), [(150.0, None), (299.0, None), (301.0, 2), (401.0, 3), (10_000.0, 3), (None, 3)]
)
def test_the_time_budget_decides_how_many_are_scored_afresh(budget: float | None, expected: int | None) -> None:
    clock = Clock()
    bench = Flattering(clock)
    leaders, baseline = searched(bench, ["best", "second", "flattered"])
    measurement = measurement_of(bench, clock, time_budget_s=budget)
    start = clock.now
    got = rerank(measurement, leaders, fresh_of(bench, baseline, UNKNOWN, count=100, per_example_s=1.0))
    assert (len(got.ranked) or None) == expected
    assert bool(got.skipped) is (expected is None)
    assert budget is None or clock.now - start <= budget
    assert set(names(got.order)) == set(names(leaders))


def test_what_the_end_of_the_study_needs_is_left_to_it() -> None:
    clock = Clock()
    bench = Flattering(clock)
    leaders, baseline = searched(bench, ["best", "second"])
    measurement = measurement_of(bench, clock, time_budget_s=500.0)
    got = rerank(
        measurement, leaders, fresh_of(bench, baseline, UNKNOWN, count=100, per_example_s=1.0, reserve_s=250.0)
    )
    assert "time budget" in got.skipped
    assert got.to_dict() == {"skipped": got.skipped}


def test_one_leader_or_no_fresh_examples_leave_nothing_to_rank() -> None:
    bench = Flattering()
    leaders, baseline = searched(bench, ["best", "second"])
    alone = rerank(measurement_of(bench), leaders[:1], fresh_of(bench, baseline, UNKNOWN))
    assert alone.order == tuple(leaders[:1])
    assert "fewer than two" in alone.skipped
    assert "no videos" in rerank(measurement_of(bench), leaders, fresh_of(bench, baseline, UNKNOWN, count=0)).skipped
    assert rerank(measurement_of(bench), [], fresh_of(bench, baseline, UNKNOWN)).order == ()


def test_a_gap_far_beyond_noise_needs_no_second_look_only_where_p_gold_is_trusted() -> None:
    bench = FakeBench(lambda policy: {"best": 0.88, "far": 0.60}[policy.name])
    (best, far), baseline = searched(bench, ["best", "far"])
    assert far_ahead(best, far, TRUSTED)
    assert "far ahead" in rerank(measurement_of(bench), [best, far], fresh_of(bench, baseline, TRUSTED)).skipped
    for proxy in (UNKNOWN, DOUBTED, replace(TRUSTED, bias_points=20.0)):
        assert not far_ahead(best, far, proxy)
    assert not far_ahead(best, best, TRUSTED)
