"""One search on the fake bench: two policies, two controls, and a listener that remembers."""

from typing import Any

from tuner.fake_bench import FakeBench, FakeTask, fake_policy

from vidsieve.framework.policy.policy import Policy
from vidsieve.tuner.request import TuneRequest
from vidsieve.tuner.result import Bounds, Listener, TrialEvent, TuneResult
from vidsieve.tuner.tuning import tune

BEST_POWER = 1.4
GOOD = {"good": 0.0, "bad": -0.25, "random": -0.15, "uniform-frames": -0.2}


def quality(policy: Policy) -> float:
    """More tokens are better; `good` loses little, and less still with power near 1.4."""
    ratio = policy.retention_ratio or 1.0
    tuned = getattr(policy.stages[0].stage, "power", 1.0)
    return 0.9 + GOOD[policy.name] - 0.05 * (1 - ratio) ** 2 - 0.1 * abs(tuned - BEST_POWER)


class Recorder(Listener):
    def __init__(self) -> None:
        self.bounds: Bounds | None = None
        self.trials: list[TrialEvent] = []
        self.confirmed: list[Policy] = []
        self.ends: list[tuple[str, TuneResult | None]] = []

    def started(self, bounds: Bounds) -> None:
        self.bounds = bounds

    def trial(self, event: TrialEvent) -> None:
        self.trials.append(event)

    def confirming(self, policy: Policy) -> None:
        self.confirmed.append(policy)

    def finished(self, result: TuneResult) -> None:
        self.ends.append(("finished", result))

    def interrupted(self, result: TuneResult | None) -> None:
        self.ends.append(("interrupted", result))


def search(
    bench: FakeBench, listener: Listener | None = None, *, task: FakeTask | None = None, **options: Any
) -> TuneResult:
    request = TuneRequest(**({"latency_ms": 200.0, "trials": 16, "examples": 100} | options))
    policies = [fake_policy("good"), fake_policy("bad")]
    controls = [fake_policy("random"), fake_policy("uniform-frames")]
    return tune(bench, task or FakeTask(), request, policies=policies, controls=controls, listener=listener)
