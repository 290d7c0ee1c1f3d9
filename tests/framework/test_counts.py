"""A ratio becomes a count, a budget becomes counts."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vidsieve.framework.plans import apportion, tokens_to_keep

SHARES = st.integers(0, 200)


@st.composite
def groups(draw: st.DrawFn) -> tuple[list[int], list[int], int]:
    """Shares, caps and a total; shares are whole so that exact fractions can judge."""
    size = draw(st.integers(1, 9))
    share = draw(st.lists(SHARES, min_size=size, max_size=size))
    cap = draw(st.lists(st.integers(0, 30), min_size=size, max_size=size))
    return share, cap, draw(st.integers(0, 150))


def exact_counts(share: list[int], cap: list[int], total: int) -> list[int]:
    """Largest remainder in exact fractions, groups over their cap filled first."""
    total = min(total, sum(cap))
    full = [c == 0 for c in cap]
    while True:
        left = total - sum(c for c, done in zip(cap, full, strict=True) if done)
        rest = [i for i, done in enumerate(full) if not done]
        mass = sum(share[i] for i in rest)
        part = {i: Fraction(share[i], mass) * left if mass else Fraction(left, len(rest)) for i in rest}
        over = [i for i in rest if part[i] > cap[i]]
        if not over:
            break
        for i in over:
            full[i] = True
    counts = [cap[i] if full[i] else part[i].__floor__() for i in range(len(cap))]
    for i in sorted(rest, key=lambda i: (-(part[i] - part[i].__floor__()), i))[: total - sum(counts)]:
        counts[i] += 1
    return counts


@pytest.mark.parametrize(
    ("count", "ratio", "kept"),
    [
        (100, 0.29, 29),  # 0.29 * 100 is 28.999999999999996
        (100, 0.57, 57),
        (1000, 0.001, 1),
        (6272, 0.25, 1568),
        (7, 0.5, 3),
        (3, 0.1, 1),  # never none
        (1, 0.01, 1),
        (10, 1.0, 10),
        (10, 3.0, 10),  # never more than there are
        (0, 0.5, 0),
        (3, 1 / 3, 1),
        (3, 0.66666, 1),
        (3, 0.6666666, 2),  # within a millionth of a whole token
        (3, 2 / 3, 2),
    ],
)
def test_a_ratio_keeps_its_floor_and_at_least_one(count: int, ratio: float, kept: int) -> None:
    assert tokens_to_keep(count, ratio) == kept


@settings(deadline=None)
@given(st.integers(1, 20000), st.integers(1, 1000))
def test_thousandths_are_cut_as_in_exact_arithmetic(count: int, thousandths: int) -> None:
    assert tokens_to_keep(count, thousandths / 1000) == max(1, count * thousandths // 1000)


@settings(deadline=None)
@given(st.integers(1, 5000), st.floats(0.0001, 1), st.floats(0.0001, 1))
def test_more_ratio_never_keeps_less(count: int, one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert tokens_to_keep(count, low) <= tokens_to_keep(count, high)


@settings(deadline=None)
@given(groups())
def test_budgets_are_shared_by_exact_largest_remainder(case: tuple[list[int], list[int], int]) -> None:
    share, cap, total = case
    counts = apportion([float(part) for part in share], total, cap)
    assert counts.dtype == torch.int64
    assert counts.tolist() == exact_counts(share, cap, total)


@settings(deadline=None)
@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=12), st.integers(0, 500), st.data())
def test_counts_sum_to_the_total_within_their_caps(share: list[float], total: int, data: st.DataObject) -> None:
    cap = data.draw(st.lists(st.integers(0, 60), min_size=len(share), max_size=len(share)))
    counts = apportion(share, total, cap).tolist()
    assert sum(counts) == min(total, sum(cap))
    assert all(0 <= count <= limit for count, limit in zip(counts, cap, strict=True))


@settings(deadline=None)
@given(groups(), st.integers(1, 1000))
def test_only_proportions_of_shares_matter(case: tuple[list[int], list[int], int], scale: int) -> None:
    share, cap, total = case
    scaled = [float(part * scale) for part in share]
    assert torch.equal(apportion(scaled, total, cap), apportion([float(part) for part in share], total, cap))


@settings(deadline=None)
@given(st.lists(SHARES, min_size=2, max_size=8), st.integers(0, 100))
def test_a_larger_share_never_gets_less(share: list[int], total: int) -> None:
    counts = apportion([float(part) for part in share], total, [1000] * len(share)).tolist()
    for one, its_count in zip(share, counts, strict=True):
        for other, other_count in zip(share, counts, strict=True):
            if one > other:
                assert its_count >= other_count


@pytest.mark.parametrize("frames", [3, 7, 32])
def test_ties_go_to_the_lower_index(frames: int) -> None:
    counts = apportion([0.1] * frames, frames + 2, [50] * frames).tolist()
    assert counts == [2, 2] + [1] * (frames - 2)


def test_remainders_that_differ_by_float_noise_alone_are_ties() -> None:
    # two thirds remain of every part; as floats the middle one is a hair smaller
    assert apportion([1.0, 4.0, 1.0], 4, [9, 9, 9]).tolist() == [1, 3, 0]
    assert apportion([1.0, 4.0, 1.0], 28, [99, 99, 99]).tolist() == [5, 19, 4]


def test_shares_that_are_all_zero_count_as_equal() -> None:
    assert apportion([0.0, 0.0, 0.0], 4, [9, 9, 9]).tolist() == [2, 1, 1]


def test_what_a_cap_cuts_off_goes_to_the_rest_in_proportion() -> None:
    # 36 of 46 would be group 0's; full at 5, the other eight are shared 1 : 3 up to their caps
    assert apportion([100.0, 1.0, 3.0], 13, [5, 20, 20]).tolist() == [5, 2, 6]


def test_a_group_without_a_share_is_served_only_when_all_others_are_full() -> None:
    assert apportion([1.0, 0.0], 4, [4, 9]).tolist() == [4, 0]
    assert apportion([1.0, 0.0], 6, [4, 9]).tolist() == [4, 2]


def test_no_group_is_no_count() -> None:
    assert apportion([], 5, []).tolist() == []
