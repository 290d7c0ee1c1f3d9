"""Records of a search (bounds, trials, the result with everything measured) and the listener that receives them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vidsieve.framework.policy.policy import Policy
from vidsieve.tuner.atomic_files import write_atomically
from vidsieve.tuner.measured import Accuracy, CompositionVerdict, Control, Latency
from vidsieve.tuner.request import Metric
from vidsieve.tuner.statistics import Interval, in_points, ms

Verdict = Literal["new best", "feasible", "too slow", "inaccurate", "pruned", "failed"]
"""too slow: the latency misses the target; inaccurate: the drop is too great where the target is met anyway;
pruned: scored on a part of the examples and clearly worse; failed: it raised, see the reason."""


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What can be reached, measured before the search: milliseconds of the metric, medians with intervals.

    `already_met`: the uncompressed model meets the target. `set_aside` gives, for each policy that takes no part,
    the reason. `limits` holds the largest retention ratio predicted to meet the target, by policy. `model_error` is the
    largest relative deviation of the timed `configurations` from the latency model, None before one is fitted.
    """

    metric: Metric
    target_ms: float
    baseline: Interval
    floor: Interval
    floor_policy: str
    already_met: bool
    policies: tuple[str, ...]
    limits: Mapping[str, float] = field(default_factory=dict)
    set_aside: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    model_error: float | None = None
    configurations: int = 0


@dataclass(frozen=True, kw_only=True)
class TrialEvent:
    """One finished trial. Score and change are on the search examples, which choose: they are no accuracy claim.

    `number` counts from 1. `score` is the mean over `scored` examples, `change_points` the paired difference to the
    uncompressed model in percentage points, `scorer` says of what: "p_gold" or "correct". None: not measured.
    `composed`: the policy is a composition nobody published.
    """

    number: int
    total: int
    policy: str
    retention_ratio: float | None
    settings: Mapping[str, Any]
    latency: Interval | None
    score: float | None
    change_points: float | None
    scored: int
    scorer: str
    verdict: Verdict
    reason: str = ""
    eta_s: float | None = None
    composed: bool = False


@dataclass(frozen=True, eq=False, kw_only=True)
class TuneResult:
    """The outcome of a search. `policy` carries it all as provenance; `yaml` is the file.

    `accuracy` is None and `confirmed` False when an interruption came before the final judgement. `latency` is None
    for the policy that removes nothing, which is the uncompressed model itself. `trials` are all trials in order.
    `breakdown` holds, for "uncompressed" and for "policy", the median milliseconds of each part of a whole request:
    video_ms, preprocess_ms, vision_ms, compress_ms, prefill_ms, decode_step_ms, and their sum as e2e_ms.
    `importance` says how much of the score each searched setting explains, as fractions. `composition` is there where
    compositions were searched: the best of them against the best published policy.
    """

    policy: Policy
    target_ms: float
    already_met: bool
    latency: Latency | None
    accuracy: Accuracy | None
    confirmed: bool
    controls: tuple[Control, ...] = ()
    composition: CompositionVerdict | None = None
    warnings: tuple[str, ...] = ()
    search: Mapping[str, Any] = field(default_factory=dict)
    trials: tuple[TrialEvent, ...] = ()
    breakdown: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    importance: Mapping[str, float] = field(default_factory=dict)

    @property
    def yaml(self) -> str:
        """The policy file, provenance included."""
        return self.policy.to_yaml()

    def save(self, path: str | Path, *, force: bool = False) -> Path:
        """Write the policy file, whole or not at all.

        Raises:
            UsageError: the file exists and `force` is not given, or its folder cannot be written to.
            TuneError: the disk refused.
        """
        return write_atomically(path, self.yaml, force=force)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain numbers and text, for JSON."""
        return self.policy.to_dict()

    def sentences(self) -> list[str]:
        """Write the verdict in sentences: target, latency, accuracy, certificate, compositions, then each warning."""
        lines = [self._target_sentence(), self._latency_sentence(), *self._accuracy_sentences()]
        lines += [self.composition.sentence] if self.composition is not None else []
        return [line for line in lines if line] + [f"warning: {text}" for text in self.warnings]

    def _target_sentence(self) -> str:
        if self.already_met and self.policy.is_empty:
            return f"The uncompressed model is within {ms(self.target_ms)} ms, and no policy was worth it."
        if self.already_met:
            return f"The uncompressed model is within {ms(self.target_ms)} ms already; this is the fastest policy."
        return ""

    def _latency_sentence(self) -> str:
        if self.latency is None:
            return ""
        ours, base, ratio = self.latency.policy_ms, self.latency.baseline_ms, self.latency.ratio
        precise = "" if self.latency.stopped == "precise" else f", not steadier than ±{_reached(self.latency):.1%}"
        return (
            f"{'confirmed' if self.confirmed else 'not confirmed:'} {self.latency.metric}_ms {ms(ours.value)} "
            f"[{ms(ours.low)}, {ms(ours.high)}] beside {ms(base.value)} uncompressed, {1 / ratio.value:.2f}× "
            f"[{1 / ratio.high:.2f}, {1 / ratio.low:.2f}] ({ours.n} pairs{precise})"
        )

    def _accuracy_sentences(self) -> list[str]:
        if self.accuracy is None:
            return ["held-out examples were not scored"]
        a, change = self.accuracy, self.accuracy.difference.scaled(100)
        lines = [
            f"held-out {a.metric} {a.policy.value:.1%}, uncompressed {a.baseline.value:.1%}, "
            f"change {change.value:+.1f} points [{change.low:+.1f}, {change.high:+.1f}] "
            f"(n={a.n}, {a.videos} videos, {change.level:.3g} interval, "
            f"{a.lost} lost, {a.won} won)"
        ]
        if self.policy.is_empty:
            return lines
        if a.certified:
            return [*lines, f"certified: the drop is at most {in_points(a.max_drop_points)}"]
        return [*lines, f"not certified for a drop of at most {in_points(a.max_drop_points)}: {a.lacks}"]


def _reached(latency: Latency) -> float:
    """Return the half-width that was reached, as a fraction."""
    return max(latency.policy_ms.half_width_ratio, latency.ratio.half_width_ratio)


class Listener:
    """Receive the events of a search; override what is needed. An exception raised here ends the search."""

    def step(self, what: str, done: int, total: int) -> None:
        """Receive progress inside one piece of work, such as ("score uncompressed", 40, 200)."""

    def started(self, bounds: Bounds) -> None:
        """Receive the measured bounds when the search begins."""

    def trial(self, event: TrialEvent) -> None:
        """Receive a finished trial."""

    def confirming(self, policy: Policy) -> None:
        """Receive the policy that goes to latency confirmation and then to the held-out examples."""

    def finished(self, result: TuneResult) -> None:
        """Receive the result."""

    def notice(self, text: str) -> None:
        """Receive a sentence for the user, such as that a study is resumed."""

    def stopping(self) -> None:
        """Receive Ctrl-C during a trial: the trial is finished first; a second Ctrl-C stops at once."""

    def interrupted(self, result: TuneResult | None) -> None:
        """Receive the best result so far, or None, when Ctrl-C or an error ends the search."""
