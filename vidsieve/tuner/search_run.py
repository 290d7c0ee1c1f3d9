"""`Run`: the phases of one search and how far they got."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from vidsieve.framework.policy.policy import Policy
from vidsieve.framework.task import Outcome
from vidsieve.tuner.examples import Data
from vidsieve.tuner.judge.finals import Finals
from vidsieve.tuner.judge.matched_controls import controls_for, judge_compositions, run_control
from vidsieve.tuner.judge.paired_accuracy import Heldout
from vidsieve.tuner.judge.rerank import Fresh, Proxy, proxy_of
from vidsieve.tuner.measure.bounds import Explored, explore
from vidsieve.tuner.measure.measurement import DevicePool, Measurement, measure_breakdown
from vidsieve.tuner.measure.scoring import Score, choose_scorer, run_examples
from vidsieve.tuner.measured import Accuracy, CompositionVerdict, Control, Latency
from vidsieve.tuner.protocol import Bench, EncodingWork, Intervention
from vidsieve.tuner.provenance import importance_of, provenance, rounded, search_summary
from vidsieve.tuner.result import TuneResult
from vidsieve.tuner.search.trial import Evaluator
from vidsieve.tuner.search.trial_loop import Search, Stop, TrialLoop, event_of
from vidsieve.tuner.space.candidate import COMPOSED
from vidsieve.tuner.space.grammar import Grammar
from vidsieve.tuner.study.record import explored_from_dict, explored_to_dict
from vidsieve.tuner.study.resume import CachingBench
from vidsieve.tuner.study.store import SPACE, Study

LEAST_RANKED = 3
"""The uncompressed model and two leaders: what a re-rank needs to be one."""
SECONDS_AN_EXAMPLE = "seconds an example"


class Run:
    """The phases of one search; its attributes hold what was found, also when a phase is interrupted."""

    def __init__(
        self, measurement: Measurement, data: Data, study: Study, stop: Stop, others: Sequence[Bench] = ()
    ) -> None:
        self.measurement, self.data, self.study = measurement, data, study
        self._stop, self._others = stop, list(others)
        self._caching: Any = CachingBench(measurement.bench, study, judging=data.heldout)
        self.explored: Explored | None = None
        self.evaluator: Evaluator | None = None
        self.search = Search()
        self.heldout = Heldout(
            self._caching,
            data.heldout,
            data.metric,
            max_drop_points=measurement.request.max_drop_points,
            seed=measurement.request.seed,
            step=measurement.listener.step,
        )
        self.finals: Finals | None = None
        self.controls: list[Control] = []
        self.composition: CompositionVerdict | None = None
        self.proxy: Proxy | None = None
        self.breakdown: dict[str, dict[str, float]] = {}

    def all(
        self, policies: Sequence[Policy], controls: Sequence[Policy], compositions: Grammar | None = None
    ) -> TuneResult:
        """Run every phase in turn; what the study holds already is taken from there."""
        self.explored = self._explore(policies, compositions)
        self.measurement.listener.started(self.explored.bounds)
        self.evaluator, per_example_s = self._score_uncompressed()
        self._take_up()
        interventions = controls_for(self.measurement.bench, controls)
        reserve_s = self._reserve(per_example_s, len(interventions) + (compositions is not None))
        self._run_trials(reserve_s)
        if (encoding := self.encoding) is not None:
            self.measurement.listener.notice(encoding.sentence())
        if self.measurement.request.join:
            self.measurement.warn(
                "joined: the tuner that started this search confirms its result and writes the policy"
            )
            return self.result(confirmed=False)
        self._conclude(interventions, per_example_s, reserve_s, composed=compositions is not None)
        return self.result(confirmed=True)

    def _explore(self, policies: Sequence[Policy], compositions: Grammar | None) -> Explored:
        """Measure bounds and space, or read them from the study: a resumed search keeps the space it began with."""
        stored = self.study.get(SPACE)
        if stored is not None:
            return explored_from_dict(self.measurement, policies, stored, compositions)
        explored = explore(self.measurement, policies, compositions)
        self.study.put(SPACE, explored_to_dict(self.measurement, explored))
        return explored

    def _score_uncompressed(self) -> tuple[Evaluator, float]:
        """Score the uncompressed model on the search examples; return the evaluator and the seconds an example."""
        start = self.measurement.clock()
        examples, step = self.data.search, self.measurement.listener.step
        known = self.study.get(SECONDS_AN_EXAMPLE)
        baseline = run_examples(self._caching, None, examples, "score uncompressed", step)
        per_example_s = known if known is not None else (self.measurement.clock() - start) / len(baseline)
        if known is None:
            self.study.put(SECONDS_AN_EXAMPLE, per_example_s)
        # the allowed drop is one of accuracy: p(gold) separates policies better, but falls long before answers change
        scorer = "correct" if self.measurement.target.already_met else choose_scorer(baseline)
        return Evaluator(self.measurement, self.data, Score(baseline, scorer)), float(per_example_s)

    def _take_up(self) -> None:
        """Read the trials that an earlier session or another tuner finished."""
        assert self.explored is not None and self.evaluator is not None
        stored = self.study.trial_results(self.explored.space, self.data.search)
        found = [self.evaluator.rated(trial_result) for trial_result in stored]
        if not found:
            return
        self.search.trial_results.extend(found)
        self.search.resumed = len(found)
        self.evaluator.remember(found)
        self.measurement.listener.notice(f"going on with {self.study.place}: {len(found)} trials are there already")

    def _run_trials(self, reserve_s: float) -> None:
        assert self.explored is not None and self.evaluator is not None
        pool = DevicePool([self.measurement, *(self.measurement.on_device(bench) for bench in self._others)])
        try:
            TrialLoop(self.study, self.measurement, self.explored, self.evaluator, self.search, self._stop).run(
                pool, reserve_s
            )
        finally:
            pool.shutdown()

    def _conclude(
        self, controls: Sequence[Intervention], per_example_s: float, reserve_s: float, *, composed: bool
    ) -> None:
        """Rank the leaders anew, confirm, judge once on held-out examples, then measure parts and controls."""
        assert self.explored is not None and self.evaluator is not None
        self.proxy = proxy_of(self.search.trial_results, self.evaluator.baseline)
        if self.evaluator.scorer == "p_gold":
            self.measurement.listener.notice(self.proxy.sentence())
        fresh = Fresh(
            bench=self._caching,
            examples=self.data.rerank,
            baseline=self.evaluator.baseline,
            proxy=self.proxy,
            per_example_s=per_example_s,
            reserve_s=reserve_s - per_example_s * LEAST_RANKED * len(self.data.rerank),
        )
        self.finals = Finals(self.measurement, self.heldout, self.explored, self.search, fresh=fresh)
        outcomes = (
            self.finals.fastest_accurate() if self.measurement.target.already_met else self.finals.most_accurate()
        )
        self._allow_for_looks(outcomes)
        # whatever follows is another look at the held-out examples, but chooses nothing
        self._caching.counting = False
        if composed:
            self.composition = self._judged_compositions(outcomes)
        if self.finals.chosen is None:
            return
        chosen = self.finals.chosen
        self.breakdown = measure_breakdown(self.measurement, chosen.policy)
        for control in controls:
            self.controls.append(run_control(self.measurement, self.heldout, control, chosen, outcomes))

    def _judged_compositions(self, outcomes: Sequence[Outcome]) -> CompositionVerdict:
        """Compare the best composition with the best published policy, or say why there is nothing to compare."""
        assert self.explored is not None and self.finals is not None
        set_aside = self.explored.bounds.set_aside.get(COMPOSED)
        if set_aside is not None:
            return CompositionVerdict(tried=0, reason=set_aside)
        chosen, finals = self.finals.chosen, self.finals
        winner = (chosen, outcomes) if chosen is not None else None
        return judge_compositions(
            self.measurement, self.heldout, winner, finals.leaders, self.search.trial_results, finals.rejected
        )

    def _allow_for_looks(self, outcomes: Sequence[Outcome]) -> None:
        """Widen the interval for policies judged in earlier sessions: each was a chance to be lucky."""
        assert self.finals is not None
        looks = len(self._caching.looks)
        if self.finals.accuracy is not None and looks > self.finals.accuracy.looks and self.finals.chosen is not None:
            self.finals.accuracy = self.heldout.accuracy(outcomes, looks=looks)

    def _reserve(self, per_example_s: float, controls: int) -> float:
        """Estimate the seconds the end needs: re-ranking two leaders; winner and controls timed and scored."""
        rules = self.measurement.timings.final
        timing = min(rules.max_seconds, 4 * rules.min_pairs * self.measurement.target.baseline_ms / 1e3)
        ranking = 0.0 if self.measurement.target.already_met else LEAST_RANKED * len(self.data.rerank)
        return per_example_s * (len(self.data.heldout) * (2 + controls) + ranking) + (2 + 2 * controls) * timing

    @property
    def accuracy(self) -> Accuracy | None:
        """The held-out accuracy; None before it is measured."""
        return self.finals.accuracy if self.finals is not None else None

    def best_so_far(self, stopped: str, reason: str = "") -> TuneResult | None:
        """Put together the best result so far; None before the first policy that may win.

        `stopped` is "interrupted" or "error", whose `reason` becomes a warning.
        """
        if reason:
            self.measurement.warn(f"the search ended early: {reason}")
        if self.accuracy is not None:
            return self.result(confirmed=True)
        self.search.stopped = stopped
        return self.result(confirmed=False) if self._best_so_far() is not None else None

    def _best_so_far(self) -> tuple[Policy, Latency | None] | None:
        """Return the finalist being judged, else the best trial that has not been rejected."""
        if self.finals is not None and self.finals.running is not None:
            return self.finals.running.policy, self.finals.running.latency
        rejected = self.finals.rejected if self.finals is not None else set()
        leaders = self.finals.leaders if self.finals is not None else self.search.leaders()
        left = [trial_result for trial_result in leaders if trial_result.policy.hash not in rejected]
        return (left[0].policy, left[0].latency) if left else None

    def result(self, *, confirmed: bool) -> TuneResult:
        """Make the result of what was measured; the policy carries it as provenance."""
        assert self.explored is not None and self.evaluator is not None
        policy, latency = self._policy()
        warnings = [*self.measurement.warnings, *(control.warning for control in self.controls if control.warning)]
        if not confirmed:
            ended = "ended by an error" if self.search.stopped == "error" else "interrupted"
            warnings.append(f"{ended}: latency as in the search, held-out examples not scored")
        bounds = self.explored.bounds
        summary = search_summary(self.measurement, bounds, self.evaluator, self.search, self.proxy)
        summary |= {} if self.encoding is None else {"encoding": self.encoding.to_dict()}
        section = provenance(
            self.measurement, self.data, bounds, summary, latency, self.accuracy, self.controls, warnings, confirmed
        )
        if section["latency"] is not None and self.finals is not None and self.finals.chosen is not None:
            section["latency"] |= {"fresh_process": self.finals.chosen.fresh}
        section |= {"rerank": self.finals.rerank if self.finals is not None else {"skipped": "not reached"}}
        section |= {"breakdown_ms": rounded(self.breakdown)}
        section |= {"composition": self.composition.to_dict()} if self.composition is not None else {}
        # the ids are long, and what is long comes last
        section["heldout_ids"] = section.pop("heldout_ids")
        return TuneResult(
            policy=replace(policy, provenance=section),
            target_ms=bounds.target_ms,
            already_met=bounds.already_met,
            latency=latency,
            accuracy=self.accuracy,
            confirmed=confirmed,
            controls=tuple(self.controls),
            composition=self.composition,
            warnings=tuple(warnings),
            search=summary,
            trials=tuple(
                event_of(self.measurement, self.evaluator, trial_result) for trial_result in self.search.trial_results
            ),
            breakdown=self.breakdown,
            importance=importance_of(self.study.optuna),
        )

    @property
    def encoding(self) -> EncodingWork | None:
        """The work of encoding clips on all devices; None where no bench tells."""
        found = [getattr(bench, "encoding", None) for bench in (self.measurement.bench, *self._others)]
        told = [work for work in found if work is not None]
        return sum(told, EncodingWork()) if told else None

    def _policy(self) -> tuple[Policy, Latency | None]:
        """Return the policy and its latency: the confirmed one, the best so far, or the empty one."""
        if self.finals is not None and self.finals.chosen is not None:
            return self.finals.chosen.policy, self.finals.chosen.latency
        best = self._best_so_far() if self.accuracy is None else None
        return best or (Policy(name="none", summary="Remove nothing: the uncompressed model.", stages=()), None)
