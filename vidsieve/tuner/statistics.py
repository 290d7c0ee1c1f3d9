"""Compute the intervals and tests that a report may use, and write their numbers."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np

BOOTSTRAP_DRAWS = 10_000


@dataclass(frozen=True)
class Interval:
    """A value with its interval: `low <= value <= high`, from `n` measurements, at confidence `level`."""

    value: float
    low: float
    high: float
    n: int
    level: float = 0.95

    @property
    def half_width_ratio(self) -> float:
        """Half the interval's width as a fraction of the value; infinite for a value of zero."""
        return (self.high - self.low) / 2 / abs(self.value) if self.value else math.inf

    def scaled(self, factor: float) -> "Interval":
        """Scale the interval to another unit; `factor` must be positive."""
        return Interval(self.value * factor, self.low * factor, self.high * factor, self.n, self.level)

    def to_dict(self) -> dict[str, float | int]:
        """Return plain numbers for a file, rounded to six significant digits."""
        numbers = {"value": self.value, "low": self.low, "high": self.high, "level": self.level}
        return {key: float(f"{number:.6g}") for key, number in numbers.items()} | {"n": self.n}


def median_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Compute the median with its distribution-free interval between two order statistics.

    The k-th smallest and k-th largest of n cover the median with probability 1 - 2 P(Binomial(n, 1/2) < k); k is the
    largest for which that is at least `level`. Fewer than 6 values cannot reach 95 %: then smallest and largest are
    given with the level they do reach. Raises ValueError for no values.
    """
    ordered = sorted(float(value) for value in values)
    n = len(ordered)
    if n == 0:
        raise ValueError("median_interval: needs at least one value")
    rank, outside = _central_rank(n, level)
    middle = (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
    return Interval(middle, ordered[rank - 1], ordered[n - rank], n, max(0.0, 1 - 2 * outside))


@lru_cache(maxsize=4096)
def _central_rank(n: int, level: float) -> tuple[int, float]:
    """Find the largest k >= 1 with P(Binomial(n, 1/2) < k) <= (1 - level) / 2, and that probability; k = 1 if none."""
    allowed = (1 - level) / 2
    # in logarithms: binomial coefficients leave the range of a float from n = 1030 on
    whole = math.lgamma(n + 1) - n * math.log(2)
    rank, below = 1, math.exp(-n * math.log(2))
    while rank < (n + 1) // 2:
        wider = below + math.exp(whole - math.lgamma(rank + 1) - math.lgamma(n - rank + 1))
        if wider > allowed:
            break
        rank, below = rank + 1, wider
    return rank, below


def wilson_interval(successes: float, n: int, level: float = 0.95) -> Interval:
    """Compute a proportion with its Wilson score interval (Wilson 1927), sound near 0 and 1 and for small n.

    `successes` may be fractional (a sum of agreements). n = 0 gives the whole of [0, 1].
    """
    if n == 0:
        return Interval(0.5, 0.0, 1.0, 0, level)
    z = NormalDist().inv_cdf(0.5 + level / 2)
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Interval(p, max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half)), n, level)


def mcnemar_exact(lost: int, won: int) -> float:
    """Compute the two-sided exact McNemar p-value of `lost` and `won` discordant pairs; 1.0 without any."""
    pairs = lost + won
    if pairs == 0:
        return 1.0
    tail = sum(math.comb(pairs, k) for k in range(min(lost, won) + 1)) / 2**pairs
    return min(1.0, 2 * tail)


def paired_difference(
    differences: Sequence[float],
    groups: Sequence[Hashable],
    *,
    level: float = 0.95,
    draws: int = BOOTSTRAP_DRAWS,
    seed: int = 0,
) -> Interval:
    """Compute the mean of paired differences with a cluster bootstrap interval: whole groups (videos) are resampled.

    Percentile interval, widened by sqrt(G / (G - 1)) and by Student's t over the normal quantile with G - 1 degrees
    of freedom (Hesterberg 2015, arXiv:1411.5279, "expanded percentile"), because few groups cover too seldom. Two
    made-up examples, +1 and -1, join every draw (the pseudo-counts of Bonett and Price 2012), so that a handful of
    examples without one discordant pair does not pass for certainty. Nor is the interval ever narrower than the Wilson
    bound on the share of groups that lose (or gain), times what one loses, less what others gain: without a single
    loss in n examples that is 3.84 / (n + 3.84), the two-sided kin of the rule of three (Hanley and Lippman-Hand 1983).
    Differences lie in [-1, 1]; with one group nothing is known about other groups, and the interval is all of [-1, 1].
    Raises ValueError for no differences.
    """
    values = np.asarray(differences, dtype=np.float64)
    if values.size == 0 or values.size != len(groups):
        raise ValueError(f"paired_difference: {values.size} differences and {len(groups)} groups")
    mean = float(values.mean())
    sums, counts = _group_totals(values, groups)
    if len(sums) < 2:
        return Interval(mean, -1.0, 1.0, values.size, level)
    means = _bootstrap_means(sums, counts, draws, seed)
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    widen = _small_sample_factor(len(sums), level)
    least_high, least_low = _rare_bound(sums, values.size, level), -_rare_bound(-sums, values.size, level)
    return Interval(
        mean,
        max(-1.0, min(least_low, mean - widen * max(0.0, mean - float(low)))),
        min(1.0, max(least_high, mean + widen * max(0.0, float(high) - mean))),
        values.size,
        level,
    )


def _rare_bound(sums: np.ndarray, examples: int, level: float) -> float:
    """Bound the upper end of the mean: what groups gain, its share at the Wilson bound, less what the others lose.

    Where few groups change, a bootstrap draws from too few; where many do, it reaches further than this.
    """
    gained, lost = sums[sums > 0], -sums[sums < 0]
    each = float(gained.mean()) if gained.size else 1.0
    share = wilson_interval(gained.size, len(sums), level).high
    return (share * len(sums) * each - float(lost.sum())) / examples


def clustered_error(differences: Sequence[float], groups: Sequence[Hashable]) -> float:
    """Compute the standard error of a mean whose groups (videos) were drawn as a whole; infinite for one group.

    The sandwich formula with G / (G - 1) (Miller 2024, arXiv:2411.00640, equation 6 with that factor).
    """
    sums, counts = _group_totals(np.asarray(differences, dtype=np.float64), groups)
    if len(sums) < 2:
        return math.inf
    residuals = sums - counts * (sums.sum() / counts.sum())
    return math.sqrt(len(sums) / (len(sums) - 1) * float((residuals**2).sum())) / float(counts.sum())


def _group_totals(values: np.ndarray, groups: Sequence[Hashable]) -> tuple[np.ndarray, np.ndarray]:
    """Sum and count each group, in order of first appearance."""
    numbers: dict[Hashable, int] = {}
    labels = np.array([numbers.setdefault(group, len(numbers)) for group in groups])
    return np.bincount(labels, weights=values), np.bincount(labels).astype(np.float64)


def _bootstrap_means(sums: np.ndarray, counts: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """Draw `draws` means over groups with replacement, the two pseudo-examples among them."""
    sums, counts = np.append(sums, [1.0, -1.0]), np.append(counts, [1.0, 1.0])
    rng = np.random.default_rng(seed)
    block = max(1, 4_000_000 // len(sums))  # bounds the memory of one block of draws to 32 MB
    means = []
    for start in range(0, draws, block):
        drawn = rng.integers(len(sums), size=(min(block, draws - start), len(sums)))
        means.append(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
    return np.concatenate(means)


def _small_sample_factor(groups: int, level: float) -> float:
    """Compute sqrt(G / (G - 1)) times Student's t (Cornish-Fisher, A&S 26.7.5) ÷ the normal quantile."""
    z = NormalDist().inv_cdf(0.5 + level / 2)
    nu = groups - 1
    t = z + (z**3 + z) / (4 * nu) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * nu**2)
    t += (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * nu**3)
    return math.sqrt(groups / nu) * t / z


