"""Re-rank the leaders of a search on examples that did not choose them."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vidsieve.framework.task import Example, Outcome
from vidsieve.tuner.judge.proxy import Proxy
from vidsieve.tuner.judge.scoring import Score, Scorer, run_examples, value_of
from vidsieve.tuner.judge.statistics import clustered_error
from vidsieve.tuner.measure.measurement import Measurement
from vidsieve.tuner.protocol import Bench
from vidsieve.tuner.search.trial import TrialResult
from vidsieve.tuner.trial_failure import POLICY_FAULTS, fault_reason

LEADERS = 5
FAR_AHEAD = 3.0
"""A first leader this many standard errors ahead of the second is not ranked anew, where p(gold) is trusted."""


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """A leader with its accuracy change on search and re-rank examples together: `change` ± `error`, fractions.

    `correct_change` is by answers alone, `p_gold_change` by p(gold) alone, None where that plays no part.
    """

    trial_result: TrialResult
    change: float
    error: float
    correct_change: float
    p_gold_change: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers and text, for provenance."""
        p_gold = self.p_gold_change
        return {
            "trial": self.trial_result.number,
            "policy": self.trial_result.policy.name,
            "retention_ratio": self.trial_result.policy.retention_ratio,
            "change_points": round(100 * self.change, 4),
            "error_points": round(100 * self.error, 4),
            "correct_change_points": round(100 * self.correct_change, 4),
            "p_gold_change_points": None if p_gold is None else round(100 * p_gold, 4),
        }


