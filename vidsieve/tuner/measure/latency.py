"""Latency of a policy paired with the uncompressed model: interleaved, warmed up, stopped when precise enough."""

import gc
import math
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import median
from typing import TypeVar

from vidsieve.framework.errors import TuneError
from vidsieve.tuner.measured import Latency, Stop
from vidsieve.tuner.protocol import Bench, Intervention, Metric
from vidsieve.tuner.statistics import Interval, median_interval, p95_interval
from vidsieve.tuner.trial_failure import release_memory

T = TypeVar("T")

LEAST_PAIRS = 3
LEAST_CLOCK = 0.75
"""A run at a lower share of the device's nominal clock is throttled."""
THROTTLED = (
    f"the device's clock fell below {LEAST_CLOCK:.0%} of its nominal one in some runs (heat or a power limit); "
    "such pairs were measured again"
)
STAYS_THROTTLED = (
    f"the device's clock stayed below {LEAST_CLOCK:.0%} of its nominal one, so throttled runs had to be counted; "
    "expect other milliseconds on a cool device"
)


@dataclass(frozen=True, kw_only=True)
class TimingRules:
    """When to stop: both intervals' half-width at most `half_width_ratio`, or a cap of pairs or seconds reached.

    `warmup` runs go before the first timed one for every new token shape, of the policy and of the baseline. Where a
    question is all there is, `above` and `below` end it: the ratio's interval lies wholly above, or wholly below; so
    does `above_ms`, for the policy's own milliseconds.
    """

    warmup: int = 10
    min_pairs: int = 10
    max_pairs: int = 200
    max_seconds: float = 60.0
    half_width_ratio: float = 0.02
    above: float = math.inf
    below: float = 0.0
    above_ms: float = math.inf


@dataclass
class Pairs:
    """The timed runs of one measurement, pair by pair: baseline and policy."""

    baseline: list[dict[str, float]] = field(default_factory=list)
    policy: list[dict[str, float]] = field(default_factory=list)
    dropped: int = 0
    kept_throttled: int = 0

    def __len__(self) -> int:
        return len(self.baseline)

    def add(self, baseline: dict[str, float], policy: dict[str, float], *, may_drop: bool) -> None:
        """Append a pair, or drop it if the device was throttled in either run and `may_drop`."""
        throttled = min(run.get("clock_ratio", math.inf) for run in (baseline, policy)) < LEAST_CLOCK
        if throttled and may_drop:
            self.dropped += 1
            return
        self.kept_throttled += throttled
        self.baseline.append(baseline)
        self.policy.append(policy)

    def intervals(self, metric: Metric) -> tuple[Interval, Interval, Interval]:
        """Compute the intervals of baseline, policy and ratio."""
        return self.intervals_of(f"{metric}_ms")

    def intervals_of(self, name: str) -> tuple[Interval, Interval, Interval]:
        """Compute the intervals of baseline, policy and ratio of one of the numbers that every run has."""
        baseline, policy = ([run[name] for run in side] for side in (self.baseline, self.policy))
        ratios = [ours / theirs for ours, theirs in zip(policy, baseline, strict=True)]
        return median_interval(baseline), median_interval(policy), median_interval(ratios)


@dataclass
class Side:
    """A policy that is being measured: its pairs so far, and the latency, or the error that ended it."""

    policy: Intervention
    pairs: Pairs = field(default_factory=Pairs)
    result: Latency | Exception | None = None

    def attempt(self, run: Callable[[], T], faults: tuple[type[Exception], ...]) -> T | None:
        """Run something of the policy's; one of `faults` becomes its result, and what it held is released."""
        try:
            return run()
        except faults as error:
            release_memory(error)
            self.result = error
            return None


