"""The whole of a search, in order: data, bounds, trials, latency confirmation, held-out judgement, controls."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from vidsieve.framework.errors import UsageError
from vidsieve.framework.policy import Policy
from vidsieve.framework.task import Task
from vidsieve.tuner.accuracy import Accuracy
from vidsieve.tuner.bounds import Explored, explore
from vidsieve.tuner.control import Control
from vidsieve.tuner.controls import run_control
from vidsieve.tuner.data import Data, pick_examples
from vidsieve.tuner.events import Listener
from vidsieve.tuner.finals import Finals
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

    `controls` (those not searched) are measured at the winner's latency and reported. `clock` gives seconds.

    Raises:
        TargetUnreachableError: the floor lies above the target.
        Interrupted: Ctrl-C; carries the best so far.
        DataError, UsageError: examples or request that cannot be used.
        TuneError: nothing to search, or no policy works on this model.
    """
    _check_names(policies)
    controls = [control for control in controls if control.name not in {policy.name for policy in policies}]
    run = Run(Lab.open(bench, request, listener or Listener(), timings, clock), pick_examples(task, request))
    try:
        result = run.all(policies, controls)
    except KeyboardInterrupt:
        best = run.interrupted()
        run.lab.listener.interrupted(best)
        raise Interrupted(best) from None
    run.lab.listener.finished(result)
    return result


def _check_names(policies: Sequence[Policy]) -> None:
    """Names address settings in the study, so they must be unique. Raises UsageError."""
    names = [policy.name for policy in policies]
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
        self.heldout = Heldout(
            lab.bench,
            data.heldout,
            data.metric,
            max_drop_points=lab.request.max_drop_points,
            seed=lab.request.seed,
            step=lab.listener.step,
        )
        self.finals: Finals | None = None
        self.controls: list[Control] = []

    def all(self, policies: Sequence[Policy], controls: Sequence[Policy]) -> TuneResult:
        """Every phase in turn."""
        self.explored = explore(self.lab, policies)
        self.lab.listener.started(self.explored.bounds)
        start = self.lab.clock()
        baseline = run_examples(self.lab.bench, None, self.data.search, "score uncompressed", self.lab.listener.step)
        per_example_s = (self.lab.clock() - start) / len(baseline)
        # the allowed drop is one of accuracy: p(gold) tells policies apart better, but falls long before answers change
        scorer = "correct" if self.lab.already_met else choose_scorer(baseline)
        self.judge = Judge(self.lab, self.data, Score(baseline, scorer))
        reserve_s = self._reserve(per_example_s, len(controls))
        run_search(self.lab, self.explored, self.judge, reserve_s, self.search)
        self.finals = Finals(self.lab, self.heldout, self.explored, self.search)
        outcomes = self.finals.fastest_accurate() if self.lab.already_met else self.finals.most_accurate()
        if self.finals.chosen is not None:
            latency = self.finals.chosen.latency
            for control in controls:
                self.controls.append(run_control(self.lab, self.heldout, control, latency, outcomes))
        return self.result(confirmed=True)

    def _reserve(self, per_example_s: float, controls: int) -> float:
        """Seconds to keep for the end: uncompressed, winner and controls on held-out examples, and two timings."""
        rules = self.lab.timings.final
        timing = min(rules.max_seconds, 4 * rules.min_pairs * self.lab.baseline_ms / 1e3)
        return per_example_s * len(self.data.heldout) * (2 + controls) + (2 + controls) * timing

    @property
    def accuracy(self) -> Accuracy | None:
        """The held-out judgement, once there is one."""
        return self.finals.accuracy if self.finals is not None else None

    def interrupted(self) -> TuneResult | None:
        """The best so far, or None before the first policy that may win."""
        if self.accuracy is not None:
            return self.result(confirmed=True)
        self.search.stopped = "interrupted"
        return self.result(confirmed=False) if self._best_so_far() is not None else None

    def _best_so_far(self) -> tuple[Policy, Latency | None] | None:
        """The finalist at work, else the best trial that no final look has ruled out."""
        if self.finals is not None and self.finals.running is not None:
            return self.finals.running.policy, self.finals.running.latency
        rejected = self.finals.rejected if self.finals is not None else set()
        left = [finding for finding in self.search.leaders() if finding.policy.hash not in rejected]
        return (left[0].policy, left[0].latency) if left else None

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
        if self.finals is not None and self.finals.chosen is not None:
            return self.finals.chosen.policy, self.finals.chosen.latency
        best = self._best_so_far() if self.accuracy is None else None
        return best or (Policy(name="none", summary="Remove nothing: the uncompressed model.", stages=()), None)
