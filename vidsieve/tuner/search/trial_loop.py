"""Run the trials of a search by ask and tell, published policies first, until they or the user end it.

Every trial is recorded whatever its outcome; Ctrl-C, SIGTERM and errors leave the best policy so far.
"""

import json
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import mean
from typing import Any

from vidsieve.framework.errors import DataError, MediaError, TuneError
from vidsieve.tuner.measure.bounds import Explored
from vidsieve.tuner.measure.measurement import DevicePool, Measurement
from vidsieve.tuner.measure.retention_limits import RetentionSolver
from vidsieve.tuner.result import TrialEvent, TuneResult
from vidsieve.tuner.search.structure import Proposals
from vidsieve.tuner.search.trial import Evaluator
from vidsieve.tuner.space.candidate import COMPOSED, Candidate
from vidsieve.tuner.study.record import TrialResult
from vidsieve.tuner.study.storage import storage_errors
from vidsieve.tuner.study.store import Study, quiet
from vidsieve.tuner.trial_failure import POLICY_FAULTS, fault_reason, reason_of

MOST_REPEATS = 5


class Interrupted(TuneError):
    """A search stopped by the user. `result` is the best so far, unconfirmed, or None."""

    exit_code = 130

    def __init__(self, result: TuneResult | None) -> None:
        self.result = result
        found = "nothing was found yet" if result is None else f"the best so far is {result.policy.name}"
        super().__init__(f"search: interrupted; {found}.")


class SearchFailedError(TuneError):
    """A search that an error ended after it had found a policy: `result` is the best so far, the error is the cause.

    The exit code is that of the error.
    """

    def __init__(self, result: TuneResult, error: Exception) -> None:
        self.result = result
        self.exit_code = getattr(error, "exit_code", TuneError.exit_code)  # type: ignore[misc]
        what = str(error) if isinstance(error, TuneError | MediaError | DataError) else reason_of(error)
        way = "Run the same search again to go on"
        if isinstance(error, MediaError):
            way = f"Mend the file, or take it away and give `skip_bad`. {way}"
        super().__init__(
            f"search: ended by an error; the best so far is {result.policy.name}"
            f"{'' if result.confirmed else ', not confirmed'}. {what.rstrip('.')}. {way}."
        )


class Stop:
    """Whether the user requested a stop. `busy` is true while a trial runs, which a first Ctrl-C lets finish."""

    def __init__(self, notify: Callable[[], None] = lambda: None) -> None:
        self.requested, self.busy, self._notify = False, False, notify

    def on_signal(self, *_: Any) -> None:
        """Handle a signal: raise KeyboardInterrupt where no trial runs, or the second time."""
        if self.requested or not self.busy:
            raise KeyboardInterrupt
        self.requested = True
        self._notify()

    @contextmanager
    def handling_signals(self) -> Iterator[None]:
        """Handle Ctrl-C here, and SIGTERM, which stops at once.

        Elsewhere than in the main thread, or where someone else listens already, nothing changes.
        """
        with (
            _handler(signal.SIGINT, signal.default_int_handler, self.on_signal),
            _handler(signal.SIGTERM, signal.SIG_DFL, _stop_now),
        ):
            yield


def _stop_now(*_: Any) -> None:
    raise KeyboardInterrupt