class PairedTimer:
    """Time policies in pairs with the uncompressed model, in ABBA order, clip after clip.

    Drift (heat, clocks, neighbours) hits both sides alike, so the ratio survives what the milliseconds do not. What
    has been warmed up is remembered from call to call. `clock` gives seconds. `warn` may be set, and is then called
    with what makes the numbers doubtful: throttling, and the bench's own `notices` where it has any.
    """

    def __init__(self, bench: Bench, metric: Metric, clock: Callable[[], float] = time.perf_counter) -> None:
        self._bench, self._metric, self._clock = bench, metric, clock
        self._warm: set[tuple[str, Hashable]] = set()
        self.warn: Callable[[str], None] = lambda text: None

    def measure(self, policy: Intervention, rules: TimingRules) -> Latency:
        """Measure the latency of `policy` in pairs with the baseline. What the bench raises passes through.

        Raises:
            TuneError: the bench gave no usable number for the metric.
        """
        [latency] = self.measure_beside([policy], rules)
        assert isinstance(latency, Latency)
        return latency

    def measure_beside(
        self, policies: Sequence[Intervention], rules: TimingRules, faults: tuple[type[Exception], ...] = ()
    ) -> list[Latency | Exception]:
        """Measure several policies in turns that share one run of the baseline: a latency each, in their order.

        The baseline is the slowest of them as a rule, so this takes a fraction of the time of one policy after another.
        A policy that raises one of `faults` leaves the others their turns and gets the error for a latency.
        """
        sides = [Side(policy) for policy in policies]
        for _ in self.turns(sides, replace(rules, max_seconds=rules.max_seconds * len(sides)), faults):
            pass
        return [side.result for side in sides if side.result is not None]

    def turns(
        self, sides: Sequence[Side], rules: TimingRules, faults: tuple[type[Exception], ...] = ()
    ) -> Iterator[None]:
        """Time all sides turn by turn until each has its result; after each turn, what they have so far can be read."""
        start = self._clock()
        with collector_off():
            while running := [side for side in sides if side.result is None]:
                self._turn(running, rules, start, faults)
                for side in running:
                    if side.result is None and len(side.pairs):
                        stopped = self._stop(side.pairs, rules, self._clock() - start)
                        side.result = self._summary(side.pairs, stopped) if stopped else None
                yield
        self._pass_warnings(sides)

    def _turn(
        self, sides: Sequence[Side], rules: TimingRules, start: float, faults: tuple[type[Exception], ...]
    ) -> None:
        """Time the baseline and each policy on the next clip; after a dropped pair, the same clip in the same order.

        Every other turn runs the other way round: what drifts meets both sides alike.
        """
        number = min(len(side.pairs) for side in sides)
        clip = number % self._bench.clips
        self._warm_up(None, clip, rules, start)
        for side in sides:
            side.attempt(partial(self._warm_up, side.policy, clip, rules, start), faults)
        order: list[Side | None] = [None, *(side for side in sides if side.result is None)]
        if len(order) == 1:
            return
        # the second rotation swaps the order on every clip, so that no clip is always measured first
        if (number + number // self._bench.clips) % 2:
            order.reverse()
        theirs: dict[str, float] = {}
        ours: list[tuple[Side, dict[str, float]]] = []
        for each in order:
            if each is None:
                theirs = self._run(None, clip)
            elif run := each.attempt(partial(self._run, each.policy, clip), faults):
                ours.append((each, run))
        # a clock that stays low is this device's own: no more drops than pairs, and none beyond the seconds
        in_time = self._clock() - start < rules.max_seconds
        for side, run in ours:
            side.pairs.add(theirs, run, may_drop=in_time and side.pairs.dropped < max(rules.min_pairs, number))

    def _run(self, policy: Intervention | None, clip: int) -> dict[str, float]:
        """Time one request."""
        parts = dict(self._bench.timed(policy, clip, self._metric))
        value = parts.get(f"{self._metric}_ms", math.nan)
        if not (math.isfinite(value) and value > 0):
            raise TuneError(f"latency: the bench must give {self._metric}_ms as a positive number, got {value!r}.")
        return parts

    def _warm_up(self, policy: Intervention | None, clip: int, rules: TimingRules, start: float) -> None:
        """Run a new token shape untimed, at least once and for at most half the seconds."""
        key = (policy.hash if policy is not None else "", self._bench.clip_shape(clip))
        if key in self._warm:
            return
        for _ in range(rules.warmup):
            self._run(policy, clip)
            if self._clock() - start > rules.max_seconds / 2:
                break
        self._warm.add(key)

    def _stop(self, pairs: Pairs, rules: TimingRules, elapsed: float) -> Stop | None:
        """Decide why to stop now, or None."""
        if len(pairs) >= rules.min_pairs and len(pairs) % 2 == 0:
            _, policy, ratio = pairs.intervals(self._metric)
            if max(policy.half_width_ratio, ratio.half_width_ratio) <= rules.half_width_ratio:
                return "precise"
            if ratio.low > rules.above or ratio.high < rules.below or policy.low > rules.above_ms:
                return "decided"
        if len(pairs) >= rules.max_pairs:
            return "pairs"
        return "seconds" if elapsed >= rules.max_seconds and len(pairs) >= LEAST_PAIRS else None

    def _pass_warnings(self, sides: Sequence[Side]) -> None:
        """Pass warnings of throttling and of the bench on."""
        if any(side.pairs.kept_throttled for side in sides):
            self.warn(STAYS_THROTTLED)
        elif any(side.pairs.dropped for side in sides):
            self.warn(THROTTLED)
        for notice in getattr(self._bench, "notices", ()):
            self.warn(notice)

    def _summary(self, pairs: Pairs, stopped: Stop) -> Latency:
        baseline, policy, ratio = pairs.intervals(self._metric)
        return Latency(
            metric=self._metric,
            policy_ms=policy,
            baseline_ms=baseline,
            ratio=ratio,
            stopped=stopped,
            parts_ms=_medians(pairs.policy),
            baseline_parts_ms=_medians(pairs.baseline),
            policy_p95_ms=p95_interval([run[f"{self._metric}_ms"] for run in pairs.policy]),
            throttled_pairs=pairs.dropped,
            throttled_kept=pairs.kept_throttled,
        )


def _medians(runs: list[dict[str, float]]) -> dict[str, float]:
    """Compute the median of every part that some run reported."""
    names = dict.fromkeys(name for run in runs for name in run if name.endswith("_ms"))
    return {name: float(median(run[name] for run in runs if name in run)) for name in names}


@contextmanager
def collector_off() -> Iterator[None]:
    """Collect young garbage now and switch the collector off while timing."""
    was_on = gc.isenabled()
    gc.collect(1)  # the whole heap, with torch in it, would take longer than many a measurement
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
