"""How slow the slowest requests are: the 95th percentile with bounds by order statistics."""

import math
from collections.abc import Sequence

from vidsieve.tuner.judge.statistics import Interval

SHARE = 0.95
LEAST_RUNS = 59
"""With fewer runs even the slowest one bounds the 95th percentile with less than 95 % confidence: 0.95^58 > 5 %."""


def p95_interval(values: Sequence[float]) -> Interval | None:
    """The 95th percentile, each end of the interval a bound at 95 % confidence (so 90 % both); None below 59 values.

    The k-th smallest of n lies at or above the percentile with probability P(Binomial(n, 0.95) < k), whatever the
    distribution: the upper end is the smallest k where that reaches 95 %, the lower end its mirror.
    """
    ordered = sorted(float(value) for value in values)
    n = len(ordered)
    if n < LEAST_RUNS:
        return None
    # in logarithms: binomial coefficients leave the range of a float from n = 1030 on
    yes, no = math.log(SHARE), math.log1p(-SHARE)
    below = 0.0  # P(Binomial(n, 0.95) < rank)
    low, high = 1, n
    for rank in range(1, n + 1):
        few = rank - 1
        ways = math.lgamma(n + 1) - math.lgamma(few + 1) - math.lgamma(n - few + 1)
        below += math.exp(ways + few * yes + (n - few) * no)
        if below <= 1 - SHARE:
            low = rank
        if below >= SHARE:
            high = rank
            break
    value = ordered[math.ceil(SHARE * n - 1e-9) - 1]
    return Interval(value, min(value, ordered[low - 1]), max(value, ordered[high - 1]), n, level=2 * SHARE - 1)
