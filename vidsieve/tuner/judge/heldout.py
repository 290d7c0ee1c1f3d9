"""The final judgement: the chosen policy and the uncompressed model on held-out examples, once, paired."""

from collections.abc import Sequence

from vidsieve.framework.task import Example, Outcome
from vidsieve.tuner.judge.paired_accuracy import Accuracy, change_interval, paired_accuracy
from vidsieve.tuner.judge.scoring import Step, run_examples
from vidsieve.tuner.judge.statistics import Interval
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

    def compare(self, ours: Sequence[Outcome], theirs: Sequence[Outcome]) -> Interval:
        """Compute the mean paired difference of 0/1 results, ours minus theirs, resampled by video."""
        return change_interval(ours, theirs, seed=self._seed)

    def accuracy(self, outcomes: Sequence[Outcome], looks: int = 1) -> Accuracy:
        """Judge a policy's outcomes beside the uncompressed model's."""
        paired = paired_accuracy(self._metric, outcomes, self.baseline, looks=looks, seed=self._seed)
        return Accuracy(**vars(paired), max_drop_points=self._max_drop_points, looks=looks)
