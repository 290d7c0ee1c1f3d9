"""Whether p(gold) follows accuracy: against results made to follow it, or not."""

from typing import Any

import numpy as np
import pytest

from vidsieve.tuner.judge.rerank import Proxy, proxy_check

P = np.array([-0.08, -0.06, -0.05, -0.03, -0.02, -0.01])
SMALL = [0.001] * 6


def check(*columns: Any) -> Proxy:
    return proxy_check(*(np.asarray(column, dtype=float).tolist() for column in columns))


def test_accuracy_that_follows_on_a_line_is_trusted_and_the_line_is_found() -> None:
    proxy = check(P, SMALL, 0.5 * P + 0.01, [0.01] * 6)
    assert proxy.trusted is True
    assert (proxy.slope, proxy.intercept) == (pytest.approx(0.5), pytest.approx(0.01))
    assert proxy.bias_points == 0
    assert proxy.sentence() == "p(gold) follows accuracy: r = 1.00 over 6 configurations"


def test_a_fall_that_all_configurations_share_says_nothing_against_p_gold() -> None:
    # five points of p(gold) lost everywhere while answers stay: what counts is that changes go together
    accuracy = np.array([-0.02, -0.01, 0.0, 0.0, 0.01, 0.02])
    proxy = check(accuracy - 0.05, SMALL, accuracy, [0.01] * 6)
    assert proxy.trusted is True
    assert proxy.accuracy_change(-0.05) == pytest.approx(0.0)


def test_accuracy_that_goes_its_own_way_is_not_trusted() -> None:
    accuracy = np.array([0.0, -0.05, 0.01, -0.04, 0.0, -0.03])
    proxy = check(P, SMALL, accuracy, [0.001] * 6)
    assert proxy.r == pytest.approx(np.corrcoef(P, accuracy)[0, 1])
    assert proxy.trusted is False
    assert proxy.sentence().startswith("p(gold) does not follow accuracy (r = ")
    assert check(P, SMALL, -P, [0.001] * 6).trusted is False


@pytest.mark.parametrize("count", [0, 1, 4])
def test_a_few_configurations_cannot_tell(count: int) -> None:
    proxy = check(P[:count], SMALL[:count], P[:count], SMALL[:count])
    assert (proxy.trusted, proxy.r) == (None, None)
    assert proxy.bias_points > 0
    assert f"cannot be told from {count} configurations" in proxy.sentence()


def test_configurations_that_are_all_alike_cannot_tell_either() -> None:
    assert check([-0.01] * 6, SMALL, P, SMALL).trusted is None
    assert check(P, SMALL, [0.0] * 6, SMALL).trusted is None
    # the whole range of p(gold) lies within the error of one
    assert check(P / 10, [0.01] * 6, P, SMALL).trusted is None


def test_the_bias_is_the_spread_that_sampling_leaves_unexplained() -> None:
    rng = np.random.default_rng(0)
    p = rng.normal(0, 0.05, 4000)
    accuracy = p + rng.normal(0, 0.01, 4000) + rng.normal(0, 0.02, 4000)
    assert check(p, [0.0] * 4000, accuracy, [0.02] * 4000).bias_points == pytest.approx(1.0, rel=0.1)


def test_lists_of_unequal_length_are_refused() -> None:
    with pytest.raises(ValueError, match="2, 2, 1 and 2 entries"):
        check([0, 1], [0, 1], [0], [0, 1])