def examples_needed(drop: Interval, max_drop: float, *, changed: bool = True) -> int | None:
    """Estimate how many examples would certify `max_drop` in every second study, if the drop were the true one.

    `drop` is baseline minus policy with its interval; None if it exceeds `max_drop` itself. The width shrinks with the
    square root of the number of examples; where not one of them `changed`, the bound z^2 / (n + z^2) shrinks faster.
    """
    room = max_drop - drop.value
    if room <= 0:
        return None
    width = drop.high - drop.value
    if changed:
        return max(drop.n, math.ceil(drop.n * (width / room) ** 2))
    return max(drop.n, math.ceil(drop.n * width / max(1e-9, 1 - width) * (1 - room) / room))


def ms(value: float) -> str:
    """Write milliseconds: four digits below a thousand, whole numbers above."""
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"


def in_points(value: float) -> str:
    """Write percentage points: `1 point`, `2.5 points`."""
    return f"{value:g} point{'' if value == 1 else 's'}"


SHARE = 0.95
LEAST_RUNS = 59
"""With fewer runs even the slowest one bounds the 95th percentile with less than 95 % confidence: 0.95^58 > 5 %."""


def p95_interval(values: Sequence[float]) -> Interval | None:
    """Compute the 95th percentile, each end a bound at 95 % confidence (so 90 % both); None below 59 values.

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
