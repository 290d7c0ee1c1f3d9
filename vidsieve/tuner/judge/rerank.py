"""Re-rank the leaders of a search on examples that did not choose them.

`Proxy` says whether p(gold), by which the search ranks, follows accuracy: one point for each configuration measured.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vidsieve.framework.task import Example, Outcome
from vidsieve.tuner.measure.measurement import Measurement
from vidsieve.tuner.measure.scoring import Score, Scorer, run_examples, value_of
from vidsieve.tuner.protocol import Bench
from vidsieve.tuner.statistics import clustered_error
from vidsieve.tuner.study.record import TrialResult
from vidsieve.tuner.trial_failure import POLICY_FAULTS, fault_reason

LEADERS = 5
FAR_AHEAD = 3.0
"""A first leader this many standard errors ahead of the second is not ranked anew, where p(gold) is trusted."""
LEAST_CONFIGURATIONS = 5
TRUSTED_R = 0.5
UNKNOWN_BIAS_POINTS = 2.0
"""How far p(gold) may mislead where nothing is known: the worst that was simulated when the search was designed."""


@dataclass(frozen=True, kw_only=True)
class Proxy:
    """Accuracy changes regressed on p(gold) changes, over `n` configurations, all against the uncompressed model.

    Changes across configurations are what is judged, not their level: p(gold) may fall by points while no answer
    changes, and still rank. `bias_points` is the spread around the line beyond what sampling explains. `trusted` is
    None where there are too few configurations, or too alike, to say.
    """

    n: int
    r: float | None
    slope: float
    intercept: float
    bias_points: float
    trusted: bool | None

    def accuracy_change(self, p_change: float) -> float:
        """Predict the change of accuracy from a change of p(gold), as fractions."""
        return self.intercept + self.slope * p_change

    def variance(self, p_error: float) -> float:
        """Compute the variance of `accuracy_change`, given the standard error of the p(gold) change."""
        return (self.slope * p_error) ** 2 + (self.bias_points / 100) ** 2

    def sentence(self) -> str:
        """Write the check as a sentence."""
        if self.trusted is None or self.r is None:
            return f"whether p(gold) follows accuracy cannot be told from {self.n} configurations"
        correlation = f"r = {self.r:.2f}"
        if self.trusted:
            return f"p(gold) follows accuracy: {correlation} over {self.n} configurations"
        return f"p(gold) does not follow accuracy ({correlation}): leaders are ranked by accuracy itself"

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers, for provenance."""
        return {
            "configurations": self.n,
            "r": None if self.r is None else round(self.r, 4),
            "slope": round(self.slope, 4),
            "bias_points": round(self.bias_points, 4),
            "trusted": self.trusted,
        }


def proxy_check(
    p_changes: Sequence[float], p_errors: Sequence[float], a_changes: Sequence[float], a_errors: Sequence[float]
) -> Proxy:
    """Regress accuracy changes on p(gold) changes (fractions, with standard errors), one entry a configuration.

    Fewer than five configurations, or p(gold) changes all within one standard error, or no accuracy change: nothing
    can be said. Then a p(gold) point counts as a point of accuracy, with a bias as large as any seen. The sampling
    variance taken off the residuals is that of the accuracies alone: both are measured on the same examples, so the
    errors of p(gold) cancel part of it rather than add. Raises ValueError for lists of unequal length.
    """
    p, a = np.asarray(p_changes, dtype=np.float64), np.asarray(a_changes, dtype=np.float64)
    if not len(p) == len(a) == len(p_errors) == len(a_errors):
        raise ValueError(f"proxy_check: {len(p)}, {len(p_errors)}, {len(a)} and {len(a_errors)} entries")
    n = len(p)
    spread = n > 0 and np.ptp(p) > max(1e-9, float(np.mean(p_errors))) and np.ptp(a) > 1e-9
    if n < LEAST_CONFIGURATIONS or not spread:
        intercept = float((a - p).mean()) if n else 0.0
        return Proxy(n=n, r=None, slope=1.0, intercept=intercept, bias_points=UNKNOWN_BIAS_POINTS, trusted=None)
    r = float(np.corrcoef(p, a)[0, 1])
    slope = r * float(a.std() / p.std())
    intercept = float(a.mean() - slope * p.mean())
    residuals = a - intercept - slope * p
    bias = float((residuals**2).sum() / (n - 2) - np.mean(np.square(a_errors)))
    return Proxy(
        n=n,
        r=r,
        slope=slope,
        intercept=intercept,
        bias_points=100 * math.sqrt(max(0.0, bias)),
        trusted=r >= TRUSTED_R,
    )


def proxy_of(trial_results: Sequence[TrialResult], baseline: Score) -> Proxy:
    """Check trials: each policy once, those scored on at least half of the examples that have p(gold)."""
    measured: dict[str, Score] = {}
    for trial_result in trial_results:
        score = trial_result.score
        if score is not None and score.scorer == "p_gold" and 2 * len(score.outcomes) >= len(baseline.outcomes):
            measured[trial_result.policy.hash] = score
    p = [_score_change(score, baseline, "p_gold") for score in measured.values()]
    a = [_score_change(score, baseline, "correct") for score in measured.values()]
    return proxy_check([c for c, _ in p], [e for _, e in p], [c for c, _ in a], [e for _, e in a])


def _score_change(score: Score, baseline: Score, scorer: Any) -> tuple[float, float]:
    """Compute the mean paired change in `scorer` and its standard error."""
    changes = Score(score.outcomes, scorer).change(Score(baseline.outcomes, scorer))
    if len(changes) < 2:
        return float(changes.mean()), 1.0
    return float(changes.mean()), float(changes.std(ddof=1) / math.sqrt(len(changes)))


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
