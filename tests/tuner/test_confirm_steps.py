"""Confirmation takes tokens away in bounded steps."""

from tuner.fake_bench import FakeBench, fake_policy
from tuner.searching import quality

from vidsieve.tuner.confirm import MOST_SHRINK, confirm_latency
from vidsieve.tuner.curve import RetentionCurve
from vidsieve.tuner.events import Listener
from vidsieve.tuner.lab import Lab
from vidsieve.tuner.request import TuneRequest


def test_a_flat_curve_does_not_throw_the_policy_to_its_floor() -> None:
    bench = FakeBench(quality)
    lab = Lab.open(bench, TuneRequest(latency_ms=240.0), Listener(), None, lambda: 0.0)
    lab.baseline_ms, lab.target_ratio = 500.0, 240 / 500
    # a curve that noise has pooled into one level: every latency below it is predicted at the foot alone
    lab.curves["good"] = RetentionCurve([(0.01, 0.5, 0.01), (0.5, 0.5, 0.01)])
    found = confirm_latency(lab, fake_policy("good", retention_ratio=0.45))
    assert found is not None
    # 0.41 is where the target truly lies
    assert 0.41 * MOST_SHRINK <= (found.policy.retention_ratio or 0) <= 0.42
