"""The result of a control at the winner's latency, and its warning."""

from dataclasses import dataclass
from typing import Any

from vidsieve.tuner.judge.statistics import Interval
from vidsieve.tuner.measure.latency import Latency
from vidsieve.tuner.protocol import Kind


@dataclass(frozen=True, kw_only=True)
class Control:
    """A control at the winner's latency. `advantage` is winner minus control; `reason` says why there is no result.

    `retention_ratio` is visual tokens ÷ those of the uncompressed model, as asked of a policy, as counted of a smaller
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
