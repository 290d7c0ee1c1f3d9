"""What the held-out examples say about a policy beside the uncompressed model."""

from dataclasses import dataclass
from typing import Any

from vidsieve.tuner.judge.statistics import Interval, examples_needed

MOST_TOLD = 1_000_000
"""An interval that would need more examples than this knows nothing."""


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Held-out results as fractions. `metric` is "accuracy", or "agreement" with the uncompressed model.

    `difference` is policy minus uncompressed with its clustered interval, `lost` and `won` the examples that changed.
    `certified`: the interval's upper end of the drop is at most `max_drop_points`; else `needed` says about how many
    held-out examples would be, or None when the measured drop is too great itself. `looks` is how many policies were
    tried on the held-out examples; the interval's level allows for it (Bonferroni).
    """

    metric: str
    n: int
    videos: int
    baseline: Interval
    policy: Interval
    difference: Interval
    lost: int
    won: int
    mcnemar_p: float
    max_drop_points: float
    attained_retention: float | None = None
    looks: int = 1

    @property
    def drop(self) -> Interval:
        """Uncompressed minus policy."""
        d = self.difference
        return Interval(-d.value, -d.high, -d.low, d.n, d.level)

    @property
    def certified(self) -> bool:
        """Whether the drop is at most `max_drop_points` at the interval's level."""
        return self.drop.high <= self.max_drop_points / 100

    @property
    def needed(self) -> int | None:
        """About how many examples would certify every other time, if the measured drop were the true one."""
        return examples_needed(self.drop, self.max_drop_points / 100, changed=self.lost + self.won > 0)

    @property
    def lacks(self) -> str:
        """What a certificate lacks, in words: a smaller drop, more examples, or more videos to tell by."""
        needed = self.needed
        if needed is None:
            return "the measured drop is larger"
        if needed > MOST_TOLD:
            return f"{self.videos} held-out {'video is' if self.videos == 1 else 'videos are'} too few to tell"
        return f"needs about {needed} held-out examples"

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and text, for provenance. Intervals of rates are fractions, those of changes are points."""
        return {
            "metric": self.metric,
            "split": "heldout",
            "examples": self.n,
            "videos": self.videos,
            "uncompressed": self.baseline.to_dict(),
            "policy": self.policy.to_dict(),
            "change_points": self.difference.scaled(100).to_dict(),
            "lost": self.lost,
            "won": self.won,
            "mcnemar_p": float(f"{self.mcnemar_p:.4g}"),
            "max_drop_points": self.max_drop_points,
            "certified": self.certified,
            "examples_needed": None if self.certified else self.needed,
            "looks": self.looks,
            "attained_retention": self.attained_retention,
        }
