"""The whole of a search, in order: data, bounds, trials, latency confirmation, held-out judgement, controls."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from vidsieve.framework.errors import TargetUnreachableError, UsageError
from vidsieve.framework.policy import Policy
from vidsieve.framework.task import Outcome, Task
from vidsieve.tuner.accuracy import Accuracy
from vidsieve.tuner.bounds import Explored, explore
from vidsieve.tuner.confirm import Confirmed, confirm_latency
from vidsieve.tuner.control import Control
from vidsieve.tuner.controls import run_control
from vidsieve.tuner.data import Data, pick_examples
from vidsieve.tuner.events import Listener
from vidsieve.tuner.heldout import Heldout
from vidsieve.tuner.interrupted import Interrupted
from vidsieve.tuner.lab import Lab, Timings
from vidsieve.tuner.latency import Latency
from vidsieve.tuner.protocol import Bench
from vidsieve.tuner.provenance import provenance, search_summary
from vidsieve.tuner.request import TuneRequest
from vidsieve.tuner.result import TuneResult
from vidsieve.tuner.scoring import Score, choose_scorer, run_examples
from vidsieve.tuner.search import Search, run_search
from vidsieve.tuner.trial import Judge

FINALISTS = 3


def tune(
    bench: Bench,
    task: Task,
    request: TuneRequest,
    *,
    policies: Sequence[Policy],
    controls: Sequence[Policy] = (),
    listener: Listener | None = None,
    timings: Timings | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> TuneResult:
    """The policy that keeps the most accuracy within the latency target, confirmed on examples it never saw.

    `controls` are measured at the winner's latency and reported. `clock` gives seconds.

    Raises:
        TargetUnreachableError: the floor lies above the target.
        Interrupted: Ctrl-C; carries the best so far.
        DataError, UsageError: examples or request that cannot be used.
        TuneError: nothing to search, or no policy works on this model.
    """
    _check_names(policies, controls)
    run = Run(Lab.open(bench, request, listener or Listener(), timings, clock), pick_examples(task, request))
    try:
        result = run.all(policies, controls)
    except KeyboardInterrupt:
        best = run.interrupted()
        run.lab.listener.interrupted(best)
        raise Interrupted(best) from None
    run.lab.listener.finished(result)
    return result


def _check_names(policies: Sequence[Policy], controls: Sequence[Policy]) -> None:
    """Names address settings in the study, so they must be unique. Raises UsageError."""
    names = [policy.name for policy in (*policies, *controls)]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"policies: two are named {name!r}; rename one (the `name:` in its file).")


class Run:
    """One search; its attributes say how far it got, so that an interruption can still tell what there is."""

    def __init__(self, lab: Lab, data: Data) -> None:
        self.lab, self.data = lab, data
        self.explored: Explored | None = None
        self.judge: Judge | None = None
        self.search = Search()
        self.heldout = Heldout(lab, data.heldout, data.metric)
        self.chosen: Confirmed | None = None
        self.accuracy: Accuracy | None = None
        self.controls: list[Control] = []

    def all(self, policies: Sequence[Policy], controls: Sequence[Policy]) -> TuneResult:
        """Every phase in turn."""
        self.explored = explore(self.lab, policies)
        self.lab.listener.started(self.explored.bounds)
        start = self.lab.clock()
        baseline = run_examples(self.lab.bench, None, self.data.search, "score uncompressed", self.lab.listener.step)
        per_example_s = (self.lab.clock() - start) / len(baseline)
        self.judge = Judge(self.lab, self.data, Score(baseline, choose_scorer(baseline)))
        reserve_s = self._reserve(per_example_s, len(controls))
        run_search(self.lab, self.explored, self.judge, reserve_s, self.search)
        outcomes = self._fastest_accurate() if self.lab.already_met else self._most_accurate()
        if self.chosen is not None:
            for control in controls:
                self.controls.append(run_control(self.lab, self.heldout, control, self.chosen.latency, outcomes))
        return self.result(confirmed=True)

    def _reserve(self, per_example_s: float, controls: int) -> float:
        """Seconds to keep for the end: uncompressed, winner and controls on held-out examples, and two timings."""
        rules = self.lab.timings.final
        timing = min(rules.max_seconds, 4 * rules.min_pairs * self.lab.baseline_ms / 1e3)
        return per_example_s * len(self.data.heldout) * (2 + controls) + (2 + controls) * timing

    def _most_accurate(self) -> tuple[Outcome, ...]:
        """The best trial whose latency can be confirmed, else the floor; then one look at the held-out examples."""
        assert self.explored is not None
        leaders = [finding.policy for finding in self.search.leaders()[:FINALISTS]]
        if not leaders:
            self.lab.warnings.append("no trial met the target; this is the floor policy, which fits and is unsearched")
        for policy in [*leaders, self.explored.floor]:
            self.lab.listener.confirming(policy)
            self.chosen = confirm_latency(self.lab, policy)
            if self.chosen is not None:
                outcomes = self.heldout.outcomes(self.chosen.policy)
                self.accuracy = self.heldout.judge(outcomes)
                return outcomes
        bounds = self.explored.bounds
        raise TargetUnreachableError(
            f"target: {bounds.target_ms:.4g} ms asked; the floor, {bounds.floor_policy}, takes "
            f"{bounds.floor.value:.4g} ms, but its interval could not be brought within the target: "
            "unreachable, or within noise of the floor. Ask "
            "for more time, or measure on a quieter machine."
        )

    def _fastest_accurate(self) -> tuple[Outcome, ...]:
        """The fastest of a few finalists whose held-out drop is allowed; otherwise the policy that removes nothing."""
        leaders = self.search.leaders()[:FINALISTS]
        for finding in leaders:
            self.lab.listener.confirming(finding.policy)
            confirmed = confirm_latency(self.lab, finding.policy)
            if confirmed is None:
                continue
            outcomes = self.heldout.outcomes(confirmed.policy)
            accuracy = self.heldout.judge(outcomes, looks=len(leaders))
            if accuracy.drop.value <= self.lab.request.max_drop_points / 100:
                self.chosen, self.accuracy = confirmed, accuracy
                return outcomes
        self.accuracy = self.heldout.judge(self.heldout.baseline)
        return self.heldout.baseline

    def interrupted(self) -> TuneResult | None:
        """The best so far, or None before the first policy that may win."""
        self.search.stopped = "interrupted" if self.accuracy is None else self.search.stopped
        if self.explored is None or self.judge is None or (self.chosen is None and self.search.best is None):
            return None
        return self.result(confirmed=self.accuracy is not None)

    def result(self, *, confirmed: bool) -> TuneResult:
        """What there is, as a result; the policy carries it as provenance."""
        assert self.explored is not None and self.judge is not None
        policy, latency = self._policy()
        warnings = [*self.lab.warnings, *(control.warning for control in self.controls if control.warning)]
        if not confirmed:
            warnings.append("interrupted: latency as in the search, held-out examples not scored")
        bounds = self.explored.bounds
        summary = search_summary(self.lab, bounds, self.judge, self.search)
        told = provenance(
            self.lab, self.data, bounds, summary, latency, self.accuracy, self.controls, warnings, confirmed
        )
        return TuneResult(
            policy=replace(policy, provenance=told),
            target_ms=bounds.target_ms,
            already_met=bounds.already_met,
            latency=latency,
            accuracy=self.accuracy,
            confirmed=confirmed,
            controls=tuple(self.controls),
            warnings=tuple(warnings),
            search=summary,
        )

    def _policy(self) -> tuple[Policy, Latency | None]:
        """The policy to hand out and its latency: the confirmed one, the best so far, or the one that does nothing."""
        if self.chosen is not None:
            return self.chosen.policy, self.chosen.latency
        best = self.search.best
        if self.accuracy is None and best is not None:
            return best.policy, best.latency
        return Policy(name="none", summary="Remove nothing: the uncompressed model.", stages=()), None
