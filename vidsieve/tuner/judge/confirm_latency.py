"""Confirm latency apart from the runs that chose: retention shrinks until it fits, then grows while it does."""

from dataclasses import dataclass, replace

from vidsieve.framework.policy.policy import Policy
from vidsieve.tuner.measure.latency import Latency, TimingRules
from vidsieve.tuner.measure.measurement import Measurement
from vidsieve.tuner.measure.retention_limits import round_down
from vidsieve.tuner.space.knobs import has_free_retention, retention_window

STEPS = 8
LEAST_SHRINK = 0.97
MOST_SHRINK = 0.7
"""One step takes no more than this away: six of them still reach a tenth."""
LEAST_GROWTH = 1.02
"""Fewer tokens than this are not worth another measurement."""
MOST_GROWTH = 1.25
GROWTH_SECONDS = 240.0
"""No growing step begins after this long; shrinking to a policy that fits continues."""
HALF_WIDTH_RATIO = 0.007
"""A target that binds is worth more pairs: what the interval is wide cannot be spent on tokens."""
MOST_PAIRS = 1000


@dataclass(frozen=True)
class Confirmed:
    """A policy whose latency interval lies within the target. `fresh`: a process with nothing warm measured it."""

    policy: Policy
    latency: Latency
    fresh: bool = False


def confirm_latency(measurement: Measurement, policy: Policy, *, fresh: bool = False) -> Confirmed | None:
    """Measure `policy` afresh, paired with the uncompressed model; None if it cannot be made to fit in a few steps.

    Where the target binds, retention shrinks until a measurement fits, and from one that fits it grows to what is
    predicted to fit still; the last policy that fitted is the answer. No run that chose it counts, nor any of an
    earlier step. At the lower bound of its retention ratio a policy that does not fit is refused. `fresh` is kept with
    the result: whether `Measurement.fresh` gave a new process for this.
    """
    fitting: Confirmed | None = None
    too_much: float | None = None
    start = measurement.elapsed_s()
    for step in range(1, STEPS + 1):
        measurement.listener.step("confirm latency", step, STEPS)
        latency = measurement.timer.measure(policy, _rules(measurement))
        if meets_target(measurement, latency):
            fitting = Confirmed(policy, latency, fresh)
        else:
            too_much = policy.retention_ratio
        if fitting is None:
            following = _shrunk(measurement, policy, latency)
        elif measurement.elapsed_s() - start > GROWTH_SECONDS or (measurement.seconds_left() or 1.0) <= 0:
            following = None
        else:
            following = _grown(measurement, fitting, too_much)
        if following is None:
            break
        policy = following
    return fitting


def meets_target(measurement: Measurement, latency: Latency) -> bool:
    """Whether the upper end of the interval fits: of the milliseconds, or of the ratio for a relative target.

    Where the uncompressed model meets the target itself, a policy must also be faster than it.
    """
    if measurement.target.already_met and latency.ratio.high >= 1:
        return False
    return _of_target(measurement, latency) <= 1


def _rules(measurement: Measurement) -> TimingRules:
    """Make the timing rules: more pairs where the target binds, and an end once it is clearly missed."""
    rules = measurement.timings.final
    if measurement.target.already_met:
        return rules
    precise = min(rules.half_width_ratio, HALF_WIDTH_RATIO)
    rules = replace(rules, half_width_ratio=precise, max_pairs=max(rules.max_pairs, MOST_PAIRS))
    if measurement.request.latency_ms is not None:
        return replace(rules, above_ms=measurement.request.latency_ms)
    return replace(rules, above=measurement.target.ratio)


def _of_target(measurement: Measurement, latency: Latency) -> float:
    """Compute the upper end of the interval ÷ the target."""
    if measurement.request.latency_ms is not None:
        return latency.policy_ms.high / measurement.request.latency_ms
    return latency.ratio.high / measurement.target.ratio


def _solved(measurement: Measurement, policy: Policy, latency: Latency) -> float | None:
    """Solve the retention ratio whose upper end is predicted to be the target; None below all that was timed."""
    curve = measurement.curves.get(policy.name)
    if curve is None or not curve.points or policy.retention_ratio is None:
        return None
    # the curve was taken at the published settings; the candidate's own may shift it
    shift = latency.ratio.value / curve.predict(policy.retention_ratio)
    return curve.solve(latency.ratio.value / _of_target(measurement, latency) / shift)


def _shrunk(measurement: Measurement, policy: Policy, latency: Latency) -> Policy | None:
    """Lower the retention ratio to what the curve predicts to fit; None at its floor."""
    if measurement.target.already_met or not has_free_retention(policy) or policy.retention_ratio is None:
        return None
    ratio, low = policy.retention_ratio, policy.attainable(measurement.bench.shape)[0]
    if ratio <= low * (1 + 1e-6):
        return None
    predicted = _solved(measurement, policy, latency)
    # where noise has made the curve flat, what it predicts may lie at its very foot
    predicted = max(ratio * MOST_SHRINK, low if predicted is None else predicted)
    smaller = min(ratio * LEAST_SHRINK, predicted)
    return policy.with_(retention_ratio=max(low, round(smaller, 4)))


def _grown(measurement: Measurement, fitting: Confirmed, too_much: float | None) -> Policy | None:
    """Raise the retention ratio to what is predicted to fit still; None where little is to be gained.

    Never as much as what was measured not to fit: at most half-way there.
    """
    policy, latency = fitting.policy, fitting.latency
    if measurement.target.already_met or not has_free_retention(policy) or policy.retention_ratio is None:
        return None
    ratio, (low, high) = policy.retention_ratio, policy.attainable(measurement.bench.shape)
    predicted = _solved(measurement, policy, latency)
    if predicted is None:
        return None
    most = min(high, retention_window(policy)[1], ratio * MOST_GROWTH)
    if too_much is not None:
        most = min(most, (ratio + too_much) / 2)
    larger = round_down(min(predicted, most), low)
    return policy.with_(retention_ratio=larger) if larger >= ratio * LEAST_GROWTH else None