@dataclass(frozen=True, kw_only=True)
class Reranking:
    """The result of a re-ranking. `order` is what to try, best first; `skipped` the reason where nothing was ranked.

    `ranked` are the leaders scored afresh on `examples` examples. Leaders beyond them follow in `order` as the search
    had them; those that raised (`failed`, by policy hash) are out.
    """

    order: tuple[TrialResult, ...]
    ranked: tuple[Ranked, ...] = ()
    examples: int = 0
    scored: int = 0
    skipped: str = ""
    changed: bool = False
    failed: frozenset[str] = frozenset()

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers and text, for provenance."""
        if self.skipped:
            return {"skipped": self.skipped}
        return {
            "examples": self.examples,
            "examples_scored": self.scored,
            "changed_order": self.changed,
            "leaders": [ranked.to_dict() for ranked in self.ranked],
        }


@dataclass(frozen=True, kw_only=True)
class Fresh:
    """Inputs of a re-ranking: a bench, fresh `examples`, the search's `baseline`, the check of p(gold).

    `per_example_s` is what one example takes, `reserve_s` what the end of the study needs of a time budget.
    """

    bench: Bench
    examples: Sequence[Example]
    baseline: Score
    proxy: Proxy
    per_example_s: float = 0.0
    reserve_s: float = 0.0


def rerank(measurement: Measurement, leaders: Sequence[TrialResult], fresh: Fresh) -> Reranking:
    """Score up to five leaders, and the uncompressed model, on fresh examples; rank them by all they have seen.

    Where p(gold) is the score, an estimate weighs two: the 0/1 change, and the p(gold) change brought to the scale of
    accuracy, each by its precision, and p(gold) has the proxy's bias on top of its noise. The weights are the same for
    all leaders, so that none is moved by its own luck with them. Where p(gold) is not trusted, 0/1 decides alone. A
    leader that raises is passed over with a warning. With a time budget, as many leaders as there is time for.
    """
    wanted, skipped = _how_many(measurement, leaders, fresh)
    if skipped:
        return Reranking(order=tuple(leaders), skipped=skipped)
    pool, rest = leaders[:wanted], leaders[wanted:]
    # scored first and outside: what the uncompressed model raises is no fault of a policy
    theirs = run_examples(fresh.bench, None, fresh.examples, "re-rank: uncompressed", measurement.listener.step)
    scored: list[tuple[TrialResult, tuple[Outcome, ...]]] = []
    failed: set[str] = set()
    for trial_result in pool:
        left = measurement.seconds_left(fresh.reserve_s)
        if left is not None and left < fresh.per_example_s * len(fresh.examples):
            measurement.warn(f"re-rank: the time budget ended it after {len(scored)} of {len(pool)} leaders")
            break
        try:
            what = f"re-rank: {trial_result.policy.name}"
            ours = run_examples(fresh.bench, trial_result.policy, fresh.examples, what, measurement.listener.step)
            scored.append((trial_result, ours))
        except POLICY_FAULTS as error:
            measurement.warn(f"{trial_result.policy.name} was passed over while re-ranking: {fault_reason(error)}")
            failed.add(trial_result.policy.hash)
    ranked = _ranked(scored, theirs, fresh)
    done = {id(one.trial_result) for one in ranked}
    unranked = [f for f in [*pool, *rest] if id(f) not in done and f.policy.hash not in failed]
    order = (*(one.trial_result for one in ranked), *unranked)
    return Reranking(
        order=order,
        ranked=tuple(ranked),
        examples=len(fresh.examples),
        scored=len(fresh.examples) * (1 + len(scored)),
        changed=[f.number for f in order] != [f.number for f in leaders if f.policy.hash not in failed],
        failed=frozenset(failed),
    )


def _how_many(measurement: Measurement, leaders: Sequence[TrialResult], fresh: Fresh) -> tuple[int, str]:
    """Decide how many leaders to score afresh, or why none."""
    if len(leaders) < 2:
        return 0, "fewer than two policies to rank"
    if not fresh.examples:
        return 0, "no videos are left for it; give more of them"
    if far_ahead(leaders[0], leaders[1], fresh.proxy):
        return 0, "the best trial is far ahead of the next, and p(gold) follows accuracy"
    wanted = min(LEADERS, len(leaders))
    left = measurement.seconds_left(fresh.reserve_s)
    if left is None or fresh.per_example_s <= 0:
        return wanted, ""
    # the uncompressed model takes its turn too
    affordable = int(left / (fresh.per_example_s * len(fresh.examples))) - 1
    return (0, "the time budget leaves no room for it") if affordable < 2 else (min(wanted, affordable), "")


def far_ahead(first: TrialResult, second: TrialResult, proxy: Proxy) -> bool:
    """Whether `first` beats `second` by three standard errors, noise and bias of p(gold) both counted.

    Only where p(gold) was scored and is trusted: 0/1 gaps that wide are often luck among the best of many.
    """
    if first.score is None or second.score is None or first.score.scorer != "p_gold" or proxy.trusted is not True:
        return False
    groups = [outcome.group for outcome in first.score.outcomes]
    gap = first.score.change(second.score)
    error = clustered_error(gap.tolist(), groups[: len(gap)])
    # each of the two has a bias of its own
    noise = (proxy.slope * error) ** 2 + 2 * (proxy.bias_points / 100) ** 2
    return proxy.slope * float(gap.mean()) > FAR_AHEAD * float(np.sqrt(noise))


def _ranked(
    scored: Sequence[tuple[TrialResult, tuple[Outcome, ...]]], theirs: tuple[Outcome, ...], fresh: Fresh
) -> list[Ranked]:
    """Rank the scored leaders, best estimate first; equal ones as the search ranked them."""
    before = fresh.baseline.outcomes
    answers: list[tuple[float, float]] = []
    likely: list[tuple[float, float]] = []
    by_p = fresh.baseline.scorer == "p_gold" and fresh.proxy.trusted is not False
    for trial_result, ours in scored:
        assert trial_result.score is not None
        pairs = [*zip(trial_result.score.outcomes, before, strict=True), *zip(ours, theirs, strict=True)]
        answers.append(_change(pairs, "correct"))
        likely.append(_change(pairs, "p_gold") if by_p else (0.0, 0.0))
    if not scored:
        return []
    variance_a = float(np.mean([error**2 for _, error in answers]))
    variance_p = float(np.mean([fresh.proxy.variance(error) for _, error in likely]))
    weight = variance_p / (variance_a + variance_p) if by_p else 1.0
    ranked = []
    for (trial_result, _), (correct, error_a), (p, error_p) in zip(scored, answers, likely, strict=True):
        predicted = fresh.proxy.accuracy_change(p) if by_p else 0.0
        variance = weight**2 * error_a**2 + (1 - weight) ** 2 * fresh.proxy.variance(error_p)
        ranked.append(
            Ranked(
                trial_result=trial_result,
                change=weight * correct + (1 - weight) * predicted,
                error=float(np.sqrt(variance)),
                correct_change=correct,
                p_gold_change=p if by_p else None,
            )
        )
    return sorted(ranked, key=lambda one: -one.change)


def _change(pairs: Sequence[tuple[Outcome, Outcome]], scorer: Scorer) -> tuple[float, float]:
    """Compute the mean paired change and its standard error by video.

    Two made-up examples, +1 and -1, join the error of 0/1 changes: no change at all is no certainty.
    """
    changes = [value_of(ours, scorer) - value_of(theirs, scorer) for ours, theirs in pairs]
    groups: list[Hashable] = [ours.group for ours, _ in pairs]
    if scorer == "p_gold":
        return float(np.mean(changes)), clustered_error(changes, groups)
    error = clustered_error([*changes, 1.0, -1.0], [*groups, object(), object()])
    return float(np.mean(changes)), error
