"""End a search: confirm the latency of the leaders apart from the runs that chose them, and judge on held-out examples.

Where the target binds, retention shrinks until the latency fits, then grows while it does.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from vidsieve.framework.errors import TargetUnreachableError
from vidsieve.framework.policy.policy import Policy
from vidsieve.framework.task import Outcome
from vidsieve.tuner.judge.paired_accuracy import Heldout
from vidsieve.tuner.judge.rerank import Fresh, Reranking, rerank
from vidsieve.tuner.measure.bounds import Explored
from vidsieve.tuner.measure.latency import TimingRules
from vidsieve.tuner.measure.measurement import Measurement
from vidsieve.tuner.measure.retention_limits import round_down
from vidsieve.tuner.measured import Accuracy, Latency
from vidsieve.tuner.search.trial_loop import Search
from vidsieve.tuner.space.knobs import has_free_retention, retention_window
from vidsieve.tuner.statistics import ms
from vidsieve.tuner.study.record import TrialResult
from vidsieve.tuner.trial_failure import POLICY_FAULTS, fault_reason

FINALISTS = 3
STEPS = 8
LEAST_SHRINK = 0.97
MOST_SHRINK = 0.7
"""One step takes no more than this away: six of them still reach a tenth."""
LEAST_GROWTH = 1.02
"""Fewer tokens than this are not worth another measurement."""
MOST_GROWTH = 1.25
GROWTH_SECONDS = 45.0
"""No growing step begins after this long; shrinking to a policy that fits continues."""
HALF_WIDTH_RATIO = 0.007
"""A target that binds is worth more pairs: what the interval is wide cannot be spent on tokens."""
MOST_PAIRS = 1000


@dataclass(frozen=True)
class Confirmed:
    """A policy whose latency interval lies within the target. `fresh`: a process with nothing warm measured it."""

    policy: Policy
    latency: Latency
    fresh: bool = False


class Finals:
    """Choose among the leaders of a search; the attributes hold what was found, also when interrupted.

    `running` is the finalist whose latency is confirmed and whose held-out examples are being scored; `chosen` with
    `accuracy` the one that made it (`chosen` stays None when nothing beat the uncompressed model).
    """

    def __init__(
        self,
        measurement: Measurement,
        heldout: Heldout,
        explored: Explored,
        search: Search,
        *,
        fresh: Fresh | None = None,
    ) -> None:
        self._measurement, self._heldout, self._explored, self._search = measurement, heldout, explored, search
        self._fresh = fresh
        self._reranking: Reranking | None = None
        self.running: Confirmed | None = None
        self.chosen: Confirmed | None = None
        self.accuracy: Accuracy | None = None
        self.rejected: set[str] = set()

    @property
    def leaders(self) -> list[TrialResult]:
        """The leaders in the order they are tried: as ranked anew, else as the search ranked them."""
        return self._search.leaders() if self._reranking is None else list(self._reranking.order)

    @property
    def rerank(self) -> dict[str, Any]:
        """The re-ranking for provenance: `skipped` with the reason, or examples, estimates and order."""
        if self._measurement.target.already_met:
            # speed is measured already, and the drop is tested on held-out examples, every look allowed for
            return {"skipped": "the fastest policy is sought, which answers do not rank"}
        return {"skipped": "not reached"} if self._reranking is None else self._reranking.to_dict()

    def most_accurate(self) -> tuple[Outcome, ...]:
        """Choose the best trial whose latency can be confirmed, else the floor; one look at the held-out examples.

        With `fresh` examples the leaders are ranked on them first.

        Raises:
            TargetUnreachableError: not even the floor's interval fits the target.
        """
        if self._fresh is not None:
            self._reranking = rerank(self._measurement, self._search.leaders(), self._fresh)
            self.rejected |= self._reranking.failed
        leaders = self.leaders[:FINALISTS]
        if not leaders:
            self._measurement.warn("no trial met the target; this is the floor policy, which fits and is unsearched")
        for policy in [*(trial_result.policy for trial_result in leaders), self._explored.floor]:
            outcomes = self._try(policy)
            if outcomes is not None:
                self.chosen = self.running
                self.accuracy = self._heldout.accuracy(outcomes)
                return outcomes
        bounds = self._explored.bounds
        raise TargetUnreachableError(
            f"target: {ms(bounds.target_ms)} ms asked; the floor, {bounds.floor_policy}, takes "
            f"{ms(bounds.floor.value)} ms, but no policy could be confirmed within the target: it is unreachable, or "
            "within noise of the floor. Ask for more time, or measure on a quieter machine."
            + "".join(f" ({text})" for text in self._measurement.warnings)
        )

    def fastest_accurate(self) -> tuple[Outcome, ...]:
        """Choose the fastest finalist whose held-out drop is allowed; else return the uncompressed outcomes."""
        margin = self._measurement.request.max_drop_points / 100
        leaders = fast_finalists(self._search.leaders(), margin)
        looks = len(leaders)
        for trial_result in leaders:
            outcomes = self._try(trial_result.policy)
            if outcomes is None:
                continue
            accuracy = self._heldout.accuracy(outcomes, looks=looks)
            if accuracy.drop.value <= margin:
                self.chosen, self.accuracy = self.running, accuracy
                return outcomes
            self.rejected.add(trial_result.policy.hash)
            self.running = None
        self.accuracy = self._heldout.accuracy(self._heldout.baseline)
        return self._heldout.baseline

    def _try(self, policy: Policy) -> tuple[Outcome, ...] | None:
        """Confirm the latency of a finalist (`running`), then score it on held-out examples; None if it fails."""
        self._measurement.listener.confirming(policy)
        # scored first and outside: what the uncompressed model raises is no fault of the policy
        _ = self._heldout.baseline
        self.running = None
        fresh = self._measurement.fresh()
        try:
            self.running = confirm_latency(self._measurement, policy, fresh=fresh)
            return self._heldout.outcomes(self.running.policy) if self.running else None
        except POLICY_FAULTS as error:
            self._measurement.warn(f"{policy.name} was passed over at the end: {fault_reason(error)}")
            self.rejected.add(policy.hash)
            return None


def fast_finalists(leaders: Sequence[TrialResult], margin: float) -> list[TrialResult]:
    """Choose up to three of `leaders` (fastest first): the fastest, the fastest that is safe, the most accurate.

    The fastest policy that passed on the search examples often passed by luck. Safe means that its change less one
    standard error is within `margin`. Where two of these are one, the leader half-way between the ends joins.
    """
    if not leaders:
        return []
    safe = [f for f in leaders if (f.change or 0.0) - (f.change_error or 0.0) >= -margin]
    accurate = max(leaders, key=lambda f: f.change or 0.0)
    chosen = [leaders[0], *safe[:1], accurate]
    between = [f for f in leaders[: list(leaders).index(accurate)] if f not in chosen]
    if len({trial_result.number for trial_result in chosen}) < FINALISTS and between:
        chosen.append(between[len(between) // 2])
    return [trial_result for trial_result in leaders if trial_result in chosen]


def confirm_latency(measurement: Measurement, policy: Policy, *, fresh: bool = False) -> Confirmed | None:
    """Measure `policy` afresh, paired with the uncompressed model; None if it cannot be made to fit in a few steps.

    Where the target binds, retention shrinks until a measurement fits, and from one that fits it grows to what is
    predicted to fit still; the last policy that fitted is the answer. No run that chose it counts, nor any of an
    earlier step. At the lower bound of its retention ratio a policy that does not fit is refused. `fresh` is kept with
    the result: whether `Measurement.fresh` gave a new process for this.
    """
    fitting: Confirmed | None = None
    too_much: float | None = None
    start = measurement.elapsed_s()
    for step in range(1, STEPS + 1):
        measurement.listener.step("confirm latency", step, STEPS)
        latency = measurement.timer.measure(policy, _rules(measurement))
        if meets_target(measurement, latency):
            fitting = Confirmed(policy, latency, fresh)
        else:
            too_much = policy.retention_ratio
        if fitting is None:
            following = _shrunk(measurement, policy, latency)
        elif measurement.elapsed_s() - start > GROWTH_SECONDS or (measurement.seconds_left() or 1.0) <= 0:
            following = None
        else:
            following = _grown(measurement, fitting, too_much)
        if following is None:
            break
        policy = following
    return fitting


def meets_target(measurement: Measurement, latency: Latency) -> bool:
    """Whether the upper end of the interval fits: of the milliseconds, or of the ratio for a relative target.

    Where the uncompressed model meets the target itself, a policy must also be faster than it.
    """
    if measurement.target.already_met and latency.ratio.high >= 1:
        return False
    return _of_target(measurement, latency) <= 1


def _rules(measurement: Measurement) -> TimingRules:
    """Make the timing rules: more pairs where the target binds, and an end once it is clearly missed."""
    rules = measurement.timings.final
    if measurement.target.already_met:
        return rules
    precise = min(rules.half_width_ratio, HALF_WIDTH_RATIO)
    rules = replace(rules, half_width_ratio=precise, max_pairs=max(rules.max_pairs, MOST_PAIRS))
    if measurement.request.latency_ms is not None:
        return replace(rules, above_ms=measurement.request.latency_ms)
    return replace(rules, above=measurement.target.ratio)


def _of_target(measurement: Measurement, latency: Latency) -> float:
    """Compute the upper end of the interval ÷ the target."""
    if measurement.request.latency_ms is not None:
        return latency.policy_ms.high / measurement.request.latency_ms
    return latency.ratio.high / measurement.target.ratio


def _solved(measurement: Measurement, policy: Policy, latency: Latency) -> float | None:
    """Solve the retention ratio whose upper end is predicted to be the target; None below all that was timed."""
    curve = measurement.curves.get(policy.name)
    if curve is None or not curve.points or policy.retention_ratio is None:
        return None
    # the curve was taken at the published settings; the candidate's own may shift it
    shift = latency.ratio.value / curve.predict(policy.retention_ratio)
    return curve.solve(latency.ratio.value / _of_target(measurement, latency) / shift)


def _shrunk(measurement: Measurement, policy: Policy, latency: Latency) -> Policy | None:
    """Lower the retention ratio to what the curve predicts to fit; None at its floor."""
    if measurement.target.already_met or not has_free_retention(policy) or policy.retention_ratio is None:
        return None
    ratio, low = policy.retention_ratio, policy.attainable(measurement.bench.shape)[0]
    if ratio <= low * (1 + 1e-6):
        return None
    predicted = _solved(measurement, policy, latency)
    # where noise has made the curve flat, what it predicts may lie at its very foot
    predicted = max(ratio * MOST_SHRINK, low if predicted is None else predicted)
    smaller = min(ratio * LEAST_SHRINK, predicted)
    return policy.with_(retention_ratio=max(low, round(smaller, 4)))


def _grown(measurement: Measurement, fitting: Confirmed, too_much: float | None) -> Policy | None:
    """Raise the retention ratio to what is predicted to fit still; None where little is to be gained.

    Never as much as what was measured not to fit: at most half-way there.
    """
    policy, latency = fitting.policy, fitting.latency
    if measurement.target.already_met or not has_free_retention(policy) or policy.retention_ratio is None:
        return None
    ratio, (low, high) = policy.retention_ratio, policy.attainable(measurement.bench.shape)
    predicted = _solved(measurement, policy, latency)
    if predicted is None:
        return None
    most = min(high, retention_window(policy)[1], ratio * MOST_GROWTH)
    if too_much is not None:
        most = min(most, (ratio + too_much) / 2)
    larger = round_down(min(predicted, most), low)
    return policy.with_(retention_ratio=larger) if larger >= ratio * LEAST_GROWTH else None
