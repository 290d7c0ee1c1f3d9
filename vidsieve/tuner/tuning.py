"""Tune: data, bounds, trials, re-rank, confirmation, held-out judgement, controls; or confirm one policy again."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from vidsieve.framework.errors import TargetUnreachableError, UsageError
from vidsieve.framework.policy.policy import Policy
from vidsieve.framework.task import Task
from vidsieve.tuner.examples import choose_examples
from vidsieve.tuner.judge.finals import meets_target
from vidsieve.tuner.judge.paired_accuracy import Heldout
from vidsieve.tuner.measure.measurement import Measurement, Target, Timings, measure_breakdown
from vidsieve.tuner.measured import Latency
from vidsieve.tuner.protocol import Bench
from vidsieve.tuner.provenance import confirmation
from vidsieve.tuner.request import TuneRequest
from vidsieve.tuner.result import Listener, TuneResult
from vidsieve.tuner.search.trial_loop import Interrupted, SearchFailedError, Stop
from vidsieve.tuner.search_run import Run
from vidsieve.tuner.space.candidate import COMPOSED
from vidsieve.tuner.space.grammar import Grammar
from vidsieve.tuner.statistics import ms
from vidsieve.tuner.study.resume import claim
from vidsieve.tuner.study.store import Study
from vidsieve.tuner.trial_failure import reason_of


def tune(
    bench: Bench,
    task: Task,
    request: TuneRequest,
    *,
    policies: Sequence[Policy],
    controls: Sequence[Policy] = (),
    others: Sequence[Bench] = (),
    compositions: Grammar | None = None,
    listener: Listener | None = None,
    timings: Timings | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> TuneResult:
    """Find the policy that keeps the most accuracy within the latency target, confirmed on examples it never saw.

    `controls` (those not searched) are measured at the winner's latency and reported. `others` are benches of the same
    model on further devices of the same kind; trials run on all at once. `compositions` are searched beside `policies`,
    and the best of either side is judged against the other's. `clock` gives seconds. A study that `request.storage`
    holds already is resumed.

    Raises:
        TargetUnreachableError: the floor lies above the target.
        Interrupted: Ctrl-C; carries the best so far.
        SearchFailedError: an error after a policy was found, such as a video that cannot be read; carries the best so
            far. With a study the search can be resumed.
        DataError, UsageError: examples or request that cannot be used; a study that belongs to another search.
        TuneError: nothing to search, no policy works on this model, or the study's storage failed.
    """
    _check_names(policies, compositions)
    _check_devices(bench, others)
    controls = [control for control in controls if control.name not in {policy.name for policy in policies}]
    listener = listener or Listener()
    request = replace(request, parallel=1 + len(others))
    measurement = Measurement.open(bench, request, listener, timings, clock)
    data = choose_examples(task, request)
    study = Study(request)
    try:
        data = claim(study, measurement, task, data, policies, compositions)
        stop = Stop(listener.stopping)
        run = Run(measurement, data, study, stop, others)
        try:
            with stop.handling_signals():
                result = run.all(policies, controls, compositions)
        except KeyboardInterrupt:
            best = run.best_so_far("interrupted")
            listener.interrupted(best)
            raise Interrupted(best) from None
        except TargetUnreachableError:
            raise  # a verdict: no policy that was found is any good
        except Exception as error:
            _give_best(run, listener, error)
            raise
    finally:
        study.close()
    try:
        listener.finished(result)
    except Exception as error:
        raise SearchFailedError(result, error) from error
    return result


def _give_best(run: Run, listener: Listener, error: Exception) -> None:
    """Raise SearchFailedError with the best so far, if there is one that can still be put together."""
    try:
        best = run.best_so_far("error", reason_of(error))
    except Exception:  # the error itself says more than what follows from it
        return
    if best is not None:
        listener.interrupted(best)
        raise SearchFailedError(best, error) from error


def _check_names(policies: Sequence[Policy], compositions: Grammar | None) -> None:
    """Refuse two policies of one name, as names address settings in the study. Raises UsageError."""
    names = [policy.name for policy in policies]
    if compositions is not None and COMPOSED in names:
        raise UsageError(
            f"policies: one is named {COMPOSED!r}, as compositions are; rename it (the `name:` in its file)."
        )
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"policies: two are named {name!r}; rename one (the `name:` in its file).")


def _check_devices(bench: Bench, others: Sequence[Bench]) -> None:
    """Refuse devices of different kinds, whose latencies cannot be compared. Raises UsageError."""
    first = bench.describe()
    for other in others:
        facts = other.describe()
        for name in ("device_name", "checkpoint", "revision", "dtype", "attn"):
            if facts.get(name) != first.get(name):
                raise UsageError(
                    f"`devices`: must be alike, but {name} is {first.get(name)!r} on {first.get('device')} and "
                    f"{facts.get(name)!r} on {facts.get('device')}. Tune each kind on its own."
                )


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
    data = choose_examples(task, request)
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
    accuracy = heldout.accuracy(heldout.outcomes(policy))
    breakdown: dict[str, Any] = measure_breakdown(measurement, policy)
    section = confirmation(
        measurement, data, policy.provenance, target_ms, latency, accuracy, breakdown, confirmed=fits
    )
    result = TuneResult(
        policy=replace(policy, provenance=section),
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
    """State target and measurement in the unit of the request."""
    if request.speedup is None:
        ours = latency.policy_ms
        return (
            f"the target of {ms(target_ms)} ms is not met here: {ms(ours.value)} ms [{ms(ours.low)}, {ms(ours.high)}]"
        )
    ratio = latency.ratio
    reached = f"{1 / ratio.value:.2f}× [{1 / ratio.high:.2f}, {1 / ratio.low:.2f}]"
    return f"the target of {request.speedup:g}× is not met here: {reached}"
