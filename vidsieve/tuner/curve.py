"""Latency as a function of retention, for one policy: enough of a model to know where the target lies."""

import bisect

import numpy as np


class RetentionCurve:
    """Measured (retention ratio, latency ÷ baseline) points; between them a straight line that never falls.

    Points out of order are pooled (isotonic regression by pooling adjacent violators), so that noise cannot turn the
    curve round. Outside the measured range the nearest end holds.
    """

    def __init__(self) -> None:
        self._points: list[tuple[float, float]] = []

    def add(self, retention_ratio: float, latency_ratio: float) -> None:
        """Learn one measurement."""
        bisect.insort(self._points, (retention_ratio, latency_ratio))

    def predict(self, retention_ratio: float) -> float:
        """Latency ÷ baseline expected at this retention ratio."""
        at, latency = self._monotone()
        return float(np.interp(retention_ratio, at, latency))

    def solve(self, latency_ratio: float) -> float | None:
        """The largest measured-range retention ratio predicted to stay within `latency_ratio`; None if none does."""
        at, latency = self._monotone()
        if latency[0] > latency_ratio:
            return None
        above = int(np.searchsorted(latency, latency_ratio, side="right"))
        if above == len(at):
            return float(at[-1])
        rise = (latency_ratio - latency[above - 1]) / (latency[above] - latency[above - 1])
        return float(at[above - 1] + rise * (at[above] - at[above - 1]))

    def _monotone(self) -> tuple[np.ndarray, np.ndarray]:
        """Retention ratios without repeats, and latencies that never fall along them."""
        blocks: list[list[float]] = []  # mean latency, weight
        at: list[float] = []
        sizes: list[int] = []
        for retention, latency in self._points:
            if at and at[-1] == retention:
                mean, weight = blocks[-1]
                blocks[-1] = [(mean * weight + latency) / (weight + 1), weight + 1]
            else:
                at.append(retention)
                blocks.append([latency, 1.0])
                sizes.append(1)
            while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
                (mean, weight), size = blocks.pop(), sizes.pop()
                total = blocks[-1][1] + weight
                blocks[-1] = [(blocks[-1][0] * blocks[-1][1] + mean * weight) / total, total]
                sizes[-1] += size
        return np.array(at), np.repeat([mean for mean, _ in blocks], sizes)
