"""Where the time of a whole request goes, from the file to the last token, with the policy and without it."""

from vidsieve.tuner.measure.latency import PairedTimer, TimingRules
from vidsieve.tuner.measure.measurement import Measurement
from vidsieve.tuner.protocol import Intervention
from vidsieve.tuner.trial_failure import POLICY_FAULTS, reason_of, release_memory

PARTS = ("video_ms", "preprocess_ms", "vision_ms", "compress_ms", "prefill_ms", "decode_step_ms", "e2e_ms")
RULES = TimingRules(warmup=1, min_pairs=6, max_pairs=12, max_seconds=10.0, half_width_ratio=0.04)


def measure_breakdown(measurement: Measurement, policy: Intervention) -> dict[str, dict[str, float]]:
    """Median milliseconds of the parts, by "uncompressed" and "policy", over a few interleaved whole requests.

    A bench that cannot run whole requests gives {} and a warning of the lab.
    """
    try:
        timer = PairedTimer(measurement.bench, "e2e", measurement.clock)
        timer.warn = measurement.warn
        latency = timer.measure(policy, RULES)
    except POLICY_FAULTS as error:
        release_memory(error)
        measurement.warn(f"the breakdown of a whole request could not be measured: {reason_of(error)}")
        return {}
    sides = {"uncompressed": latency.baseline_parts_ms, "policy": latency.parts_ms}
    return {side: {part: parts[part] for part in PARTS if part in parts} for side, parts in sides.items()}
