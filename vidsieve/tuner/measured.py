"""Records of what was measured: a policy's latency and paired accuracy, and a control's at the winner's latency."""

from dataclasses import dataclass, field
from typing import Any, Literal

from vidsieve.tuner.protocol import Kind, Metric
from vidsieve.tuner.statistics import Interval, examples_needed

PROTOCOL = "abba-interleaved-v1"
Stop = Literal["precise", "decided", "pairs", "seconds"]
MOST_REPORTED = 1_000_000
"""An interval that would need more examples than this is no estimate."""


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Medians with order-statistic intervals. `ratio` is the median of policy ÷ baseline over pairs on one clip.

    `parts_ms` and `baseline_parts_ms` are medians of whatever parts the bench reported. `stopped` says why timing
    ended; unless "precise", the intervals are wider than requested. `policy_p95_ms` is there
    from 59 runs on. `throttled_pairs` were dropped because the device's clock was low; `throttled_kept` were low too,
    and counted because the clock would not recover.
    """

    metric: Metric
    policy_ms: Interval
    baseline_ms: Interval
    ratio: Interval
    stopped: Stop
    parts_ms: dict[str, float] = field(default_factory=dict)
    baseline_parts_ms: dict[str, float] = field(default_factory=dict)
    policy_p95_ms: Interval | None = None
    throttled_pairs: int = 0
    throttled_kept: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers and text, for provenance."""
        numbers: dict[str, Any] = {
            "metric": f"{self.metric}_ms",
            "protocol": PROTOCOL,
            "policy_ms": self.policy_ms.to_dict(),
            "baseline_ms": self.baseline_ms.to_dict(),
            "ratio": self.ratio.to_dict(),
            "stopped": self.stopped,
            "parts_ms": {key: round(value, 4) for key, value in self.parts_ms.items()},
            "baseline_parts_ms": {key: round(value, 4) for key, value in self.baseline_parts_ms.items()},
        }
        if self.policy_p95_ms is not None:
            numbers["policy_p95_ms"] = self.policy_p95_ms.to_dict()
        counts = {"throttled_pairs": self.throttled_pairs, "throttled_kept": self.throttled_kept}
        return numbers | {name: count for name, count in counts.items() if count}


@dataclass(frozen=True, kw_only=True)
class PairedAccuracy:
    """Results as fractions. `metric` is "accuracy", or "agreement" with the uncompressed model.

    `difference` is policy minus uncompressed with its interval, clustered by video; `lost` and `won` count the examples
    that changed.
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
    attained_retention: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers and text. Intervals of rates are fractions, those of changes are points."""
        return {
            "metric": self.metric,
            "examples": self.n,
            "videos": self.videos,
            "uncompressed": self.baseline.to_dict(),
            "policy": self.policy.to_dict(),
            "change_points": self.difference.scaled(100).to_dict(),
            "lost": self.lost,
            "won": self.won,
            "mcnemar_p": float(f"{self.mcnemar_p:.4g}"),
            "attained_retention": self.attained_retention,
        }


