"""Latency of a policy beside the uncompressed model: interleaved, warmed up, stopped when precise enough."""

import gc
import math
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Literal

from vidsieve.framework.errors import TuneError
from vidsieve.framework.policy import Policy
from vidsieve.tuner.protocol import Bench, Metric
from vidsieve.tuner.statistics import Interval, median_interval

PROTOCOL = "abba-interleaved-v1"
LEAST_PAIRS = 3
Stop = Literal["precise", "decided", "pairs", "seconds"]


@dataclass(frozen=True, kw_only=True)
class TimingRules:
    """When to stop: both intervals' half-width at most `half_width_ratio`, or a cap of pairs or seconds reached.

    `warmup` runs go before the first timed one for every new token shape, of the policy and of the baseline. Where a
    question is all there is, `above` and `below` end it: the ratio's interval lies wholly above, or wholly below.
    """

    warmup: int = 10
    min_pairs: int = 10
    max_pairs: int = 200
    max_seconds: float = 60.0
    half_width_ratio: float = 0.02
    above: float = math.inf
    below: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Medians with order-statistic intervals. `ratio` is the median of policy ÷ baseline over pairs on one clip.

    `parts_ms` and `baseline_parts_ms` are medians of whatever parts the bench reported. `stopped` says why timing
    ended; unless "precise", the intervals are wider than asked and must be read as they are.
    """

    metric: Metric
    policy_ms: Interval
    baseline_ms: Interval
    ratio: Interval
    stopped: Stop
    parts_ms: dict[str, float] = field(default_factory=dict)
    baseline_parts_ms: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and text, for provenance."""
        return {
            "metric": f"{self.metric}_ms",
            "protocol": PROTOCOL,
            "policy_ms": self.policy_ms.to_dict(),
            "baseline_ms": self.baseline_ms.to_dict(),
            "ratio": self.ratio.to_dict(),
            "stopped": self.stopped,
            "parts_ms": {key: round(value, 4) for key, value in self.parts_ms.items()},
            "baseline_parts_ms": {key: round(value, 4) for key, value in self.baseline_parts_ms.items()},
        }


class PairedTimer:
    """Times policies against the uncompressed model in ABBA order, clip after clip.

    Drift (heat, clocks, neighbours) hits both sides alike, so the ratio survives what the milliseconds do not. What
    has been warmed up is remembered from call to call. `clock` gives seconds.
    """

    def __init__(self, bench: Bench, metric: Metric, clock: Callable[[], float] = time.perf_counter) -> None:
        self._bench, self._metric, self._clock = bench, metric, clock
        self._warm: set[tuple[str, Hashable]] = set()

    def measure(self, policy: Policy, rules: TimingRules) -> Latency:
        """The latency of `policy` beside the baseline. Whatever the bench raises passes through.

        Raises:
            TuneError: the bench gave no usable number for the metric.
        """
        runs: tuple[list[dict[str, float]], list[dict[str, float]]] = ([], [])
        start = self._clock()
        with collector_off():
            while True:
                pair = len(runs[0])
                clip = pair % self._bench.clips
                for each in (None, policy):
                    self._warm_up(each, clip, rules, start)
                # the second rotation swaps the order on every clip, so that no clip is always measured first
                first = (pair + pair // self._bench.clips) % 2
                for side in (first, 1 - first):
                    runs[side].append(self._run((None, policy)[side], clip))
                stopped = self._stop(runs, rules, self._clock() - start)
                if stopped:
                    return self._summary(runs, stopped)

    def _run(self, policy: Policy | None, clip: int) -> dict[str, float]:
        """One timed request."""
        parts = dict(self._bench.timed(policy, clip, self._metric))
        value = parts.get(f"{self._metric}_ms", math.nan)
        if not (math.isfinite(value) and value > 0):
            raise TuneError(f"latency: the bench must give {self._metric}_ms as a positive number, got {value!r}.")
        return parts

    def _warm_up(self, policy: Policy | None, clip: int, rules: TimingRules, start: float) -> None:
        """Run a new token shape untimed; give up half the seconds at most, and one run at least."""
        key = (policy.hash if policy is not None else "", self._bench.clip_shape(clip))
        if key in self._warm:
            return
        for _ in range(rules.warmup):
            self._run(policy, clip)
            if self._clock() - start > rules.max_seconds / 2:
                break
        self._warm.add(key)

    def _stop(self, runs: tuple[list[Any], list[Any]], rules: TimingRules, elapsed: float) -> Stop | None:
        """Why to stop now, or None to go on."""
        pairs = len(runs[0])
        if pairs >= rules.min_pairs and pairs % 2 == 0:
            _, policy, ratio = self._intervals(runs)
            if max(policy.half_width_ratio, ratio.half_width_ratio) <= rules.half_width_ratio:
                return "precise"
            if ratio.low > rules.above or ratio.high < rules.below:
                return "decided"
        if pairs >= rules.max_pairs:
            return "pairs"
        return "seconds" if elapsed >= rules.max_seconds and pairs >= LEAST_PAIRS else None

    def _intervals(self, runs: tuple[list[Any], list[Any]]) -> tuple[Interval, Interval, Interval]:
        """Baseline, policy, ratio."""
        baseline, policy = ([run[f"{self._metric}_ms"] for run in side] for side in runs)
        ratios = [ours / theirs for ours, theirs in zip(policy, baseline, strict=True)]
        return median_interval(baseline), median_interval(policy), median_interval(ratios)

    def _summary(self, runs: tuple[list[Any], list[Any]], stopped: Stop) -> Latency:
        baseline, policy, ratio = self._intervals(runs)
        parts, baseline_parts = (_medians(side) for side in runs[::-1])
        return Latency(
            metric=self._metric,
            policy_ms=policy,
            baseline_ms=baseline,
            ratio=ratio,
            stopped=stopped,
            parts_ms=parts,
            baseline_parts_ms=baseline_parts,
        )


def _medians(runs: list[dict[str, float]]) -> dict[str, float]:
    """The median of every part that some run reported."""
    names = dict.fromkeys(name for run in runs for name in run)
    return {name: float(median(run[name] for run in runs if name in run)) for name in names}


@contextmanager
def collector_off() -> Iterator[None]:
    """Collect young garbage now, and none while timing."""
    was_on = gc.isenabled()
    gc.collect(1)  # the whole heap, with torch in it, would take longer than many a measurement
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
