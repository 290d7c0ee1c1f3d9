"""What the tuner is handed and what it tells: `Bench` runs policies on a model, `Listener` hears how the search goes.

The tuner knows no model, no video file and no task; whoever owns them implements `Bench`.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from vidsieve.framework.policy import Policy
from vidsieve.framework.records import VideoShape
from vidsieve.framework.task import Example, Outcome

if TYPE_CHECKING:
    from vidsieve.tuner.result import TuneResult
    from vidsieve.tuner.statistics import Interval

Metric = Literal["ttft", "e2e"]
"""`ttft`: processor outputs on the device to first token. `e2e`: from the file to the last new token."""


@runtime_checkable
class Bench(Protocol):
    """A model on a device with a workload, as callables. Everywhere `policy=None` is the uncompressed model.

    Attributes:
      shape   sizes of a typical request's video: decides which retention ratios are attainable
      offers  inputs and signals the adapter can give; policies that need more are set aside with that reason
      clips   number of different clips that latency is measured on in turn; eight or more where there are as many
    """

    shape: VideoShape
    offers: frozenset[str]
    clips: int

    def describe(self) -> Mapping[str, str]:
        """Facts for provenance, as text: model, checkpoint, revision, device, dtype, attn, threads, frames, versions.

        Two benches with equal descriptions must give equal accuracies.
        """
        ...

    def clip_shape(self, clip_index: int) -> Hashable:
        """The token shape of a clip: equal shapes share their warm-up. Cheap."""
        ...

    def timed(self, policy: Policy | None, clip_index: int, metric: Metric) -> Mapping[str, float]:
        """Run one request and time it: wall clock, device synchronised on both sides.

        The answer must hold `ttft_ms` for metric "ttft" and `e2e_ms` for "e2e". Parts are welcome beside it, any of:
        video_ms (decoding), preprocess_ms, vision_ms, compress_ms, prefill_ms, decode_step_ms; `visual_tokens` too.
        """
        ...

    def score(self, policy: Policy | None, examples: Sequence[Example]) -> Iterable[Outcome]:
        """Answer the examples in their order, one outcome each; lazily if possible, so that progress shows.

        Deterministic: the same policy and example give the same outcome whatever stands beside it.
        """
        ...


Verdict = Literal["new best", "feasible", "worse", "too slow", "pruned", "failed", "repeated"]
"""worse: stopped early or too great a drop; too slow: latency misses the target; pruned: clearly worse than the best."""


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What is possible here, measured before the search. All in milliseconds of the metric, medians with intervals."""

    metric: Metric
    target_ms: float
    baseline: "Interval"
    floor: "Interval"
    floor_policy: str
    floor_retention: float | None
    already_met: bool
    policies: tuple[str, ...]
    set_aside: Mapping[str, str]
    trials: int
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TrialEvent:
    """One finished trial. `score` and `change_points` are of the search examples: never an accuracy claim.

    `number` counts from 1. `score` is the mean of `scorer` (p(gold) or 0/1); `change_points` the paired difference
    to the uncompressed model in percentage points. None where it was not measured.
    """

    number: int
    total: int
    policy: str
    retention: float | None
    settings: Mapping[str, object]
    latency: "Interval | None"
    score: float | None
    change_points: float | None
    scored: int
    verdict: Verdict
    reason: str = ""
    eta_s: float | None = None


class Listener:
    """Hears what happens; every method may be left as it is. Exceptions raised here end the search."""

    def step(self, what: str, done: int, total: int) -> None:
        """Progress inside one piece of work, such as ("score full model", 40, 200)."""

    def started(self, bounds: Bounds) -> None:
        """Bounds are measured; the search begins."""

    def trial(self, event: TrialEvent) -> None:
        """A trial is over."""

    def confirming(self, policy: Policy) -> None:
        """The search is over; this policy goes to latency confirmation and the held-out examples."""

    def finished(self, result: "TuneResult") -> None:
        """The result stands."""

    def interrupted(self, result: "TuneResult | None") -> None:
        """Ctrl-C came; `result` is the best so far, unconfirmed, or None if there was none yet."""
