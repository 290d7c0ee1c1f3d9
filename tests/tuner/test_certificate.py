"""Whether "certified" and "needs about N examples" mean what they say, on made-up results whose truth is known."""

import math

import numpy as np
import pytest

from vidsieve.tuner.measured import Accuracy
from vidsieve.tuner.statistics import clustered_error, paired_difference, wilson_interval


def judged(differences: list[float], groups: list[int], *, draws: int = 1000, max_drop_points: float = 1.0) -> Accuracy:
    n = len(differences)
    return Accuracy(
        metric="accuracy",
        n=n,
        videos=len(set(groups)),
        baseline=wilson_interval(n / 2, n),
        policy=wilson_interval(n / 2 + sum(differences) / 2, n),
        difference=paired_difference(differences, groups, draws=draws),
        lost=sum(d < 0 for d in differences),
        won=sum(d > 0 for d in differences),
        mcnemar_p=1.0,
        max_drop_points=max_drop_points,
    )


@pytest.mark.parametrize(("n", "certified"), [(2, False), (50, False), (300, False), (400, True), (1000, True)])
def test_no_change_at_all_certifies_a_point_from_four_hundred_examples(n: int, certified: bool) -> None:
    assert judged([0.0] * n, list(range(n))).certified is certified


@pytest.mark.parametrize("n", [10, 50, 100, 200])
def test_where_nothing_changed_the_number_told_is_enough_and_not_far_too_many(n: int) -> None:
    needed = judged([0.0] * n, list(range(n))).needed
    assert needed is not None
    assert judged([0.0] * needed, list(range(needed))).certified
    # the rule of three with both tails, ln(2 / 0.05) / 0.01 examples
    assert needed == pytest.approx(math.log(40) / 0.01, rel=0.2)


def test_ninety_questions_about_one_video_certify_nothing() -> None:
    assert not judged([0.0] * 900, [0] * 900).certified


def test_the_examples_needed_certify_in_about_half_of_the_studies() -> None:
    lost, won = 0.045, 0.040
    # a sample with exactly these shares, whose drop is the true one
    sample = [-1.0] * 45 + [1.0] * 40 + [0.0] * 915
    needed = judged(sample, list(range(1000)), max_drop_points=100 * 0.015).needed
    assert needed is not None
    assert needed > 1000
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(100):
        draws = rng.choice([-1.0, 1.0, 0.0], p=[lost, won, 1 - lost - won], size=needed)
        hits += judged(draws.tolist(), list(range(needed)), draws=200, max_drop_points=100 * 0.015).certified
    # one half, with a standard error of 0.05
    assert 0.35 <= hits / 100 <= 0.65


def clustered(rng: np.random.Generator, videos: int, icc: float) -> list[float]:
    """Three questions a video; with probability `icc` all three change alike, which is their intraclass correlation."""
    draws = rng.choice([-1.0, 1.0, 0.0], p=[0.05, 0.036, 0.914], size=(videos, 3))
    alike = rng.random(videos) < icc
    draws[alike] = draws[alike, :1]
    return draws.ravel().tolist()  # type: ignore[no-any-return]


def test_the_interval_covers_at_its_level_with_three_correlated_questions_a_video() -> None:
    rng = np.random.default_rng(4)
    groups = np.repeat(np.arange(133), 3).tolist()
    hits = naive = 0
    for seed in range(400):
        values = clustered(rng, 133, 0.4)
        interval = paired_difference(values, groups, draws=400, seed=seed)
        hits += interval.low <= -0.014 <= interval.high
        error = np.std(values) / math.sqrt(len(values))
        naive += abs(np.mean(values) + 0.014) <= 1.96 * error
    # 95 % within two binomial standard errors of 400 studies; without the videos it would be far below
    assert 0.95 - 0.022 <= hits / 400 <= 0.95 + 0.022
    assert naive / 400 < 0.90


@pytest.mark.parametrize("lost", [0.0101, 0.02])
def test_rare_losses_are_seldom_certified_away(lost: float) -> None:
    rng = np.random.default_rng(7)
    groups = list(range(400))
    wrong = 0
    for _ in range(400):
        values = -(rng.random(400) < lost).astype(float)
        wrong += judged(values.tolist(), groups, draws=200).certified
    # 2.5 % a side, with a standard error of 0.8 %
    assert wrong / 400 <= 0.025 + 0.016


def test_the_clustered_error_is_the_spread_of_the_mean() -> None:
    rng = np.random.default_rng(2)
    groups = np.repeat(np.arange(60), 3).tolist()
    samples = [clustered(rng, 60, 0.4) for _ in range(1500)]
    told = np.mean([clustered_error(values, groups) for values in samples])
    assert told == pytest.approx(np.std([np.mean(values) for values in samples]), rel=0.07)
    assert clustered_error([0.0, 1.0], ["a", "a"]) == math.inf


def test_a_second_look_widens_what_is_told() -> None:
    values, groups = [-1.0, 0.0, 0.0, 1.0, 0.0] * 40, list(range(200))
    once = paired_difference(values, groups)
    twice = paired_difference(values, groups, level=0.975)
    assert twice.high > once.high


@pytest.mark.parametrize(("videos", "told"), [(1, "1 held-out video is too few to tell"), (200, "needs about ")])
def test_what_a_certificate_lacks_is_told_in_words(videos: int, told: str) -> None:
    assert judged([0.0] * 200, [number % videos for number in range(200)]).lacks.startswith(told)


def test_a_larger_drop_lacks_no_examples() -> None:
    assert judged([-1.0, 0.0] * 100, list(range(200))).lacks == "the measured drop is larger"
