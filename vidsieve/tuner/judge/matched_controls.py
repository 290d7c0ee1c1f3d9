"""Measure rivals at the winner's latency: random tokens, even frames, or less video; and of compositions and
published policies, the best of the other side.
"""

import bisect
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import NamedTuple, get_args

from vidsieve.framework.errors import TuneError
from vidsieve.framework.policy.policy import Policy
from vidsieve.framework.records import VideoShape
from vidsieve.framework.task import Outcome
from vidsieve.tuner.judge.finals import Confirmed
from vidsieve.tuner.judge.paired_accuracy import Heldout
from vidsieve.tuner.measure.bounds import has_free_retention
from vidsieve.tuner.measure.latency import TimingRules
from vidsieve.tuner.measure.measurement import Measurement
from vidsieve.tuner.measured import CompositionVerdict, Control, Latency
from vidsieve.tuner.protocol import Bench, Intervention, Kind, SmallerInput
from vidsieve.tuner.space.candidate import COMPOSED
from vidsieve.tuner.statistics import Interval, wilson_interval
from vidsieve.tuner.study.record import TrialResult
from vidsieve.tuner.trial_failure import POLICY_FAULTS, reason_of, release_memory

CONTROL_EXAMPLES = 200
"""Held-out examples that a control is scored on: it lies far behind, or does not matter."""
ABOVE_WINNER = 1.25
"""A control costs about what the winner does: its latency is sought up to this times the winner's retention ratio."""


def controls_for(bench: Bench, policies: Sequence[Policy]) -> list[Intervention]:
    """List `policies`, then each kind of smaller input that the bench can give; `run_control` finds its size."""
    kinds: tuple[Kind, ...] = get_args(Kind)
    return [*policies, *(SmallerInput(kind=kind, ratio=1.0) for kind in kinds if kind in bench.smaller)]


def run_control(
    measurement: Measurement,
    heldout: Heldout,
    control: Intervention,
    winner: Confirmed,
    ours: Sequence[Outcome],
    *,
    most: int | None = CONTROL_EXAMPLES,
) -> Control:
    """Bring `control` to the winner's latency and score it on held-out examples, at `most` so many.

    A failure is a reason.
    """
    left = measurement.seconds_left()
    if left is not None and left <= 0:
        return Control(name=control.name, kind=_kind(control), reason="time budget used up")
    try:
        matched, latency = _matched(measurement, control, winner)
        theirs = heldout.outcomes(matched, most)
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


def _matched(measurement: Measurement, control: Intervention, winner: Confirmed) -> tuple[Intervention, Latency]:
    """Match `control` to the winner's latency; return it with its latency."""
    if isinstance(control, SmallerInput):
        return match_smaller(measurement, control.kind, winner.latency)
    most = (winner.policy.retention_ratio or 1.0) * ABOVE_WINNER
    policy = match_latency(measurement, control, winner.latency.ratio.value, most=most)
    return policy, measurement.timer.measure(policy, measurement.timings.trial)


def _kind(control: Intervention) -> Kind | None:
    return control.kind if isinstance(control, SmallerInput) else None


def _retention(control: Intervention, outcomes: Sequence[Outcome]) -> float | None:
    """Return the retention ratio: requested of a policy, counted in the outcomes of a smaller input."""
    if isinstance(control, Policy):
        return control.retention_ratio
    kept = [outcome.retention_ratio for outcome in outcomes if outcome.retention_ratio is not None]
    return round(sum(kept) / len(kept), 6) if kept else None


def match_latency(measurement: Measurement, control: Policy, latency_ratio: float, *, most: float = 1.0) -> Policy:
    """Solve the largest retention ratio of `control` predicted to be as fast as `latency_ratio` ÷ baseline.

    One that was never timed is sought up to the ratio `most`.
    """
    missing = control.needs() - measurement.bench.offers
    if missing:
        raise ValueError(f"needs {', '.join(sorted(missing))}")
    if not has_free_retention(control):
        return control
    low, high = control.attainable(measurement.bench.shape)
    known = measurement.curves.get(control.name)
    high = max(low, min(high, round(most, 4))) if known is None else high
    rules = shortest(measurement)
    # a curve that has its shape from another is placed by what was timed near the latency sought
    for ratio in (low, high) if known is None or known.like is None else ():
        measurement.probe(control.with_(retention_ratio=ratio), rules)
    curve = measurement.curves[control.name]
    first = curve.solve(latency_ratio)
    if first is not None and low < first < high:
        measurement.probe(control.with_(retention_ratio=first), rules)
    solved = curve.solve(latency_ratio)
    return control.with_(retention_ratio=low if solved is None else max(low, round(solved, 4)))


def shortest(measurement: Measurement) -> TimingRules:
    """Make the rules to look for a control's latency; what is found is timed properly afterwards."""
    quick = measurement.timings.quick
    return replace(quick, max_pairs=quick.min_pairs)


TOLERANCE = 0.02
"""Latencies this close count as equal: the half-width that timing stops at."""
MOST_PROBES = 6
MOST_STEPS_DOWN = 2


def sizes(kind: Kind, shape: VideoShape) -> list[float]:
    """List the ratios below 1 that may give another input size, ascending: whole frames, whole tokens of a frame."""
    whole = shape.frames if kind == "frames" else shape.tokens
    return [part / whole for part in range(1, whole)]


