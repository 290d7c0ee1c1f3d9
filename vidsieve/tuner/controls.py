"""Does the winner beat dropping tokens at random, or frames evenly, at the same latency?"""

from collections.abc import Sequence

from vidsieve.framework.policy import Policy
from vidsieve.framework.task import Outcome
from vidsieve.tuner.bounds import has_free_retention
from vidsieve.tuner.control import Control
from vidsieve.tuner.failure import reason_of, release_memory
from vidsieve.tuner.heldout import Heldout
from vidsieve.tuner.lab import Lab
from vidsieve.tuner.latency import Latency
from vidsieve.tuner.statistics import wilson_interval


def run_control(lab: Lab, heldout: Heldout, control: Policy, winner: Latency, ours: Sequence[Outcome]) -> Control:
    """Bring `control` to the winner's latency and score it on the held-out examples. A failure is a reason."""
    try:
        matched = match_latency(lab, control, winner.ratio.value)
        latency = lab.timer.measure(matched, lab.timings.trial)
        theirs = heldout.outcomes(matched)
        return Control(
            name=control.name,
            retention_ratio=matched.retention_ratio,
            latency=latency,
            accuracy=wilson_interval(sum(outcome.correct for outcome in theirs), len(theirs)),
            advantage=heldout.compare(ours, theirs),
        )
    except Exception as error:
        release_memory(error)
        return Control(name=control.name, reason=reason_of(error))


def match_latency(lab: Lab, control: Policy, latency_ratio: float) -> Policy:
    """`control` with the largest retention ratio predicted to be as fast as `latency_ratio` ÷ baseline."""
    missing = control.needs() - lab.bench.offers
    if missing:
        raise ValueError(f"needs {', '.join(sorted(missing))}")
    if not has_free_retention(control):
        return control
    low, high = control.attainable(lab.bench.shape)
    for ratio in (low, high):
        lab.probe(control.with_(retention_ratio=ratio), lab.timings.quick)
    curve = lab.curves[control.name]
    first = curve.solve(latency_ratio)
    if first is not None and low < first < high:
        lab.probe(control.with_(retention_ratio=first), lab.timings.quick)
    solved = curve.solve(latency_ratio)
    return control.with_(retention_ratio=low if solved is None else max(low, round(solved, 4)))
