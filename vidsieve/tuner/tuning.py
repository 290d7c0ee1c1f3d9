"""The whole of a search, in order: data, bounds, trials, re-rank, confirmation, held-out judgement, controls."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from vidsieve.framework.errors import UsageError
from vidsieve.framework.policy.policy import Policy
from vidsieve.framework.task import Task
from vidsieve.tuner.events import Listener
from vidsieve.tuner.examples import pick_examples
from vidsieve.tuner.measure.measurement import Measurement, Timings
from vidsieve.tuner.protocol import Bench
from vidsieve.tuner.request import TuneRequest
from vidsieve.tuner.result import TuneResult
from vidsieve.tuner.search.interrupted import Interrupted
from vidsieve.tuner.search.stopping import Stop
from vidsieve.tuner.search_run import Run
from vidsieve.tuner.study.fingerprint import fingerprint
from vidsieve.tuner.study.store import Study


def tune(
    bench: Bench,
    task: Task,
    request: TuneRequest,
    *,
    policies: Sequence[Policy],
    controls: Sequence[Policy] = (),
    others: Sequence[Bench] = (),
    listener: Listener | None = None,
    timings: Timings | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> TuneResult:
    """The policy that keeps the most accuracy within the latency target, confirmed on examples it never saw.

    `controls` (those not searched) are measured at the winner's latency and reported. `others` are benches of the same
    model on further devices of the same kind; trials run on all at once. `clock` gives seconds. A study that
    `request.storage` holds already is gone on with.

    Raises:
        TargetUnreachableError: the floor lies above the target.
        Interrupted: Ctrl-C; carries the best so far.
        DataError, UsageError: examples or request that cannot be used; a study that belongs to another search.
        TuneError: nothing to search, no policy works on this model, or the study's storage failed.
    """
    _check_names(policies)
    _check_devices(bench, others)
    controls = [control for control in controls if control.name not in {policy.name for policy in policies}]
    listener = listener or Listener()
    request = replace(request, parallel=1 + len(others))
    measurement = Measurement.open(bench, request, listener, timings, clock)
    data = pick_examples(task, request)
    study = Study(request)
    try:
        study.claim(fingerprint(measurement, data, policies))
        stop = Stop(listener.stopping)
        run = Run(measurement, data, study, stop, others)
        try:
            with stop.listening():
                result = run.all(policies, controls)
        except KeyboardInterrupt:
            best = run.interrupted()
            listener.interrupted(best)
            raise Interrupted(best) from None
    finally:
        study.close()
    listener.finished(result)
    return result


def _check_names(policies: Sequence[Policy]) -> None:
    """Names address settings in the study, so they must be unique. Raises UsageError."""
    names = [policy.name for policy in policies]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"policies: two are named {name!r}; rename one (the `name:` in its file).")


def _check_devices(bench: Bench, others: Sequence[Bench]) -> None:
    """Latencies of different devices cannot be compared. Raises UsageError."""
    first = bench.describe()
    for other in others:
        facts = other.describe()
        for name in ("device_name", "checkpoint", "revision", "dtype", "attn"):
            if facts.get(name) != first.get(name):
                raise UsageError(
                    f"`devices`: must be alike, but {name} is {first.get(name)!r} on {first.get('device')} and "
                    f"{facts.get(name)!r} on {facts.get('device')}. Tune each kind on its own."
                )
