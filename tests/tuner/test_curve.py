"""The retention curve: exact on lines, monotone under noise, silent outside what was measured."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidsieve.tuner.measure.retention_curve import RetentionCurve


def _curve(*points: tuple[float, float]) -> RetentionCurve:
    curve = RetentionCurve()
    for point in points:
        curve.add(*point)
    return curve


def test_a_line_is_solved_exactly() -> None:
    curve = _curve((1.0, 1.1), (0.1, 0.2))
    assert curve.solve(0.65) == pytest.approx(0.55)
    assert curve.predict(0.55) == pytest.approx(0.65)


def test_a_target_below_every_point_has_no_solution() -> None:
    assert _curve((0.1, 0.3), (1.0, 1.0)).solve(0.2) is None


def test_a_target_above_every_point_gives_the_largest_measured_ratio() -> None:
    assert _curve((0.1, 0.3), (0.9, 0.8)).solve(5.0) == 0.9


def test_repeated_measurements_are_averaged() -> None:
    assert _curve((0.5, 0.4), (0.5, 0.6), (1.0, 1.0)).predict(0.5) == pytest.approx(0.5)


@given(
    st.lists(st.tuples(st.floats(0.01, 1), st.floats(0.01, 2)), min_size=1, max_size=12),
    st.floats(0.01, 2),
)
def test_what_is_solved_is_predicted_to_fit(points: list[tuple[float, float]], target: float) -> None:
    curve = _curve(*points)
    solved = curve.solve(target)
    lowest = min(ratio for ratio, _ in points)
    if solved is None:
        assert curve.predict(lowest) > target
    else:
        assert curve.predict(solved) <= target + 1e-9
        assert lowest <= solved <= max(ratio for ratio, _ in points)


@given(st.lists(st.tuples(st.floats(0.01, 1), st.floats(0.01, 2)), min_size=2, max_size=12))
def test_the_curve_never_falls(points: list[tuple[float, float]]) -> None:
    curve = _curve(*points)
    grid = [curve.predict(step / 50) for step in range(51)]
    assert all(later >= earlier - 1e-12 for earlier, later in itertools.pairwise(grid))


def test_a_fall_beyond_the_errors_is_not_monotone() -> None:
    curve = RetentionCurve([(0.1, 0.2, 0.01), (0.5, 0.8, 0.02), (1.0, 0.7, 0.02)])
    assert not curve.monotone


def test_a_fall_within_the_errors_or_the_tolerance_is_monotone() -> None:
    assert RetentionCurve([(0.1, 0.2, 0.01), (0.5, 0.8, 0.06), (1.0, 0.7, 0.05)]).monotone
    assert RetentionCurve([(0.5, 0.8, 0.0), (1.0, 0.795, 0.0)]).monotone


def test_an_exact_measurement_outweighs_a_vague_one() -> None:
    curve = RetentionCurve([(0.5, 0.4, 0.01), (0.5, 0.6, 0.1)])
    assert curve.predict(0.5) == pytest.approx((0.4 * 100 + 0.6) / 101)


def test_the_error_is_how_far_the_newest_point_lay_from_what_was_expected() -> None:
    curve = _curve((0.0, 0.1), (1.0, 1.1))
    assert curve.error is None
    curve.add(0.5, 0.66)
    assert curve.error == pytest.approx(0.1)
    curve.add(0.75, 0.88)
    assert curve.error == pytest.approx(0.0)


def test_a_curve_like_another_is_placed_by_one_point() -> None:
    published = _curve((0.0, 0.1), (1.0, 1.1))
    variant = RetentionCurve(like=published)
    assert variant.predict(0.5) == pytest.approx(0.6)
    variant.add(0.5, 0.72)
    assert variant.predict(1.0) == pytest.approx(1.22)
    assert variant.solve(0.72) == pytest.approx(0.5)
    assert variant.error is not None
    assert variant.measured == (0.0, 0.5, 1.0)


def test_the_largest_ratio_measured_within_a_target_is_one_that_was_measured() -> None:
    curve = _curve((0.1, 0.2), (0.5, 0.9), (0.7, 0.5), (1.0, 1.0))
    assert curve.largest_within(0.6) == 0.7
    assert curve.largest_within(0.1) is None
