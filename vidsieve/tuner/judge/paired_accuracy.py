"""Compare the accuracy of a policy with the uncompressed model, paired: rates, change and certificate.

`vidsieve tune` and `vidsieve eval` both judge by these.
"""

from collections.abc import Sequence

from vidsieve.framework.task import Example, Outcome
from vidsieve.tuner.measure.scoring import Step, run_examples
from vidsieve.tuner.measured import Accuracy, PairedAccuracy
from vidsieve.tuner.protocol import Bench, Intervention
from vidsieve.tuner.statistics import Interval, mcnemar_exact, paired_difference, wilson_interval


def paired_accuracy(
    metric: str, ours: Sequence[Outcome], base: Sequence[Outcome], *, looks: int = 1, seed: int = 0
) -> PairedAccuracy:
    """Compare a policy's outcomes with the uncompressed model's, example by example.

    The interval of the change is at 95 %, divided among `looks` policies tried on the examples (Bonferroni).
    """
    kept = [outcome.retention_ratio for outcome in ours if outcome.retention_ratio is not None]
    changes = [a.correct - b.correct for a, b in zip(ours, base, strict=True)]
    lost, won = sum(change < 0 for change in changes), sum(change > 0 for change in changes)
    return PairedAccuracy(
        metric=metric,
        n=len(ours),
        videos=len({outcome.group for outcome in ours}),
        baseline=wilson_interval(sum(outcome.correct for outcome in base), len(base)),
        policy=wilson_interval(sum(outcome.correct for outcome in ours), len(ours)),
        difference=change_interval(ours, base, level=1 - 0.05 / looks, seed=seed),
        lost=lost,
        won=won,
        mcnemar_p=mcnemar_exact(lost, won),
        attained_retention=round(sum(kept) / len(kept), 6) if kept else None,
    )


def change_interval(
    ours: Sequence[Outcome], theirs: Sequence[Outcome], *, level: float = 0.95, seed: int = 0
) -> Interval:
    """Compute the mean paired difference of 0/1 results, ours minus theirs, resampled by video."""
    changes = [a.correct - b.correct for a, b in zip(ours, theirs, strict=True)]
    return paired_difference(changes, [outcome.group for outcome in ours], level=level, seed=seed)


def rates_by_kind(ours: Sequence[Outcome], base: Sequence[Outcome]) -> dict[str, tuple[int, float, float]]:
    """Count the examples of each kind of question, with the rates of the uncompressed model and of the policy."""
    kinds = {}
    for kind in sorted({outcome.kind for outcome in ours if outcome.kind}):
        rows = [(a.correct, b.correct) for a, b in zip(ours, base, strict=True) if a.kind == kind]
        kinds[kind] = (len(rows), sum(b for _, b in rows) / len(rows), sum(a for a, _ in rows) / len(rows))
    return kinds


class Heldout:
    """Score and judge policies on the held-out examples; the uncompressed model is scored once."""

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

    def outcomes(self, policy: Intervention | None, most: int | None = None) -> tuple[Outcome, ...]:
        """Score a policy or a control on all held-out examples, or on the first `most` of them."""
        name = "uncompressed" if policy is None else policy.name
        return run_examples(self._bench, policy, self._examples[:most], f"held-out: {name}", self._step)

    @property
    def baseline(self) -> tuple[Outcome, ...]:
        """The uncompressed model's outcomes."""
        if self._baseline is None:
            self._baseline = self.outcomes(None)
        return self._baseline

    def compare(self, ours: Sequence[Outcome], theirs: Sequence[Outcome]) -> Interval:
        """Compute the mean paired difference of 0/1 results, ours minus theirs, resampled by video.

        Where they were scored on fewer, the examples that both were scored on are compared.
        """
        shared = min(len(ours), len(theirs))
        return change_interval(ours[:shared], theirs[:shared], seed=self._seed)

    def accuracy(self, outcomes: Sequence[Outcome], looks: int = 1) -> Accuracy:
        """Judge a policy's outcomes against the uncompressed model's."""
        paired = paired_accuracy(self._metric, outcomes, self.baseline, looks=looks, seed=self._seed)
        return Accuracy(**vars(paired), max_drop_points=self._max_drop_points, looks=looks)