@contextmanager
def _handler(number: int, expected: Any, handler: Any) -> Iterator[None]:
    """Install `handler` in place of `expected`; do nothing where another is installed or outside the main thread."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(number) is not expected:
        yield
        return
    signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, expected)


@dataclass
class Search:
    """All trials of a search in order, and why it ended.

    `stopped`: "trials", "time budget", "patience" (no new best for long), "nothing new" (only repeats came), or
    "interrupted". `resumed` counts the trials that an earlier session brought.
    """

    trial_results: list[TrialResult] = field(default_factory=list)
    stopped: str = "trials"
    resumed: int = 0

    @property
    def best(self) -> TrialResult | None:
        """The feasible trial of highest value."""
        return next(iter(self.leaders()), None)

    def leaders(self) -> list[TrialResult]:
        """Rank the feasible trials, best first, each policy once."""
        ranked = sorted((f for f in self.trial_results if f.feasible), key=lambda f: (-f.value, f.number))
        return list({trial_result.policy.hash: trial_result for trial_result in reversed(ranked)}.values())[::-1]

    @property
    def examples_scored(self) -> int:
        """How many examples the trials were scored on, repeats not counted again."""
        return sum(len(f.score.outcomes) for f in self.trial_results if f.score is not None and not f.repeats)

    @property
    def since_best(self) -> int:
        """Trials since the best one; 0 as long as there is none."""
        best = self.best
        return 0 if best is None else len(self.trial_results) - best.number


class TrialLoop:
    """Run the trials of a `Search` on one device or on several at once."""

    def __init__(
        self,
        study: Study,
        measurement: Measurement,
        explored: Explored,
        evaluator: Evaluator,
        search: Search,
        stop: Stop,
    ) -> None:
        self._study, self._measurement, self._explored = study, measurement, explored
        self._evaluator, self._search, self._stop = evaluator, search, stop
        self._durations: list[float] = []
        self._pending: dict[Future[TrialResult], tuple[Any, float]] = {}
        self._number = len(search.trial_results)
        self._first = 0  # the trials that published policies take before any composition
        composed = explored.space.composed
        self._proposals = Proposals(composed, measurement.request.seed) if composed is not None else None
        self._solver = RetentionSolver(measurement)
        for trial_result in search.trial_results:
            self._learn(trial_result)

    def run(self, pool: DevicePool, reserve_s: float) -> None:
        """Run trials until their number, patience, novelty or the time budget less `reserve_s` is used up.

        The first trial runs whatever the budget. An interruption passes through; `search` keeps what was found, and
        the trials that ran are queued again when the search is resumed.
        """
        queued = enqueue_presets(self._study, self._measurement, self._explored)
        if self._proposals is not None:
            self._first = queued
            self._tell_how_many(queued)
        try:
            while True:
                ended = self._ended(reserve_s)
                # finished trials are recorded first, so that the next candidate is chosen with them
                while ended is None and pool.free and not (self._stop.requested or self._unrecorded):
                    self._start(pool)
                    ended = self._ended(reserve_s)
                if not self._pending:
                    break
                for future in wait(self._pending, return_when=FIRST_COMPLETED).done:
                    self._finish(future, reserve_s, len(pool))
        except BaseException:
            self._abandon()
            raise
        finally:
            self._stop.busy = False
        if self._stop.requested:
            raise KeyboardInterrupt
        self._search.stopped = ended or "trials"

    @property
    def _unrecorded(self) -> bool:
        """Whether a finished trial has not been recorded yet."""
        return any(future.done() for future in self._pending)

    def _ended(self, reserve_s: float) -> str | None:
        """Decide why no further trial is to start, or None."""
        self._take_in_others()
        request, search = self._measurement.request, self._search
        if len(search.trial_results) + len(self._pending) >= request.trials:
            return "trials"
        # compositions come after published policies, and are not given up before they were tried
        waited = min(search.since_best, max(0, len(search.trial_results) - self._first))
        if waited >= request.patience + len(self._pending):
            return "patience"
        last = search.trial_results[-MOST_REPEATS:]
        if len(last) == MOST_REPEATS and all(trial_result.repeats for trial_result in last):
            return "nothing new"
        left = self._measurement.seconds_left(reserve_s)
        # what runs already on other devices ends while the next trial would run
        if left is not None and (self._durations or self._pending) and left < mean(self._durations or [left + 1]):
            return "time budget"
        return None

    def _take_in_others(self) -> None:
        """Read the trials of other tuners from a shared study; the best of them is the one to beat."""
        if not self._study.shared:
            return
        known = len(self._search.trial_results)
        self._search.trial_results[:] = self._study.trial_results(self._explored.space, self._evaluator.examples)
        self._evaluator.remember(self._search.trial_results[known:])

    def _start(self, pool: DevicePool) -> None:
        """Ask the sampler for a candidate and submit it to an idle device."""
        self._stop.busy = True
        self._number += 1
        trial = self._study.ask(self._proposed)
        number, best = self._number, self._search.best
        start = self._measurement.clock()
        try:
            candidate = self._suggest(trial)
        except POLICY_FAULTS as error:
            future: Future[TrialResult] = Future()
            future.set_result(self._evaluator.failed(number, None, fault_reason(error)))
        else:
            if self._proposals is not None:
                self._proposals.suggested(number)
            # registered first: an interruption in a trial that runs right here must find it
            placeholder: Future[TrialResult] = Future()
            self._pending[placeholder] = (trial, start)
            future = pool.submit(
                lambda measurement: self._evaluator.on_device(measurement).evaluate(number, candidate, best)
            )
            del self._pending[placeholder]
        self._pending[future] = (trial, start)

    def _proposed(self) -> dict[str, Any] | None:
        """Propose a new composition in two trials of three, and in the third other settings of the best one.

        The third is the sampler's while a published policy is the best, and so is what is queued.
        """
        if self._proposals is None:
            return None
        if self._number % 3 == 0:
            return self._proposals.refine(self._search.best)
        return self._proposals.propose(self._number, self._search.trial_results)

    def _tell_how_many(self, queued: int) -> None:
        """Say how many of the trials are left for compositions."""
        trials = self._measurement.request.trials
        left = max(0, trials - queued)
        few = "" if left >= queued else "; ask for more trials, or name fewer policies beside `composed`"
        self._measurement.listener.notice(
            f"{min(queued, trials)} of {trials} trials go to published policies, {left} are for compositions{few}"
        )

    def _suggest(self, trial: Any) -> Candidate:
        with storage_errors(self._study.place), quiet():
            return self._explored.space.suggest(trial, self._solver)

    def _learn(self, trial_result: TrialResult) -> None:
        """Add a timed candidate to the retention curves."""
        if trial_result.candidate is not None and trial_result.latency is not None and not trial_result.repeats:
            self._solver.learn(trial_result.candidate.base, trial_result.policy, trial_result.latency)

    def _finish(self, future: "Future[TrialResult]", reserve_s: float, devices: int) -> None:
        """Record a finished trial and send its event."""
        trial, start = self._pending[future]
        trial_result = future.result()
        self._study.tell(trial, trial_result)
        del self._pending[future]
        self._search.trial_results.append(trial_result)
        self._learn(trial_result)
        self._durations.append(self._measurement.clock() - start)
        self._stop.busy = bool(self._pending)
        eta_s = (
            mean(self._durations) * (self._measurement.request.trials - len(self._search.trial_results)) / devices
            + reserve_s
        )
        self._measurement.listener.trial(event_of(self._measurement, self._evaluator, trial_result, eta_s))

    def _abandon(self) -> None:
        """End running trials without a result and queue them again."""
        for trial, _ in self._pending.values():
            self._study.abandon(trial.number, trial.params, trial.user_attrs.get("retry", 0))
        self._pending.clear()


def enqueue_presets(study: Study, measurement: Measurement, explored: Explored) -> int:
    """Queue the published policies: each at its limit, then at its published retention ratio, if that is allowed.

    Where the uncompressed model meets the target there is no limit: at the published ratio, half-way from there to all
    tokens, then at half of it. Returns how many different trials that makes.
    """
    different = {json.dumps(params, sort_keys=True): params for params in presets(measurement, explored)}
    for params in different.values():
        study.enqueue(params)
    return len(different)


def presets(measurement: Measurement, explored: Explored) -> Iterator[dict[str, Any]]:
    """Give the parameters of the published policies that lie in the space."""
    entries = explored.space.entries.values()
    published = [(entry, entry.policy.retention_ratio) for entry in entries]
    points = [(entry, entry.retention[1] if entry.retention else None) for entry in entries]
    halves = [(entry, max(entry.retention[0], (ratio or 1) / 2)) for entry, ratio in published if entry.retention]
    milder = [(entry, (1 + ratio) / 2) for entry, ratio in published if ratio is not None]
    for entry, ratio in [*published, *milder, *halves] if measurement.target.already_met else [*points, *published]:
        params = entry.preset(ratio)
        if params is not None:
            yield params


def event_of(
    measurement: Measurement, evaluator: Evaluator, trial_result: TrialResult, eta_s: float | None = None
) -> TrialEvent:
    """Make the event of a finished trial; the ETA includes the confirmation."""
    candidate, latency, score = trial_result.candidate, trial_result.latency, trial_result.score
    left = measurement.seconds_left()
    return TrialEvent(
        number=trial_result.number,
        total=measurement.request.trials,
        policy=candidate.policy.name if candidate else "",
        retention_ratio=candidate.policy.retention_ratio if candidate else None,
        settings=dict(candidate.settings) if candidate else {},
        latency=latency.ratio.scaled(measurement.target.baseline_ms) if latency else None,
        score=score.mean if score else None,
        change_points=100 * trial_result.change if trial_result.change is not None else None,
        scored=len(score.outcomes) if score else 0,
        scorer=evaluator.scorer,
        verdict=trial_result.verdict,
        reason=trial_result.reason,
        eta_s=eta_s if left is None or eta_s is None else max(0.0, min(eta_s, left)),
        composed=candidate is not None and candidate.base == COMPOSED,
    )