def match_smaller(measurement: Measurement, kind: Kind, winner: Latency) -> tuple[SmallerInput, Latency]:
    """Find the largest input of `kind` that is as fast as the winner within tolerance, and its latency.

    On a noisy machine the latency that is returned may still be somewhat higher: it says what was reached.

    Raises:
        TuneError: there is no smaller input, or the smallest is slower than the winner.
    """
    ratios = sizes(kind, measurement.bench.shape)
    limit = winner.ratio.high * (1 + TOLERANCE)
    if not ratios:
        raise TuneError("the input cannot be made smaller")
    at = _bracket(measurement, kind, ratios, winner.ratio.value, limit)
    for steps_left in reversed(range(MOST_STEPS_DOWN + 1)):
        chosen = SmallerInput(kind=kind, ratio=ratios[at])
        latency = measurement.timer.measure(chosen, measurement.timings.trial)
        if latency.ratio.value <= limit or (at > 0 and not steps_left):
            break
        if at == 0:
            raise _too_slow(latency.ratio.value, limit)
        # the quick measurement was lucky
        wanted = bisect.bisect_right(ratios, ratios[at] * limit / latency.ratio.value) - 1
        at = max(0, min(at - 1, wanted))
    return chosen, latency


def _bracket(measurement: Measurement, kind: Kind, ratios: list[float], aim: float, limit: float) -> int:
    """Find the index of the largest size within `limit`, by regula falsi with a few quick measurements.

    Raises TuneError if the smallest is slower.
    """
    rules = replace(shortest(measurement), above=limit)
    fits, slow = _time(measurement, kind, ratios, 0, rules), _Point(len(ratios), 1.0, 1.0)
    if fits.latency > limit:
        raise _too_slow(fits.latency, limit)
    for _ in range(MOST_PROBES):
        if slow.place - fits.place == 1 or fits.latency >= aim * (1 - TOLERANCE):
            break
        share = (limit - fits.latency) / max(slow.latency - fits.latency, 1e-9)
        wanted = bisect.bisect_right(ratios, fits.ratio + share * (slow.ratio - fits.ratio)) - 1
        point = _time(measurement, kind, ratios, min(max(wanted, fits.place + 1), slow.place - 1), rules)
        fits, slow = (point, slow) if point.latency <= limit else (fits, point)
    return fits.place


class _Point(NamedTuple):
    """A size and its latency ÷ that of the full input."""

    place: int
    ratio: float
    latency: float


def _time(measurement: Measurement, kind: Kind, ratios: list[float], index: int, rules: TimingRules) -> _Point:
    """Time one size quickly."""
    latency = measurement.timer.measure(SmallerInput(kind=kind, ratio=ratios[index]), rules)
    return _Point(index, ratios[index], latency.ratio.value)


def _too_slow(latency_ratio: float, limit: float) -> TuneError:
    return TuneError(f"the smallest input takes {latency_ratio:.1%} of the full one's time, above {limit:.1%}")


def judge_compositions(
    measurement: Measurement,
    heldout: Heldout,
    winner: tuple[Confirmed, Sequence[Outcome]] | None,
    leaders: Sequence[TrialResult],
    trial_results: Sequence[TrialResult],
    rejected: Collection[str] = (),
) -> CompositionVerdict:
    """Bring the best of the other side to the winner's latency and score it on the held-out examples.

    `winner` is what was chosen, with its held-out outcomes; None where nothing was. The best of a side is the first of
    `leaders` that is not `rejected`, as the search and its re-ranking left them; where a side has none, the best of
    those that fell behind in the search.
    """
    tried = [each for each in trial_results if each.candidate is not None and each.candidate.base == COMPOSED]
    behind = [each for each in trial_results if each.score is not None and each.violation.get("latency", 0.0) <= 0]
    ranked = [*leaders, *sorted(behind, key=lambda each: (-each.value, each.number))]
    left = [each for each in ranked if each.policy.hash not in rejected]
    compositions = [each for each in left if _is_composition(each)]
    published = [each for each in left if not _is_composition(each)]
    if not tried:
        failed = any(each.candidate is None for each in trial_results)
        return CompositionVerdict(tried=0, reason="none could be measured" if failed else "none was tried")
    if not compositions:
        return CompositionVerdict(tried=len(tried), reason=f"none of {len(tried)} tried met the target")
    if winner is None:
        return CompositionVerdict(tried=len(tried), reason="no policy was worth it")
    confirmed, ours = winner
    # what grew or shrank to its latency has the name of its trial still
    composition_won = confirmed.policy.name in {each.policy.name for each in tried}
    rivals = published if composition_won else compositions
    first = confirmed.policy.name
    if not rivals:
        return CompositionVerdict(tried=len(tried), composition=first, reason="no published policy met the target")
    rival = rivals[0].policy
    found = run_control(measurement, heldout, rival, confirmed, ours, most=None)
    names = (first, rival.name) if composition_won else (rival.name, first)
    if found.advantage is None or found.latency is None:
        return CompositionVerdict(
            tried=len(tried),
            composition=names[0],
            published=names[1],
            reason=f"{rival.name} could not be measured at the same latency: {found.reason}",
        )
    ratios = (confirmed.latency.ratio.value, found.latency.ratio.value)
    return CompositionVerdict(
        tried=len(tried),
        composition=names[0],
        published=names[1],
        difference=found.advantage if composition_won else _reversed(found.advantage),
        composition_latency_ratio=ratios[0] if composition_won else ratios[1],
        published_latency_ratio=ratios[1] if composition_won else ratios[0],
    )


def _is_composition(trial_result: TrialResult) -> bool:
    return trial_result.candidate is not None and trial_result.candidate.base == COMPOSED


def _reversed(difference: Interval) -> Interval:
    """Return the other side's difference."""
    # from zero, since the negative of zero would be printed with its sign
    value, low, high = (0.0 - number for number in (difference.value, difference.high, difference.low))
    return Interval(value, low, high, difference.n, difference.level)
