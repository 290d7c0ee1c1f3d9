"""Measure a policy against the uncompressed model: on examples with intervals, or on one request."""

from collections.abc import Callable, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vidsieve.framework.policy.policy import Policy
    from vidsieve.framework.report import Report
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

    Gives plain types: `accuracy` (see `PairedAccuracy`), `latency` (milliseconds), what they were measured on, and the
    work of encoding clips (see `EncodingWork`).
    `warn` is called with what makes the timings doubtful.
    """
    from vidsieve.tuner.judge.paired_accuracy import paired_accuracy, rates_by_kind
    from vidsieve.tuner.measure.latency import PairedTimer
    from vidsieve.tuner.measure.measurement import Timings

    bench = session.bench
    # the policy first: if it cannot run here, that shows at once
    ours = list(bench.score(policy, examples))
    base = list(bench.score(None, examples))
    kinds = {
        kind: {"examples": n, "uncompressed": theirs, "policy": rate}
        for kind, (n, theirs, rate) in rates_by_kind(ours, base).items()
    }
    timer = PairedTimer(bench, metric)
    timer.warn = warn
    latency = timer.measure(policy, Timings.for_device(bench.describe()["device"]).final)
    return {
        "policy": policy.name,
        "policy_hash": policy.hash,
        "requested_retention": policy.retention_ratio,
        "accuracy": paired_accuracy(session.task.metric, ours, base).to_dict() | {"kinds": kinds},
        "latency": latency.to_dict(),
        "measured_on": {**bench.describe(), "frames_taken": list(bench.frames_taken)},
    } | ({} if bench.encoding is None else {"encoding": bench.encoding.to_dict()})


def answer_both(
    bench: "Workbench", policy: "Policy", example: "Example", *, requests: int = REQUESTS
) -> "tuple[dict[str, Any], Report]":
    """Answer one example with and without a policy, and take the median of `requests` interleaved ones each.

    Gives plain types, and the report behind them; times are milliseconds to the first token and their parts.
    """
    # the answers come first: they also warm up
    base, _ = bench.answer(None, example)
    answer, report = bench.answer(policy, example)
    assert report is not None
    times: dict[bool, list[dict[str, float]]] = {False: [], True: []}
    for _ in range(requests):
        for compressed in (False, True):
            times[compressed].append(dict(bench.timed(policy if compressed else None, 0, "ttft")))
    parts = {side: {name: median(t[name] for t in runs) for name in runs[0]} for side, runs in times.items()}
    told = {
        "uncompressed": {"answer": base, "visual_tokens": report.baseline_tokens, **parts[False]},
        "compressed": {"answer": answer, "visual_tokens": report.kept_tokens, **parts[True]},
        "speedup": parts[False]["ttft_ms"] / parts[True]["ttft_ms"],
        "same_answer": base == answer,
        "requests": requests,
        "report": report.to_dict(),
    }
    return told, report
