"""Does the winner beat dropping tokens at random, frames evenly, or simply giving the model less video?"""

from collections.abc import Sequence
from typing import get_args

from vidsieve.framework.policy.policy import Policy
from vidsieve.framework.task import Outcome
from vidsieve.tuner.controls.control import Control
from vidsieve.tuner.controls.match_latency import match_smaller
from vidsieve.tuner.controls.smaller_input import Kind, SmallerInput
from vidsieve.tuner.judge.heldout import Heldout
from vidsieve.tuner.judge.statistics import wilson_interval
from vidsieve.tuner.measure.bounds import has_free_retention
from vidsieve.tuner.measure.latency import Latency
from vidsieve.tuner.measure.measurement import Measurement
from vidsieve.tuner.protocol import Bench, Intervention
from vidsieve.tuner.trial_failure import POLICY_FAULTS, reason_of, release_memory


def controls_for(bench: Bench, policies: Sequence[Policy]) -> list[Intervention]:
    """`policies`, then each kind of smaller input that the bench can give, its size to be found by `run_control`."""
    kinds: tuple[Kind, ...] = get_args(Kind)
    return [*policies, *(SmallerInput(kind=kind, ratio=1.0) for kind in kinds if kind in bench.smaller)]


def run_control(
    measurement: Measurement, heldout: Heldout, control: Intervention, winner: Latency, ours: Sequence[Outcome]
) -> Control:
    """Bring `control` to the winner's latency and score it on the held-out examples. A failure is a reason."""
    left = measurement.seconds_left()
    if left is not None and left <= 0:
        return Control(name=control.name, kind=_kind(control), reason="time budget used up")
    try:
        matched, latency = _matched(measurement, control, winner)
        theirs = heldout.outcomes(matched)
        return Control(
            name=control.name,
            retention_ratio=_retention(matched, theirs),
            latency=latency,
            accuracy=wilson_interval(sum(outcome.correct for outcome in theirs), len(theirs)),
            advantage=heldout.compare(ours, theirs),
            kind=_kind(matched),
            input_ratio=round(matched.ratio, 6) if isinstance(matched, SmallerInput) else None,
        )
    except POLICY_FAULTS as error:
        release_memory(error)
        return Control(name=control.name, kind=_kind(control), reason=reason_of(error))


def _matched(measurement: Measurement, control: Intervention, winner: Latency) -> tuple[Intervention, Latency]:
    """`control` at the winner's latency, and the latency it has there."""
    if isinstance(control, SmallerInput):
        return match_smaller(measurement, control.kind, winner)
    policy = match_latency(measurement, control, winner.ratio.value)
    return policy, measurement.timer.measure(policy, measurement.timings.trial)


def _kind(control: Intervention) -> Kind | None:
    return control.kind if isinstance(control, SmallerInput) else None


def _retention(control: Intervention, outcomes: Sequence[Outcome]) -> float | None:
    """As asked of a policy; of a smaller input as its outcomes tell it."""
    if isinstance(control, Policy):
        return control.retention_ratio
    kept = [outcome.retention_ratio for outcome in outcomes if outcome.retention_ratio is not None]
    return round(sum(kept) / len(kept), 6) if kept else None


def match_latency(measurement: Measurement, control: Policy, latency_ratio: float) -> Policy:
    """`control` with the largest retention ratio predicted to be as fast as `latency_ratio` ÷ baseline."""
    missing = control.needs() - measurement.bench.offers
    if missing:
        raise ValueError(f"needs {', '.join(sorted(missing))}")
    if not has_free_retention(control):
        return control
    low, high = control.attainable(measurement.bench.shape)
    for ratio in (low, high):
        measurement.probe(control.with_(retention_ratio=ratio), measurement.timings.quick)
    curve = measurement.curves[control.name]
    first = curve.solve(latency_ratio)
    if first is not None and low < first < high:
        measurement.probe(control.with_(retention_ratio=first), measurement.timings.quick)
    solved = curve.solve(latency_ratio)
    return control.with_(retention_ratio=low if solved is None else max(low, round(solved, 4)))
