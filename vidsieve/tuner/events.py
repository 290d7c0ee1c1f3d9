"""What the tuner tells while it works. The command line draws it; the default listener is silent."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from vidsieve.framework.policy.policy import Policy
from vidsieve.tuner.judge.statistics import Interval
from vidsieve.tuner.protocol import Metric
from vidsieve.tuner.result import TuneResult

Verdict = Literal["new best", "feasible", "too slow", "inaccurate", "pruned", "failed"]
"""too slow: the latency misses the target; inaccurate: the drop is too great where the target is met anyway;
pruned: scored on a part of the examples and clearly worse; failed: it raised, see the reason."""


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What is possible here, measured before the search: milliseconds of the metric, medians with intervals.

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
    """One finished trial. Score and change are of the search examples: they choose, they are no accuracy claim.

    `number` counts from 1. `score` is the mean over `scored` examples, `change_points` the paired difference to the
    uncompressed model in percentage points, `scorer` says of what: "p_gold" or "correct". None: not measured.
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


class Listener:
    """Hears what happens; override what you care about. An exception raised here ends the search."""

    def step(self, what: str, done: int, total: int) -> None:
        """Progress inside one piece of work, such as ("score uncompressed", 40, 200)."""

    def started(self, bounds: Bounds) -> None:
        """The bounds are measured; the search begins."""

    def trial(self, event: TrialEvent) -> None:
        """A trial is over."""

    def confirming(self, policy: Policy) -> None:
        """This policy goes to latency confirmation and then to the held-out examples."""

    def finished(self, result: TuneResult) -> None:
        """The result stands."""

    def told(self, text: str) -> None:
        """A sentence worth knowing: a search that goes on where it stopped, a check that was made."""

    def stopping(self) -> None:
        """Ctrl-C came while a trial runs: it is finished first. A second one stops at once."""

    def interrupted(self, result: TuneResult | None) -> None:
        """Ctrl-C came; `result` is the best so far, unconfirmed, or None if there was none yet."""
