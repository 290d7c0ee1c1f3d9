"""The final judgement: the chosen policy and the uncompressed model on held-out examples, once, paired."""

from collections.abc import Sequence

import numpy as np

from vidsieve.framework.policy import Policy
from vidsieve.framework.task import Example, Outcome
from vidsieve.tuner.accuracy import Accuracy
from vidsieve.tuner.lab import Lab
from vidsieve.tuner.scoring import run_examples
from vidsieve.tuner.statistics import Interval, mcnemar_exact, paired_difference, wilson_interval


class Heldout:
    """The held-out examples and what has been seen of them; the uncompressed model is scored once."""

    def __init__(self, lab: Lab, examples: Sequence[Example], metric: str) -> None:
        self._lab, self._examples, self._metric = lab, examples, metric
        self._baseline: tuple[Outcome, ...] | None = None

    def outcomes(self, policy: Policy | None) -> tuple[Outcome, ...]:
        """Score a policy on all held-out examples."""
        name = "uncompressed" if policy is None else policy.name
        return run_examples(self._lab.bench, policy, self._examples, f"held-out: {name}", self._lab.listener.step)

    @property
    def baseline(self) -> tuple[Outcome, ...]:
        """The uncompressed model's outcomes."""
        if self._baseline is None:
            self._baseline = self.outcomes(None)
        return self._baseline

    def compare(self, ours: Sequence[Outcome], theirs: Sequence[Outcome], level: float = 0.95) -> Interval:
        """Mean paired difference of 0/1 results, ours minus theirs, resampled by video."""
        differences = [a.correct - b.correct for a, b in zip(ours, theirs, strict=True)]
        groups = [example.group for example in self._examples]
        return paired_difference(differences, groups, level=level, seed=self._lab.request.seed)

    def judge(self, outcomes: Sequence[Outcome], looks: int = 1) -> Accuracy:
        """The accuracy of a policy's outcomes beside the uncompressed model's."""
        n = len(outcomes)
        changes = np.array([a.correct - b.correct for a, b in zip(outcomes, self.baseline, strict=True)])
        lost, won = int((changes < 0).sum()), int((changes > 0).sum())
        kept = [outcome.retention_ratio for outcome in outcomes if outcome.retention_ratio is not None]
        return Accuracy(
            metric=self._metric,
            n=n,
            videos=len({example.group for example in self._examples}),
            baseline=wilson_interval(sum(outcome.correct for outcome in self.baseline), n),
            policy=wilson_interval(sum(outcome.correct for outcome in outcomes), n),
            difference=self.compare(outcomes, self.baseline, level=1 - 0.05 / looks),
            lost=lost,
            won=won,
            mcnemar_p=mcnemar_exact(lost, won),
            max_drop_points=self._lab.request.max_drop_points,
            attained_retention=round(float(np.mean(kept)), 6) if kept else None,
            looks=looks,
        )
