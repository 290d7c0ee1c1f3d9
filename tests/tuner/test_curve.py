"""The retention curve: exact on lines, monotone under noise, silent outside what was measured."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidsieve.tuner.curve import RetentionCurve


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
