"""One trial: time a candidate; if it can meet the target, score it against the best so far."""

import copy
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from vidsieve.framework.task import Example
from vidsieve.tuner.examples import Data
from vidsieve.tuner.measure.measurement import Measurement
from vidsieve.tuner.measure.retention_limits import RetentionSolver
from vidsieve.tuner.measure.scoring import Score, Scorer, race
from vidsieve.tuner.measured import Latency
from vidsieve.tuner.result import Verdict
from vidsieve.tuner.space.candidate import Candidate
from vidsieve.tuner.study.record import REPEATS, TrialResult
from vidsieve.tuner.trial_failure import POLICY_FAULTS, fault_reason


class Evaluator:
    """Evaluate candidates on the search examples, paired with the uncompressed model (`baseline`).

    Where the target binds, the study maximises the score with latency as constraint. Where the uncompressed model
    meets the target already, it maximises speed with the accuracy drop as constraint.
    """

    def __init__(self, measurement: Measurement, data: Data, baseline: Score) -> None:
        self._measurement, self._data, self.baseline = measurement, data, baseline
        self._margin = measurement.request.max_drop_points / 100
        self._seen: dict[str, TrialResult] = {}

    def on_device(self, measurement: Measurement) -> "Evaluator":
        """Evaluate on another device, with the results seen so far in common."""
        other = copy.copy(self)
        other._measurement = measurement
        return other

    def remember(self, trial_results: Iterable[TrialResult]) -> None:
        """Add the results of an earlier session or of another tuner."""
        for trial_result in trial_results:
            if trial_result.candidate is not None and trial_result.verdict != "failed":
                self._seen[trial_result.candidate.key] = trial_result

    @property
    def examples(self) -> tuple[Example, ...]:
        """What candidates are scored on."""
        return self._data.search

    @property
    def scorer(self) -> Scorer:
        """What a score is the mean of."""
        return self.baseline.scorer

    def evaluate(self, number: int, candidate: Candidate, best: TrialResult | None) -> TrialResult:
        """Evaluate a candidate. What its policy may be blamed for becomes a failed trial with the reason."""
        repeated = self._seen.get(candidate.key)
        # what was too slow comes back with fewer tokens, now that the latency curve has learnt from it
        again = (
            repeated is not None and repeated.verdict == "too slow" and repeated.policy.hash != candidate.policy.hash
        )
        if repeated is not None and not again:
            reason = f"{REPEATS} {repeated.number}"
            verdict: Verdict = "feasible" if repeated.verdict == "new best" else repeated.verdict
            return replace(repeated, number=number, reason=reason, verdict=verdict)
        try:
            candidate = RetentionSolver(self._measurement).settle(candidate)
            trial_result = self._evaluate(number, candidate, best)
        except POLICY_FAULTS as error:
            return self.failed(number, candidate, fault_reason(error))
        self._seen[candidate.key] = trial_result
        return trial_result

    def rated(self, trial_result: TrialResult) -> TrialResult:
        """Compute change, value and constraints from the outcomes of a trial, on whatever examples it still has."""
        if trial_result.score is None or trial_result.latency is None:
            return trial_result
        differences = trial_result.score.change(self.baseline)
        change = float(differences.mean())
        # on a part of the examples, the paired difference carries over to the whole better than the mean does
        value, violation = float(self.baseline.mean + change), trial_result.violation
        if self._measurement.target.already_met:
            violation = violation | {"drop": -change - self._margin}
            value = -trial_result.latency.ratio.value
        error = float(differences.std(ddof=1) / np.sqrt(len(differences)))
        return replace(trial_result, value=value, violation=violation, change=change, change_error=error)

    def failed(self, number: int, candidate: Candidate | None, reason: str) -> TrialResult:
        """Make the result of a trial that could not be measured: infeasible by far, so that the sampler avoids it."""
        value = -2.0 if self._measurement.target.already_met else 0.0
        violation = dict.fromkeys(self._constraints(), 1.0)
        return TrialResult(
            number=number, candidate=candidate, verdict="failed", value=value, violation=violation, reason=reason
        )

    def _constraints(self) -> tuple[str, ...]:
        return ("latency", "drop") if self._measurement.target.already_met else ("latency",)

    def _evaluate(self, number: int, candidate: Candidate, best: TrialResult | None) -> TrialResult:
        limit = min(1.0, self._measurement.target.ratio)
        # where the target binds, being clearly within it is enough; where speed is what counts, it is not
        rules = replace(
            self._measurement.timings.trial, above=limit, below=0.0 if self._measurement.target.already_met else limit
        )
        latency = self._measurement.timer.measure(candidate.policy, rules)
        violation = dict.fromkeys(self._constraints(), 0.0) | {"latency": latency.ratio.value / limit - 1}
        if latency.ratio.low > limit:
            value = -latency.ratio.value if self._measurement.target.already_met else 0.0
            return TrialResult(
                number=number,
                candidate=candidate,
                verdict="too slow",
                value=value,
                violation=violation,
                latency=latency,
            )
        score = self._score(candidate, best)
        return self._weigh(number, candidate, best, latency, score, violation)

    def _score(self, candidate: Candidate, best: TrialResult | None) -> Score:
        """Score with early stopping: against the best where accuracy decides, else against the allowed drop."""
        rival, margin = (best.score if best is not None else None), 0.0
        if self._measurement.target.already_met:
            rival, margin = self.baseline, self._margin
        return race(
            self._measurement.bench,
            candidate.policy,
            self._data.search,
            scorer=self.scorer,
            rival=rival,
            margin=margin,
            step=self._measurement.listener.step,
        )

    def _weigh(
        self,
        number: int,
        candidate: Candidate,
        best: TrialResult | None,
        latency: Latency,
        score: Score,
        violation: dict[str, float],
    ) -> TrialResult:
        """Give a measured candidate its value, constraints and verdict."""
        trial_result = self.rated(
            TrialResult(
                number=number,
                candidate=candidate,
                verdict="pruned" if score.pruned else "feasible",
                value=0.0,
                violation=violation,
                latency=latency,
                score=score,
            )
        )
        if score.pruned:
            total = len(self._data.search)
            return replace(trial_result, reason=f"clearly behind after {len(score.outcomes)} of {total} examples")
        if violation["latency"] > 0:
            return replace(trial_result, verdict="too slow")
        if not trial_result.feasible:
            return replace(trial_result, verdict="inaccurate")
        better = best is None or trial_result.value > best.value
        return replace(trial_result, verdict="new best" if better else "feasible")
