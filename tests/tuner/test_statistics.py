"""Intervals against worked-out numbers, and against their stated coverage."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidsieve.tuner.statistics import (
    Interval,
    examples_needed,
    mcnemar_exact,
    median_interval,
    paired_difference,
    wilson_interval,
)


def test_median_interval_takes_the_tabled_order_statistics() -> None:
    # n = 10: 2nd and 9th, 1 - 2 * 11/1024; n = 20: 6th and 15th (Conover, Practical Nonparametric Statistics)
    ten = median_interval(list(range(1, 11)))
    assert (ten.value, ten.low, ten.high) == (5.5, 2, 9)
    assert ten.level == pytest.approx(1 - 22 / 1024)
    twenty = median_interval(list(range(20, 0, -1)))
    assert (twenty.low, twenty.high) == (6, 15)


def test_few_values_give_the_level_they_reach() -> None:
    three = median_interval([3.0, 1.0, 2.0])
    assert (three.low, three.value, three.high) == (1.0, 2.0, 3.0)
    assert three.level == pytest.approx(0.75)
    assert median_interval([4.0]).level == 0.0


@pytest.mark.parametrize("n", [60, 1000, 5000])
def test_median_interval_of_many_values_takes_the_rank_that_whole_numbers_give(n: int) -> None:
    interval = median_interval([float(value) for value in range(1, n + 1)])
    rank = int(interval.low)
    below = [sum(math.comb(n, each) for each in range(end)) for end in (rank, rank + 1)]
    assert 2 * below[0] * 20 <= 2**n < 2 * below[1] * 20  # 5 % outside at most, and no rank more


def test_median_interval_refuses_nothing_at_all() -> None:
    with pytest.raises(ValueError):
        median_interval([])


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60))
def test_median_lies_in_its_interval(values: list[float]) -> None:
    interval = median_interval(values)
    assert interval.low <= interval.value <= interval.high
    assert interval.low in values
    assert interval.high in values


def test_median_interval_covers_a_skewed_median_as_stated() -> None:
    rng = np.random.default_rng(0)
    samples = np.exp(rng.standard_normal((2000, 15)))
    covered = [interval.low <= 1 <= interval.high for interval in map(median_interval, samples.tolist())]
    level = median_interval(samples[0].tolist()).level
    assert level >= 0.95
    assert np.mean(covered) == pytest.approx(level, abs=0.015)


def test_wilson_matches_the_published_example() -> None:
    # Newcombe 1998, table I: 81/263 gives 0.2553 to 0.3662; 0/20 gives 0 to 0.1611
    interval = wilson_interval(81, 263)
    assert (interval.low, interval.high) == (pytest.approx(0.2553, abs=5e-5), pytest.approx(0.3662, abs=5e-5))
    none = wilson_interval(0, 20)
    assert (none.low, none.high) == (0.0, pytest.approx(0.1611, abs=5e-5))
    assert wilson_interval(0, 0).high == 1.0


def test_mcnemar_is_the_binomial_sign_test() -> None:
    assert mcnemar_exact(0, 0) == 1.0
    assert mcnemar_exact(0, 5) == pytest.approx(2 / 32)
    assert mcnemar_exact(1, 9) == pytest.approx(2 * 11 / 1024)
    assert mcnemar_exact(7, 7) == 1.0
    assert mcnemar_exact(9, 1) == mcnemar_exact(1, 9)


def _clustered(rng: np.random.Generator, videos: int, per_video: int, change: float, shared: float) -> np.ndarray:
    """Differences of -1, 0, 1 with mean `change`; a share of the videos answers all its questions alike."""
    lost, won = 0.06 - change / 2, 0.06 + change / 2
    draws = rng.choice([-1.0, 1.0, 0.0], p=[lost, won, 1 - lost - won], size=(videos, per_video))
    alike = rng.random(videos) < shared
    draws[alike] = draws[alike, :1]
    return draws


@pytest.mark.parametrize(("videos", "per_video", "shared"), [(40, 1, 0.0), (60, 3, 0.4), (15, 3, 0.3)])
def test_clustered_interval_covers_the_true_difference(videos: int, per_video: int, shared: float) -> None:
    rng = np.random.default_rng(videos)
    groups = np.repeat(np.arange(videos), per_video).tolist()
    hits = []
    for seed in range(300):
        values = _clustered(rng, videos, per_video, -0.02, shared).ravel().tolist()
        interval = paired_difference(values, groups, draws=500, seed=seed)
        hits.append(interval.low <= -0.02 <= interval.high)
    # 300 repetitions: the standard error of a coverage of 0.95 is 0.013
    assert np.mean(hits) >= 0.92


def test_ignoring_the_clusters_would_be_too_narrow() -> None:
    values = np.repeat([-1.0, 0.0, 1.0, 0.0, 0.0, -1.0, 0.0, 0.0] * 4, 4).tolist()
    clustered = paired_difference(values, np.repeat(np.arange(32), 4).tolist())
    naive = paired_difference(values, list(range(128)))
    assert clustered.high - clustered.low > 1.5 * (naive.high - naive.low)


def test_no_discordant_pair_is_no_certainty() -> None:
    interval = paired_difference([0.0] * 50, list(range(50)))
    assert interval.value == 0
    # Wilson's upper bound for 0 of 50: z^2 / (50 + z^2)
    assert interval.high == pytest.approx(3.8415 / 53.8415, rel=1e-3)
    assert interval.low == pytest.approx(-interval.high)


def test_one_video_says_nothing_about_others() -> None:
    interval = paired_difference([0.0, 0.0, 1.0], ["a", "a", "a"])
    assert (interval.low, interval.high) == (-1.0, 1.0)


def test_the_same_seed_gives_the_same_interval() -> None:
    values, groups = [0.0, 1.0, -1.0, 0.0, 1.0, 0.0], list("aabbcc")
    assert paired_difference(values, groups, seed=3) == paired_difference(values, groups, seed=3)


def test_groups_and_differences_must_match() -> None:
    with pytest.raises(ValueError):
        paired_difference([0.0], ["a", "b"])
    with pytest.raises(ValueError):
        paired_difference([], [])


def test_examples_needed_grows_with_the_square_of_the_room() -> None:
    drop = Interval(0.0, -0.04, 0.04, 100)
    assert examples_needed(drop, 0.02) == 400
    assert examples_needed(Interval(0.03, 0.0, 0.06, 100), 0.02) is None


def test_examples_needed_without_a_change_follow_the_bound_on_none_of_n() -> None:
    # 3.8415 / (188.2 + 3.8415) is 0.02
    bound = 3.8415 / (100 + 3.8415)
    assert examples_needed(Interval(0.0, -bound, bound, 100), 0.02, changed=False) == 189
