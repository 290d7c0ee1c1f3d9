"""Measure a policy against the uncompressed model: on examples with intervals, or on one request."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from vidsieve.framework.task import Outcome
from vidsieve.tuner.judge.statistics import Interval, mcnemar_exact, paired_difference, wilson_interval

if TYPE_CHECKING:
    from vidsieve.framework.policy.policy import Policy
    from vidsieve.framework.task import Example
    from vidsieve.harness.model_bench import Workbench
    from vidsieve.harness.session import Session
    from vidsieve.tuner.protocol import Metric

REQUESTS = 5


def evaluate(
    session: "Session",
    policy: "Policy",
    examples: "Sequence[Example]",
    metric: "Metric" = "ttft",
    *,
    warn: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Score a policy and the uncompressed model on the examples, then time them in turn.

    Gives plain types: `accuracy` (see `Comparison.to_dict`), `latency` (milliseconds) and what they were measured on.
    `warn` hears what makes the timings doubtful.
    """
    from vidsieve.tuner.measure.latency import PairedTimer
    from vidsieve.tuner.measure.measurement import Timings

    bench = session.bench
    # the policy first: if it cannot run here, that shows at once
    ours = list(bench.score(policy, examples))
    base = list(bench.score(None, examples))
    timer = PairedTimer(bench, metric)
    timer.warn = warn
    latency = timer.measure(policy, Timings.for_device(bench.describe()["device"]).final)
    return {
        "policy": policy.name,
        "policy_hash": policy.hash,
        "requested_retention": policy.retention_ratio,
        "accuracy": compare(session.task.metric, ours, base).to_dict(),
        "latency": latency.to_dict(),
        "measured_on": {**bench.describe(), "frames_taken": list(bench.frames_taken)},
    }


def answer_both(bench: "Workbench", policy: "Policy", example: "Example") -> dict[str, Any]:
    """Answer one example with and without a policy, and take the median of a few interleaved requests each.

    Gives plain types; times are milliseconds to the first token and their parts.
    """
    # the answers come first: they also warm up
    base, _ = bench.answer(None, example)
    answer, report = bench.answer(policy, example)
    assert report is not None
    times: dict[bool, list[dict[str, float]]] = {False: [], True: []}
    for _ in range(REQUESTS):
        for compressed in (False, True):
            times[compressed].append(dict(bench.timed(policy if compressed else None, 0, "ttft")))
    parts = {side: {name: median(t[name] for t in runs) for name in runs[0]} for side, runs in times.items()}
    return {
        "uncompressed": {"answer": base, "visual_tokens": report.baseline_tokens, **parts[False]},
        "compressed": {"answer": answer, "visual_tokens": report.kept_tokens, **parts[True]},
        "speedup": parts[False]["ttft_ms"] / parts[True]["ttft_ms"],
        "same_answer": base == answer,
        "requests": REQUESTS,
        "report": report.to_dict(),
    }


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
    """Compare the outcomes of a policy with those of the uncompressed model, example by example."""
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
