"""Latency measured again, apart from the runs that chose, with retention shrunk until the interval fits the target."""

from dataclasses import dataclass

from vidsieve.framework.policy import Policy
from vidsieve.tuner.bounds import has_free_retention
from vidsieve.tuner.lab import Lab
from vidsieve.tuner.latency import Latency

STEPS = 6
LEAST_SHRINK = 0.97
MOST_SHRINK = 0.7
"""One step takes no more than this away: six of them still reach a tenth."""


@dataclass(frozen=True)
class Confirmed:
    """A policy whose latency interval lies within the target. `fresh`: a process with nothing warm measured it."""

    policy: Policy
    latency: Latency
    steps: int
    fresh: bool = False


def confirm_latency(lab: Lab, policy: Policy, *, fresh: bool = False) -> Confirmed | None:
    """Measure `policy` afresh beside the uncompressed model; None if it cannot be made to fit in a few steps.

    No run that chose it counts, nor any of an earlier step. At the lower bound of its retention ratio a policy that
    does not fit is refused. `fresh` is kept with the result: whether `Lab.fresh` gave a new process for this.
    """
    for step in range(1, STEPS + 1):
        lab.listener.step("confirm latency", step, STEPS)
        latency = lab.timer.measure(policy, lab.timings.final)
        if meets_target(lab, latency):
            return Confirmed(policy, latency, step, fresh)
        smaller = _shrunk(lab, policy, latency)
        if smaller is None:
            return None
        policy = smaller
    return None


def meets_target(lab: Lab, latency: Latency) -> bool:
    """Whether the upper end of the interval fits: of the milliseconds, or of the ratio for a relative target.

    Where the uncompressed model meets the target itself, a policy must also be faster than it.
    """
    if lab.already_met and latency.ratio.high >= 1:
        return False
    if lab.request.latency_ms is not None:
        return latency.policy_ms.high <= lab.request.latency_ms
    return latency.ratio.high <= lab.target_ratio


def _shrunk(lab: Lab, policy: Policy, latency: Latency) -> Policy | None:
    """`policy` with the retention ratio its curve predicts to fit, or None at its floor."""
    if lab.already_met or not has_free_retention(policy) or policy.retention_ratio is None:
        return None
    ratio, low = policy.retention_ratio, policy.attainable(lab.bench.shape)[0]
    if ratio <= low * (1 + 1e-6):
        return None
    if lab.request.latency_ms is not None:
        excess = latency.policy_ms.high / lab.request.latency_ms
    else:
        excess = latency.ratio.high / lab.target_ratio
    curve = lab.curves[policy.name]
    # the curve was taken at the published settings; the candidate's own may shift it
    shift = latency.ratio.value / curve.predict(ratio)
    predicted = curve.solve(latency.ratio.value / excess / shift)
    # where noise has made the curve flat, what it predicts may lie at its very foot
    predicted = max(ratio * MOST_SHRINK, low if predicted is None else predicted)
    smaller = min(ratio * LEAST_SHRINK, predicted)
    return policy.with_(retention_ratio=max(low, round(smaller, 4)))
