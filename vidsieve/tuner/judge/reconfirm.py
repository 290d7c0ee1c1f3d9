"""A tuned policy measured once more, here: latency in a fresh process, accuracy on held-out examples, no search."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from vidsieve.framework.errors import UsageError
from vidsieve.framework.policy.policy import Policy
from vidsieve.framework.task import Task
from vidsieve.tuner.events import Listener
from vidsieve.tuner.examples import pick_examples
from vidsieve.tuner.judge.confirm_latency import meets_target
from vidsieve.tuner.judge.heldout import Heldout
from vidsieve.tuner.measure.breakdown import measure_breakdown
from vidsieve.tuner.measure.latency import Latency
from vidsieve.tuner.measure.measurement import Measurement, Target, Timings
from vidsieve.tuner.number_words import ms
from vidsieve.tuner.protocol import Bench
from vidsieve.tuner.provenance import confirmation
from vidsieve.tuner.request import TuneRequest
from vidsieve.tuner.result import TuneResult


def reconfirm(
    bench: Bench,
    task: Task,
    request: TuneRequest,
    policy: Policy,
    *,
    listener: Listener | None = None,
    timings: Timings | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> TuneResult:
    """Measure `policy` on this bench against the target; `confirmed` says whether its interval fits.

    The policy comes back as it was but for its provenance. Nothing is shrunk to fit.

    Raises:
        UsageError: a policy that removes nothing.
        DataError: examples that cannot be used.
    """
    if policy.is_empty:
        raise UsageError(f"`confirm`: {policy.name} removes nothing; there is nothing to measure.")
    listener = listener or Listener()
    measurement = Measurement.open(bench, request, listener, timings, clock)
    data = pick_examples(task, request)
    measurement.fresh()
    listener.confirming(policy)
    latency = measurement.timer.measure(policy, measurement.timings.final)
    target_ms = request.target_ms(latency.baseline_ms.value)
    measurement.set_target(Target(baseline_ms=latency.baseline_ms.value, target_ms=target_ms))
    fits = meets_target(measurement, latency)
    if not fits:
        measurement.warn(f"{_missed(request, target_ms, latency)}. Tune again on this machine.")
    heldout = Heldout(
        bench, data.heldout, data.metric, max_drop_points=request.max_drop_points, seed=request.seed, step=listener.step
    )
    accuracy = heldout.evaluator(heldout.outcomes(policy))
    breakdown: dict[str, Any] = measure_breakdown(measurement, policy)
    told = confirmation(measurement, data, policy.provenance, target_ms, latency, accuracy, breakdown, confirmed=fits)
    result = TuneResult(
        policy=replace(policy, provenance=told),
        target_ms=target_ms,
        already_met=False,
        latency=latency,
        accuracy=accuracy,
        confirmed=fits,
        warnings=tuple(measurement.warnings),
        breakdown=breakdown,
    )
    listener.finished(result)
    return result


def _missed(request: TuneRequest, target_ms: float, latency: Latency) -> str:
    """What was asked beside what came, in the unit that was asked."""
    if request.speedup is None:
        ours = latency.policy_ms
        return (
            f"the target of {ms(target_ms)} ms is not met here: {ms(ours.value)} ms [{ms(ours.low)}, {ms(ours.high)}]"
        )
    ratio = latency.ratio
    reached = f"{1 / ratio.value:.2f}× [{1 / ratio.high:.2f}, {1 / ratio.low:.2f}]"
    return f"the target of {request.speedup:g}× is not met here: {reached}"
