"""A policy beside the uncompressed model on given examples: rates with intervals, and the paired change."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vidsieve.framework.task import Outcome
from vidsieve.tuner.judge.statistics import Interval, mcnemar_exact, paired_difference, wilson_interval


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Rates are fractions with Wilson intervals; `change` is policy minus uncompressed, resampled by video.

    `metric` is "accuracy" or "agreement" (with the uncompressed model). `lost` and `won` count examples that changed.
    `kinds` gives for each kind of question (examples, uncompressed rate, policy rate).
    """

    metric: str
    videos: int
    policy: Interval
    uncompressed: Interval
    change: Interval
    lost: int
    won: int
    attained_retention: float | None
    kinds: dict[str, tuple[int, float, float]]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for `json`; changes in percentage points."""
        return {
            "metric": self.metric,
            "examples": self.policy.n,
            "videos": self.videos,
            "policy": self.policy.to_dict(),
            "uncompressed": self.uncompressed.to_dict(),
            "change_points": self.change.scaled(100).to_dict(),
            "lost": self.lost,
            "won": self.won,
            "mcnemar_p": mcnemar_exact(self.lost, self.won),
            "attained_retention": self.attained_retention,
            "kinds": {
                kind: {"examples": n, "uncompressed": base, "policy": ours}
                for kind, (n, base, ours) in self.kinds.items()
            },
        }


def compare(metric: str, ours: Sequence[Outcome], base: Sequence[Outcome]) -> Comparison:
    """Put the outcomes of a policy beside those of the uncompressed model, example by example."""
    pairs = list(zip(ours, base, strict=True))
    changes = [a.correct - b.correct for a, b in pairs]
    kept = [a.retention_ratio for a in ours if a.retention_ratio is not None]
    kinds = {}
    for kind in sorted({a.kind for a in ours if a.kind}):
        rows = [(a.correct, b.correct) for a, b in pairs if a.kind == kind]
        kinds[kind] = (len(rows), sum(b for _, b in rows) / len(rows), sum(a for a, _ in rows) / len(rows))
    return Comparison(
        metric=metric,
        videos=len({a.group for a in ours}),
        policy=wilson_interval(sum(a.correct for a in ours), len(ours)),
        uncompressed=wilson_interval(sum(b.correct for b in base), len(base)),
        change=paired_difference(changes, [a.group for a in ours]),
        lost=sum(change < 0 for change in changes),
        won=sum(change > 0 for change in changes),
        attained_retention=sum(kept) / len(kept) if kept else None,
        kinds=kinds,
    )
