"""The final judgement: the chosen policy and the uncompressed model on held-out examples, once, paired."""

from collections.abc import Sequence

import numpy as np

from vidsieve.framework.task import Example, Outcome
from vidsieve.tuner.judge.paired_accuracy import Accuracy
from vidsieve.tuner.judge.scoring import Step, run_examples
from vidsieve.tuner.judge.statistics import Interval, mcnemar_exact, paired_difference, wilson_interval
from vidsieve.tuner.protocol import Bench, Intervention


class Heldout:
    """The held-out examples and what has been seen of them; the uncompressed model is scored once."""

    def __init__(
        self,
        bench: Bench,
        examples: Sequence[Example],
        metric: str,
        *,
        max_drop_points: float = 1.0,
        seed: int = 0,
        step: Step = lambda what, done, total: None,
    ) -> None:
        self._bench, self._examples, self._metric = bench, examples, metric
        self._max_drop_points, self._seed, self._step = max_drop_points, seed, step
        self._baseline: tuple[Outcome, ...] | None = None

    def outcomes(self, policy: Intervention | None) -> tuple[Outcome, ...]:
        """Score a policy or a control on all held-out examples."""
        name = "uncompressed" if policy is None else policy.name
        return run_examples(self._bench, policy, self._examples, f"held-out: {name}", self._step)

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
        return paired_difference(differences, groups, level=level, seed=self._seed)

    def evaluator(self, outcomes: Sequence[Outcome], looks: int = 1) -> Accuracy:
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
            max_drop_points=self._max_drop_points,
            attained_retention=round(float(np.mean(kept)), 6) if kept else None,
            looks=looks,
        )