@dataclass(frozen=True, kw_only=True)
class Accuracy(PairedAccuracy):
    """Held-out results and whether they certify a drop of at most `max_drop_points` percentage points.

    `certified`: the interval's upper end of the drop is at most that; else `needed` says about how many held-out
    examples would be, or None when the measured drop is too great itself. `looks` is how many policies were tried on
    the held-out examples; the interval's level allows for it (Bonferroni).
    """

    max_drop_points: float
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
        """About how many examples would certify in every second study, if the measured drop were the true one."""
        return examples_needed(self.drop, self.max_drop_points / 100, changed=self.lost + self.won > 0)

    @property
    def lacks(self) -> str:
        """What a certificate lacks, in words: a smaller drop, more examples, or more videos to tell by."""
        needed = self.needed
        if needed is None:
            return "the measured drop is larger"
        if needed > MOST_REPORTED:
            return f"{self.videos} held-out {'video is' if self.videos == 1 else 'videos are'} too few to tell"
        return f"needs about {needed} held-out examples"

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers and text, for provenance."""
        return super().to_dict() | {
            "split": "heldout",
            "max_drop_points": self.max_drop_points,
            "certified": self.certified,
            "examples_needed": None if self.certified else self.needed,
            "looks": self.looks,
        }


@dataclass(frozen=True, kw_only=True)
class Control:
    """A control at the winner's latency. `advantage` is winner minus control; `reason` says why there is no result.

    `retention_ratio` is visual tokens ÷ those of the uncompressed model, as set for a policy, as counted for a smaller
    input. For a smaller input `kind` says what was made smaller, and `input_ratio` is the share of the frames, or of
    the pixels of a frame, that was left.
    """

    name: str
    retention_ratio: float | None = None
    latency: Latency | None = None
    accuracy: Interval | None = None
    advantage: Interval | None = None
    kind: Kind | None = None
    input_ratio: float | None = None
    reason: str = ""

    @property
    def warning(self) -> str:
        """Empty if the winner is better beyond the interval; otherwise a sentence."""
        if self.advantage is None:
            return f"control {self.name} could not be measured: {self.reason}"
        points = self.advantage.scaled(100)
        comparison = f"{self.name} at {self._pace}: {points.value:+.1f} points [{points.low:+.1f}, {points.high:+.1f}]"
        if points.value <= 0:
            return f"the policy does not beat the control {comparison}"
        return "" if points.low > 0 else f"not clearly better than the control {comparison}"

    @property
    def _pace(self) -> str:
        """State the latency; a smaller input moves in steps, so the step reached is named."""
        if self.kind is None or self.latency is None:
            return "the same latency"
        return f"{self.latency.ratio.value:.0%} of the uncompressed time"

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers and text, for provenance."""
        numbers = {
            "name": self.name,
            "retention_ratio": self.retention_ratio,
            "latency_ratio": self.latency.ratio.to_dict() if self.latency else None,
            "accuracy": self.accuracy.to_dict() if self.accuracy else None,
            "winner_minus_control_points": self.advantage.scaled(100).to_dict() if self.advantage else None,
        }
        more = {"kind": self.kind, "input_ratio": self.input_ratio, "reason": self.reason or None}
        return numbers | {name: value for name, value in more.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class CompositionVerdict:
    """Whether the best composition beats the best published policy, on held-out examples at equal latency.

    `difference` is composition minus published policy; None where there is none, for the `reason` given. The latency
    ratios are those that both were measured at, ÷ uncompressed. `tried` counts the trials of compositions.
    """

    tried: int
    composition: str | None = None
    published: str | None = None
    difference: Interval | None = None
    composition_latency_ratio: float | None = None
    published_latency_ratio: float | None = None
    reason: str = ""

    @property
    def beat(self) -> bool:
        """Whether the composition is better beyond the interval."""
        return self.difference is not None and self.difference.low > 0

    @property
    def sentence(self) -> str:
        """Write the verdict as a sentence, whichever way it came out."""
        if self.difference is None and self.composition is not None and self.published is None:
            return f"the composition {self.composition} stands alone: {self.reason}"
        if self.difference is None:
            return f"no composition beat the best published policy: {self.reason}"
        points = self.difference.scaled(100)
        by = f"{points.value:+.1f} points [{points.low:+.1f}, {points.high:+.1f}] on held-out examples, {self._pace}"
        rival = f"the best published policy, {self.published}"
        if points.value <= 0:
            return f"no composition beat {rival}; the best, {self.composition}: {by}"
        return f"the composition {self.composition} {'beat' if self.beat else 'did not clearly beat'} {rival}: {by}"

    @property
    def _pace(self) -> str:
        return (
            f"at {self.composition_latency_ratio:.1%} and {self.published_latency_ratio:.1%} of the uncompressed time"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers and text, for provenance."""
        return {
            "trials": self.tried,
            "composition": self.composition,
            "published": self.published,
            "beat": self.beat,
            "composition_minus_published_points": self.difference.scaled(100).to_dict() if self.difference else None,
            "composition_latency_ratio": self.composition_latency_ratio,
            "published_latency_ratio": self.published_latency_ratio,
        } | ({"reason": self.reason} if self.reason else {})
