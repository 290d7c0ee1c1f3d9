"""Bringing a smaller input to a latency: its sizes are whole frames and patches, so latency moves in steps."""

import bisect
from dataclasses import replace
from typing import NamedTuple

from vidsieve.framework.errors import TuneError
from vidsieve.framework.records import VideoShape
from vidsieve.tuner.controls.smaller_input import Kind, SmallerInput
from vidsieve.tuner.measure.latency import Latency, TimingRules
from vidsieve.tuner.measure.measurement import Measurement

TOLERANCE = 0.02
"""Latencies this close count as equal: the half-width that timing stops at."""
MOST_PROBES = 6
MOST_STEPS_DOWN = 2


def sizes(kind: Kind, shape: VideoShape) -> list[float]:
    """The ratios below 1 that may give an input of another size, ascending: whole frames, whole tokens of a frame."""
    whole = shape.frames if kind == "frames" else shape.tokens
    return [part / whole for part in range(1, whole)]


def match_smaller(measurement: Measurement, kind: Kind, winner: Latency) -> tuple[SmallerInput, Latency]:
    """The largest input of `kind` that is as fast as the winner within tolerance, and its latency.

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
        # the quick look was lucky
        wanted = bisect.bisect_right(ratios, ratios[at] * limit / latency.ratio.value) - 1
        at = max(0, min(at - 1, wanted))
    return chosen, latency


def _bracket(measurement: Measurement, kind: Kind, ratios: list[float], aim: float, limit: float) -> int:
    """Index of the largest size found within `limit`, by a few quick looks where a line through the ends points.

    Raises TuneError if the smallest is slower.
    """
    rules = replace(measurement.timings.quick, above=limit)
    fits, slow = _look(measurement, kind, ratios, 0, rules), _Point(len(ratios), 1.0, 1.0)
    if fits.latency > limit:
        raise _too_slow(fits.latency, limit)
    for _ in range(MOST_PROBES):
        if slow.place - fits.place == 1 or fits.latency >= aim * (1 - TOLERANCE):
            break
        share = (limit - fits.latency) / max(slow.latency - fits.latency, 1e-9)
        wanted = bisect.bisect_right(ratios, fits.ratio + share * (slow.ratio - fits.ratio)) - 1
        point = _look(measurement, kind, ratios, min(max(wanted, fits.place + 1), slow.place - 1), rules)
        fits, slow = (point, slow) if point.latency <= limit else (fits, point)
    return fits.place


class _Point(NamedTuple):
    """A size and its latency ÷ that of the full input."""

    place: int
    ratio: float
    latency: float


def _look(measurement: Measurement, kind: Kind, ratios: list[float], index: int, rules: TimingRules) -> _Point:
    """One quick measurement."""
    latency = measurement.timer.measure(SmallerInput(kind=kind, ratio=ratios[index]), rules)
    return _Point(index, ratios[index], latency.ratio.value)


def _too_slow(latency_ratio: float, limit: float) -> TuneError:
    return TuneError(f"the smallest input takes {latency_ratio:.1%} of the full one's time, above {limit:.1%}")
