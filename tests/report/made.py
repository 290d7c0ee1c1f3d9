"""Results to show: one from a real search on the fake bench, with everything a report can hold."""

from dataclasses import replace
from typing import Any

from tuner.fake_bench import FakeBench
from tuner.searching import Recorder, quality, search

from vidsieve.tuner.result import TrialEvent, TuneResult
from vidsieve.tuner.statistics import Interval

BREAKDOWN = {
    "uncompressed": {
        "video_ms": 80.0,
        "preprocess_ms": 20.5,
        "vision_ms": 150.25,
        "compress_ms": 0.0,
        "prefill_ms": 340.0,
        "decode_step_ms": 25.0,
        "e2e_ms": 615.75,
    },
    "policy": {
        "video_ms": 81.0,
        "preprocess_ms": 20.0,
        "vision_ms": 151.0,
        "compress_ms": 1.75,
        "prefill_ms": 90.0,
        "decode_step_ms": 22.0,
        "e2e_ms": 365.75,
    },
}
IMPORTANCE = {"policy": 0.61, "good/fake.score.power": 0.3, "good/retention_ratio": 0.09}


def found(**options: Any) -> TuneResult:
    """A search's result with trials, breakdown and importance, also where the search itself gave none."""
    recorder = Recorder()
    result = search(FakeBench(quality, noise=0.01), recorder, **options)
    return replace(result, trials=tuple(recorder.trials), breakdown=BREAKDOWN, importance=IMPORTANCE)


def trial(number: int, **fields: Any) -> TrialEvent:
    """A feasible trial of the policy `good`, changed as asked."""
    usual: dict[str, Any] = {
        "total": 16,
        "policy": "good",
        "retention_ratio": 0.3,
        "settings": {"fake.score.power": 1.5},
        "latency": Interval(190.0 + number, 188.0 + number, 193.0 + number, 10, 0.95),
        "score": 0.6,
        "change_points": -1.0,
        "scored": 100,
        "scorer": "p_gold",
        "verdict": "feasible",
    }
    return TrialEvent(number=number, **usual | fields)
