"""Whether p(gold), by which the search ranks, follows accuracy: one point for each configuration measured."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vidsieve.tuner.judge.scoring import Score
from vidsieve.tuner.search.trial import TrialResult

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
    p = [_change(score, baseline, "p_gold") for score in measured.values()]
    a = [_change(score, baseline, "correct") for score in measured.values()]
    return proxy_check([c for c, _ in p], [e for _, e in p], [c for c, _ in a], [e for _, e in a])


def _change(score: Score, baseline: Score, scorer: Any) -> tuple[float, float]:
    """Compute the mean paired change in `scorer` and its standard error."""
    changes = Score(score.outcomes, scorer).change(Score(baseline.outcomes, scorer))
    if len(changes) < 2:
        return float(changes.mean()), 1.0
    return float(changes.mean()), float(changes.std(ddof=1) / math.sqrt(len(changes)))
