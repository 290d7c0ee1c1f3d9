"""The breakdown of a whole request, whatever metric was searched."""

from collections.abc import Mapping

import pytest
from tuner.fake_bench import FakeBench, fake_policy

from vidsieve.tuner.measure.measurement import PARTS, Measurement, measure_breakdown
from vidsieve.tuner.protocol import Intervention
from vidsieve.tuner.request import TuneRequest
from vidsieve.tuner.result import Listener


class WholeRequests(FakeBench):
    """Parts that add up, and one that is none of the breakdown's."""

    refuses = False

    def timed(self, policy: Intervention | None, clip_index: int, metric: str) -> Mapping[str, float]:
        if self.refuses and metric == "e2e":
            raise RuntimeError("no files here")
        super().timed(policy, clip_index, metric)
        prefill = 80.0 if policy is None else 30.0
        parts = {"video_ms": 20.0, "preprocess_ms": 5.0, "vision_ms": 40.0, "prefill_ms": prefill}
        parts |= {"compress_ms": 0.0 if policy is None else 2.0, "decode_step_ms": 6.0, "first_token_ms": 1.0}
        return parts | {f"{metric}_ms": sum(parts.values()), "clock_ratio": 1.0}


def measurement_of(bench: FakeBench) -> Measurement:
    return Measurement.open(bench, TuneRequest(latency_ms=200, metric="ttft"), Listener(), None, lambda: 0.0)


def test_every_part_is_told_for_both_sides_and_nothing_else() -> None:
    bench = WholeRequests(lambda policy: 0.9)
    found = measure_breakdown(measurement_of(bench), fake_policy("a"))
    assert list(found) == ["uncompressed", "policy"]
    assert list(found["policy"]) == list(PARTS)
    assert found["uncompressed"] == {
        "video_ms": 20.0,
        "preprocess_ms": 5.0,
        "vision_ms": 40.0,
        "compress_ms": 0.0,
        "prefill_ms": 80.0,
        "decode_step_ms": 6.0,
        "e2e_ms": pytest.approx(152.0),
    }
    assert found["policy"]["prefill_ms"] == 30.0
    sides = [name for name, _ in bench.timed_calls]
    assert 6 <= sides.count("a") <= 14
    assert sides.count("a") == sides.count("")


def test_a_bench_without_whole_requests_costs_the_breakdown_and_a_warning() -> None:
    bench = WholeRequests(lambda policy: 0.9)
    bench.refuses = True
    measurement = measurement_of(bench)
    assert measure_breakdown(measurement, fake_policy("a")) == {}
    assert measurement.warnings == [
        "the breakdown of a whole request could not be measured: RuntimeError: no files here"
    ]


def test_an_interruption_is_no_failure_of_the_bench() -> None:
    class Interrupting(WholeRequests):
        def timed(self, policy: Intervention | None, clip_index: int, metric: str) -> Mapping[str, float]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_breakdown(measurement_of(Interrupting(lambda policy: 0.9)), fake_policy("a"))
