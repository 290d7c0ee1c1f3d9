"""`Measurement`: a bench with the timer, curves, warnings, deadline and latency target of a search."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from queue import SimpleQueue
from typing import TypeVar

from vidsieve.framework.policy.policy import Policy
from vidsieve.tuner.measure.latency import PairedTimer, TimingRules
from vidsieve.tuner.measure.retention_curve import RetentionCurve
from vidsieve.tuner.measured import Latency
from vidsieve.tuner.protocol import Bench, Intervention
from vidsieve.tuner.request import TuneRequest
from vidsieve.tuner.result import Listener
from vidsieve.tuner.trial_failure import POLICY_FAULTS, reason_of, release_memory


@dataclass(frozen=True, kw_only=True)
class Timings:
    """Timing rules by phase: `quick` to find the range, `trial` in the search, `final` for what is reported."""

    quick: TimingRules
    trial: TimingRules
    final: TimingRules

    @classmethod
    def for_device(cls, device: str) -> "Timings":
        """Choose rules: a GPU needs ten warm-up runs a shape (clocks, autotuning, allocator), a CPU two."""
        warmup = 2 if device.startswith("cpu") else 10
        return cls(
            quick=TimingRules(warmup=warmup, min_pairs=6, max_pairs=12, max_seconds=6.0, half_width_ratio=0.04),
            trial=TimingRules(warmup=warmup, min_pairs=6, max_pairs=40, max_seconds=8.0),
            final=TimingRules(warmup=warmup, min_pairs=20, max_seconds=30.0),
        )


@dataclass(frozen=True, kw_only=True)
class Target:
    """The latency target and the uncompressed model's median, both in milliseconds of the metric.

    `already_met`: the uncompressed model is within the target, so the fastest policy is sought.
    """

    baseline_ms: float
    target_ms: float
    already_met: bool = False

    @property
    def ratio(self) -> float:
        """The target ÷ the uncompressed model's median."""
        return self.target_ms / self.baseline_ms


@dataclass
class Measurement:
    """A bench on one device with the stopwatch, retention curves, warnings and deadline of a search.

    `target` is set once, when the uncompressed model has been timed; measurements of further devices are made after
    that, by `on_device`, and share curves and warnings with the first.
    """

    bench: Bench
    request: TuneRequest
    listener: Listener
    timings: Timings
    timer: PairedTimer
    clock: Callable[[], float] = time.perf_counter
    curves: dict[str, RetentionCurve] = field(default_factory=dict)
    started_s: float = 0.0
    warnings: list[str] = field(default_factory=list)
    _target: Target | None = None

    @classmethod
    def open(
        cls, bench: Bench, request: TuneRequest, listener: Listener, timings: Timings | None, clock: Callable[[], float]
    ) -> "Measurement":
        """Start the clock of a search; `timings` fit the bench's device where none are given."""
        timings = timings or Timings.for_device(bench.describe().get("device", "cpu"))
        timer = PairedTimer(bench, request.metric, clock)
        measurement = cls(bench, request, listener, timings, timer, clock, started_s=clock())
        measurement.timer.warn = measurement.warn
        return measurement

    @property
    def target(self) -> Target:
        """The target; reading it before it is known is a programming error."""
        assert self._target is not None, "the target is known once the uncompressed model has been timed"
        return self._target

    def set_target(self, target: Target) -> None:
        """Fix the target for the rest of the search; a second one is a programming error."""
        assert self._target is None, "the target of a search is fixed"
        self._target = target

    def on_device(self, bench: Bench) -> "Measurement":
        """Measure on a further device against the same target, into the same curves, without progress events."""
        assert self._target is not None, "further devices join when the target is known"
        return replace(self, bench=bench, timer=self._timer(bench), listener=Listener())

    def _timer(self, bench: Bench) -> PairedTimer:
        timer = PairedTimer(bench, self.request.metric, self.clock)
        timer.warn = self.warn
        return timer

    def fresh(self) -> bool:
        """Restart the bench in a fresh process with nothing warm; False where it shares this process."""
        renewed = self.bench.renew()
        if renewed:
            self.timer = self._timer(self.bench)
        return renewed

    def warn(self, text: str) -> None:
        """Add a warning to the report, once."""
        if text not in self.warnings:
            self.warnings.append(text)

    def elapsed_s(self) -> float:
        """Count the seconds since the search began."""
        return self.clock() - self.started_s

    def seconds_left(self, reserve_s: float = 0.0) -> float | None:
        """Count the seconds of the time budget left after `reserve_s`; None without a budget."""
        budget = self.request.time_budget_s
        return None if budget is None else budget - self.elapsed_s() - reserve_s

    def probe(self, policy: Policy, rules: TimingRules) -> Latency:
        """Time a policy with its published settings and add the point to its retention curve."""
        latency = self.timer.measure(policy, rules)
        self._add_point(policy, latency)
        return latency

    def probe_beside(self, policies: Sequence[Policy], rules: TimingRules) -> list[Latency | Exception]:
        """`probe` for several policies in shared turns; the error of one that cannot run stands for its latency."""
        results = self.timer.measure_beside(policies, rules, POLICY_FAULTS)
        for policy, result in zip(policies, results, strict=True):
            if isinstance(result, Latency):
                self._add_point(policy, result)
        return results

    def _add_point(self, policy: Policy, latency: Latency) -> None:
        if policy.retention_ratio is not None:
            curve = self.curves.setdefault(policy.name, RetentionCurve())
            curve.add(policy.retention_ratio, latency.ratio.value, (latency.ratio.high - latency.ratio.low) / 2)


