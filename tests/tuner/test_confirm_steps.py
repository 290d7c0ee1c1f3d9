"""Confirmation takes tokens away in bounded steps, and gives back what the target allows."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tuner.fake_bench import FakeBench, fake_policy
from tuner.searching import quality

from vidsieve.tuner.judge.finals import LEAST_GROWTH, MOST_SHRINK, Confirmed, confirm_latency
from vidsieve.tuner.measure.measurement import Measurement, Target
from vidsieve.tuner.measure.retention_curve import RetentionCurve
from vidsieve.tuner.request import TuneRequest
from vidsieve.tuner.result import Listener


def test_a_flat_curve_does_not_throw_the_policy_to_its_floor() -> None:
    bench = FakeBench(quality)
    measurement = Measurement.open(bench, TuneRequest(latency_ms=240.0), Listener(), None, lambda: 0.0)
    measurement.set_target(Target(baseline_ms=500.0, target_ms=240.0))
    # a curve that noise has pooled into one level: every latency below it is predicted at the foot alone
    measurement.curves["good"] = RetentionCurve([(0.01, 0.5, 0.01), (0.5, 0.5, 0.01)])
    found = confirm_latency(measurement, fake_policy("good", retention_ratio=0.45))
    assert found is not None
    # 0.41 is where the target truly lies
    assert 0.41 * MOST_SHRINK <= (found.policy.retention_ratio or 0) <= 0.42


def confirmed(
    start: float, curve: RetentionCurve | None, *, noise: float = 0.0, seed: int = 0, **asked: float
) -> Confirmed | None:
    """A policy confirmed from the retention ratio `start`; on this bench latency is 55 ms and 450 ms for all tokens."""
    bench = FakeBench(quality, noise=noise, seed=seed)
    request = TuneRequest(**asked)
    measurement = Measurement.open(bench, request, Listener(), None, lambda: 0.0)
    measurement.set_target(Target(baseline_ms=500.0, target_ms=request.target_ms(500.0)))
    if curve is not None:
        measurement.curves["good"] = curve
    return confirm_latency(measurement, fake_policy("good", retention_ratio=start))


LINE = [(0.01, 0.119, 0.001), (1.0, 1.01, 0.001)]


@pytest.mark.parametrize("asked", [{"latency_ms": 235.0}, {"speedup": 500 / 235}])
@pytest.mark.parametrize("start", [0.12, 0.3, 0.39])
def test_a_policy_that_fits_grows_to_the_retention_the_target_allows(start: float, asked: dict[str, float]) -> None:
    found = confirmed(start, RetentionCurve(LINE), **asked)
    assert found is not None
    # (235 - 55) / 450: no more fits, and little less is worth another step
    assert 0.4 / LEAST_GROWTH <= (found.policy.retention_ratio or 0) <= 0.4


def test_growth_never_answers_with_a_policy_that_was_measured_to_miss() -> None:
    # a curve that promises more than is there: growing by it overshoots
    promising = RetentionCurve([(0.01, 0.3, 0.001), (1.0, 0.62, 0.001)])
    found = confirmed(0.3, promising, latency_ms=235.0)
    assert found is not None
    assert 0.3 < (found.policy.retention_ratio or 0) <= 0.4
    assert found.latency.policy_ms.high <= 235.0


def test_a_policy_whose_curve_is_unknown_is_confirmed_as_it_is() -> None:
    found = confirmed(0.3, None, latency_ms=235.0)
    assert found is not None
    assert found.policy.retention_ratio == 0.3


def test_a_policy_whose_curve_is_unknown_still_shrinks() -> None:
    found = confirmed(0.6, None, latency_ms=235.0)
    assert found is not None
    assert (found.policy.retention_ratio or 0) <= 0.4


@given(seed=st.integers(0, 50), start=st.floats(0.1, 0.8))
@settings(max_examples=15, deadline=None)
def test_what_is_confirmed_always_has_its_interval_within_the_target(seed: int, start: float) -> None:
    found = confirmed(start, RetentionCurve(LINE), noise=0.05, seed=seed, latency_ms=235.0)
    assert found is None or found.latency.policy_ms.high <= 235.0
