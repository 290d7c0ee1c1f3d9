"""The 95th percentile's bounds, beside the binomial distribution and beside simulation."""

import numpy as np
import pytest

from vidsieve.tuner.statistics import LEAST_RUNS, p95_interval


def test_fewer_than_59_runs_bound_no_95th_percentile() -> None:
    assert p95_interval(range(LEAST_RUNS - 1)) is None
    assert p95_interval([]) is None


def test_with_59_runs_the_slowest_is_the_upper_bound() -> None:
    interval = p95_interval(list(reversed(range(1, 60))))
    assert interval is not None
    assert (interval.value, interval.high, interval.n) == (57, 59, 59)


def test_at_200_runs_the_bounds_are_the_binomials() -> None:
    # P(B < 196) = 0.974 and P(B < 195) = 0.938 for B ~ Binomial(200, 0.95); P(B < 185) = 0.044, P(B < 186) = 0.078
    interval = p95_interval(range(1, 201))
    assert interval is not None
    assert (interval.low, interval.value, interval.high, interval.level) == (185, 190, 196, pytest.approx(0.9))


def test_thousands_of_runs_have_bounds_too() -> None:
    interval = p95_interval(range(1, 4001))
    assert interval is not None
    # the binomial's standard deviation is 13.8: both bounds lie 1.64 of it from 3800
    assert 3775 <= interval.low <= 3780
    assert interval.value == 3800
    assert 3821 <= interval.high <= 3826


@pytest.mark.parametrize("n", [59, 93, 140])
def test_each_bound_holds_at_least_95_times_in_a_hundred(n: int) -> None:
    rng = np.random.default_rng(n)
    truth = np.exp(1.6448536)  # the 95th percentile of the standard lognormal
    found = [p95_interval(np.exp(rng.standard_normal(n)).tolist()) for _ in range(1000)]
    above = np.mean([interval.high >= truth for interval in found if interval is not None])
    below = np.mean([interval.low <= truth for interval in found if interval is not None])
    assert above >= 0.94
    assert below >= 0.94
