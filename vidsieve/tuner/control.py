"""A control beside the winner: what came of it, and what to say about it."""

from dataclasses import dataclass
from typing import Any

from vidsieve.tuner.latency import Latency
from vidsieve.tuner.statistics import Interval


@dataclass(frozen=True, kw_only=True)
class Control:
    """A control at the winner's latency. `advantage` is winner minus control; `reason` says why there is no result."""

    name: str
    retention_ratio: float | None = None
    latency: Latency | None = None
    accuracy: Interval | None = None
    advantage: Interval | None = None
    reason: str = ""

    @property
    def warning(self) -> str:
        """Empty if the winner is better beyond the interval; otherwise a sentence."""
        if self.advantage is None:
            return f"control {self.name} could not be measured: {self.reason}"
        points = self.advantage.scaled(100)
        told = f"{points.value:+.1f} points [{points.low:+.1f}, {points.high:+.1f}]"
        if points.value <= 0:
            return f"the policy does not beat the control {self.name} at the same latency: {told}"
        return "" if points.low > 0 else f"not clearly better than the control {self.name} at the same latency: {told}"

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and text, for provenance."""
        return {
            "name": self.name,
            "retention_ratio": self.retention_ratio,
            "latency_ratio": self.latency.ratio.to_dict() if self.latency else None,
            "accuracy": self.accuracy.to_dict() if self.accuracy else None,
            "winner_minus_control_points": self.advantage.scaled(100).to_dict() if self.advantage else None,
        } | ({"reason": self.reason} if self.reason else {})
