"""From leaders to one winner: ranked anew, confirmed in a fresh process where there is one, judged once."""

from typing import Any

import pytest
from tuner.fake_bench import FakeBench, FakeTask, fake_policy
from tuner.test_rerank import UNKNOWN, Flattering, fresh_of, searched

from vidsieve.framework.errors import TargetUnreachableError
from vidsieve.framework.policy.policy import Policy
from vidsieve.tuner.judge.finals import STEPS, Finals, confirm_latency
from vidsieve.tuner.judge.paired_accuracy import Heldout, paired_accuracy
from vidsieve.tuner.measure.bounds import Explored
from vidsieve.tuner.measure.latency import TimingRules
from vidsieve.tuner.measure.measurement import Measurement, Target, Timings
from vidsieve.tuner.measure.retention_curve import RetentionCurve
from vidsieve.tuner.request import TuneRequest
from vidsieve.tuner.result import Bounds, Listener
from vidsieve.tuner.search.trial_loop import Search
from vidsieve.tuner.space.search_space import Space
from vidsieve.tuner.statistics import Interval

RULES = TimingRules(warmup=1, min_pairs=6, max_pairs=6)
LOW = fake_policy("x").attainable(FakeBench.shape)[0]


def measurement_of(bench: FakeBench, target_ms: float = 200.0) -> Measurement:
    timings = Timings(quick=RULES, trial=RULES, final=RULES)
    measurement = Measurement.open(bench, TuneRequest(latency_ms=target_ms), Listener(), timings, lambda: 0.0)
    measurement.set_target(Target(baseline_ms=500.0, target_ms=target_ms))
    return measurement


def finals_of(bench: FakeBench, measurement: Measurement, names: list[str], **options: Any) -> tuple[Finals, Any]:
    leaders, baseline = searched(bench, names)
    heldout = Heldout(bench, FakeTask().examples("heldout", 100), "accuracy")
    bounds = Bounds(
        metric="ttft",
        target_ms=200.0,
        baseline=Interval(500.0, 500.0, 500.0, 10),
        floor=Interval(60.0, 60.0, 60.0, 10),
        floor_policy="floor",
        already_met=False,
        policies=("x",),
    )
    explored = Explored(bounds, Space({}), fake_policy("floor", LOW))
    return Finals(measurement, heldout, explored, Search(trial_results=leaders), **options), baseline


def test_a_flattered_leader_is_overtaken_before_anything_held_out_is_seen() -> None:
    bench = Flattering()
    measurement = measurement_of(bench)
    _, baseline = finals_of(bench, measurement, ["best", "flattered"])
    finals, _ = finals_of(bench, measurement, ["best", "flattered"], fresh=fresh_of(bench, baseline, UNKNOWN))
    assert finals.rerank == {"skipped": "not reached"}
    bench.scored.clear()
    finals.most_accurate()
    assert finals.chosen is not None
    assert finals.chosen.policy.name == "best"
    assert finals.rerank["changed_order"] is True
    assert [one["policy"] for one in finals.rerank["leaders"]] == ["best", "flattered"]
    heldout = {name for name, example in bench.scored if example.startswith("heldout")}
    assert heldout == {"", "best"}


def test_without_fresh_examples_the_search_alone_ranks() -> None:
    bench = Flattering()
    finals, _ = finals_of(bench, measurement_of(bench), ["best", "flattered"])
    finals.most_accurate()
    assert finals.chosen is not None
    assert finals.chosen.policy.name == "flattered"


def test_a_leader_that_failed_while_ranking_is_rejected_and_not_tried() -> None:
    bench = Flattering()
    measurement = measurement_of(bench)
    _, baseline = finals_of(bench, measurement, ["best", "flattered"])
    finals, _ = finals_of(bench, measurement, ["best", "flattered"], fresh=fresh_of(bench, baseline, UNKNOWN))
    bench.broken = frozenset({"flattered"})
    bench.timed_calls.clear()
    finals.most_accurate()
    assert finals.rejected == {fake_policy("flattered").hash}
    assert not any(name == "flattered" for name, _ in bench.timed_calls)


def test_earlier_looks_at_the_held_out_examples_widen_the_interval() -> None:
    heldout = Heldout(Flattering(), FakeTask().examples("heldout", 100), "accuracy")
    outcomes = heldout.outcomes(fake_policy("best"))
    once, thrice = heldout.accuracy(outcomes), heldout.accuracy(outcomes, looks=3)
    assert (once.looks, thrice.looks) == (1, 3)
    assert (once.difference.level, thrice.difference.level) == (pytest.approx(0.95), pytest.approx(1 - 0.05 / 3))
    assert thrice.difference.high > once.difference.high
    # eval reports the very same statistics
    alone = paired_accuracy("accuracy", outcomes, heldout.baseline)
    assert {key: once.to_dict()[key] for key in alone.to_dict()} == alone.to_dict()
    assert alone.lost - alone.won == round(-100 * alone.difference.value)


@pytest.mark.parametrize("renews", [True, False])
def test_latency_is_confirmed_in_a_fresh_process_where_the_bench_has_one(renews: bool) -> None:
    class Renewing(Flattering):
        renewals = 0

        def renew(self) -> bool:
            self.renewals += 1
            return renews

    bench = Renewing()
    measurement = measurement_of(bench)
    before = measurement.timer
    finals, _ = finals_of(bench, measurement, ["best"])
    finals.most_accurate()
    assert bench.renewals == 1
    assert finals.chosen is not None
    assert finals.chosen.fresh is renews
    assert (measurement.timer is not before) is renews


class Slower(FakeBench):
    """Takes `slower` times what its curve promises."""

    slower = 1.0

    def true_ms(self, policy: Policy | None) -> float:
        return super().true_ms(policy) * (self.slower if policy is not None else 1.0)


def confirming(slower: float, ratio: float) -> tuple[Any, Slower]:
    bench = Slower(lambda policy: 0.9)
    measurement = measurement_of(bench)
    curve = measurement.curves["x"] = RetentionCurve()
    for point in (LOW, 0.2, 0.5, 1.0):
        curve.add(point, bench.true_ms(fake_policy("x", point)) / 500)
    bench.slower = slower
    return confirm_latency(measurement, fake_policy("x", ratio)), bench


def test_a_policy_slower_than_it_seemed_is_shrunk_until_it_fits() -> None:
    confirmed, bench = confirming(1.2, 0.32)
    assert confirmed is not None
    assert LOW < confirmed.policy.retention_ratio < 0.32
    assert bench.true_ms(confirmed.policy) <= 200


def test_at_the_lower_bound_of_its_retention_a_policy_that_does_not_fit_is_refused() -> None:
    refused, bench = confirming(10.0, 0.32)
    assert refused is None
    # from where it was to the bound and no further
    assert len([call for call in bench.timed_calls if call[0]]) <= (2 * STEPS) * 8
    at_bound, _ = confirming(10.0, LOW)
    assert at_bound is None


def test_no_leader_and_no_floor_that_fits_is_unreachable() -> None:
    bench = Slower(lambda policy: 0.9)
    bench.slower = 10.0
    measurement = measurement_of(bench)
    measurement.curves["floor"] = RetentionCurve()
    measurement.curves["floor"].add(LOW, 0.2)
    finals, _ = finals_of(bench, measurement, [])
    with pytest.raises(TargetUnreachableError, match="no policy could be confirmed"):
        finals.most_accurate()
    assert finals.chosen is None