PARTS = ("video_ms", "preprocess_ms", "vision_ms", "compress_ms", "prefill_ms", "decode_step_ms", "e2e_ms")
RULES = TimingRules(warmup=1, min_pairs=6, max_pairs=12, max_seconds=10.0, half_width_ratio=0.04)


def measure_breakdown(measurement: Measurement, policy: Intervention) -> dict[str, dict[str, float]]:
    """Time the parts of whole requests: median milliseconds by "uncompressed" and "policy".

    A bench that cannot run whole requests gives {} and a warning.
    """
    try:
        timer = PairedTimer(measurement.bench, "e2e", measurement.clock)
        timer.warn = measurement.warn
        latency = timer.measure(policy, RULES)
    except POLICY_FAULTS as error:
        release_memory(error)
        measurement.warn(f"the breakdown of a whole request could not be measured: {reason_of(error)}")
        return {}
    sides = {"uncompressed": latency.baseline_parts_ms, "policy": latency.parts_ms}
    return {side: {part: parts[part] for part in PARTS if part in parts} for side, parts in sides.items()}


T = TypeVar("T")


class DevicePool:
    """Run work on devices: on one device in this thread, on several in a thread each, which waits for its device."""

    def __init__(self, measurements: Sequence[Measurement]) -> None:
        self._measurements = list(measurements)
        self._idle: SimpleQueue[Measurement] = SimpleQueue()
        for measurement in measurements:
            self._idle.put(measurement)
        self._threads = ThreadPoolExecutor(len(measurements), "device") if len(measurements) > 1 else None

    def __len__(self) -> int:
        return len(self._measurements)

    @property
    def free(self) -> bool:
        """Whether a device is idle."""
        return not self._idle.empty()

    def submit(self, work: Callable[[Measurement], T]) -> "Future[T]":
        """Submit `work` to an idle device. With a single device it runs, and raises, right here."""
        measurement = self._idle.get()
        if self._threads is None:
            future: Future[T] = Future()
            try:
                future.set_result(work(measurement))
            finally:
                self._idle.put(measurement)
            return future
        return self._threads.submit(self._on_thread, work, measurement)

    def _on_thread(self, work: Callable[[Measurement], T], measurement: Measurement) -> T:
        try:
            return work(measurement)
        finally:
            self._idle.put(measurement)

    def shutdown(self) -> None:
        """Stop the threads and cancel what has not begun."""
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
