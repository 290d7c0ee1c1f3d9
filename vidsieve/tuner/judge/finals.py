"""The end of a search: leaders are ranked once more, their latency is confirmed, and held-out examples judge."""

from collections.abc import Sequence
from typing import Any

from vidsieve.framework.errors import TargetUnreachableError
from vidsieve.framework.policy.policy import Policy
from vidsieve.framework.task import Outcome
from vidsieve.tuner.judge.confirm_latency import Confirmed, confirm_latency
from vidsieve.tuner.judge.paired_accuracy import Accuracy, Heldout
from vidsieve.tuner.judge.rerank import Fresh, Reranking, rerank
from vidsieve.tuner.judge.statistics import ms
from vidsieve.tuner.measure.bounds import Explored
from vidsieve.tuner.measure.measurement import Measurement
from vidsieve.tuner.search.trial import TrialResult
from vidsieve.tuner.search.trial_loop import Search
from vidsieve.tuner.trial_failure import POLICY_FAULTS, fault_reason

FINALISTS = 3


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
