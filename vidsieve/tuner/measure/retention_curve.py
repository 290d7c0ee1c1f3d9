"""Model the latency of a policy as a function of retention, enough to know where the target lies."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

LEAST_ERROR = 0.005
"""No measurement counts as more exact than this share of the baseline."""
TOLERANCE = 0.01
"""Latency may fall by this share as retention grows before a curve is called not monotone."""


class Point(NamedTuple):
    """One measurement: latency ÷ baseline at a retention ratio, with half the width of its interval."""

    retention_ratio: float
    latency_ratio: float
    error: float


class RetentionCurve:
    """Measured (retention ratio, latency ÷ baseline) points; between them a straight line that never falls.

    Points out of order are pooled (isotonic regression by pooling adjacent violators, weighted by their errors), so
    that noise cannot turn the curve round. Outside the measured range the nearest end holds.

    A curve `like` another has that one's shape, higher or lower by what its own points show on average: one measurement
    of a variant places its whole curve (what a stage before the language model costs does not depend on retention).
    `points` are in order of arrival.
    """

    def __init__(self, points: Sequence[Sequence[float]] = (), *, like: "RetentionCurve | None" = None) -> None:
        self.points = [Point(*point) for point in points]
        self.like = like

    def add(self, retention_ratio: float, latency_ratio: float, error: float = 0.0) -> None:
        """Add one measurement; `error` is half the width of its interval."""
        self.points.append(Point(retention_ratio, latency_ratio, error))

    @property
    def measured(self) -> tuple[float, ...]:
        """The retention ratios measured, ascending, each once; those of the curve it is like count too."""
        own = {point.retention_ratio for point in self.points}
        return tuple(sorted(own.union(self.like.measured if self.like else ())))

    @property
    def monotone(self) -> bool:
        """Whether no point is slower than one of higher retention, beyond both errors and `TOLERANCE`."""
        ordered = sorted(self.points)
        return not any(
            fewer.latency_ratio - fewer.error > more.latency_ratio + more.error
            and fewer.latency_ratio > (1 + TOLERANCE) * more.latency_ratio
            for fewer, more in itertools.combinations(ordered, 2)
            if fewer.retention_ratio < more.retention_ratio
        )

    @property
    def error(self) -> float | None:
        """The largest relative deviation of a point from the curve; the newest, from the curve as it was before it.

        A line through its own points would always seem exact. None before three retention ratios are measured.
        """
        if not self.points or len(self.measured) < 3:
            return None
        deviations = [abs(point.latency_ratio / self.predict(point.retention_ratio) - 1) for point in self.points]
        before, newest = RetentionCurve(self.points[:-1], like=self.like), self.points[-1]
        if before.measured[0] <= newest.retention_ratio <= before.measured[-1]:
            deviations.append(abs(newest.latency_ratio / before.predict(newest.retention_ratio) - 1))
        return max(deviations)

    def predict(self, retention_ratio: float) -> float:
        """Predict latency ÷ baseline at this retention ratio."""
        if self.like is not None:
            return self.like.predict(retention_ratio) + self._offset()
        at, latency = self._monotone()
        return float(np.interp(retention_ratio, at, latency))

    def solve(self, latency_ratio: float) -> float | None:
        """Find the largest retention ratio, within those measured, predicted to meet `latency_ratio`, or None."""
        if self.like is not None:
            return self.like.solve(latency_ratio - self._offset())
        at, latency = self._monotone()
        if latency[0] > latency_ratio:
            return None
        above = int(np.searchsorted(latency, latency_ratio, side="right"))
        if above == len(at):
            return float(at[-1])
        rise = (latency_ratio - latency[above - 1]) / (latency[above] - latency[above - 1])
        return float(at[above - 1] + rise * (at[above] - at[above - 1]))

    def largest_within(self, latency_ratio: float) -> float | None:
        """Find the largest retention ratio that was measured within `latency_ratio`; None if none was."""
        return max((p.retention_ratio for p in self.points if p.latency_ratio <= latency_ratio), default=None)

    def _offset(self) -> float:
        """Compute the weighted mean distance of its own points to the curve it is like; 0 before there is one."""
        assert self.like is not None
        if not self.points:
            return 0.0
        offsets = [point.latency_ratio - self.like.predict(point.retention_ratio) for point in self.points]
        return float(np.average(offsets, weights=[_weight(point) for point in self.points]))

    def _monotone(self) -> tuple[np.ndarray, np.ndarray]:
        """Pool points until latencies never fall along the retention ratios."""
        blocks: list[list[float]] = []  # mean latency, weight
        at: list[float] = []
        sizes: list[int] = []
        for point in sorted(self.points):
            if at and at[-1] == point.retention_ratio:
                blocks[-1] = _pooled(blocks[-1], [point.latency_ratio, _weight(point)])
            else:
                at.append(point.retention_ratio)
                blocks.append([point.latency_ratio, _weight(point)])
                sizes.append(1)
            while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
                last, size = blocks.pop(), sizes.pop()
                blocks[-1] = _pooled(blocks[-1], last)
                sizes[-1] += size
        return np.array(at), np.repeat([mean for mean, _ in blocks], sizes)


def _weight(point: Point) -> float:
    return 1 / max(point.error, LEAST_ERROR) ** 2


def _pooled(first: list[float], second: list[float]) -> list[float]:
    """Pool two (mean, weight) pairs."""
    total = first[1] + second[1]
    return [(first[0] * first[1] + second[0] * second[1]) / total, total]
